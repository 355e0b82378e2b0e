//! May this response be stored (RFC 9111 §3), and what is left out (§3.1)?

use super::cache_control::{RequestDirectives, ResponseDirectives};
use super::fields::trim;
use super::freshness::{Facts, LifetimeSource, is_heuristically_cacheable};
use super::policy::{CachePolicy, SetCookie};
use super::{Fields, Method, Name, Request, Response, StatusCode, date, hop, name};

/// The answer to "may this be stored".
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Storage {
    Stored,
    Not(NotStored),
}

/// Why a response is not stored. Tokens go into Cache-Status `detail`, logs and metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum NotStored {
    /// The route does not cache.
    Disabled,
    /// A bypass rule of the route matched.
    BypassRule,
    /// Request method is not cacheable here.
    Method,
    /// no-store in the response.
    NoStore,
    /// no-store in the request.
    RequestNoStore,
    /// private in the response.
    Private,
    /// Set-Cookie in the response.
    SetCookie,
    /// Authorization in the request without permission in the response (§3.5).
    Authorization,
    /// Neither explicit freshness, nor a rule, nor a heuristic, nor a validator.
    NoFreshness,
    /// The status is not understood, or not final, or needs explicit freshness.
    Status,
    /// 206: partial content is stored in blocks, where the route has them, or not at all.
    Partial,
    /// Vary: *.
    VaryStar,
    /// Body larger than `cache.max_object_size`.
    TooLarge,
    /// Memory for fills was exhausted.
    Memory,
    /// The head is larger than what is kept.
    HeadTooLarge,
    /// An error that request oddities may have caused (poisoned error guard).
    PoisonGuard,
    /// Static-looking path with a dynamic type (cache deception guard).
    DeceptionGuard,
    /// More surrogate keys than allowed.
    TooManyKeys,
    /// Too few asked for it as yet (`cache.store_after`).
    StoreAfter,
    /// The fetch was purged while under way.
    Purged,
    /// The body did not end as announced.
    Incomplete,
    /// The tier refused it.
    Rejected,
}

impl NotStored {
    pub const ALL: [Self; 22] = [
        Self::Disabled,
        Self::BypassRule,
        Self::Method,
        Self::NoStore,
        Self::RequestNoStore,
        Self::Private,
        Self::SetCookie,
        Self::Authorization,
        Self::NoFreshness,
        Self::Status,
        Self::Partial,
        Self::VaryStar,
        Self::TooLarge,
        Self::Memory,
        Self::HeadTooLarge,
        Self::PoisonGuard,
        Self::DeceptionGuard,
        Self::TooManyKeys,
        Self::StoreAfter,
        Self::Purged,
        Self::Incomplete,
        Self::Rejected,
    ];
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Disabled => "DISABLED",
            Self::BypassRule => "BYPASS-RULE",
            Self::Method => "METHOD",
            Self::NoStore => "NO-STORE",
            Self::RequestNoStore => "REQUEST-NO-STORE",
            Self::Private => "PRIVATE",
            Self::SetCookie => "SET-COOKIE",
            Self::Authorization => "AUTHORIZATION",
            Self::NoFreshness => "NO-FRESHNESS",
            Self::Status => "STATUS",
            Self::Partial => "PARTIAL",
            Self::VaryStar => "VARY-STAR",
            Self::TooLarge => "TOO-LARGE",
            Self::Memory => "MEMORY",
            Self::HeadTooLarge => "HEAD-TOO-LARGE",
            Self::PoisonGuard => "POISON-GUARD",
            Self::DeceptionGuard => "DECEPTION-GUARD",
            Self::TooManyKeys => "TOO-MANY-KEYS",
            Self::StoreAfter => "STORE-AFTER",
            Self::Purged => "PURGED",
            Self::Incomplete => "INCOMPLETE",
            Self::Rejected => "REJECTED",
        }
    }
    /// Whether the reason lies in the response itself, so that waiting in line for the next one is pointless too
    /// (DESIGN section 5: sets the "do not line up" marker).
    pub const fn is_of_response(self) -> bool {
        matches!(
            self,
            Self::NoStore
                | Self::Private
                | Self::SetCookie
                | Self::NoFreshness
                | Self::Status
                | Self::Partial
                | Self::VaryStar
                | Self::TooLarge
                | Self::HeadTooLarge
                | Self::TooManyKeys
                | Self::Authorization
                | Self::DeceptionGuard
        )
    }
}

