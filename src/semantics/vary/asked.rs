//! What the origin is asked in place of a field of the client's, where the policy decides that.
//!
//! A client's field that is reduced here loses some of its meaning. So what goes upstream and what selects is the same reduced
//! value, whatever the client sent: the origin never sees more than the key and Vary do (RFC 9111 §4.1).

use super::super::fields::list;
use super::super::policy::{AcceptEncoding, CachePolicy};
use super::super::{Fields, Name, name};
use super::normal::split_weight;

/// Fields that the policy may decide.
pub const DECIDED: [Name; 5] =
    [name::ACCEPT, name::ACCEPT_ENCODING, name::ACCEPT_LANGUAGE, name::AVAILABLE_DICTIONARY, name::DICTIONARY_ID];

/// What becomes of a field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asked {
    /// It goes as the client sent it.
    AsSent,
    /// The origin gets no such field.
    Nothing,
    /// The origin gets the value that was written.
    Written,
}

/// Decides about one of [`DECIDED`]; where the answer is [`Asked::Written`], its value is appended to `out`.
pub fn write_asked(field: Name, request: &Fields, policy: &CachePolicy, out: &mut Vec<u8>) -> Asked {
    match field {
        // What we code ourselves is asked for without a coding, so that one stored response is for everybody.
        name::ACCEPT_ENCODING if policy.compression.is_some() => write("identity", out),
        name::ACCEPT_ENCODING => match policy.accept_encoding {
            AcceptEncoding::Forward => Asked::AsSent,
            AcceptEncoding::Normalise if accepts_gzip(request) => write("gzip", out),
            AcceptEncoding::Normalise | AcceptEncoding::Identity => write("identity", out),
        },
        // Nor is a dictionary of the client's any business of the origin's then.
        name::AVAILABLE_DICTIONARY | name::DICTIONARY_ID if has_dictionaries(policy) => Asked::Nothing,
        name::ACCEPT_LANGUAGE if !policy.vary.languages.is_empty() => match best_language(request, &policy.vary.languages) {
            Some(language) => write(language, out),
            None => Asked::Nothing,
        },
        name::ACCEPT if !policy.vary.images.is_empty() => write_images(request, &policy.vary.images, out),
        _ => Asked::AsSent,
    }
}

/// Whether dictionaries are used here.
pub fn has_dictionaries(policy: &CachePolicy) -> bool {
    policy.compression.as_ref().is_some_and(|how| how.dictionaries().is_some())
}

fn write(value: &str, out: &mut Vec<u8>) -> Asked {
    out.extend_from_slice(value.as_bytes());
    Asked::Written
}

/// Listed or `*`, with a weight above zero (RFC 9110 §12.5.3).
fn accepts_gzip(request: &Fields) -> bool {
    let (mut any, mut gzip) = (None, None);
    for (weight, coding) in request.values(name::ACCEPT_ENCODING).flat_map(list).map(split_weight) {
        if coding == b"*" {
            any = Some(weight);
        } else if coding.eq_ignore_ascii_case(b"gzip") || coding.eq_ignore_ascii_case(b"x-gzip") {
            gzip = gzip.max(Some(weight));
        }
    }
    gzip.or(any).is_some_and(|weight| weight > 0)
}

/// Members of Accept-Language that are looked at; further ones are not.
const RANGES_MAX: usize = 64;

/// The supported language that a client likes best: RFC 4647 §3.4 lookup, ranges by weight and then in their order. `None`
/// where none fits, or only `*` does: then the origin's default is what the client gets.
fn best_language<'s>(request: &Fields, supported: &'s [String]) -> Option<&'s str> {
    let ranges = || request.values(name::ACCEPT_LANGUAGE).flat_map(list).take(RANGES_MAX).map(split_weight);
    let is_refused = |language: &str| ranges().any(|(weight, range)| weight == 0 && range.eq_ignore_ascii_case(language.as_bytes()));
    let mut best: Option<(u16, &str)> = None;
    for (weight, range) in ranges().filter(|(weight, _)| *weight > 0) {
        if best.is_none_or(|(most, _)| weight > most)
            && let Some(language) = look_up(range, supported).filter(|language| !is_refused(language))
        {
            best = Some((weight, language));
        }
    }
    best.map(|(_, language)| language)
}

/// The supported language that a range names, subtags being taken off its end until one does (RFC 4647 §3.4).
fn look_up<'s>(mut range: &[u8], supported: &'s [String]) -> Option<&'s str> {
    loop {
        if let Some(language) = supported.iter().find(|language| range.eq_ignore_ascii_case(language.as_bytes())) {
            return Some(language);
        }
        let end = range.iter().rposition(|byte| *byte == b'-')?;
        range = &range[..end];
        // A subtag of one letter introduces what was after it: it goes, too.
        if let [rest @ .., b'-', _] = range {
            range = rest;
        }
    }
}

