//! What a worker's lines have in common, kept as text.

use super::text::{Object, TEXT_MAX, member};
use crate::observe::time::Stamp;
use crate::proxy::outcome::{RouteId, new_id};

/// Kept by each worker beside its buffer.
#[derive(Debug, Default)]
pub(super) struct Shared {
    pub(super) stamp: Stamp,
    pub(super) ids: Ids,
    pub(super) places: Places,
}

/// Ids for requests that nobody named: sixteen digits of chance, drawn once, and sixteen that count.
#[derive(Debug, Default)]
pub(super) struct Ids {
    drawn: Option<[u8; 32]>,
    next: u64,
}

impl Ids {
    pub(super) fn next(&mut self) -> [u8; 32] {
        let mut id = *self.drawn.get_or_insert_with(new_id);
        self.next += 1;
        for (at, digit) in id[16..].iter_mut().rev().enumerate() {
            *digit = b"0123456789abcdef"[(self.next >> (4 * at) & 15) as usize];
        }
        id
    }
}

/// The members that say site and route, per route; a route's names never change.
#[derive(Debug, Default)]
pub(super) struct Places(Vec<Option<Box<[u8]>>>);

impl Places {
    pub(super) fn of(&mut self, route: RouteId, site: &str, name: &str) -> &[u8] {
        let at = route.0 as usize; // a bounded number of them, counted from nought
        if at >= self.0.len() {
            self.0.resize(at + 1, None);
        }
        self.0[at].get_or_insert_with(|| {
            let mut members = Vec::new();
            let mut object = Object::begin(&mut members);
            object.text(member!("site"), site.as_bytes(), TEXT_MAX);
            object.text(member!("route"), name.as_bytes(), TEXT_MAX);
            members.into()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn ids_differ() {
        let (mut one, mut other) = (Ids::default(), Ids::default());
        let ids: HashSet<[u8; 32]> = (0..1000).flat_map(|_| [one.next(), other.next()]).collect();
        assert_eq!(ids.len(), 2000);
        assert!(ids.iter().flatten().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f')));
    }

    #[test]
    fn places_are_those_of_their_route() {
        let mut places = Places::default();
        assert_eq!(places.of(RouteId(3), "a\"b", "c"), br#","site":"a\"b","route":"c""#);
        assert_eq!(places.of(RouteId(0), "shop", "all"), br#","site":"shop","route":"all""#);
        assert_eq!(places.of(RouteId(3), "a\"b", "c"), br#","site":"a\"b","route":"c""#);
    }
}
