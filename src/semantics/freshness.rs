//! Freshness lifetime and current age (RFC 9111 §4.2), and the facts of a response that the rules need.

use super::cache_control::{ResponseDirectives, delta_seconds};
use super::fields::{Fields, Name, list, name};
use super::forwarding;
use super::key::hash128;
use super::policy::CachePolicy;
use super::targeted::{TargetList, Targeted};
use super::terms::{SharedTerms, Terms};
use super::vary::Vary;
use super::{Now, Request, Response, StatusCode, date};
use std::borrow::Cow;
use std::ops::Deref;

/// What the rules need of a response, parsed once when it is received or updated.
///
/// Raw inputs only: policy is applied by the functions that read them, so that a changed policy
/// takes effect on stored responses.
#[derive(Debug, Clone, PartialEq)]
pub struct Facts {
    /// What others have too; to be read as if it stood here.
    pub terms: SharedTerms,
    /// When its head was received.
    pub response_time: Now,
    /// Date in wall milliseconds; the time of receipt where absent or unreadable.
    pub date_ms: i64,
    /// Age of the response when received, in milliseconds: corrected_initial_age of §4.2.3.
    pub initial_age_ms: u64,
    /// Last-Modified; [`NO_DATE`] where it is absent, unreadable, or not to be stored.
    last_modified_ms: i64,
    /// Where in the share of `cache.ttl.jitter` this response lies: so many 65,536ths.
    pub jitter: u16,
    /// The status that it is sent with: that of its terms, but for a part of a response.
    pub sent_as: StatusCode,
}

/// No date that can be read is this one.
const NO_DATE: i64 = i64::MIN;

// One of these is held per stored response.
const _: () = assert!(size_of::<Facts>() <= 56);

impl Deref for Facts {
    type Target = Terms;

    fn deref(&self) -> &Terms {
        &self.terms
    }
}

impl Facts {
    /// The facts of a response whose head came at `response_time` to a request sent at `request_time`.
    ///
    /// A field that must be single and has lines that differ counts as unreadable.
    pub fn new(request: Request<'_>, response: Response<'_>, targets: &TargetList, request_time: Now, response_time: Now) -> Self {
        Self::governed(Governing::read(response.fields, targets, response_time), request, response, targets, request_time, response_time)
    }

    /// [`Facts::new`] where it is known what governs the response.
    pub fn governed(
        governing: Governing,
        request: Request<'_>,
        response: Response<'_>,
        targets: &TargetList,
        request_time: Now,
        response_time: Now,
    ) -> Self {
        let fields = response.fields;
        let received_ms = response_time.wall_ms;
        let date_ms = read_date(fields, name::DATE, received_ms).unwrap_or(received_ms);
        let last_modified_ms = governing.last_modified_ms(fields, received_ms);
        let terms = Terms {
            vary: Vary::parse(fields),
            targets: targets.id(),
            status: response.status,
            has_etag: governing.has_etag(fields),
            authorized: forwarding::has_credentials(request.fields),
            cookie: request.fields.has(name::COOKIE),
            set_cookie: fields.has(name::SET_COOKIE) && !governing.hides_set_cookie(),
            expires_after_ms: governing.expires_after_ms(date_ms),
            directives: governing.directives,
            targeted: governing.targeted,
        };
        Self {
            terms: terms.into(),
            response_time,
            date_ms,
            initial_age_ms: initial_age_ms(age_value_ms(fields), date_ms, request_time, response_time),
            last_modified_ms,
            jitter: 0,
            sent_as: response.status,
        }
    }

    /// Last-Modified in wall milliseconds, where it is there and can be read.
    pub fn last_modified_ms(&self) -> Option<i64> {
        Some(self.last_modified_ms).filter(|ms| *ms != NO_DATE)
    }

    /// The facts of a part of the response.
    #[must_use]
    pub fn of_part(&self) -> Self {
        Self { sent_as: StatusCode::PARTIAL_CONTENT, ..self.clone() }
    }

    /// The same facts on other terms.
    #[must_use]
    pub fn on(&self, terms: Terms) -> Self {
        Self { terms: terms.into(), ..*self }
    }

    /// Whether the response says that it is for others, too, than who asked with credentials (§3.5).
    pub fn is_for_all(&self) -> bool {
        self.directives.public || self.directives.must_revalidate || self.directives.s_maxage.is_some()
    }

