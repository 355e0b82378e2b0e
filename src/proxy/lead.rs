//! Leading a flight: its task fetches, decides at the head, tells everybody, streams and stores.

use super::ask::{Way, ask};
use super::blocks::{self, Block};
use super::exchange::{Exchange, PanicNote};
use super::flight::{
    Candidate, Departure, Failure, FlightBody, FlightHead, Led, Own, is_shareable, large_key, marker_key, secondary_known,
};
use super::forms::Settling;
use super::shield::Fetched;
use super::store::{self, Began};
use super::{Proxy, forward, lease, remote, revalidate};
use crate::body::Chunk;
use crate::cache::{Blocks, StoredHead, StoredResponse};
use crate::clock;
use crate::coalesce::fill::{Fill, FillWriter, JoinTicket, Unstored};
use crate::coalesce::flight::{Leader, Published};
use crate::coalesce::lease::{Ended, Lease};
use crate::faults::{Fault, planted};
use crate::listener::InterimSender;
use crate::observe::metrics::BlockOutcome;
use crate::proxy::outcome::Contact;
use crate::semantics::partial::{self, Version};
use crate::semantics::reuse::{Validity, may_serve_on_error_to};
use crate::semantics::storage::NotStored;
use crate::semantics::vary::SecondaryKey;
use crate::semantics::{Now, Response, StatusCode, name, range};
use crate::upstream::{Arriving, Inbound, Unanswered};
use parking_lot::Mutex;
use std::future::poll_fn;
use std::ops::Range;
use std::sync::Arc;
use tokio::sync::oneshot;

/// The task of a flight: fetches, tells, streams, stores. `client` is `None` for a background refresh.
pub async fn lead(
    proxy: Arc<Proxy>,
    exchange: Arc<Exchange>,
    leader: Leader<FlightHead, Departure>,
    client: Option<oneshot::Sender<Led>>,
    candidate: Candidate,
    anew: bool,
) -> Option<u16> {
    let _note = PanicNote::on(Arc::clone(&exchange));
    proxy.metrics.flight_led();
    let mut began = Began { stamp: leader.stamp().stamp, fetch: proxy.next_fetch(), sent: clock::now() };
    let is_refresh = client.is_none();
    let part = blocks::first_part(&proxy, &exchange, usable(&candidate).as_deref());
    let mut duty = Duty {
        proxy,
        exchange,
        leader,
        client,
        is_refresh,
        anew,
        part,
        after_purge: false,
        stand_in: None,
        lease: None,
        contact: Contact::Whole,
    };
    let candidate = match duty.look_in_tier(candidate, began.fetch).await? {
        Looked::Found(status) => return Some(status),
        Looked::NotFound(candidate) => candidate,
    };
    let confirming = usable(&candidate);
    duty.after_purge = duty.proxy.is_recovering(&duty.exchange, candidate.as_ref());
    let mut result = duty.fetch(confirming.as_ref(), &mut began.sent).await?;
    if let Err(unanswered) = &result
        && duty.hand_on(unanswered)
    {
        result = duty.fetch(confirming.as_ref(), &mut began.sent).await?;
    }
    match result {
        Err(unanswered) => {
            duty.fail(&Failure::from(&unanswered), unanswered.error.is_shared());
            None
        }
        Ok(Fetched { inbound, stamp }) => {
            // What another node gave began when its own fetch did.
            began.stamp = stamp.unwrap_or(began.stamp);
            if planted(Fault::StampAtFetchEnd) {
                began.stamp = duty.proxy.journal.stamp();
            }
            let status = inbound.status.as_u16();
            duty.head(inbound, began, candidate, confirming).await;
            Some(status)
        }
    }
}

/// What may be confirmed: a hard-purged response is never a source of validators.
fn usable(candidate: &Candidate) -> Option<Arc<StoredResponse>> {
    candidate.as_ref().filter(|(_, validity)| *validity != Validity::Purged).map(|(stored, _)| Arc::clone(stored))
}

/// What came of asking the tier that the fleet shares.
enum Looked {
    /// Everybody was told; its status.
    Found(u16),
    /// The origin has to be asked, maybe about this.
    NotFound(Candidate),
}

/// Whether others may have a response.
#[derive(Clone, Copy)]
struct Sharing {
    /// By the rules.
    shareable: bool,
    /// Its bytes are kept for those who come.
    kept: bool,
}

