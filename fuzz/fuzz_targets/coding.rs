//! Who gets which coding: the first line of the input is Accept-Encoding of a request, the second Content-Encoding, the third
//! Cache-Control and the fourth Content-Type of a response.
//!
//! What is chosen is offered, has the largest weight and is not refused; a dictionary is for who names such a coding. What we code we
//! would not code again, and what we take a coding off has none.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tiercel::semantics::coding::{self, Accepted, Coding};
use tiercel::semantics::policy::Compression;
use tiercel::semantics::{Fields, Method, Request, Response, StatusCode, Target, name};

fuzz_target!(|data: &[u8]| {
    let mut lines = data.splitn(4, |byte| *byte == b'\n');
    let mut request = Fields::new();
    if request.append(name::ACCEPT_ENCODING, lines.next().unwrap_or_default()).is_err() {
        return;
    }
    let accepted = Accepted::of(&request).expect("the field is there");
    for offered in [&Coding::ALL[..], &Coding::PLAIN, &[Coding::Brotli]] {
        let Some(best) = accepted.best(offered) else { continue };
        assert!(offered.contains(&best) && accepted.weight(best) > 0);
        assert!(offered.iter().all(|other| accepted.weight(*other) <= accepted.weight(best)));
    }
    let target = Target::from_url("https://a/").expect("a URL");
    let asked = Request { method: &Method::GET, target: &target, fields: &request };
    if let Some(coding) = coding::coding_with_dictionary(asked, &Coding::PLAIN) {
        assert!(coding.takes_dictionary() && accepted.weight(coding) > 0);
    }
    let mut fields = Fields::new();
    for field in [name::CONTENT_ENCODING, name::CACHE_CONTROL, name::CONTENT_TYPE] {
        if let Some(value) = lines.next().filter(|value| !value.is_empty()) {
            let _ = fields.append(field, value);
        }
    }
    let response = Response { status: StatusCode::OK, fields: &fields };
    let policy = Compression::default();
    let may = coding::may_be_coded(response, None, &policy);
    if let Some(coding) = coding::decodable(response) {
        assert!(!may && !coding.takes_dictionary());
        let decoded = coding::decoded_fields(&fields);
        assert!(!decoded.has(name::CONTENT_ENCODING));
        let _ = coding::reads(&request, coding);
    }
    if may {
        for coding in Coding::ALL {
            let coded = coding::coded_fields(&fields, coding, Some(7));
            assert_eq!(coded.get(name::CONTENT_ENCODING), Some(coding.as_str().as_bytes()));
            assert!(!coding::may_be_coded(Response { status: StatusCode::OK, fields: &coded }, None, &policy));
        }
    }
});
