//! Codings that are made here: who gets which form, that each is made once, and that what comes out is what went in.

use super::*;
use crate::support::origin::{Gate, Step};
use std::io::Read;
use std::process::Command;

const ON: &str = "compression = true\n";
const CODINGS: [&str; 3] = ["gzip", "br", "zstd"];

/// Text that shrinks well and that no two pages share.
fn page(name: &str, bytes: usize) -> String {
    let lines = (0u64..).map(|line| format!("<p class=\"line\">{name} says {line} and {}</p>\n", line.wrapping_mul(0x9e37_79b9) % 1000));
    let mut page: String = lines.take(bytes / 30 + 1).collect();
    page.truncate(bytes);
    page
}

fn html(body: impl Into<Vec<u8>>) -> Script {
    Script::ok(body).header("Cache-Control", "max-age=3600").header("Content-Type", "text/html").header("ETag", "\"v1\"")
}

/// Serves a page of so many bytes under every path.
fn serve_pages(config: &str, bytes: usize) -> Served {
    serve_with(config, move |request| html(page(&request.path, bytes)))
}

fn accepting(coding: &str) -> String {
    format!("Accept-Encoding: {coding}\r\n")
}

/// What an answer stands for.
fn decoded(answer: &Answer) -> Vec<u8> {
    decode(answer.field("content-encoding"), &answer.body)
}

fn decode(coding: Option<&str>, form: &[u8]) -> Vec<u8> {
    let mut reader: Box<dyn Read + '_> = match coding {
        None => Box::new(form),
        Some("gzip") => Box::new(flate2::read::GzDecoder::new(form)),
        Some("br") => Box::new(brotli::Decompressor::new(form, 4096)),
        Some("zstd") => Box::new(zstd::stream::read::Decoder::new(form).expect("a frame")),
        Some(other) => panic!("{other}"),
    };
    let (mut out, mut buffer) = (Vec::new(), [0; 4096]);
    // What is not there yet is no error of these tests.
    while let Ok(read @ 1..) = reader.read(&mut buffer) {
        out.extend_from_slice(&buffer[..read]);
    }
    out
}

/// How many answers came so.
async fn coded(served: &Served, coding: &str, source: &str) -> u64 {
    served.metric(&format!("tiercel_compress_total{{coding=\"{coding}\",source=\"{source}\"}}")).await
}

async fn until_coded(served: &Served, coding: &str, source: &str, count: u64) {
    served.until_metric(&format!("tiercel_compress_total{{coding=\"{coding}\",source=\"{source}\"}}"), count).await;
}

/// GETs until the form comes from the store.
async fn until_form(served: &Served, path: &str, coding: &str) -> Answer {
    let from_store = async || coded(served, coding, "store").await;
    let before = from_store().await;
    let deadline = Instant::now() + PATIENCE;
    loop {
        let answer = served.get_with(path, &accepting(coding)).await;
        if from_store().await > before {
            return answer;
        }
        assert!(Instant::now() < deadline, "the form is never stored: {}", answer.head);
    }
}

#[tokio::test]
async fn each_coding_is_made_once_of_one_stored_response() {
    for bytes in [3_000, 100_000, 1_500_000] {
        let served = serve_pages(ON, bytes);
        let whole = page("/a", bytes).into_bytes();
        for coding in CODINGS {
            let first = served.get_with("/a", &accepting(coding)).await;
            assert_eq!((first.status, first.field("content-encoding"), first.whole), (200, Some(coding), true), "{}", first.head);
            assert_eq!((first.all("vary").as_str(), first.field("etag")), ("accept-encoding", Some("W/\"v1\"")));
            assert_eq!(first.field("accept-ranges"), None);
            assert!(decoded(&first) == whole, "{coding} of {bytes}");
            let form = until_form(&served, "/a", coding).await;
            assert!(form.says("hit") && form.body.len() < bytes / 3, "{}", form.head);
            assert_eq!(form.field("content-length"), Some(form.body.len().to_string().as_str()));
            assert!(decoded(&form) == whole);
            assert_eq!(coded(&served, coding, "making").await, 1, "{coding} of {bytes}");
            assert_eq!(served.explain("/a").await["stored"]["forms"][coding], form.body.len());
        }
        assert_eq!(served.origin.count("/a"), 1);
        assert_eq!(served.last("/a").field("accept-encoding"), Some("identity"));
        let plain = served.get("/a").await;
        assert_eq!((plain.field("content-encoding"), plain.field("etag"), plain.says("hit")), (None, Some("\"v1\""), true));
        assert_eq!(plain.all("vary"), "accept-encoding", "it would be another for others");
        assert!(plain.body == whole);
    }
}

