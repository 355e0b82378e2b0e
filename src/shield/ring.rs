//! Which node owns a key: rendezvous hashing.
//!
//! Each node has a score for each key; the highest owns it, the others follow in order. The score depends on the key and
//! the node's own name alone. So all nodes find the same order, one more or one less of N nodes moves about 1/N of the
//! keys, and, above all, **two nodes stand in the same order on every node, whatever else it knows of the fleet**: where
//! everybody asks only nodes that stand before itself, nobody can come to wait for itself.

use crate::semantics::key::hash128;
use smallvec::SmallVec;
use std::sync::Arc;

/// The nodes that keys are shared among.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ring {
    /// In order of name, each once.
    names: Box<[Arc<str>]>,
}

impl Ring {
    pub fn new(names: impl IntoIterator<Item = Arc<str>>) -> Self {
        let mut names: Vec<_> = names.into_iter().collect();
        names.sort_unstable();
        names.dedup();
        Self { names: names.into() }
    }

    pub fn names(&self) -> &[Arc<str>] {
        &self.names
    }

    /// All nodes, the owner of the key first.
    pub fn order(&self, key: u128) -> SmallVec<[&Arc<str>; 8]> {
        let mut scored: SmallVec<[(u128, &Arc<str>); 8]> = self.names.iter().map(|name| (score(key, name), name)).collect();
        scored.sort_unstable_by(|one, other| other.cmp(one));
        scored.into_iter().map(|(_, name)| name).collect()
    }

    /// The nodes that stand after `own`, who stands in for it first.
    pub fn after(&self, key: u128, own: &str) -> SmallVec<[&Arc<str>; 8]> {
        let limit = (score(key, own), own);
        let mut after = self.order(key);
        after.retain(|name| (score(key, name), &***name) < limit);
        after
    }

    /// The nodes that stand before `own`, the owner of the key first; none where that is `own` itself.
    pub fn before(&self, key: u128, own: &str) -> SmallVec<[&Arc<str>; 8]> {
        let limit = (score(key, own), own);
        let mut scored: SmallVec<[(u128, &Arc<str>); 8]> = self.names.iter().map(|name| (score(key, name), name)).collect();
        scored.retain(|(score, name)| (*score, &***name) > limit);
        scored.sort_unstable_by(|one, other| other.cmp(one));
        scored.into_iter().map(|(_, name)| name).collect()
    }
}

fn score(key: u128, name: &str) -> u128 {
    let mut bytes: SmallVec<[u8; 64]> = SmallVec::from_slice(&key.to_be_bytes());
    bytes.extend_from_slice(name.as_bytes());
    hash128(&bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    const KEYS: u32 = 60_000;

    fn ring(nodes: impl IntoIterator<Item = u32>) -> Ring {
        Ring::new(nodes.into_iter().map(|node| format!("10.0.0.{node}:9182").into()))
    }

    fn keys() -> impl Iterator<Item = u128> {
        (0..KEYS).map(|number| hash128(format!("http://example.com/item/{number}").as_bytes()))
    }

    #[test]
    fn every_node_owns_its_share() {
        for nodes in [2, 3, 5, 16] {
            let (ring, mut owned) = (ring(1..=nodes), HashMap::new());
            for key in keys() {
                *owned.entry(Arc::clone(ring.order(key)[0])).or_insert(0_u32) += 1;
            }
            let mean = f64::from(KEYS / nodes);
            assert_eq!(owned.len(), nodes as usize);
            for (node, count) in owned {
                let off = (f64::from(count) - mean).abs() / mean;
                assert!(off < 0.06, "{node} of {nodes} owns {count}, the mean is {mean}");
            }
        }
    }

    #[test]
    fn one_node_more_or_less_moves_its_share_of_the_keys_and_no_other() {
        for nodes in [2, 3, 5, 16] {
            let (before, after) = (ring(1..=nodes), ring(1..=nodes + 1));
            let new: Arc<str> = format!("10.0.0.{}:9182", nodes + 1).into();
            let mut moved = 0;
            for key in keys() {
                let (old, now) = (before.order(key)[0], after.order(key)[0]);
                if old != now {
                    assert_eq!(*now, new, "a key went from one of the old nodes to another");
                    moved += 1;
                }
                let rest: Vec<_> = after.order(key).into_iter().filter(|name| **name != new).collect();
                assert_eq!(rest, before.order(key).to_vec(), "the others keep their order: a lost owner's keys go to the next");
            }
            let share = f64::from(moved) / f64::from(KEYS);
            let expected = 1.0 / f64::from(nodes + 1);
            assert!((share - expected).abs() / expected < 0.06, "{share} of the keys moved, not {expected}");
        }
    }

    #[test]
    fn keys_of_a_lost_owner_are_shared_among_the_others() {
        let (ring, mut heirs) = (ring(1..=5), HashMap::new());
        for order in keys().map(|key| ring.order(key)).filter(|order| &**order[0] == "10.0.0.1:9182") {
            *heirs.entry(Arc::clone(order[1])).or_insert(0_u32) += 1;
        }
        let mean = f64::from(heirs.values().sum::<u32>()) / 4.0;
        assert!(heirs.values().all(|count| (f64::from(*count) - mean).abs() / mean < 0.1), "{heirs:?}");
    }

    proptest! {
        /// However the lists of nodes differ: if one asks another, that one never asks back, not even through others.
        #[test]
        fn who_asks_always_stands_later(key: u128, lists in proptest::collection::vec(proptest::collection::vec(0_u32..8, 0..8), 8)) {
            let name = |node: u32| format!("10.0.0.{node}:9182");
            let asked = |node: u32| -> Vec<u32> {
                let ring = ring(lists[node as usize].iter().copied());
                let before = ring.before(key, &name(node));
                (0..8).filter(|other| before.iter().any(|there| ***there == *name(*other))).collect()
            };
            for first in 0..8 {
                let (mut reached, mut next) = (Vec::new(), asked(first));
                while let Some(node) = next.pop() {
                    prop_assert_ne!(node, first, "it comes back");
                    if !reached.contains(&node) {
                        reached.push(node);
                        next.extend(asked(node));
                    }
                }
            }
        }

        #[test]
        fn a_node_parts_the_order_into_those_before_it_and_those_after_it(key: u128, own in 0_u32..6) {
            let ring = ring(0..6);
            let (order, name) = (ring.order(key), format!("10.0.0.{own}:9182"));
            let expected: Vec<_> = order.iter().take_while(|there| &****there != name.as_str()).copied().collect();
            prop_assert_eq!(ring.before(key, &name).to_vec(), expected);
            let expected: Vec<_> = order.iter().skip_while(|there| &****there != name.as_str()).skip(1).copied().collect();
            prop_assert_eq!(ring.after(key, &name).to_vec(), expected);
        }
    }
}
