//! Parts and conditions, answered from what is stored (RFC 9110 §13, §14).

use super::*;

const BODY: &str = "0123456789abcdefghij";

async fn stored() -> Served {
    let served = serve(|_| {
        let script = fresh(BODY)
            .header("ETag", "\"v1\"")
            .header("Last-Modified", "Sun, 06 Nov 1994 08:49:37 GMT")
            .header("Content-Type", "text/plain");
        script.header("Content-Digest", "sha-256=:AA==:").header("Repr-Digest", "sha-256=:BB==:")
    });
    served.get("/a").await;
    served.until_hit("/a", "").await;
    served
}

async fn part(served: &Served, range: &str) -> Answer {
    served.get_with("/a", &format!("Range: {range}\r\n")).await
}

#[tokio::test]
async fn single_ranges_come_from_the_stored_response() {
    let served = stored().await;
    for (range, body, content_range) in [
        ("bytes=0-0", "0", "bytes 0-0/20"),
        ("bytes=5-9", "56789", "bytes 5-9/20"),
        ("bytes=15-", "fghij", "bytes 15-19/20"),
        ("bytes=-3", "hij", "bytes 17-19/20"),
        ("bytes=15-999", "fghij", "bytes 15-19/20"),
        ("bytes=0-4,2-9", "0123456789", "bytes 0-9/20"),
    ] {
        let answer = part(&served, range).await;
        assert_eq!((answer.status, answer.text(), answer.field("content-range")), (206, body, Some(content_range)), "{range}");
        assert_eq!(answer.field("content-length"), Some(&*body.len().to_string()));
        assert_eq!((answer.field("etag"), answer.says("hit")), (Some("\"v1\""), true));
        assert_eq!(answer.field("content-digest"), None, "it is of the whole content");
        assert_eq!(answer.field("repr-digest"), Some("sha-256=:BB==:"), "it is of the representation");
    }
    assert_eq!(served.origin.count("/a"), 1);
}

#[tokio::test]
async fn several_ranges_come_as_multipart() {
    let body: String = (0..100).map(|line| format!("{line:09}\n")).collect();
    let whole = body.clone();
    let served = serve(move |_| {
        // Content-Range means nothing on a 200: it must not stand beside ours.
        let script = fresh(&whole).header("Content-Type", "text/plain").header("Content-Digest", "sha-256=:AA==:");
        script.header("Content-Range", "bytes 0-4/7")
    });
    served.get("/a").await;
    served.until_hit("/a", "").await;
    let answer = part(&served, "bytes=500-501,-2,0-9").await;
    assert_eq!((answer.status, answer.field("content-range"), answer.field("content-digest")), (206, None, None));
    let kind = answer.field("content-type").expect("Content-Type");
    let boundary = kind.strip_prefix("multipart/byteranges; boundary=").expect(kind);
    let parts = |range: &str, body: &str| {
        format!("\r\n--{boundary}\r\ncontent-type: text/plain\r\ncontent-range: bytes {range}/1000\r\n\r\n{body}")
    };
    let want = [parts("500-501", "00"), parts("998-999", "9\n"), parts("0-9", "000000000\n")].concat();
    assert_eq!(answer.text(), format!("{want}\r\n--{boundary}--\r\n"));
    assert_eq!(answer.field("content-length"), Some(&*answer.body.len().to_string()));
    let single = part(&served, "bytes=0-1,5-6").await;
    assert_eq!((single.all("content-range").as_str(), single.text()), ("bytes 0-6/1000", &body[..7]), "a small gap goes with it");
}

