//! Forms that are sent often are made smaller, by one thread that takes what the cores leave (DESIGN section 3).
//!
//! Hits are counted by sample, so that a hit costs next to nothing. What was sent often enough waits in a bounded line;
//! nobody waits for it.

use super::forms::{by_policy, hang};
use super::{Proxy, forms};
use crate::cache::{Effort, Form, StoredHead, StoredResponse};
use crate::observe::metrics::{Bound, Metrics};
use crate::pages;
use crate::semantics::coding::FormId;
use crate::semantics::policy::Compression;
use crate::transform::encoder;
use bytes::Bytes;
use parking_lot::{Condvar, Mutex};
use std::cell::Cell;
use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Duration;

/// The line.
#[derive(Default)]
pub struct HotForms {
    waiting: Mutex<VecDeque<Hot>>,
    come: Condvar,
}

/// A form that is to be made anew.
struct Hot {
    /// The head that it is of.
    source: Weak<StoredHead>,
    policy: Arc<Compression>,
    id: FormId,
}

/// Forms that may wait.
const WAITING_MAX: usize = 256;
/// Of so many hits of a core one is counted, for all of them.
const SAMPLE: u32 = 16;

impl HotForms {
    /// A form went out.
    pub fn hit(&self, metrics: &Metrics, policy: &Arc<Compression>, source: &Arc<StoredHead>, form: &Form) {
        thread_local!(static HITS: Cell<u32> = const { Cell::new(0) });
        let hits = HITS.get().wrapping_add(1);
        HITS.set(hits);
        if !hits.is_multiple_of(SAMPLE) || policy.hot_hits == 0 || form.effort == Effort::High {
            return;
        }
        let before = form.hits.fetch_add(SAMPLE, Ordering::Relaxed);
        if before < policy.hot_hits && before.saturating_add(SAMPLE) >= policy.hot_hits {
            self.line_up(metrics, Hot { source: Arc::downgrade(source), policy: Arc::clone(policy), id: form.id }, form);
        }
    }

    #[cold]
    fn line_up(&self, metrics: &Metrics, hot: Hot, form: &Form) {
        let mut waiting = self.waiting.lock();
        if waiting.len() >= WAITING_MAX {
            drop(waiting);
            metrics.bound(Bound::HotForms);
            form.hits.store(0, Ordering::Relaxed); // if it goes on so, it comes again
            return;
        }
        waiting.push_back(hot);
        self.come.notify_one();
    }

    fn next(&self, at_most: Duration) -> Option<Hot> {
        let mut waiting = self.waiting.lock();
        if waiting.is_empty() {
            self.come.wait_for(&mut waiting, at_most);
        }
        waiting.pop_front()
    }
}

impl Proxy {
    /// Makes the form smaller that waits longest for that; waits for one `at_most` so long. A background thread calls it.
    pub fn tend_forms(&self, at_most: Duration) {
        if let Some(hot) = self.hot_forms.next(at_most)
            && let Some(source) = hot.source.upgrade()
        {
            make_smaller(self, &source, &hot.policy, hot.id);
        }
    }
}

fn make_smaller(proxy: &Proxy, source: &Arc<StoredHead>, policy: &Arc<Compression>, id: FormId) {
    let set = proxy.memory.get(source.key.hash());
    let response = set.iter().flat_map(StoredResponse::responses).find(|response| Arc::ptr_eq(&response.head, source));
    let Some((response, body)) = response.and_then(|response| Some((response, response.body()?))) else { return };
    let Some(there) = by_policy(response, policy).and_then(|forms| forms.get(id)) else { return };
    // Without its dictionary it stays as it is.
    let Some(wanted) = there.wanted() else { return };
    if response.length > policy.hot_max_bytes {
        return;
    }
    let Some(form) = forms::told(wanted.coding, encoder::encode(&wanted, &policy.hot_level, body.segments())) else { return };
    if (form.len() as u64) < there.length {
        // Without slack, and where large bodies stand.
        let form = pages::gather(std::slice::from_ref(&form)).unwrap_or_else(|| Bytes::copy_from_slice(&form));
        if hang(proxy, source, policy, &wanted, &[form], Effort::High).is_some() {
            proxy.metrics.remade(wanted.coding);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::for_tests::stored_head;
    use crate::coalesce::fill::FillBudget;
    use crate::coalesce::pinned::{Kept, Pins};
    use crate::semantics::Now;
    use crate::semantics::coding::{Coding, Wanted};
    use crate::semantics::policy::CachePolicy;

    #[test]
    fn so_many_forms_wait_and_one_more_comes_again_later() {
        let (line, metrics, now) = (HotForms::default(), Metrics::new(1), Now { wall_ms: 1_700_000_000_000, mono_ms: 5_000 });
        let source = Arc::new(stored_head("http://a/", &[], &[], &CachePolicy::default(), now));
        let policy = Arc::new(Compression { hot_hits: SAMPLE, ..Compression::default() });
        let pins = Pins::new(&FillBudget::new(1 << 20));
        let kept = Kept::new(&[Bytes::from_static(b"form")], &pins);
        let form = |coding| Form::new(&source, &Wanted::plain(coding), kept.clone(), 4, Effort::Fast);
        let grow_hot = |form: &Form| (0..SAMPLE).for_each(|_| line.hit(&metrics, &policy, &source, form));
        let refused = || metrics.render().lines().any(|line| line == "tiercel_bound_reached_total{bound=\"hot_forms\"} 1");

        let waiting: Vec<Form> = (0..WAITING_MAX).map(|_| form(Coding::Gzip)).collect();
        waiting.iter().for_each(grow_hot);
        assert!(!refused());
        let late = form(Coding::Brotli);
        grow_hot(&late);
        assert!(refused());
        assert_eq!(late.hits.load(Ordering::Relaxed), 0, "it is counted anew");

        let next = || line.next(Duration::ZERO).map(|hot| hot.id.coding);
        assert_eq!(next(), Some(Coding::Gzip));
        grow_hot(&late);
        let others: Vec<_> = std::iter::from_fn(next).collect();
        assert_eq!((others.len(), others.last()), (WAITING_MAX, Some(&Coding::Brotli)));
    }
}