    /// With the jitter of the stored response that came of this fetch for this key: always the same, and spread evenly.
    #[must_use]
    pub fn jittered(self, key: u128, fetch: u64) -> Self {
        let mut bytes = [0; 24];
        bytes[..16].copy_from_slice(&key.to_le_bytes());
        bytes[16..].copy_from_slice(&fetch.to_le_bytes());
        Self { jitter: hash128(&bytes) as u16, ..self } // its low bits
    }

    /// The same facts where another list of targeted fields counts; `fields`: as they were stored.
    #[must_use]
    pub fn reread(&self, fields: &Fields, targets: &TargetList) -> Self {
        let fields = self.received_fields(fields);
        let governing = Governing::read(&fields, targets, self.response_time);
        let last_modified_ms = governing.last_modified_ms(&fields, self.response_time.wall_ms);
        let terms = Terms {
            targets: targets.id(),
            has_etag: governing.has_etag(&fields),
            // A cookie that was not stored was there all the same.
            set_cookie: (self.set_cookie || fields.has(name::SET_COOKIE)) && !governing.hides_set_cookie(),
            expires_after_ms: governing.expires_after_ms(self.date_ms),
            directives: governing.directives,
            targeted: governing.targeted,
            vary: self.vary.clone(),
            ..*self.terms
        };
        Self { last_modified_ms, ..self.on(terms) }
    }

    /// The stored fields together with those that were for this cache alone: what rules and updates go by.
    pub fn received_fields<'f>(&self, stored: &'f Fields) -> Cow<'f, Fields> {
        let mut fields = Cow::Borrowed(stored);
        for (name, value) in self.targeted.iter().flat_map(|targeted| targeted.consumed.iter()) {
            let added = fields.to_mut().push(name, value);
            debug_assert!(added.is_ok(), "they were fields before");
        }
        fields
    }

    /// The name of the field whose directives count.
    pub fn governed_by(&self) -> &str {
        self.targeted.as_ref().map_or(name::CACHE_CONTROL.as_str(), |targeted| &targeted.field)
    }

    /// Current age in milliseconds, rounded down nowhere (§4.2.3).
    pub fn age_ms(&self, now: Now) -> u64 {
        self.initial_age_ms.saturating_add(now.mono_ms.saturating_sub(self.response_time.mono_ms))
    }

    /// Time this response may be served without contacting the origin, counted from its generation.
    ///
    /// The first of: override by policy, `s-maxage`, `max-age`, `Expires` minus `Date` (§4.2.1), default by policy,
    /// heuristic (§4.2.2). An explicit zero beats everything below it. `cache.ttl.jitter` takes its part of any.
    pub fn lifetime(&self, policy: &CachePolicy) -> Lifetime {
        let Lifetime { ms, source } = self.full_lifetime(policy);
        if policy.ttl_jitter > 0.0 {
            let part = policy.ttl_jitter * f64::from(self.jitter) / f64::from(u16::MAX);
            return Lifetime { ms: ms.saturating_sub((ms as f64 * part) as u64), source };
        }
        Lifetime { ms, source }
    }

    fn full_lifetime(&self, policy: &CachePolicy) -> Lifetime {
        if let Some(ms) = policy.override_ms(self.status) {
            return Lifetime { ms, source: LifetimeSource::PolicyOverride };
        }
        if let Some(lifetime) = self.explicit_lifetime() {
            return lifetime;
        }
        if let Some(ms) = policy.default_ms(self.status) {
            return Lifetime { ms, source: LifetimeSource::PolicyDefault };
        }
        match self.heuristic_ms(policy) {
            Some(ms) => Lifetime { ms, source: LifetimeSource::Heuristic },
            None => Lifetime { ms: 0, source: LifetimeSource::None },
        }
    }

    /// The lifetime that the origin named, where it did (§4.2.1).
    pub fn explicit_lifetime(&self) -> Option<Lifetime> {
        let directives = &self.directives;
        if let Some(seconds) = directives.s_maxage {
            return Some(Lifetime { ms: u64::from(seconds) * 1000, source: LifetimeSource::SMaxage });
        }
        if let Some(seconds) = directives.max_age {
            return Some(Lifetime { ms: u64::from(seconds) * 1000, source: LifetimeSource::MaxAge });
        }
        self.expires_after_ms.map(|ms| Lifetime { ms, source: LifetimeSource::Expires })
    }

    /// Whether the response can be revalidated: it has an entity tag or a readable Last-Modified (RFC 9110 §8.8).
    pub fn has_validator(&self) -> bool {
        self.has_etag || self.last_modified_ms().is_some()
    }

    /// Bytes of memory on the heap, as if nobody else had the same terms.
    pub fn memory(&self) -> usize {
        self.terms.memory()
    }

    /// A tenth of the time since Last-Modified (§4.2.2), for statuses that allow it or with `public`. Not where the
    /// response may be one user's (Set-Cookie, Cookie, Authorization): the origin did not say that it may be shared.
    fn heuristic_ms(&self, policy: &CachePolicy) -> Option<u64> {
        let personal = self.set_cookie || self.authorized || (self.cookie && !policy.heuristic_with_cookie);
        let allowed = self.directives.public || is_heuristically_cacheable(self.status);
        if !policy.heuristic || personal || !allowed {
            return None;
        }
        let since_ms = self.date_ms.saturating_sub(self.last_modified_ms()?);
        u64::try_from(since_ms / 10).ok().map(|ms| ms.min(policy.heuristic_max_ms))
    }
}

