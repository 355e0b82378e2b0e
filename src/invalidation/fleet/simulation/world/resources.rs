//! What is asked for, what is stored of it, and what selects it.

use crate::invalidation::selector::{group_hash, key_hash};
use crate::invalidation::{CheckedUpTo, Selector, Stamp};
use crate::semantics::key::hash128;
use std::rc::Rc;

/// Site, authority, path and query.
pub(super) const RESOURCES: [(&str, &str, &str); 5] = [
    ("shop", "a.test", "/"),
    ("shop", "a.test", "/x"),
    ("shop", "a.test", "/x/y?q=1"),
    ("blog", "b.test", "/x"),
    ("blog", "c.test:8080", "/é/z"),
];

pub(super) const NAMES: [&str; 3] = ["red", "green", "blue"];

/// What a response is about, and when its fetch (or last validation) began, in [`World::moment`]s.
#[derive(Debug, Clone)]
pub(super) struct Facts {
    pub(super) resource: usize,
    pub(super) began: u64,
    pub(super) began_ms: u64,
    pub(super) keys: Vec<usize>,
    pub(super) groups: Vec<usize>,
    pub(super) hashes: [Rc<[u128]>; 2],
}

impl Facts {
    pub(super) fn new(resource: usize, (began, began_ms): (u64, u64), keys: Vec<usize>, groups: Vec<usize>) -> Self {
        let origin = format!("http://{}", RESOURCES[resource].1);
        let key_hashes = keys.iter().map(|&key| key_hash(NAMES[key])).collect();
        let group_hashes = groups.iter().map(|&group| group_hash(&origin, NAMES[group])).collect();
        Self { resource, began, began_ms, keys, groups, hashes: [key_hashes, group_hashes] }
    }

    pub(super) fn matches(&self, selector: &Selector) -> bool {
        let (site, authority, path) = RESOURCES[self.resource];
        let text = || format!("{authority}{path}");
        match selector {
            Selector::Url(url) => *url == text(),
            Selector::Key(key) => self.keys.iter().any(|&own| NAMES[own] == key),
            Selector::Group { origin, group } => {
                *origin == format!("http://{authority}") && self.groups.iter().any(|&own| NAMES[own] == group)
            }
            Selector::Prefix(prefix) => text().starts_with(prefix.as_str()),
            Selector::Host(host) => host == authority,
            Selector::Site(name) => name == site,
            Selector::Everything => true,
        }
    }
}

#[derive(Debug, Clone)]
pub(in super::super) struct TierEntry {
    pub(super) facts: Facts,
    pub(super) stamp: Stamp,
}

#[derive(Debug)]
pub(super) struct Stored {
    pub(super) facts: Facts,
    pub(super) stamp: Stamp,
    pub(super) checked: CheckedUpTo,
}

thread_local! {
    /// Texts and hashes of the resources, made once.
    static URLS: Vec<(&'static str, u128)> = RESOURCES
        .iter()
        .map(|(_, authority, path)| {
            let text: &'static str = Box::leak(format!("{authority}{path}").into_boxed_str());
            (text, hash128(text.as_bytes()))
        })
        .collect();
}

pub(super) fn url_text(resource: usize) -> &'static str {
    URLS.with(|urls| urls[resource].0)
}

pub(super) fn url_hash(resource: usize) -> u128 {
    URLS.with(|urls| urls[resource].1)
}
