//! Content codings that we make ourselves: who gets which, what is worth it, and what becomes of the fields
//! (RFC 9110 §8.4, §8.8.3, §12.5.3).
//!
//! What is stored is asked for without a coding, so that neither key nor Vary depends on what a client reads; what a
//! client reads decides which form of it goes out. Such a response says `Vary: Accept-Encoding`, whichever form it is.
//!
//! A coded form keeps the opaque part of the entity tag and makes it weak: whatever form a client has, If-None-Match finds
//! it, and neither If-Match nor If-Range takes the bytes of one for those of another (§8.8.1). See decision 0011.
//!
//! Two codings are against a dictionary that both ends have (RFC 9842); which one that is, [`super::dictionary`] says.

use super::dictionary::{Dictionary, DictionaryHash};
use super::fields::{list, trim};
use super::policy::Compression;
use super::vary::split_weight;
use super::{Fields, Method, Name, Request, Response, StatusCode, name};
use smallvec::SmallVec;
use std::fmt;
use std::sync::Arc;

/// A coding that we make.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Coding {
    Gzip,
    Brotli,
    Zstd,
    /// Brotli against a dictionary (RFC 9842 §4).
    Dcb,
    /// Zstandard against a dictionary (RFC 9842 §5).
    Dcz,
}

impl Coding {
    pub const ALL: [Self; 5] = [Self::Gzip, Self::Brotli, Self::Zstd, Self::Dcb, Self::Dcz];
    /// Those that need no dictionary. We read them, too.
    pub const PLAIN: [Self; 3] = [Self::Gzip, Self::Brotli, Self::Zstd];

    /// As in Content-Encoding and Accept-Encoding.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Brotli => "br",
            Self::Zstd => "zstd",
            Self::Dcb => "dcb",
            Self::Dcz => "dcz",
        }
    }

    /// Whether it is against a dictionary.
    pub const fn takes_dictionary(self) -> bool {
        matches!(self, Self::Dcb | Self::Dcz)
    }

    /// The same against a dictionary, where there is such a coding.
    const fn with_dictionary(self) -> Option<Self> {
        match self {
            Self::Brotli => Some(Self::Dcb),
            Self::Zstd => Some(Self::Dcz),
            Self::Gzip | Self::Dcb | Self::Dcz => None,
        }
    }

    /// The coding of this name, in any letter case; `x-gzip` is gzip (RFC 9110 §8.4.1.3).
    pub fn named(name: &[u8]) -> Option<Self> {
        let alias = name.eq_ignore_ascii_case(b"x-gzip").then_some(Self::Gzip);
        alias.or_else(|| Self::ALL.into_iter().find(|coding| name.eq_ignore_ascii_case(coding.as_str().as_bytes())))
    }
}

/// What tells the forms of a response apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FormId {
    pub coding: Coding,
    /// What it is against, where the coding takes one.
    pub dictionary: Option<DictionaryHash>,
}

impl fmt::Display for FormId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.dictionary {
            None => f.write_str(self.coding.as_str()),
            Some(hash) => write!(f, "{} {hash}", self.coding.as_str()),
        }
    }
}

/// What a form is to be made in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    pub coding: Coding,
    /// Where the coding takes one.
    pub dictionary: Option<Arc<Dictionary>>,
}

impl Wanted {
    pub const fn plain(coding: Coding) -> Self {
        Self { coding, dictionary: None }
    }

    pub fn id(&self) -> FormId {
        FormId { coding: self.coding, dictionary: self.dictionary.as_ref().map(|dictionary| dictionary.hash()) }
    }
}

/// What a client reads: weights in thousandths.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Accepted {
    codings: [Option<u16>; Coding::ALL.len()],
    identity: Option<u16>,
    /// Of whatever is not named.
    others: Option<u16>,
}

/// Members of Accept-Encoding that are looked at; further ones are not.
const MEMBERS_MAX: usize = 32;

impl Accepted {
    /// Reads Accept-Encoding; of a coding that is named twice the larger weight counts. `None` where the field is absent: then
    /// any coding would do, and none is what every client reads.
    pub fn of(request: &Fields) -> Option<Self> {
        if !request.has(name::ACCEPT_ENCODING) {
            return None;
        }
        let mut accepted = Self { codings: [None; Coding::ALL.len()], identity: None, others: None };
        for (weight, coding) in request.values(name::ACCEPT_ENCODING).flat_map(list).take(MEMBERS_MAX).map(split_weight) {
            let place = match Coding::named(coding) {
                Some(coding) => &mut accepted.codings[coding as usize],
                None if coding == b"*" => &mut accepted.others,
                None if coding.eq_ignore_ascii_case(b"identity") => &mut accepted.identity,
                None => continue,
            };
            *place = (*place).max(Some(weight));
        }
        Some(accepted)
    }

