//! Forms of responses in a coding: found, made once, and hung on what they are of (DESIGN section 3).
//!
//! The first request for a form that is not there has it made: a task codes the bytes, of what is stored or as they arrive,
//! into a fill of its own, which that request and all that come meanwhile follow. What came out whole is hung on the stored
//! response. It is looked for by the head that source and stored response share, so that it makes no difference whether a
//! flight, its followers or a later hit wanted it first.
//!
//! Invariant: of one head and coding one form is made at a time. An entry of [`Making`] ends with its task, and where the
//! source was on its way, with that: whoever of the two is last hangs up the form.

use super::Proxy;
use super::deliver::{Body, failed};
use super::exchange::Exchange;
use super::lead::pump;
use super::live::Routed;
use super::outcome::Outcome;
use crate::body::{BodyError, BodyStream, Chunk, ResponseBody, StoredBody};
use crate::cache::{Form, Forms, StoredHead, StoredResponse};
use crate::coalesce::fill::{CompleteBody, Fill, FillReader};
use crate::coalesce::pinned::Kept;
use crate::observe::metrics::CodedFrom;
use crate::semantics::coding::{self, Coding};
use crate::semantics::policy::Compression;
use crate::semantics::{Fields, Method, Response, name};
use crate::tier::memory::Change;
use crate::transform::coded::{AT_ONCE, Coded};
use crate::transform::encoder::{self, Encoder};
use crate::upstream::{Arriving, Inbound};
use bytes::Bytes;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

/// Forms that are being made. As many as there are requests for them at most: a task without readers ends.
#[derive(Default)]
pub struct Making {
    entries: Mutex<HashMap<Key, Entry>>,
    numbers: AtomicU64,
}

/// Address of the head that it is of, which the entry keeps, and the coding.
type Key = (usize, Coding);

struct Entry {
    /// Tells it from one that took its place.
    number: u64,
    source: Arc<StoredHead>,
    policy: Arc<Compression>,
    fill: Fill,
    /// Nothing will be stored under the head that is not stored by now.
    settled: bool,
    /// The form, while it waits for that.
    ready: Option<CompleteBody>,
}

/// What came of asking for a form that is not there.
enum Entered {
    /// Another request has it made.
    Follow(Fill, FillReader),
    /// It is to be made, under this number.
    Make(u64),
}

fn key(source: &Arc<StoredHead>, coding: Coding) -> Key {
    (Arc::as_ptr(source) as usize, coding)
}

impl Making {
    fn enter(&self, source: &Arc<StoredHead>, coding: Coding, policy: &Arc<Compression>, fill: &Fill) -> Entered {
        let mut entries = self.entries.lock();
        let there = entries.get(&key(source, coding));
        // One that failed, or whose first bytes went, is no use to who comes now.
        if let Some((fill, reader)) = there.and_then(|there| Some((there.fill.clone(), there.fill.reader(0, None)?))) {
            return Entered::Follow(fill, reader);
        }
        let number = self.numbers.fetch_add(1, Ordering::Relaxed);
        let (source, policy, fill) = (Arc::clone(source), Arc::clone(policy), fill.clone());
        entries.insert(key(&source, coding), Entry { number, source, policy, fill, settled: false, ready: None });
        Entered::Make(number)
    }

    /// The task of an entry is over; `form`: where it came out whole. What can be hung up by now.
    fn over(&self, source: &Arc<StoredHead>, coding: Coding, number: u64, form: Option<CompleteBody>) -> Option<(Entry, CompleteBody)> {
        let mut entries = self.entries.lock();
        let entry = entries.get_mut(&key(source, coding)).filter(|entry| entry.number == number)?;
        if form.is_some() && !entry.settled {
            entry.ready = form;
            return None;
        }
        let entry = entries.remove(&key(source, coding))?;
        Some((entry, form?))
    }

    /// Under this head nothing more is stored. What can be hung up by now.
    fn settle(&self, source: &Arc<StoredHead>) -> Vec<(Coding, Entry, CompleteBody)> {
        let mut entries = self.entries.lock();
        if entries.is_empty() {
            return Vec::new();
        }
        let settle = |coding| {
            let entry = entries.get_mut(&key(source, coding))?;
            entry.settled = true;
            let form = entry.ready.take()?;
            Some((coding, entries.remove(&key(source, coding))?, form))
        };
        Coding::ALL.into_iter().filter_map(settle).collect()
    }
}

/// Says, when it is dropped, that a fetch is over and what could be stored under its head is.
pub struct Settling {
    proxy: Arc<Proxy>,
    head: Arc<StoredHead>,
}

