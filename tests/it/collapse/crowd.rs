//! Ten thousand at once.

use super::*;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::json;
use tokio::sync::{Mutex, MutexGuard};

const CROWD: usize = 10_000;
const PATH: &str = "/slow";
const VARIANTS: usize = 4;

/// Two crowds together would need more descriptors than there are.
static ALONE: Mutex<()> = Mutex::const_new(());

async fn room_for_a_crowd() -> MutexGuard<'static, ()> {
    let guard = ALONE.lock().await;
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum }).expect("the soft limit may be raised");
    let enough = limit.maximum.is_none_or(|most| most >= CROWD as u64 + 2000);
    assert!(enough, "this test needs {} descriptors: ulimit -Hn", CROWD + 2000);
    guard
}

/// Nobody's patience ends before the crowd is there.
const PATIENT: &str = "upstreams.default.first_byte_timeout = \"10m\"\n";

fn variant_of(request: &Recorded) -> String {
    request.field("x-variant").unwrap_or("none").to_owned()
}

fn body_of(variant: &str) -> Vec<u8> {
    [variant.as_bytes(), &pattern(2000)].concat()
}

/// Sends `CROWD` requests, with variants in turn where there are several, and waits until all but `leaders` wait.
async fn gather(stage: &Stage, variants: usize, leaders: usize) -> Vec<Client> {
    let mut crowd = Vec::with_capacity(CROWD);
    for number in 0..CROWD {
        let field = format!("X-Variant: {}", number % variants);
        crowd.push(stage.send("GET", PATH, &[&field]).await);
    }
    stage.until_metric(WAITING, (CROWD - leaders) as u64).await;
    crowd
}

async fn everybody_gets_its_variant(crowd: Vec<Client>, variants: usize) {
    for (number, mut client) in crowd.into_iter().enumerate() {
        let answer = client.answer(false).await.expect("an answer");
        assert_eq!((answer.status, answer.whole), (200, true), "{number}: {}", answer.head);
        assert!(answer.body == body_of(&(number % variants).to_string()), "{number} got another body");
    }
}

#[tokio::test]
async fn ten_thousand_requests_for_a_cold_slow_key_are_one_origin_request() {
    let _guard = room_for_a_crowd().await;
    let gate = Gate::new();
    let held = gate.clone();
    let stage = Stage::with(PATIENT, move |_, _| fresh(body_of("0")).after(&held));
    let crowd = gather(&stage, 1, 1).await;
    gate.open();
    everybody_gets_its_variant(crowd, 1).await;
    assert_eq!(stage.origin.count(PATH), 1);
    assert_eq!(stage.metric("tiercel_coalesce_followers_total{outcome=\"served\"}").await, CROWD as u64 - 1);
    assert_eq!(stage.metric(WAITING).await, 0);
}

#[tokio::test]
async fn ten_thousand_requests_for_four_cold_variants_are_at_most_five_origin_requests() {
    let _guard = room_for_a_crowd().await;
    let gate = Gate::new();
    let held = gate.clone();
    let stage = Stage::with(PATIENT, move |_, request| fresh(body_of(&variant_of(request))).header("Vary", "X-Variant").after(&held));
    let crowd = gather(&stage, VARIANTS, 1).await;
    gate.open();
    everybody_gets_its_variant(crowd, VARIANTS).await;
    let requests = stage.origin.count(PATH);
    assert!((VARIANTS..=VARIANTS + 1).contains(&requests), "{requests} origin requests");
}

#[tokio::test]
async fn ten_thousand_requests_for_four_variants_of_a_known_vary_are_four_origin_requests() {
    let _guard = room_for_a_crowd().await;
    let gate = Gate::new();
    let held = gate.clone();
    let stage = Stage::with(PATIENT, move |number, request| {
        let script = fresh(body_of(&variant_of(request))).header("Vary", "X-Variant");
        if number == 0 { script } else { script.after(&held) }
    });
    assert_eq!(stage.get(PATH).await.status, 200);
    stage.purge(&json!({ "everything": true })).await;
    let crowd = gather(&stage, VARIANTS, VARIANTS).await;
    gate.open();
    everybody_gets_its_variant(crowd, VARIANTS).await;
    assert_eq!(stage.origin.count(PATH), 1 + VARIANTS);
}
