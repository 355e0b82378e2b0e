//! May this request enter, and which way does it go?

use super::exchange::Arrival;
use super::live::Live;
use super::shield::FromPeer;
use super::standing::Standing;
use crate::config::settings::{Action, Asked, Server, is_in};
use crate::listener::{Identity, Peer, RequestBody, RequestHead};
use crate::route;
use crate::semantics::content::{self, Unkeyed};
use crate::semantics::key::CacheKey;
use crate::semantics::target::{Scheme, Target};
use crate::semantics::{Fields, Method, cache_control, class, fields, forwarding, hop, name, upgrade};
use crate::tls::challenges;
use std::borrow::Cow;
use std::net::IpAddr;
use std::sync::Arc;

/// Why a request does not enter.
#[derive(Debug, Clone)]
pub struct Refused {
    pub status: u16,
    /// Token for log and metrics.
    pub reason: &'static str,
    /// One sentence for the client.
    pub text: String,
}

impl Refused {
    /// RFC 9209 §2.3 token for Proxy-Status.
    pub const fn error(&self) -> &'static str {
        if self.status == 508 { "proxy_loop_detected" } else { "http_request_error" }
    }
}

/// Which way a request goes.
pub enum Way {
    Cache,
    /// As well, once its content is known.
    CacheByContent,
    /// To the upstream, without the cache.
    Past(Past),
    Local(LocalAnswer),
    Purge,
}

/// Why a request goes past the cache.
#[derive(Debug, Clone)]
pub enum Past {
    /// Not GET or HEAD, nor a method that is answered by its content here.
    Method,
    /// The route does not cache.
    Disabled,
    /// A bypass rule, with its reason.
    Rule(Arc<str>),
    /// The client wants another protocol, one that may pass.
    Upgrade,
    /// GET or HEAD with a body.
    Body,
    /// `no-store` in the request.
    RequestNoStore,
    /// Its content cannot be part of a key.
    Content(Unkeyed),
    /// The node is cut off from the fleet's journal, and `journal.on_cutoff` says so.
    CutOff,
}

impl Past {
    /// Whether the cache could have answered, had policy or client not chosen otherwise. A client that wants nothing but
    /// a stored response (RFC 9111 §5.2.1.7) is told that there is none then.
    pub const fn is_choice(&self) -> bool {
        matches!(self, Self::Disabled | Self::Rule(_) | Self::RequestNoStore | Self::Content(_) | Self::CutOff)
    }

    /// For people.
    pub fn text(&self) -> String {
        match self {
            Self::Method => "the method is not one that is answered from store".into(),
            Self::Disabled => "the route does not cache".into(),
            Self::Rule(reason) => format!("a bypass rule ({reason})"),
            Self::Upgrade => "the client asks for another protocol".into(),
            Self::Body => "the request has a body".into(),
            Self::RequestNoStore => "the request says no-store".into(),
            Self::Content(why) => why.text().into(),
            Self::CutOff => "this node is cut off from the fleet's journal".into(),
        }
    }
}

/// An answer that the configuration gives.
pub enum LocalAnswer {
    Redirect,
    /// To the same with https, at this port.
    ToHttps(u16),
    Respond,
    /// TRACE and CONNECT.
    MethodNotAllowed,
    /// OPTIONS that is not to be forwarded any further (RFC 9110 §7.6.2).
    Options,
}

/// `from_peer`: the request comes from another node of the fleet, whose word on its client counts.
pub fn admit<'a>(live: &'a Live, peer: &'a Peer, head: &'a RequestHead, from_peer: Option<Arc<FromPeer>>) -> Result<Arrival<'a>, Refused> {
    let server = &live.settings.server;
    let trusted = from_peer.is_some() || is_in(&server.trusted_proxies, peer.client.ip());
    let scheme = if trusted { forwarded_scheme(&head.fields).unwrap_or(peer.scheme) } else { peer.scheme };
    let target = Target::parse(scheme, &head.target, &head.fields, server.lenient_path).map_err(|error| Refused {
        status: 400,
        reason: "target",
        text: error.to_string(),
    })?;
    if target.is_asterisk() && head.method != Method::OPTIONS {
        // RFC 9112 §3.2.4: the asterisk form is for OPTIONS alone.
        return Err(Refused { status: 400, reason: "target", text: "the target * is for OPTIONS only".into() });
    }
    refuse_loops(&head.fields, &server.name, from_peer.is_some())?;
    let mut fields = Cow::Borrowed(&head.fields);
    if !trusted && fields.has_any(forwarding::CLIENT) {
        forwarding::drop_untrusted(fields.to_mut());
    }
    if trusted && from_peer.is_none() && fields.has_any(forwarding::CERTIFICATE) {
        fields.to_mut().retain(|number, _, _| !number.is_some_and(|number| forwarding::CERTIFICATE.contains(number)));
    }
    if let Some(identity) = &peer.identity {
        identify(identity, &mut fields);
    }
    if fields.has(name::CONNECTION) && hop::names_fields(&fields) {
        hop::drop_named(fields.to_mut());
    }
    // A PURGE is about what a GET stored: it goes the way of a GET.
    let routed_as = if head.method.as_str() == "PURGE" { &Method::GET } else { &head.method };
    let routed = live.route(&target, routed_as, &fields).ok_or_else(|| Refused {
        status: 421,
        reason: "no-site",
        text: "no site is configured for this host".into(),
    })?;
    let stripped = &routed.route.strip_cookies;
    if !stripped.is_empty() && fields.has(name::COOKIE) {
        route::strip_cookies(fields.to_mut(), stripped);
    }
    if routed.route.key.classes.iter().any(|class| class.forward.is_some()) {
        class::forward(&routed.route.key.classes, fields.to_mut());
    }
    let key = CacheKey::new(&target, &fields, &routed.route.key);
    let client = if trusted { forwarded_client(&head.fields, server).unwrap_or(peer.client.ip()) } else { peer.client.ip() };
    let given_id = trusted.then(|| head.fields.text(name::X_REQUEST_ID)).flatten().filter(|id| !id.is_empty() && id.len() <= 128);
    let request_id = given_id.map(Arc::from);
    let (method, minor_version) = (&head.method, head.minor_version);
    let (exact, content, standing) = (None, None, Standing::Trusted);
    Ok(Arrival {
        peer,
        method,
        minor_version,
        fields,
        target,
        routed,
        key,
        exact,
        client,
        trusted,
        request_id,
        content,
        from_peer,
        standing,
    })
}

