//! Large responses kept in blocks (`cache.blocks`): every byte that goes out is looked at.

use super::*;
use crate::support::origin::{Gate, Step};
use crate::support::resource::Resource;
use parking_lot::Mutex;
use std::sync::Arc;

const BLOCK: usize = 64 << 10;
/// Five blocks and a bit.
const LENGTH: usize = 5 * BLOCK + 1000;
/// Smaller than the response: it could not be stored whole.
const CONFIG: &str = "cache = { blocks = \"64KiB\", max_object_size = \"200KiB\", range_whole_max = \"100KiB\" }\n";
/// Here it could be.
const WHOLE: &str = "cache = { blocks = \"64KiB\", max_object_size = \"1MiB\", range_whole_max = \"1MiB\" }\n";
const PATH: &str = "/film";

/// A server in front of an origin with one resource, which can be replaced.
struct Film {
    served: Served,
    now: Arc<Mutex<Resource>>,
}

fn film() -> Film {
    film_with(CONFIG, |_, resource, request| resource.answer(request))
}

/// `answer` gets the number of the request, from 0.
fn film_with(config: &str, answer: impl Fn(usize, &Resource, &Recorded) -> Script + Send + Sync + 'static) -> Film {
    let now = Arc::new(Mutex::new(Resource::new("\"v1\"", LENGTH)));
    let (there, count) = (Arc::clone(&now), std::sync::atomic::AtomicUsize::new(0));
    let served = serve_with(config, move |request| {
        let resource = there.lock().clone();
        answer(count.fetch_add(1, std::sync::atomic::Ordering::SeqCst), &resource, request)
    });
    Film { served, now }
}

impl Film {
    fn replace(&self, resource: Resource) {
        *self.now.lock() = resource;
    }

    fn resource(&self) -> Resource {
        self.now.lock().clone()
    }

    async fn range(&self, range: &str) -> Answer {
        self.served.get_with(PATH, &format!("Range: {range}\r\n")).await
    }

    /// Asks for a range of the present version, and gets it.
    async fn part(&self, first: usize, end: usize) -> Answer {
        let answer = self.range(&format!("bytes={first}-{}", end - 1)).await;
        let resource = self.resource();
        assert_eq!((answer.status, answer.whole), (206, true), "{}", answer.head);
        assert_eq!(answer.all("content-range"), resource.content_range(first, end));
        assert_eq!(answer.field("etag"), Some(&*resource.tag));
        assert!(answer.body == resource.body[first..end], "other bytes in {first}..{end}");
        answer
    }

    async fn whole(&self) -> Answer {
        let answer = self.served.get(PATH).await;
        let resource = self.resource();
        assert_eq!((answer.status, answer.whole), (200, true), "{}", answer.head);
        assert_eq!(answer.all("content-length"), resource.body.len().to_string());
        assert_eq!((answer.field("etag"), answer.field("content-range")), (Some(&*resource.tag), None));
        assert!(answer.body[..] == resource.body[..], "other bytes");
        answer
    }

    /// What was asked of the origin: Range, and whether under If-Range.
    fn asked(&self) -> Vec<(String, bool)> {
        let asked = |request: &Recorded| (request.field("range").unwrap_or("all").to_owned(), request.field("if-range").is_some());
        self.served.origin.requests(PATH).iter().map(asked).collect()
    }

    /// How many blocks are stored.
    async fn here(&self) -> u64 {
        self.served.explain(PATH).await["stored"]["blocks"]["here"].as_u64().unwrap_or(0)
    }

    async fn until_here(&self, count: u64) {
        self.served.until_explained(PATH, &format!("{count} blocks"), |explained| explained["stored"]["blocks"]["here"] == count).await;
    }

    async fn metric(&self, outcome: &str) -> u64 {
        self.served.metric(&format!("tiercel_cache_blocks_total{{outcome=\"{outcome}\"}}")).await
    }
}

/// A block as it is asked for.
fn block(number: usize) -> String {
    format!("bytes={}-{}", number * BLOCK, ((number + 1) * BLOCK).min(LENGTH) - 1)
}