/// The duty to tell everybody.
struct Duty {
    proxy: Arc<Proxy>,
    exchange: Arc<Exchange>,
    leader: Leader<FlightHead, Departure>,
    /// `None` once it was told.
    client: Option<oneshot::Sender<Led>>,
    /// In the background: nobody leads it, and it goes on though nobody is there.
    is_refresh: bool,
    /// Another request failed before: from now on failures are shared.
    anew: bool,
    /// Not the whole is asked for, but these bytes: a block.
    part: Option<Range<u64>>,
    /// A purge of much is likely to have caused it: the upstream has so many places for that.
    after_purge: bool,
    /// Stale, and found in the tier that the fleet shares: for everybody who waits, if the origin fails.
    stand_in: Option<Arc<StoredResponse>>,
    /// It fetches for the fleet: whoever waits on other nodes is to be told, too. That it failed, if nothing else.
    lease: Option<Lease>,
    /// Whether that tier could be asked.
    contact: Contact,
}

impl Duty {
    /// Asks the tier that the fleet shares, before the origin is; where nothing is there another node may be fetching it.
    /// `None` if everybody left meanwhile.
    async fn look_in_tier(&mut self, candidate: Candidate, fetch: u64) -> Option<Looked> {
        // A part is wanted of what is kept in blocks, and they are this node's.
        if self.part.is_some() {
            return Some(Looked::NotFound(candidate));
        }
        let (proxy, exchange) = (Arc::clone(&self.proxy), Arc::clone(&self.exchange));
        let lease::Sought { answer, lease, is_given, contact } = tokio::select! {
            biased;
            looked = lease::look(&proxy, &exchange, &candidate, self.is_refresh, fetch) => looked,
            () = deserted(&mut self.client, &self.leader), if !self.is_refresh => return None,
        };
        (self.lease, self.contact) = (lease, contact);
        Some(match answer {
            remote::Answer::Nothing => Looked::NotFound(candidate),
            remote::Answer::Candidate(stored, validity) => {
                self.stand_in = Some(Arc::clone(&stored));
                Looked::NotFound(Some((stored, validity)))
            }
            remote::Answer::Whole(response) => Looked::Found(self.promote(response, is_given)),
            remote::Answer::Long(long) => Looked::Found(self.assemble(long, is_given).await),
        })
    }

    /// Tells the fleet what its fetch came to, where this was its.
    fn tell_fleet(&mut self, ended: Ended) {
        if let Some(lease) = self.lease.take() {
            lease.tell(ended);
        }
    }

    /// A response of the tier becomes one of this node's.
    fn promote(&mut self, response: Arc<StoredResponse>, is_given: bool) -> u16 {
        let (head, now) = (Arc::clone(&response.head), clock::now());
        if self.proxy.no_room_for(Some(response.length)).is_none() {
            self.proxy.learn_search_rule(&self.exchange, &head.fields, None);
            store::insert(&self.proxy, &self.exchange, &response, self.leader.followers(), now);
        }
        let status = head.status().as_u16();
        let shareable = is_shareable(&self.exchange, &head, now);
        let flight = Arc::new(FlightHead::found(head, FlightBody::Confirmed(response), is_given));
        self.publish(flight, Sharing { shareable, kept: true }, now.mono_ms, Own::default());
        status
    }

    /// The same where its body comes in segments: it is passed on as they do.
    async fn assemble(&mut self, long: remote::Long, is_given: bool) -> u16 {
        let remote::Long { head, length, body } = long;
        let settings = &Arc::clone(&self.exchange.routed.settings).fill;
        let (writer, fill) = Fill::new(Arc::clone(&self.proxy.budget), settings, Some(length), self.exchange.policy().max_object_bytes);
        let reader = if self.client.is_some() { fill.reader(0, None) } else { None };
        let (ticket, now, status) = (fill.ticket(), clock::now(), head.status().as_u16());
        let _settling = Settling::of(&self.proxy, &head);
        let flight = Arc::new(FlightHead::found(Arc::clone(&head), FlightBody::Filling(fill.clone()), is_given));
        let sharing = Sharing { shareable: is_shareable(&self.exchange, &head, now), kept: fill.unstored().is_none() };
        self.publish(flight, sharing, now.mono_ms, Own { reader, ..Own::default() });
        let whole = pump_while_wanted(&self.leader, ticket, Some(Arriving::Stream(body)), writer, &fill, self.is_refresh, || {}).await;
        if whole && let Some(complete) = fill.complete() {
            // Counted there if not.
            let _ = store::whole(&self.proxy, &self.exchange, head, complete, &fill, self.leader.followers(), None);
        }
        status
    }