#[tokio::test]
async fn curl_and_node_read_every_coding() {
    let served = serve_pages(ON, 50_000);
    let (url, whole) = (format!("http://{}/a", served.tiercel.http), page("/a", 50_000));
    let run = |program: &'static str, arguments: Vec<String>| async move {
        tokio::task::spawn_blocking(move || Command::new(program).args(arguments).output().expect("it runs")).await.expect("no panic")
    };
    for coding in CODINGS {
        for _ in 0..3 {
            let host = format!("Host: {HOST}");
            let arguments = ["-sS", "--compressed", "-H", &host, "-H", &format!("Accept-Encoding: {coding}"), &url].map(str::to_owned);
            let curl = run("curl", arguments.into()).await;
            assert!(curl.status.success() && curl.stdout == whole.as_bytes(), "{coding}: {}", String::from_utf8_lossy(&curl.stderr));
        }
        let form = until_form(&served, "/a", coding).await;
        let file = served.folder.path().join(coding);
        std::fs::write(&file, &form.body).expect("a writable folder");
        let function = match coding {
            "gzip" => "gunzipSync",
            "br" => "brotliDecompressSync",
            _ => continue, // older releases of node do not know it; curl has read it
        };
        let script = format!("process.stdout.write(require('zlib').{function}(require('fs').readFileSync(process.argv[1])))");
        let node = run("node", vec!["-e".into(), script, file.to_str().expect("UTF-8").into()]).await;
        assert!(node.status.success() && node.stdout == whole.as_bytes(), "{coding}: {}", String::from_utf8_lossy(&node.stderr));
    }
}

#[tokio::test]
async fn clients_that_come_at_once_follow_one_encoder() {
    let gate = Gate::new();
    let held = gate.clone();
    let served = serve_with(ON, move |_| {
        let whole = page("/a", 400_000).into_bytes();
        let head =
            format!("HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nCache-Control: max-age=60\r\nContent-Length: {}\r\n\r\n", whole.len());
        let (early, late) = whole.split_at(1000);
        Script::steps([Step::Bytes([head.as_bytes(), early].concat()), Step::Wait(held.clone()), Step::Bytes(late.to_vec())])
    });
    let mut clients = Vec::new();
    for _ in 0..40 {
        let mut client = served.client().await;
        client.send(request("GET", "/a", &accepting("gzip"), "")).await;
        clients.push(client);
    }
    // All have joined the encoder before the rest comes.
    let joined = async || coded(&served, "gzip", "making").await + coded(&served, "gzip", "following").await;
    let deadline = Instant::now() + PATIENCE;
    while joined().await < 40 {
        assert!(Instant::now() < deadline, "waited in vain for all to join");
        tokio::time::sleep(Duration::from_millis(2)).await; // nobody announces it
    }
    gate.open();
    let whole = page("/a", 400_000).into_bytes();
    for client in &mut clients {
        let answer = client.answer(false).await.expect("an answer");
        assert!(answer.whole && decoded(&answer) == whole, "{}", answer.head);
    }
    assert_eq!((coded(&served, "gzip", "making").await, coded(&served, "gzip", "following").await), (1, 39));
    assert_eq!(served.origin.count("/a"), 1);
    until_form(&served, "/a", "gzip").await;
    assert_eq!(coded(&served, "gzip", "making").await, 1);
}

