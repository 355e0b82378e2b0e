//! When a certificate is asked for: times from times. Pure; `chance` is in 0..1.

use crate::config::settings::Acme;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// From when until when a certificate is valid, milliseconds since 1970. What was issued later is the greater, however long it
/// lasts: lifetimes shrink, and who exchanges a key wants the new one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Validity {
    pub from: i64,
    pub until: i64,
}

/// Of an error that is kept: authorities may write what they like.
const ERROR_CHARS_MAX: usize = 1000;

/// Attempts that came to nothing since a certificate was last obtained. Kept, so that a restart asks for nothing sooner.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempts {
    pub failures: u32,
    /// Before that nothing is asked for, milliseconds since 1970.
    pub next_ms: i64,
    /// How the last one ended.
    pub error: String,
}

impl Attempts {
    /// One more begins: it has failed unless more is heard of it.
    pub fn begin(&self, terms: &Acme, now: i64, chance: f64) -> Self {
        let failures = self.failures.saturating_add(1);
        let pause = back_off(failures, terms.retry_first, terms.retry_max, chance);
        Self { failures, next_ms: now.saturating_add(ms(pause)), error: "it was interrupted".into() }
    }

    /// It failed, and the authority may have said how long to wait.
    pub fn failed(self, error: String, wait: Option<Duration>, terms: &Acme, now: i64) -> Self {
        let asked = wait.map_or(0, |wait| now.saturating_add(ms(wait.min(terms.retry_max))));
        let error = error.chars().take(ERROR_CHARS_MAX).collect();
        Self { next_ms: self.next_ms.max(asked), error, ..self }
    }
}

/// When to ask for the certificate that is here, or is not.
pub fn due(valid: Option<Validity>, attempts: &Attempts, terms: &Acme, now: i64, chance: f64) -> i64 {
    let wanted = valid.map_or(now, |valid| renewal(valid, terms, chance));
    // A clock that was set back keeps nobody waiting for longer than ever.
    wanted.max(attempts.next_ms.min(now.saturating_add(ms(terms.retry_max))))
}

/// So far apart are two certificates in a row at least, whatever this one says of itself, milliseconds.
pub fn apart(valid: Option<Validity>, terms: &Acme) -> i64 {
    let third = valid.map_or(i64::MAX, |valid| valid.until.saturating_sub(valid.from) / 3);
    ms(terms.retry_first).min(third)
}

/// When a certificate is renewed. Not in the first third of its lifetime, whatever is configured: one that is due again as
/// soon as it was obtained would be asked for without end.
fn renewal(valid: Validity, terms: &Acme, chance: f64) -> i64 {
    let third = valid.until.saturating_sub(valid.from).max(0) / 3;
    let before = terms.renew_before.map_or(third, ms).min(2 * third);
    let early = (before as f64 * terms.renew_jitter * chance) as i64;
    (valid.until - before - early).max(valid.from + third)
}

/// When to renew a certificate although nobody knows whether another node does: half of the time after it was due has passed.
pub fn urgent(valid: Validity, terms: &Acme) -> i64 {
    let due = renewal(valid, terms, 0.0);
    due + (valid.until - due) / 2
}

/// After so many failures in a row, at least one: shortened by chance, by a fifth at most, so that certificates and nodes that
/// failed together do not try again together.
fn back_off(failures: u32, first: Duration, most: Duration, chance: f64) -> Duration {
    let doubled = first.saturating_mul(1_u32.checked_shl(failures.saturating_sub(1)).unwrap_or(u32::MAX));
    doubled.min(most).mul_f64(1.0 - chance / 5.0)
}

