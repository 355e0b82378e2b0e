//! Targeted fields: the first byte of the input chooses the field, lines are field lines.
//!
//! Whatever a field says, Cache-Control changes nothing of it; and a field that governs says the same twice.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tiercel::semantics::Fields;
use tiercel::semantics::targeted::TargetList;

fuzz_target!(|data: &[u8]| {
    let names = ["cdn-cache-control", "surrogate-control", "x-accel-expires"];
    let list = TargetList::new(&names, "tiercel");
    let Some((choice, data)) = data.split_first() else { return };
    let name = names[usize::from(*choice) % names.len()];
    let mut fields = Fields::new();
    for line in data.split(|byte| *byte == b'\n') {
        let _ = fields.push(name, line); // what is no field value never gets this far
    }
    let before = list.governing(&fields).map(|(field, said)| (field.to_owned(), said));
    let consumed = list.consumed(&fields).count();
    assert!(consumed <= 1 && (consumed == 0 || before.is_some()));
    fields.push("cache-control", "no-store").expect("a field value");
    assert_eq!(before, list.governing(&fields).map(|(field, said)| (field.to_owned(), said)));
    if let Some((field, _)) = before {
        assert_eq!(field, name);
    }
});
