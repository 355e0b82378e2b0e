//! The flight table: no lost wake-up, no second leader, no follower left behind.

use loom::future::block_on;
use loom::thread;
use std::sync::Arc;
use tiercel_loom_flight::coalesce::flight::{FlightKey, FlightTable, Follower, Join, Leader, Published};

type Table = Arc<FlightTable<u32, u32>>;

fn table(waiting: usize) -> Table {
    Arc::new(FlightTable::new(waiting))
}

fn join(table: &Table) -> Join<u32, u32> {
    table.join(FlightKey { key: "k".into(), secondary: None }, |_| true, || 7)
}

fn lead(table: &Table) -> Leader<u32, u32> {
    match join(table) {
        Join::Lead(leader) => leader,
        _ => panic!("somebody leads already"),
    }
}

fn follow(table: &Table) -> Follower<u32> {
    match join(table) {
        Join::Follow(follower) => follower,
        _ => panic!("nobody leads"),
    }
}

/// Every interleaving of two threads; of three, those with at most this many preemptions.
const PREEMPTIONS: usize = 3;

fn model_of_three(model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(PREEMPTIONS);
    builder.check(model);
}

#[test]
fn a_waiting_follower_learns_the_head() {
    loom::model(|| {
        let table = table(9);
        let leader = lead(&table);
        let mut follower = follow(&table);
        let waiting = thread::spawn(move || block_on(follower.wait()));
        leader.publish(Published::Head(Arc::new(1)));
        assert!(matches!(waiting.join().unwrap(), Published::Head(head) if *head == 1));
        assert_eq!(table.usage(), (1, 0));
        drop(leader);
        assert_eq!(table.usage(), (0, 0));
    });
}

#[test]
fn a_late_joiner_learns_the_head_or_leads() {
    loom::model(|| {
        let table = table(9);
        let leader = lead(&table);
        let late = thread::spawn({
            let table = Arc::clone(&table);
            move || match join(&table) {
                Join::Follow(mut follower) => assert!(matches!(block_on(follower.wait()), Published::Head(_))),
                Join::Lead(leader) => leader.publish(Published::Alone),
                Join::Full => panic!("there is room"),
            }
        });
        leader.publish(Published::Head(Arc::new(1)));
        drop(leader);
        late.join().unwrap();
        assert_eq!(table.usage(), (0, 0));
    });
}

#[test]
fn when_the_leader_dies_exactly_one_leads_anew() {
    model_of_three(|| {
        let table = table(9);
        let leader = lead(&table);
        let followers = [follow(&table), follow(&table)];
        let threads = followers.map(|mut follower| {
            let table = Arc::clone(&table);
            thread::spawn(move || {
                assert!(matches!(block_on(follower.wait()), Published::Died));
                drop(follower);
                join(&table)
            })
        });
        drop(leader);
        let joined = threads.map(|thread| thread.join().unwrap());
        assert_eq!(joined.iter().filter(|join| matches!(join, Join::Lead(_))).count(), 1);
        assert_eq!(joined.iter().filter(|join| matches!(join, Join::Follow(_))).count(), 1);
    });
}

#[test]
fn the_leader_learns_that_the_last_follower_left() {
    model_of_three(|| {
        let table = table(9);
        let leader = lead(&table);
        let (one, own) = (follow(&table), leader.follow());
        let threads = [one, own].map(|follower| thread::spawn(move || drop(follower)));
        block_on(leader.deserted());
        assert_eq!(leader.followers(), 0);
        for thread in threads {
            thread.join().unwrap();
        }
        drop(leader);
        assert_eq!(table.usage(), (0, 0));
    });
}

#[test]
fn nobody_joins_a_flight_that_was_given_up() {
    loom::model(|| {
        let table = table(9);
        let leader = lead(&table);
        let late = thread::spawn({
            let table = Arc::clone(&table);
            move || join(&table)
        });
        let given_up = leader.retire_if_deserted();
        match late.join().unwrap() {
            Join::Follow(_) => assert!(!given_up),
            Join::Lead(_) => assert!(given_up),
            Join::Full => panic!("there is room"),
        }
    });
}

#[test]
fn the_bound_on_those_who_wait_holds_and_is_given_back() {
    model_of_three(|| {
        let table = table(1);
        let leader = lead(&table);
        let threads = [(); 2].map(|()| {
            let table = Arc::clone(&table);
            thread::spawn(move || join(&table))
        });
        let joined = threads.map(|thread| thread.join().unwrap());
        assert_eq!(joined.iter().filter(|join| matches!(join, Join::Follow(_))).count(), 1);
        let leaving = thread::spawn(move || drop(joined));
        leader.publish(Published::Alone);
        leaving.join().unwrap();
        assert_eq!(table.usage(), (0, 0));
    });
}
