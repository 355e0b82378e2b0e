//! A block: from the tier, from a fetch under way, or from the origin, once for all who want it.

use super::{Block, not_in_parts};
use crate::body::BodyError;
use crate::cache::{StoredHead, StoredResponse, subject};
use crate::clock;
use crate::coalesce::fill::{Fill, FillReader};
use crate::coalesce::flight::{FlightKey, FlightTable, Follower, Join, Leader, Published};
use crate::invalidation::Stamp;
use crate::observe::metrics::{BlockOutcome, Bound};
use crate::proxy::exchange::{Exchange, PanicNote};
use crate::proxy::flight::Failure;
use crate::proxy::lead::pump_while_wanted;
use crate::proxy::store::{self, Began};
use crate::proxy::{Proxy, forward, revalidate};
use crate::semantics::partial::{self, Following};
use crate::semantics::reuse::Validity;
use crate::semantics::storage::NotStored;
use crate::semantics::{Fields, Response, name, range};
use crate::upstream::{Inbound, Unanswered};
use std::ops::Range;
use std::sync::Arc;

/// Fetches of blocks under way.
pub type BlockFlights = FlightTable<BlockHead, Stamp>;

/// What a fetch of a block came to.
pub enum BlockHead {
    /// Its bytes come. `shared`: the answer is not for the one client alone whose request fetched it.
    Filling { fill: Fill, shared: bool },
    /// The origin has another version by now, or does not answer in parts.
    OtherVersion,
}

/// A block that can be read.
pub enum Opened {
    Stored(Arc<StoredResponse>),
    /// A reader of the bytes that come, unless they went already.
    Filling(Option<FillReader>),
}

/// Times that a fetch which others lead may end without a word.
const ROUNDS: usize = 4;

/// Opens the bytes `wanted` of the whole, which are in this block.
pub async fn open(proxy: Arc<Proxy>, exchange: Arc<Exchange>, block: Block, wanted: Range<u64>) -> Result<Opened, BodyError> {
    for _ in 0..ROUNDS {
        if let Some(stored) = block.find(&proxy) {
            proxy.metrics.block(BlockOutcome::Memory);
            prolong(&proxy, &exchange, &block, &stored);
            return Ok(Opened::Stored(stored));
        }
        let (mut follower, led) = match join(&proxy, &block, || proxy.journal.stamp()) {
            Join::Follow(follower) => (follower, false),
            Join::Full => {
                proxy.metrics.bound(Bound::Waiting);
                return Err(BodyError::Reset);
            }
            Join::Lead(leader) => {
                // It may have come between the look and the joining: then whoever followed finds it, too.
                if block.find(&proxy).is_some() {
                    continue;
                }
                let follower = leader.follow();
                tokio::spawn(lead(Arc::clone(&proxy), Arc::clone(&exchange), block.clone(), leader, false));
                (follower, true)
            }
        };
        if let Some(opened) = after(&mut follower, led, &block, &wanted).await {
            if !led && opened.is_ok() {
                proxy.metrics.block(BlockOutcome::Collapsed);
            }
            return opened;
        }
    }
    Err(BodyError::Reset)
}

/// Lets a block live as long as its record, which may have been confirmed since it came. Not for every bit of time that
/// the record gains: each fetch of a block updates it.
fn prolong(proxy: &Proxy, exchange: &Exchange, block: &Block, stored: &StoredResponse) {
    let now = clock::now();
    if stored.keep(now) * 2 < block.record.keep(now) {
        let longer = stored.until(block.record.drop_at_mono_ms);
        store::insert(proxy, exchange, &Arc::new(longer), 1, now);
    }
}

