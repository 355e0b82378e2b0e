//! The request as it goes to the upstream.

use super::deliver::edit;
use super::exchange::Exchange;
use crate::cache::StoredResponse;
use crate::config::settings::UpstreamHost;
use crate::listener::{Announced, InterimSender, Peer, Protocol, RequestBody};
use crate::route;
use crate::semantics::vary::Asked;
use crate::semantics::{Fields, Method, Name, Target, forwarding, hop, name, upgrade, validation, vary};
use crate::shield::Question;
use crate::upstream::{FetchError, Outbound};
use smallvec::SmallVec;
use std::borrow::Cow;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

/// What is asked of the origin.
pub enum Kind<'a> {
    /// The whole response, so that others may join, or its whole head: no conditions or ranges of the client; ours where
    /// a stored response is to be confirmed.
    Whole(Option<&'a Arc<StoredResponse>>),
    /// A part of it, of whatever version there is: `bytes=0-9`; with our conditions where a stored response is to be
    /// confirmed, which come before the range (RFC 9110 §13.2.2).
    Part { range: String, stored: Option<&'a Arc<StoredResponse>> },
    /// What is missing of a response with this strong validator: `bytes=7-`, and the validator.
    Rest { range: String, validator: &'a [u8] },
    /// What the client asked, ranges and conditions included; what comes may be stored.
    OnItsTerms,
    /// What the client asked, past the cache.
    AsItCame { body: RequestBody, upgrade: bool },
}

/// An error where the route's rewriting made a target that is ambiguous, or a field has no room: it must not go on.
pub fn request(exchange: &Exchange, kind: Kind<'_>, interim: Option<InterimSender>) -> Result<Outbound, FetchError> {
    let route = &exchange.routed.route;
    let mut fields = end_to_end(exchange);
    let (mut body, mut wants_upgrade) = (exchange.body(), false);
    let is_of_stored = matches!(kind, Kind::Rest { .. } | Kind::Part { .. });
    let may_be_stored = !matches!(kind, Kind::AsItCame { .. });
    if may_be_stored {
        forwarding::drop_unkeyed(&mut fields, &route.key);
    }
    match kind {
        Kind::Whole(stored) => {
            confirm(&mut fields, stored);
        }
        Kind::Part { range, stored } => {
            confirm(&mut fields, stored);
            set(&mut fields, name::RANGE, range.as_bytes())?;
        }
        Kind::Rest { range, validator } => {
            validation::strip_conditions(&mut fields);
            set(&mut fields, name::RANGE, range.as_bytes())?;
            set(&mut fields, name::IF_RANGE, validator)?;
        }
        Kind::OnItsTerms => {}
        Kind::AsItCame { body: sent, upgrade: wanted } => (body, wants_upgrade) = (sent, wanted),
    }
    if exchange.method == Method::OPTIONS
        && let Some(left) = super::admit::max_forwards(&fields)
    {
        set(&mut fields, name::MAX_FORWARDS, left.saturating_sub(1).to_string().as_bytes())?;
    }
    if wants_upgrade {
        let protocols: Vec<&[u8]> = upgrade::passing(&exchange.fields).collect();
        set(&mut fields, name::UPGRADE, &protocols.join(&b", "[..]))?;
    }
    ask(exchange, &mut fields)?;
    describe_client(exchange, &mut fields)?;
    edit(&mut fields, &route.request_edits);
    const AMBIGUOUS: FetchError = FetchError::InvalidRequest("rewriting made an ambiguous path");
    let target = if may_be_stored { keyed_target(exchange) } else { Cow::Borrowed(&exchange.target) };
    let path_and_query = match route.rewrite.is_empty() {
        true => target.path_and_query().to_owned(),
        false => route::rewrite(&target, &route.rewrite).map_err(|_| AMBIGUOUS)?.path_and_query().to_owned(),
    };
    let host = match &route.host {
        UpstreamHost::Preserve => Some(exchange.target.authority().to_owned()),
        UpstreamHost::Upstream => None,
        UpstreamHost::Literal(host) => Some(host.clone()),
    };
    fields.remove(name::HOST);
    // A part of a body is got by the method that stored it.
    let method = if is_of_stored { exchange.as_stored().method.clone() } else { exchange.method.clone() };
    let (worker, client) = (exchange.peer.worker, Some(ends(exchange)));
    Ok(Outbound { method, path_and_query, host, fields, body, upgrade: wants_upgrade, interim, worker, client })
}

/// The ends of the client's connection: of the client as believed, whose port only its own connection tells.
fn ends(exchange: &Exchange) -> Announced {
    let Peer { client: peer, local, .. } = exchange.peer;
    let port = if peer.ip() == exchange.client { peer.port() } else { 0 };
    Announced { client: SocketAddr::new(exchange.client, port), local }
}

/// The request as it goes to another node of the fleet, which makes of it what this one would have made: what the client
/// asked, without its conditions and ranges, before anything that the route changes on the way to the upstream.
///
/// What the key does not hold stays here: an owner that is configured otherwise, or is cut off, may send on what it gets as
/// it came, and the answer is stored here.
pub fn to_peer(exchange: &Exchange, confirming: Option<&Arc<StoredResponse>>) -> Result<Question, FetchError> {
    let mut fields = end_to_end(exchange);
    forwarding::drop_unkeyed(&mut fields, &exchange.routed.route.key);
    confirm(&mut fields, confirming);
    ask(exchange, &mut fields)?;
    describe_client(exchange, &mut fields)?;
    fields.remove(name::HOST);
    let (method, scheme) = (exchange.method.clone(), exchange.target.scheme());
    let authority = exchange.target.authority().to_owned();
    let target = keyed_target(exchange).path_and_query().to_owned();
    Ok(Question { method, scheme, authority, target, fields, worker: exchange.peer.worker })
}

/// No conditions of the client, ours where there is something to confirm.
fn confirm(fields: &mut Fields, stored: Option<&Arc<StoredResponse>>) {
    validation::strip_conditions(fields);
    if let Some(stored) = stored {
        validation::add_conditions(fields, stored.head.as_response(), &stored.head.facts);
    }
}

/// The target with what counts of its query in the key: a parameter that does not must not shape what others get.
fn keyed_target(exchange: &Exchange) -> Cow<'_, Target> {
    let (target, policy) = (&exchange.target, &exchange.routed.route.key);
    if policy.keeps_query() || target.query().is_none() {
        return Cow::Borrowed(target);
    }
    let keyed = target.with_path_and_query(target.path(), policy.query_of(target).as_deref());
    debug_assert!(keyed.is_ok(), "parts of a normalised query are normal");
    keyed.map_or(Cow::Borrowed(target), Cow::Owned)
}

/// What the policy makes of Accept and its kin: the value that selects, so that the origin sees no other.
fn ask(exchange: &Exchange, fields: &mut Fields) -> Result<(), FetchError> {
    let mut value = Vec::new();
    for name in vary::DECIDED {
        value.clear();
        match vary::write_asked(name, &exchange.fields, exchange.policy(), &mut value) {
            Asked::AsSent => {}
            Asked::Nothing => drop(fields.remove(name)),
            Asked::Written => set(fields, name, &value)?,
        }
    }
    Ok(())
}

/// Values of ours and values that were fields are field values; there may be no room for them.
fn set(fields: &mut Fields, name: Name, value: &[u8]) -> Result<(), FetchError> {
    let set = if fields.has(name) { fields.set(name, value) } else { fields.append(name, value) };
    set.map_err(|_| UNFIT)
}

const UNFIT: FetchError = FetchError::InvalidRequest("a field does not fit a request head");

/// What goes on of the client's fields: not those of its connection, of its hop, or of its own choosing. Host is told apart.
fn end_to_end(exchange: &Exchange) -> Fields {
    let of_connection = hop::of_connection(&exchange.fields);
    exchange.fields.copy_if_with_room(DESCRIBED_BYTES, DESCRIBED_LINES, |number, name, _| match number {
        Some(name::HOST | name::EXPECT | name::PROXY_AUTHORIZATION | name::TIERCEL_HOP) => false,
        None if !exchange.trusted && name.starts_with(b"x-forwarded-") => false,
        None if forwarding::imitates_certificate(name) => false,
        number => !of_connection(number, name),
    })
}

/// Room for what [`describe_client`] says as a rule.
const DESCRIBED_BYTES: usize = 384;
const DESCRIBED_LINES: usize = 8;

/// Via, CDN-Loop, X-Forwarded-*, Forwarded, X-Request-Id. What a trusted proxy said is kept and continued.
fn describe_client(exchange: &Exchange, fields: &mut Fields) -> Result<(), FetchError> {
    let peer = exchange.peer.client.ip().to_canonical();
    let (address, authority) = (written(peer), exchange.target.authority().as_bytes());
    append(fields, name::X_FORWARDED_FOR, &[&address])?;
    let scheme = exchange.target.scheme().as_str().as_bytes();
    // That of the key, also where a trusted proxy said it in another way.
    set(fields, name::X_FORWARDED_PROTO, scheme)?;
    if !fields.has(name::X_FORWARDED_HOST) {
        set(fields, name::X_FORWARDED_HOST, authority)?;
    }
    let (open, close): (&[u8], &[u8]) = if peer.is_ipv6() { (b"\"[", b"]\"") } else { (b"", b"") };
    append(fields, name::FORWARDED, &[b"for=", open, &address, close, b";host=\"", authority, b"\";proto=", scheme])?;
    set(fields, name::X_REQUEST_ID, exchange.request_id.as_bytes())?;
    let version: &[u8] = match (exchange.peer.protocol, exchange.minor_version) {
        (Protocol::Http3, _) => b"3 ",
        (Protocol::Http2, _) => b"2 ",
        (Protocol::Http1, 0) => b"1.0 ",
        (Protocol::Http1, _) => b"1.1 ",
    };
    append(fields, name::VIA, &[version, exchange.routed.node.as_bytes()])?;
    append(fields, name::CDN_LOOP, &[exchange.routed.node.as_bytes()])?;
    let targeted = &exchange.policy().targeted;
    if targeted.has_surrogate_control() && exchange.from_peer.is_none() {
        append(fields, name::SURROGATE_CAPABILITY, &[targeted.device().as_bytes(), b"=\"Surrogate/1.0\""])?;
    }
    Ok(())
}

/// As it is displayed; of IPv4, which nearly all are, without a formatter.
fn written(address: IpAddr) -> SmallVec<[u8; 15]> {
    let IpAddr::V4(address) = address else { return SmallVec::from_slice(address.to_string().as_bytes()) };
    let mut text = SmallVec::new();
    for octet in address.octets() {
        if !text.is_empty() {
            text.push(b'.');
        }
        text.extend_from_slice(itoa::Buffer::new().format(octet).as_bytes());
    }
    text
}

/// Continues a list field by a member that is made of these.
fn append(fields: &mut Fields, name: Name, member: &[&[u8]]) -> Result<(), FetchError> {
    match fields.joined(name).filter(|there| !there.is_empty()).map(Cow::into_owned) {
        Some(there) => set(fields, name, &[&there, &b", "[..], &member.concat()].concat()),
        None => {
            fields.remove(name);
            fields.append_parts(name, member).map_err(|_| UNFIT)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::semantics::fields::SECTION_MAX;

    #[test]
    fn addresses_are_written_as_they_are_displayed() {
        for address in ["127.0.0.1", "0.0.0.0", "255.10.9.100", "::1", "2001:db8:1:2:3:4:5:6"] {
            assert_eq!(written(address.parse().unwrap()).as_slice(), address.as_bytes());
        }
    }

    #[test]
    fn a_member_comes_behind_what_there_is() {
        let mut fields = Fields::new();
        append(&mut fields, name::VIA, &[b"1.1 ", b"a"]).unwrap();
        append(&mut fields, name::VIA, &[b"2 ", b"b"]).unwrap();
        fields.push("cdn-loop", "").unwrap();
        append(&mut fields, name::CDN_LOOP, &[b"c"]).unwrap();
        assert_eq!(fields.wire(), b"via: 1.1 a, 2 b\r\ncdn-loop: c\r\n");
    }

    #[test]
    fn what_has_no_room_is_an_error_and_never_left_out() {
        let mut fields = Fields::new();
        fields.push("x-long", vec![b'x'; SECTION_MAX - 40]).unwrap();
        append(&mut fields, name::VIA, &[b"1.1 ", b"a"]).unwrap();
        let full = fields.wire().len();
        for result in [
            append(&mut fields, name::VIA, &[b"1.1 ", &[b'b'; 40]]),
            append(&mut fields, name::CDN_LOOP, &[&[b'c'; 40]]),
            set(&mut fields, name::RANGE, &[b'd'; 40]),
            set(&mut fields, name::VIA, &[b'e'; 40]),
        ] {
            assert!(matches!(result, Err(FetchError::InvalidRequest(_))), "{result:?}");
        }
        assert_eq!((fields.wire().len(), fields.get(name::VIA)), (full, Some(&b"1.1 a"[..])));
        set(&mut fields, name::VIA, b"1.1 b").unwrap();
    }
}