/// A response head with more bytes of fields than this is not stored ([`NotStored::HeadTooLarge`]).
pub const HEAD_BYTES_MAX: usize = 64 << 10;

/// A request head with more bytes than this may be why an error came back ([`NotStored::PoisonGuard`]).
const ODD_HEAD_BYTES: usize = 16 << 10;

/// May this response to this request be stored? `facts` are of the same response.
pub fn may_store(request: Request<'_>, response: Response<'_>, facts: &Facts, policy: &CachePolicy) -> Storage {
    of_request(request, policy)
        .or_else(|| of_method(request, response, facts, policy))
        .or_else(|| of_directives(facts.status, &facts.directives))
        .or_else(|| of_status(request, facts))
        .or_else(|| of_sharing(facts, policy))
        .or_else(|| of_size(response, policy))
        .or_else(|| of_guards(request, response, facts, policy))
        .or_else(|| of_freshness(facts, policy))
        .map_or(Storage::Stored, Storage::Not)
}

/// What [`may_store`] says of a response to GET whose directives alone forbid it, or whose request does; `None`: more has to
/// be known. Nearly all that may not be stored is of this kind.
pub fn forbidden(request: Request<'_>, status: StatusCode, directives: &ResponseDirectives, policy: &CachePolicy) -> Option<NotStored> {
    if *request.method != Method::GET {
        return None;
    }
    of_request(request, policy).or_else(|| of_directives(status, directives))
}

fn of_request(request: Request<'_>, policy: &CachePolicy) -> Option<NotStored> {
    if !policy.enabled {
        return Some(NotStored::Disabled);
    }
    // §5.2.1.5; the one request directive, with only-if-cached, that is not advisory.
    if request.fields.has(name::CACHE_CONTROL) && RequestDirectives::parse(request.fields).no_store {
        return Some(NotStored::RequestNoStore);
    }
    // Neither is part of the key, and an origin that heeds them answers something else than this request.
    let unkeyed_body = *request.method == Method::GET && has_body(request.fields);
    let other_request = unkeyed_body || METHOD_OVERRIDES.iter().any(|field| request.fields.has(*field));
    other_request.then_some(NotStored::PoisonGuard)
}

fn of_method(request: Request<'_>, response: Response<'_>, facts: &Facts, policy: &CachePolicy) -> Option<NotStored> {
    if policy.body_key.has(request.method) {
        // RFC 9110 §9.3.3 asks for explicit freshness in answers to POST; that stays.
        let named = *request.method != Method::POST || is_named(facts.lifetime(policy).source);
        return (!named).then_some(NotStored::NoFreshness);
    }
    let storable = *request.method == Method::GET || represents_target(request, response, facts);
    (!storable).then_some(NotStored::Method)
}

/// Whether the answer to a POST or PATCH is what a GET would get from now on: a 200 with explicit freshness whose
/// Content-Location is the URI that was asked (RFC 9110 §9.3.3, RFC 5789 §2). It is stored as the answer to a GET.
pub fn represents_target(request: Request<'_>, response: Response<'_>, facts: &Facts) -> bool {
    let mut locations = response.fields.values(name::CONTENT_LOCATION).map(std::str::from_utf8);
    let (Some(Ok(location)), None) = (locations.next(), locations.next()) else { return false };
    matches!(*request.method, Method::POST | Method::PATCH)
        && response.status == StatusCode::OK
        && facts.explicit_lifetime().is_some()
        && request.target.resolve(location).as_ref() == Ok(request.target)
}

/// no-store, private, must-understand (§5.2.2.3, §5.2.2.5, §5.2.2.7).
fn of_directives(status: StatusCode, directives: &ResponseDirectives) -> Option<NotStored> {
    if directives.must_understand && !is_understood(status) {
        return Some(if directives.no_store { NotStored::NoStore } else { NotStored::Status });
    }
    if directives.no_store && !directives.must_understand {
        return Some(NotStored::NoStore);
    }
    directives.private.then_some(NotStored::Private)
}

