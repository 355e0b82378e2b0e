//! Slow readers and large bodies: memory stays bounded, and nobody is held up for long.

use super::*;
use std::sync::LazyLock;
use tokio::io::AsyncReadExt;

const PATH: &str = "/large";
const LARGE: usize = 64 << 20;
/// A body of which nobody keeps more than a little, and readers whose patience with each other is short.
const NOT_KEPT: &str = "memory.limit = \"256MiB\"\ncache.max_object_size = \"1MiB\"\nfill.lag = \"1MiB\"\nfill.stall = \"500ms\"";
/// What lag, sockets, buffers and a debug build may take.
const GROWTH: u64 = 32 << 20;

static BODY: LazyLock<Vec<u8>> = LazyLock::new(|| pattern(LARGE));

/// The large body in chunks of 1 MiB; a part of it to a range.
fn large(request: &Recorded, fields: &str) -> Script {
    let first = request.field("range").and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse::<usize>().ok());
    if let Some(first) = first {
        let last = LARGE - 1;
        return Script::raw(format!(
            "HTTP/1.1 206 Partial Content\r\n{fields}Content-Range: bytes {first}-{last}/{LARGE}\r\nContent-Length: {}\r\n\r\n",
            LARGE - first
        ))
        .then(Step::Bytes(BODY[first..].to_vec()));
    }
    let head = format!("HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\n{fields}Transfer-Encoding: chunked\r\n\r\n");
    let mut steps = vec![Step::Bytes(head.into())];
    for chunk in BODY.chunks(1 << 20) {
        steps.push(Step::Bytes(format!("{:x}\r\n", chunk.len()).into()));
        steps.push(Step::Bytes(chunk.to_vec()));
        steps.push(Step::Bytes(b"\r\n".to_vec()));
    }
    steps.push(Step::Bytes(b"0\r\n\r\n".to_vec()));
    Script::steps(steps)
}

/// One that reads at once, and `count` that do not; all of them were there before the head.
async fn one_fast_and_slow(stage: &Stage, gate: &Gate, count: usize) -> Vec<Client> {
    let mut clients = stage.line_up(PATH, count).await;
    let before = stage.memory("VmRSS:");
    gate.open();
    let fast = clients.remove(0).answer(false).await.expect("an answer");
    assert!(fast.whole && fast.body == *BODY, "the fast one gets everything while the slow ones read nothing");
    let grown = stage.memory("VmHWM:").saturating_sub(before);
    assert!(grown < GROWTH, "grown by {grown} bytes");
    clients
}

/// What it got is right, and known not to be all.
fn is_cut_off(answer: &Answer) {
    assert!(!answer.whole, "{} bytes taken for the whole", answer.body.len());
    let wrong = answer.body.iter().zip(&**BODY).position(|(got, want)| got != want);
    assert_eq!(wrong, None, "the first wrong byte of {}", answer.body.len());
}

#[tokio::test]
async fn a_slow_reader_with_a_strong_validator_goes_on_by_itself() {
    let gate = Gate::new();
    let held = gate.clone();
    let stage = Stage::with(NOT_KEPT, move |number, request| {
        let script = large(request, "ETag: \"v1\"\r\n");
        if number == 0 { script.after(&held) } else { script }
    });
    let slow = one_fast_and_slow(&stage, &gate, 1).await;
    for answer in answers(slow).await {
        assert!(answer.whole && answer.body == *BODY, "{} of {LARGE} bytes", answer.body.len());
    }
    assert_eq!(stage.metric("tiercel_bound_reached_total{bound=\"reader_detached\"}").await, 1);
    let requests = stage.origin.requests(PATH);
    assert_eq!(requests.len(), 2);
    let (range, condition) = (requests[1].field("range"), requests[1].field("if-range"));
    assert!(range.is_some_and(|range| range.starts_with("bytes=") && range.ends_with('-')) && condition == Some("\"v1\""));
}

#[tokio::test]
async fn a_slow_reader_whose_rest_is_another_body_is_aborted() {
    let gate = Gate::new();
    let held = gate.clone();
    let stage = Stage::with(NOT_KEPT, move |number, request| {
        if number == 0 { large(request, "ETag: \"v1\"\r\n").after(&held) } else { large(request, "ETag: \"v2\"\r\n") }
    });
    for answer in answers(one_fast_and_slow(&stage, &gate, 1).await).await {
        is_cut_off(&answer);
    }
    assert_eq!(stage.origin.count(PATH), 2);
}

#[tokio::test]
async fn many_slow_readers_without_a_validator_are_aborted_and_cost_no_memory() {
    let gate = Gate::new();
    let held = gate.clone();
    let stage = Stage::with(NOT_KEPT, move |_, request| large(request, "").after(&held));
    for answer in answers(one_fast_and_slow(&stage, &gate, 8).await).await {
        is_cut_off(&answer);
    }
    assert_eq!(stage.origin.count(PATH), 1);
}