#[tokio::test]
async fn what_came_before_the_origin_paused_goes_out() {
    for coding in CODINGS {
        for kind in ["text/event-stream", "text/html"] {
            for keep in ["max-age=60", "no-store"] {
                let gate = Gate::new();
                let held = gate.clone();
                let served = serve_with(ON, move |_| {
                    let head =
                        format!("HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nCache-Control: {keep}\r\nTransfer-Encoding: chunked\r\n\r\n");
                    Script::steps([
                        Step::Bytes([head.as_bytes(), b"b\r\ndata: one\n\n\r\n"].concat()),
                        Step::Wait(held.clone()),
                        Step::Bytes(b"b\r\ndata: two\n\n\r\n0\r\n\r\n".to_vec()),
                    ])
                });
                let mut client = served.client().await;
                client.send(request("GET", "/events", &accepting(coding), "")).await;
                let mut form = Vec::new();
                let head = client.until("\r\n\r\n").await.expect("a head");
                assert!(head.contains(&format!("content-encoding: {coding}")), "{head}");
                while decode(Some(coding), &form) != b"data: one\n\n" {
                    form.extend(chunk(&mut client).await);
                }
                gate.open();
                loop {
                    match chunk(&mut client).await {
                        piece if piece.is_empty() => break,
                        piece => form.extend(piece),
                    }
                }
                assert_eq!(decode(Some(coding), &form), b"data: one\n\ndata: two\n\n", "{coding} {kind} {keep}");
            }
        }
    }
}

/// The next chunk of a body; empty at its end.
async fn chunk(client: &mut Client) -> Vec<u8> {
    let line = client.until("\r\n").await.expect("a chunk");
    let size = usize::from_str_radix(line.trim_end(), 16).expect("a size");
    let mut bytes = client.take_exactly(size + 2).await;
    bytes.truncate(size);
    bytes
}

#[tokio::test]
async fn conditions_hold_for_every_form() {
    let served = serve_pages(ON, 5000);
    until_form(&served, "/a", "br").await;
    let ask = async |accept: &str, more: &str| served.get_with("/a", &format!("{}{more}", accepting(accept))).await;
    for (accept, tag) in [("br", "W/\"v1\""), ("gzip", "W/\"v1\""), ("identity", "\"v1\"")] {
        for have in ["\"v1\"", "W/\"v1\"", "\"x\", W/\"v1\""] {
            let answer = ask(accept, &format!("If-None-Match: {have}\r\n")).await;
            assert_eq!((answer.status, answer.field("etag")), (304, Some(tag)), "{accept} {have}: {}", answer.head);
            assert_eq!((answer.all("vary").as_str(), answer.field("content-encoding")), ("accept-encoding", None));
        }
        assert_eq!(ask(accept, "If-None-Match: \"v2\"\r\n").await.status, 200);
    }
    assert_eq!(coded(&served, "gzip", "making").await, 1, "for the one that was sent");
    assert_eq!(ask("br", "If-Match: W/\"v1\"\r\n").await.status, 412);
    assert_eq!(ask("br", "If-Match: \"v1\"\r\n").await.status, 412, "a form is another representation");
    assert_eq!(ask("identity", "If-Match: \"v1\"\r\n").await.status, 200);
}

#[tokio::test]
async fn ranges_are_of_the_bytes_without_a_coding() {
    let served = serve_with(ON, |_| html(page("/a", 5000)).header("Last-Modified", "Sat, 01 Jan 2022 00:00:00 GMT"));
    let whole = page("/a", 5000).into_bytes();
    until_form(&served, "/a", "gzip").await;
    let ask = async |more: &str| served.get_with("/a", &format!("Accept-Encoding: gzip\r\n{more}")).await;
    for more in ["Range: bytes=10-19\r\n", "Range: bytes=10-19\r\nIf-Range: \"v1\"\r\n"] {
        let part = ask(more).await;
        assert_eq!((part.status, part.field("content-encoding"), part.field("etag")), (206, None, Some("\"v1\"")), "{}", part.head);
        assert_eq!((part.body.as_slice(), part.all("vary").as_str()), (&whole[10..20], "accept-encoding"));
    }
    // The client has bytes of a form: none of those without a coding may follow them.
    let weak = ask("Range: bytes=10-19\r\nIf-Range: W/\"v1\"\r\n").await;
    assert_eq!((weak.status, decoded(&weak) == whole), (200, true));
    let dated = ask("Range: bytes=10-19\r\nIf-Range: Sat, 01 Jan 2022 00:00:00 GMT\r\n").await;
    assert_eq!((dated.status, dated.field("content-encoding"), decoded(&dated) == whole), (200, Some("gzip"), true));
    let coded_only = served.get_with("/a", "Accept-Encoding: gzip, identity;q=0\r\nRange: bytes=10-19\r\n").await;
    assert_eq!((coded_only.status, coded_only.field("content-encoding")), (200, Some("gzip")));
}