/// Which of these image formats a client names, and whether it takes others: `image/avif, image/webp, */*;q=0.8`.
///
/// `*/*` and `image/*` do not count as naming a format: clients that take none of the newer ones send them. A client that takes
/// neither one of these formats nor anything else by a wildcard does not ask for an image: its field stays as it is. So does
/// one that refuses anything.
fn write_images(request: &Fields, formats: &[String], out: &mut Vec<u8>) -> Asked {
    let taken = |wanted: &[u8]| {
        let mut ranges = request.values(name::ACCEPT).flat_map(list).map(split_weight);
        ranges.any(|(weight, range)| weight > 0 && range.eq_ignore_ascii_case(wanted))
    };
    // A wildcard of ours would take back what the client refuses.
    if request.values(name::ACCEPT).flat_map(list).any(|range| split_weight(range).0 == 0) {
        return Asked::AsSent;
    }
    let any = !request.has(name::ACCEPT) || taken(b"*/*");
    let others = if any {
        "*/*;q=0.8"
    } else if taken(b"image/*") {
        "image/*;q=0.8"
    } else {
        ""
    };
    let start = out.len();
    let named = formats.iter().filter(|format| taken(format.as_bytes())).map(String::as_str);
    for part in named.chain([others]).filter(|part| !part.is_empty()) {
        if out.len() > start {
            out.extend_from_slice(b", ");
        }
        out.extend_from_slice(part.as_bytes());
    }
    if out.len() > start { Asked::Written } else { Asked::AsSent }
}

#[cfg(test)]
mod tests {
    use super::super::super::policy::VaryPolicy;
    use super::*;
    use proptest::prelude::*;

    fn asked(field: Name, lines: &[&str], policy: &CachePolicy) -> Option<String> {
        let mut request = Fields::new();
        for line in lines {
            request.append(field, line).unwrap();
        }
        let mut out = Vec::new();
        match write_asked(field, &request, policy, &mut out) {
            Asked::Written => Some(String::from_utf8(out).unwrap()),
            Asked::Nothing => Some("nothing".into()),
            Asked::AsSent => None,
        }
    }

    fn policy(languages: &[&str], images: &[&str]) -> CachePolicy {
        let list = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
        CachePolicy {
            vary: VaryPolicy { languages: list(languages), images: list(images), ..VaryPolicy::default() },
            ..CachePolicy::default()
        }
    }

    #[test]
    fn languages_are_looked_up_as_in_rfc_4647() {
        let policy = policy(&["en", "de", "zh-Hant", "pt-BR"], &[]);
        for (lines, want) in [
            (&["de-AT, en;q=0.5"][..], "de"),
            (&["en;q=0.5, de-AT;q=0.6"], "de"),
            (&["EN-us"], "en"),
            (&["fr, en;q=0.1"], "en"),
            (&["fr;q=0.9", "de;q=0.1"], "de"),
            (&["de, en"], "de"),
            (&["en, de"], "en"),
            (&["zh-hant-cn-x-private1-private2"], "zh-Hant"),
            (&["zh-x-hant"], "nothing"),
            (&["de-x"], "de"),
            (&["pt"], "nothing"),
            (&["pt-br"], "pt-BR"),
            (&["*"], "nothing"),
            (&["fr, *;q=0.5"], "nothing"),
            (&["de;q=0"], "nothing"),
            (&["de-AT, de;q=0, en;q=0.2"], "en"),
            (&["nonsense;q=x, ;;, -, en"], "en"),
            (&[""], "nothing"),
            (&[], "nothing"),
        ] {
            assert_eq!(asked(name::ACCEPT_LANGUAGE, lines, &policy).as_deref(), Some(want), "{lines:?}");
        }
        assert_eq!(asked(name::ACCEPT_LANGUAGE, &["de"], &CachePolicy::default()), None);
    }

    #[test]
    fn accept_is_reduced_to_the_formats_that_are_named() {
        let policy = policy(&[], &["image/avif", "image/webp"]);
        for (lines, want) in [
            (&["image/avif,image/webp,image/apng,*/*;q=0.8"][..], Some("image/avif, image/webp, */*;q=0.8")),
            (&["image/webp, image/avif;q=0.1", "*/*"], Some("image/avif, image/webp, */*;q=0.8")),
            (&["IMAGE/WebP, */*"], Some("image/webp, */*;q=0.8")),
            (&["image/avif;q=0, image/*"], None),
            (&["image/webp, image/png;q=0.0, */*"], None),
            (&["image/webp"], Some("image/webp")),
            (&["*/*"], Some("*/*;q=0.8")),
            (&[], Some("*/*;q=0.8")),
            (&["text/html, image/png"], None),
            (&["*/*;q=0"], None),
            (&[""], None),
        ] {
            assert_eq!(asked(name::ACCEPT, lines, &policy).as_deref(), want, "{lines:?}");
        }
        assert_eq!(asked(name::ACCEPT, &["image/webp"], &CachePolicy::default()), None);
    }

    proptest! {
        #[test]
        fn what_is_asked_is_asked_again_of_itself(
            field in prop::sample::select(&DECIDED[..]),
            value in "((en|de|fr|de-AT|\\*|image/webp|image/avif|\\*/\\*|image/\\*|gzip|br|[a-z;=,\"]{0,4})(;q=[01](\\.[0-9])?)?,? ?){0,5}",
        ) {
            let policy = policy(&["en", "de"], &["image/avif", "image/webp"]);
            // A second cache of the same policy behind this one selects by the same value, and never by more.
            if let Some(once) = asked(field, &[&value], &policy).filter(|once| once != "nothing") {
                prop_assert_eq!(asked(field, &[&once], &policy), Some(once));
            }
        }
    }
}
