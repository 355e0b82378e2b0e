//! Forms of responses in a coding: found, made once, and hung on what they are of (DESIGN section 3).
//!
//! The first request for a form that is not there has it made: a task codes the bytes, of what is stored or as they arrive,
//! into a fill of its own, which that request and all that come meanwhile follow. What came out whole is hung on the stored
//! response. It is looked for by the head that source and stored response share, so that it makes no difference whether a
//! flight, its followers or a later hit wanted it first.
//!
//! Invariant: of one head, coding and dictionary one form is made at a time. An entry of [`Making`] ends with its task, and where the
//! source was on its way, with that: whoever of the two is last hangs up the form.

use super::Proxy;
use super::deliver::{Body, failed};
use super::exchange::Exchange;
use super::lead::pump;
use super::live::Routed;
use super::outcome::{Negotiated, Outcome};
use crate::body::{BodyError, BodyStream, Chunk, ResponseBody, StoredBody};
use crate::cache::{Effort, Form, Forms, StoredHead, StoredResponse};
use crate::coalesce::fill::{CompleteBody, Fill, FillReader};
use crate::coalesce::pinned::Kept;
use crate::observe::metrics::CodedFrom;
use crate::semantics::coding::{self, Coding, FormId, Wanted};
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
    /// By the address of the head that they are of, which each entry keeps.
    entries: Mutex<HashMap<usize, Vec<Entry>>>,
    numbers: AtomicU64,
}

struct Entry {
    /// Tells it from one that took its place.
    number: u64,
    made: Arc<Made>,
    /// Nothing will be stored under the head that is not stored by now.
    settled: bool,
    /// The form, while it waits for that.
    ready: Option<CompleteBody>,
}

/// What is made, of what, and where its bytes are.
struct Made {
    wanted: Wanted,
    source: Arc<StoredHead>,
    policy: Arc<Compression>,
    fill: Fill,
}

/// A form that came out whole and can be hung up. Its entry stays until it is: whoever finds neither would make another.
struct Ready {
    number: u64,
    made: Arc<Made>,
    form: CompleteBody,
}

/// What came of asking for a form that is not there.
enum Entered {
    /// Another request has it made.
    Follow(Fill, FillReader),
    /// It is to be made, under this number.
    Make(u64),
    /// It was hung up since it was looked for; so long.
    Made(Arc<StoredBody>, u64),
}

fn address(source: &Arc<StoredHead>) -> usize {
    Arc::as_ptr(source) as usize
}

impl Making {
    /// `hung`: the form, where it hangs by now. An entry leaves only after that, so that one of the two is always seen.
    fn enter(
        &self,
        source: &Arc<StoredHead>,
        wanted: &Wanted,
        policy: &Arc<Compression>,
        fill: &Fill,
        hung: impl FnOnce() -> Option<(Arc<StoredBody>, u64)>,
    ) -> Entered {
        let mut entries = self.entries.lock();
        if let Some((body, length)) = hung() {
            return Entered::Made(body, length);
        }
        let of_source = entries.entry(address(source)).or_default();
        let there = of_source.iter().position(|entry| entry.made.wanted == *wanted);
        if let Some(at) = there {
            let fill = &of_source[at].made.fill;
            if let Some(reader) = fill.reader(0, None) {
                return Entered::Follow(fill.clone(), reader);
            }
            // One that failed, or whose first bytes went, is no use to who comes now.
            of_source.swap_remove(at);
        }
        let number = self.numbers.fetch_add(1, Ordering::Relaxed);
        let (wanted, source, policy, fill) = (wanted.clone(), Arc::clone(source), Arc::clone(policy), fill.clone());
        of_source.push(Entry { number, made: Arc::new(Made { wanted, source, policy, fill }), settled: false, ready: None });
        Entered::Make(number)
    }

    /// The task of an entry is over; `form`: where it came out whole. What can be hung up by now.
    fn over(&self, source: &Arc<StoredHead>, number: u64, form: Option<CompleteBody>) -> Option<Ready> {
        let Some(form) = form else {
            self.leave(source, number);
            return None;
        };
        let mut entries = self.entries.lock();
        let entry = entries.get_mut(&address(source))?.iter_mut().find(|entry| entry.number == number)?;
        if entry.settled {
            return Some(Ready { number, made: Arc::clone(&entry.made), form });
        }
        entry.ready = Some(form);
        None
    }