/// What of a response governs it: one targeted field, or Cache-Control and Expires.
pub struct Governing {
    pub directives: ResponseDirectives,
    /// `None`: absent; `Some(None)`: unreadable, and so stale.
    expires_ms: Option<Option<i64>>,
    targeted: Option<Box<Targeted>>,
}

impl Governing {
    /// Of a response whose head came at this time.
    pub fn read(fields: &Fields, targets: &TargetList, received: Now) -> Self {
        let Some((field, said)) = targets.governing(fields) else {
            return Self {
                directives: ResponseDirectives::parse(fields),
                expires_ms: fields.has(name::EXPIRES).then(|| read_date(fields, name::EXPIRES, received.wall_ms)),
                targeted: None,
            };
        };
        let consumed: Vec<Name> = targets.consumed(fields).collect();
        let consumed = fields.copy_if(|number, _, _| number.is_some_and(|number| consumed.contains(&number)));
        let targeted = Some(Box::new(Targeted { field: field.into(), consumed }));
        Self { directives: said.directives, expires_ms: said.expires_ms.map(Some), targeted }
    }

    /// The lifetime that Expires gives a response of that date (§4.2.1).
    fn expires_after_ms(&self, date_ms: i64) -> Option<u64> {
        let after = |expires_ms: i64| expires_ms.saturating_sub(date_ms).max(0).unsigned_abs();
        self.expires_ms.map(|expires| expires.map_or(0, after))
    }

    /// Whether the response has an entity tag that is stored with it.
    fn has_etag(&self, fields: &Fields) -> bool {
        etag(fields).is_some() && self.keeps(name::ETAG)
    }

    /// The Last-Modified that is stored with the response; [`NO_DATE`] where it has none that can be read.
    fn last_modified_ms(&self, fields: &Fields, received_ms: i64) -> i64 {
        let date_ms = read_date(fields, name::LAST_MODIFIED, received_ms).filter(|_| self.keeps(name::LAST_MODIFIED));
        date_ms.unwrap_or(NO_DATE)
    }

    /// Whether a field may be stored (§5.2.2.7). By what is not, nobody can validate, and no other process could say how fresh
    /// the response is.
    fn keeps(&self, field: Name) -> bool {
        !self.directives.rare().private_fields.names(field.as_str())
    }

    /// Whether Set-Cookie is kept from everybody but the client that asked.
    fn hides_set_cookie(&self) -> bool {
        self.directives.rare().private_fields.names("set-cookie") || self.directives.rare().no_cache_fields.names("set-cookie")
    }
}

/// Statuses that may be reused with a heuristic lifetime (RFC 9110 §15.1); 206 not yet.
pub fn is_heuristically_cacheable(status: StatusCode) -> bool {
    matches!(status.as_u16(), 200 | 203 | 204 | 300 | 301 | 308 | 404 | 405 | 410 | 414 | 501)
}

