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
use crate::cache::{Effort, Form, Forms, StoredHead, StoredResponse};
use crate::coalesce::fill::{CompleteBody, Fill, FillReader};
use crate::coalesce::pinned::Kept;
use crate::observe::metrics::CodedFrom;
use crate::semantics::coding::{self, Coding};
use crate::semantics::policy::Compression;
use crate::semantics::{Fields, Method, Request, Response, name};
use crate::tier::memory::Change;
use crate::transform::coded::{AT_ONCE, Codec, Coded};
use crate::transform::decoder::Decoder;
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
    if let Some(body) = hang(proxy, &entry.source, &entry.policy, coding, &form.segments, Effort::Fast) {
        entry.fill.stored(&body);
    }
}

/// The form, as the response with this head has it from now on; `None` where that is not stored, or the form saves too little.
pub fn hang(
    proxy: &Proxy,
    source: &Arc<StoredHead>,
    policy: &Arc<Compression>,
    coding: Coding,
    form: &[Bytes],
    effort: Effort,
) -> Option<Arc<StoredBody>> {
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
            Forms::with(there.forms.as_deref(), Arc::clone(policy), Form::new(source, coding, kept, length, effort))
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

/// What is to be made of a response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Make {
    /// A form in this coding, which is kept.
    Coded(Coding),
    /// The bytes without the coding in which the upstream gave them, for one client: few cannot read what most can.
    Decoded(Coding),
}

/// A form that is not there yet.
pub struct Unmade<'a> {
    pub proxy: &'a Arc<Proxy>,
    pub routed: &'a Arc<Routed>,
    pub policy: &'a Arc<Compression>,
    pub make: Make,
    /// The head that it is of.
    pub source: &'a Arc<StoredHead>,
    pub body: Box<Body<'a>>,
}

impl Unmade<'_> {
    /// Its bytes: as another request has them made, or as they are made from now on.
    pub fn begin(self) -> ResponseBody {
        match self.make {
            Make::Coded(coding) => self.coded(coding),
            Make::Decoded(coding) => match decoding(coding, self.policy) {
                Some(codec) => {
                    let (pool, is_events) = (self.proxy.pool.clone(), is_events(&self.source.fields));
                    let stream = Coded::new(stream_of(*self.body, self.source), codec, pool, is_events);
                    ResponseBody::Stream { length: None, stream: Box::pin(stream) }
                }
                None => failed(),
            },
        }
    }

    fn coded(self, coding: Coding) -> ResponseBody {
        let Self { proxy, routed, policy, source, body, .. } = self;
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
        let end = End { proxy: Arc::clone(proxy), source: Arc::clone(source), coding, number, form: None };
        let is_over = match &*body {
            Body::Flight { fill, .. } => fill.complete().is_some() || fill.failure().is_some(),
            _ => true,
        };
        if is_over {
            // The fetch may have ended before there was an entry to be settled.
            settle(proxy, source);
        }
        let (Some(reader), Some(codec)) = (fill.reader(0, None), encoding(coding, policy, length)) else { return failed() };
        // What is stored is worth finishing though nobody waits; of what is on its way its own readers decide.
        let ticket = matches!(*body, Body::Stored { .. }).then(|| fill.ticket());
        let coded = Coded::new(stream_of(*body, source), codec, proxy.pool.clone(), is_events(&source.fields));
        let response = following(&fill, reader);
        tokio::spawn(async move {
            let mut end = end;
            let whole = pump(Some(Arriving::Stream(Box::pin(coded))), writer, &fill, || {}).await;
            drop(ticket);
            end.form = fill.complete().filter(|_| whole);
        });
        response
    }
}

/// The bytes of a response as they come.
fn stream_of(body: Body<'_>, head: &Arc<StoredHead>) -> Pin<Box<dyn BodyStream>> {
    match body {
        Body::Stored { body, .. } => Box::pin(Pieces { body: Arc::clone(body), next: 0 }),
        body => body.stream_whole(head),
    }
}