    /// Zero: not to be sent. Who has a dictionary names the codings that take it; a wildcard does not (RFC 9842 §6.1).
    pub fn weight(&self, coding: Coding) -> u16 {
        let others = if coding.takes_dictionary() { None } else { self.others };
        self.codings[coding as usize].or(others).unwrap_or(0)
    }

    /// Whether bytes without a coding may be sent: unless they are refused by name, or by `*;q=0` without being named.
    pub fn takes_identity(&self) -> bool {
        self.identity.or(self.others) != Some(0)
    }

    /// The best of what is offered; of those that are as good as each other the one that stands first. `None`: identity,
    /// because it is preferred or nothing else fits; a client that refuses that, too, gets it all the same (RFC 9110
    /// §12.5.3 leaves the choice; an error would help nobody).
    pub fn best(&self, offered: &[Coding]) -> Option<Coding> {
        let mut best: Option<(u16, Coding)> = None;
        for coding in offered {
            let weight = self.weight(*coding);
            if weight > best.map_or(0, |(most, _)| most) {
                best = Some((weight, *coding));
            }
        }
        let (weight, coding) = best?;
        // Only where it is named does identity compete: otherwise it is what is left (RFC 9110 §12.5.3).
        self.identity.is_none_or(|identity| identity <= weight).then_some(coding)
    }
}

/// The coding in which this request is answered where the response may be coded at all.
///
/// A range is of the bytes without a coding, which stay the same when a form is made anew: whoever asks for one gets
/// those. Under an If-Range with a date, which tells no form from another, there is no range, and the whole is coded.
pub fn coding_for(request: Request<'_>, offered: &[Coding]) -> Option<Coding> {
    let accepted = Accepted::of(request.fields)?;
    let coding = accepted.best(offered)?;
    let is_part = request.fields.has(name::RANGE) && *request.method != Method::HEAD;
    let by_tag = request.fields.get(name::IF_RANGE).is_none_or(|value| trim(value).ends_with(b"\""));
    (!(is_part && by_tag && accepted.takes_identity())).then_some(coding)
}

/// The coding in which a request is answered that has a dictionary, if that is one which takes it; of those that it likes as
/// well as others these, because they are smaller by far.
pub fn coding_with_dictionary(request: Request<'_>, offered: &[Coding]) -> Option<Coding> {
    let with_dictionary = offered.iter().filter_map(|coding| coding.with_dictionary());
    let all: SmallVec<[Coding; Coding::ALL.len()]> = with_dictionary.chain(offered.iter().copied()).collect();
    coding_for(request, &all).filter(|coding| coding.takes_dictionary())
}

/// Whether a response of this head and this many bytes, where that is known, may be coded: by its status, type and size,
/// and if nothing forbids it (RFC 9110 §7.7: no-transform).
pub fn may_be_coded(response: Response<'_>, length: Option<u64>, policy: &Compression) -> bool {
    let fields = response.fields;
    has_whole_content(response.status)
        && length.is_none_or(|length| length >= policy.min_bytes)
        && !fields.has(name::CONTENT_ENCODING)
        && !fields.has(name::CONTENT_RANGE)
        && fields.get(name::CONTENT_TYPE).is_some_and(|value| policy.is_of_types(value))
        && !forbids_transformation(fields)
}

/// The coding in which a response came, where it is one of ours and may be taken off.
pub fn decodable(response: Response<'_>) -> Option<Coding> {
    let fields = response.fields;
    if !fields.has(name::CONTENT_ENCODING) || fields.has(name::CONTENT_RANGE) {
        return None;
    }
    let mut lines = fields.values(name::CONTENT_ENCODING);
    let coding = lines.next().filter(|_| lines.next().is_none()).and_then(|value| Coding::named(trim(value)))?;
    let is_readable = !coding.takes_dictionary(); // nobody says which one it is
    (is_readable && has_whole_content(response.status) && !forbids_transformation(fields)).then_some(coding)
}

/// Whether this client can be given bytes in that coding: it takes it, or refuses bytes without one. Who says nothing is taken to
/// read none, since it was for none that the upstream was asked.
pub fn reads(request: &Fields, coding: Coding) -> bool {
    Accepted::of(request).is_some_and(|accepted| accepted.weight(coding) > 0 || !accepted.takes_identity())
}

/// The fields of a response of which the coding was taken off.
pub fn decoded_fields(fields: &Fields) -> Fields {
    let mut decoded = described_anew(fields);
    decoded.remove(name::CONTENT_ENCODING);
    decoded
}

