//! The field by which one node of a fleet tells another who asks: `Tiercel-Hop`.
//!
//! `1 TIME SENDER NUMBER POLICY JOURNAL PURGE UNSAFE [held] MAC`, one space between. The MAC is HMAC-SHA256 over the method,
//! the scheme, the authority and the target, a line each, and all of the field before it. It says that the request comes from
//! a node that has the key, is meant as it stands, and is new; fields and body of a request it does not cover: for that
//! the network is to be trusted. The format is specified in docs/shield.md.

use crate::invalidation::Position;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use std::fmt::Write;

/// Version of what is spoken between nodes.
const VERSION: &str = "1";
/// [`Wanted::Held`], as a word.
const HELD: &str = "held";

/// How far apart the clocks of two nodes and the way between them may be, milliseconds.
pub const WINDOW_MS: i64 = 30_000;

/// Bytes of a hop field that is read.
const LENGTH_MAX: usize = 512;

/// The secret that the nodes of a fleet share.
#[derive(Clone)]
pub struct Key(Hmac<Sha256>);

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("***")
    }
}

/// What of a request the hop vouches for.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    pub method: &'a str,
    pub scheme: &'a str,
    pub authority: &'a str,
    /// Path and query.
    pub target: &'a str,
}

/// How far a node has come in its journal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Standing {
    /// Which journal: 0 where the node is its own.
    pub journal: u128,
    pub purge: Position,
    pub unsafe_method: Position,
}

/// What is wanted of a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Wanted {
    /// A response, wherever it is had from.
    #[default]
    Response,
    /// What it holds and is fresh, or nothing: it asks nobody.
    Held,
}

/// What a hop says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hop {
    /// Unix time.
    pub at_ms: i64,
    /// The process that asks.
    pub sender: u128,
    /// Its how manyth hop this is.
    pub number: u64,
    /// Hash of what it makes of requests: sites and routes.
    pub policy: u128,
    pub standing: Standing,
    pub wanted: Wanted,
}

/// Why a hop is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    #[error("there is no Tiercel-Hop")]
    Missing,
    #[error("Tiercel-Hop is malformed, or of another version")]
    Malformed,
    #[error("Tiercel-Hop was made with another key, or for another request")]
    Forged,
    #[error("Tiercel-Hop was made more than 30 s ago, or the clocks of the nodes disagree")]
    Stale,
    #[error("Tiercel-Hop was seen before")]
    Replayed,
    #[error("too many processes ask")]
    TooManySenders,
    #[error("the request was sent by this very process")]
    Own,
}

impl Invalid {
    pub const ALL: [Self; 7] = [Self::Missing, Self::Malformed, Self::Forged, Self::Stale, Self::Replayed, Self::TooManySenders, Self::Own];

    /// Token for log and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Missing => "hop-missing",
            Self::Malformed => "hop-malformed",
            Self::Forged => "hop-forged",
            Self::Stale => "hop-stale",
            Self::Replayed => "hop-replayed",
            Self::TooManySenders => "hop-senders",
            Self::Own => "hop-own",
        }
    }
}

impl Key {
    pub fn new(secret: &[u8]) -> Self {
        Self(Hmac::new_from_slice(secret).expect("HMAC takes keys of any length"))
    }

    fn mac(&self, asked: &Asked<'_>, said: &str) -> Hmac<Sha256> {
        let mut mac = self.0.clone();
        // None of the first four holds a line end, so no two requests are written alike.
        for part in [asked.method, asked.scheme, asked.authority, asked.target, said] {
            mac.update(part.as_bytes());
            mac.update(b"\n");
        }
        mac
    }
}

impl Hop {
    /// The field for a request.
    pub fn write(&self, key: &Key, asked: &Asked<'_>) -> String {
        let Self { at_ms, sender, number, policy, standing: Standing { journal, purge, unsafe_method }, wanted } = self;
        let mut text = format!("{VERSION} {at_ms} {sender:032x} {number} {policy:032x} {journal:032x} {purge} {unsafe_method}");
        if *wanted == Wanted::Held {
            text.push(' ');
            text.push_str(HELD);
        }
        let mac = key.mac(asked, &text).finalize().into_bytes();
        text.push(' ');
        for byte in mac {
            let _ = write!(text, "{byte:02x}"); // to a String it cannot fail
        }
        text
    }

    /// Reads the field of a request; the MAC is right and the time near `wall_ms`. Whether it is new is for
    /// [`super::replay::Replays`] to say.
    pub fn read(field: &[u8], key: &Key, asked: &Asked<'_>, wall_ms: i64) -> Result<Self, Invalid> {
        let text = std::str::from_utf8(field).ok().filter(|text| text.len() <= LENGTH_MAX).ok_or(Invalid::Malformed)?;
        let (said, mac) = text.rsplit_once(' ').ok_or(Invalid::Malformed)?;
        let hop = Self::parse(said).ok_or(Invalid::Malformed)?;
        let mac = unhex(mac).ok_or(Invalid::Malformed)?;
        key.mac(asked, said).verify_slice(&mac).map_err(|_| Invalid::Forged)?;
        if hop.at_ms.abs_diff(wall_ms) > WINDOW_MS.unsigned_abs() {
            return Err(Invalid::Stale);
        }
        Ok(hop)
    }