/// Tells on whom the handshake found the client to be (RFC 9440 §2.4).
fn identify(identity: &Identity, fields: &mut Cow<'_, Fields>) {
    for (name, value) in [(name::CLIENT_CERT, &identity.certificate), (name::CLIENT_CERT_CHAIN, &identity.chain)] {
        if let Some(value) = value {
            let added = fields.to_mut().append(name, value);
            debug_assert!(added.is_ok(), "a byte sequence is a field value");
        }
    }
}

/// Refuses a request on a connection whose handshake was not that of its site: what was asked of the client there, or what it
/// showed, is not for this site to count on (RFC 9110 §15.5.20). The client may ask again on a connection of its own.
pub fn expect_own_handshake(arrival: &Arrival<'_>) -> Result<(), Refused> {
    let (peer, site) = (arrival.peer, &arrival.routed.client_certificates);
    let misdirected = match (&peer.identity, site) {
        (None, None) => return Ok(()),
        _ if arrival.from_peer.is_some() => return Ok(()), // the node that it came to has seen to it
        (None, Some(wanted)) if peer.scheme == Scheme::Http => wanted.asked == Asked::Required,
        (None, Some(wanted)) => wanted.asked != Asked::Nothing,
        (Some(identity), wanted) => {
            let is_its_own = wanted.as_ref().map_or(identity.is_of_listener, |wanted| wanted.is_like(&identity.policy));
            let is_named = identity.name.as_deref().is_none_or(|name| name == arrival.target.host());
            !is_its_own || (identity.policy.asked != Asked::Nothing && !is_named)
        }
    };
    let text = || "this host wants a connection of its own, with TLS and its name in the handshake".into();
    if misdirected { Err(Refused { status: 421, reason: "misdirected", text: text() }) } else { Ok(()) }
}

pub fn way(arrival: &Arrival<'_>, body: &RequestBody) -> Way {
    let (route, method) = (&arrival.routed.route, arrival.method);
    if let Some(port) = route.redirect_to_https.or(arrival.peer.redirect_to_https)
        && is_for_https(&arrival.target)
    {
        return Way::Local(LocalAnswer::ToHttps(port));
    }
    match &route.action {
        Action::Redirect { .. } => return Way::Local(LocalAnswer::Redirect),
        Action::Respond { .. } => return Way::Local(LocalAnswer::Respond),
        Action::Proxy(_) => {}
    }
    let by_content = match method.as_str() {
        "GET" | "HEAD" => false,
        "PURGE" => return Way::Purge,
        "OPTIONS" if max_forwards(&arrival.fields) == Some(0) => return Way::Local(LocalAnswer::Options),
        // TRACE echoes what only the proxy should see, credentials of trusted hops among it.
        "TRACE" | "CONNECT" => return Way::Local(LocalAnswer::MethodNotAllowed),
        _ if route.cache.body_key.has(method) => true,
        _ => return Way::Past(Past::Method),
    };
    if arrival.fields.has(name::UPGRADE) && wants_upgrade(arrival.minor_version, &arrival.fields) {
        return Way::Past(Past::Upgrade);
    }
    if !by_content && !matches!(body, RequestBody::Empty) {
        return Way::Past(Past::Body);
    }
    if !route.cache.enabled {
        return Way::Past(Past::Disabled);
    }
    if !route.bypass.is_empty()
        && let Some(rule) = route::bypass(route, &arrival.target, method, &arrival.fields)
    {
        return Way::Past(Past::Rule(rule.reason.as_str().into()));
    }
    if arrival.fields.has(name::CACHE_CONTROL) && cache_control::RequestDirectives::parse(&arrival.fields).no_store {
        return Way::Past(Past::RequestNoStore);
    }
    if arrival.standing == Standing::Bypasses {
        return Way::Past(Past::CutOff);
    }
    if by_content {
        let length = if let RequestBody::Stream { length, .. } = body { *length } else { None };
        return content::unkeyed(method, &arrival.fields, length, &route.cache)
            .map_or(Way::CacheByContent, |why| Way::Past(Past::Content(why)));
    }
    Way::Cache
}