    /// Asks who owns the key, else the upstream, when it is this fetch's turn; `None` if everybody left before there was a
    /// head. `sent` becomes the time at which it was asked.
    async fn fetch(&mut self, confirming: Option<&Arc<StoredResponse>>, sent: &mut Now) -> Option<Result<Fetched, Unanswered>> {
        let upstream = self.exchange.routed.upstream.clone()?;
        let (sender, mut interims) = InterimSender::queue();
        let kind = match &self.part {
            None => forward::Kind::Whole(confirming),
            Some(part) => forward::Kind::Part { range: format!("bytes={}-{}", part.start, part.end - 1), stored: confirming },
        };
        let (proxy, exchange) = (Arc::clone(&self.proxy), Arc::clone(&self.exchange));
        let way = Way { by_peer: self.part.is_none(), confirming, after_purge: self.after_purge, now: None };
        let mut sending = Box::pin(async move {
            let request = || forward::request(&exchange, kind, Some(sender));
            ask(&proxy, &exchange, &upstream, way, request, sent).await
        });
        let result = loop {
            tokio::select! {
                biased;
                interim = interims.recv() => self.leader.stamp().interims.tell(&self.proxy, &interim),
                result = &mut sending => break result,
                () = deserted(&mut self.client, &self.leader), if !self.is_refresh => return None,
            }
        };
        // Interim responses that came together with the final one go first.
        while let Some(interim) = interims.try_recv() {
            self.leader.stamp().interims.tell(&self.proxy, &interim);
        }
        Some(result)
    }

    fn tell(&mut self, led: Led) {
        if let Some(client) = self.client.take() {
            let _ = client.send(led); // it may have left
        }
    }

    /// The connection was lost, or the answer malformed, after the request was sent. That may be this request's doing,
    /// so it is not sent again; but one of those who wait leads anew, once, and the others stay in line.
    fn hand_on(&mut self, unanswered: &Unanswered) -> bool {
        if unanswered.error.is_shared() || self.anew {
            return false;
        }
        let Some(successor) = self.leader.stamp().successor() else { return false };
        self.keep_stand_in();
        self.tell(Led::Failed(Failure::from(unanswered)));
        self.proxy.metrics.flight_led();
        (self.exchange, self.is_refresh, self.anew) = (successor, false, true);
        true
    }

    /// Into memory with what may stand in, before anybody is told that the fetch failed: they look there again.
    fn keep_stand_in(&mut self) {
        if let Some(stored) = self.stand_in.take()
            && self.proxy.no_room_for(Some(stored.length)).is_none()
        {
            store::insert(&self.proxy, &self.exchange, &stored, self.leader.followers(), clock::now());
        }
    }

    fn fail(&mut self, failure: &Failure, shared: bool) {
        self.keep_stand_in();
        let published = if shared || self.anew { Published::Failed(Arc::new(failure.clone())) } else { Published::LeadAnew };
        self.leader.publish(published);
        self.tell(Led::Failed(failure.clone()));
    }

    /// The head is there: decide, tell, stream, store.
    async fn head(&mut self, inbound: Inbound, began: Began, candidate: Candidate, confirming: Option<Arc<StoredResponse>>) {
        let received = clock::now();
        if let Some(stored) = confirming.filter(|_| inbound.status == 304) {
            return self.confirmed(&inbound, &stored, &began, received);
        }
        if let Some(failure) = self.stands_in(&inbound, candidate.as_ref(), received) {
            return self.fail(&failure, true);
        }
        let Some(inbound) = self.in_part(inbound, &began, &candidate).await else { return };
        if let Some((version, size)) = blocks::suits(&self.proxy, &self.exchange, &inbound) {
            return self.in_blocks(inbound, None, Blocks { size, version }, &began, &candidate).await;
        }
        if self.asks_part_of_large(&inbound) {
            self.proxy.set_marker(large_key(&self.exchange), received.mono_ms);
            self.tell(Led::AsItCame);
            // Whoever wants the whole goes on with it; for its own sake it is not fetched.
            if self.leader.retire_if_deserted() {
                return;
            }
        }
        match store::judge(&self.proxy, &self.exchange, &inbound, &began, received, &candidate) {
            Err(why) => {
                self.proxy.metrics.not_stored(why);
                if why.is_of_response() {
                    self.mark(None, received.mono_ms);
                    self.tell_fleet(Ended::Uncacheable);
                }
                self.leader.publish(Published::Alone);
                self.tell(Led::Direct(Box::new(inbound), why));
            }
            Ok(head) => {
                let too_early = store::too_early(&self.proxy, &self.exchange, &candidate);
                self.stream(inbound, head, &began, received.mono_ms, too_early).await;
            }
        }
    }

