//! A response as the cache holds it.

use super::{Forms, Tags};
use crate::body::StoredBody;
use crate::coalesce::pinned::Kept;
use crate::invalidation::{CheckedUpTo, Journal, SharedStamp, Subject};
use crate::pages;
use crate::semantics::freshness::Facts;
use crate::semantics::partial::Version;
use crate::semantics::policy::CachePolicy;
use crate::semantics::reuse::{Validity, keep_ms};
use crate::semantics::storage::stored_fields;
use crate::semantics::vary::SecondaryKey;
use crate::semantics::{CacheKey, Fields, Now, Response, StatusCode, validation};
use std::sync::Arc;
use std::time::Duration;

/// The head of a response that may be stored: what a flight publishes and a stored response keeps.
#[derive(Debug)]
pub struct StoredHead {
    /// Ready for the wire: connection-specific fields, Age and surrogate keys left out, Date there.
    pub fields: Fields,
    pub facts: Facts,
    pub key: CacheKey,
    pub secondary: SecondaryKey,
    /// Journal positions at which the fetch began.
    pub stamp: SharedStamp,
    pub checked: CheckedUpTo,
    pub tags: Tags,
    pub site: Arc<Box<str>>,
    /// Order in which fetches began in this process: a later one replaces an earlier one, never the reverse.
    pub fetch: u64,
    /// When the request was sent that brought or confirmed it, boot-time milliseconds.
    pub sent_mono_ms: u64,
}

// With the two counts of an `Arc` this is a size of the allocator; the next one is 64 bytes more.
const _: () = assert!(size_of::<StoredHead>() <= 240);

impl StoredHead {
    /// As the rules see it.
    pub fn as_response(&self) -> Response<'_> {
        Response { status: self.status(), fields: &self.fields }
    }

    /// The status that it is sent with.
    pub const fn status(&self) -> StatusCode {
        self.facts.sent_as
    }

    /// As the journal sees it.
    pub fn subject(&self) -> Subject<'_> {
        subject(&self.key, &self.site, &self.tags)
    }

    /// What the journal says of it now; cheap where nothing new was applied.
    pub fn check(&self, journal: &Journal) -> Validity {
        journal.remembered(&self.checked).unwrap_or_else(|| journal.check(&self.subject(), &self.stamp, &self.checked))
    }

    /// As it is where another list of targeted fields counts than the one that it was stored by.
    fn reread(&self, policy: &CachePolicy) -> Self {
        let facts = self.facts.reread(&self.fields, &policy.targeted);
        let received = self.facts.received_fields(&self.fields);
        let fields = stored_fields(Response { status: self.status(), fields: &received }, &facts, policy);
        Self { facts, ..self.with_fields(fields) }
    }

    /// The same but for its fields.
    pub fn with_fields(&self, fields: Fields) -> Self {
        Self {
            fields,
            facts: self.facts.clone(),
            key: self.key.clone(),
            secondary: self.secondary.clone(),
            stamp: self.stamp.clone(),
            checked: CheckedUpTo::default(),
            tags: self.tags.clone(),
            site: Arc::clone(&self.site),
            fetch: self.fetch,
            sent_mono_ms: self.sent_mono_ms,
        }
    }

    pub(super) fn memory(&self) -> usize {
        // The key's text is shared with the set of variants, which weighs it.
        size_of::<Self>() + self.fields.memory() + self.facts.memory() + self.tags.memory() + self.secondary.0.len()
    }
}

/// What of a response the journal matches on.
pub fn subject<'a>(key: &'a CacheKey, site: &'a str, tags: &'a Tags) -> Subject<'a> {
    let url_text = key.url_text();
    let authority = url_text.split_once('/').map_or(url_text, |(authority, _)| authority);
    Subject { url: key.url_hash(), url_text, authority, site, keys: tags.keys(), groups: tags.groups() }
}