#[tokio::test]
async fn a_response_larger_than_may_be_stored_whole_is_stored_in_blocks() {
    let film = film();
    let first = film.whole().await;
    assert!(first.says("fwd=uri-miss") && first.says("stored"), "{}", first.head);
    let blocks = (0..6).map(|number| (block(number), true));
    assert_eq!(film.asked(), [("all".to_owned(), false)].into_iter().chain(blocks).collect::<Vec<_>>());
    film.until_here(6).await;
    let again = film.whole().await;
    assert!(again.says("hit") && again.says("detail=MEMORY") && again.field("age").is_some(), "{}", again.head);
    assert!(film.part(BLOCK - 5, BLOCK + 5).await.says("hit"));
    assert_eq!(film.served.origin.count(PATH), 7);
    assert_eq!((film.metric("fetched").await, film.metric("failed").await), (6, 0));
}

#[tokio::test]
async fn ranges_fetch_the_blocks_that_they_touch_and_no_others() {
    let film = film();
    let first = film.part(BLOCK + 10, BLOCK + 20).await;
    assert!(first.says("fwd=uri-miss") && first.says("fwd-status=206") && first.says("stored"), "{}", first.head);
    film.until_here(1).await;
    assert!(film.part(BLOCK + 10, BLOCK + 20).await.says("hit"), "the same");
    assert!(film.part(BLOCK, 2 * BLOCK).await.says("hit"), "all of the block");
    assert_eq!(film.asked(), [(block(1), false)]);
    let partial = film.part(2 * BLOCK - 1, 2 * BLOCK + 1).await;
    assert!(partial.says("fwd=partial") && !partial.says("hit"), "{}", partial.head);
    assert_eq!(film.asked()[1..], [(block(2), true)], "only what is missing, under If-Range");
    film.until_here(2).await;
    let suffix = film.range("bytes=-10").await;
    assert_eq!((suffix.status, suffix.all("content-range")), (206, film.resource().content_range(LENGTH - 10, LENGTH)));
    assert!(suffix.says("fwd=partial") && suffix.says("fwd-status=206") && suffix.body == film.resource().body[LENGTH - 10..]);
    assert_eq!(film.asked()[2..], [(block(5), true)]);
    film.until_here(3).await;
    let whole = film.whole().await;
    assert!(whole.says("fwd=partial"), "{}", whole.head);
    let mut rest = film.asked()[3..].to_vec();
    rest.sort();
    assert_eq!(rest, [0, 3, 4].map(|number| (block(number), true)));
}

#[tokio::test]
async fn several_ranges_heads_conditions_and_416_are_answered_out_of_blocks() {
    let film = film();
    let several = film.range(&format!("bytes={}-{},0-9", 3 * BLOCK, 3 * BLOCK + 9)).await;
    let body = film.resource().body;
    let boundary = several.field("content-type").and_then(|kind| kind.strip_prefix("multipart/byteranges; boundary=")).expect("multipart");
    let part = |first: usize| {
        let range = film.resource().content_range(first, first + 10);
        [format!("\r\n--{boundary}\r\ncontent-range: {range}\r\n\r\n").as_bytes(), &body[first..first + 10]].concat()
    };
    assert_eq!((several.status, several.whole), (206, true));
    assert!(several.body == [part(3 * BLOCK), part(0), format!("\r\n--{boundary}--\r\n").into_bytes()].concat());
    film.until_here(2).await;
    let asked = film.served.origin.count(PATH);
    let beyond = film.range(&format!("bytes={LENGTH}-")).await;
    assert_eq!((beyond.status, beyond.all("content-range")), (416, format!("bytes */{LENGTH}")));
    let head = film.served.ask("HEAD", PATH, "Range: bytes=0-1\r\n", "").await;
    assert_eq!((head.status, head.all("content-length"), head.says("hit")), (200, LENGTH.to_string(), true), "{}", head.head);
    for (lines, status) in [
        ("If-None-Match: \"v1\"\r\n", 304),
        ("If-Match: \"v2\"\r\n", 412),
        ("Range: bytes=0-9\r\nIf-Range: \"v1\"\r\n", 206),
        ("Range: bytes=0-9\r\nCache-Control: only-if-cached\r\n", 206),
        ("Cache-Control: only-if-cached\r\n", 504),
    ] {
        let answer = film.served.get_with(PATH, lines).await;
        assert_eq!(answer.status, status, "{lines}: {}", answer.head);
    }
    assert_eq!(film.served.origin.count(PATH), asked, "nothing of all this needs the origin");
    let other = film.served.get_with(PATH, "Range: bytes=0-9\r\nIf-Range: \"v2\"\r\n").await;
    assert!(other.status == 200 && other.body[..] == body[..], "{}", other.head);
}