impl Settling {
    pub fn of(proxy: &Arc<Proxy>, head: &Arc<StoredHead>) -> Self {
        Self { proxy: Arc::clone(proxy), head: Arc::clone(head) }
    }
}

impl Drop for Settling {
    fn drop(&mut self) {
        settle(&self.proxy, &self.head);
    }
}

fn settle(proxy: &Proxy, source: &Arc<StoredHead>) {
    for (coding, entry, form) in proxy.making.settle(source) {
        hang_up(proxy, coding, &entry, &form);
    }
}

/// Hangs a form that was made on what it is of, if that is stored.
fn hang_up(proxy: &Proxy, coding: Coding, entry: &Entry, form: &CompleteBody) {
    if let Some(body) = hang(proxy, &entry.source, &entry.policy, coding, &form.segments) {
        entry.fill.stored(&body);
    }
}

/// The form, as the response with this head has it from now on; `None` where that is not stored, or the form saves too little.
fn hang(proxy: &Proxy, source: &Arc<StoredHead>, policy: &Arc<Compression>, coding: Coding, form: &[Bytes]) -> Option<Arc<StoredBody>> {
    let length = form.iter().map(|piece| piece.len() as u64).sum();
    if proxy.no_room_for(None).is_some() {
        return None;
    }
    let hash = source.key.hash();
    let mut hung = None;
    // A tier that is full weighs it anew, as if it had just come: nobody would want to lose the response for its form.
    proxy.memory.mark_wanted(hash, 2);
    proxy.memory.update(hash, |set| {
        let Some(set) = set else { return Change::Keep };
        let Some(there) = set.responses().iter().find(|there| Arc::ptr_eq(&there.head, source)) else { return Change::Keep };
        let forms = if coding::is_worth_it(length, there.length) {
            let kept = Kept::new(form, &proxy.pins);
            hung = Some(Arc::clone(kept.body()));
            Forms::with(there.forms.as_deref(), Arc::clone(policy), Form::new(source, coding, kept, length))
        } else {
            Forms::none(Arc::clone(policy))
        };
        let with_forms = Arc::new(there.with_forms(Some(Arc::new(forms))));
        set.swapped(there, &with_forms).map_or(Change::Keep, |set| Change::Put(Arc::new(set)))
    });
    hung
}

/// The forms of a response by the policy of today.
pub fn by_policy<'r>(response: &'r StoredResponse, policy: &Arc<Compression>) -> Option<&'r Forms> {
    let forms = response.forms.as_deref()?;
    (Arc::ptr_eq(&forms.policy, policy) || *forms.policy == **policy).then_some(forms)
}

/// A form that is not there yet.
pub struct Unmade<'a> {
    pub proxy: &'a Arc<Proxy>,
    pub routed: &'a Arc<Routed>,
    pub policy: &'a Arc<Compression>,
    pub coding: Coding,
    /// The head that it is of.
    pub source: &'a Arc<StoredHead>,
    pub body: Box<Body<'a>>,
}

impl Unmade<'_> {
    /// Its bytes: as another request has them made, or as they are made from now on.
    pub fn begin(self) -> ResponseBody {
        let Self { proxy, routed, policy, coding, source, body } = self;
        let length = body.length();
        if let Body::Stored { body, length, .. } = &*body
            && *length <= AT_ONCE as u64
        {
            return made_at_once(proxy, policy, coding, source, body);
        }
        let settings = &routed.settings.fill;
        let (writer, fill) = Fill::new(Arc::clone(&proxy.budget), settings, None, routed.route.cache.max_object_bytes);
        let number = match proxy.making.enter(source, coding, policy, &fill) {
            Entered::Follow(fill, reader) => {
                proxy.metrics.coded(coding, CodedFrom::Following);
                return following(&fill, reader);
            }
            Entered::Make(number) => number,
        };
        proxy.metrics.coded(coding, CodedFrom::Making);
        let Some(reader) = fill.reader(0, None) else { return failed() };
        // What is stored is worth finishing though nobody waits; of what is on its way its own readers decide.
        let ticket = matches!(*body, Body::Stored { .. }).then(|| fill.ticket());
        let is_over = match &*body {
            Body::Flight { fill, .. } => fill.complete().is_some() || fill.failure().is_some(),
            _ => true,
        };
        if is_over {
            // The fetch may have ended before there was an entry to be settled.
            settle(proxy, source);
        }
        let is_events = is_events(&source.fields);
        let bytes = match *body {
            Body::Stored { body, .. } => Box::pin(Pieces { body: Arc::clone(body), next: 0 }),
            body => body.stream_whole(source),
        };
        let encoder = match Encoder::new(coding, &policy.level, length) {
            Ok(encoder) => encoder,
            Err(error) => {
                no_encoder(coding, &error);
                proxy.making.over(source, coding, number, None);
                return failed();
            }
        };
        let coded = Coded::new(bytes, encoder, proxy.pool.clone(), is_events);
        let response = following(&fill, reader);
        let (proxy, source) = (Arc::clone(proxy), Arc::clone(source));
        tokio::spawn(async move {
            let end = End { proxy, source, coding, number };
            let whole = pump(Some(Arriving::Stream(Box::pin(coded))), writer, &fill, || {}).await;
            drop(ticket);
            end.with(fill.complete().filter(|_| whole));
        });
        response
    }
}

