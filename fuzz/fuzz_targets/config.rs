//! A configuration file: the first byte picks the format. Never a panic, whatever the file says; every refusal names at least one
//! problem. Quantities are tried by themselves too.
#![no_main]

use libfuzzer_sys::fuzz_target;
use std::path::PathBuf;
use tiercel::config::{Sources, load, units};

fuzz_target!(|data: &[u8]| {
    let Some((format, text)) = data.split_first() else { return };
    let Ok(text) = std::str::from_utf8(text) else { return };
    let _ = (units::duration(text), units::size(text), units::share(text));
    // What leads to other files would fuzz the file system of this machine.
    if ["include", "_file", "\\u"].iter().any(|word| text.contains(word)) {
        return;
    }
    let ending = ["toml", "yaml", "json"][usize::from(*format) % 3];
    let file = scratch(ending);
    std::fs::write(&file, text).expect("a writable directory for temporary files");
    if let Err(problems) = load(&Sources { file: Some(file), ..Sources::default() }) {
        assert!(problems.iter().count() > 0 && !problems.to_string().is_empty());
    }
});

/// One file per process and format, written anew for every input.
fn scratch(ending: &str) -> PathBuf {
    std::env::temp_dir().join(format!("tiercel-fuzz-{}.{ending}", std::process::id()))
}