#[tokio::test]
async fn what_fits_one_block_is_stored_whole() {
    let film = film();
    film.replace(Resource::new("\"small\"", 300));
    film.part(5, 10).await;
    assert_eq!(film.asked(), [(block(0), false)]);
    let explained = film.served.until_stored(PATH).await;
    assert_eq!((&explained["stored"]["status"], &explained["stored"]["blocks"]), (&json!(200), &Value::Null));
    assert!(film.whole().await.says("hit"));
    assert_eq!(film.served.origin.count(PATH), 1);
}

#[tokio::test]
async fn each_block_is_fetched_once_for_all_who_want_it() {
    let gate = Gate::new();
    let held = gate.clone();
    let film = film_with(CONFIG, move |_, resource, request| resource.answer(request).after(&held));
    let mut clients = Vec::new();
    for number in 0..100 {
        let (first, end) = (number * 3000, LENGTH.min(number * 3000 + 40_000));
        let mut client = film.served.client().await;
        client.send(request("GET", PATH, &format!("Range: bytes={first}-{}\r\n", end - 1), "")).await;
        clients.push((client, first, end));
    }
    film.served.until_waiting(99).await;
    gate.open();
    let resource = film.resource();
    for (mut client, first, end) in clients {
        let answer = client.answer(false).await.expect("an answer");
        assert_eq!((answer.status, answer.whole, answer.all("content-range")), (206, true, resource.content_range(first, end)));
        assert!(answer.body == resource.body[first..end], "other bytes in {first}..{end}");
    }
    let mut asked: Vec<String> = film.asked().into_iter().map(|(range, _)| range).collect();
    asked.sort();
    let mut blocks: Vec<String> = (0..6).map(block).collect();
    blocks.sort();
    assert_eq!(asked, blocks);
    assert!(film.metric("collapsed").await > 0);
}

#[tokio::test]
async fn another_version_before_the_first_byte_is_another_answer() {
    let film = film();
    film.part(0, 10).await;
    film.until_here(1).await;
    film.replace(Resource::new("\"v2\"", LENGTH + 77));
    assert_eq!(film.range("bytes=0-9").await.field("etag"), Some("\"v1\""), "fresh: nobody knows yet");
    film.part(BLOCK, BLOCK + 10).await;
    film.part(0, 10).await;
    film.whole().await;
    assert_eq!(film.metric("other_version").await, 1);
}

#[tokio::test]
async fn another_version_after_the_first_byte_ends_the_connection() {
    let film = film();
    let old = film.resource();
    film.part(0, 10).await;
    film.until_here(1).await;
    film.replace(Resource::new("\"v2\"", LENGTH));
    let mixed = film.served.get(PATH).await;
    assert_eq!((mixed.status, mixed.whole, mixed.field("etag")), (200, false, Some("\"v1\"")), "{}", mixed.head);
    assert!(mixed.body.len() <= BLOCK && mixed.body[..] == old.body[..mixed.body.len()], "what was sent is of one version");
    film.whole().await;
}

#[tokio::test]
async fn a_purge_reaches_every_block() {
    let film = film_with(CONFIG, |_, resource, request| resource.answer(request).header("Surrogate-Key", "films"));
    for purge in [json!({"urls": [format!("http://{HOST}{PATH}")]}), json!({"keys": ["films"]}), json!({"everything": true})] {
        film.part(0, 2 * BLOCK).await;
        film.until_here(2).await;
        let before = film.served.origin.count(PATH);
        let (status, answer) = film.served.admin("POST", "/v1/purge", &purge.to_string()).await;
        assert_eq!(status, 200, "{answer}");
        assert!(film.part(10, 20).await.is_miss(), "{purge}");
        film.until_here(1).await;
        assert_eq!(film.served.origin.count(PATH), before + 1, "{purge}: the other block went, too");
    }
}