/// Whether a request without TLS can be sent to https.
fn is_for_https(target: &Target) -> bool {
    target.scheme() == Scheme::Http && !target.is_asterisk() && !target.path().starts_with(challenges::PATH)
}

/// Whether Connection names upgrade, and Upgrade a protocol that may pass. Any other Upgrade is ignored, as that of an
/// HTTP/1.0 client must be (RFC 9110 §7.8).
fn wants_upgrade(minor_version: u8, fields: &Fields) -> bool {
    let mut options = fields.values(name::CONNECTION).flat_map(fields::list);
    minor_version > 0 && options.any(|option| option.eq_ignore_ascii_case(b"upgrade")) && upgrade::passing(fields).next().is_some()
}

/// How many more times a request may be forwarded (RFC 9110 §7.6.2); `None` where it does not say, or not as a number.
pub fn max_forwards(fields: &Fields) -> Option<u32> {
    fields.get_named("max-forwards").and_then(cache_control::delta_seconds)
}

/// RFC 8586: our own name in CDN-Loop means that the request came around.
///
/// The nodes of a fleet have one name, as a rule: of a request from another node the last member, its own, does not count.
fn refuse_loops(fields: &Fields, own: &str, from_peer: bool) -> Result<(), Refused> {
    if !fields.has(name::CDN_LOOP) {
        return Ok(());
    }
    let ours = |member: &[u8]| {
        member.split(|byte| matches!(byte, b';' | b' ' | b'\t')).next().is_some_and(|id| id.eq_ignore_ascii_case(own.as_bytes()))
    };
    let passed: Vec<&[u8]> = fields.values(name::CDN_LOOP).flat_map(fields::list).collect();
    if passed.iter().take(passed.len().saturating_sub(usize::from(from_peer))).any(|member| ours(member)) {
        return Err(Refused { status: 508, reason: "loop", text: format!("the request passed {own} before (CDN-Loop)") });
    }
    Ok(())
}

fn forwarded_scheme(fields: &Fields) -> Option<Scheme> {
    match fields.text(name::X_FORWARDED_PROTO)?.rsplit(',').next()?.trim() {
        "https" => Some(Scheme::Https),
        "http" => Some(Scheme::Http),
        _ => None,
    }
}

/// The last address in X-Forwarded-For that is not a trusted proxy's: everything left of it is hearsay.
fn forwarded_client(fields: &Fields, server: &Server) -> Option<IpAddr> {
    let list = fields.joined(name::X_FORWARDED_FOR)?;
    let mut client = None;
    for member in std::str::from_utf8(&list).ok()?.rsplit(',') {
        let address: IpAddr = member.trim().trim_matches(['[', ']']).parse().ok()?;
        client = Some(address);
        if !is_in(&server.trusted_proxies, address) {
            break;
        }
    }
    client
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(lines: &[(&str, &str)]) -> Fields {
        let mut fields = Fields::new();
        for (name, value) in lines {
            fields.push(name, value).unwrap();
        }
        fields
    }

    #[test]
    fn our_own_name_in_cdn_loop_is_a_loop() {
        assert!(refuse_loops(&fields(&[("cdn-loop", "other, Tiercel; v=1")]), "tiercel", false).is_err());
        assert!(refuse_loops(&fields(&[("cdn-loop", "other, tiercel2")]), "tiercel", false).is_ok());
        assert!(refuse_loops(&fields(&[("cdn-loop", "other, tiercel")]), "tiercel", true).is_ok(), "the node that asks");
        assert!(refuse_loops(&fields(&[("cdn-loop", "tiercel, other"), ("cdn-loop", "tiercel")]), "tiercel", true).is_err());
    }

    #[test]
    fn upgrade_is_wanted_only_if_connection_names_it_and_it_may_pass() {
        for (minor_version, connection, protocols, wanted) in [
            (1, "keep-alive, Upgrade", "websocket", true),
            (1, "upgrade", "h2c, websocket", true),
            (1, "keep-alive", "websocket", false),
            (1, "upgrade, http2-settings", "h2c", false),
            (1, "upgrade", "", false),
            (0, "upgrade", "websocket", false),
        ] {
            let fields = fields(&[("connection", connection), ("upgrade", protocols)]);
            assert_eq!(wants_upgrade(minor_version, &fields), wanted, "1.{minor_version} {connection}: {protocols}");
        }
    }

    #[test]
    fn networks_match_mapped_addresses() {
        let networks = ["10.0.0.0/8".parse().unwrap()];
        assert!(is_in(&networks, "::ffff:10.1.2.3".parse().unwrap()));
        assert!(!is_in(&networks, "11.0.0.1".parse().unwrap()));
    }
}