/// What a fetch came to; `None`: nothing, look again.
async fn after(follower: &mut Follower<BlockHead>, led: bool, block: &Block, wanted: &Range<u64>) -> Option<Result<Opened, BodyError>> {
    match follower.wait().await {
        Published::Head(head) => Some(match &*head {
            // Who may not have it asks for the bytes alone.
            BlockHead::Filling { shared: false, .. } if !led => Ok(Opened::Filling(None)),
            BlockHead::Filling { fill, .. } => {
                let start = block.range().start;
                let reader = fill.reader(wanted.start - start, Some(wanted.end - start));
                // One that was given up, because nobody was there, says nothing against asking anew.
                match fill.failure().filter(|error| reader.is_none() && *error != BodyError::ClientLeft) {
                    Some(error) => Err(error),
                    None => Ok(Opened::Filling(reader)),
                }
            }
            BlockHead::OtherVersion => Err(BodyError::OtherVersion),
        }),
        Published::Failed(failure) => Some(Err(if failure.status == 504 { BodyError::Timeout } else { BodyError::Reset })),
        Published::Alone | Published::LeadAnew | Published::Died => None,
    }
}

/// Has a block fetched before it is asked for, unless it is here or on its way, or could not be kept.
pub fn ahead(proxy: &Arc<Proxy>, exchange: &Arc<Exchange>, block: Block) {
    if block.find(proxy).is_none()
        && proxy.no_room_for(Some(block.blocks().size)).is_none()
        && let Join::Lead(leader) = join(proxy, &block, || proxy.journal.stamp())
        // As in `open`: it may have come between the look and the joining.
        && block.find(proxy).is_none()
    {
        tokio::spawn(lead(Arc::clone(proxy), Arc::clone(exchange), block, leader, true));
    }
}

/// Leads the fetch of the block that came with the head of a record, unless somebody else does. `stamp`: of that fetch.
pub fn begin(proxy: &Proxy, block: &Block, stamp: Stamp) -> Option<Leader<BlockHead, Stamp>> {
    match join(proxy, block, || stamp) {
        Join::Lead(leader) => Some(leader),
        Join::Follow(_) | Join::Full => None,
    }
}

fn join(proxy: &Proxy, block: &Block, stamp: impl FnOnce() -> Stamp) -> Join<BlockHead, Stamp> {
    let head = &block.record.head;
    let secondary = Some(head.secondary.clone()).filter(|secondary| !secondary.0.is_empty());
    let key = FlightKey { key: Arc::clone(block.key().text()), secondary };
    let may_join = |stamp: &Stamp| proxy.journal.validity(&subject(&head.key, &head.site, &head.tags), stamp) != Validity::Purged;
    proxy.blocks.join(key, may_join, stamp)
}

/// The task of a fetch. `ahead`: nobody waits for it yet.
async fn lead(proxy: Arc<Proxy>, exchange: Arc<Exchange>, block: Block, leader: Leader<BlockHead, Stamp>, ahead: bool) {
    let _note = PanicNote::on(Arc::clone(&exchange));
    let began = Began { stamp: *leader.stamp(), fetch: proxy.next_fetch(), sent: clock::now() };
    let fail = |failure: Failure| {
        proxy.metrics.block(BlockOutcome::Failed);
        leader.publish(Published::Failed(Arc::new(failure)));
    };
    let inbound = match ask(&exchange, &block).await {
        Ok(inbound) => inbound,
        Err(unanswered) => return fail(Failure::from(&unanswered)),
    };
    let response = Response { status: inbound.status, fields: &inbound.fields };
    match partial::follows(&block.blocks().version, response, &block.range()) {
        Following::Same => {
            proxy.metrics.block(BlockOutcome::Fetched);
            receive(&proxy, &exchange, &block, leader, inbound, &began, ahead).await;
        }
        Following::Failed => fail(super::failure(BodyError::Reset)),
        other => {
            if other == Following::NotInParts {
                not_in_parts(&proxy, &block.record.head.key);
            }
            proxy.metrics.block(BlockOutcome::OtherVersion);
            forget(&proxy, &block.record, began.fetch);
            leader.publish(Published::Head(Arc::new(BlockHead::OtherVersion)));
        }
    }
}

