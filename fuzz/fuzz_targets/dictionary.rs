//! Use-As-Dictionary, Available-Dictionary and who may profit: the first line of the input is the one field, the second the other,
//! further ones are Sec-Fetch-Site, Sec-Fetch-Mode, Origin and Access-Control-Allow-Origin.
//!
//! What a client says it has is read back from how we write it. What is a dictionary stays one with a member that nobody knows, and
//! is none with a regular expression after its `match`.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tiercel::semantics::dictionary::{available, is_dictionary, may_be_used};
use tiercel::semantics::{Fields, Method, Request, Response, StatusCode, Target, name};

fuzz_target!(|data: &[u8]| {
    let mut lines = data.split(|byte| *byte == b'\n');
    let (declared, sent) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
    if declares(declared) {
        assert!(declares(&[declared, b", zzz=?1"].concat()) || declared.len() > 4000);
        assert!(!declares(&[declared, b", match=\"/(a)\""].concat()));
        assert!(!declares(&[declared, b", type=other"].concat()));
    }
    let mut request = Fields::new();
    if request.append(name::AVAILABLE_DICTIONARY, sent).is_ok()
        && let Some(hash) = available(&request)
    {
        let mut again = Fields::new();
        again.append(name::AVAILABLE_DICTIONARY, hash.to_string()).expect("base64 is a field value");
        assert_eq!(available(&again), Some(hash));
        again.append(name::AVAILABLE_DICTIONARY, hash.to_string()).expect("base64 is a field value");
        assert_eq!(available(&again), None, "two are none");
    }
    let (mut asked, mut answered) = (Fields::new(), Fields::new());
    for (field, value) in ["sec-fetch-site", "sec-fetch-mode", "origin"].into_iter().zip(&mut lines) {
        let _ = asked.push(field, value);
    }
    let without = may_be_used(&asked, &answered);
    if answered.push("access-control-allow-origin", lines.next().unwrap_or_default()).is_ok() {
        assert!(may_be_used(&asked, &answered) || !without, "who allows more forbids nothing");
    }
});

fn declares(value: &[u8]) -> bool {
    let mut fields = Fields::new();
    if fields.append(name::USE_AS_DICTIONARY, value).is_err() {
        return false;
    }
    let target = Target::from_url("https://a/").expect("a URL");
    let request = Request { method: &Method::GET, target: &target, fields: &Fields::new() };
    is_dictionary(request, Response { status: StatusCode::OK, fields: &fields })
}