#[tokio::test]
async fn a_purge_between_two_blocks_spares_neither() {
    let film = film();
    film.part(0, 2 * BLOCK).await;
    film.until_here(2).await;
    let (status, _) = film.served.admin("POST", "/v1/purge", &json!({"urls": [format!("http://{HOST}{PATH}")]}).to_string()).await;
    assert_eq!(status, 200);
    // The record comes anew with one block: the other one is older than the purge, though of the same version.
    film.part(0, 10).await;
    film.until_here(1).await;
    assert!(film.part(BLOCK, BLOCK + 10).await.says("fwd=partial"));
    let ranges: Vec<String> = film.asked().into_iter().map(|(range, _)| range).collect();
    assert_eq!(ranges, [block(0), block(1), block(0), block(1)]);
}

#[tokio::test]
async fn nobody_joins_a_fetch_of_a_block_that_began_before_a_purge() {
    let (at_head, in_body) = (Gate::new(), Gate::new());
    let held = (at_head.clone(), in_body.clone());
    let film = film_with(CONFIG, move |number, resource, request| {
        if number > 0 {
            return resource.answer(request);
        }
        let (head, rest) = (&resource.body[..100], &resource.body[100..BLOCK]);
        let lines = format!("ETag: {}\r\nCache-Control: max-age=60\r\nContent-Length: {BLOCK}\r\n", resource.tag);
        let lines = format!("{lines}Content-Range: {}\r\n\r\n", resource.content_range(0, BLOCK));
        Script::raw([b"HTTP/1.1 206 Partial\r\n", lines.as_bytes(), head].concat())
            .after(&held.0)
            .then(Step::Wait(held.1.clone()))
            .then(Step::Bytes(rest.to_vec()))
    });
    let old = film.resource();
    let mut early = film.served.client().await;
    early.send(request("GET", PATH, &format!("Range: bytes=0-{}\r\n", BLOCK - 1), "")).await;
    film.served.origin.until("its request", |origin| origin.count(PATH) == 1).await;
    let (status, _) = film.served.admin("POST", "/v1/purge", &json!({"everything": true}).to_string()).await;
    assert_eq!(status, 200);
    // The same tag and length: only the purge tells it from what was there.
    film.replace(Resource { tag: old.tag.clone(), ..Resource::new("\"other\"", LENGTH) });
    at_head.open();
    early.until("\r\n\r\n").await.expect("its head");
    film.part(0, BLOCK).await;
    in_body.open();
    let body = early.take_exactly(BLOCK).await;
    assert!(body == old.body[..BLOCK] || body == film.resource().body[..BLOCK], "who asked before the purge may get either");
    film.part(0, BLOCK).await;
}

#[tokio::test]
async fn a_stale_record_is_confirmed_and_its_blocks_are_used() {
    let film = film();
    film.part(0, BLOCK).await;
    film.until_here(1).await;
    film.served.soften().await;
    let confirmed = film.part(5, 10).await;
    assert!(confirmed.says("fwd=stale") && confirmed.says("fwd-status=304"), "{}", confirmed.head);
    let last = film.served.last(PATH);
    assert_eq!((last.field("if-none-match"), last.field("range")), (Some("\"v1\""), Some(&*block(0))));
    assert!(film.part(5, 10).await.says("hit"));
    film.served.soften().await;
    film.replace(Resource::new("\"v2\"", LENGTH - 5));
    film.part(5, 10).await;
    assert_eq!(film.served.origin.count(PATH), 3, "the answer to the condition is the first block of the new version");
    film.whole().await;
}

#[tokio::test]
async fn a_further_block_updates_the_record() {
    let film = film_with(CONFIG, |number, resource, request| resource.answer(request).header("X-Turn", &number.to_string()));
    film.part(0, 10).await;
    film.until_here(1).await;
    assert_eq!(film.part(0, 10).await.field("x-turn"), Some("0"));
    film.replace(Resource { cache_control: "max-age=7200".to_owned(), ..film.resource() });
    film.part(BLOCK, BLOCK + 10).await;
    let updated = film.part(0, 10).await;
    assert_eq!((updated.field("x-turn"), updated.field("cache-control")), (Some("1"), Some("max-age=7200")), "{}", updated.head);
    assert!(updated.says("hit"));
    assert_eq!(film.served.ask("HEAD", PATH, "", "").await.all("content-length"), LENGTH.to_string());
}