    fn parse(said: &str) -> Option<Self> {
        let mut words = said.split(' ');
        if words.next()? != VERSION {
            return None;
        }
        let hash = |word: &str| u128::from_str_radix(word, 16).ok().filter(|_| word.len() == 32);
        let hop = Self {
            at_ms: words.next()?.parse().ok()?,
            sender: hash(words.next()?)?,
            number: words.next()?.parse().ok()?,
            policy: hash(words.next()?)?,
            standing: Standing {
                journal: hash(words.next()?)?,
                purge: words.next()?.parse().ok()?,
                unsafe_method: words.next()?.parse().ok()?,
            },
            wanted: match words.next() {
                None => Wanted::Response,
                Some(word) if word == HELD => Wanted::Held,
                Some(_) => return None,
            },
        };
        words.next().is_none().then_some(hop)
    }
}

fn unhex(text: &str) -> Option<[u8; 32]> {
    let digits = text.as_bytes();
    if digits.len() != 64 || !digits.iter().all(u8::is_ascii_hexdigit) {
        return None;
    }
    let mut bytes = [0; 32];
    for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ASKED: Asked<'_> = Asked { method: "GET", scheme: "http", authority: "shop.example", target: "/a?b=c" };

    fn hop() -> Hop {
        let position = |ms| Position { epoch: 3, ms, sequence: 1 };
        let standing = Standing { journal: 7, purge: position(10), unsafe_method: position(20) };
        Hop { at_ms: 1_700_000_000_000, sender: 1, number: 42, policy: 5, standing, wanted: Wanted::Response }
    }

    #[test]
    fn what_was_written_is_read() {
        let key = Key::new(b"secret");
        let field = hop().write(&key, &ASKED);
        assert_eq!(Hop::read(field.as_bytes(), &key, &ASKED, hop().at_ms + WINDOW_MS), Ok(hop()));
        assert!(field.len() < LENGTH_MAX);
        let of_held = Hop { wanted: Wanted::Held, ..hop() };
        let field = of_held.write(&key, &ASKED);
        assert_eq!(Hop::read(field.as_bytes(), &key, &ASKED, hop().at_ms), Ok(of_held));
    }

    #[test]
    fn what_is_wanted_is_vouched_for_too() {
        let key = Key::new(b"secret");
        let (any, of_held) = (hop().write(&key, &ASKED), Hop { wanted: Wanted::Held, ..hop() }.write(&key, &ASKED));
        let read = |field: &str| Hop::read(field.as_bytes(), &key, &ASKED, hop().at_ms);
        assert_eq!(read(&of_held.replace(" held ", " ")), Err(Invalid::Forged));
        let (said, mac) = any.rsplit_once(' ').unwrap();
        assert_eq!(read(&format!("{said} held {mac}")), Err(Invalid::Forged));
        for word in ["hold", "held held"] {
            assert_eq!(read(&format!("{said} {word} {mac}")), Err(Invalid::Malformed));
        }
    }

    #[test]
    fn the_text_is_the_one_that_the_documentation_specifies() {
        let field = hop().write(&Key::new(b"secret"), &ASKED);
        let (said, mac) = field.rsplit_once(' ').unwrap();
        let zeros = "0".repeat(31);
        assert_eq!(said, format!("1 1700000000000 {zeros}1 42 {zeros}5 {zeros}7 3-10-1 3-20-1"));
        // printf 'GET\nhttp\nshop.example\n/a?b=c\n1 1700...\n' | openssl dgst -sha256 -hmac secret
        assert_eq!(mac, "7b9a01f3ac853fde4429fd9756317588e3494152b87aa48ce21c446aea52e5f2");
    }

    #[test]
    fn another_key_request_or_time_is_refused() {
        let (key, now) = (Key::new(b"secret"), hop().at_ms);
        let field = hop().write(&key, &ASKED);
        let read = |key: &Key, asked: &Asked<'_>, now| Hop::read(field.as_bytes(), key, asked, now);
        assert_eq!(read(&Key::new(b"secreT"), &ASKED, now), Err(Invalid::Forged));
        for other in [
            Asked { method: "HEAD", ..ASKED },
            Asked { scheme: "https", ..ASKED },
            Asked { authority: "shop.example:80", ..ASKED },
            Asked { target: "/a?b=d", ..ASKED },
            // The same bytes, parted otherwise.
            Asked { authority: "shop.exampl", target: "e/a?b=c", ..ASKED },
        ] {
            assert_eq!(read(&key, &other, now), Err(Invalid::Forged), "{other:?}");
        }
        for off in [WINDOW_MS + 1, -WINDOW_MS - 1] {
            assert_eq!(read(&key, &ASKED, now + off), Err(Invalid::Stale));
        }
    }

    proptest! {
        #[test]
        fn one_byte_otherwise_is_never_taken(at in 0_usize..300, byte: u8) {
            let key = Key::new(b"secret");
            let mut field = hop().write(&key, &ASKED).into_bytes();
            let at = at % field.len();
            prop_assume!(field[at] != byte);
            // Hexadecimal digits of the MAC may be in either case.
            prop_assume!(!field[at].eq_ignore_ascii_case(&byte));
            field[at] = byte;
            prop_assert!(Hop::read(&field, &key, &ASKED, hop().at_ms).is_err());
        }

        #[test]
        fn anything_is_read_or_refused(field in proptest::collection::vec(any::<u8>(), 0..600)) {
            let _ = Hop::read(&field, &Key::new(b"secret"), &ASKED, 0);
        }
    }
}
