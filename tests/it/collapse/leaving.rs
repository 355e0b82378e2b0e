//! Clients that leave: whoever stays gets everything, and a fetch that nobody waits for ends.

use super::*;

const PATH: &str = "/page";

/// More than a socket would take unread is not needed: halves are told apart by their last word.
fn page() -> String {
    format!("{} middle{} end", "a".repeat(9_995), "b".repeat(9_996) + "zzz")
}

#[tokio::test]
async fn a_leader_that_leaves_before_the_head_costs_its_followers_nothing() {
    let gate = Gate::new();
    let held = gate.clone();
    let stage = Stage::new(move |_, _| fresh(page()).after(&held));
    let mut clients = stage.line_up(PATH, 5).await;
    clients.remove(0).reset();
    stage.until_metric(CONNECTIONS, 5).await;
    gate.open();
    for answer in answers(clients).await {
        assert_eq!((answer.status, answer.text()), (200, page().as_str()));
    }
    assert_eq!(stage.origin.count(PATH), 1);
}

#[tokio::test]
async fn a_leader_that_leaves_mid_body_costs_its_followers_nothing() {
    let gate = Gate::new();
    let held = gate.clone();
    let (start, rest) = (Gate::new(), page());
    let started = start.clone();
    let stage = Stage::new(move |_, _| in_halves(&rest, &held).after(&started));
    let mut clients = stage.line_up(PATH, 5).await;
    start.open();
    let mut heads = Vec::new();
    for client in &mut clients {
        client.until("\r\n\r\n").await.expect("a head");
        heads.push(client.until("middle").await.expect("the first half"));
    }
    // One that comes late gets the bytes that are there.
    let mut late = stage.send("GET", PATH, &[]).await;
    late.until("\r\n\r\n").await.expect("a head");
    heads.push(late.until("middle").await.expect("the first half"));
    clients.push(late);
    clients.remove(0).reset();
    stage.until_metric(CONNECTIONS, 6).await;
    gate.open();
    for (client, first) in clients.iter_mut().zip(&heads[1..]) {
        let second = client.until(" end").await.expect("the second half");
        assert!(format!("{first}{second}") == page());
    }
    assert_eq!(stage.origin.count(PATH), 1);
}

#[tokio::test]
async fn followers_that_leave_cost_the_others_nothing() {
    let gate = Gate::new();
    let held = gate.clone();
    let stage = Stage::new(move |_, _| fresh(page()).after(&held));
    let mut clients = stage.line_up(PATH, 5).await;
    for client in clients.drain(2..4) {
        client.reset();
    }
    stage.until_metric(WAITING, 3).await;
    gate.open();
    for answer in answers(clients).await {
        assert_eq!((answer.status, answer.text()), (200, page().as_str()));
    }
    assert_eq!(stage.origin.count(PATH), 1);
}

#[tokio::test]
async fn when_all_leave_before_the_head_the_fetch_is_cancelled_and_the_next_request_works() {
    // What an echo hears first here is the end of the connection.
    let stage = Stage::new(|number, _| if number == 0 { Script::steps([Step::Echo]) } else { fresh(page()) });
    for client in stage.line_up(PATH, 5).await {
        client.reset();
    }
    stage.origin.until("the origin sees the connection close", |origin| origin.open_connections() == 0).await;
    stage.until_metric("tiercel_coalesce_in_flight", 0).await;
    stage.until_metric(WAITING, 0).await;
    assert_eq!(stage.get(PATH).await.text(), page());
    assert_eq!(stage.origin.count(PATH), 2);
}

#[tokio::test]
async fn what_is_half_there_is_finished_and_stored_when_all_have_left() {
    let gate = Gate::new();
    let held = gate.clone();
    let stage = Stage::new(move |_, _| in_halves(&page(), &held));
    let mut client = stage.send("GET", PATH, &[]).await;
    client.until("middle").await.expect("the first half");
    client.reset();
    stage.until_metric(CONNECTIONS, 0).await;
    gate.open();
    stage.until_metric("tiercel_coalesce_in_flight", 0).await;
    assert_eq!(stage.get(PATH).await.text(), page());
    assert_eq!(stage.origin.count(PATH), 1);
}

#[tokio::test]
async fn an_endless_body_ends_when_all_have_left() {
    let stage = Stage::new(|_, _| Script::endless(vec![b'x'; 10_000]));
    let mut client = stage.send("GET", PATH, &[]).await;
    client.until("xxxx").await.expect("some of it");
    client.reset();
    stage.origin.until("the origin sees the connection close", |origin| origin.open_connections() == 0).await;
}