#[tokio::test]
async fn a_block_lives_as_long_as_the_record_that_was_confirmed() {
    let config = CONFIG.replace(" }", ", keep_stale = \"0s\", stale_if_error = \"0s\" }");
    let film = film_with(&config, |_, resource, request| resource.answer(request));
    film.replace(Resource { cache_control: "max-age=60".to_owned(), ..film.resource() });
    film.part(0, 10).await;
    film.until_here(1).await;
    film.replace(Resource { cache_control: "max-age=7200".to_owned(), ..film.resource() });
    film.part(BLOCK, BLOCK + 10).await; // whose answer makes the record live longer
    film.until_here(2).await;
    let stores = async || film.served.metric("tiercel_cache_stores_total{outcome=\"stored\",tier=\"memory\"}").await;
    let before = stores().await;
    film.part(0, 10).await;
    assert_eq!(stores().await, before + 1, "the first block is stored anew, for longer");
    film.part(0, 10).await;
    film.part(BLOCK, BLOCK + 10).await;
    assert_eq!(stores().await, before + 1, "once, and only that one");
}

#[tokio::test]
async fn variants_with_the_same_tag_do_not_mix() {
    let film = film_with(CONFIG, |_, resource, request| {
        let german = request.field("accept-language") == Some("de");
        let other = Resource { tag: resource.tag.clone(), ..Resource::new("\"de\"", LENGTH) };
        if german { other.answer(request) } else { resource.answer(request) }.header("Vary", "Accept-Language")
    });
    let german = Resource::new("\"de\"", LENGTH).body;
    for _ in 0..2 {
        for (language, body) in [("en", film.resource().body), ("de", german.clone())] {
            let answer = film.served.get_with(PATH, &format!("Accept-Language: {language}\r\nRange: bytes=10-{}\r\n", BLOCK + 10)).await;
            assert!(answer.status == 206 && answer.body == body[10..=BLOCK + 10], "{language}: {}", answer.head);
        }
    }
}

#[tokio::test]
async fn a_change_of_the_size_takes_effect_without_mixing() {
    let film = film();
    film.part(0, BLOCK + 10).await;
    film.until_here(2).await;
    film.served.reload(&CONFIG.replace("\"64KiB\"", "\"128KiB\"")).await;
    film.part(BLOCK, 3 * BLOCK).await;
    film.served.soften().await;
    film.part(0, 10).await;
    film.served.soften().await;
    film.replace(Resource::new("\"v2\"", LENGTH));
    film.part(3 * BLOCK, 3 * BLOCK + 10).await;
    let explained = film.served.explain(PATH).await;
    assert_eq!(explained["stored"]["blocks"]["size"], 2 * BLOCK);
    film.served.reload(&CONFIG.replace("\"64KiB\"", "\"0B\"")).await;
    film.whole().await;
}

#[tokio::test]
async fn no_more_is_fetched_than_the_client_takes_and_a_block() {
    const MIB: usize = 1 << 20;
    let config = "cache = { blocks = \"1MiB\", max_object_size = \"1MiB\", range_whole_max = \"1MiB\" }\n";
    let film = film_with(config, |_, resource, request| resource.answer(request));
    film.replace(Resource::new("\"huge\"", 64 * MIB));
    let mut client = Client::narrow(film.served.tiercel.http).await;
    client.send(request("GET", PATH, "", "")).await;
    client.until("\r\n\r\n").await.expect("a head");
    let mut taken = 0;
    while taken < 24 * MIB {
        taken += client.take(MIB).await.len();
        let fetched = film.served.origin.count(PATH) * MIB;
        // What is on its way: the server's socket holds 4 MiB as a rule, the client's less than one.
        assert!(fetched <= taken + 16 * MIB, "{fetched} bytes are fetched, {taken} are taken");
    }
}

