//! What a node that is cut off from the fleet's journal does with requests (DESIGN section 6, `journal.on_cutoff`).
//!
//! Decided once per request, by the time at which it came: an answer may be as old as what was right at that time, so a
//! node that loses its trust while a request is on its way does nothing wrong.

use super::Proxy;
use crate::cache::StoredHead;
use crate::clock;
use crate::config::settings::{self, OnCutoff};
use crate::faults::{Fault, planted};
use crate::invalidation::Journal;
use crate::proxy::outcome::Contact;
use crate::semantics::Now;
use crate::semantics::reuse::Validity;
use std::time::Duration;

/// By what a request may be answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Standing {
    /// By whatever is valid: purges of the whole fleet are known here.
    #[default]
    Trusted,
    /// Cut off, and answers as if it were not.
    Serves,
    /// Cut off: by what was asked of the origin after this boot-time millisecond.
    Revalidates { after_mono_ms: u64 },
    /// Cut off: by the origin alone.
    Bypasses,
}

impl Standing {
    /// Of a request that comes now.
    pub fn of(journal: &Journal, settings: &settings::Journal, now: Now) -> Self {
        if journal.is_trusted(now) { Self::Trusted } else { Self::cut_off(journal, settings, now) }
    }

    #[cold]
    fn cut_off(journal: &Journal, settings: &settings::Journal, now: Now) -> Self {
        if planted(Fault::ResumedUntrusted) {
            return Self::Trusted;
        }
        // Who is not remembered is not waited for.
        let every = if journal.is_remembered() { settings.revalidate_every } else { Duration::ZERO };
        let revalidates = Self::Revalidates { after_mono_ms: now.mono_ms.saturating_sub(clock::ms(every)) };
        match settings.on_cutoff {
            OnCutoff::Serve if !journal.is_remembered() => revalidates,
            OnCutoff::Serve => {
                let cut_off_ms = now.mono_ms.saturating_sub(journal.trusted_until());
                if cut_off_ms < clock::ms(settings.serves_for()) { Self::Serves } else { revalidates }
            }
            OnCutoff::Revalidate => revalidates,
            OnCutoff::Bypass => Self::Bypasses,
        }
    }

    pub fn contact(self) -> Contact {
        if self.is_cut_off() { Contact::CutOff } else { Contact::Whole }
    }

    pub fn is_cut_off(self) -> bool {
        self != Self::Trusted
    }

    /// What was fetched or confirmed by a request sent then is not recent enough.
    pub fn is_too_old(self, sent_mono_ms: u64) -> bool {
        // What was sent within the same millisecond may have been sent before.
        matches!(self, Self::Revalidates { after_mono_ms } if sent_mono_ms <= after_mono_ms)
    }

    /// What the journal says of a stored response, as far as it can be known.
    pub fn validity(self, proxy: &Proxy, head: &StoredHead) -> Validity {
        match head.check(&proxy.journal) {
            Validity::Purged => Validity::Purged,
            _ if self.is_too_old(head.sent_mono_ms) => Validity::Unconfirmed,
            validity => validity,
        }
    }

    /// For `explain`; `None` while trusted.
    pub const fn as_str(self) -> Option<&'static str> {
        match self {
            Self::Trusted => None,
            Self::Serves => Some("serve"),
            Self::Revalidates { .. } => Some("revalidate"),
            Self::Bypasses => Some("bypass"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::invalidation::journal::Order;

    const FLEET: Order = Order::Fleet { tell_unsafe: true };

    fn settings(on_cutoff: OnCutoff) -> settings::Journal {
        settings::Journal {
            redis: None,
            tell_unsafe: true,
            node: "a".into(),
            trust: Duration::from_secs(3),
            repair: Duration::from_secs(600),
            on_cutoff,
            serve_at_most: None,
            revalidate_every: Duration::ZERO,
            forget_after: Duration::from_secs(3600),
            max_entries: 1000,
        }
    }

    fn journal(order: Order) -> Journal {
        let bounds = settings::PurgeBounds { receipts: 1, map_capacity: 1, fold_slots: 1, recovery: std::time::Duration::ZERO };
        Journal::with_order(&bounds, order)
    }

    fn at(mono_ms: u64) -> Now {
        Now { wall_ms: 0, mono_ms }
    }

    #[test]
    fn a_node_without_a_fleet_is_trusted_for_ever_and_one_with_until_its_lease_ends() {
        let settings = settings(OnCutoff::Bypass);
        assert_eq!(Standing::of(&journal(Order::Own), &settings, at(u64::MAX)), Standing::Trusted);
        let journal = journal(FLEET);
        assert_eq!(Standing::of(&journal, &settings, at(1)), Standing::Bypasses, "it has not begun");
        journal.trust_until(1000);
        assert_eq!(Standing::of(&journal, &settings, at(1000)), Standing::Trusted);
        assert_eq!(Standing::of(&journal, &settings, at(1001)), Standing::Bypasses);
    }

    #[test]
    fn serving_begins_when_the_fleet_knows_and_may_have_an_end() {
        let (journal, mut settings) = (journal(FLEET), settings(OnCutoff::Serve));
        journal.trust_until(1000);
        let revalidates = |at_ms| Standing::Revalidates { after_mono_ms: at_ms };
        assert_eq!(Standing::of(&journal, &settings, at(1001)), revalidates(1001));
        journal.set_remembered(true);
        // Until just before others forget it: an hour, less its trust and a second.
        let forgotten_at = 1000 + 3_600_000 - 4000;
        assert_eq!(Standing::of(&journal, &settings, at(forgotten_at - 1)), Standing::Serves);
        assert_eq!(Standing::of(&journal, &settings, at(forgotten_at)), revalidates(forgotten_at));
        settings.serve_at_most = Some(Duration::from_secs(5));
        assert_eq!(Standing::of(&journal, &settings, at(5999)), Standing::Serves);
        assert_eq!(Standing::of(&journal, &settings, at(6000)), revalidates(6000));
    }

    #[test]
    fn what_was_sent_in_the_millisecond_of_the_request_is_too_old() {
        let (journal, mut settings) = (journal(FLEET), settings(OnCutoff::Revalidate));
        let standing = Standing::of(&journal, &settings, at(2000));
        assert!(standing.is_too_old(2000) && !standing.is_too_old(2001));
        settings.revalidate_every = Duration::from_millis(500);
        assert!(Standing::of(&journal, &settings, at(2000)).is_too_old(2000), "purges do not wait for it yet");
        journal.set_remembered(true);
        let standing = Standing::of(&journal, &settings, at(2000));
        assert!(standing.is_too_old(1500) && !standing.is_too_old(1501));
        assert!(!Standing::Serves.is_too_old(0) && !Standing::Trusted.is_too_old(0));
    }
}