#[tokio::test]
async fn what_is_stored_waits_for_no_reader() {
    const LENGTH: usize = 24 << 20;
    let gate = Gate::new();
    let held = gate.clone();
    let stage = Stage::with("memory.limit = \"256MiB\"\nfill.stall = \"100ms\"", move |_, _| fresh(&BODY[..LENGTH]).after(&held));
    let slow = stage.line_up(PATH, 2).await;
    gate.open();
    let fast = stage.get(PATH).await;
    assert!(fast.whole && fast.body == BODY[..LENGTH]);
    stage.until_metric("tiercel_coalesce_in_flight", 0).await;
    for answer in answers(slow).await {
        assert!(answer.whole && answer.body == BODY[..LENGTH]);
    }
    assert_eq!(stage.origin.count(PATH), 1);
}

#[tokio::test]
async fn what_memory_for_fills_cannot_take_goes_to_everybody_alone_and_unstored() {
    let gate = Gate::new();
    let held = gate.clone();
    // A quarter of the limit is for fills.
    let stage = Stage::with("memory.limit = \"64MiB\"", move |number, _| {
        let script = fresh(&BODY[..24 << 20]);
        if number == 0 { script.after(&held) } else { script }
    });
    let clients = stage.line_up(PATH, 1).await;
    gate.open();
    for answer in answers(clients).await {
        assert!(answer.whole && answer.body == BODY[..24 << 20]);
    }
    assert_eq!(stage.origin.count(PATH), 2);
    assert!(stage.metric("tiercel_bound_reached_total{bound=\"fill_memory\"}").await > 0);
    assert_eq!(stage.metric("tiercel_fill_bytes").await, 0);
}

#[tokio::test]
async fn a_single_slow_reader_holds_the_origin_back() {
    let stage = Stage::with(NOT_KEPT, |_, request| large(request, ""));
    LazyLock::force(&BODY);
    let before = stage.memory("VmRSS:");
    let mut client = stage.send("GET", PATH, &[]).await;
    client.until("\r\n\r\n").await.expect("a head");
    let mut piece = vec![0; 1 << 20];
    for _ in 0..(LARGE >> 20) - 1 {
        client.stream.read_exact(&mut piece).await.expect("more of it");
        let grown = stage.memory("VmRSS:").saturating_sub(before);
        assert!(grown < GROWTH, "grown by {grown} bytes");
    }
    client.until("\r\n0\r\n\r\n").await.expect("all of it");
}

#[tokio::test]
async fn what_is_declared_larger_than_may_be_stored_goes_to_everybody_alone() {
    let (first, others) = (Gate::new(), Gate::new());
    let (first_held, others_held) = (first.clone(), others.clone());
    let stage = Stage::with("cache.max_object_size = \"100KiB\"", move |number, _| {
        fresh(&BODY[..200_000]).after(if number == 0 { &first_held } else { &others_held })
    });
    let clients = stage.line_up(PATH, 3).await;
    first.open();
    stage.origin.until("everybody asks, in parallel", |origin| origin.count(PATH) == 4).await;
    others.open();
    for answer in answers(clients).await {
        assert!(answer.whole && answer.body == BODY[..200_000]);
    }
}

#[tokio::test]
async fn nobody_joins_what_has_outgrown_what_may_be_stored() {
    const TEXT: &[u8] = &[b'x'; 200_000];
    let gate = Gate::new();
    let held = gate.clone();
    let stage = Stage::with("cache.max_object_size = \"100KiB\"", move |number, _| {
        let head = "HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\nTransfer-Encoding: chunked\r\n\r\n";
        let script = Script::raw(head).then(Step::Bytes([b"30d40\r\n", TEXT, b"\r\n"].concat()));
        let script = if number == 0 { script.then(Step::Wait(held.clone())) } else { script };
        script.then(Step::Bytes(b"6\r\nthe en\r\n0\r\n\r\n".to_vec()))
    });
    let mut first = stage.send("GET", PATH, &[]).await;
    first.until(&"x".repeat(10_000)).await.expect("some of it");
    stage.until_metric("tiercel_coalesce_in_flight", 0).await;
    let second = stage.get(PATH).await;
    assert!(second.whole && second.body.ends_with(b"the en"), "an answer while the first is held");
    assert_eq!(stage.origin.count(PATH), 2);
    gate.open();
    first.until("the en").await.expect("all of it");
    assert_eq!(stage.get(PATH).await.body.len(), 200_006);
    assert_eq!(stage.origin.count(PATH), 3, "nothing was stored");
}
