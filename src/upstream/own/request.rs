//! A request head to bytes (RFC 9112 §3, §6). Pure.

use crate::listener::RequestBody;
use crate::semantics::fields::is_value_byte;
use crate::semantics::{Fields, Method, Name, hop, name};
use crate::upstream::{FetchError, Outbound};

/// Fields that this hop writes itself, or that end here (RFC 9110 §7.6.1; TE: we take trailers without being asked).
const OURS: [Name; 9] = [
    name::HOST,
    name::CONTENT_LENGTH,
    name::TRANSFER_ENCODING,
    name::CONNECTION,
    name::KEEP_ALIVE,
    name::PROXY_CONNECTION,
    name::TE,
    name::TRAILER,
    name::UPGRADE,
];

/// Room for a head beside its target and fields.
const BESIDES: usize = 128;

/// The head as it goes out: without the fields of the client's connection, Host first, framing by us.
pub(in crate::upstream) fn head(request: &Outbound, upgrade: bool, authority: &str) -> Result<Vec<u8>, FetchError> {
    let host = request.host.as_deref().unwrap_or(authority);
    if !fits_request_line(&request.path_and_query) {
        return Err(FetchError::InvalidRequest("its target does not fit a request line"));
    }
    if !host.bytes().all(is_value_byte) {
        return Err(FetchError::InvalidRequest("its host does not fit a request head"));
    }
    let mut out = Vec::with_capacity(BESIDES + request.path_and_query.len() + host.len() + request.fields.wire().len());
    for part in [request.method.as_str(), " ", &request.path_and_query, " HTTP/1.1\r\nhost: ", host, "\r\n"] {
        out.extend_from_slice(part.as_bytes());
    }
    lines(&mut out, &request.fields, upgrade);
    frame(&mut out, &request.method, &request.body);
    out.extend_from_slice(if upgrade { b"connection: upgrade\r\n\r\n" } else { b"\r\n" });
    Ok(out)
}

/// Visible characters, and no fragment: it would end here, and what goes up would not be what was keyed.
fn fits_request_line(target: &str) -> bool {
    (target.starts_with('/') || target == "*") && target.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#')
}

fn lines(out: &mut Vec<u8>, fields: &Fields, upgrade: bool) {
    if !OURS.iter().any(|name| fields.has(*name)) {
        return out.extend_from_slice(fields.wire());
    }
    let of_connection = hop::of_connection(fields);
    for (name, value) in fields.iter() {
        let number = Name::lookup(name.as_bytes());
        let stays = match number {
            Some(name::UPGRADE) => upgrade,
            Some(number) if OURS.contains(&number) => false,
            _ => !of_connection(number, name.as_bytes()),
        };
        if stays {
            for part in [name.as_bytes(), b": ", value, b"\r\n"] {
                out.extend_from_slice(part);
            }
        }
    }
}

/// Says how long the request body is (RFC 9112 §6).
fn frame(out: &mut Vec<u8>, method: &Method, body: &RequestBody) {
    let length = match body {
        RequestBody::Stream { length: None, .. } => return out.extend_from_slice(b"transfer-encoding: chunked\r\n"),
        RequestBody::Stream { length: Some(length), .. } => *length,
        RequestBody::Full(bytes) => bytes.len() as u64,
        // RFC 9110 §8.6: where the method expects content, say that there is none.
        RequestBody::Empty if matches!(*method, Method::POST | Method::PUT | Method::PATCH) => 0,
        RequestBody::Empty => return,
    };
    out.extend_from_slice(b"content-length: ");
    out.extend_from_slice(itoa::Buffer::new().format(length).as_bytes());
    out.extend_from_slice(b"\r\n");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::upstream::tests::request;
    use proptest::prelude::*;

    fn sent(request: &Outbound, upgrade: bool) -> String {
        String::from_utf8(head(request, upgrade, "origin:80").unwrap()).unwrap()
    }

    #[test]
    fn requests_are_framed_anew() {
        let get = request(
            &[("host", "evil"), ("a", "1"), ("te", "gzip"), ("content-length", "7"), ("upgrade", "h2c"), ("a", "2")],
            RequestBody::Empty,
        );
        assert_eq!(sent(&get, false), "GET / HTTP/1.1\r\nhost: origin:80\r\na: 1\r\na: 2\r\n\r\n");
        let post = Outbound { method: Method::POST, host: Some("h".to_owned()), fields: Fields::new(), ..get };
        assert_eq!(sent(&post, false), "POST / HTTP/1.1\r\nhost: h\r\ncontent-length: 0\r\n\r\n");
    }

    #[test]
    fn fields_of_the_connection_stay_and_an_upgrade_is_named_in_it() {
        let with = [("connection", "upgrade, b"), ("upgrade", "websocket"), ("b", "2"), ("c", "3")];
        let request = request(&with, RequestBody::Empty);
        assert_eq!(sent(&request, false), "GET / HTTP/1.1\r\nhost: origin:80\r\nc: 3\r\n\r\n");
        let upgraded = "GET / HTTP/1.1\r\nhost: origin:80\r\nupgrade: websocket\r\nc: 3\r\nconnection: upgrade\r\n\r\n";
        assert_eq!(sent(&request, true), upgraded);
    }

    #[test]
    fn targets_that_would_change_on_the_way_are_refused() {
        for good in ["/", "*", "/a?b=c%20&d", "//x", "/a{b}"] {
            let request = Outbound { path_and_query: good.to_owned(), ..request(&[], RequestBody::Empty) };
            assert!(sent(&request, false).starts_with(&format!("GET {good} HTTP/1.1\r\n")));
        }
        for bad in ["/a#b", "/a b", "/a\r\nb", "", "a", "/\u{e9}", "/\0"] {
            let request = Outbound { path_and_query: bad.to_owned(), ..request(&[], RequestBody::Empty) };
            assert!(head(&request, false, "o").is_err(), "{bad:?}");
        }
        let request = Outbound { host: Some("a\r\nb".to_owned()), ..request(&[], RequestBody::Empty) };
        assert!(head(&request, false, "o").is_err());
    }

    proptest! {
        #[test]
        fn heads_have_one_end_and_keep_their_fields(pairs in prop::collection::vec(("x-[a-z]{1,12}|te|host|Connection", "[!-~]{1,20}"), 0..12)) {
            let pairs: Vec<_> = pairs.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
            let request = request(&pairs, RequestBody::Empty);
            let of_connection = hop::of_connection(&request.fields);
            let stays = |name: &str| name.starts_with("x-") && !of_connection(None, name.as_bytes());
            let lines: String = pairs.iter().filter(|(name, _)| stays(name)).map(|(name, value)| format!("{name}: {value}\r\n")).collect();
            prop_assert_eq!(sent(&request, false), format!("GET / HTTP/1.1\r\nhost: origin:80\r\n{lines}\r\n"));
        }
    }
}
