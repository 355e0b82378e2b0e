use super::*;
use std::sync::atomic::AtomicUsize as Count;
use std::task::{Context, Wake};

type Table = Arc<FlightTable<String, u32>>;

#[derive(Default)]
struct Woken(Count);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

fn table(waiting: usize) -> Table {
    Arc::new(FlightTable::new(waiting))
}

fn key(key: &str) -> FlightKey {
    FlightKey { key: key.into(), secondary: None }
}

fn join(table: &Table, name: &str) -> Join<String, u32> {
    table.join(key(name), |_| true, || 7)
}

fn lead(table: &Table, name: &str) -> Leader<String, u32> {
    match join(table, name) {
        Join::Lead(leader) => leader,
        Join::Follow(_) => panic!("somebody leads {name} already"),
        Join::Full => panic!("full"),
    }
}

fn follow(table: &Table, name: &str) -> Follower<String> {
    match join(table, name) {
        Join::Follow(follower) => follower,
        Join::Lead(_) => panic!("nobody leads {name}"),
        Join::Full => panic!("full"),
    }
}

fn poll(follower: &mut Follower<String>, woken: &Arc<Woken>) -> Poll<Published<String>> {
    let waker = Waker::from(Arc::clone(woken));
    std::pin::pin!(follower.wait()).poll(&mut Context::from_waker(&waker))
}

fn head(text: &str) -> Published<String> {
    Published::Head(Arc::new(text.to_owned()))
}

#[test]
fn followers_before_and_after_the_publication_get_the_head() {
    let table = table(10);
    let leader = lead(&table, "a");
    assert_eq!(*leader.stamp(), 7);
    let woken = Arc::new(Woken::default());
    let mut early = follow(&table, "a");
    assert!(poll(&mut early, &woken).is_pending());
    leader.publish(head("h"));
    assert_eq!(woken.0.load(Ordering::Relaxed), 1);
    let mut late = follow(&table, "a");
    for follower in [&mut early, &mut late] {
        assert!(matches!(poll(follower, &woken), Poll::Ready(Published::Head(head)) if *head == "h"));
    }
    assert_eq!(leader.followers(), 2);
    leader.retire();
    assert!(matches!(join(&table, "a"), Join::Lead(_)));
}

#[test]
fn keys_and_secondary_keys_have_flights_of_their_own() {
    let table = table(10);
    let secondary = |value: &[u8]| FlightKey { key: "a".into(), secondary: Some(crate::semantics::vary::SecondaryKey(value.into())) };
    let _leader = lead(&table, "a");
    let _other = lead(&table, "b");
    let Join::Lead(_gzip) = table.join(secondary(b"gzip"), |_| true, || 1) else { panic!("regrouping makes a new flight") };
    let Join::Lead(_br) = table.join(secondary(b"br"), |_| true, || 1) else { panic!("one per secondary key") };
    assert!(matches!(table.join(secondary(b"br"), |_| true, || 1), Join::Follow(_)));
    assert_eq!(table.usage(), (4, 0));
}

#[test]
fn only_the_first_publication_counts() {
    let table = table(10);
    let leader = lead(&table, "a");
    let mut follower = follow(&table, "a");
    leader.publish(head("h"));
    leader.publish(Published::Alone);
    assert!(matches!(poll(&mut follower, &Arc::default()), Poll::Ready(Published::Head(_))));
    assert_eq!(table.usage(), (0, 0));
}

#[test]
fn a_flight_that_cannot_be_used_has_left_the_table_when_its_followers_are_woken() {
    struct Rejoins(Table, std::sync::Mutex<Vec<Join<String, u32>>>);
    impl Wake for Rejoins {
        fn wake(self: Arc<Self>) {
            let joined = join(&self.0, "a");
            self.1.lock().unwrap().push(joined);
        }
    }
    for published in [Published::Alone, Published::LeadAnew, Published::Failed(failure())] {
        let table = table(10);
        let leader = lead(&table, "a");
        let mut followers = [(); 3].map(|()| follow(&table, "a"));
        let rejoins = Arc::new(Rejoins(Arc::clone(&table), std::sync::Mutex::default()));
        let waker = Waker::from(Arc::clone(&rejoins));
        for follower in &mut followers {
            assert!(std::pin::pin!(follower.wait()).poll(&mut Context::from_waker(&waker)).is_pending());
        }
        leader.publish(published);
        let joined = rejoins.1.lock().unwrap();
        assert_eq!(joined.len(), 3);
        assert_eq!(joined.iter().filter(|join| matches!(join, Join::Lead(_))).count(), 1);
    }
}

