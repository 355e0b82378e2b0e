//! Stored bodies that slow clients still read after they left the cache: counted, bounded, given back.

use super::*;
use serde_json::json;
use std::sync::LazyLock;

const LENGTH: usize = 12 << 20;
const PINNED: &str = "tiercel_pinned_bytes";
const FILL: &str = "tiercel_fill_bytes";
const STORED: &str = "tiercel_cache_stores_total{outcome=\"stored\",tier=\"memory\"}";

/// More than sockets take for a client that reads nothing.
static BODY: LazyLock<Vec<u8>> = LazyLock::new(|| pattern(LENGTH));

/// A limit far above what is held here: what the allocator keeps must not count as pressure. 4 % of it are 16 MiB.
fn stage(config: &str) -> Stage {
    Stage::with(&format!("memory.limit = \"400MiB\"\nlimits.requests_per_connection = 1\n{config}"), |_, _| fresh(BODY.clone()))
}

fn everything() -> Value {
    json!({ "everything": true })
}

impl Stage {
    /// Stores a response, and begins to read it from the cache.
    async fn slow_reader(&self, path: &str) -> Client {
        assert!(self.get(path).await.whole);
        self.until_metric(FILL, 0).await;
        let mut client = self.send("GET", path, &[]).await;
        let head = client.until("\r\n\r\n").await.expect("a head");
        assert!(head.contains("; hit;"), "{head}");
        client
    }

    /// Gets something new until it is stored.
    async fn until_stored(&self, path: &str) {
        let deadline = Instant::now() + PATIENCE;
        while !self.get(path).await.says("hit") {
            assert!(Instant::now() < deadline, "never stored");
        }
    }
}

/// The rest of an answer of which the head was read.
async fn is_whole(mut client: Client) -> bool {
    let rest = client.rest().await;
    assert!(rest == BODY[..rest.len()], "wrong bytes");
    rest.len() == LENGTH
}

#[tokio::test]
async fn bodies_that_slow_readers_pin_are_charged_until_these_leave() {
    let stage = stage("memory.fill_share = \"4%\"\nfill.stall = \"1h\"");
    let mut slow = Vec::new();
    for path in ["/a", "/b"] {
        slow.push(stage.slow_reader(path).await);
    }
    assert_eq!(stage.metric(PINNED).await, 0, "they are in the cache, and weighed there");
    stage.purge(&everything()).await;
    stage.until_metric(PINNED, 2 * LENGTH as u64).await;
    assert_eq!(stage.metric(FILL).await, 2 * LENGTH as u64);
    // The memory for fills is exhausted: what is fetched now is not stored.
    let answers = [stage.get("/c").await, stage.get("/c").await];
    assert!(answers.iter().all(|answer| answer.whole && !answer.says("hit")), "{}", answers[1].head);
    let whole = is_whole(slow.pop().expect("two")).await;
    assert!(whole, "nobody was cut off");
    stage.until_metric(PINNED, LENGTH as u64).await;
    drop(slow);
    stage.until_metric(PINNED, 0).await;
    stage.until_metric(FILL, 0).await;
    stage.until_stored("/c").await;
}

#[tokio::test]
async fn what_slow_readers_pin_beyond_its_part_is_taken_back_and_fills_are_stored_again() {
    let stage = stage("memory.fill_share = \"8%\"\nfill.stall = \"10ms\"");
    let mut slow = Vec::new();
    for path in ["/a", "/b", "/c", "/d", "/e"] {
        slow.push(stage.slow_reader(path).await);
    }
    stage.purge(&everything()).await;
    // Of 60 MiB half of 32 may stay.
    stage.until_metric("tiercel_bound_reached_total{bound=\"pinned_memory\"}", 4).await;
    let mut whole = 0;
    for client in slow {
        whole += usize::from(is_whole(client).await);
    }
    assert_eq!(whole, 1, "the one that was let go of last");
    stage.until_metric(PINNED, 0).await;
    assert_eq!(stage.metric("tiercel_bound_reached_total{bound=\"reader_detached\"}").await, 4);
    stage.until_stored("/f").await;
}

#[tokio::test]
async fn a_slow_client_that_led_holds_no_memory_for_fills_once_the_response_is_stored() {
    const MANY: [&str; 3] = ["/a", "/b", "/c"];
    let stage = stage("memory.fill_share = \"4%\"\nfill.stall = \"1h\"");
    let mut slow = Vec::new();
    for path in MANY {
        // Three together would not fit into the memory for fills; one fits only where the one before was given back.
        let mut client = stage.send("GET", path, &[]).await;
        client.until("\r\n\r\n").await.expect("a head");
        stage.until_metric("tiercel_coalesce_in_flight", 0).await;
        stage.until_metric(FILL, 0).await;
        slow.push(client);
    }
    assert_eq!(MANY.map(|path| stage.origin.count(path)), [1; 3]);
    assert_eq!(stage.metric(STORED).await, 3);
    // Evicted, what they have of it counts as pinned, as for readers of the cache.
    stage.purge(&everything()).await;
    stage.until_metric(PINNED, 3 * LENGTH as u64).await;
    for client in slow {
        assert!(is_whole(client).await);
    }
    stage.until_metric(PINNED, 0).await;
}

#[tokio::test]
async fn a_slow_client_that_led_is_cut_off_where_its_memory_is_wanted_back() {
    let stage = stage("memory.fill_share = \"4%\"\nfill.stall = \"10ms\"");
    let mut client = stage.send("GET", "/a", &[]).await;
    client.until("\r\n\r\n").await.expect("a head");
    stage.until_metric(STORED, 1).await;
    stage.purge(&everything()).await;
    stage.until_metric("tiercel_bound_reached_total{bound=\"pinned_memory\"}", 1).await;
    assert!(!is_whole(client).await);
    stage.until_metric(PINNED, 0).await;
    stage.until_metric("tiercel_bound_reached_total{bound=\"reader_detached\"}", 1).await;
}

#[tokio::test]
async fn a_write_is_not_sent_again_for_the_rest_of_its_answer() {
    let config = "memory.limit = \"400MiB\"\nmemory.fill_share = \"4%\"\nfill.stall = \"10ms\"";
    let stage = Stage::with(config, |_, _| fresh(BODY.clone()).header("ETag", "\"v1\"").header("Content-Location", "/a"));
    let mut client = stage.send("POST", "/a", &["Content-Length: 0"]).await;
    let head = client.until("\r\n\r\n").await.expect("a head");
    assert!(head.contains("stored"), "{head}");
    stage.until_metric(STORED, 1).await;
    stage.purge(&everything()).await;
    stage.until_metric("tiercel_bound_reached_total{bound=\"pinned_memory\"}", 1).await;
    assert!(!is_whole(client).await);
    assert_eq!(stage.origin.count("/a"), 1);
}