    /// Takes an entry out.
    fn leave(&self, source: &Arc<StoredHead>, number: u64) {
        let mut entries = self.entries.lock();
        let Some(of_source) = entries.get_mut(&address(source)) else { return };
        of_source.retain(|entry| entry.number != number);
        if of_source.is_empty() {
            entries.remove(&address(source));
        }
    }

    /// Under this head nothing more is stored. What can be hung up by now.
    fn settle(&self, source: &Arc<StoredHead>) -> Vec<Ready> {
        let mut entries = self.entries.lock();
        let Some(of_source) = entries.get_mut(&address(source)) else { return Vec::new() };
        let ready = of_source.iter_mut().filter_map(|entry| {
            entry.settled = true;
            Some(Ready { number: entry.number, made: Arc::clone(&entry.made), form: entry.ready.take()? })
        });
        ready.collect()
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
    for ready in proxy.making.settle(source) {
        hang_up(proxy, &ready);
    }
}

/// Hangs a form that was made on what it is of, if that is stored; then its entry goes.
fn hang_up(proxy: &Proxy, ready: &Ready) {
    let Made { wanted, source, policy, fill } = &*ready.made;
    if let Some(body) = hang(proxy, source, policy, wanted, &ready.form.segments, Effort::Fast) {
        fill.stored(&body);
    }
    proxy.making.leave(source, ready.number);
}

/// The form, as the response with this head has it from now on; `None` where that is not stored, or the form saves too little.
pub fn hang(
    proxy: &Proxy,
    source: &Arc<StoredHead>,
    policy: &Arc<Compression>,
    made: &Wanted,
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
        // What is against a dictionary says nothing of other forms.
        let forms = if coding::is_worth_it(length, there.length) || made.dictionary.is_some() {
            let kept = Kept::new(form, &proxy.pins);
            hung = Some(Arc::clone(kept.body()));
            Forms::with(there.forms.as_deref(), Arc::clone(policy), Form::new(source, made, kept, length, effort))
        } else {
            Forms::none(there.forms.as_deref(), Arc::clone(policy))
        };
        let with_forms = Arc::new(there.with_forms(Some(Arc::new(forms))));
        set.swapped(there, &with_forms)
    });
    hung
}

/// The forms of a response by the policy of today.
pub fn by_policy<'r>(response: &'r StoredResponse, policy: &Arc<Compression>) -> Option<&'r Forms> {
    let forms = response.forms.as_deref()?;
    (Arc::ptr_eq(&forms.policy, policy) || *forms.policy == **policy).then_some(forms)
}