async fn ask(exchange: &Exchange, block: &Block) -> Result<Inbound, Unanswered> {
    let wanted = block.range();
    let range = format!("bytes={}-{}", wanted.start, wanted.end - 1);
    let kind = forward::Kind::Rest { range, validator: block.blocks().version.tag().as_bytes() };
    let request = forward::request(exchange, kind, None)?;
    match &exchange.routed.upstream {
        Some(upstream) => upstream.send(request).await,
        None => Err(crate::upstream::FetchError::Dns.into()), // a reload took it away
    }
}

/// Takes a record out whose version is over, unless a record of another is there by now.
fn forget(proxy: &Proxy, record: &StoredResponse, before: u64) {
    let same = |other: &Arc<StoredResponse>| other.head.secondary == record.head.secondary && other.blocks() == record.blocks();
    if proxy.memory.get(record.head.key.hash()).is_some_and(|set| set.responses().iter().any(same)) {
        store::remove(proxy, &record.head, before);
    }
}

/// The head of a block is there, and it is the block: update the record, stream, store. The first block of a new record
/// comes with its head, which has nothing to update.
pub async fn receive(
    proxy: &Arc<Proxy>,
    exchange: &Arc<Exchange>,
    block: &Block,
    leader: Leader<BlockHead, Stamp>,
    mut inbound: Inbound,
    began: &Began,
    ahead: bool,
) {
    let wanted = block.range();
    let length = wanted.end - wanted.start;
    let kept = keep(proxy, exchange, block, &mut inbound, began);
    let keep_at_most = if kept.is_ok() { length } else { 0 };
    let (writer, fill) = Fill::new(Arc::clone(&proxy.budget), &exchange.routed.settings.fill, Some(length), keep_at_most);
    let ticket = fill.ticket();
    // That memory is short, or that a purge came, says nothing about who may have it.
    let shared = kept.as_ref().err().is_none_or(|why| matches!(why, NotStored::Memory | NotStored::Purged));
    leader.publish(Published::Head(Arc::new(BlockHead::Filling { fill: fill.clone(), shared })));
    let whole = pump_while_wanted(&leader, ticket, inbound.body.take(), writer, &fill, ahead, || {}).await;
    match (kept, fill.complete().filter(|_| whole)) {
        (Ok(head), Some(complete)) => {
            // Counted there if not.
            let _ = store::whole(proxy, exchange, head, complete, &fill, 1, None);
        }
        (Ok(_), None) => proxy.metrics.not_stored(if fill.unstored().is_some() { NotStored::Memory } else { NotStored::Incomplete }),
        (Err(why), _) => proxy.metrics.not_stored(why),
    }
}

/// The head under which a block is stored, if it may be; the record is updated by what came with it (RFC 9111 §3.4).
fn keep(proxy: &Proxy, exchange: &Exchange, block: &Block, inbound: &mut Inbound, began: &Began) -> Result<Arc<StoredHead>, NotStored> {
    let (record, received) = (&block.record, clock::now());
    // Of this part, not of the representation.
    inbound.fields.remove(name::CONTENT_RANGE);
    inbound.fields.remove("content-digest");
    let head = if record.head.fetch == began.fetch {
        Arc::clone(&record.head)
    } else {
        let confirmed = revalidate::confirm(proxy, exchange, record, inbound, began, received).map_err(|_| NotStored::Purged)?;
        confirmed.not_stored.map_or(Ok(()), Err)?;
        Arc::clone(&confirmed.response.head)
    };
    if let Some(why) = proxy.no_room_for(None) {
        return Err(why);
    }
    let mut fields = Fields::new();
    let lines = fields
        .append(name::ETAG, block.blocks().version.tag())
        .and(fields.append(name::CONTENT_RANGE, range::content_range(&block.range(), record.length)));
    debug_assert!(lines.is_ok(), "a tag that was a field, and digits");
    Ok(Arc::new(StoredHead {
        fields,
        facts: head.facts.of_part(),
        key: block.key(),
        secondary: record.head.secondary.clone(),
        stamp: began.stamp.into(),
        checked: Default::default(),
        tags: head.tags.clone(),
        site: Arc::clone(&head.site),
        fetch: began.fetch,
        sent_mono_ms: began.sent.mono_ms,
    }))
}
