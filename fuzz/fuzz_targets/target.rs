//! Request targets and Host: the first line of the input is Host, the rest the target as it came.
//!
//! What is accepted is normal: parsed again, in any form, it is itself. Otherwise key, route and upstream could disagree.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tiercel::semantics::target::Scheme;
use tiercel::semantics::{Fields, Target, name};

fuzz_target!(|data: &[u8]| {
    let mut parts = data.splitn(2, |byte| *byte == b'\n');
    let (authority, raw) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    for lenient in [false, true] {
        let Some(hosts) = host(authority) else { return };
        let Ok(target) = Target::parse(Scheme::Http, raw, &hosts, lenient) else { continue };
        if target.is_asterisk() {
            continue;
        }
        assert!(target.path().starts_with('/') && target.as_str().bytes().all(|byte| byte.is_ascii_graphic()));
        assert!(!target.path().split('/').any(|segment| segment == "." || segment == ".."));
        let normal = host(target.authority().as_bytes()).expect("an authority is a field value");
        for form in [target.path_and_query(), target.as_str()] {
            assert_eq!(Target::parse(Scheme::Http, form.as_bytes(), &normal, lenient).as_ref(), Ok(&target));
        }
    }
    if let (Ok(base), Ok(reference)) = (Target::from_url("http://a/b/c/d;p?q"), std::str::from_utf8(data))
        && let Ok(resolved) = base.resolve(reference)
    {
        assert_eq!(Target::from_url(resolved.as_str()).as_ref(), Ok(&resolved));
    }
});

fn host(authority: &[u8]) -> Option<Fields> {
    let mut fields = Fields::new();
    fields.append(name::HOST, authority).ok()?;
    Some(fields)
}