#[tokio::test]
async fn head_has_the_fields_of_get() {
    let served = serve_pages(ON, 5000);
    let form = until_form(&served, "/a", "zstd").await;
    let head = served.ask("HEAD", "/a", &accepting("zstd"), "").await;
    for field in ["content-encoding", "content-length", "content-type", "etag", "vary"] {
        assert_eq!(head.field(field), form.field(field), "{field}");
    }
    let unmade = served.ask("HEAD", "/a", &accepting("br"), "").await;
    assert_eq!((unmade.field("content-encoding"), unmade.field("content-length")), (Some("br"), None), "its length is not known");
    assert_eq!(coded(&served, "br", "making").await, 0, "nobody needs its bytes");
}

#[tokio::test]
async fn what_may_not_be_coded_goes_out_as_it_came() {
    let served = serve_with(ON, |request| {
        let (kind, bytes) = match request.path.as_str() {
            "/image" => ("image/png", 5000),
            "/small" => ("text/html", 1023),
            _ => ("text/html", 5000),
        };
        let script = Script::ok(page("x", bytes)).header("Content-Type", kind);
        match request.path.as_str() {
            "/no-transform" => script.header("Cache-Control", "max-age=60, no-transform"),
            "/encoded" => script.header("Cache-Control", "max-age=60").header("Content-Encoding", "x-own"),
            _ => script.header("Cache-Control", "max-age=60"),
        }
    });
    for path in ["/image", "/small", "/no-transform", "/encoded"] {
        for _ in 0..2 {
            let answer = served.get_with(path, &accepting("gzip")).await;
            assert_ne!(answer.field("content-encoding"), Some("gzip"), "{path}");
            assert_eq!(answer.all("vary"), "", "{path}");
        }
    }
    assert_eq!(served.get_with("/page", &accepting("gzip")).await.field("content-encoding"), Some("gzip"));
}

#[tokio::test]
async fn where_it_is_off_nothing_changes() {
    let served = serve_with("[sites.s]\n[[sites.s.routes]]\npath = \"/on/\"\ncompression = true\n", |request| {
        html(page(&request.path, 5000)).header("X-Asked", request.field("accept-encoding").unwrap_or("nothing"))
    });
    let off = served.get_with("/off", &accepting("br, gzip")).await;
    assert_eq!((off.field("content-encoding"), off.all("vary").as_str(), off.field("x-asked")), (None, "", Some("gzip")));
    let on = served.get_with("/on/a", &accepting("br, gzip")).await;
    assert_eq!((on.field("content-encoding"), on.field("x-asked")), (Some("br"), Some("identity")));
}

#[tokio::test]
async fn what_nobody_may_store_is_coded_for_its_client_alone() {
    let config = "compression = true\n[sites.s]\n[[sites.s.routes]]\npath = \"/secret/\"\ncompression.sensitive = true\n";
    let served = serve_with(config, |request| {
        let keep = if request.path.ends_with("shared") { "max-age=60" } else { "private" };
        Script::ok(page(&request.path, 30_000)).header("Content-Type", "text/html").header("Cache-Control", keep).header("ETag", "\"v1\"")
    });
    for coding in CODINGS {
        let own = served.get_with("/own", &accepting(coding)).await;
        assert_eq!((own.field("content-encoding"), own.field("etag")), (Some(coding), Some("W/\"v1\"")), "{}", own.head);
        assert!(own.whole && decoded(&own) == page("/own", 30_000).into_bytes());
        assert_eq!(coded(&served, coding, "alone").await, 1);
    }
    let posted = served.ask("POST", "/own", &accepting("gzip"), "x=1").await;
    assert_eq!(decoded(&posted), page("/own", 30_000).into_bytes(), "{}", posted.head);
    let head = served.ask("HEAD", "/own", &accepting("gzip"), "").await;
    assert_eq!((head.field("content-encoding"), head.field("content-length")), (Some("gzip"), None), "{}", head.head);
    let secret = served.get_with("/secret/own", &accepting("gzip")).await;
    assert_eq!((secret.field("content-encoding"), secret.text()), (None, page("/secret/own", 30_000).as_str()));
    let shared = served.get_with("/secret/shared", &accepting("gzip")).await;
    assert_eq!(shared.field("content-encoding"), Some("gzip"), "everybody gets the same");
}

