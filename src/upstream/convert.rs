//! Between `Fields` and hyper's maps: the only place that knows both. What a request says of its framing is written
//! here, what a response says of its own is checked here, before anybody believes it.

use super::{FetchError, Outbound};
use crate::listener::RequestBody;
use crate::semantics::{Fields, fields, hop, name};
use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_LENGTH, HOST, TRANSFER_ENCODING, UPGRADE};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Version};
use std::time::Duration;

/// Seconds taken off an advertised `Keep-Alive: timeout`, so that we close first.
const KEEP_ALIVE_MARGIN_S: u64 = 1;

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
        RequestBody::Stream { length: None, .. } => to.insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked")),
        // RFC 9110 §8.6: where the method expects content, say that there is none.
        RequestBody::Empty if matches!(*method, Method::POST | Method::PUT | Method::PATCH) => {
            to.insert(CONTENT_LENGTH, HeaderValue::from(0))
        }
        RequestBody::Empty => None,
    };
}

/// What the request was, as far as the reading of its response depends on it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asked {
    pub head: bool,
    pub range: bool,
    pub upgrade: bool,
}

/// A response head that may be believed.
#[derive(Debug)]
pub(super) struct Vetted {
    pub fields: Fields,
    pub length: Option<u64>,
    /// How long the connection may be kept idle after this exchange; `None`: not at all.
    pub keep: Option<Duration>,
}

/// Checks a head and turns its fields into ours.
///
/// Refused beyond what hyper refuses: both Content-Length and Transfer-Encoding (RFC 9112 §6.3: ought to be handled as
/// an error), transfer codings that change the content and that nobody asked for (we send no TE), 101 that was not
/// asked for (RFC 9110 §15.2.2), 206 and 416 to a request without Range (RFC 9110 §15.3.7, §15.5.17).
pub(super) fn vet(asked: Asked, version: Version, status: StatusCode, head: &HeaderMap) -> Result<Vetted, FetchError> {
    match status {
        StatusCode::SWITCHING_PROTOCOLS if !asked.upgrade || !head.contains_key(UPGRADE) => {
            return Err(malformed("101 to a request that did not ask for it"));
        }
        StatusCode::PARTIAL_CONTENT | StatusCode::RANGE_NOT_SATISFIABLE if !asked.range => {
            return Err(malformed("a range that was not asked for"));
        }
        _ => {}
    }
    let without_body = asked.head || status.is_informational() || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
    let declared = content_length(head)?;
    let coding = if without_body { Coding::None } else { transfer_coding(head)? };
    if coding != Coding::None && declared.is_some() {
        return Err(malformed("both Content-Length and Transfer-Encoding"));
    }
    let mut fields = inbound(head)?;
    if status == StatusCode::NO_CONTENT {
        fields.remove(name::CONTENT_LENGTH); // RFC 9110 §8.6: there must be none
    } else if let Some(length) = declared.filter(|_| repeated(head)) {
        let _ = fields.set(name::CONTENT_LENGTH, length.to_string()); // digits always fit
    }
    let length = declared.filter(|_| !without_body);
    let delimited = without_body || declared.is_some() || coding == Coding::Chunked;
    let keep = if delimited && persists(version, head) { keep_alive(head) } else { None };
    Ok(Vetted { fields, length, keep })
}

fn malformed(what: &str) -> FetchError {
    FetchError::Malformed(what.to_owned())
}

/// All of a map as our fields, without those of the connection.
pub(super) fn inbound(head: &HeaderMap) -> Result<Fields, FetchError> {
    let bytes = head.iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum();
    let mut fields = Fields::with_capacity(bytes, head.len());
    for (name, value) in head {
        fields.push(name.as_str(), value.as_bytes()).map_err(|error| malformed(&error.to_string()))?;
    }
    hop::strip(&mut fields);
    Ok(fields)
}

/// Trailer fields, without those that belong to a head alone (RFC 9110 §6.5.1).
pub(super) fn trailers(trailers: &HeaderMap) -> Result<Fields, FetchError> {
    let mut fields = inbound(trailers)?;
    fields.retain(|name, _| !matches!(name, b"content-length" | b"host" | b"content-encoding" | b"content-range" | b"content-type"));
    Ok(fields)
}

/// Content-Length; the same number several times is one (RFC 9110 §8.6).
fn content_length(head: &HeaderMap) -> Result<Option<u64>, FetchError> {
    let mut declared = None;
    for value in head.get_all(CONTENT_LENGTH) {
        for member in value.as_bytes().split(|byte| *byte == b',') {
            let length = digits(fields::trim(member)).ok_or_else(|| malformed("Content-Length is not a number"))?;
            if declared.replace(length).is_some_and(|before| before != length) {
                return Err(malformed("contradicting Content-Length"));
            }
        }
    }
    Ok(declared)
}

