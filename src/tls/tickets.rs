//! Session tickets without state: any worker, and with a shared key any node of a fleet, resumes what another began.
//!
//! Keys change every [`SLOT`]; tickets of the slot before are still good. A shared secret gives all nodes the same keys
//! by the clock alone, so that nothing has to be handed round. Without one the secret is the process's own: the one of
//! a later slot follows from that of the slot before and not the other way round, so that what is in memory opens no
//! ticket that is too old to be used.
//!
//! A ticket is good only for the circumstances under which it was made (client certificates asked for or not, by whom
//! they may be issued): resuming must not be a way round them.

use crate::clock;
use aws_lc_rs::aead::{AES_256_GCM, Aad, Nonce, RandomizedNonceKey};
use hmac::{Hmac, KeyInit, Mac};
use parking_lot::Mutex;
use rustls::server::ProducesTickets;
use sha2::Sha256;
use std::fmt;
use std::time::Duration;

/// How long a key makes tickets; for so long again it opens them.
const SLOT: Duration = Duration::from_secs(6 * 3600);
/// What a client is told: a ticket of the very beginning of a slot lives to the end of the next.
const LIFETIME: Duration = SLOT;
/// Shortest secret of a file: 256 bits in hexadecimal digits, or more in other forms.
pub const SECRET_BYTES_MIN: usize = 32;

/// Makes and opens tickets.
pub struct Tickets {
    secret: Source,
    /// Digest of the circumstances.
    circumstances: [u8; 32],
    keys: Mutex<Keys>,
}

enum Source {
    Shared([u8; 32]),
    /// That of the process: [`OWN`].
    Own,
}

/// The secret of a slot.
#[derive(Clone, Copy)]
struct Ratchet {
    slot: u64,
    secret: [u8; 32],
}

/// The slot before the present one, from which the keys of both follow. It outlives listeners and reloads.
static OWN: Mutex<Option<Ratchet>> = Mutex::new(None);

struct Keys {
    slot: u64,
    current: Option<RandomizedNonceKey>,
    previous: Option<RandomizedNonceKey>,
    /// Of a node whose clock is ahead.
    next: Option<RandomizedNonceKey>,
}

impl Tickets {
    /// `secret`: the contents of a file that nodes share; `circumstances`: whatever resumption must not get round.
    pub fn new(secret: Option<&[u8]>, circumstances: &[u8]) -> Self {
        let secret = secret.map_or(Source::Own, |secret| Source::Shared(digest(b"tiercel tickets", secret)));
        let keys = Mutex::new(Keys { slot: u64::MAX, current: None, previous: None, next: None });
        Self { secret, circumstances: digest(b"circumstances", circumstances), keys }
    }

    fn with_keys<T>(&self, now_ms: u64, act: impl FnOnce(&Keys) -> T) -> T {
        let slot = now_ms / SLOT.as_millis() as u64;
        let mut keys = self.keys.lock();
        if keys.slot != slot {
            *keys = self.keys_of(slot);
        }
        act(&keys)
    }

    fn keys_of(&self, slot: u64) -> Keys {
        match &self.secret {
            Source::Shared(secret) => {
                let key = |slot: u64| self.key(&digest(secret, &slot.to_be_bytes()));
                Keys { slot, current: key(slot), previous: key(slot.wrapping_sub(1)), next: key(slot + 1) }
            }
            Source::Own => {
                let previous = own_secret(slot.saturating_sub(1));
                Keys { slot, current: self.key(&step(&previous)), previous: self.key(&previous), next: None }
            }
        }
    }

    fn key(&self, secret: &[u8; 32]) -> Option<RandomizedNonceKey> {
        RandomizedNonceKey::new(&AES_256_GCM, &digest(secret, &self.circumstances)).ok()
    }

    fn seal(&self, message: &[u8], now_ms: u64) -> Option<Vec<u8>> {
        self.with_keys(now_ms, |keys| {
            let mut sealed = message.to_vec();
            let slot = keys.slot.to_be_bytes();
            let nonce = keys.current.as_ref()?.seal_in_place_append_tag(Aad::from(slot), &mut sealed).ok()?;
            Some([&slot[..], nonce.as_ref(), &sealed].concat())
        })
    }

