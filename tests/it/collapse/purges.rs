//! Purges while a fetch is under way: what it brings is never usable afterwards, and nobody new joins it.

use super::*;
use serde_json::json;

const PATH: &str = "/article";

/// The first answer stands behind the gate.
fn versions() -> (Stage, Gate) {
    let gate = Gate::new();
    let held = gate.clone();
    let stage = Stage::new(move |number, _| {
        let script = fresh(format!("version {number}")).header("Surrogate-Key", "article-1");
        if number == 0 { script.after(&held) } else { script }
    });
    (stage, gate)
}

async fn nothing_of_the_old_fetch_is_used(stage: &Stage, gate: &Gate, old: Vec<Client>) {
    assert_eq!(stage.get(PATH).await.text(), "version 1", "a request after the purge begins a new fetch");
    assert_eq!(stage.origin.count(PATH), 2);
    gate.open();
    let first = answers(old).await;
    assert_eq!(first[0].text(), "version 0", "its own client gets it");
    stage.until_metric("tiercel_coalesce_in_flight", 0).await;
    assert_eq!(stage.get(PATH).await.text(), "version 1", "what was fetched before the purge does not come back");
    assert_eq!(stage.origin.count(PATH), 2);
}

#[tokio::test]
async fn after_a_purge_by_url_the_fetch_under_way_is_not_joined_nor_stored() {
    let (stage, gate) = versions();
    let clients = stage.line_up(PATH, 3).await;
    stage.purge(&json!({ "urls": [format!("http://shop.test{PATH}")] })).await;
    nothing_of_the_old_fetch_is_used(&stage, &gate, clients).await;
}

#[tokio::test]
async fn without_a_later_request_a_purged_fetch_is_not_stored_either() {
    let (stage, gate) = versions();
    let clients = stage.line_up(PATH, 0).await;
    stage.purge(&json!({ "hosts": ["shop.test"] })).await;
    gate.open();
    answers(clients).await;
    stage.until_metric("tiercel_coalesce_in_flight", 0).await;
    assert_eq!(stage.get(PATH).await.text(), "version 1");
}

#[tokio::test]
async fn followers_of_a_fetch_that_a_purge_by_key_hit_get_a_new_one() {
    let (stage, gate) = versions();
    let clients = stage.line_up(PATH, 5).await;
    stage.purge(&json!({ "tags": ["article-1"] })).await;
    gate.open();
    let texts: Vec<_> = answers(clients).await.iter().map(|answer| answer.text().to_owned()).collect();
    assert_eq!(texts[0], "version 0");
    assert!(texts[1..].iter().all(|text| text == "version 1"), "{texts:?}");
    assert_eq!(stage.get(PATH).await.text(), "version 1");
    assert_eq!(stage.origin.count(PATH), 2);
}

#[tokio::test]
async fn after_a_purge_by_key_a_fetch_whose_head_is_known_is_not_joined_nor_stored() {
    let gate = Gate::new();
    let held = gate.clone();
    let stage = Stage::new(move |number, _| match number {
        0 => Script::raw("HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\nSurrogate-Key: article-1\r\nContent-Length: 9\r\n\r\nvers")
            .then(Step::Wait(held.clone()))
            .then(Step::Bytes(b"ion 0".to_vec())),
        1 => fresh("version 1").header("Surrogate-Key", "article-1"),
        _ => Script::status(500, "one fetch too many"),
    });
    let mut leader = stage.send("GET", PATH, &[]).await;
    leader.until("\r\n\r\nvers").await.expect("head and some of the body");
    stage.purge(&json!({ "tags": ["another"] })).await;
    let mut joined = stage.send("GET", PATH, &[]).await;
    joined.until("\r\n\r\nvers").await.expect("another purge is nobody's business");
    stage.purge(&json!({ "tags": ["article-1"] })).await;
    assert_eq!(stage.get(PATH).await.text(), "version 1", "a request after the purge begins a new fetch");
    gate.open();
    for client in [&mut leader, &mut joined] {
        assert_eq!(client.until("ion 0").await.as_deref(), Some("ion 0"), "who was there gets it whole");
    }
    stage.until_metric("tiercel_coalesce_in_flight", 0).await;
    assert_eq!(stage.get(PATH).await.text(), "version 1");
    assert_eq!(stage.origin.count(PATH), 2);
}
