//! Which field says what this cache may do: Cache-Control and Expires, or one that is meant for it in particular
//! (RFC 9213).
//!
//! A route has a list of such fields. The first that is there, valid and not empty replaces Cache-Control, Expires and
//! Pragma altogether. Three grammars: Structured Fields for the fields of RFC 9213, and for people who come from other
//! servers Surrogate-Control (the Edge Architecture note of 2001) and X-Accel-Expires (nginx). The last two are meant for
//! the cache next to the origin alone: what of them was understood is not passed on.

use super::cache_control::{ResponseDirectives, Seconds, delta_seconds};
use super::fields::{is_token_byte, list, trim};
use super::key::hash128;
use super::{Fields, Name, name};
use sfv::{Dictionary, Parser};

/// The fields that govern before Cache-Control, most applicable first (RFC 9213 §2.2).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TargetList {
    targets: Box<[Target]>,
    device: Box<str>,
    id: u32,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Target {
    /// A field of RFC 9213.
    Structured(Box<str>),
    SurrogateControl,
    XAccelExpires,
}

/// What only a response has that a targeted field governs. Nearly always there is none, so it stands in a box.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Targeted {
    /// The field that governs, lower case.
    pub field: Box<str>,
    /// Fields that were for this cache alone, as they came: clients do not get them, but a 304 updates them.
    pub consumed: Fields,
}

/// What a field says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Said {
    pub directives: ResponseDirectives,
    /// The end of freshness in wall milliseconds, where it is an instant.
    pub expires_ms: Option<i64>,
}

impl TargetList {
    /// Fields by name, in any letter case; `device`: what this cache is called in Surrogate-Control.
    pub fn new<S: AsRef<str>>(fields: &[S], device: &str) -> Self {
        let targets: Box<[Target]> = fields.iter().map(|field| Target::of(field.as_ref())).collect();
        let names: Vec<&str> = targets.iter().map(Target::name).collect();
        let id = hash128(format!("{device}\n{}", names.join("\n")).as_bytes()) as u32; // its low bits
        Self { device: device.into(), id, targets }
    }

    /// The same list for a cache of this name.
    #[must_use]
    pub fn on(&self, device: &str) -> Self {
        Self::new(&self.names().collect::<Vec<_>>(), device)
    }

    /// The names of the fields, lower case.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.targets.iter().map(Target::name)
    }

    pub fn device(&self) -> &str {
        &self.device
    }

    /// Tells lists apart: what was read by another list has to be read anew.
    pub const fn id(&self) -> u32 {
        self.id
    }

    /// Whether Surrogate-Control counts here, so that the origin is to be told of it by Surrogate-Capability.
    pub fn has_surrogate_control(&self) -> bool {
        self.targets.contains(&Target::SurrogateControl)
    }

    /// The first field that is there, valid and not empty, and what it says (RFC 9213 §2.2).
    pub fn governing(&self, fields: &Fields) -> Option<(&str, Said)> {
        self.targets.iter().find_map(|target| Some((target.name(), target.read(fields, &self.device)?)))
    }

    /// The fields among these that were for this cache alone, and were understood.
    pub fn consumed<'l>(&'l self, fields: &'l Fields) -> impl Iterator<Item = Name> + 'l {
        self.targets.iter().filter_map(move |target| {
            let for_us_alone = match target {
                Target::SurrogateControl => name::SURROGATE_CONTROL,
                Target::XAccelExpires => name::X_ACCEL_EXPIRES,
                Target::Structured(_) => return None,
            };
            target.read(fields, &self.device).map(|_| for_us_alone)
        })
    }
}

impl Default for TargetList {
    fn default() -> Self {
        Self::new(&["cdn-cache-control"], "tiercel")
    }
}

impl Targeted {
    /// Bytes of memory on the heap, its own box among them.
    pub fn memory(&self) -> usize {
        size_of::<Self>() + self.field.len() + self.consumed.memory()
    }
}

impl Target {
    fn of(field: &str) -> Self {
        match field.to_ascii_lowercase().as_str() {
            "surrogate-control" => Self::SurrogateControl,
            "x-accel-expires" => Self::XAccelExpires,
            lower => Self::Structured(lower.into()),
        }
    }

    fn name(&self) -> &str {
        match self {
            Self::Structured(name) => name,
            Self::SurrogateControl => name::SURROGATE_CONTROL.as_str(),
            Self::XAccelExpires => name::X_ACCEL_EXPIRES.as_str(),
        }
    }

