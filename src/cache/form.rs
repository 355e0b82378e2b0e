//! Derived forms of a stored response: its bytes in a coding, made once (DESIGN section 3).
//!
//! They hang on the response that they are of, are weighed with it and go with it. What made them counts as long as the
//! route's `compression` says the same.

use super::StoredHead;
use super::stored_response::{ALLOCATION, body_memory};
use crate::body::StoredBody;
use crate::coalesce::pinned::Kept;
use crate::semantics::coding::{Coding, coded_fields};
use crate::semantics::policy::Compression;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// How much work a form is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effort {
    /// What a client waits for.
    Fast,
    /// What is sent so often that it pays.
    High,
}

/// A response in one coding.
#[derive(Debug)]
pub struct Form {
    pub coding: Coding,
    /// That of the source, with fields that are true of the form.
    pub head: Arc<StoredHead>,
    kept: Kept,
    /// Bytes of it.
    pub length: u64,
    pub effort: Effort,
    /// Answers that it was, about.
    pub hits: AtomicU32,
}

impl Form {
    pub fn new(source: &StoredHead, coding: Coding, kept: Kept, length: u64, effort: Effort) -> Self {
        let head = Arc::new(source.with_fields(coded_fields(&source.fields, coding, Some(length))));
        Self { coding, head, kept, length, effort, hits: AtomicU32::new(0) }
    }

    fn under(&self, source: &StoredHead) -> Self {
        let hits = AtomicU32::new(self.hits.load(Ordering::Relaxed));
        Self { hits, ..Self::new(source, self.coding, self.kept.clone(), self.length, self.effort) }
    }

    pub const fn body(&self) -> &Arc<StoredBody> {
        self.kept.body()
    }

    fn memory(&self) -> usize {
        // The head is an allocation, and its fields are two.
        size_of::<Self>() + self.head.memory() + body_memory(self.kept.body()) + 3 * ALLOCATION
    }
}

/// All that was made of a response.
#[derive(Debug)]
pub struct Forms {
    /// By which they were made.
    pub policy: Arc<Compression>,
    forms: Box<[Arc<Form>]>,
    /// A form was made and saved too little: none is kept, and none is made again.
    pub not_worth_it: bool,
}

impl Forms {
    /// What says that no form is worth having.
    pub fn none(policy: Arc<Compression>) -> Self {
        Self { policy, forms: Box::default(), not_worth_it: true }
    }

    /// Those that are there by the same policy, with one more.
    pub fn with(there: Option<&Self>, policy: Arc<Compression>, form: Form) -> Self {
        let others = there.filter(|there| *there.policy == *policy).map_or(&[][..], |there| &there.forms);
        let coding = form.coding;
        let others = others.iter().filter(|other| other.coding != coding).cloned();
        Self { forms: others.chain([Arc::new(form)]).collect(), policy, not_worth_it: false }
    }

    /// The same bytes under an updated head of the source.
    pub fn under(&self, source: &StoredHead) -> Self {
        let forms = self.forms.iter().map(|form| Arc::new(form.under(source))).collect();
        Self { policy: Arc::clone(&self.policy), forms, not_worth_it: self.not_worth_it }
    }

    pub fn get(&self, coding: Coding) -> Option<&Arc<Form>> {
        self.forms.iter().find(|form| form.coding == coding)
    }

    /// For people: coding and bytes of each.
    pub fn iter(&self) -> impl Iterator<Item = &Form> {
        self.forms.iter().map(|form| &**form)
    }

    /// Bytes that they cost the process.
    pub fn memory(&self) -> usize {
        size_of::<Self>() + 2 * ALLOCATION + self.forms.iter().map(|form| form.memory()).sum::<usize>()
    }
}