/// Ends an entry, also where its task is ended by a panic.
struct End {
    proxy: Arc<Proxy>,
    source: Arc<StoredHead>,
    coding: Coding,
    number: u64,
}

impl End {
    fn with(&self, form: Option<CompleteBody>) {
        if let Some((entry, form)) = self.proxy.making.over(&self.source, self.coding, self.number, form) {
            hang_up(&self.proxy, self.coding, &entry, &form);
        }
    }
}

impl Drop for End {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.with(None);
        }
    }
}

/// What is so short that it is coded before others could be told of it.
fn made_at_once(
    proxy: &Arc<Proxy>,
    policy: &Arc<Compression>,
    coding: Coding,
    source: &Arc<StoredHead>,
    body: &Arc<StoredBody>,
) -> ResponseBody {
    proxy.metrics.coded(coding, CodedFrom::Making);
    let form = match encoder::encode(coding, &policy.level, body.segments()) {
        Ok(form) => Bytes::copy_from_slice(&form), // without slack
        Err(error) => {
            no_encoder(coding, &error);
            return failed();
        }
    };
    hang(proxy, source, policy, coding, std::slice::from_ref(&form));
    ResponseBody::Full(form)
}

/// Codes what goes through for one client alone, where its route and the response allow that.
pub fn code_through(proxy: &Proxy, exchange: &Exchange, inbound: &mut Inbound, outcome: &mut Outcome) {
    let Some(policy) = &exchange.policy().compression else { return };
    let response = Response { status: inbound.status, fields: &inbound.fields };
    let is_ours = exchange.from_peer.is_none() && inbound.tunnel.is_none();
    if !is_ours || policy.sensitive || !coding::may_be_coded(response, inbound.length, policy) {
        return;
    }
    outcome.negotiated = !coding::varies_on_coding(&inbound.fields);
    let Some(coding) = coding::coding_for(exchange.request(), &policy.codings) else { return };
    if exchange.method != Method::HEAD {
        let Some(body) = inbound.body.take() else { return };
        let encoder = match Encoder::new(coding, &policy.level, inbound.length) {
            Ok(encoder) => encoder,
            Err(error) => {
                no_encoder(coding, &error);
                inbound.body = Some(body);
                return;
            }
        };
        proxy.metrics.coded(coding, CodedFrom::Alone);
        let coded = Coded::new(body.into_stream(), encoder, proxy.pool.clone(), is_events(&inbound.fields));
        inbound.body = Some(Arriving::Stream(Box::pin(coded)));
    }
    (outcome.coding, inbound.length) = (Some(coding), None);
    inbound.fields = coding::coded_fields(&inbound.fields, coding, None);
}

fn no_encoder(coding: Coding, error: &std::io::Error) {
    tracing::error!(coding = coding.as_str(), %error, "no memory for an encoder");
}

fn following(fill: &Fill, reader: FillReader) -> ResponseBody {
    ResponseBody::Stream { length: fill.complete().map(|complete| complete.length), stream: Box::pin(reader) }
}

/// Whether a pause in it is the end of an event.
fn is_events(fields: &Fields) -> bool {
    const EVENTS: &[u8] = b"text/event-stream";
    let kind = fields.get(name::CONTENT_TYPE).and_then(|value| value.get(..EVENTS.len()));
    kind.is_some_and(|kind| kind.eq_ignore_ascii_case(EVENTS))
}

/// A stored body, segment by segment.
struct Pieces {
    body: Arc<StoredBody>,
    next: usize,
}

impl BodyStream for Pieces {
    fn poll_chunk(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Chunk, BodyError>>> {
        let piece = self.body.segments().get(self.next).cloned();
        self.next += 1;
        Poll::Ready(piece.map(|piece| Ok(Chunk::Data(piece))))
    }

    fn is_revoked(&self) -> bool {
        self.body.is_revoked()
    }
}