/// Statuses whose content is a representation, whole.
fn has_whole_content(status: StatusCode) -> bool {
    let has_none = matches!(status.as_u16(), 204..=206);
    (status.is_success() && !has_none) || status.is_client_error() || status.is_server_error()
}

/// Whether Cache-Control says no-transform, wherever in it.
fn forbids_transformation(fields: &Fields) -> bool {
    const WORD: &[u8] = b"no-transform";
    fields.values(name::CACHE_CONTROL).any(|value| value.windows(WORD.len()).any(|part| part.eq_ignore_ascii_case(WORD)))
}

/// Whether the response says already that this field of a request selects.
pub fn varies_on(fields: &Fields, field: Name) -> bool {
    let selects = |member: &[u8]| member == b"*" || member.eq_ignore_ascii_case(field.as_str().as_bytes());
    fields.has(name::VARY) && fields.values(name::VARY).flat_map(list).any(selects)
}

/// Of the bytes as they came: they are not those of a form.
const OF_BYTES: [&str; 4] = ["content-md5", "digest", "content-digest", "repr-digest"];

/// The fields of a coded form; `length`: of the form, once it is known.
pub fn coded_fields(fields: &Fields, coding: Coding, length: Option<u64>) -> Fields {
    let mut coded = described_anew(fields);
    set(&mut coded, name::CONTENT_ENCODING, coding.as_str().as_bytes());
    if let Some(length) = length {
        set(&mut coded, name::CONTENT_LENGTH, length.to_string().as_bytes());
    }
    coded.shrink();
    coded
}

/// Without what is true of the bytes as they came alone, and under a weak entity tag.
fn described_anew(fields: &Fields) -> Fields {
    let mut anew = fields.copy_if(|number, name, _| match number {
        Some(name::CONTENT_LENGTH | name::ETAG | name::ACCEPT_RANGES) => false,
        Some(_) => true,
        None => !OF_BYTES.iter().any(|of_bytes| of_bytes.as_bytes() == name),
    });
    if let Some(tag) = fields.get(name::ETAG) {
        let weak = if tag.starts_with(b"W/") { tag.to_vec() } else { [b"W/", tag].concat() };
        set(&mut anew, name::ETAG, &weak);
    }
    anew
}

fn set(fields: &mut Fields, name: Name, value: &[u8]) {
    let added = fields.append(name, value);
    debug_assert!(added.is_ok(), "what was a field value, and words and digits, are field values");
}

/// Whether a form is so much smaller than what it is of that it is worth having: by a twentieth at least.
pub const fn is_worth_it(form: u64, whole: u64) -> bool {
    form <= whole - whole / 20
}

#[cfg(test)]
mod tests {
    use super::super::reuse::testing::{Asked, fields};
    use super::*;
    use proptest::prelude::*;

    /// As they stand in the configuration.
    const OFFERED: [Coding; 3] = [Coding::Zstd, Coding::Brotli, Coding::Gzip];