#[tokio::test]
async fn a_form_that_saves_too_little_is_not_made_again() {
    let noise: Vec<u8> =
        (0..40_000u64).map(|at| (at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as u8 ^ (at.wrapping_mul(at) >> 7) as u8).collect();
    let random: Vec<u8> = noise.chunks(16).flat_map(|part| tiercel::semantics::key::hash128(part).to_ne_bytes()).collect();
    let sent = random.clone();
    let served = serve_with(ON, move |_| html(sent.clone()));
    let first = served.get_with("/a", &accepting("gzip")).await;
    assert!(decoded(&first) == random);
    let then = served.until("/a", &accepting("gzip"), "no coding", |answer| answer.field("content-encoding").is_none()).await;
    assert!(then.body == random && then.all("vary") == "accept-encoding");
    let made = coded(&served, "gzip", "making").await;
    for _ in 0..3 {
        assert_eq!(served.get_with("/a", &accepting("gzip")).await.field("content-encoding"), None);
        assert_eq!(served.get_with("/a", &accepting("br")).await.field("content-encoding"), None);
    }
    assert_eq!((coded(&served, "gzip", "making").await, coded(&served, "br", "making").await), (made, 0));
}

#[tokio::test]
async fn a_form_goes_with_what_it_is_of() {
    let served = serve_with(ON, |request| {
        let tag = if request.field("x-new").is_some() { "\"v2\"" } else { "\"v1\"" };
        let confirmed = Script::raw(format!(
            "HTTP/1.1 304 Not Modified\r\nETag: \"v1\"\r\nCache-Control: max-age=60\r\nX-Seen: {}\r\n\r\n",
            request.path
        ));
        let fresh =
            Script::ok(page(tag, 5000)).header("Content-Type", "text/html").header("ETag", tag).header("Cache-Control", "max-age=60");
        if request.field("if-none-match") == Some("\"v1\"") && request.field("x-new").is_none() { confirmed } else { fresh }
    });
    until_form(&served, "/a", "gzip").await;
    assert_eq!(coded(&served, "gzip", "making").await, 1);
    // Confirmed: the form stays, under the new fields.
    served.soften().await;
    let confirmed = served.get_with("/a", &accepting("gzip")).await;
    assert!(confirmed.says("fwd=stale"), "{}", confirmed.head);
    assert_eq!((confirmed.field("x-seen"), confirmed.field("content-encoding")), (Some("/a"), Some("gzip")));
    assert_eq!(decoded(&confirmed), page("\"v1\"", 5000).into_bytes());
    assert_eq!(coded(&served, "gzip", "making").await, 1, "it was not made anew");
    // Replaced: the form is that of the new one.
    served.soften().await;
    let replaced = served.get_with("/a", "Accept-Encoding: gzip\r\nX-New: 1\r\n").await;
    assert_eq!((replaced.field("etag"), decoded(&replaced)), (Some("W/\"v2\""), page("\"v2\"", 5000).into_bytes()));
    let form = until_form(&served, "/a", "gzip").await;
    assert_eq!((form.field("etag"), decoded(&form)), (Some("W/\"v2\""), page("\"v2\"", 5000).into_bytes()));
    // Purged: nothing is left of it.
    let (status, _) = served.admin("POST", "/v1/purge", &json!({"urls": [format!("http://{HOST}/a")]}).to_string()).await;
    assert_eq!(status, 200);
    let again = served.get_with("/a", &accepting("gzip")).await;
    assert!(again.is_miss(), "{}", again.head);
    assert_eq!(decoded(&again), page("\"v1\"", 5000).into_bytes());
}

#[tokio::test]
async fn forms_are_weighed() {
    let served = serve_pages(ON, 200_000);
    served.until_hit("/a", "").await;
    let weight = async || served.metric("tiercel_tier_stored_bytes{tier=\"memory\"}").await;
    let until_more = async |than: u64| {
        let deadline = Instant::now() + PATIENCE;
        while weight().await <= than {
            assert!(Instant::now() < deadline, "waited in vain for the form to be weighed");
            tokio::time::sleep(Duration::from_millis(2)).await; // housekeeping weighs in its own time
        }
        weight().await
    };
    let before = until_more(200_000).await;
    let form = until_form(&served, "/a", "gzip").await;
    let after = until_more(before).await;
    assert!(
        (form.body.len() as u64..form.body.len() as u64 + 4096).contains(&(after - before)),
        "{} for {}",
        after - before,
        form.body.len()
    );
}

#[tokio::test]
async fn a_body_that_breaks_off_leaves_no_form() {
    let served = serve_with(ON, |_| {
        let head = "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nCache-Control: max-age=60\r\nContent-Length: 100000\r\n\r\n";
        Script::steps([Step::Bytes([head.as_bytes(), page("/a", 50_000).as_bytes()].concat()), Step::Reset])
    });
    for asked in 1..=2 {
        let mut client = served.client().await;
        client.send(request("GET", "/a", &accepting("gzip"), "")).await;
        let answer = client.answer(false).await;
        assert!(answer.is_none_or(|answer| !answer.whole), "never a short body as a whole one");
        assert_eq!(served.origin.count("/a"), asked);
    }
    assert_eq!(coded(&served, "gzip", "store").await, 0);
}

#[tokio::test]
async fn another_configuration_counts_for_what_is_stored() {
    let served = serve_pages(ON, 5000);
    until_form(&served, "/a", "gzip").await;
    served.reload("[compression]\nenabled = true\ncodings = [\"br\"]\nmin_size = \"6KB\"\n").await;
    assert_eq!(served.get_with("/a", &accepting("gzip, br")).await.field("content-encoding"), None, "too short by now");
    served.reload("[compression]\nenabled = true\ncodings = [\"br\"]\n").await;
    let answer = served.get_with("/a", &accepting("gzip, br;q=0.1")).await;
    assert_eq!((answer.field("content-encoding"), answer.says("hit")), (Some("br"), true), "{}", answer.head);
    assert_eq!(served.origin.count("/a"), 1);
    until_coded(&served, "br", "making", 1).await;
}

fn encoded(coding: &str, bytes: &[u8]) -> Vec<u8> {
    use std::io::Write;
    match coding {
        "gzip" => {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(6));
            encoder.write_all(bytes).expect("memory");
            encoder.finish().expect("memory")
        }
        "br" => {
            let mut encoder = brotli::CompressorWriter::new(Vec::new(), 4096, 5, 20);
            encoder.write_all(bytes).expect("memory");
            encoder.into_inner()
        }
        _ => zstd::encode_all(bytes, 3).expect("memory"),
    }
}