    fn open(&self, ticket: &[u8], now_ms: u64) -> Option<Vec<u8>> {
        let (slot, rest) = ticket.split_first_chunk::<8>()?;
        let (nonce, sealed) = rest.split_first_chunk::<12>()?;
        self.with_keys(now_ms, |keys| {
            let key = match u64::from_be_bytes(*slot) {
                made if made == keys.slot => &keys.current,
                made if made == keys.slot.wrapping_sub(1) => &keys.previous,
                made if made == keys.slot + 1 => &keys.next,
                _ => return None,
            };
            let mut sealed = sealed.to_vec();
            let nonce = Nonce::assume_unique_for_key(*nonce);
            let length = key.as_ref()?.open_in_place(nonce, Aad::from(*slot), &mut sealed).ok()?.len();
            sealed.truncate(length);
            Some(sealed)
        })
    }
}

/// The process's secret of this slot or, should the clock have gone back, of the earliest that it still knows.
fn own_secret(slot: u64) -> [u8; 32] {
    let mut own = OWN.lock();
    let known = own.get_or_insert_with(|| Ratchet { slot, secret: rand::random() });
    // A clock that leaps by years is set from a new one: a step for each slot would take its time.
    if slot.saturating_sub(known.slot) > STEPS_MAX {
        *known = Ratchet { slot, secret: rand::random() };
    }
    while known.slot < slot {
        *known = Ratchet { slot: known.slot + 1, secret: step(&known.secret) };
    }
    known.secret
}

const STEPS_MAX: u64 = 10_000;

fn step(secret: &[u8; 32]) -> [u8; 32] {
    digest(secret, b"next slot")
}

pub(super) fn digest(key: &[u8], text: &[u8]) -> [u8; 32] {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes keys of any length");
    mac.update(text);
    mac.finalize().into_bytes().into()
}

impl ProducesTickets for Tickets {
    fn enabled(&self) -> bool {
        true
    }
    fn lifetime(&self) -> u32 {
        LIFETIME.as_secs() as u32
    }
    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        self.seal(plain, clock::now().wall_ms.unsigned_abs())
    }
    fn decrypt(&self, cipher: &[u8]) -> Option<Vec<u8>> {
        self.open(cipher, clock::now().wall_ms.unsigned_abs())
    }
}

impl fmt::Debug for Tickets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tickets")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SLOT_MS: u64 = SLOT.as_millis() as u64;
    const NOW: u64 = 1_000_000 * SLOT_MS + 5;

    #[test]
    fn nodes_with_the_same_secret_open_each_others_tickets_and_nobody_else() {
        let (one, other) = (Tickets::new(Some(&[7; 32]), b""), Tickets::new(Some(&[7; 32]), b""));
        let ticket = one.seal(b"session", NOW).unwrap();
        assert_eq!(other.open(&ticket, NOW).as_deref(), Some(&b"session"[..]));
        assert_eq!(Tickets::new(Some(&[8; 32]), b"").open(&ticket, NOW), None);
        assert_eq!(Tickets::new(Some(&[7; 32]), b"certificates").open(&ticket, NOW), None, "other circumstances");
        assert_eq!(Tickets::new(None, b"").open(&ticket, NOW), None);
        for at in [0, 8, 20, ticket.len() - 1] {
            let mut spoilt = ticket.clone();
            spoilt[at] ^= 1;
            assert_eq!(one.open(&spoilt, NOW), None);
        }
        for end in 0..ticket.len() {
            assert_eq!(one.open(&ticket[..end], NOW), None);
        }
    }

    #[test]
    fn a_ticket_is_good_in_its_slot_and_the_next() {
        let shared = Tickets::new(Some(&[7; 32]), b"");
        let ticket = shared.seal(b"session", NOW).unwrap();
        assert!(shared.open(&ticket, NOW - SLOT_MS).is_some(), "a node whose clock is behind");
        assert!(shared.open(&ticket, NOW + SLOT_MS).is_some());
        assert_eq!(shared.open(&ticket, NOW + 2 * SLOT_MS), None);
        // All of a process have one secret, which moves on: this alone touches it.
        let (own, other) = (Tickets::new(None, b""), Tickets::new(None, b""));
        let ticket = own.seal(b"session", NOW).unwrap();
        assert!(other.open(&ticket, NOW).is_some(), "another listener, or the same one after a reload");
        assert!(other.open(&ticket, NOW + SLOT_MS).is_some());
        assert_eq!(other.open(&ticket, NOW + 2 * SLOT_MS), None);
    }
}
