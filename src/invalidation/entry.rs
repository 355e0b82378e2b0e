//! Entries of the journal, as a node issues them and as they arrive in order.

use super::{Mode, Position, Selector};
use std::fmt;
use std::str::FromStr;

/// Names a purge on all nodes: 128 random bits, as text 32 hex digits in lower case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct PurgeId(u128);

impl PurgeId {
    pub(super) fn random() -> Self {
        Self(rand::random())
    }
}

/// The text is no purge id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a purge id is 32 hex digits in lower case")]
pub struct NotAPurgeId;

impl fmt::Display for PurgeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl FromStr for PurgeId {
    type Err = NotAPurgeId;

    fn from_str(text: &str) -> Result<Self, NotAPurgeId> {
        let id = u128::from_str_radix(text, 16).map(Self).map_err(|_| NotAPurgeId)?;
        if id.to_string() == text { Ok(id) } else { Err(NotAPurgeId) }
    }
}

impl From<PurgeId> for String {
    fn from(id: PurgeId) -> Self {
        id.to_string()
    }
}

impl TryFrom<String> for PurgeId {
    type Error = NotAPurgeId;

    fn try_from(text: String) -> Result<Self, NotAPurgeId> {
        text.parse()
    }
}

/// A purge as issued: in the journal's order it becomes an [`Entry`].
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Purge {
    pub id: PurgeId,
    /// All of one call: they apply together.
    pub selectors: Vec<Selector>,
    pub mode: Mode,
    /// RFC 3339, UTC.
    pub issued_at: String,
    pub actor: String,
}

/// A purge in its place.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Entry {
    pub position: Position,
    /// The entry before it; [`Position::start_of`] its epoch for the first.
    pub previous: Position,
    pub purge: Purge,
}

/// Why an entry was not applied; the journal is as it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Nothing is lost: it is there already.
    #[error("entry is not after the last one applied, {applied}")]
    Duplicate { applied: Position },
    /// Entries between are missing: whoever follows has to read again or to give up what it holds.
    #[error("entry follows {previous}, but the last one applied is {applied}")]
    Gap { applied: Position, previous: Position },
    #[error("entry is of an older epoch than the last one applied, {applied}")]
    OlderEpoch { applied: Position },
}

impl Entry {
    /// Whether this is the one to apply after `applied`. The first of a later epoch follows whatever was there.
    pub(super) fn follows(&self, applied: Position) -> Result<(), Refused> {
        Refused::unless_next(self.position, self.previous, applied)
    }
}

impl Refused {
    /// Whether what is at `position`, after `previous`, is the next after `applied`.
    pub(super) fn unless_next(position: Position, previous: Position, applied: Position) -> Result<(), Self> {
        if position.epoch < applied.epoch {
            return Err(Self::OlderEpoch { applied });
        }
        if position <= applied {
            return Err(Self::Duplicate { applied });
        }
        let expected = if position.epoch > applied.epoch { Position::start_of(position.epoch) } else { applied };
        if previous == expected { Ok(()) } else { Err(Self::Gap { applied, previous }) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn entry(position: &str, previous: &str) -> Entry {
        let purge = Purge { id: PurgeId(7), selectors: vec![], mode: Mode::Hard, issued_at: String::new(), actor: String::new() };
        Entry { position: position.parse().unwrap(), previous: previous.parse().unwrap(), purge }
    }

    #[test]
    fn entry_follows_only_the_last_one_applied() {
        let applied: Position = "2-10-0".parse().unwrap();
        let rows = [
            ("2-11-0", "2-10-0", Ok(())),
            ("2-10-1", "2-10-0", Ok(())),
            ("2-10-0", "2-9-0", Err(Refused::Duplicate { applied })),
            ("2-9-5", "2-9-4", Err(Refused::Duplicate { applied })),
            ("2-12-0", "2-11-0", Err(Refused::Gap { applied, previous: "2-11-0".parse().unwrap() })),
            ("1-99-0", "2-10-0", Err(Refused::OlderEpoch { applied })),
            ("3-1-0", "3-0-0", Ok(())),
            ("3-2-0", "3-1-0", Err(Refused::Gap { applied, previous: "3-1-0".parse().unwrap() })),
        ];
        for (position, previous, expected) in rows {
            assert_eq!(entry(position, previous).follows(applied), expected, "{position} after {previous}");
        }
    }

    #[test]
    fn entry_survives_json() {
        let mut entry = entry("1-2-3", "1-2-2");
        entry.purge.selectors = vec![
            Selector::Url("a.test/".into()),
            Selector::Group { origin: "http://a.test".into(), group: "g".into() },
            Selector::Everything,
        ];
        let text = serde_json::to_string(&entry).unwrap();
        assert!(text.contains("\"00000000000000000000000000000007\""), "{text}");
        assert_eq!(serde_json::from_str::<Entry>(&text).unwrap(), entry);
    }

    proptest! {
        #[test]
        fn purge_id_survives_its_text(bits: u128) {
            let id = PurgeId(bits);
            prop_assert_eq!(id.to_string().len(), 32);
            prop_assert_eq!(id.to_string().parse(), Ok(id));
        }

        #[test]
        fn any_text_is_a_purge_id_or_refused(text in "[0-9a-fA-F+-]{30,34}|\\PC{0,40}") {
            if let Ok(id) = text.parse::<PurgeId>() {
                prop_assert_eq!(id.to_string(), text);
            }
        }
    }
}