/// What is to be made of a response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Make {
    /// A form, which is kept.
    Coded(Wanted),
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
        match self.make.clone() {
            Make::Coded(wanted) => self.coded(wanted),
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

    fn coded(self, wanted: Wanted) -> ResponseBody {
        let Self { proxy, routed, policy, source, body, .. } = self;
        let (coding, length) = (wanted.coding, body.length());
        if let Body::Stored { body, length, .. } = &*body
            && *length <= AT_ONCE as u64
            && wanted.dictionary.is_none()
        {
            return made_at_once(proxy, policy, &wanted, source, body);
        }
        let settings = &routed.settings.fill;
        let (writer, fill) = Fill::new(Arc::clone(&proxy.budget), settings, None, routed.route.cache.max_object_bytes);
        let hung = || made_meanwhile(proxy, policy, &wanted, source);
        let number = match proxy.making.enter(source, &wanted, policy, &fill, hung) {
            Entered::Follow(fill, reader) => {
                proxy.metrics.coded(coding, CodedFrom::Following);
                return following(&fill, reader);
            }
            Entered::Made(body, length) => {
                proxy.metrics.coded(coding, CodedFrom::Store);
                return ResponseBody::Stream { length: Some(length), stream: Box::pin(Pieces { body, next: 0 }) };
            }
            Entered::Make(number) => number,
        };
        proxy.metrics.coded(coding, CodedFrom::Making);
        let end = End { proxy: Arc::clone(proxy), source: Arc::clone(source), number, form: None };
        let is_over = match &*body {
            Body::Flight { fill, .. } => fill.complete().is_some() || fill.failure().is_some(),
            _ => true,
        };
        if is_over {
            // The fetch may have ended before there was an entry to be settled.
            settle(proxy, source);
        }
        let (Some(reader), Some(codec)) = (fill.reader(0, None), encoding(&wanted, policy, length)) else { return failed() };
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

/// A form that is there by now, and its length.
fn made_meanwhile(proxy: &Proxy, policy: &Arc<Compression>, wanted: &Wanted, source: &Arc<StoredHead>) -> Option<(Arc<StoredBody>, u64)> {
    let set = proxy.memory.get(source.key.hash())?;
    let there = set.responses().iter().find(|there| Arc::ptr_eq(&there.head, source))?;
    let form = by_policy(there, policy)?.get(wanted.id())?;
    Some((Arc::clone(form.body()), form.length))
}

/// The bytes of a response as they come.
fn stream_of(body: Body<'_>, head: &Arc<StoredHead>) -> Pin<Box<dyn BodyStream>> {
    match body {
        Body::Stored { body, .. } => Box::pin(Pieces { body: Arc::clone(body), next: 0 }),
        body => body.stream_whole(head),
    }
}

fn encoding(wanted: &Wanted, policy: &Compression, length: Option<u64>) -> Option<Codec> {
    told(wanted.coding, Encoder::new(wanted, &policy.level, length)).map(Codec::Encode)
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
    number: u64,
    /// Once it is whole.
    form: Option<CompleteBody>,
}

impl Drop for End {
    fn drop(&mut self) {
        if let Some(ready) = self.proxy.making.over(&self.source, self.number, self.form.take()) {
            hang_up(&self.proxy, &ready);
        }
    }
}

/// What is so short that it is coded before others could be told of it.
fn made_at_once(
    proxy: &Arc<Proxy>,
    policy: &Arc<Compression>,
    wanted: &Wanted,
    source: &Arc<StoredHead>,
    body: &Arc<StoredBody>,
) -> ResponseBody {
    proxy.metrics.coded(wanted.coding, CodedFrom::Making);
    let Some(form) = told(wanted.coding, encoder::encode(wanted, &policy.level, body.segments())) else { return failed() };
    let form = Bytes::copy_from_slice(&form); // without slack
    hang(proxy, source, policy, wanted, std::slice::from_ref(&form), Effort::Fast);
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
    outcome.negotiated = Negotiated::new(!coding::varies_on(&inbound.fields, name::ACCEPT_ENCODING), false);
    let Some(make) = negotiated else { return };
    if exchange.method != Method::HEAD {
        let codec = match &make {
            Make::Coded(wanted) => encoding(wanted, policy, inbound.length),
            Make::Decoded(coding) => decoding(*coding, policy),
        };
        let Some(codec) = codec else { return };
        let Some(body) = inbound.body.take() else { return };
        if let Make::Coded(wanted) = &make {
            proxy.metrics.coded(wanted.coding, CodedFrom::Alone);
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
    coding::may_be_coded(response, length, policy).then(|| plain(request, policy))
}

/// What is made for this request where no dictionary helps.
pub fn plain(request: Request<'_>, policy: &Compression) -> Option<Make> {
    coding::coding_for(request, &policy.codings).map(|coding| Make::Coded(Wanted::plain(coding)))
}

/// What goes out in a coding.
pub enum Choice<'m> {
    /// A form that is there.
    Made(&'m Arc<Form>),
    Make(Make),
}

/// A form, if it is there.
pub fn choose(make: Make, made: Option<&Forms>) -> Choice<'_> {
    let id = make.coding().map(|coding| FormId { coding, dictionary: None });
    let there = made.zip(id).and_then(|(made, id)| made.get(id));
    there.map_or(Choice::Make(make), Choice::Made)
}

impl Make {
    /// The fields of what is made.
    pub fn fields(&self, fields: &Fields) -> Fields {
        match self {
            Self::Coded(wanted) => coding::coded_fields(fields, wanted.coding, None),
            Self::Decoded(_) => coding::decoded_fields(fields),
        }
    }

    /// The coding that is of our making.
    pub const fn coding(&self) -> Option<Coding> {
        match self {
            Self::Coded(wanted) => Some(wanted.coding),
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