    fn read(&self, fields: &Fields, device: &str) -> Option<Said> {
        match self {
            Self::Structured(name) => structured(&fields.joined(&**name)?),
            Self::SurrogateControl if fields.has(name::SURROGATE_CONTROL) => surrogate_control(fields, device),
            Self::XAccelExpires => x_accel_expires(fields.get(name::X_ACCEL_EXPIRES)?),
            Self::SurrogateControl => None,
        }
    }
}

/// A Dictionary of directives (RFC 9213 §2.1); `None` where it is empty or the syntax is broken.
fn structured(value: &[u8]) -> Option<Said> {
    let dictionary: Dictionary = Parser::new(value).parse().ok()?;
    let directives = ResponseDirectives::of_dictionary(&dictionary);
    (!dictionary.is_empty()).then_some(Said { directives, expires_ms: None })
}

/// Surrogate-Control; `None` where nothing in it is for us.
///
/// A directive may be targeted (`max-age=60;cdn`): it then counts for the surrogates that are named, and there instead
/// of one that is not targeted. `max-age=600+30` allows 30 s of use past freshness. A number that is none is zero. What
/// else may stand there, `content` and `no-store-remote`, is not for a cache beside the origin.
fn surrogate_control(fields: &Fields, device: &str) -> Option<Said> {
    let (mut said, mut is_ours) = (ResponseDirectives::default(), false);
    let mut max_age: [Option<MaxAge>; 2] = [None; 2];
    for member in fields.values(name::SURROGATE_CONTROL).flat_map(list) {
        let mut parts = member.split(|byte| *byte == b';').map(trim);
        let directive = parts.next().unwrap_or(member);
        let mut targets = parts.filter(|target| !target.is_empty()).peekable();
        let is_targeted = targets.peek().is_some();
        if is_targeted && !targets.any(|target| target.eq_ignore_ascii_case(device.as_bytes())) {
            continue;
        }
        let name = directive.split(|byte| !is_token_byte(*byte)).next().unwrap_or(directive);
        if name.eq_ignore_ascii_case(b"no-store") {
            (said.no_store, is_ours) = (true, true);
        } else if name.eq_ignore_ascii_case(b"max-age") {
            let number = MaxAge::parse(&directive[name.len()..]);
            let slot = &mut max_age[usize::from(is_targeted)];
            *slot = Some(slot.map_or(number, |earlier| if earlier == number { number } else { MaxAge::STALE }));
            is_ours = true;
        }
    }
    if let Some(MaxAge { seconds, more }) = max_age[1].or(max_age[0]) {
        said.max_age = Some(seconds);
        said.set_stale_windows(more);
    }
    is_ours.then_some(Said { directives: said, expires_ms: None })
}

/// `=600` or `=600+30`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct MaxAge {
    seconds: Seconds,
    more: Option<Seconds>,
}

impl MaxAge {
    /// What a contradiction and a number that is none come to.
    const STALE: Self = Self { seconds: 0, more: None };

    fn parse(argument: &[u8]) -> Self {
        let [b'=', number @ ..] = argument else { return Self::STALE };
        let mut numbers = number.splitn(2, |byte| *byte == b'+');
        let seconds = numbers.next().and_then(delta_seconds);
        let more = numbers.next().map(delta_seconds);
        match (seconds, more) {
            (Some(seconds), None) => Self { seconds, more: None },
            (Some(seconds), Some(Some(more))) => Self { seconds, more: Some(more) },
            _ => Self::STALE,
        }
    }
}

/// X-Accel-Expires: seconds, `@` and seconds since 1970, or 0 for "do not cache". Anything else, `off` among it, says
/// nothing, as in nginx.
fn x_accel_expires(value: &[u8]) -> Option<Said> {
    let mut said = Said::default();
    match value {
        [b'@', instant @ ..] => said.expires_ms = Some(i64::from(delta_seconds(instant)?) * 1000),
        seconds => match delta_seconds(seconds)? {
            0 => said.directives.no_store = true,
            seconds => said.directives.max_age = Some(seconds),
        },
    }
    Some(said)
}

#[cfg(test)]
mod tests {
    use super::super::cache_control::SECONDS_MAX;
    use super::*;
    use proptest::prelude::*;

    fn fields(lines: &[(&str, &str)]) -> Fields {
        let mut fields = Fields::new();
        for (name, value) in lines {
            fields.push(name, value).unwrap();
        }
        fields
    }

