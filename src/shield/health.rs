//! Whether a peer is asked: failures in a row eject it, a probe brings it back.
//!
//! ```text
//!   fit --failures in a row--> sick --back-off over--> probe due --probe begun--> probing --answered--> fit
//!                               ^                                                    |
//!                               +---------------- failed: twice the back-off --------+
//! ```

/// When a peer is ejected, and for how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rules {
    /// Failures in a row that eject.
    pub failures: u32,
    pub back_off_ms: u64,
    pub back_off_max_ms: u64,
}

/// What is known of a peer.
#[derive(Debug, Clone, Default)]
pub struct Health {
    failures: u32,
    ejected: Option<Ejected>,
}

#[derive(Debug, Clone)]
struct Ejected {
    until_mono_ms: u64,
    back_off_ms: u64,
    probing: bool,
}

/// What to do about a peer now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fitness {
    Fit,
    /// Not to be asked; whoever is told this probes it, and nobody else does until it has answered or failed.
    ProbeDue,
    Sick,
}

impl Health {
    pub fn fitness(&mut self, now_mono_ms: u64) -> Fitness {
        let is_due = self.may_be_asked(now_mono_ms);
        match &mut self.ejected {
            None => Fitness::Fit,
            Some(ejected) if is_due => {
                ejected.probing = true;
                Fitness::ProbeDue
            }
            Some(_) => Fitness::Sick,
        }
    }

    pub fn is_fit(&self) -> bool {
        self.ejected.is_none()
    }

    /// Whether [`Self::fitness`] would say something else than sick. Takes no probe.
    pub fn may_be_asked(&self, now_mono_ms: u64) -> bool {
        self.ejected.as_ref().is_none_or(|ejected| !ejected.probing && ejected.until_mono_ms <= now_mono_ms)
    }

    /// It answered. Whatever was asked before it was ejected says nothing: only its probe brings a peer back. True where
    /// it is fit again by that.
    pub fn answered(&mut self, probe: bool) -> bool {
        if self.ejected.is_some() && !probe {
            return false;
        }
        self.failures = 0;
        self.ejected.take().is_some()
    }

    /// It did not. True where that ejects it.
    pub fn failed(&mut self, probe: bool, rules: &Rules, now_mono_ms: u64) -> bool {
        match &mut self.ejected {
            Some(ejected) if probe => {
                ejected.back_off_ms = (ejected.back_off_ms * 2).min(rules.back_off_max_ms);
                ejected.until_mono_ms = now_mono_ms + ejected.back_off_ms;
                ejected.probing = false;
                false
            }
            Some(_) => false,
            None => {
                self.failures += 1;
                if self.failures < rules.failures {
                    return false;
                }
                let back_off_ms = rules.back_off_ms.min(rules.back_off_max_ms);
                self.ejected = Some(Ejected { until_mono_ms: now_mono_ms + back_off_ms, back_off_ms, probing: false });
                true
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULES: Rules = Rules { failures: 3, back_off_ms: 1000, back_off_max_ms: 3000 };

    #[test]
    fn failures_in_a_row_eject_and_an_answer_between_does_not_count_as_one() {
        let mut health = Health::default();
        assert!(!health.failed(false, &RULES, 0) && !health.failed(false, &RULES, 0));
        assert!(!health.answered(false), "it was fit all the time");
        assert!(!health.failed(false, &RULES, 0) && !health.failed(false, &RULES, 0));
        assert!(health.failed(false, &RULES, 0) && !health.is_fit());
        assert!(!health.failed(false, &RULES, 0), "it is ejected once");
    }

    #[test]
    fn one_probe_at_a_time_and_its_back_off_doubles() {
        let mut health = Health::default();
        for _ in 0..3 {
            health.failed(false, &RULES, 0);
        }
        for (due, back_off) in [(1000, 2000), (3000, 3000), (6000, 3000)] {
            assert!(!health.may_be_asked(due - 1) && health.may_be_asked(due));
            assert_eq!(health.fitness(due - 1), Fitness::Sick);
            assert_eq!(health.fitness(due), Fitness::ProbeDue);
            assert!(!health.may_be_asked(due + 1));
            assert_eq!(health.fitness(due + 1), Fitness::Sick, "the probe is under way");
            assert!(!health.failed(true, &RULES, due));
            assert_eq!(health.fitness(due + back_off - 1), Fitness::Sick);
        }
        assert_eq!(health.fitness(9000), Fitness::ProbeDue);
        assert!(!health.answered(false), "an answer to what was asked before it was ejected");
        assert_eq!(health.fitness(9000), Fitness::Sick);
        assert!(health.answered(true));
        assert_eq!(health.fitness(9000), Fitness::Fit);
    }
}
