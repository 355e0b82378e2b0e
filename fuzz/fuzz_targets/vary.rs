//! Vary and what it selects by: the first line of the input is Vary, the others are values of one of the fields that it may name.
//!
//! A request selects what was stored for it. Reduced to what the origin is asked, a field selects the same and is reduced no further.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tiercel::semantics::policy::{CachePolicy, VaryPolicy};
use tiercel::semantics::vary::{Asked, DECIDED, Vary, write_asked};
use tiercel::semantics::{Fields, name};

const NAMES: [&str; 6] = ["accept", "accept-encoding", "accept-language", "cookie", "user-agent", "x-any"];

fuzz_target!(|data: &[u8]| {
    let mut lines = data.split(|byte| *byte == b'\n');
    let mut response = Fields::new();
    if response.append(name::VARY, lines.next().unwrap_or_default()).is_err() {
        return;
    }
    let vary = Vary::parse(&response);
    let mut request = Fields::new();
    for line in lines {
        let Some((which, value)) = line.split_first() else { continue };
        let _ = request.push(NAMES[usize::from(*which) % NAMES.len()], value);
    }
    let list = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
    let reducing =
        VaryPolicy { languages: list(&["en", "de", "pt-BR"]), images: list(&["image/avif", "image/webp"]), ..VaryPolicy::default() };
    for policy in [CachePolicy::default(), CachePolicy { vary: reducing, ..CachePolicy::default() }] {
        let key = vary.secondary_key(&request, &policy);
        assert_eq!(vary.matches(&request, &key, &policy), !vary.is_star());
        let mut asked = request.clone();
        for field in DECIDED {
            let mut value = Vec::new();
            match write_asked(field, &request, &policy, &mut value) {
                Asked::AsSent => {}
                Asked::Nothing => drop(asked.remove(field)),
                Asked::Written => asked.set(field, value).expect("parts of field values, and constants"),
            }
        }
        assert_eq!(vary.secondary_key(&asked, &policy), key);
    }
});