#[tokio::test]
async fn an_origin_that_ignores_ranges_is_asked_for_the_whole() {
    let film = film_with(WHOLE, |_, resource, _| resource.told(Script::ok(resource.body.to_vec())));
    film.part(BLOCK, BLOCK + 10).await;
    film.served.get(PATH).await;
    let stored = film.served.until_stored(PATH).await;
    assert_eq!(stored["stored"]["blocks"], Value::Null, "{stored}");
    film.served.until_hit(PATH, "").await;
    assert!(film.part(7, 9).await.says("hit"));
}

#[tokio::test]
async fn an_origin_that_lies_about_ranges_is_asked_for_the_whole() {
    for lies_from in [0, 1] {
        let film = film_with(WHOLE, move |number, resource, request| match request.field("range") {
            Some(range) if number >= lies_from => {
                let (first, end) = resource.part(range).expect("a range");
                // One byte further than it says.
                let body = resource.body[first + 1..(end + 1).min(resource.body.len())].to_vec();
                resource.told(Script::status(206, body)).header("Content-Range", &resource.content_range(first + 1, end + 1))
            }
            _ => resource.answer(request),
        });
        film.part(0, 10).await;
        film.part(BLOCK, BLOCK + 10).await;
        film.part(BLOCK - 10, BLOCK + 10).await;
        film.whole().await;
    }
}

#[tokio::test]
async fn responses_that_no_strong_tag_names_are_not_kept_in_blocks() {
    for tag in ["W/\"v1\"", "v1"] {
        let film = film_with(WHOLE, |_, resource, request| resource.answer(request));
        film.replace(Resource { tag: tag.to_owned(), ..film.resource() });
        film.part(BLOCK, BLOCK + 10).await;
        film.whole().await;
        let stored = film.served.until_stored(PATH).await;
        assert_eq!(stored["stored"]["blocks"], Value::Null, "{stored}");
    }
}

#[tokio::test]
async fn a_block_that_breaks_off_is_not_stored_and_ends_the_connection() {
    let gate = Gate::new();
    let held = gate.clone();
    let film = film_with(CONFIG, move |number, resource, request| {
        let range = request.field("range").and_then(|range| resource.part(range));
        match (number, range) {
            (1, Some((first, end))) => {
                let head = format!(
                    "HTTP/1.1 206 Partial\r\nETag: {}\r\nCache-Control: max-age=60\r\nContent-Range: {}\r\nContent-Length: {}\r\n\r\n",
                    resource.tag,
                    resource.content_range(first, end),
                    end - first
                );
                Script::raw([head.as_bytes(), &resource.body[first..first + 1000]].concat())
                    .then(Step::Wait(held.clone()))
                    .then(Step::Close)
            }
            _ => resource.answer(request),
        }
    });
    film.part(0, 10).await;
    film.until_here(1).await;
    let mut client = film.served.client().await;
    client.send(request("GET", PATH, &format!("Range: bytes={BLOCK}-{}\r\n", 2 * BLOCK - 1), "")).await;
    let head = client.until("\r\n\r\n").await.expect("a head as soon as there are bytes");
    assert!(head.starts_with("HTTP/1.1 206"), "{head}");
    gate.open();
    assert!(client.rest().await == film.resource().body[BLOCK..BLOCK + 1000], "what came, and then the end of the connection");
    assert_eq!(film.here().await, 1);
    film.part(BLOCK, 2 * BLOCK).await;
}

#[tokio::test]
async fn a_part_that_says_it_is_all_and_ends_early_is_not_stored_as_all() {
    let film = film_with(WHOLE, |number, resource, request| match (number, request.field("range")) {
        // In chunks: no Content-Length gives it away.
        (0, Some(_)) => {
            let head = "HTTP/1.1 206 Partial\r\nContent-Range: bytes 0-999/1000\r\nETag: \"small\"\r\nCache-Control: max-age=60\r\n";
            let head = format!("{head}Transfer-Encoding: chunked\r\n\r\n1f4\r\n");
            Script::raw([head.as_bytes(), &resource.body[..500], b"\r\n0\r\n\r\n"].concat())
        }
        _ => resource.answer(request),
    });
    film.replace(Resource::new("\"small\"", 1000));
    let short = film.range("bytes=0-").await;
    assert!(!short.whole || short.status == 502, "{}", short.head);
    film.part(400, 1000).await;
    film.whole().await;
}