    /// What the directives of a field come to, in words.
    fn read(list: &TargetList, lines: &[(&str, &str)]) -> String {
        let Some((field, said)) = list.governing(&fields(lines)).map(|(field, said)| (field.to_owned(), said)) else {
            return "none".into();
        };
        let d = &said.directives;
        let numbers =
            [("max-age", d.max_age), ("s-maxage", d.s_maxage), ("more", d.rare().stale_if_error.filter(|_| !field.starts_with("cdn")))];
        let flags = [
            ("no-store", d.no_store),
            ("no-cache", d.no_cache),
            ("private", d.private),
            ("public", d.public),
            ("must-revalidate", d.must_revalidate),
            ("proxy-revalidate", d.proxy_revalidate),
            ("must-understand", d.must_understand),
            ("immutable", d.immutable),
        ];
        let numbers = numbers.iter().filter_map(|(name, number)| Some(format!("{name}={}", (*number)?)));
        let flags = flags.iter().filter(|(_, is_set)| *is_set).map(|(name, _)| (*name).to_owned());
        let instant = said.expires_ms.map(|ms| format!("until={ms}"));
        let names = d.rare().no_cache_fields.iter().chain(&d.rare().private_fields).cloned();
        numbers.chain(flags).chain(instant).chain(names).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn fields_of_rfc_9213_are_strict_dictionaries() {
        for (value, want) in [
            ("max-age=60", "max-age=60"),
            ("max-age=60, no-store, private, no-cache, must-revalidate", "max-age=60 no-store no-cache private must-revalidate"),
            (
                "s-maxage=9, public, proxy-revalidate, must-understand, immutable",
                "s-maxage=9 public proxy-revalidate must-understand immutable",
            ),
            ("none", ""),
            ("foobar, max-age=60", "max-age=60"),
            ("max-age=60;a=b;c", "max-age=60"),
            ("max-age=1, max-age=60", "max-age=60"),
            ("no-store, no-store=?0", ""),
            ("no-store=?1", "no-store"),
            ("max-age=2147483647", "max-age=2147483647"),
            ("max-age=2147483648", "max-age=2147483648"),
            ("max-age=2147483649", "max-age=2147483648"),
            ("max-age=99999999999", "max-age=2147483648"),
            ("max-age=-1", "max-age=0"),
            ("no-cache=\"A, b\", private=\"x-User\"", "a b x-user"),
            ("private=\"\"", "private"),
            // Values of the wrong type say nothing (§2.1).
            ("max-age=\"60\"", ""),
            ("max-age=60.0", ""),
            ("max-age=60.5", ""),
            ("max-age=abc", ""),
            ("max-age", ""),
            ("max-age=(60)", ""),
            ("max-age=60, max-age=x", ""),
            ("no-store=1", ""),
            ("private=a", ""),
            ("public=\"a\"", ""),
            // Broken syntax: as if the field were not there.
            ("", "none"),
            ("max-age=60, &&&&&", "none"),
            ("max-age =60", "none"),
            ("max-age= 60", "none"),
            ("MaX-aGe=60", "none"),
            ("max-age=60,", "none"),
            ("max-age=60; private=", "none"),
            ("max-age=1000000000000000", "none"),
            ("ext=\"open", "none"),
            ("ext=\"caf\u{e9}\", max-age=60", "none"),
        ] {
            assert_eq!(read(&TargetList::default(), &[("cdn-cache-control", value)]), want, "{value}");
        }
    }

    #[test]
    fn several_lines_are_one_dictionary() {
        let line = |value| ("CDN-Cache-Control", value);
        let list = TargetList::default();
        assert_eq!(read(&list, &[line("no-store"), line("max-age=60")]), "max-age=60 no-store");
        assert_eq!(read(&list, &[line("max-age=1"), line("max-age=60")]), "max-age=60");
        assert_eq!(read(&list, &[line("max-age=1"), line("&")]), "none");
    }

    #[test]
    fn the_first_field_of_the_list_that_is_valid_governs() {
        let list = TargetList::new(&["Own-Cache-Control", "cdn-cache-control"], "tiercel");
        let [own, cdn] = ["own-cache-control", "cdn-cache-control"];
        for (lines, want) in [
            (vec![(cdn, "max-age=2"), (own, "max-age=1")], Some(own)),
            (vec![(cdn, "max-age=2")], Some(cdn)),
            (vec![(cdn, "max-age=2"), (own, "")], Some(cdn)),
            (vec![(cdn, "max-age=2"), (own, "&")], Some(cdn)),
            (vec![(cdn, "&"), (own, "&")], None),
            (vec![("other-cache-control", "max-age=3"), ("cache-control", "no-store")], None),
        ] {
            assert_eq!(list.governing(&fields(&lines)).map(|(field, _)| field), want, "{lines:?}");
        }
        assert!(TargetList::new::<&str>(&[], "a").governing(&fields(&[(cdn, "max-age=2")])).is_none());
    }

    #[test]
    fn surrogate_control_has_targets_and_extended_ages() {
        let list = TargetList::new(&["surrogate-control"], "cdn1");
        for (value, want) in [
            ("max-age=3600", "max-age=3600"),
            ("MaX-aGe=3600", "max-age=3600"),
            ("max-age=600+30", "max-age=600 more=30"),
            ("max-age=99999999999", "max-age=2147483648"),
            ("max-age=0", "max-age=0"),
            ("foobar, max-age=3600", "max-age=3600"),
            ("content=\"ESI/1.0, a;b\", max-age=3600", "max-age=3600"),
            ("no-store", "no-store"),
            ("max-age=60;cdn1", "max-age=60"),
            ("max-age=60;CDN1", "max-age=60"),
            ("max-age=60;abc;cdn1", "max-age=60"),
            ("max-age=60;abc", "none"),
            ("no-store;abc, max-age=9", "max-age=9"),
            ("max-age=9, max-age=60;cdn1", "max-age=60"),
            ("max-age=60;cdn1, max-age=9", "max-age=60"),
            ("no-store, max-age=60;cdn1", "max-age=60 no-store"),
            ("max-age=1, max-age=2", "max-age=0"),
            ("max-age =100", "max-age=0"),
            ("max-age= 100", "max-age=0"),
            ("max-age=60+", "max-age=0"),
            ("max-age", "max-age=0"),
            ("foo", "none"),
            ("content=\"ESI/1.0\"", "none"),
            ("no-store-remote", "none"),
            ("", "none"),
        ] {
            assert_eq!(read(&list, &[("surrogate-control", value)]), want, "{value}");
        }
        assert_eq!(read(&list, &[("surrogate-control", "max-age=60"), ("surrogate-control", "no-store")]), "max-age=60 no-store");
    }

    #[test]
    fn x_accel_expires_is_seconds_or_an_instant() {
        let list = TargetList::new(&["x-accel-expires"], "tiercel");
        for (value, want) in [
            ("60", "max-age=60"),
            ("0", "no-store"),
            ("@1700000000", "until=1700000000000"),
            ("99999999999", "max-age=2147483648"),
            ("off", "none"),
            ("-1", "none"),
            ("@x", "none"),
            ("1.5", "none"),
            ("", "none"),
        ] {
            assert_eq!(read(&list, &[("x-accel-expires", value)]), want, "{value}");
        }
    }

    #[test]
    fn what_was_for_us_alone_is_consumed_and_the_rest_goes_on() {
        let lines = [("surrogate-control", "max-age=1"), ("x-accel-expires", "5"), ("cdn-cache-control", "max-age=1")];
        let consumed = |list: &TargetList, lines: &[(&str, &str)]| list.consumed(&fields(lines)).map(Name::as_str).collect::<Vec<_>>();
        assert!(consumed(&TargetList::default(), &lines).is_empty());
        let all = TargetList::new(&["cdn-cache-control", "surrogate-control", "x-accel-expires"], "tiercel");
        assert_eq!(consumed(&all, &lines), ["surrogate-control", "x-accel-expires"]);
        assert!(consumed(&all, &[("surrogate-control", "max-age=1;other"), ("x-accel-expires", "off")]).is_empty());
    }

    #[test]
    fn lists_are_told_apart() {
        let (one, two) = (TargetList::new(&["a", "b"], "x"), TargetList::new(&["b", "a"], "x"));
        assert!(one.id() != two.id() && one.id() != one.on("y").id());
        assert_eq!(one, TargetList::new(&["A", "B"], "x"));
        assert_eq!(one.on("y").names().collect::<Vec<_>>(), ["a", "b"]);
    }

    proptest! {
        #[test]
        fn any_bytes_govern_or_do_not(value in "[ -~\\t]{0,60}", seconds in any::<u32>()) {
            let list = TargetList::new(&["cdn-cache-control", "surrogate-control", "x-accel-expires"], "tiercel");
            for name in list.names() {
                let mut lines = fields(&[(name, &value)]);
                let _ = list.governing(&lines);
                // A further line may void a field, or add to what it says; it never makes a later field govern over it.
                let _ = lines.push("cache-control", format!("max-age={seconds}"));
                prop_assert!(list.governing(&lines).is_none_or(|(field, _)| field == name));
            }
        }

        #[test]
        fn numbers_saturate(number in 0_i64..999_999_999_999_999) {
            let want = Seconds::try_from(number).unwrap_or(Seconds::MAX).min(SECONDS_MAX);
            let said = TargetList::default().governing(&fields(&[("cdn-cache-control", &format!("max-age={number}"))])).map(|(_, said)| said);
            prop_assert_eq!(said.and_then(|said| said.directives.max_age), Some(want));
        }
    }
}