#[tokio::test]
async fn codings_of_the_upstream_are_taken_off_for_who_cannot_read_them() {
    for keep in ["max-age=60", "no-store"] {
        let served = serve_with(ON, move |request| {
            let coding = request.path.trim_start_matches('/');
            let form = encoded(coding, page("p", 90_000).as_bytes());
            Script::ok(form)
                .header("Content-Encoding", coding)
                .header("Content-Type", "image/x")
                .header("ETag", "\"v1\"")
                .header("Cache-Control", keep)
        });
        for coding in CODINGS {
            let path = format!("/{coding}");
            let reads = served.get_with(&path, &accepting(coding)).await;
            assert_eq!((reads.field("content-encoding"), reads.field("etag")), (Some(coding), Some("\"v1\"")), "as it came");
            assert!(decoded(&reads) == page("p", 90_000).into_bytes());
            for other in ["", "Accept-Encoding: identity\r\n", "Accept-Encoding: deflate\r\nRange: bytes=0-9\r\n"] {
                let plain = served.get_with(&path, other).await;
                assert_eq!(
                    (plain.status, plain.field("content-encoding"), plain.field("etag")),
                    (200, None, Some("W/\"v1\"")),
                    "{}",
                    plain.head
                );
                assert_eq!((plain.all("vary").as_str(), plain.whole), ("accept-encoding", true));
                assert!(plain.text() == page("p", 90_000));
            }
            if keep != "no-store" {
                assert_eq!(served.origin.count(&path), 1);
                let unchanged = served.get_with(&path, "If-None-Match: \"v1\"\r\n").await;
                assert_eq!((unchanged.status, unchanged.field("etag")), (304, Some("W/\"v1\"")));
                let part = served.get_with(&path, &format!("{}Range: bytes=0-9\r\n", accepting(coding))).await;
                assert_eq!((part.status, part.body.as_slice()), (206, &reads.body[..10]));
            }
        }
    }
}

