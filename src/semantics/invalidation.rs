//! What an unsafe method makes invalid (RFC 9111 §4.4).

use super::{Method, Request, Response, Target, name};

/// The targets that a response to an unsafe request invalidates: its own and those of Location and Content-Location
/// with the same origin. Empty for safe methods and for statuses other than 2xx and 3xx.
///
/// At most three, without repeats: of a field that should not be repeated, the first line counts. Other origins are
/// left alone, so that nobody can empty what is not theirs; so are references that are no target here.
pub fn invalidated(request: Request<'_>, response: Response<'_>) -> Vec<Target> {
    if is_safe(request.method) || !(response.status.is_success() || response.status.is_redirection()) {
        return Vec::new();
    }
    let mut targets = vec![request.target.clone()];
    for field in [name::LOCATION, name::CONTENT_LOCATION] {
        let Some(Ok(target)) = response.fields.text(field).map(|reference| request.target.resolve(reference)) else { continue };
        if target.origin() == request.target.origin() && !targets.contains(&target) {
            targets.push(target);
        }
    }
    targets
}

/// Whether the method is registered as safe (RFC 9110 §9.2.1, §16.1.1); unknown methods are not. PRI, the preface of
/// HTTP/2, is not among them: it is no request.
pub fn is_safe(method: &Method) -> bool {
    matches!(method.as_str(), "GET" | "HEAD" | "OPTIONS" | "TRACE" | "QUERY" | "PROPFIND" | "REPORT" | "SEARCH")
}

#[cfg(test)]
mod tests {
    use super::super::reuse::testing::{Asked, fields};
    use super::super::{Method, StatusCode};
    use super::*;
    use proptest::prelude::*;

    fn invalid(method: &str, status: u16, lines: &[(&str, &str)]) -> Vec<String> {
        let method = Method::from_bytes(method.as_bytes()).unwrap();
        let (asked, fields) = (Asked::new(&method, &[]), fields(lines));
        let response = Response { status: StatusCode::from_u16(status).unwrap(), fields: &fields };
        invalidated(asked.request(), response).iter().map(ToString::to_string).collect()
    }

    const SELF: &str = "http://shop.example/a/b?c";

    #[test]
    fn every_method_not_known_to_be_safe_invalidates_its_target() {
        for method in ["POST", "PUT", "DELETE", "PATCH", "M-SEARCH", "MKCOL", "PRI", "FOO", "get", "query"] {
            assert_eq!(invalid(method, 200, &[]), [SELF], "{method}");
        }
        for method in ["GET", "HEAD", "OPTIONS", "TRACE", "QUERY", "PROPFIND", "REPORT", "SEARCH"] {
            assert!(invalid(method, 200, &[("location", "/x")]).is_empty(), "{method}");
        }
    }

    #[test]
    fn only_answers_that_are_no_errors_invalidate() {
        for (status, invalidates) in
            [(200, true), (204, true), (303, true), (399, true), (404, false), (500, false), (503, false), (103, false)]
        {
            assert_eq!(!invalid("POST", status, &[("location", "/x")]).is_empty(), invalidates, "{status}");
        }
    }

    #[test]
    fn location_and_content_location_go_with_it_if_of_the_same_origin() {
        let cases: [(&str, &[&str]); 9] = [
            ("/x?y", &[SELF, "http://shop.example/x?y"]),
            ("x", &[SELF, "http://shop.example/a/x"]),
            ("http://shop.example/x", &[SELF, "http://shop.example/x"]),
            ("http://SHOP.example:80/x", &[SELF, "http://shop.example/x"]),
            ("//shop.example/x", &[SELF, "http://shop.example/x"]),
            ("http://shop.example/a/b?c", &[SELF]),
            ("http://other.example/x", &[SELF]),
            ("https://shop.example/x", &[SELF]),
            ("http://shop.example:8080/x", &[SELF]),
        ];
        for (reference, want) in cases {
            for field in ["location", "content-location"] {
                assert_eq!(invalid("POST", 201, &[(field, reference)]), want, "{field}: {reference}");
            }
        }
        let both = [("location", "/x"), ("content-location", "/y"), ("location", "/z")];
        assert_eq!(invalid("PUT", 200, &both), [SELF, "http://shop.example/x", "http://shop.example/y"]);
        assert_eq!(invalid("PUT", 200, &[("location", "/x"), ("content-location", "/x")]), [SELF, "http://shop.example/x"]);
    }

    proptest! {
        #[test]
        fn no_reference_reaches_another_origin(one in "[ -~]{0,40}", two in "(//|http://|https:|/)?[a-z@:.\\\\/?#%]{0,20}") {
            for url in invalid("POST", 200, &[("location", &one), ("content-location", &two)]) {
                prop_assert!(url.starts_with("http://shop.example/"), "{}", url);
            }
        }
    }
}