/// Whether Content-Length needs rewriting to be read in one way only.
fn repeated(head: &HeaderMap) -> bool {
    let mut values = head.get_all(CONTENT_LENGTH).iter();
    values.next().is_some_and(|first| first.as_bytes().contains(&b',')) || values.next().is_some()
}

fn digits(text: &[u8]) -> Option<u64> {
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(text).ok()?.parse().ok()
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Coding {
    None,
    Chunked,
    /// A word that nobody knows: the body is what comes until the origin closes (RFC 9112 §6.3).
    UntilClose,
}

/// The transfer coding. Known codings other than a single `chunked` would have to be undone, which nobody asked for.
fn transfer_coding(head: &HeaderMap) -> Result<Coding, FetchError> {
    let mut coding = Coding::None;
    for word in head.get_all(TRANSFER_ENCODING).iter().flat_map(|value| fields::list(value.as_bytes())) {
        let word = fields::trim(word.split(|byte| *byte == b';').next().unwrap_or_default()).to_ascii_lowercase();
        coding = match (&word[..], coding) {
            (b"chunked", Coding::None) => Coding::Chunked,
            (b"chunked" | b"gzip" | b"x-gzip" | b"deflate" | b"compress" | b"x-compress", _) | (_, Coding::Chunked) => {
                return Err(malformed("a transfer coding that was not asked for"));
            }
            _ => Coding::UntilClose,
        };
    }
    if coding == Coding::None && head.contains_key(TRANSFER_ENCODING) {
        return Ok(Coding::UntilClose);
    }
    Ok(coding)
}

/// Whether the connection goes on (RFC 9112 §9.3). HTTP/1.0 never does here: on a kept one hyper would leave out a
/// request body whose length is not known.
fn persists(version: Version, head: &HeaderMap) -> bool {
    let options = || head.get_all(CONNECTION).iter().flat_map(|value| fields::list(value.as_bytes()));
    version == Version::HTTP_11 && !options().any(|option| option.eq_ignore_ascii_case(b"close"))
}

/// How long the origin keeps an idle connection, less a margin; the longest duration where it does not say.
fn keep_alive(head: &HeaderMap) -> Option<Duration> {
    let advertised = head.get_all("keep-alive").iter().flat_map(|value| fields::list(value.as_bytes())).find_map(timeout);
    match advertised {
        None => Some(Duration::MAX),
        Some(seconds) => seconds.checked_sub(KEEP_ALIVE_MARGIN_S).filter(|kept| *kept > 0).map(Duration::from_secs),
    }
}

fn timeout(parameter: &[u8]) -> Option<u64> {
    let (name, value) = std::str::from_utf8(parameter).ok()?.split_once('=')?;
    let value = value.trim().trim_matches('"');
    name.trim().eq_ignore_ascii_case("timeout").then(|| digits(value.as_bytes()))?
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PLAIN: Asked = Asked { head: false, range: false, upgrade: false };

    fn head(lines: &[(&'static str, &str)]) -> HeaderMap {
        lines.iter().map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_str(value).unwrap())).collect()
    }

    fn vetted(status: u16, lines: &[(&'static str, &str)]) -> Result<Vetted, FetchError> {
        vet(PLAIN, Version::HTTP_11, StatusCode::from_u16(status).unwrap(), &head(lines))
    }

    fn request(lines: &[(&str, &str)], body: RequestBody) -> Outbound {
        let mut fields = Fields::new();
        for (name, value) in lines {
            fields.push(name, value).unwrap();
        }
        let (method, path_and_query) = (Method::GET, "/".to_owned());
        Outbound { method, path_and_query, host: None, fields, body, upgrade: false, interim: None, worker: 0 }
    }

    fn lines(map: &HeaderMap) -> Vec<(String, String)> {
        map.iter().map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned())).collect()
    }

    #[test]
    fn framing_that_can_be_read_two_ways_is_refused() {
        for bad in [
            &[("content-length", "5"), ("content-length", "6")][..],
            &[("content-length", "5, 6")],
            &[("content-length", "+5")],
            &[("content-length", "")],
            &[("content-length", "99999999999999999999")],
            &[("content-length", "5"), ("transfer-encoding", "chunked")],
            &[("content-length", "5"), ("transfer-encoding", "word")],
            &[("transfer-encoding", "gzip, chunked")],
            &[("transfer-encoding", "gzip")],
            &[("transfer-encoding", "chunked, word")],
            &[("transfer-encoding", "chunked"), ("transfer-encoding", "chunked")],
        ] {
            assert!(matches!(vetted(200, bad), Err(FetchError::Malformed(_))), "{bad:?}");
        }
    }

    #[test]
    fn repeated_equal_lengths_become_one() {
        let vetted = vetted(200, &[("content-length", "5"), ("content-length", "5, 05")]).unwrap();
        assert_eq!((vetted.length, vetted.fields.wire()), (Some(5), &b"content-length: 5\r\n"[..]));
    }

    #[test]
    fn an_unknown_transfer_coding_ends_with_the_connection() {
        let vetted = vetted(200, &[("transfer-encoding", "word"), ("a", "b")]).unwrap();
        assert_eq!((vetted.length, vetted.keep, vetted.fields.wire()), (None, None, &b"a: b\r\n"[..]));
    }

    #[test]
    fn lengths_without_a_body_are_not_a_length_of_the_body() {
        let not_modified = vetted(304, &[("content-length", "10")]).unwrap();
        assert_eq!((not_modified.length, not_modified.keep), (None, Some(Duration::MAX)));
        assert!(vetted(204, &[("content-length", "10")]).unwrap().fields.is_empty());
        let asked = Asked { head: true, ..PLAIN };
        let to_head = vet(asked, Version::HTTP_11, StatusCode::OK, &head(&[("content-length", "10")])).unwrap();
        assert_eq!((to_head.length, to_head.fields.get(name::CONTENT_LENGTH)), (None, Some(&b"10"[..])));
    }

    #[test]
    fn answers_to_questions_that_were_not_asked_are_refused() {
        for status in [101, 206, 416] {
            assert!(vetted(status, &[("upgrade", "x"), ("content-length", "0")]).is_err(), "{status}");
        }
        let asked = Asked { range: true, upgrade: true, ..PLAIN };
        for status in [StatusCode::SWITCHING_PROTOCOLS, StatusCode::PARTIAL_CONTENT, StatusCode::RANGE_NOT_SATISFIABLE] {
            assert!(vet(asked, Version::HTTP_11, status, &head(&[("upgrade", "x")])).is_ok(), "{status}");
        }
        assert!(vet(asked, Version::HTTP_11, StatusCode::SWITCHING_PROTOCOLS, &head(&[])).is_err());
    }

    #[test]
    fn connections_are_kept_shorter_than_advertised() {
        let keep = |lines| vetted(200, lines).unwrap().keep;
        assert_eq!(keep(&[("content-length", "0")]), Some(Duration::MAX));
        assert_eq!(keep(&[("content-length", "0"), ("keep-alive", "max=3, timeout=5")]), Some(Duration::from_secs(4)));
        assert_eq!(keep(&[("content-length", "0"), ("keep-alive", "timeout=1")]), None);
        assert_eq!(keep(&[("content-length", "0"), ("keep-alive", "timeout=soon")]), Some(Duration::MAX));
        assert_eq!(keep(&[("content-length", "0"), ("connection", "x, Close")]), None);
        assert_eq!(keep(&[]), None);
        let old = vet(PLAIN, Version::HTTP_10, StatusCode::OK, &head(&[("content-length", "0"), ("connection", "keep-alive")]));
        assert_eq!(old.unwrap().keep, None);
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
        fn no_head_panics_and_lengths_are_believed_only_alone(
            status in 100u16..1000, length in "[0-9, +]{0,12}", coding in proptest::option::of("[a-z,; ]{0,12}"), keep in "[ -~]{0,20}",
        ) {
            let mut map = head(&[("content-length", &length), ("keep-alive", &keep)]);
            if let Some(coding) = &coding {
                map.insert(TRANSFER_ENCODING, HeaderValue::from_str(coding).unwrap());
            }
            let vetted = vet(PLAIN, Version::HTTP_11, StatusCode::from_u16(status).unwrap(), &map);
            if let Ok(Vetted { length: Some(_), .. }) = vetted {
                prop_assert!(coding.is_none());
            }
        }

        #[test]
        fn fields_survive_the_way_out_and_in(pairs in proptest::collection::vec(("x-[a-z]{1,12}", "[!-~]{1,20}"), 0..12)) {
            let pairs: Vec<_> = pairs.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
            let mut map = outbound(&request(&pairs, RequestBody::Empty), false, "o").unwrap();
            map.remove(HOST);
            let back = inbound(&map).unwrap();
            let mut read: Vec<_> = back.iter().map(|(name, value)| (name, std::str::from_utf8(value).unwrap())).collect();
            let mut want = pairs;
            read.sort_by_key(|pair| pair.0);
            want.sort_by_key(|pair| pair.0);
            prop_assert_eq!(read, want);
        }
    }
}