/// Puts the parts of an answer to a range request at their places; what no part told is `None`.
fn placed(answer: &Answer, length: usize) -> Vec<Option<u8>> {
    let mut bytes = vec![None; length];
    let mut place = |content_range: &str, body: &[u8]| {
        let (range, total) = content_range.strip_prefix("bytes ").and_then(|rest| rest.split_once('/')).expect(content_range);
        let (first, last) = range.split_once('-').expect(content_range);
        let (first, last): (usize, usize) = (first.parse().expect("a number"), last.parse().expect("a number"));
        assert_eq!((total.parse(), body.len()), (Ok(length), last + 1 - first), "{content_range}");
        for (at, byte) in body.iter().enumerate() {
            assert_eq!(bytes[first + at].replace(*byte), None, "byte {} comes twice", first + at);
        }
    };
    match answer.field("content-type").and_then(|kind| kind.strip_prefix("multipart/byteranges; boundary=")) {
        None => place(answer.field("content-range").expect("Content-Range"), &answer.body),
        Some(boundary) => {
            let inner = answer.text().strip_suffix(&format!("\r\n--{boundary}--\r\n")).expect("the closing line");
            for part in inner.split(&format!("\r\n--{boundary}\r\n")).skip(1) {
                let (head, body) = part.split_once("\r\n\r\n").expect("a head");
                let range = head.lines().find_map(|line| line.strip_prefix("content-range: ")).expect("Content-Range");
                place(range, body.as_bytes());
            }
        }
    }
    bytes
}

#[tokio::test]
async fn any_set_of_ranges_puts_the_right_bytes_at_the_right_places() {
    let body: String = (0..400).map(|line| format!("{line:09}\n")).collect();
    let whole = body.clone();
    let served = serve(move |_| fresh(&whole));
    served.get("/a").await;
    served.until_hit("/a", "").await;
    let mut client = served.client().await;
    let mut seed = 0x2545_f491_4f6c_dd1d_u64;
    let mut below = |limit: u64| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) % limit
    };
    for _ in 0..60 {
        let asked: Vec<(u64, u64)> = (0..=below(8)).map(|_| (below(4000), below(300))).map(|(first, more)| (first, first + more)).collect();
        let set = asked.iter().map(|(first, last)| format!("{first}-{last}")).collect::<Vec<_>>().join(", ");
        let answer = client.ask(request("GET", "/a", &format!("Range: bytes={set}\r\n"), "")).await;
        assert_eq!(answer.status, 206, "{set}: {}", answer.head);
        let bytes = placed(&answer, 4000);
        for (at, byte) in bytes.iter().enumerate() {
            assert!(byte.is_none_or(|byte| byte == body.as_bytes()[at]), "{set}: byte {at}");
            let wanted = asked.iter().any(|(first, last)| (*first..=*last).contains(&(at as u64)));
            assert!(byte.is_some() || !wanted, "{set}: byte {at} is missing");
        }
    }
    assert_eq!(served.origin.count("/a"), 1);
}

#[tokio::test]
async fn ranges_past_the_end_are_416_and_malformed_ones_ignored() {
    let served = stored().await;
    let answer = part(&served, "bytes=20-").await;
    assert_eq!((answer.status, answer.field("content-range"), answer.body.len()), (416, Some("bytes */20"), 0));
    assert!(answer.field("date").is_some(), "{}", answer.head);
    for ignored in ["bytes=5-4", "lines=0-1", "bytes=a-b", "bytes 0-1"] {
        let answer = part(&served, ignored).await;
        assert_eq!((answer.status, answer.text()), (200, BODY), "{ignored}");
    }
    let many = (0..17).map(|at| format!("{at}-{at}")).collect::<Vec<_>>().join(",");
    assert_eq!(part(&served, &format!("bytes={many}")).await.status, 200, "more ranges than are served");
    assert_eq!(served.bound("range_parts").await, 1);
    served.reload("cache.range_parts_max = 17\n").await;
    assert_eq!(part(&served, &format!("bytes={many}")).await.status, 206);
}

#[tokio::test]
async fn if_range_decides_between_part_and_whole() {
    let served = stored().await;
    for (condition, status) in [
        ("\"v1\"", 206),
        ("\"v2\"", 200),
        ("W/\"v1\"", 200),
        ("Sun, 06 Nov 1994 08:49:37 GMT", 206),
        ("Sun, 06 Nov 1994 08:49:38 GMT", 200),
    ] {
        let answer = served.get_with("/a", &format!("Range: bytes=0-1\r\nIf-Range: {condition}\r\n")).await;
        assert_eq!(answer.status, status, "{condition}");
    }
}