#[test]
fn a_leader_that_dies_wakes_its_followers() {
    let table = table(10);
    let leader = lead(&table, "a");
    let woken = Arc::new(Woken::default());
    let mut follower = follow(&table, "a");
    assert!(poll(&mut follower, &woken).is_pending());
    drop(leader);
    assert_eq!(woken.0.load(Ordering::Relaxed), 1);
    assert!(matches!(poll(&mut follower, &woken), Poll::Ready(Published::Died)));
    assert_eq!(table.usage(), (0, 0));
}

#[test]
fn those_who_wait_are_bounded_until_they_are_told_or_leave() {
    let table = table(2);
    let leader = lead(&table, "a");
    let _own = leader.follow();
    let one = follow(&table, "a");
    let _two = follow(&table, "a");
    assert!(matches!(join(&table, "a"), Join::Full));
    assert_eq!((table.usage(), leader.followers()), ((1, 2), 3));
    drop(one);
    let _three = follow(&table, "a");
    assert!(matches!(join(&table, "a"), Join::Full));
    leader.publish(head("h"));
    assert_eq!(table.usage(), (1, 0));
    let told = [(); 5].map(|()| follow(&table, "a"));
    drop(told);
    assert_eq!(table.usage(), (1, 0));
}

#[test]
fn a_flight_that_may_not_be_joined_is_replaced_and_keeps_its_followers() {
    let table = table(10);
    let old = lead(&table, "a");
    let mut stays = follow(&table, "a");
    let Join::Lead(new) = table.join(key("a"), |stamp| *stamp > 7, || 8) else { panic!("replaced") };
    old.publish(head("old"));
    assert!(matches!(poll(&mut stays, &Arc::default()), Poll::Ready(Published::Head(head)) if *head == "old"));
    drop(old);
    assert_eq!(table.usage(), (1, 0), "the old leader does not take the new flight out");
    let Join::Follow(_joined) = table.join(key("a"), |stamp| *stamp > 7, || 9) else { panic!("the new flight may be joined") };
    assert_eq!(new.followers(), 1);
}

#[test]
fn the_leader_learns_when_nobody_is_left() {
    let table = table(10);
    let leader = lead(&table, "a");
    let woken = Arc::new(Woken::default());
    let waker = Waker::from(Arc::clone(&woken));
    let (one, two) = (follow(&table, "a"), leader.follow());
    let mut deserted = Box::pin(leader.deserted());
    assert!(deserted.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
    drop(one);
    assert!(!leader.retire_if_deserted());
    assert_eq!(woken.0.load(Ordering::Relaxed), 0);
    drop(two);
    assert_eq!(woken.0.load(Ordering::Relaxed), 1);
    assert!(deserted.as_mut().poll(&mut Context::from_waker(&waker)).is_ready());
    assert!(leader.retire_if_deserted());
    assert!(matches!(join(&table, "a"), Join::Lead(_)));
}

#[test]
fn a_wait_that_was_given_up_can_be_taken_up_again() {
    let table = table(10);
    let leader = lead(&table, "a");
    let mut follower = follow(&table, "a");
    let (first, second) = (Arc::new(Woken::default()), Arc::new(Woken::default()));
    assert!(poll(&mut follower, &first).is_pending());
    assert!(poll(&mut follower, &second).is_pending());
    leader.publish(head("h"));
    assert_eq!((first.0.load(Ordering::Relaxed), second.0.load(Ordering::Relaxed)), (0, 1));
    assert!(poll(&mut follower, &second).is_ready());
}

fn failure() -> Arc<Failure> {
    Arc::new(Failure { status: 502, token: "dns_error", text: "no address".into(), stale_may_be_served: true, endpoint: None })
}

#[test]
fn tables_beside_each_other_share_the_bound_on_those_who_wait() {
    let one = table(1);
    let other: Table = Arc::new(FlightTable::beside(&one));
    let leaders = (lead(&one, "a"), lead(&other, "a"));
    let follower = follow(&one, "a");
    assert!(matches!(join(&other, "a"), Join::Full));
    assert_eq!((one.usage(), other.usage()), ((1, 1), (1, 1)));
    drop(follower);
    drop(follow(&other, "a"));
    drop(leaders);
}
