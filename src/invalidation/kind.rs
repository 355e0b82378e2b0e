//! The kinds of selectors, and sets of them.

/// What sort of thing a selector names. One counter per kind says when it last moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Kind {
    Url,
    Key,
    Group,
    Prefix,
    Host,
    Site,
    Everything,
}

impl Kind {
    pub const ALL: [Self; 7] = [Self::Url, Self::Key, Self::Group, Self::Prefix, Self::Host, Self::Site, Self::Everything];

    /// As in metrics, receipts and `explain`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Url => "url",
            Self::Key => "key",
            Self::Group => "group",
            Self::Prefix => "prefix",
            Self::Host => "host",
            Self::Site => "site",
            Self::Everything => "everything",
        }
    }
}

/// A set of kinds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Kinds(u8);

impl Kinds {
    pub const ALL: Self = Self((1 << Kind::ALL.len()) - 1);
    /// What may hit much.
    pub const WIDE: Self = Self(1 << Kind::Prefix as u8 | 1 << Kind::Host as u8 | 1 << Kind::Site as u8 | 1 << Kind::Everything as u8);

    pub fn insert(&mut self, kind: Kind) {
        self.0 |= 1 << kind as u8;
    }
    pub const fn contains(self, kind: Kind) -> bool {
        self.0 & (1 << kind as u8) != 0
    }
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }
}
