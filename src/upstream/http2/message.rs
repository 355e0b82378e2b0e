//! A request head as h2 takes it. Pure.

use crate::http2;
use crate::listener::RequestBody;
use crate::semantics::{Name, hop, name};
use crate::upstream::{FetchError, Outbound};
use http::header::{CONTENT_LENGTH, HeaderValue, TE};
use http::{HeaderMap, Method, Uri};

const UNFIT: FetchError = FetchError::InvalidRequest("it does not fit a request head of HTTP/2");

/// The head as it goes out: its host as `:authority`, without the fields of the client's connection, framing by us.
pub(crate) fn message(request: &Outbound, is_secure: bool, authority: &str) -> Result<http::Request<()>, FetchError> {
    if request.method == Method::CONNECT {
        return Err(FetchError::InvalidRequest("CONNECT is not passed on"));
    }
    let (scheme, host) = (if is_secure { "https" } else { "http" }, request.host.as_deref().unwrap_or(authority));
    let uri = Uri::builder().scheme(scheme).authority(host).path_and_query(request.path_and_query.as_str());
    let mut message = http::Request::new(());
    *message.method_mut() = request.method.clone();
    *message.uri_mut() = uri.build().map_err(|_| UNFIT)?;
    // A fragment would end here, and what goes up would not be what was keyed.
    if message.uri().path_and_query().is_none_or(|target| target.as_str() != request.path_and_query) {
        return Err(UNFIT);
    }
    headers(request, message.headers_mut())?;
    Ok(message)
}

fn headers(request: &Outbound, to: &mut HeaderMap) -> Result<(), FetchError> {
    let of_connection = hop::of_connection(&request.fields);
    for (name, value) in request.fields.iter() {
        let number = Name::lookup(name.as_bytes());
        let is_ours = matches!(number, Some(name::HOST | name::CONTENT_LENGTH)) || of_connection(number, name.as_bytes());
        if !is_ours && !http2::append(to, name.as_bytes(), value) {
            return Err(UNFIT);
        }
    }
    // We take trailers without being asked. gRPC wants to hear it.
    to.insert(TE, HeaderValue::from_static("trailers"));
    let length = match &request.body {
        RequestBody::Stream { length, .. } => *length,
        RequestBody::Full(bytes) => Some(bytes.len() as u64),
        RequestBody::Empty if matches!(request.method, Method::POST | Method::PUT | Method::PATCH) => Some(0), // RFC 9110 §8.6
        RequestBody::Empty => None,
    };
    if let Some(length) = length {
        to.insert(CONTENT_LENGTH, HeaderValue::from(length));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::semantics::Fields;
    use crate::upstream::tests::request;

    fn lines(message: &http::Request<()>) -> Vec<(&str, &str)> {
        message.headers().iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap())).collect()
    }

    #[test]
    fn requests_are_framed_anew() {
        let with = [("host", "evil"), ("a", "1"), ("te", "gzip"), ("connection", "b"), ("b", "2"), ("content-length", "7"), ("a", "2")];
        let get = request(&with, RequestBody::Empty);
        let sent = message(&get, false, "origin:8080").unwrap();
        assert_eq!(sent.uri().to_string(), "http://origin:8080/");
        assert_eq!(lines(&sent), [("a", "1"), ("a", "2"), ("te", "trailers")]);
        let post = Outbound { method: Method::POST, host: Some("h".to_owned()), fields: Fields::new(), ..get };
        let sent = message(&post, true, "origin").unwrap();
        assert_eq!((sent.uri().to_string(), &lines(&sent)[1..]), ("https://h/".to_owned(), &[("content-length", "0")][..]));
    }

    #[test]
    fn targets_that_would_change_on_the_way_are_refused() {
        for (target, fits) in
            [("/a?b=c%20&d", true), ("*", true), ("//x", true), ("/a#b", false), ("/a b", false), ("", false), ("a", false)]
        {
            let request = Outbound { path_and_query: target.to_owned(), ..request(&[], RequestBody::Empty) };
            assert_eq!(message(&request, false, "o").is_ok(), fits, "{target:?}");
        }
        let request = Outbound { host: Some("a\r\nb".to_owned()), ..request(&[], RequestBody::Empty) };
        assert!(message(&request, false, "o").is_err());
    }
}