#[tokio::test]
async fn what_stands_for_too_much_or_is_not_whole_is_broken_off() {
    let config = "[compression]\nenabled = true\ndecode_max_ratio = 10\n";
    let served = serve_with(config, |request| {
        let form = if request.path == "/bomb" { encoded("gzip", &vec![0; 20 << 20]) } else { b"no gzip at all".to_vec() };
        Script::ok(form).header("Content-Encoding", "gzip").header("Cache-Control", "max-age=60").header("Content-Type", "text/html")
    });
    for path in ["/bomb", "/wrong"] {
        let mut client = served.client().await;
        client.send(request("GET", path, "", "")).await;
        let answer = client.answer(false).await;
        assert!(answer.is_none_or(|answer| !answer.whole && answer.body.len() <= 2 << 20), "{path}");
    }
    assert_eq!(served.bound("decoded_bytes").await, 1);
    let reader = served.get_with("/bomb", &accepting("gzip")).await;
    assert!(reader.whole && decoded(&reader).len() == 20 << 20, "who reads it takes the risk");
}

impl Served {
    /// What a thread of this name asks for (proc(5), the nineteenth field of its stat).
    fn niceness(&self, thread: &str) -> i32 {
        let threads = std::fs::read_dir(format!("/proc/{}/task", self.tiercel.pid())).expect("it runs");
        let stat = |entry: std::io::Result<std::fs::DirEntry>| std::fs::read_to_string(entry.ok()?.path().join("stat")).ok();
        let of_this_name = |stat: String| stat.split_once(&format!(" ({thread}) ")).map(|(_, rest)| rest.to_owned());
        let rest = threads.filter_map(stat).find_map(of_this_name).expect("a thread of this name");
        rest.split(' ').nth(16).and_then(|nice| nice.parse().ok()).expect("a number")
    }
}

#[tokio::test]
async fn what_is_sent_often_is_made_smaller() {
    // Prose, as it is: what repeats itself leaves nothing to be gained.
    const TEXT: &str = include_str!("../../../docs/configuration.md");
    let served = serve_with("[compression]\nenabled = true\nhot_hits = 32\n", |_| html(TEXT));
    let whole = TEXT.as_bytes();
    for coding in CODINGS {
        let fast = until_form(&served, "/a", coding).await;
        let series = format!("tiercel_compress_remade_total{{coding=\"{coding}\"}}");
        let deadline = Instant::now() + PATIENCE;
        let mut client = served.client().await;
        while served.metric(&series).await == 0 {
            assert!(Instant::now() < deadline, "{coding} is never made anew");
            for _ in 0..32 {
                client.ask(request("GET", "/a", &accepting(coding), "")).await;
            }
        }
        let high = served.get_with("/a", &accepting(coding)).await;
        assert!(high.body.len() < fast.body.len(), "{coding}: {} and {}", high.body.len(), fast.body.len());
        assert!(decoded(&high) == whole && high.field("content-length") == Some(high.body.len().to_string().as_str()));
        for _ in 0..64 {
            client.ask(request("GET", "/a", &accepting(coding), "")).await;
        }
        assert_eq!((served.metric(&series).await, coded(&served, coding, "making").await), (1, 1));
    }
    assert_eq!(served.niceness("forms"), 19, "it takes what the cores leave");
    assert_ne!(served.niceness("tiercel"), 19, "nobody else does");
    assert_eq!(served.origin.count("/a"), 1);
}
