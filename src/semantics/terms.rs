//! What a response says of its reuse, but for its own times and names: nearly all responses of a site say the same.
//!
//! Those that do share one [`Terms`], by a small table per thread. What falls out of the table is shared no more and costs
//! memory, never correctness.

use super::StatusCode;
use super::cache_control::ResponseDirectives;
use super::targeted::Targeted;
use super::vary::Vary;
use std::cell::RefCell;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::Deref;
use std::sync::Arc;

/// What of a response's facts others have too.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Terms {
    /// Of Cache-Control, or of the targeted field that governs instead (RFC 9213).
    pub directives: ResponseDirectives,
    /// The targeted field that governs, where one does.
    pub targeted: Option<Box<Targeted>>,
    /// Expires minus Date in milliseconds, unless a targeted field governs that says nothing of it; zero where it is past or
    /// unreadable, `None` where it is absent.
    pub expires_after_ms: Option<u64>,
    pub vary: Vary,
    /// [`super::targeted::TargetList::id`] of the list by which all of this was read.
    pub targets: u32,
    pub status: StatusCode,
    /// The response has an entity tag: one, not an empty one, and one that is stored with it.
    pub has_etag: bool,
    /// The request carried Authorization, or Client-Cert.
    pub authorized: bool,
    /// The request carried Cookie.
    pub cookie: bool,
    /// The response carries a Set-Cookie that others would get: one that neither `private="set-cookie"` nor
    /// `no-cache="set-cookie"` keeps from them.
    pub set_cookie: bool,
}

impl Terms {
    /// Bytes of memory on the heap.
    pub fn memory(&self) -> usize {
        let targeted = self.targeted.as_ref().map_or(0, |targeted| targeted.memory());
        self.directives.memory() + targeted + self.vary.memory()
    }
}

/// Terms as the facts of responses keep them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SharedTerms(Arc<Terms>);

/// Terms that a thread remembers.
const REMEMBERED: usize = 64;
/// Terms with more on the heap than this are not remembered: origins choose its length.
const REMEMBERED_BYTES_MAX: usize = 1024;

thread_local! {
    static TABLE: RefCell<[Option<SharedTerms>; REMEMBERED]> = const { RefCell::new([const { None }; REMEMBERED]) };
}

impl From<Terms> for SharedTerms {
    fn from(terms: Terms) -> Self {
        if terms.memory() > REMEMBERED_BYTES_MAX {
            return Self(Arc::new(terms));
        }
        let mut hasher = DefaultHasher::new();
        terms.hash(&mut hasher);
        let place = hasher.finish() as usize % REMEMBERED;
        TABLE.with_borrow_mut(|table| match &table[place] {
            Some(there) if *there.0 == terms => there.clone(),
            _ => table[place].insert(Self(Arc::new(terms))).clone(),
        })
    }
}

impl SharedTerms {
    /// Bytes of memory that they occupy, with the two counts of their `Arc`, as if nobody else had them: of what is shared
    /// any part may outlive the others.
    pub fn memory(&self) -> usize {
        size_of::<Terms>() + 2 * size_of::<usize>() + self.0.memory()
    }
}

impl Deref for SharedTerms {
    type Target = Terms;

    fn deref(&self) -> &Terms {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn terms(vary: &str) -> Terms {
        let mut fields = super::super::Fields::new();
        fields.push("vary", vary).unwrap();
        Terms {
            directives: ResponseDirectives::default(),
            targeted: None,
            expires_after_ms: None,
            vary: Vary::parse(&fields),
            targets: 0,
            status: StatusCode::OK,
            has_etag: false,
            authorized: false,
            cookie: false,
            set_cookie: false,
        }
    }

    #[test]
    fn what_says_the_same_is_shared_and_nothing_else() {
        let (first, same, other) = (SharedTerms::from(terms("a")), SharedTerms::from(terms("a")), SharedTerms::from(terms("b")));
        assert!(Arc::ptr_eq(&first.0, &same.0));
        assert_eq!((&*first, &*other), (&terms("a"), &terms("b")));
        assert!(first.memory() > size_of::<Terms>() && first.memory() == same.memory());
        let with_cookie = SharedTerms::from(Terms { cookie: true, ..terms("a") });
        assert!(with_cookie.cookie && !first.cookie);
    }

    #[test]
    fn a_thread_remembers_a_bounded_number_and_nothing_long() {
        let all: Vec<SharedTerms> = (0..10 * REMEMBERED).map(|number| terms(&format!("x-{number}")).into()).collect();
        let remembered = all.iter().filter(|terms| Arc::strong_count(&terms.0) > 1).count();
        assert!((1..=REMEMBERED).contains(&remembered), "{remembered}");
        let long = "x".repeat(REMEMBERED_BYTES_MAX);
        let (first, second) = (SharedTerms::from(terms(&long)), SharedTerms::from(terms(&long)));
        assert!(first == second && !Arc::ptr_eq(&first.0, &second.0));
    }
}
