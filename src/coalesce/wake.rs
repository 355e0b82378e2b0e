//! Tasks that wait for one event, grouped by the thread that polls them.
//!
//! Kept under its owner's lock; [`Sleepers::take`] hands the wakers out so that they are invoked after the lock is
//! released. Each sleeper holds at most one place, so a task is woken once per event however often it was polled.

use super::sync::Home;
use slab::Slab;
use std::task::Waker;

/// Wakers of those who wait for the next event.
#[derive(Debug, Default)]
pub struct Sleepers {
    /// Events so far. A [`Place`] of an earlier round has been woken and is void.
    round: u64,
    groups: Vec<Group>,
    count: usize,
}

#[derive(Debug)]
struct Group {
    home: Home,
    wakers: Slab<Waker>,
}

/// Where a sleeper's waker is.
#[derive(Debug, Clone, Copy)]
pub struct Place {
    round: u64,
    group: usize,
    slot: usize,
}

/// Wakers that were taken out; to be woken after the lock is released.
#[must_use]
#[derive(Debug, Default)]
pub struct Awake(Vec<Group>);

impl Sleepers {
    /// Registers `waker`, or replaces the one that this sleeper registered before.
    pub fn register(&mut self, place: &mut Option<Place>, waker: &Waker) {
        match place {
            Some(place) if place.round == self.round => self.groups[place.group].wakers[place.slot].clone_from(waker),
            _ => *place = Some(self.insert(waker)),
        }
    }

    /// Forgets a sleeper.
    pub fn leave(&mut self, place: Option<Place>) {
        if let Some(place) = place.filter(|place| place.round == self.round) {
            self.groups[place.group].wakers.remove(place.slot);
            self.count -= 1;
        }
    }

    /// Ends the round: everybody who is registered is to be woken.
    pub fn take(&mut self) -> Awake {
        self.round += 1;
        self.count = 0;
        Awake(std::mem::take(&mut self.groups))
    }

    pub const fn is_empty(&self) -> bool {
        self.count == 0
    }

    fn insert(&mut self, waker: &Waker) -> Place {
        let group = self.groups.iter().position(|group| group.home.is_here()).unwrap_or_else(|| {
            self.groups.push(Group { home: Home::here(), wakers: Slab::new() });
            self.groups.len() - 1
        });
        self.count += 1;
        Place { round: self.round, group, slot: self.groups[group].wakers.insert(waker.clone()) }
    }
}

impl Awake {
    /// Wakes each of them once. Not to be called under a lock.
    pub fn wake(self) {
        for Group { home, mut wakers } in self.0 {
            home.wake(wakers.drain());
        }
    }
}
