//! Which endpoint gets the next request. Pure: values in, an index out.

use crate::config::settings::Balance;

/// An endpoint as the choice sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Candidate {
    /// Requests under way or waiting there.
    pub load: usize,
    /// Could not be connected to within the last seconds: taken only if no other is left.
    pub ejected: bool,
}

/// Index of the endpoint for the next request; 0 where there are none.
///
/// `turn` grows by one per choice and rotates the start, so that equals share evenly. `avoid` is the endpoint that just
/// failed this request: like an ejected one it is taken only where there is nothing better.
pub fn pick(balance: Balance, candidates: &[Candidate], turn: usize, avoid: Option<usize>) -> usize {
    let count = candidates.len();
    let rank = |step: &usize| {
        let at = (turn % count + step) % count;
        let Candidate { load, ejected } = candidates[at];
        let reluctance = u8::from(ejected) + u8::from(avoid == Some(at));
        let load = if balance == Balance::LeastRequests { load } else { 0 };
        (reluctance, load, *step)
    };
    (0..count).min_by_key(rank).map_or(0, |step| (turn % count + step) % count)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn loads(loads: &[usize]) -> Vec<Candidate> {
        loads.iter().map(|load| Candidate { load: *load, ejected: false }).collect()
    }

    #[test]
    fn round_robin_takes_turns_whatever_the_load() {
        let all = loads(&[9, 0, 3]);
        let picked: Vec<_> = (0..6).map(|turn| pick(Balance::RoundRobin, &all, turn, None)).collect();
        assert_eq!(picked, [0, 1, 2, 0, 1, 2]);
    }

    #[test]
    fn least_requests_takes_the_idlest_and_rotates_among_equals() {
        assert_eq!(pick(Balance::LeastRequests, &loads(&[4, 2, 3]), 0, None), 1);
        let picked: Vec<_> = (0..4).map(|turn| pick(Balance::LeastRequests, &loads(&[1, 5, 1]), turn, None)).collect();
        assert_eq!(picked, [0, 2, 2, 0]);
    }

    #[test]
    fn ejected_endpoints_are_skipped_while_another_is_left() {
        let mut all = loads(&[0, 0, 0]);
        all[1].ejected = true;
        let picked: Vec<_> = (0..3).map(|turn| pick(Balance::RoundRobin, &all, turn, None)).collect();
        assert_eq!(picked, [0, 2, 2]);
        all.iter_mut().for_each(|candidate| candidate.ejected = true);
        assert_eq!(pick(Balance::RoundRobin, &all, 1, None), 1);
    }

    #[test]
    fn a_retry_prefers_another_endpoint() {
        assert_eq!(pick(Balance::RoundRobin, &loads(&[0, 0]), 0, Some(0)), 1);
        assert_eq!(pick(Balance::LeastRequests, &loads(&[0, 7]), 0, Some(0)), 1);
        assert_eq!(pick(Balance::RoundRobin, &loads(&[0]), 3, Some(0)), 0);
    }

    proptest! {
        #[test]
        fn the_choice_exists_and_is_never_worse_than_another(
            all in proptest::collection::vec((0usize..5, any::<bool>()), 1..8), turn: usize, avoid in proptest::option::of(0usize..8), least: bool,
        ) {
            let all: Vec<_> = all.into_iter().map(|(load, ejected)| Candidate { load, ejected }).collect();
            let balance = if least { Balance::LeastRequests } else { Balance::RoundRobin };
            let at = pick(balance, &all, turn, avoid);
            prop_assert!(at < all.len());
            let usable = |at: usize| !all[at].ejected && avoid != Some(at);
            if (0..all.len()).any(usable) {
                prop_assert!(usable(at));
                if least {
                    let best = (0..all.len()).filter(|at| usable(*at)).map(|at| all[at].load).min();
                    prop_assert_eq!(Some(all[at].load), best);
                }
            }
        }
    }
}