/// A whole response. Immutable but for what the journal has checked.
///
/// The memory tier keeps values of this type. Of a cache key with one response that is the value; several are in one that
/// holds nothing else, which leaves the tier by [`StoredResponse::responses`] alone (`variants`).
#[derive(Debug)]
pub struct StoredResponse {
    pub head: Arc<StoredHead>,
    pub content: Content,
    /// Bytes of the whole.
    pub length: u64,
    /// When it is worth nothing any more, boot-time milliseconds.
    pub drop_at_mono_ms: u64,
    /// What was made of it.
    pub forms: Option<Arc<Forms>>,
}

/// Where the bytes of a stored response are.
#[derive(Debug, Clone)]
pub enum Content {
    /// Here, all of them.
    Whole(Kept),
    Elsewhere(Box<Elsewhere>),
}

/// Where they are if not here.
#[derive(Debug, Clone)]
pub enum Elsewhere {
    /// In blocks, each of them a stored response with a key of its own.
    Blocks(Blocks),
    /// In the responses of one cache key, newest first: two at least.
    Variants(Box<[Arc<StoredResponse>]>),
}

// With the two counts of an `Arc` this is a size of the allocator; the next one is 16 bytes more.
const _: () = assert!(size_of::<StoredResponse>() <= 48);

/// The blocks that a response consists of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blocks {
    /// Bytes of each but the last.
    pub size: u64,
    pub version: Version,
}

impl StoredResponse {
    /// Around a whole body. Its trailers are not kept (RFC 9110 §6.5.1 lets them go): a hit would not send them.
    pub fn new(head: Arc<StoredHead>, kept: Kept, length: u64, policy: &CachePolicy, now: Now) -> Self {
        let keep = keep_ms(&head.facts, policy, now);
        Self { head, content: Content::Whole(kept), length, drop_at_mono_ms: now.mono_ms.saturating_add(keep), forms: None }
    }

    /// Around no bytes: they are in blocks.
    pub fn in_blocks(head: Arc<StoredHead>, blocks: Blocks, policy: &CachePolicy, now: Now) -> Self {
        let (length, keep) = (blocks.version.length(), keep_ms(&head.facts, policy, now));
        let content = Content::Elsewhere(Box::new(Elsewhere::Blocks(blocks)));
        Self { head, content, length, drop_at_mono_ms: now.mono_ms.saturating_add(keep), forms: None }
    }

    /// The same bytes under an updated head; `None` where that does not name the version of blocks any more.
    pub fn with_head(&self, head: Arc<StoredHead>, policy: &CachePolicy, now: Now) -> Option<Self> {
        if let Some(blocks) = self.blocks() {
            let version = Version::of(&head.fields, self.length)?;
            return Some(Self::in_blocks(head, Blocks { size: blocks.size, version }, policy, now));
        }
        let is_same = !validation::changes_representation(&self.head.fields, &head.fields);
        let forms = self.forms.as_ref().filter(|_| is_same).map(|forms| Arc::new(forms.under(&head)));
        let drop_at_mono_ms = now.mono_ms.saturating_add(keep_ms(&head.facts, policy, now));
        Some(Self { head, content: self.content.clone(), length: self.length, drop_at_mono_ms, forms })
    }

    /// The same, to be dropped at another time.
    #[must_use]
    pub fn until(&self, drop_at_mono_ms: u64) -> Self {
        Self { drop_at_mono_ms, ..self.with_forms(self.forms.clone()) }
    }

    /// The same with these forms.
    #[must_use]
    pub fn with_forms(&self, forms: Option<Arc<Forms>>) -> Self {
        let (content, drop_at_mono_ms) = (self.content.clone(), self.drop_at_mono_ms);
        Self { head: Arc::clone(&self.head), content, length: self.length, drop_at_mono_ms, forms }
    }

    /// The bytes, if they are here.
    pub const fn body(&self) -> Option<&Arc<StoredBody>> {
        match &self.content {
            Content::Whole(kept) => Some(kept.body()),
            Content::Elsewhere(_) => None,
        }
    }

