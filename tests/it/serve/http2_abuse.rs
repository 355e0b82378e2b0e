//! Clients that abuse HTTP/2, frame by frame, against the running binary: the connection ends with the right error, or the
//! stream, where only that is wrong; others are served on, and memory stays where it was.

use super::*;
use crate::support::h2::{
    CONTINUATION, DATA, END, END_HEADERS, Frame, GET, GOAWAY, HEADERS, PING, POST, PRIORITY, RST_STREAM, Raw, SETTINGS, WINDOW_UPDATE, ask,
    connect, frame, get, line,
};
use crate::support::origin::Gate;
use tokio::sync::watch;

const PROTOCOL_ERROR: u32 = 1;
const FLOW_CONTROL_ERROR: u32 = 3;
const FRAME_SIZE_ERROR: u32 = 6;
const REFUSED_STREAM: u32 = 7;
const ENHANCE_YOUR_CALM: u32 = 0xb;

/// Bytes that the process may hold more after an abuse than before. Beyond what any of these would take if it were kept.
const GROWTH_MAX: u64 = 48 << 20;

/// A head that does not come would not end a connection while a test lasts.
const H2C: &str = "[limits]\nwrite_timeout = \"400ms\"\nheader_timeout = \"1h\"\n[listeners.http]\nh2c = true\n";

/// Those who go on asking during an abuse.
#[derive(Default)]
struct Others {
    /// How often both of them were answered.
    answered: watch::Sender<u64>,
}

impl Others {
    /// Waits until both were answered to what they asked after this call. Whoever abuses calls it with the abuse under way, so
    /// that answers which wait for its end never come.
    async fn are_answered(&self) {
        let (mut answered, asked_before) = (self.answered.subscribe(), *self.answered.borrow());
        // The first of the two answers may be to what was asked before.
        answered.wait_for(|count| *count >= asked_before + 2).await.expect("it is ours");
    }
}

fn guarded() -> Served {
    serve_with(H2C, |request| match request.path.as_str() {
        "/large" => fresh(&"x".repeat(4 << 20)),
        _ => fresh("stored"),
    })
}

impl Served {
    fn resident(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.tiercel.pid())).expect("it runs");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("its memory");
        line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") * 1024
    }

    /// Runs an abuse while others go on asking over both protocols; they are all answered, in the midst of it too, and memory
    /// stays.
    async fn while_others_ask<T>(&self, what: &str, abuse: impl AsyncFnOnce(&Others) -> T) -> T {
        let before = self.resident();
        let others = Others::default();
        let asking = async {
            let (mut second, mut first) = (connect(self.tiercel.http).await, self.client().await);
            loop {
                assert_eq!(ask(&mut second, get("/")).await.status(), 200, "{what}");
                assert_eq!(first.ask(request("GET", "/", "", "")).await.status, 200, "{what}");
                others.answered.send_modify(|count| *count += 1);
            }
        };
        let came = tokio::time::timeout(PATIENCE, async {
            tokio::select! {
                came = abuse(&others) => came,
                () = asking => unreachable!("they go on"),
            }
        });
        let came = came.await.expect(what);
        println!("{what}: both others were answered {} times meanwhile", *others.answered.borrow());
        let grown = self.resident().saturating_sub(before);
        println!("{what}: {} KiB more", grown >> 10);
        assert!(grown < GROWTH_MAX, "{what}: {grown} bytes more");
        came
    }

    async fn raw(&self) -> Raw {
        Raw::connect(self.tiercel.http, &[]).await
    }
}

fn reset(stream: u32) -> Vec<u8> {
    frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes())
}

fn asks(stream: u32) -> Vec<u8> {
    frame(HEADERS, END | END_HEADERS, stream, GET)
}

fn odd(count: u32) -> impl Iterator<Item = u32> {
    (0..count).map(|number| 2 * number + 1)
}