fn ms(length: Duration) -> i64 {
    i64::try_from(length.as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::settings::{Challenge, KeyType};
    use proptest::prelude::*;

    const DAY: i64 = 86_400_000;
    const NOW: i64 = 20_000 * DAY;

    pub fn terms() -> Acme {
        Acme {
            directory: "https://ca.example/directory".into(),
            roots: None,
            contact: Vec::new(),
            agree_to_terms: true,
            eab: None,
            key_type: KeyType::P256,
            folder: "acme".into(),
            challenges: vec![Challenge::Http01],
            renew_before: None,
            renew_jitter: 0.1,
            retry_first: Duration::from_secs(60),
            retry_max: Duration::from_secs(86_400),
            order_timeout: Duration::from_secs(300),
            request_timeout: Duration::from_secs(30),
            orders: 4,
            seal: None,
        }
    }

    fn valid(days: i64) -> Validity {
        Validity { from: NOW, until: NOW + days * DAY }
    }

    #[test]
    fn a_certificate_is_renewed_when_a_third_of_it_is_left_or_as_configured() {
        let none = Attempts::default();
        let day = |valid, terms: &Acme, chance| (due(Some(valid), &none, terms, NOW, chance) - NOW) as f64 / DAY as f64;
        assert_eq!(day(valid(90), &terms(), 0.0), 60.0);
        assert_eq!(day(valid(90), &terms(), 1.0), 57.0, "earlier by a tenth of the third");
        let before = |days: u64| Acme { renew_before: Some(Duration::from_secs(days * 86_400)), ..terms() };
        assert_eq!(day(valid(90), &before(10), 0.0), 80.0);
        assert_eq!(day(valid(90), &before(10), 1.0), 79.0);
        assert_eq!(day(valid(90), &before(365), 1.0), 30.0, "never in the first third");
        assert_eq!(day(valid(6), &terms(), 0.0), 4.0);
    }

    #[test]
    fn what_was_issued_later_is_newer_though_it_ends_sooner() {
        let (old, new) = (valid(90), Validity { from: NOW + DAY, until: NOW + 2 * DAY });
        assert!(Some(new) > Some(old) && Some(old) > None);
    }

    #[test]
    fn two_in_a_row_are_a_first_pause_apart_or_a_third_of_what_is_short() {
        let minute = terms().retry_first.as_millis() as i64;
        assert_eq!([None, Some(valid(90))].map(|valid| apart(valid, &terms())), [minute, minute]);
        assert_eq!(apart(Some(Validity { from: NOW, until: NOW + 9000 }), &terms()), 3000);
    }

    #[test]
    fn an_error_is_kept_in_bounds() {
        let attempt = Attempts::default().failed("é".repeat(100_000), None, &terms(), NOW);
        assert_eq!(attempt.error.chars().count(), ERROR_CHARS_MAX);
    }

    #[test]
    fn it_is_urgent_halfway_between_when_it_is_due_and_its_end() {
        assert_eq!(urgent(valid(90), &terms()), NOW + 75 * DAY);
    }

    #[test]
    fn what_is_not_there_is_asked_for_at_once_and_what_ended_too() {
        assert_eq!(due(None, &Attempts::default(), &terms(), NOW, 0.5), NOW);
        let ended = Validity { from: NOW - 90 * DAY, until: NOW - DAY };
        assert!(due(Some(ended), &Attempts::default(), &terms(), NOW, 0.5) < NOW);
    }

    #[test]
    fn failures_double_the_pause_up_to_its_bound() {
        let mut attempts = Attempts::default();
        let mut pauses = Vec::new();
        for _ in 0..14 {
            attempts = attempts.begin(&terms(), NOW, 0.0);
            pauses.push((attempts.next_ms - NOW) / 60_000);
        }
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 1440, 1440, 1440]);
        assert_eq!(attempts.begin(&terms(), NOW, 1.0).next_ms - NOW, DAY * 4 / 5);
        assert_eq!(Attempts { failures: u32::MAX, ..attempts }.begin(&terms(), NOW, 0.0).next_ms - NOW, DAY);
    }

    #[test]
    fn the_authority_may_ask_for_a_longer_pause_within_bounds() {
        let begun = Attempts::default().begin(&terms(), NOW, 0.0);
        let failed = |wait| begun.clone().failed("rate limited".into(), wait, &terms(), NOW);
        assert_eq!(failed(None).next_ms, NOW + 60_000);
        assert_eq!(failed(Some(Duration::from_secs(3600))).next_ms, NOW + 3_600_000);
        assert_eq!(failed(Some(Duration::from_secs(1))).next_ms, NOW + 60_000);
        assert_eq!(failed(Some(Duration::MAX)).next_ms, NOW + DAY);
    }

    #[test]
    fn a_clock_that_was_set_back_keeps_nobody_waiting_for_longer_than_ever() {
        let attempts = Attempts { failures: 1, next_ms: NOW + 1000 * DAY, error: String::new() };
        assert_eq!(due(None, &attempts, &terms(), NOW, 0.0), NOW + DAY);
    }

    proptest! {
        #[test]
        fn a_renewal_is_due_within_the_lifetime_and_never_at_once(
            lifetime in 1000..400 * DAY, before in proptest::option::of(1..500 * 86_400_u64), jitter in 0.0..=1.0, chance in 0.0..1.0
        ) {
            let terms = Acme { renew_before: before.map(Duration::from_secs), renew_jitter: jitter, ..terms() };
            let valid = Validity { from: NOW, until: NOW + lifetime };
            let due = due(Some(valid), &Attempts::default(), &terms, NOW, chance);
            prop_assert!(due >= NOW + lifetime / 3 && due <= valid.until);
        }
    }
}
