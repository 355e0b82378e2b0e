//! Field sections: every line of the input is an operation (its first byte) on a name and a value.
//!
//! The block always holds the lines of the table and nothing else, ready for a wire: what goes in cannot end a line early.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tiercel::semantics::fields::list;
use tiercel::semantics::{Fields, name};

fuzz_target!(|data: &[u8]| {
    let mut fields = Fields::new();
    for line in data.split(|byte| *byte == b'\n') {
        let Some((operation, rest)) = line.split_first() else { continue };
        let mut parts = rest.splitn(2, |byte| *byte == b':');
        let (field, value) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
        match operation % 5 {
            0 | 1 => drop(fields.push(field, value)),
            2 => drop(fields.append(name::VARY, value)),
            3 => drop(fields.set(name::CACHE_CONTROL, value)),
            _ => {
                fields.retain(|_, name, _| name != field);
            }
        }
        check(&fields);
    }
    for (_, value) in fields.iter() {
        assert!(list(value).all(|member| member.len() <= value.len()));
    }
});

fn check(fields: &Fields) {
    let lines: Vec<u8> = fields.iter().flat_map(|(name, value)| [name.as_bytes(), b": ", value, b"\r\n"].concat()).collect();
    assert_eq!(lines, fields.wire());
    assert_eq!(fields.wire().split(|byte| *byte == b'\n').count(), fields.len() + 1);
    assert!(!fields.wire().contains(&0));
    assert!(fields.has(name::VARY) == fields.iter().any(|(name, _)| name == "vary"));
}