#[tokio::test]
async fn floods_end_their_connection_as_one_that_asks_for_too_much() {
    let served = guarded();
    served.get("/").await;
    let open_head = frame(HEADERS, END, 1, GET);
    let cases = [
        ("resets before anybody looked", odd(5_000).flat_map(|stream| [asks(stream), reset(stream)].concat()).collect(), "http2_errors"),
        ("settings", frame(SETTINGS, 0, 0, &[]).repeat(40_000), "http2_idle_frames"),
        ("pings", frame(PING, 0, 0, &[0; 8]).repeat(40_000), "http2_idle_frames"),
        ("answers to pings that nobody sent", frame(PING, END, 0, &[0; 8]).repeat(40_000), "http2_idle_frames"),
        ("priorities", frame(PRIORITY, 0, 3, &[0, 0, 0, 1, 9]).repeat(40_000), "http2_idle_frames"),
        ("priority updates (RFC 9218)", frame(0x10, 0, 0, &[0, 0, 0, 1, b'u', b'=', b'3']).repeat(40_000), "http2_idle_frames"),
        ("windows", frame(WINDOW_UPDATE, 0, 0, &1_u32.to_be_bytes()).repeat(40_000), "http2_idle_frames"),
        ("data that is empty", [frame(HEADERS, END_HEADERS, 1, POST), frame(DATA, 0, 1, &[]).repeat(40_000)].concat(), "http2_errors"),
        ("frames of no known type", frame(0xbe, 0, 0, &[1; 9]).repeat(40_000), "http2_idle_frames"),
        (
            "a head in frames without end",
            [&open_head[..], &frame(CONTINUATION, 0, 1, &line("x", "y").repeat(100)).repeat(20_000)].concat(),
            "http2_errors",
        ),
        ("a head in empty frames", [open_head.clone(), frame(CONTINUATION, 0, 1, &[]).repeat(40_000)].concat(), "http2_errors"),
        (
            "streams that we reset for windows too large",
            odd(2_000)
                .flat_map(|stream| [asks(stream), frame(WINDOW_UPDATE, 0, stream, &0x7fff_ffff_u32.to_be_bytes())].concat())
                .collect(),
            "http2_errors",
        ),
        (
            "heads that we reset",
            odd(2_000)
                .flat_map(|stream| frame(HEADERS, END | END_HEADERS, stream, &[GET, &line("connection", "close")].concat()))
                .collect(),
            "http2_errors",
        ),
    ];
    for (what, bytes, bound) in cases {
        let bytes: Vec<u8> = bytes;
        let before = served.bound(bound).await;
        let abuse = async |others: &Others| {
            let mut raw = served.raw().await;
            let (begun, rest) = bytes.split_at(bytes.len() / 1000); // within every bound
            raw.send(begun).await;
            others.are_answered().await;
            raw.send_to_the_end(rest).await
        };
        let code = served.while_others_ask(what, abuse).await;
        assert_eq!(code, Some(ENHANCE_YOUR_CALM), "{what}");
        served.until_metric(&format!("tiercel_bound_reached_total{{bound=\"{bound}\"}}"), before + 1).await;
    }
}

#[tokio::test]
async fn resets_are_counted_over_time_also_where_each_request_was_under_way() {
    let served = guarded();
    served.get("/").await;
    let abuse = async |others: &Others| {
        let mut raw = served.raw().await;
        for stream in odd(2_000) {
            if stream % 250 == 1 {
                others.are_answered().await;
            }
            raw.send(&[asks(stream), frame(PING, 0, 0, &[7; 8]), reset(stream)].concat()).await;
            let answered = |frame: &Frame| frame.kind == GOAWAY || frame.kind == PING && frame.flags == END;
            match raw.until(answered).await {
                Some(frame) if frame.kind == PING => {}
                goaway => return (stream, goaway.and_then(|frame| frame.code())),
            }
        }
        panic!("it goes on");
    };
    let (stream, code) = served.while_others_ask("resets, one by one", abuse).await;
    assert!(code == Some(ENHANCE_YOUR_CALM) && stream > 1_000, "{stream} {code:?}");
    served.until_metric("tiercel_bound_reached_total{bound=\"http2_resets\"}", 1).await;
}