#[tokio::test]
async fn a_range_on_a_miss_fetches_the_whole_once() {
    let served = serve(|request| {
        assert_eq!(request.field("range"), None);
        fresh(BODY).header("ETag", "\"v1\"")
    });
    let answer = part(&served, "bytes=2-3").await;
    assert_eq!((answer.status, answer.text(), answer.says("stored")), (206, "23", true), "{}", answer.head);
    assert_eq!(served.until_hit("/a", "").await.text(), BODY);
    assert_eq!(served.origin.count("/a"), 1);
}

#[tokio::test]
async fn partial_content_of_the_origin_is_passed_on_and_not_stored() {
    let served = serve(|_| Script::status(206, "23").header("Content-Range", "bytes 2-3/20").header("Cache-Control", "max-age=60"));
    let answer = served.get_with("/a", "Cache-Control: no-store\r\nRange: bytes=2-3\r\n").await;
    assert_eq!((answer.status, answer.field("content-range"), answer.text()), (206, Some("bytes 2-3/20"), "23"));
    assert_eq!(served.last("/a").field("range"), Some("bytes=2-3"));
    assert_eq!(served.explain("/a").await["stored"], Value::Null);
}

#[tokio::test]
async fn conditions_of_clients_are_evaluated_on_what_is_stored() {
    let served = stored().await;
    for (lines, status) in [
        ("If-None-Match: \"v1\"\r\n", 304),
        ("If-None-Match: W/\"v1\"\r\n", 304),
        ("If-None-Match: *\r\n", 304),
        ("If-None-Match: \"v2\"\r\n", 200),
        ("If-None-Match: \"v2\"\r\nIf-Modified-Since: Sun, 06 Nov 1994 08:49:37 GMT\r\n", 200),
        ("If-Modified-Since: Sun, 06 Nov 1994 08:49:37 GMT\r\n", 304),
        ("If-Modified-Since: Sun, 06 Nov 1994 08:49:36 GMT\r\n", 200),
        ("If-Match: \"v1\"\r\n", 200),
        ("If-Match: \"v2\"\r\n", 412),
        ("If-Match: W/\"v1\"\r\n", 412),
        ("If-Unmodified-Since: Sun, 06 Nov 1994 08:49:36 GMT\r\n", 412),
        ("If-None-Match: \"v1\"\r\nRange: bytes=0-1\r\n", 304),
    ] {
        let mut client = served.client().await;
        let answer = client.ask(request("GET", "/a", lines, "")).await;
        assert_eq!((answer.status, answer.says("hit")), (status, true), "{lines}: {}", answer.head);
        if status == 304 {
            assert_eq!((answer.field("etag"), answer.field("content-type"), answer.field("content-length")), (Some("\"v1\""), None, None));
            assert_eq!(answer.field("cache-control"), Some("max-age=3600"));
            assert!(answer.field("date").is_some());
        }
        assert_eq!(client.ask(request("GET", "/a", "", "")).await.text(), BODY, "the connection goes on after {status}");
    }
    assert_eq!(served.origin.count("/a"), 1);
}

#[tokio::test]
async fn head_ignores_ranges_and_heeds_conditions() {
    let served = stored().await;
    let whole = served.ask("HEAD", "/a", "Range: bytes=0-1\r\n", "").await;
    assert_eq!((whole.status, whole.field("content-length")), (200, Some("20")));
    assert_eq!(served.ask("HEAD", "/a", "If-None-Match: \"v1\"\r\n", "").await.status, 304);
}

#[tokio::test]
async fn a_conditional_miss_is_answered_from_the_whole_response() {
    let served = serve(|_| fresh(BODY).header("ETag", "\"v1\""));
    let answer = served.get_with("/a", "If-None-Match: \"v1\"\r\n").await;
    assert_eq!((answer.status, answer.says("stored")), (304, true), "{}", answer.head);
    assert_eq!(served.last("/a").field("if-none-match"), None, "the whole response is fetched");
    assert_eq!(served.until_hit("/a", "").await.text(), BODY);
}
