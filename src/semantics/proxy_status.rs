//! Why we made an answer up, as a member of Proxy-Status (RFC 9209).

use super::structured::{write_item, write_string};

/// The member of the intermediary `name`: `error` is a type of RFC 9209 §2.3, `details` says more, where there is more.
pub fn member(name: &str, error: &str, details: Option<&str>) -> Vec<u8> {
    let mut out = Vec::with_capacity(64);
    write_item(name, &mut out);
    out.extend_from_slice(b"; error=");
    write_item(error, &mut out);
    if let Some(details) = details {
        out.extend_from_slice(b"; details=");
        write_string(details, &mut out);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn details_are_a_string() {
        assert_eq!(member("edge-1", "connection_refused", None), b"edge-1; error=connection_refused");
        assert_eq!(member("1st", "http_request_error", Some("bare-lf")), b"\"1st\"; error=http_request_error; details=\"bare-lf\"");
    }
}
