//! Secondary keys (RFC 9111 §4.1): which request fields select among the responses of one cache key.

use super::Fields;
use super::policy::CachePolicy;

/// A response's Vary, all lines, lower case, sorted, without repeats.
#[derive(Debug, Clone, PartialEq, Eq, Default, Hash)]
pub enum Vary {
    /// No Vary, or an empty one.
    #[default]
    Nothing,
    /// These request fields.
    Fields(Box<[Box<str>]>),
    /// A `*` anywhere in the list: never reusable without validation.
    Star,
}

impl Vary {
    pub fn parse(response: &Fields) -> Self {
        let _ = response;
        todo!()
    }

    /// The normalised values of the selecting fields in this request, as one comparable block.
    ///
    /// Each field's lines are joined, white space around commas dropped; Accept-Encoding and Accept-Language have
    /// normalisers of their own; quoted strings are left alone; absent is distinct from empty.
    /// `Star` gives a key that nothing equals... callers ask [`Vary::is_star`] first.
    pub fn secondary_key(&self, request: &Fields, policy: &CachePolicy) -> SecondaryKey {
        let _ = (request, policy);
        todo!()
    }

    pub const fn is_star(&self) -> bool {
        matches!(self, Self::Star)
    }
}

/// Values selected by Vary, compared byte for byte. Empty for a response without Vary.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct SecondaryKey(pub Box<[u8]>);