    /// Goes on with what came where a part was asked for. `None`: all is done. Else there is a response to the whole.
    async fn in_part(&mut self, mut inbound: Inbound, began: &Began, candidate: &Candidate) -> Option<Inbound> {
        let (Some(asked), Some(size)) = (self.part.clone(), self.exchange.policy().blocks) else { return Some(inbound) };
        let part = partial::part(Response { status: inbound.status, fields: &inbound.fields }, &asked);
        match (inbound.status.as_u16(), part) {
            // All of it: as if a 200 had come (RFC 9110 §15.3.7: it has the same fields).
            (206, Some(part)) if part.is_all() => {
                inbound.status = StatusCode::OK;
                inbound.fields.remove(name::CONTENT_RANGE);
                inbound.length = Some(part.length); // also where it comes in chunks: less is not all
                Some(inbound)
            }
            (206, part) => {
                let version = part.and_then(|part| Version::of(&inbound.fields, part.length));
                match version {
                    Some(version) => {
                        let blocks = Blocks { size: size.get(), version };
                        self.in_blocks(inbound, Some(asked.start), blocks, began, candidate).await;
                    }
                    None => {
                        blocks::not_in_parts(&self.proxy, &self.exchange.key);
                        self.leader.publish(Published::LeadAnew);
                        self.tell(Led::StartOver);
                    }
                }
                None
            }
            // Who asked beyond the end is told so by the origin; the others ask for what they want.
            (416, _) => {
                self.leader.publish(Published::LeadAnew);
                self.tell(Led::AsItCame);
                None
            }
            (200, _) => {
                blocks::not_in_parts(&self.proxy, &self.exchange.key);
                Some(inbound)
            }
            _ => Some(inbound),
        }
    }

    /// Keeps a response in blocks, if it may be: everybody gets its record. `first`: where the block begins that came with
    /// the head; without one the whole came, which is not wanted.
    async fn in_blocks(&mut self, inbound: Inbound, first: Option<u64>, blocks: Blocks, began: &Began, candidate: &Candidate) {
        let now_mono_ms = clock::now().mono_ms;
        let judged = match store::too_early(&self.proxy, &self.exchange, candidate) {
            None => store::judge_blocks(&self.proxy, &self.exchange, &inbound, blocks, began, candidate),
            Some(why) => Err(why),
        };
        let record = match judged {
            Ok(record) => record,
            Err(why) => {
                self.proxy.metrics.not_stored(why);
                if why.is_of_response() {
                    self.mark(None, now_mono_ms);
                }
                self.leader.publish(Published::Alone);
                return match first {
                    Some(_) => self.tell(Led::AsItCame),
                    None => self.tell(Led::Direct(Box::new(inbound), why)),
                };
            }
        };
        let flight = Arc::new(FlightHead::in_blocks(&self.proxy, &record, &inbound));
        let shareable = is_shareable(&self.exchange, &record.head, clock::now());
        let own = Own { fields: store::own_fields(&inbound.fields, &record.head.facts), ..Own::default() };
        // Before anybody is told, so that who is told finds the fetch.
        let block = first.and_then(|first| Block::at(&record, first));
        let receiving = block.and_then(|block| Some((blocks::begin(&self.proxy, &block, began.stamp)?, block)));
        self.publish(flight, Sharing { shareable, kept: true }, now_mono_ms, own);
        match receiving {
            Some((leader, block)) => {
                // Followers of this flight have their answer: the block has its own.
                self.leader.retire();
                self.proxy.metrics.block(BlockOutcome::Fetched);
                blocks::receive(&self.proxy, &self.exchange, &block, leader, inbound, began, false).await;
            }
            None => drop(inbound),
        }
    }

