//! Between `Fields` and hyper's maps: the only place that knows both. What a request says of its framing is written
//! here; what a response says of its own is checked by [`crate::http1::response::vet`], before anybody believes it.

use crate::listener::RequestBody;
use crate::semantics::{Fields, hop, name};
use crate::upstream::{FetchError, Outbound};
use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_LENGTH, HOST, TRANSFER_ENCODING};
use http::{HeaderMap, HeaderName, HeaderValue, Method};

/// The target of the request line.
pub(super) fn target(request: &Outbound) -> Result<http::Uri, FetchError> {
    const UNFIT: FetchError = FetchError::InvalidRequest("its target does not fit a request line");
    let bytes = Bytes::copy_from_slice(request.path_and_query.as_bytes());
    let target = http::uri::PathAndQuery::from_maybe_shared(bytes).map_err(|_| UNFIT)?;
    // A fragment would be dropped without a word, and what goes up would not be what was keyed.
    if target.as_str() != request.path_and_query {
        return Err(UNFIT);
    }
    Ok(target.into())
}

/// Fields as they go out: without those of the client's connection, Host first, framing by us.
pub(super) fn outbound(request: &Outbound, upgrade: bool, authority: &str) -> Result<HeaderMap, FetchError> {
    if request.fields.has(name::CONNECTION) {
        let mut end_to_end = request.fields.clone();
        let protocols: Vec<Vec<u8>> = end_to_end.values(name::UPGRADE).map(<[u8]>::to_vec).collect();
        hop::strip(&mut end_to_end);
        for protocol in protocols.iter().filter(|_| upgrade) {
            let _ = end_to_end.append(name::UPGRADE, protocol); // it was a field value before
        }
        return headers(&end_to_end, request, upgrade, authority);
    }
    headers(&request.fields, request, upgrade, authority)
}

fn headers(from: &Fields, request: &Outbound, upgrade: bool, authority: &str) -> Result<HeaderMap, FetchError> {
    const UNFIT: FetchError = FetchError::InvalidRequest("a field does not fit a request head");
    let mut to = HeaderMap::with_capacity(from.len() + 4);
    let host = request.host.as_deref().unwrap_or(authority);
    to.insert(HOST, HeaderValue::from_str(host).map_err(|_| UNFIT)?);
    // One copy of the block; every value is a slice of it.
    let wire = from.wire();
    let block = Bytes::copy_from_slice(wire);
    for (name, value) in from.iter().filter(|(name, _)| !is_ours(name, upgrade)) {
        let start = value.as_ptr().addr() - wire.as_ptr().addr();
        let value = HeaderValue::from_maybe_shared(block.slice(start..start + value.len())).map_err(|_| UNFIT)?;
        let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| UNFIT)?;
        to.try_append(name, value).map_err(|_| UNFIT)?;
    }
    frame(&mut to, &request.method, &request.body);
    if upgrade {
        to.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    }
    Ok(to)
}

/// Fields that this hop writes itself, or that end here (RFC 9110 §7.6.1; TE: we take trailers without being asked).
fn is_ours(name: &str, upgrade: bool) -> bool {
    match name {
        "host" | "content-length" | "transfer-encoding" | "connection" | "keep-alive" | "proxy-connection" | "te" | "trailer" => true,
        "upgrade" => !upgrade,
        _ => false,
    }
}

/// Says how long the request body is (RFC 9112 §6). hyper would send no body at all on a GET of unknown length.
fn frame(to: &mut HeaderMap, method: &Method, body: &RequestBody) {
    match body {
        RequestBody::Stream { length: Some(length), .. } => to.insert(CONTENT_LENGTH, HeaderValue::from(*length)),
        RequestBody::Full(bytes) => to.insert(CONTENT_LENGTH, HeaderValue::from(bytes.len())),
        RequestBody::Stream { length: None, .. } => to.insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked")),
        // RFC 9110 §8.6: where the method expects content, say that there is none.
        RequestBody::Empty if matches!(*method, Method::POST | Method::PUT | Method::PATCH) => {
            to.insert(CONTENT_LENGTH, HeaderValue::from(0))
        }
        RequestBody::Empty => None,
    };
}

/// Bytes of its lines.
pub(super) fn wire_bytes(head: &HeaderMap) -> usize {
    head.iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum()
}

/// All of a map as our fields.
pub(super) fn fields(head: &HeaderMap) -> Result<Fields, FetchError> {
    let mut fields = Fields::with_capacity(wire_bytes(head), head.len());
    for (name, value) in head {
        fields.push(name.as_str(), value.as_bytes()).map_err(|error| FetchError::Malformed(error.to_string()))?;
    }
    Ok(fields)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::upstream::tests::request;
    use proptest::prelude::*;

    fn lines(map: &HeaderMap) -> Vec<(String, String)> {
        map.iter().map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned())).collect()
    }

    #[test]
    fn requests_are_framed_anew() {
        let sent = |request: &Outbound| lines(&outbound(request, false, "origin:80").unwrap());
        let request = request(
            &[("host", "evil"), ("a", "1"), ("te", "gzip"), ("content-length", "7"), ("upgrade", "h2c"), ("a", "2")],
            RequestBody::Empty,
        );
        let want = [("host", "origin:80"), ("a", "1"), ("a", "2")].map(|(name, value)| (name.to_owned(), value.to_owned()));
        assert_eq!(sent(&request), want);
        let post = Outbound { method: Method::POST, host: Some("h".to_owned()), fields: Fields::new(), ..request };
        let want = [("host", "h"), ("content-length", "0")].map(|(name, value)| (name.to_owned(), value.to_owned()));
        assert_eq!(sent(&post), want);
    }

    #[test]
    fn an_upgrade_keeps_its_protocol_and_names_it_in_connection() {
        for with in [&[("upgrade", "websocket"), ("b", "2")][..], &[("connection", "upgrade, b"), ("upgrade", "websocket"), ("b", "2")]] {
            let sent = outbound(&request(with, RequestBody::Empty), true, "o").unwrap();
            assert_eq!(
                (&sent["upgrade"], &sent["connection"]),
                (&HeaderValue::from_static("websocket"), &HeaderValue::from_static("upgrade"))
            );
            assert_eq!(sent.contains_key("b"), with.len() == 2);
        }
    }

    #[test]
    fn targets_that_would_change_on_the_way_are_refused() {
        let mut request = request(&[], RequestBody::Empty);
        for good in ["/", "*", "/a?b=c%20&d", "//x", "/a{b}"] {
            request.path_and_query = good.to_owned();
            assert_eq!(target(&request).unwrap().to_string(), good);
        }
        for bad in ["/a#b", "/a b", "/a\r\nb", ""] {
            request.path_and_query = bad.to_owned();
            assert!(target(&request).is_err(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn fields_survive_the_way_out_and_in(pairs in proptest::collection::vec(("x-[a-z]{1,12}", "[!-~]{1,20}"), 0..12)) {
            let pairs: Vec<_> = pairs.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
            let mut map = outbound(&request(&pairs, RequestBody::Empty), false, "o").unwrap();
            map.remove(HOST);
            let back = fields(&map).unwrap();
            let mut read: Vec<_> = back.iter().map(|(name, value)| (name, std::str::from_utf8(value).unwrap())).collect();
            let mut want = pairs;
            read.sort_by_key(|pair| pair.0);
            want.sort_by_key(|pair| pair.0);
            prop_assert_eq!(read, want);
        }
    }
}
