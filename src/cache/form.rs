//! Derived forms of a stored response: its bytes in a coding, made once (DESIGN section 3).
//!
//! They hang on the response that they are of, are weighed with it and go with it. What made them counts as long as the
//! route's `compression` says the same.

use super::StoredHead;
use super::stored_response::{ALLOCATION, body_memory};
use crate::body::StoredBody;
use crate::coalesce::pinned::Kept;
use crate::semantics::coding::{FormId, Wanted, coded_fields};
use crate::semantics::dictionary::Dictionary;
use crate::semantics::policy::Compression;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Weak};

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
    pub id: FormId,
    /// What it is against, as long as that is kept.
    dictionary: Option<Weak<Dictionary>>,
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
    pub fn new(source: &StoredHead, made: &Wanted, kept: Kept, length: u64, effort: Effort) -> Self {
        let (id, dictionary) = (made.id(), made.dictionary.as_ref().map(Arc::downgrade));
        Self { id, dictionary, head: head(source, id, length), kept, length, effort, hits: AtomicU32::new(0) }
    }

    fn under(&self, source: &StoredHead) -> Self {
        Self {
            id: self.id,
            dictionary: self.dictionary.clone(),
            head: head(source, self.id, self.length),
            kept: self.kept.clone(),
            length: self.length,
            effort: self.effort,
            hits: AtomicU32::new(self.hits.load(Ordering::Relaxed)),
        }
    }

    /// What it would be made in again; `None` where the dictionary is gone.
    pub fn wanted(&self) -> Option<Wanted> {
        let dictionary = match &self.dictionary {
            Some(dictionary) => Some(dictionary.upgrade()?),
            None => None,
        };
        Some(Wanted { coding: self.id.coding, dictionary })
    }

    pub const fn body(&self) -> &Arc<StoredBody> {
        self.kept.body()
    }

    fn memory(&self) -> usize {
        // The head is an allocation, and its fields are two.
        size_of::<Self>() + self.head.memory() + body_memory(self.kept.body()) + 3 * ALLOCATION
    }
}

fn head(source: &StoredHead, id: FormId, length: u64) -> Arc<StoredHead> {
    Arc::new(source.with_fields(coded_fields(&source.fields, id.coding, Some(length))))
}

/// All that was made of a response.
#[derive(Debug)]
pub struct Forms {
    /// By which they were made.
    pub policy: Arc<Compression>,
    forms: Box<[Arc<Form>]>,
    /// A form without a dictionary was made and saved too little: none is kept, and none is made again.
    pub not_worth_it: bool,
}

impl Forms {
    /// What says that no form without a dictionary is worth having; others stay.
    pub fn none(there: Option<&Self>, policy: Arc<Compression>) -> Self {
        let others = Self::by(there, &policy).iter().filter(|form| form.id.dictionary.is_some()).cloned();
        Self { forms: others.collect(), policy, not_worth_it: true }
    }

    /// Those that are there by the same policy, with one more. Of those against dictionaries the oldest goes where they are
    /// too many.
    pub fn with(there: Option<&Self>, policy: Arc<Compression>, form: Form) -> Self {
        let id = form.id;
        let not_worth_it = id.dictionary.is_some() && there.is_some_and(|there| there.not_worth_it && *there.policy == *policy);
        let mut forms: Vec<Arc<Form>> = Self::by(there, &policy).iter().filter(|other| other.id != id).cloned().collect();
        forms.push(Arc::new(form));
        let is_against = |form: &Arc<Form>| form.id.dictionary.is_some();
        if forms.iter().filter(|form| is_against(form)).count() > policy.dictionaries.forms_max
            && let Some(oldest) = forms.iter().position(is_against)
        {
            forms.remove(oldest);
        }
        Self { forms: forms.into(), policy, not_worth_it }
    }

    /// What was made by the same policy.
    fn by<'f>(there: Option<&'f Self>, policy: &Compression) -> &'f [Arc<Form>] {
        there.filter(|there| *there.policy == *policy).map_or(&[][..], |there| &there.forms)
    }

    /// The same bytes under an updated head of the source.
    pub fn under(&self, source: &StoredHead) -> Self {
        let forms = self.forms.iter().map(|form| Arc::new(form.under(source))).collect();
        Self { policy: Arc::clone(&self.policy), forms, not_worth_it: self.not_worth_it }
    }

    pub fn get(&self, id: FormId) -> Option<&Arc<Form>> {
        self.forms.iter().find(|form| form.id == id)
    }

    /// For people: what each is in, and its bytes.
    pub fn iter(&self) -> impl Iterator<Item = &Form> {
        self.forms.iter().map(|form| &**form)
    }

    /// Bytes that they cost the process.
    pub fn memory(&self) -> usize {
        size_of::<Self>() + 2 * ALLOCATION + self.forms.iter().map(|form| form.memory()).sum::<usize>()
    }
}
