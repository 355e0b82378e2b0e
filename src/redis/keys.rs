//! Names of everything that Tiercel keeps in Redis: no other module spells a key.
//!
//! All begin with the prefix. What has to be read or changed in one step shares a hash tag (the part in braces), so that
//! Redis Cluster keeps it in one slot: the records of one URL, and everything of the journal.

use std::fmt;

/// Makes the keys of one prefix.
#[derive(Debug, Clone)]
pub struct Keys {
    prefix: Box<str>,
}

/// What keys are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kept {
    Primary,
    Head,
    Segment,
    Floor,
    Lease,
    Limit,
    Acme,
    Journal,
}

/// What the records of one URL have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UrlKeys<'a> {
    keys: &'a Keys,
    /// Of the fleet's journal: records of another one are never asked for.
    epoch: u64,
    url: u128,
}

impl Keys {
    pub fn new(prefix: &str) -> Self {
        Self { prefix: prefix.into() }
    }

    /// The records that stored responses of a URL consist of.
    pub fn url(&self, epoch: u64, url: u128) -> UrlKeys<'_> {
        UrlKeys { keys: self, epoch, url }
    }

    /// Matches everything of ours; for `SCAN`.
    pub fn pattern(&self) -> String {
        format!("{}:*", self.prefix)
    }

    /// What is kept under a name; `None` where it is not ours.
    pub fn kept(&self, name: &str) -> Option<Kept> {
        let rest = name.strip_prefix(&*self.prefix)?.strip_prefix(':')?;
        if rest.starts_with("{journal}") {
            return Some(Kept::Journal);
        }
        if rest.starts_with("limit:{") {
            return Some(Kept::Limit);
        }
        if rest.starts_with("acme:{") {
            return Some(Kept::Acme);
        }
        let (_, record) = rest.strip_prefix("c:")?.split_once("}:")?;
        match record.as_bytes().first()? {
            b'p' => Some(Kept::Primary),
            b'h' => Some(Kept::Head),
            b's' => Some(Kept::Segment),
            b'f' => Some(Kept::Floor),
            b'l' => Some(Kept::Lease),
            _ => None,
        }
    }

    /// The record of the fleet's journal. Its streams are named after it and its epoch, by the scripts that know the epoch.
    pub fn journal(&self) -> String {
        format!("{}:{{journal}}", self.prefix)
    }

    /// A stream of the journal in an epoch: `purges` or `unsafe`.
    pub fn journal_stream(&self, stream: &str, epoch: u64) -> String {
        format!("{}:{stream}:{epoch}", self.journal())
    }

    /// The counter of a shared rate limit.
    pub fn limit(&self, name: impl fmt::Display) -> String {
        format!("{}:limit:{{{name}}}", self.prefix)
    }

    /// What nodes share to obtain certificates.
    pub fn acme(&self, name: impl fmt::Display) -> String {
        format!("{}:acme:{{{name}}}", self.prefix)
    }

    /// A channel for messages that nobody needs to keep.
    pub fn channel(&self, name: &str) -> String {
        format!("{}:channel:{name}", self.prefix)
    }
}

impl UrlKeys<'_> {
    /// What is known of a cache key: the fields that its responses vary by, and which came last.
    pub fn primary(&self, key: u128) -> String {
        self.record(format_args!("p:{key:032x}"))
    }

    /// The head of one stored response; writing it makes the response visible.
    pub fn head(&self, variant: u128) -> String {
        self.record(format_args!("h:{variant:032x}"))
    }

    /// One segment of a body.
    pub fn segment(&self, body: u128, number: u32) -> String {
        self.record(format_args!("s:{body:032x}:{number}"))
    }

    /// The time before which stored responses of this URL must not have been fetched.
    pub fn floor(&self) -> String {
        self.record(format_args!("f"))
    }

    /// Who fetches this for the fleet.
    pub fn lease(&self, variant: u128) -> String {
        self.record(format_args!("l:{variant:032x}"))
    }

    fn record(&self, rest: fmt::Arguments<'_>) -> String {
        format!("{}:c:{}:{{{:032x}}}:{rest}", self.keys.prefix, self.epoch, self.url)
    }
}

/// The slot of a Cluster in which a key is: CRC-16/XMODEM of its hash tag.
pub(super) fn slot(key: &str) -> u16 {
    let tag = key.split_once('{').and_then(|(_, rest)| rest.split_once('}')).map(|(tag, _)| tag).filter(|tag| !tag.is_empty());
    let crc = tag.unwrap_or(key).bytes().fold(0_u16, |crc, byte| {
        (0..8).fold(crc ^ (u16::from(byte) << 8), |crc, _| if crc & 0x8000 == 0 { crc << 1 } else { (crc << 1) ^ 0x1021 })
    });
    crc % 16_384
}

impl PartialEq for Keys {
    fn eq(&self, other: &Self) -> bool {
        self.prefix == other.prefix
    }
}

impl Eq for Keys {}

#[cfg(test)]
mod tests {
    use super::*;

    /// What Redis Cluster hashes: the text in the first braces.
    fn tag(key: &str) -> &str {
        let (_, rest) = key.split_once('{').expect("a hash tag");
        rest.split_once('}').expect("a whole hash tag").0
    }

    #[test]
    fn records_of_one_url_share_a_slot_and_no_name() {
        let keys = Keys::new("shop");
        let url = keys.url(3, 0xabc);
        let all = [url.primary(1), url.head(1), url.head(2), url.segment(1, 0), url.segment(1, 1), url.floor(), url.lease(1)];
        let mut names = all.to_vec();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), all.len(), "{all:?}");
        assert!(all.iter().all(|key| tag(key) == format!("{:032x}", 0xabc)), "{all:?}");
        assert_eq!(url.floor(), "shop:c:3:{00000000000000000000000000000abc}:f");
        assert_ne!(url.floor(), keys.url(4, 0xabc).floor(), "an epoch shares nothing with another");
    }

    #[test]
    fn every_name_says_what_it_is_for() {
        let keys = Keys::new("shop");
        let url = keys.url(3, 0xabc);
        let all = [
            (url.primary(1), Kept::Primary),
            (url.head(1), Kept::Head),
            (url.segment(1, 0), Kept::Segment),
            (url.floor(), Kept::Floor),
            (url.lease(1), Kept::Lease),
            (keys.limit("api:1"), Kept::Limit),
            (keys.acme("example.org:turn"), Kept::Acme),
            (keys.journal(), Kept::Journal),
            (keys.journal_stream("unsafe", 7), Kept::Journal),
        ];
        for (name, kept) in all {
            assert_eq!(keys.kept(&name), Some(kept), "{name}");
            assert_eq!(Keys::new("sho").kept(&name), None, "{name}");
        }
        assert_eq!(keys.kept("shop:north:{journal}"), None, "another prefix");
    }

    #[test]
    fn slots_are_those_of_the_specification() {
        assert_eq!(slot("123456789"), 0x31C3);
        assert_eq!(slot("foo"), 12182);
        assert_eq!(slot("x:{foo}:y"), 12182);
    }

    #[test]
    fn everything_of_the_journal_shares_a_slot() {
        let keys = Keys::new("tiercel");
        let all = [keys.journal(), keys.journal_stream("purges", 7), keys.journal_stream("unsafe", 7)];
        assert!(all.iter().all(|key| tag(key) == "journal"), "{all:?}");
    }
}