#[tokio::test]
async fn who_takes_nothing_of_its_answers_is_cut_after_the_write_timeout() {
    let served = guarded();
    served.until_hit("/large", "").await;
    served.get("/").await;
    const LARGE: &[u8] = &[0x82, 0x86, 0x04, 6, b'/', b'l', b'a', b'r', b'g', b'e', 0x41, 12];
    let large = [LARGE, HOST.as_bytes()].concat();
    let requests: Vec<u8> = odd(100).flat_map(|stream| frame(HEADERS, END | END_HEADERS, stream, &large)).collect();
    for (what, settings) in [("closed windows", &[(4, 0)][..]), ("a connection window that stays as it was", &[(4, 1 << 30)])] {
        let before = served.bound("write_timeout").await;
        let abuse = async |others: &Others| {
            let mut raw = Raw::connect(served.tiercel.http, settings).await;
            raw.send(&requests).await;
            // It shows that it is alive, which is no progress.
            let mut pings = 0;
            loop {
                raw.send(&frame(PING, 0, 0, &[1; 8])).await;
                match raw.until(|frame| frame.kind == GOAWAY || frame.kind == PING && frame.flags == END).await {
                    Some(frame) if frame.kind == PING => pings += 1,
                    goaway => return (pings, goaway.and_then(|frame| frame.code())),
                }
                if pings == 1 {
                    others.are_answered().await;
                }
                tokio::time::sleep(Duration::from_millis(5)).await; // paces the pings; nothing waits for it
            }
        };
        let (pings, code) = served.while_others_ask(what, abuse).await;
        assert!(pings > 0 && code == Some(ENHANCE_YOUR_CALM), "{what}: {pings} {code:?}");
        assert_eq!(served.bound("write_timeout").await, before + 1, "{what}");
    }
    let not_reading = async |others: &Others| {
        let mut raw = Raw::connect(served.tiercel.http, &[(4, 1 << 30)]).await;
        raw.send(&[frame(WINDOW_UPDATE, 0, 0, &(1_u32 << 30).to_be_bytes()), requests.clone()].concat()).await;
        others.are_answered().await;
        served.until_metric("tiercel_bound_reached_total{bound=\"write_timeout\"}", 3).await;
    };
    served.while_others_ask("a client that does not read", not_reading).await;
}

#[tokio::test]
async fn heads_that_unpack_to_much_are_refused() {
    let served = guarded();
    served.get("/").await;
    // A line of 3,000 bytes into the dynamic table, then named again and again, a byte each.
    let value = [&[0x7f][..], &[0x80 | (2_900_u32 - 127) as u8 & 0x7f, ((2_900 - 127) >> 7) as u8], &[b'v'; 2_900]].concat();
    let entry = [&[0x40, 1, b'x'][..], &value].concat();
    let bomb = [GET, &entry, &[0xbe; 8_000]].concat();
    let crumbs = [GET, &line("cookie", "a=b").repeat(1_200)].concat();
    let many = [GET, &line("x", "1").repeat(129)].concat();
    let at_limit = [GET, &line("cookie", "a=b").repeat(100)].concat();
    let abuse = async |others: &Others| {
        for number in 0..50 {
            if number % 10 == 1 {
                others.are_answered().await;
            }
            let code = served.raw().await.send_to_the_end(&frame(HEADERS, END | END_HEADERS, 1, &bomb)).await;
            assert_eq!(code, Some(ENHANCE_YOUR_CALM), "a bomb");
        }
        let mut raw = served.raw().await;
        for (number, (what, head, is_answered)) in
            [("crumbs", &crumbs, false), ("lines", &many, false), ("crumbs within the limit", &at_limit, true)].into_iter().enumerate()
        {
            let stream = 2 * number as u32 + 1;
            raw.send(&frame(HEADERS, END | END_HEADERS, stream, head)).await;
            let answer = raw.until(|frame| frame.kind == HEADERS || frame.kind == GOAWAY).await.expect(what);
            assert_eq!((answer.kind, answer.stream), (HEADERS, stream), "{what}");
            // 200 is an entry of the static table; 431 is written out.
            assert_eq!(answer.payload[0] == 0x88, is_answered, "{what}: {:?}", answer.payload);
        }
    };
    served.while_others_ask("heads that unpack to much", abuse).await;
    assert!(served.bound("header_count").await >= 1);
}

#[tokio::test]
async fn what_is_malformed_ends_its_stream_with_an_error_and_no_other() {
    let served = guarded();
    served.until_hit("/", "").await;
    served.while_others_ask("what is malformed", async |others: &Others| send_malformed(&served, others).await).await;
}