fn encoding(coding: Coding, policy: &Compression, length: Option<u64>) -> Option<Codec> {
    told(coding, Encoder::new(coding, &policy.level, length)).map(Codec::Encode)
}

fn decoding(coding: Coding, policy: &Compression) -> Option<Codec> {
    told(coding, Decoder::new(coding, policy.decode)).map(Codec::Decode)
}

/// Says that there is no codec, if so: memory ran out.
pub fn told<T>(coding: Coding, made: std::io::Result<T>) -> Option<T> {
    made.inspect_err(|error| tracing::error!(coding = coding.as_str(), %error, "no memory for a codec")).ok()
}

/// Ends an entry, however its task ends.
struct End {
    proxy: Arc<Proxy>,
    source: Arc<StoredHead>,
    coding: Coding,
    number: u64,
    /// Once it is whole.
    form: Option<CompleteBody>,
}

impl Drop for End {
    fn drop(&mut self) {
        if let Some((entry, form)) = self.proxy.making.over(&self.source, self.coding, self.number, self.form.take()) {
            hang_up(&self.proxy, self.coding, &entry, &form);
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
    let Some(form) = told(coding, encoder::encode(coding, &policy.level, body.segments())) else { return failed() };
    let form = Bytes::copy_from_slice(&form); // without slack
    hang(proxy, source, policy, coding, std::slice::from_ref(&form), Effort::Fast);
    ResponseBody::Full(form)
}

/// Codes what goes through for one client alone, where its route and the response allow that, or takes a coding off that the
/// client cannot read.
pub fn code_through(proxy: &Proxy, exchange: &Exchange, inbound: &mut Inbound, outcome: &mut Outcome) {
    let Some(policy) = &exchange.policy().compression else { return };
    if exchange.from_peer.is_some() || inbound.tunnel.is_some() {
        return;
    }
    let response = Response { status: inbound.status, fields: &inbound.fields };
    let Some(negotiated) = negotiate(exchange.request(), response, inbound.length, policy) else { return };
    if policy.sensitive && matches!(negotiated, Some(Make::Coded(_))) {
        return;
    }
    outcome.negotiated = !coding::varies_on_coding(&inbound.fields);
    let Some(make) = negotiated else { return };
    if exchange.method != Method::HEAD {
        let codec = match make {
            Make::Coded(coding) => encoding(coding, policy, inbound.length),
            Make::Decoded(coding) => decoding(coding, policy),
        };
        let Some(codec) = codec else { return };
        let Some(body) = inbound.body.take() else { return };
        if let Make::Coded(coding) = make {
            proxy.metrics.coded(coding, CodedFrom::Alone);
        }
        let coded = Coded::new(body.into_stream(), codec, proxy.pool.clone(), is_events(&inbound.fields));
        inbound.body = Some(Arriving::Stream(Box::pin(coded)));
    }
    (inbound.fields, inbound.length, outcome.coding) = (make.fields(&inbound.fields), None, make.coding());
}

/// What is made of a response for this request: nothing, a form, or that without a coding. `None`: nobody would get anything
/// but what came.
pub fn negotiate(request: Request<'_>, response: Response<'_>, length: Option<u64>, policy: &Compression) -> Option<Option<Make>> {
    if let Some(coding) = coding::decodable(response) {
        return Some((!coding::reads(request.fields, coding)).then_some(Make::Decoded(coding)));
    }
    coding::may_be_coded(response, length, policy).then(|| coding::coding_for(request, &policy.codings).map(Make::Coded))
}

impl Make {
    /// The fields of what is made.
    pub fn fields(self, fields: &Fields) -> Fields {
        match self {
            Self::Coded(coding) => coding::coded_fields(fields, coding, None),
            Self::Decoded(_) => coding::decoded_fields(fields),
        }
    }

    /// The coding that is of our making.
    pub const fn coding(self) -> Option<Coding> {
        match self {
            Self::Coded(coding) => Some(coding),
            Self::Decoded(_) => None,
        }
    }
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