/// Final statuses only, and none that answers a condition or range that is not part of the key.
fn of_status(request: Request<'_>, facts: &Facts) -> Option<NotStored> {
    let conditional = CONDITIONS.iter().any(|field| request.fields.has(*field));
    match facts.status.as_u16() {
        ..200 | 304 => Some(NotStored::Status),
        206 => Some(NotStored::Partial),
        412 if conditional => Some(NotStored::PoisonGuard),
        416 if request.fields.has(name::RANGE) => Some(NotStored::PoisonGuard),
        _ => None,
    }
}

/// Whether others may get it at all.
fn of_sharing(facts: &Facts, policy: &CachePolicy) -> Option<NotStored> {
    if facts.vary.is_star() {
        return Some(NotStored::VaryStar);
    }
    if facts.set_cookie && policy.set_cookie == SetCookie::Bypass {
        return Some(NotStored::SetCookie);
    }
    (facts.authorized && !facts.is_for_all()).then_some(NotStored::Authorization)
}

fn of_size(response: Response<'_>, policy: &CachePolicy) -> Option<NotStored> {
    if response.fields.wire().len() > HEAD_BYTES_MAX {
        return Some(NotStored::HeadTooLarge);
    }
    let declared: Option<u64> = response.fields.text(name::CONTENT_LENGTH).and_then(|text| text.parse().ok());
    declared.is_some_and(|bytes| bytes > policy.max_object_bytes).then_some(NotStored::TooLarge)
}

/// Responses that an attacker may have provoked for others to get.
fn of_guards(request: Request<'_>, response: Response<'_>, facts: &Facts, policy: &CachePolicy) -> Option<NotStored> {
    if policy.error_guard && blames_request(facts.status) && (is_odd(request) || !is_named(facts.lifetime(policy).source)) {
        return Some(NotStored::PoisonGuard);
    }
    let deceptive =
        policy.deception_guard && facts.explicit_lifetime().is_none() && looks_static(request.target.path()) && is_dynamic(response.fields);
    deceptive.then_some(NotStored::DeceptionGuard)
}

/// §3: explicit freshness makes any final status storable, `public` and heuristic statuses any that can be reused; and
/// what could never be reused is not kept.
fn of_freshness(facts: &Facts, policy: &CachePolicy) -> Option<NotStored> {
    let lifetime = facts.lifetime(policy);
    if !is_named(lifetime.source) && !facts.directives.public && !is_heuristically_cacheable(facts.status) {
        return Some(NotStored::Status);
    }
    // Windows of the policy do not count: they would keep every max-age=0 page for the rare failing origin.
    let directives = &facts.directives;
    let strict = directives.no_cache || directives.must_revalidate || directives.proxy_revalidate;
    let window = if strict { None } else { directives.rare().stale_while_revalidate.max(directives.rare().stale_if_error) };
    let usable_ms = lifetime.ms.saturating_add(u64::from(window.unwrap_or(0)) * 1000);
    let reusable = !directives.no_cache && usable_ms > facts.initial_age_ms;
    (!reusable && !facts.has_validator()).then_some(NotStored::NoFreshness)
}

/// Whether somebody, origin or operator, named the lifetime.
const fn is_named(source: LifetimeSource) -> bool {
    !matches!(source, LifetimeSource::Heuristic | LifetimeSource::None)
}

/// Final statuses whose caching requirements are known here, for must-understand (§5.2.2.3).
fn is_understood(status: StatusCode) -> bool {
    matches!(status.as_u16(), 200..=205 | 300..=303 | 307 | 308 | 400..=417 | 421 | 422 | 426 | 428 | 429 | 431 | 451 | 500..=505 | 511)
}

/// Errors that blame the form of the request, which the cache key does not hold.
fn blames_request(status: StatusCode) -> bool {
    matches!(status.as_u16(), 400 | 405 | 406 | 411 | 413 | 414 | 415 | 417 | 421 | 426 | 428 | 431 | 501)
}

const METHOD_OVERRIDES: [Name; 3] = [name::X_HTTP_METHOD_OVERRIDE, name::X_METHOD_OVERRIDE, name::X_HTTP_METHOD];

const CONDITIONS: [Name; 5] = [name::IF_MATCH, name::IF_NONE_MATCH, name::IF_MODIFIED_SINCE, name::IF_UNMODIFIED_SINCE, name::IF_RANGE];