async fn send_malformed(served: &Served, others: &Others) {
    let fetched = served.origin.count("/");
    let mut raw = served.raw().await;
    let (method, scheme, path, authority) = (&[0x82][..], &[0x86][..], &[0x84][..], &[0x41, 1, b'a'][..]);
    let mut stream = 1;
    for (what, head) in [
        ("a name in upper case", [GET, &line("X-Upper", "1")].concat()),
        ("Connection", [GET, &line("connection", "close")].concat()),
        ("Keep-Alive", [GET, &line("keep-alive", "1")].concat()),
        ("Transfer-Encoding", [GET, &line("transfer-encoding", "chunked")].concat()),
        ("Upgrade", [GET, &line("upgrade", "websocket")].concat()),
        ("TE other than trailers", [GET, &line("te", "gzip")].concat()),
        ("no path", [method, scheme, authority].concat()),
        ("no scheme", [method, path, authority].concat()),
        ("no method", [scheme, path, authority].concat()),
        ("a path twice", [GET, path].concat()),
        ("a pseudo-field after others", [method, scheme, path, &line("x", "1"), authority].concat()),
        ("a pseudo-field of answers", [GET, &[0x88]].concat()),
        ("a pseudo-field that nobody knows", [GET, &line(":x", "1")].concat()),
        ("an empty path", [method, scheme, &line(":path", "")[..], authority].concat()),
        ("a value with a line end", [GET, &line("x", "1\r\ny: 2")].concat()),
        ("a length without a body", [GET, &line("content-length", "5")].concat()),
    ] {
        raw.send(&frame(HEADERS, END | END_HEADERS, stream, &head)).await;
        others.are_answered().await;
        let ended = raw.until(|frame| frame.stream == stream || frame.kind == GOAWAY).await.expect(what);
        let refused = ended.kind == HEADERS && ended.payload[0] != 0x88;
        assert!(ended.code() == Some(PROTOCOL_ERROR) || refused, "{what}: {ended:?}");
        (raw, stream) = if ended.kind == GOAWAY { (served.raw().await, 1) } else { (raw, stream + 2) };
    }
    // More of a body than was announced, and less.
    for (what, body) in [("too long", &b"123456"[..]), ("too short", b"1234")] {
        let head = [&[0x83][..], scheme, path, authority, &line("content-length", "5")].concat();
        raw.send(&[frame(HEADERS, END_HEADERS, stream, &head), frame(DATA, END, stream, body)].concat()).await;
        let ended = raw.until(|frame| frame.stream == stream || frame.kind == GOAWAY).await.expect(what);
        assert!(ended.kind != GOAWAY && (ended.kind == RST_STREAM || ended.payload[0] != 0x88), "{what}: {ended:?}");
        stream += 2;
    }
    assert_eq!(served.origin.count("/"), fetched, "none of them went on");
    raw.send(&asks(stream)).await;
    let answer = raw.until(|frame| frame.stream == stream).await.expect("the connection goes on");
    assert_eq!((answer.kind, answer.payload[0]), (HEADERS, 0x88));
}

#[tokio::test]
async fn what_breaks_the_connection_ends_it_with_an_error() {
    let served = guarded();
    served.get("/").await;
    served.while_others_ask("what breaks the connection", async |others: &Others| send_what_breaks(&served, others).await).await;
}

async fn send_what_breaks(served: &Served, others: &Others) {
    for (what, bytes, code) in [
        ("data for no stream", frame(DATA, END, 0, b"x"), PROTOCOL_ERROR),
        ("data for a stream that was not opened", frame(DATA, END, 7, b"x"), PROTOCOL_ERROR),
        ("a stream of even number", asks(2), PROTOCOL_ERROR),
        ("a promise from a client", frame(5, END_HEADERS, 1, &[0, 0, 0, 2, 0x82]), PROTOCOL_ERROR),
        ("a window of a stream that grows by nothing", [asks(1), frame(WINDOW_UPDATE, 0, 1, &[0; 4])].concat(), PROTOCOL_ERROR),
        ("a window that grows by nothing", frame(WINDOW_UPDATE, 0, 0, &[0; 4]), PROTOCOL_ERROR),
        ("a window beyond all bounds", frame(WINDOW_UPDATE, 0, 0, &0x7fff_ffff_u32.to_be_bytes()), FLOW_CONTROL_ERROR),
        ("settings of odd length", frame(SETTINGS, 0, 0, &[1]), PROTOCOL_ERROR),
        ("a ping of odd length", frame(PING, 0, 0, &[1]), PROTOCOL_ERROR),
        ("a frame larger than allowed", [&[1, 0, 0, 0, 0, 0, 0, 0, 1][..], &[0; 1 << 16]].concat(), FRAME_SIZE_ERROR),
        ("a head that is no HPACK", frame(HEADERS, END | END_HEADERS, 1, &[0xff; 64]), PROTOCOL_ERROR),
        ("a continuation of nothing", frame(CONTINUATION, END_HEADERS, 1, GET), PROTOCOL_ERROR),
        ("another frame within a head", [frame(HEADERS, END, 1, GET), frame(PING, 0, 0, &[0; 8])].concat(), PROTOCOL_ERROR),
        ("a reset of a stream that was not opened", reset(9), PROTOCOL_ERROR),
    ] {
        let mut raw = served.raw().await;
        raw.send(&bytes).await;
        others.are_answered().await;
        assert_eq!(raw.send_to_the_end(&[]).await, Some(code), "{what}");
    }
}