    /// An error of the origin for which a stored response may stand in (RFC 5861 §4).
    fn stands_in(&self, inbound: &Inbound, candidate: Option<&(Arc<StoredResponse>, Validity)>, now: Now) -> Option<Failure> {
        let (stored, validity) = candidate?;
        let allowed = is_origin_error(inbound)
            && may_serve_on_error_to(self.exchange.request(), &stored.head.facts, self.exchange.policy(), *validity, now);
        allowed.then(|| Failure {
            status: inbound.status.as_u16(),
            token: "http_response_incomplete",
            text: format!("the origin answered {}", inbound.status.as_u16()).into(),
            stale_may_be_served: true,
            endpoint: Some(Arc::clone(&inbound.endpoint)),
        })
    }

    /// Whether the client that leads wants a range of something larger than is fetched whole for that.
    fn asks_part_of_large(&self, inbound: &Inbound) -> bool {
        self.client.is_some()
            && inbound.status == StatusCode::OK
            && inbound.length.is_some_and(|length| length > self.exchange.policy().range_whole_max_bytes)
            && range::is_asked(self.exchange.request())
    }

    fn mark(&self, secondary: Option<&SecondaryKey>, now_mono_ms: u64) {
        let known = secondary.cloned().or_else(|| secondary_known(&self.proxy, &self.exchange, None));
        self.proxy.set_marker(marker_key(&self.exchange, known.as_ref()), now_mono_ms);
    }

    fn confirmed(&mut self, inbound: &Inbound, stored: &Arc<StoredResponse>, began: &Began, received: Now) {
        match revalidate::confirm(&self.proxy, &self.exchange, stored, inbound, began, received) {
            Ok(confirmed) => {
                let shareable = confirmed.not_stored.is_none() && is_shareable(&self.exchange, &confirmed.response.head, received);
                if !shareable {
                    self.tell_fleet(Ended::Uncacheable);
                }
                confirmed.offer(&self.proxy, &self.exchange, inbound, began.sent, self.lease.take());
                let (flight, own) = FlightHead::confirmed(confirmed, inbound);
                self.publish(Arc::new(flight), Sharing { shareable, kept: true }, received.mono_ms, own);
            }
            Err(revalidate::Gone) => {
                self.leader.publish(Published::LeadAnew);
                self.tell(Led::StartOver);
            }
        }
    }

    fn publish(&mut self, head: Arc<FlightHead>, sharing: Sharing, now_mono_ms: u64, own: Own) {
        self.leader.stamp().interims.end();
        self.proxy.vary_memory.remember(head.head.key.hash(), &head.head.facts.vary);
        if sharing.shareable && sharing.kept {
            let _ = self.leader.stamp().head.set(Arc::clone(&head.head)); // published once
            self.proxy.markers.clear(marker_key(&self.exchange, Some(&head.head.secondary)));
            self.proxy.markers.clear(self.exchange.key.hash());
            self.leader.publish(Published::Head(Arc::clone(&head)));
        } else {
            if !sharing.shareable {
                self.mark(Some(&head.head.secondary), now_mono_ms);
            }
            self.leader.publish(Published::Alone);
        }
        self.tell(Led::Shared(head, Own { contact: self.contact, ..own }));
    }

    async fn stream(&mut self, mut inbound: Inbound, head: Arc<StoredHead>, began: &Began, now_mono_ms: u64, too_early: Option<NotStored>) {
        let settings = &Arc::clone(&self.exchange.routed.settings).fill;
        let (writer, fill) = Fill::new(Arc::clone(&self.proxy.budget), settings, inbound.length, self.exchange.policy().max_object_bytes);
        let is_refresh = self.is_refresh;
        let reader = if self.client.is_some() { fill.reader(0, None) } else { None };
        let own = Own { reader, fields: store::own_fields(&inbound.fields, &head.facts), ..Own::default() };
        let ticket = fill.ticket();
        let _settling = Settling::of(&self.proxy, &head);
        let (body, giver) = (inbound.body.take(), inbound.giver);
        let flight = Arc::new(FlightHead::filling(&self.proxy, &head, &fill, &inbound, too_early));
        let shareable = is_shareable(&self.exchange, &head, clock::now());
        // Memory that ran out meanwhile is no reason of the response: who waits goes alone, nobody is told not to wait.
        let kept = fill.unstored().is_none();
        if inbound.length.is_some_and(|length| length <= self.exchange.policy().range_whole_max_bytes) {
            self.proxy.markers.clear(large_key(&self.exchange));
        }
        self.publish(flight, Sharing { shareable, kept }, now_mono_ms, own);
        if let Some(ended) = outcome_at_head(&self.exchange, &head, inbound.length, Sharing { shareable, kept }, too_early) {
            self.tell_fleet(ended);
        }
        let lease = Mutex::new(self.lease.take());
        let on_unstored = || {
            let lease = lease.lock().take();
            if let Some((lease, Unstored::TooLarge)) = lease.zip(fill.unstored()) {
                lease.tell(Ended::TooLarge);
            }
        };
        let whole = pump_while_wanted(&self.leader, ticket, body, writer, &fill, is_refresh, on_unstored).await;
        if whole && let Some(complete) = fill.complete() {
            let wanted = self.leader.followers();
            match store::whole(&self.proxy, &self.exchange, head, complete, &fill, wanted, too_early) {
                Ok(stored) => remote::offer(&self.proxy, &self.exchange, &stored, began.sent, giver, lease.into_inner()),
                Err(why) => tracing::debug!(reason = why.as_str(), "not stored after all"),
            }
        } else {
            self.proxy.metrics.not_stored(match fill.unstored() {
                Some(Unstored::TooLarge) => NotStored::TooLarge,
                Some(Unstored::Memory) => NotStored::Memory,
                None => NotStored::Incomplete,
            });
        }
    }
}