/// corrected_initial_age (§4.2.3).
fn initial_age_ms(age_value_ms: u64, date_ms: i64, request_time: Now, response_time: Now) -> u64 {
    // HTTP dates have whole seconds, so the apparent age has too: with milliseconds, a response of this very second
    // would be up to 999 ms old on arrival and `max-age=1` would hold half a second.
    let received_seconds = response_time.wall_ms.div_euclid(1000);
    let apparent_ms = received_seconds.saturating_sub(date_ms.div_euclid(1000)).saturating_mul(1000).max(0).unsigned_abs();
    let delay_ms = response_time.mono_ms.saturating_sub(request_time.mono_ms);
    apparent_ms.max(age_value_ms.saturating_add(delay_ms))
}

/// Age in milliseconds: its first list member over all lines; zero where that is no number (§5.1).
fn age_value_ms(fields: &Fields) -> u64 {
    let first = fields.values(name::AGE).flat_map(list).next();
    first.and_then(delta_seconds).map_or(0, |seconds| u64::from(seconds) * 1000)
}

/// The date in a field, in wall milliseconds.
fn read_date(fields: &Fields, field: Name, now_wall_ms: i64) -> Option<i64> {
    single(fields, field).and_then(|value| date::parse(value, now_wall_ms))
}

/// The entity tag as it came, quotes and `W/` included; `None` also where it is empty or two lines differ.
pub fn etag(fields: &Fields) -> Option<&[u8]> {
    single(fields, name::ETAG).filter(|tag| !tag.is_empty())
}

/// The value of a field whose lines all say the same.
fn single(fields: &Fields, field: Name) -> Option<&[u8]> {
    let mut values = fields.values(field);
    let first = values.next()?;
    values.all(|value| value == first).then_some(first)
}

/// A freshness lifetime and where it came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lifetime {
    pub ms: u64,
    pub source: LifetimeSource,
}

/// The governing field or rule (§4.2.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LifetimeSource {
    PolicyOverride,
    SMaxage,
    MaxAge,
    Expires,
    PolicyDefault,
    Heuristic,
    /// No explicit freshness and no heuristic applies: stale at once.
    None,
}

impl LifetimeSource {
    /// For `explain`: `s-maxage`, `heuristic`, ...
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::PolicyOverride => "policy-override",
            Self::SMaxage => "s-maxage",
            Self::MaxAge => "max-age",
            Self::Expires => "expires",
            Self::PolicyDefault => "policy-default",
            Self::Heuristic => "heuristic",
            Self::None => "none",
        }
    }
    /// Whether the origin named it.
    pub const fn is_explicit(self) -> bool {
        matches!(self, Self::SMaxage | Self::MaxAge | Self::Expires)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::semantics::target::{Scheme, Target};
    use http::Method;
    use proptest::prelude::*;

    fn facts(lines: &[(&str, &str)], sent: Now, received: Now) -> Facts {
        let mut host = Fields::new();
        host.append(name::HOST, "a").unwrap();
        let target = Target::parse(Scheme::Http, b"/", &host, false).unwrap();
        let mut fields = Fields::new();
        for (name, value) in lines {
            fields.push(name, value).unwrap();
        }
        let request = Request { method: &Method::GET, target: &target, fields: &host };
        Facts::new(request, Response { status: StatusCode::OK, fields: &fields }, &TargetList::default(), sent, received)
    }

    proptest! {
        #[test]
        fn age_never_goes_back_nor_panics(
            age in "[0-9a-z, -]{0,12}", date in any::<i64>(), sent in any::<i64>(), delay in any::<u64>(), after in any::<u64>()
        ) {
            let sent = Now { wall_ms: sent, mono_ms: sent.unsigned_abs() };
            let received = sent.plus_ms(delay);
            let date = date::format(date);
            let facts = facts(&[("age", &age), ("date", std::str::from_utf8(&date).unwrap())], sent, received);
            let (now, later) = (received.plus_ms(after / 2), received.plus_ms(after));
            prop_assert!(facts.age_ms(received) <= facts.age_ms(now) && facts.age_ms(now) <= facts.age_ms(later));
            prop_assert!(facts.age_ms(received) >= received.mono_ms - sent.mono_ms);
        }

        #[test]
        fn no_expires_panics(expires in "[ -~]{0,35}", date in any::<i64>(), received in any::<i64>()) {
            let date = date::format(date);
            let now = Now { wall_ms: received, mono_ms: 0 };
            let facts = facts(&[("expires", &expires), ("date", std::str::from_utf8(&date).unwrap())], now, now);
            prop_assert_eq!(facts.lifetime(&CachePolicy::default()).source, LifetimeSource::Expires);
        }
    }
}