    pub fn blocks(&self) -> Option<&Blocks> {
        match &self.content {
            Content::Elsewhere(elsewhere) => match &**elsewhere {
                Elsewhere::Blocks(blocks) => Some(blocks),
                Elsewhere::Variants(_) => None,
            },
            Content::Whole(_) => None,
        }
    }

    /// The same response, read by the list of targeted fields that counts today.
    #[must_use]
    pub fn reread(&self, policy: &CachePolicy, now: Now) -> Self {
        let head = Arc::new(self.head.reread(policy));
        let drop_at_mono_ms = now.mono_ms.saturating_add(keep_ms(&head.facts, policy, now));
        let forms = self.forms.as_ref().map(|forms| Arc::new(forms.under(&head)));
        Self { head, content: self.content.clone(), length: self.length, drop_at_mono_ms, forms }
    }

    pub fn keep(&self, now: Now) -> Duration {
        Duration::from_millis(self.drop_at_mono_ms.saturating_sub(now.mono_ms))
    }

    /// Bytes that it costs the process beside the tier's own bookkeeping.
    pub fn memory(&self) -> usize {
        let content = match &self.content {
            Content::Whole(kept) => body_memory(kept.body()),
            Content::Elsewhere(_) => size_of::<Elsewhere>() + ALLOCATION,
        };
        size_of::<Self>() + self.head.memory() + content + 3 * ALLOCATION + self.forms.as_ref().map_or(0, |forms| forms.memory())
    }
}

/// What a body costs.
pub(super) fn body_memory(body: &StoredBody) -> usize {
    let segments: usize = body.segments().iter().map(|segment| of_segment(segment.len()) + ALLOCATION).sum();
    // One alone is part of its body, several are a list of their own, behind another block.
    let list = if body.segments().len() == 1 { 0 } else { size_of_val(body.segments()) + 2 * ALLOCATION };
    size_of::<StoredBody>() + segments + list + ALLOCATION
}

/// Large segments take whole pages.
fn of_segment(length: usize) -> usize {
    if length < pages::MIN { length } else { pages::cost(length) }
}

/// What an allocation costs beside its bytes: a reference count, where it has one, and what the allocator's next size is more.
/// With it responses of 100, 1,024 and 2,500 bytes weighed 1,405, 2,330 and 3,805 before shared terms (some 130 bytes) counted with
/// each; what the process grew by with each, from 50,000 to 150,000 of them, was 1,405, 2,250 and 3,866.
pub(super) const ALLOCATION: usize = 32;

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::invalidation::Stamp;
    use crate::semantics::key::KeyPolicy;
    use crate::semantics::{Method, Request, Target};

    /// The head of what a GET of `url` with the lines `asked` was answered with, `now`.
    pub fn stored_head(url: &str, asked: &[(&str, &str)], lines: &[(&str, &str)], policy: &CachePolicy, now: Now) -> StoredHead {
        let (target, asked, fields) = (Target::from_url(url).unwrap(), fields(asked), fields(lines));
        let request = Request { method: &Method::GET, target: &target, fields: &asked };
        let facts = Facts::new(request, Response { status: StatusCode::OK, fields: &fields }, &policy.targeted, now, now);
        StoredHead {
            secondary: facts.vary.secondary_key(&asked, policy),
            key: CacheKey::new(&target, &asked, &KeyPolicy::default()),
            facts,
            fields,
            stamp: Stamp::default().into(),
            checked: Default::default(),
            tags: Default::default(),
            site: Arc::new("a".into()),
            fetch: 1,
            sent_mono_ms: now.mono_ms,
        }
    }

    pub fn fields(lines: &[(&str, &str)]) -> Fields {
        let mut fields = Fields::new();
        for (name, value) in lines {
            fields.push(name, value).unwrap();
        }
        fields
    }
}