fn posts(stream: u32) -> Vec<u8> {
    frame(HEADERS, END | END_HEADERS, stream, POST)
}

/// An origin that answers once the gate is open, behind four streams at a time. POST, so that each is a fetch of its own.
fn four_at_a_time(gate: &Gate) -> Served {
    let held = gate.clone();
    serve_with(&format!("{H2C}[limits.http2]\nstreams = 4\n"), move |_| Script::ok("held").after(&held))
}

async fn until_fetches(served: &Served, are_so_many: impl Fn(u64) -> bool) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let active = served.metric("tiercel_upstream_connections{state=\"active\",upstream=\"default\"}").await;
        if are_so_many(active) {
            return;
        }
        assert!(Instant::now() < deadline, "{active} fetches are under way");
        tokio::time::sleep(Duration::from_millis(2)).await; // nobody announces it
    }
}

async fn until_asked(served: &Served, count: usize) {
    served.origin.until("the origin is asked", |origin| origin.count("/") == count).await;
}

#[tokio::test]
async fn a_stream_too_many_is_refused_and_the_others_are_answered() {
    let gate = Gate::new();
    let served = four_at_a_time(&gate);
    let mut raw = served.raw().await;
    raw.send(&[1, 3, 5, 7].map(posts).concat()).await;
    until_asked(&served, 4).await;
    raw.send(&posts(9)).await;
    let refused = raw.until(|frame| frame.kind == RST_STREAM || frame.kind == GOAWAY).await.expect("a word about it");
    assert_eq!((refused.kind, refused.stream, refused.code()), (RST_STREAM, 9, Some(REFUSED_STREAM)));
    // One is given up, and its place is another's.
    raw.send(&[reset(1), posts(11)].concat()).await;
    until_asked(&served, 5).await;
    gate.open();
    let mut answered = Vec::new();
    while answered.len() < 4 {
        let whole = |frame: &Frame| frame.kind == DATA && frame.flags & END != 0 || matches!(frame.kind, RST_STREAM | GOAWAY);
        let end = raw.until(whole).await.expect("the connection goes on");
        assert_eq!(end.kind, DATA, "{end:?}");
        answered.push(end.stream);
    }
    answered.sort_unstable();
    assert_eq!((answered, served.origin.count("/")), (vec![3, 5, 7, 11], 5), "the refused one went nowhere");
}

/// What a client resets makes room for another stream at once (CVE-2023-44487): the work for it must end as soon.
#[tokio::test]
async fn work_for_streams_that_were_reset_does_not_pile_up() {
    const ROUNDS: u32 = 100;
    let gate = Gate::new();
    let served = four_at_a_time(&gate);
    let mut raw = served.raw().await;
    raw.send(&[1, 3, 5, 7].map(posts).concat()).await;
    until_asked(&served, 4).await;
    until_fetches(&served, |active| active == 4).await;
    for round in 0..ROUNDS {
        let last = 7 + 2 * round;
        raw.send(&[reset(last), posts(last + 2)].concat()).await;
        until_asked(&served, 5 + round as usize).await;
        // The origin itself learns of it when it writes.
        until_fetches(&served, |active| active <= 4).await;
    }
    gate.open();
    let mut ended = 0;
    while ended < 4 {
        let end = raw.until(|frame| frame.kind == DATA && frame.flags & END != 0 || frame.kind == GOAWAY).await.expect("it goes on");
        assert_eq!(end.kind, DATA, "{end:?}");
        ended += 1;
    }
}

#[tokio::test]
async fn a_client_that_says_goodbye_gets_the_answers_under_way() {
    let gate = Gate::new();
    let wait = gate.clone();
    let served = serve_with(H2C, move |_| fresh("stored").after(&wait));
    let mut raw = served.raw().await;
    raw.send(&[asks(1), frame(GOAWAY, 0, 0, &[0; 8])].concat()).await;
    served.origin.until("the request", |origin| origin.count("/") == 1).await;
    gate.open();
    assert!(raw.until(|frame| frame.kind == DATA && frame.stream == 1 && frame.flags & END != 0).await.is_some());
    while raw.next().await.is_some() {}
}