    fn chosen(lines: &[(&str, &str)]) -> &'static str {
        coding_for(Asked::get(lines).request(), &OFFERED).map_or("identity", Coding::as_str)
    }

    #[test]
    fn the_best_of_what_a_client_reads_is_chosen() {
        for (accept, want) in [
            ("gzip", "gzip"),
            ("x-gzip", "gzip"),
            ("GZIP", "gzip"),
            ("gzip, deflate, br, zstd", "zstd"),
            ("gzip, deflate, br", "br"),
            ("br;q=0.5, gzip;q=0.8", "gzip"),
            ("br;q=0.8, gzip;q=0.8", "br"),
            ("gzip;q=0", "identity"),
            ("gzip;q=0.0, *", "zstd"),
            ("*;q=0", "identity"),
            ("*", "zstd"),
            ("*;q=0.1", "zstd"),
            ("zstd;q=0, *", "br"),
            ("identity", "identity"),
            ("identity, gzip", "gzip"),
            ("identity;q=1, gzip;q=0.9", "identity"),
            ("identity;q=0.5, gzip;q=0.5", "gzip"),
            ("identity;q=0, gzip", "gzip"),
            ("identity;q=0", "identity"),
            ("identity;q=0, *;q=0", "identity"),
            ("compress, deflate", "identity"),
            ("gzip;q=0.5, gzip;q=0.9, br;q=0.8", "gzip"),
            ("gzip;q=x", "identity"),
            ("gzip;q=2", "identity"),
            ("gzip ; q=0.5 , br;Q=0.6", "br"),
            ("", "identity"),
        ] {
            assert_eq!(chosen(&[("accept-encoding", accept)]), want, "{accept}");
        }
        assert_eq!(chosen(&[]), "identity");
        assert_eq!(chosen(&[("accept-encoding", "gzip;q=0.5"), ("accept-encoding", "br")]), "br", "lines are one list");
    }

    #[test]
    fn a_coding_with_a_dictionary_is_chosen_by_name_and_weight() {
        let chosen = |lines: &[(&str, &str)], offered: &[Coding]| {
            coding_with_dictionary(Asked::get(lines).request(), offered).map_or("none", Coding::as_str)
        };
        for (accept, want) in [
            ("gzip, br, zstd, dcb, dcz", "dcz"),
            ("gzip, br, zstd, dcb", "dcb"),
            ("dcb;q=0.9, dcz;q=0.8", "dcb"),
            ("DCZ", "dcz"),
            ("gzip, dcz;q=0.5", "none"),
            ("gzip;q=0.5, dcz;q=0.5", "dcz"),
            ("dcz;q=0, dcb;q=0", "none"),
            ("*", "none"),
            ("*, dcb", "dcb"),
            ("identity, dcz;q=0.9", "none"),
            ("", "none"),
        ] {
            assert_eq!(chosen(&[("accept-encoding", accept)], &OFFERED), want, "{accept}");
        }
        let both = ("accept-encoding", "br, dcb, dcz");
        assert_eq!(chosen(&[both], &[Coding::Brotli, Coding::Zstd]), "dcb", "in the order of the configuration");
        assert_eq!((chosen(&[both], &[Coding::Brotli]), chosen(&[both], &[Coding::Gzip])), ("dcb", "none"));
        assert_eq!(chosen(&[both, ("range", "bytes=0-1")], &OFFERED), "none");
        assert_eq!(chosen(&[], &OFFERED), "none");
    }

    #[test]
    fn ranges_are_of_the_bytes_without_a_coding() {
        let with = |more: &[(&str, &str)]| chosen(&[&[("accept-encoding", "gzip"), ("range", "bytes=0-1")], more].concat());
        assert_eq!(with(&[]), "identity");
        assert_eq!(with(&[("if-range", "\"a\"")]), "identity");
        assert_eq!(with(&[("if-range", "W/\"a\"")]), "identity", "it never matches: the whole goes out");
        assert_eq!(with(&[("if-range", "Sat, 01 Jan 2022 00:00:00 GMT")]), "gzip", "a date tells no form from another");
        assert_eq!(chosen(&[("accept-encoding", "gzip, identity;q=0"), ("range", "bytes=0-1")]), "gzip");
        assert_eq!(chosen(&[("accept-encoding", "gzip, *;q=0"), ("range", "bytes=0-1")]), "gzip");
    }

    fn eligible(status: u16, lines: &[(&str, &str)], length: Option<u64>) -> bool {
        let fields = fields(lines);
        may_be_coded(Response { status: StatusCode::from_u16(status).unwrap(), fields: &fields }, length, &Compression::default())
    }

    #[test]
    fn what_may_be_coded() {
        const HTML: (&str, &str) = ("content-type", "Text/HTML; charset=utf-8");
        assert!(eligible(200, &[HTML], Some(1024)) && eligible(200, &[HTML], None));
        assert!(!eligible(200, &[HTML], Some(1023)), "too small");
        for (status, want) in [(200, true), (203, true), (404, true), (500, true), (204, false), (206, false), (301, false), (304, false)] {
            assert_eq!(eligible(status, &[HTML], Some(5000)), want, "{status}");
        }
        for more in [("content-encoding", "br"), ("content-range", "bytes 0-1/2"), ("cache-control", "max-age=5, No-Transform")] {
            assert!(!eligible(200, &[HTML, more], Some(5000)), "{more:?}");
        }
        for (kind, want) in [
            ("application/json", true),
            ("application/problem+json", true),
            ("image/svg+xml", true),
            ("text/css", true),
            ("text/event-stream", true),
            ("application/wasm", true),
            ("image/png", false),
            ("video/mp4", false),
            ("application/octet-stream", false),
            ("texts/x", false),
            ("", false),
        ] {
            assert_eq!(eligible(200, &[("content-type", kind)], Some(5000)), want, "{kind}");
        }
        assert!(!eligible(200, &[], Some(5000)), "nobody says what it is");
    }

    #[test]
    fn fields_of_a_form_are_true_of_it() {
        let source = fields(&[
            ("content-type", "text/html"),
            ("content-length", "5000"),
            ("etag", "\"a\""),
            ("accept-ranges", "bytes"),
            ("repr-digest", "sha-256=:AAAA:"),
            ("x-own", "1"),
        ]);
        let coded = coded_fields(&source, Coding::Brotli, Some(700));
        let want = fields(&[
            ("content-type", "text/html"),
            ("x-own", "1"),
            ("etag", "W/\"a\""),
            ("content-encoding", "br"),
            ("content-length", "700"),
        ]);
        assert_eq!(coded.wire(), want.wire());
        let weak = coded_fields(&fields(&[("etag", "W/\"a\"")]), Coding::Gzip, None);
        assert_eq!((weak.get(name::ETAG), weak.has(name::CONTENT_LENGTH)), (Some(&b"W/\"a\""[..]), false));
    }

    #[test]
    fn codings_of_the_upstream_are_taken_off_where_they_may_be() {
        let came = |status: u16, lines: &[(&str, &str)]| {
            let fields = fields(lines);
            decodable(Response { status: StatusCode::from_u16(status).unwrap(), fields: &fields })
        };
        const BR: (&str, &str) = ("content-encoding", "br");
        assert_eq!((came(200, &[BR]), came(404, &[BR])), (Some(Coding::Brotli), Some(Coding::Brotli)));
        assert_eq!(came(200, &[("content-encoding", "x-gzip")]), Some(Coding::Gzip));
        for lines in [
            &[][..],
            &[("content-encoding", "compress")],
            &[("content-encoding", "gzip, br")],
            &[("content-encoding", "dcb")],
            &[BR, BR],
            &[BR, ("cache-control", "no-transform")],
            &[BR, ("content-range", "bytes 0-1/2")],
        ] {
            assert_eq!(came(200, lines), None, "{lines:?}");
        }
        assert_eq!(came(206, &[BR]), None);
        let reads = |accept: &str| super::reads(&fields(&[("accept-encoding", accept)]), Coding::Brotli);
        assert!(reads("br") && reads("*") && reads("gzip, identity;q=0"), "the last refuses both: what is there goes out");
        assert!(!reads("gzip") && !reads("br;q=0") && !super::reads(&Fields::new(), Coding::Brotli));
        let decoded = decoded_fields(&fields(&[BR, ("etag", "\"a\""), ("content-length", "5"), ("content-type", "text/html")]));
        assert_eq!(decoded.wire(), fields(&[("content-type", "text/html"), ("etag", "W/\"a\"")]).wire());
    }

    #[test]
    fn vary_is_looked_at_as_a_list() {
        for (vary, want) in [("accept-encoding", true), ("Origin, Accept-Encoding", true), ("*", true), ("accept", false), ("", false)] {
            assert_eq!(varies_on(&fields(&[("vary", vary)]), name::ACCEPT_ENCODING), want, "{vary}");
        }
        assert!(!varies_on(&fields(&[]), name::ACCEPT_ENCODING));
    }

    #[test]
    fn a_form_has_to_save_a_twentieth() {
        assert!(is_worth_it(950, 1000) && !is_worth_it(951, 1000) && is_worth_it(0, 0));
    }

    proptest! {
        /// Whatever is asked: what is chosen is offered and has the largest weight; nothing refused is chosen.
        #[test]
        fn what_is_chosen_is_wanted_most(
            accept in "((gzip|br|zstd|dcb|dcz|identity|\\*|deflate|[a-z;=,\"]{0,4})(;q=[01](\\.[0-9]{0,3})?)?,? ?){0,7}",
            offered in prop::sample::subsequence(Coding::ALL.to_vec(), 0..=Coding::ALL.len()),
        ) {
            let request = fields(&[("accept-encoding", &accept)]);
            let accepted = Accepted::of(&request).unwrap();
            let with_dictionary = coding_with_dictionary(Asked::get(&[("accept-encoding", &accept)]).request(), &offered);
            prop_assert!(with_dictionary.is_none_or(|coding| coding.takes_dictionary() && accepted.weight(coding) > 0));
            match accepted.best(&offered) {
                Some(coding) => {
                    prop_assert!(offered.contains(&coding) && accepted.weight(coding) > 0);
                    prop_assert!(offered.iter().all(|other| accepted.weight(*other) <= accepted.weight(coding)));
                }
                None => prop_assert!(accepted.identity.is_some() || offered.iter().all(|other| accepted.weight(*other) == 0)),
            }
        }

        #[test]
        fn any_bytes_are_read_without_panic(accept in prop::collection::vec(any::<u8>(), 0..60)) {
            let mut request = Fields::new();
            if request.push("accept-encoding", &accept).is_ok() {
                let _ = Accepted::of(&request).unwrap().best(&OFFERED);
            }
        }
    }
}