fn has_body(fields: &Fields) -> bool {
    let empty = |value: &[u8]| !value.is_empty() && value.iter().all(|digit| *digit == b'0');
    fields.has(name::TRANSFER_ENCODING) || fields.values(name::CONTENT_LENGTH).any(|value| !empty(value))
}

fn is_odd(request: Request<'_>) -> bool {
    let head_bytes = request.target.as_str().len() + request.fields.wire().len();
    head_bytes > ODD_HEAD_BYTES
        || request.fields.iter().any(|(_, value)| value.iter().any(|byte| !matches!(byte, b' '..=b'~')))
        || request.target.query().is_some_and(has_odd_bytes)
}

/// Bytes that RFC 3986 has no place for, and encoded control bytes.
fn has_odd_bytes(query: &str) -> bool {
    let odd = |byte: &u8| !byte.is_ascii_graphic() || matches!(byte, b'"' | b'<' | b'>' | b'\\' | b'^' | b'`' | b'{' | b'|' | b'}');
    query.bytes().any(|byte| odd(&byte)) || query.as_bytes().windows(3).any(|code| matches!(code, [b'%', b'0' | b'1', _] | b"%7F"))
}

/// Path extensions that caches like to take for static (cache deception).
const STATIC_EXTENSIONS: [&str; 34] = [
    "7z", "avi", "avif", "bmp", "bz2", "css", "csv", "doc", "docx", "eot", "gif", "gz", "ico", "jpeg", "jpg", "js", "mjs", "mp3", "mp4",
    "otf", "pdf", "png", "svg", "swf", "tar", "tif", "tiff", "ttf", "txt", "webm", "webp", "woff", "woff2", "zip",
];

/// Whether the path ends, as a whole or before a delimiter that some origins cut at, in a static-looking extension.
fn looks_static(path: &str) -> bool {
    let segment = path.rsplit('/').next().unwrap_or(path);
    let cut = segment.split([';', '%', '!', '$', ',']).next().unwrap_or(segment);
    [segment, cut].iter().any(|name| name.rsplit_once('.').is_some_and(|(_, end)| is_static_extension(end)))
}

fn is_static_extension(text: &str) -> bool {
    STATIC_EXTENSIONS.iter().any(|extension| extension.eq_ignore_ascii_case(text))
}

/// A page or an API answer, going by its media type.
fn is_dynamic(fields: &Fields) -> bool {
    let media_type = fields.get(name::CONTENT_TYPE).and_then(|value| value.split(|byte| *byte == b';').next());
    let Some(media_type) = media_type.map(|text| trim(text).to_ascii_lowercase()) else { return false };
    let dynamic: [&[u8]; 5] = [b"text/html", b"application/xhtml+xml", b"application/json", b"text/xml", b"application/xml"];
    dynamic.contains(&&media_type[..]) || media_type.ends_with(b"+json")
}

/// The fields of a response that are kept: without those of one connection (§3.1, RFC 9110 §7.6.1) or proxy, without
/// Age (kept in the facts), without those named by private="..." or meant for this cache alone; with Set-Cookie only under [`SetCookie::Store`]; with
/// Date, the time of receipt, where the origin sent none that can be read (RFC 9110 §6.6.1).
pub fn stored_fields(response: Response<'_>, facts: &Facts, policy: &CachePolicy) -> Fields {
    let of_connection = hop::of_connection(response.fields);
    let private = &facts.directives.rare().private_fields;
    let dated = response.fields.get(name::DATE).and_then(|value| date::parse(value, facts.response_time.wall_ms)) == Some(facts.date_ms);
    let mut fields = response.fields.copy_if(|number, name, _| {
        let left_out = match number {
            Some(name::AGE | name::PROXY_AUTHENTICATE | name::PROXY_AUTHENTICATION_INFO | name::PROXY_AUTHORIZATION) => true,
            Some(name::SET_COOKIE) if policy.set_cookie != SetCookie::Store => true,
            Some(name::DATE) if !dated => true,
            _ => of_connection(number, name),
        };
        let consumed = number.is_some_and(|number| facts.targeted.as_ref().is_some_and(|targeted| targeted.consumed.has(number)));
        !left_out && !consumed && !private.iter().any(|field| field.as_bytes() == name)
    });
    if !fields.has(name::DATE) {
        fields.append(name::DATE, date::format(facts.date_ms)).expect("a date is a field value and a head is far below SECTION_MAX");
    }
    fields.shrink();
    fields
}