#[tokio::test]
async fn only_get_is_answered_in_blocks() {
    let config = CONFIG.replace(" }", ", body_key = { methods = [\"POST\", \"QUERY\"] } }");
    let film = film_with(&config, |_, resource, request| resource.answer(request));
    for method in ["POST", "QUERY"] {
        let answer = film.served.ask(method, PATH, "Content-Type: text/plain\r\n", "q=1").await;
        assert!(answer.status == 200 && answer.body[..] == film.resource().body[..], "{method}: {}", answer.head);
    }
    assert_eq!(film.asked(), [("all".to_owned(), false), ("all".to_owned(), false)], "each is sent once");
}

#[tokio::test]
async fn a_block_that_came_for_one_client_alone_is_given_to_no_other() {
    let gate = Gate::new();
    let held = gate.clone();
    let film = film_with(CONFIG, move |number, resource, request| match number {
        0 => resource.answer(request),
        _ => Resource { cache_control: "private, max-age=60".to_owned(), ..resource.clone() }.answer(request).after(&held),
    });
    film.part(0, 10).await;
    film.until_here(1).await;
    let mut clients = Vec::new();
    for _ in 0..2 {
        let mut client = film.served.client().await;
        client.send(request("GET", PATH, &format!("Range: bytes={BLOCK}-{}\r\n", BLOCK + 9), "")).await;
        clients.push(client);
    }
    film.served.until_waiting(1).await; // for the fetch that the other leads
    gate.open();
    for mut client in clients {
        let answer = client.answer(false).await.expect("an answer");
        assert!(answer.status == 206 && answer.body == film.resource().body[BLOCK..BLOCK + 10], "{}", answer.head);
    }
    assert_eq!(film.served.origin.count(PATH), 3, "one has been asked for by each");
}

#[tokio::test]
async fn an_origin_that_fails_before_the_first_byte_is_an_error() {
    let film =
        film_with(CONFIG, |number, resource, request| if number == 1 { Script::status(503, "no") } else { resource.answer(request) });
    film.part(0, 10).await;
    film.until_here(1).await;
    let failed = film.range(&format!("bytes={BLOCK}-{}", BLOCK + 9)).await;
    assert_eq!(failed.status, 502, "{}", failed.head);
    assert!(film.part(0, 10).await.says("hit"), "what is here is used");
    film.part(BLOCK, BLOCK + 10).await;
}

#[tokio::test]
async fn what_the_origin_forbids_to_store_is_not_stored_in_blocks_either() {
    let film = film();
    film.replace(Resource { cache_control: "no-store".to_owned(), ..film.resource() });
    for _ in 0..2 {
        film.part(BLOCK, BLOCK + 10).await;
        film.whole().await;
    }
    assert_eq!(film.served.explain(PATH).await["stored"], Value::Null);
}

#[tokio::test]
async fn a_response_larger_than_the_cache_goes_through_it_in_blocks() {
    let config = "cache = { blocks = \"1MiB\", max_object_size = \"1MiB\", range_whole_max = \"1MiB\" }\nmemory = { limit = \"32MiB\", policy = \"lru\" }\n";
    let film = film_with(config, |_, resource, request| resource.answer(request));
    film.replace(Resource::new("\"huge\"", 30 << 20));
    for _ in 0..2 {
        film.whole().await;
    }
    let (mut first, body) = (0, film.resource().body.len());
    while first < body {
        film.part(first, (first + 10).min(body)).await;
        first += 7 << 20;
    }
}

#[tokio::test]
async fn ranges_at_random_come_out_right() {
    let film = film();
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    let mut below = |limit: usize| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) as usize % limit
    };
    for _ in 0..40 {
        let first = below(LENGTH);
        let end = (first + 1 + below(3 * BLOCK)).min(LENGTH);
        film.part(first, end).await;
    }
    film.whole().await;
    assert!(film.served.origin.count(PATH) <= 6, "{:?}", film.asked());
}