/// What the fleet is told at the head already, because the response will not come to it by Redis.
fn outcome_at_head(
    exchange: &Exchange,
    head: &StoredHead,
    length: Option<u64>,
    sharing: Sharing,
    too_early: Option<NotStored>,
) -> Option<Ended> {
    match sharing {
        Sharing { shareable: false, .. } => Some(Ended::Uncacheable),
        Sharing { kept: false, .. } => Some(Ended::Failed),
        _ if too_early.is_some() => Some(Ended::NotTaken),
        _ => remote::is_admitted(&exchange.routed.route.redis, head, length).err(),
    }
}

/// 500, 502, 503 and 504: what stale-if-error stands in for (RFC 5861 §4).
pub fn is_origin_error(inbound: &Inbound) -> bool {
    matches!(inbound.status.as_u16(), 500 | 502 | 503 | 504)
}

/// Resolves when neither the client that led nor any follower is there, and nobody can join any more.
async fn deserted(client: &mut Option<oneshot::Sender<Led>>, leader: &Leader<FlightHead, Departure>) {
    if let Some(client) = client {
        client.closed().await;
    }
    loop {
        leader.deserted().await;
        if leader.retire_if_deserted() {
            return;
        }
    }
}

/// [`pump`] for a flight. While followers take their readers the fill is wanted; one that nobody asked for (`unasked`) is
/// wanted as long as it is going to be stored. `told`: called once when it is not, any more.
pub async fn pump_while_wanted<H, S>(
    leader: &Leader<H, S>,
    ticket: JoinTicket,
    body: Option<Arriving>,
    writer: FillWriter,
    fill: &Fill,
    unasked: bool,
    told: impl Fn(),
) -> bool {
    let ticket = Mutex::new(Some(ticket));
    let wanted = async {
        if !unasked {
            leader.deserted().await;
            drop(ticket.lock().take());
        }
        std::future::pending::<()>().await;
    };
    let on_unstored = || {
        leader.retire();
        told();
        if unasked {
            drop(ticket.lock().take());
        }
    };
    tokio::select! {
        biased;
        whole = pump(body, writer, fill, on_unstored) => whole,
        () = wanted => unreachable!("it pends for ever"),
    }
}

/// Moves the body from the upstream to whoever reads; true if it is whole. `on_unstored` is called once when it is not
/// kept for storing any more, so that nobody new joins.
pub async fn pump(body: Option<Arriving>, mut writer: FillWriter, fill: &Fill, on_unstored: impl Fn()) -> bool {
    let Some(mut body) = body else { return writer.finish(None).is_ok() };
    let mut trailers = None;
    if fill.unstored().is_some() {
        on_unstored();
    }
    loop {
        let next = tokio::select! {
            biased;
            next = poll_fn(|context| body.poll_chunk(context)) => next,
            () = writer.abandoned() => return false,
        };
        match next {
            Some(Ok(Chunk::Data(bytes))) => {
                if writer.push_telling(bytes, &on_unstored).await.is_err() {
                    return false;
                }
            }
            Some(Ok(Chunk::Trailers(fields))) => trailers = Some(fields),
            Some(Err(error)) => {
                writer.fail(error);
                return false;
            }
            None => return writer.finish(trailers).is_ok(),
        }
    }
}
