//! Directives mean the same however they are spelt (RFC 9111 §5.2): in any case, quoted or not, in any order, on any lines,
//! among unknown ones.

use proptest::prelude::*;
use tiercel::semantics::Fields;
use tiercel::semantics::cache_control::{RareDirectives, ResponseDirectives, SECONDS_MAX};

/// A directive with its argument.
type Directive = (&'static str, Option<u64>);

fn directives() -> impl Strategy<Value = Vec<Directive>> {
    let flags = ["no-store", "private", "public", "must-revalidate", "proxy-revalidate", "must-understand", "no-transform", "immutable"];
    let numbers = ["max-age", "s-maxage", "stale-while-revalidate", "stale-if-error"];
    let flags =
        prop::sample::subsequence(flags.to_vec(), 0..=8).prop_map(|flags| flags.into_iter().map(|flag| (flag, None)).collect::<Vec<_>>());
    let seconds = prop_oneof![0..100u64, (1u64 << 31) - 2..(1u64 << 31) + 2, any::<u64>()];
    let numbers = prop::sample::subsequence(numbers.to_vec(), 0..=4)
        .prop_flat_map(move |names| prop::collection::vec(seconds.clone(), names.len()).prop_map(move |values| (names.clone(), values)))
        .prop_map(|(names, values)| names.into_iter().zip(values.into_iter().map(Some)).collect::<Vec<_>>());
    (flags, numbers).prop_map(|(flags, numbers)| flags.into_iter().chain(numbers).collect())
}

/// How one of them is written: which letters are capital, whether the number is quoted, zeros before it, white space, and
/// whether a line ends behind it.
type Spelling = (u64, bool, u8, bool, bool);

fn write((name, argument): Directive, (capitals, quoted, zeros, spaced, _): Spelling) -> String {
    let letter = |(at, letter): (usize, char)| if capitals >> at & 1 == 1 { letter.to_ascii_uppercase() } else { letter };
    let name: String = name.chars().enumerate().map(letter).collect();
    let text = match argument {
        None => name,
        Some(number) => {
            let number = format!("{}{number}", "0".repeat(zeros.into()));
            if quoted { format!("{name}=\"{number}\"") } else { format!("{name}={number}") }
        }
    };
    if spaced { format!(" {text}\t") } else { text }
}

fn read(lines: &[String]) -> ResponseDirectives {
    let mut fields = Fields::new();
    for line in lines {
        fields.push("Cache-Control", line).expect("a valid line");
    }
    ResponseDirectives::parse(&fields)
}

fn meant(directives: &[Directive]) -> ResponseDirectives {
    let has = |name: &str| directives.iter().any(|(known, _)| *known == name);
    let seconds = |name: &str| {
        let number = directives.iter().find(|(known, _)| *known == name).and_then(|(_, number)| *number);
        number.map(|number| u32::try_from(number).unwrap_or(SECONDS_MAX).min(SECONDS_MAX))
    };
    let rare = RareDirectives {
        stale_while_revalidate: seconds("stale-while-revalidate"),
        stale_if_error: seconds("stale-if-error"),
        ..RareDirectives::default()
    };
    ResponseDirectives {
        max_age: seconds("max-age"),
        s_maxage: seconds("s-maxage"),
        rare: (rare != RareDirectives::default()).then(|| Box::new(rare)),
        no_store: has("no-store"),
        private: has("private"),
        public: has("public"),
        must_revalidate: has("must-revalidate"),
        proxy_revalidate: has("proxy-revalidate"),
        must_understand: has("must-understand"),
        no_transform: has("no-transform"),
        immutable: has("immutable"),
        ..ResponseDirectives::default()
    }
}

proptest! {
    #[test]
    fn directives_mean_the_same_however_they_are_spelt(
        (directives, spellings) in directives().prop_shuffle().prop_flat_map(|directives| {
            let count = directives.len();
            (Just(directives), prop::collection::vec((any::<u64>(), any::<bool>(), 0..4u8, any::<bool>(), any::<bool>()), count))
        }),
        unknown in prop::sample::select(vec!["", "foo", "foo=\"max-age=1, no-store\"", "x=1", ", ,"]),
    ) {
        let mut lines = vec![unknown.to_owned()];
        for (directive, spelling) in directives.iter().zip(&spellings) {
            let last = lines.last_mut().expect("one is there");
            last.push(',');
            last.push_str(&write(*directive, *spelling));
            if spelling.4 {
                lines.push(String::new());
            }
        }
        prop_assert_eq!(read(&lines), meant(&directives), "{:?}", lines);
    }
}
