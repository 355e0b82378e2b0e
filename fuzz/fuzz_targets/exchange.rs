//! The rules on one exchange: the first byte picks the status, then come lines `name:value`, those of the request up to an
//! empty line, then those of the response, then (behind another empty line) those of a 304 to it.
//!
//! So every field that the rules read is read here: Cache-Control, Age, Date, Expires, Vary, ETag, Last-Modified, the
//! conditions, Range, Location, Connection. What must hold whatever they say: what forbids storing is obeyed, a stored
//! response has a Date and no field of its connection, is selected by the request that brought it, never grows younger, and
//! is used only where it is fresh or may be stale.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tiercel::semantics::freshness::Facts;
use tiercel::semantics::policy::CachePolicy;
use tiercel::semantics::reuse::{Reuse, Validity, keep_ms, may_serve_on_error_to, only_if_cached, reuse};
use tiercel::semantics::storage::{Storage, may_store, stored_fields};
use tiercel::semantics::{
    Fields, Method, Now, Request, Response, StatusCode, Target, hop, invalidation, name, precondition, range, upgrade, validation,
};

const NOW: Now = Now { wall_ms: 1_795_000_000_000, mono_ms: 5_000_000 };
const STATUSES: [u16; 16] = [200, 200, 200, 200, 203, 204, 206, 301, 304, 404, 405, 412, 416, 501, 503, 599];

fuzz_target!(|data: &[u8]| {
    let Some((status, rest)) = data.split_first() else { return };
    let mut sections = sections(rest);
    let (asked, answered, newer) = (sections.next().unwrap_or_default(), sections.next().unwrap_or_default(), sections.next());
    let status = StatusCode::from_u16(STATUSES[usize::from(*status) % STATUSES.len()]).expect("a status");
    let target = Target::from_url("http://shop.example/a/b?c=d").expect("a URL");
    let request = Request { method: &Method::GET, target: &target, fields: &asked };
    let response = Response { status, fields: &answered };
    let policy = CachePolicy::default();

    let facts = Facts::new(request, response, &policy.targeted, NOW, NOW.plus_ms(5));
    let stored = may_store(request, response, &facts, &policy) == Storage::Stored;
    let kept = stored_fields(response, &facts, &policy);
    assert!(kept.has(name::DATE) && !kept.has(name::AGE) && !kept.has(name::CONNECTION));
    let directives = &facts.directives;
    assert!(!stored || !(directives.private || (directives.no_store && !directives.must_understand) || facts.vary.is_star()));
    if !facts.vary.is_star() {
        assert!(facts.vary.matches(&asked, &facts.vary.secondary_key(&asked, &policy), &policy));
    }
    used_where_allowed(request, &facts, &policy);
    conditions(request, Response { status, fields: &kept });
    if let Some(newer) = newer {
        let updated = validation::update(&kept, &newer);
        let _ = (validation::selects(&newer, &kept, &facts), validation::changes_representation(&kept, &updated));
        assert!(updated.get(name::CONTENT_LENGTH) == kept.get(name::CONTENT_LENGTH));
    }
    connection(&asked, &answered);
    let unsafe_request = Request { method: &Method::POST, ..request };
    for url in invalidation::invalidated(unsafe_request, response) {
        assert_eq!(url.origin(), target.origin());
    }
});

fn used_where_allowed(request: Request<'_>, facts: &Facts, policy: &CachePolicy) {
    let mut before = 0;
    for after_ms in [0, 999, 60_000, u64::from(u32::MAX) * 1000] {
        let now = NOW.plus_ms(5 + after_ms);
        let age_ms = facts.age_ms(now);
        assert!(age_ms >= before && age_ms >= after_ms);
        before = age_ms;
        let strict = facts.directives.must_revalidate || facts.directives.proxy_revalidate || facts.directives.s_maxage.is_some();
        match reuse(request, facts, policy, Validity::Valid, now) {
            Reuse::Fresh { ttl_ms, .. } => assert!(ttl_ms > 0 && !facts.directives.no_cache && facts.lifetime(policy).ms > age_ms),
            Reuse::StaleNow { ttl_ms, .. } => assert!(ttl_ms <= 0 && !strict && !facts.directives.no_cache),
            Reuse::Revalidate { .. } | Reuse::Unusable(_) => {}
        }
        if may_serve_on_error_to(request, facts, policy, Validity::Valid, now) {
            assert!(!facts.directives.no_cache && (!strict || facts.lifetime(policy).ms > age_ms));
        }
        assert!(matches!(reuse(request, facts, policy, Validity::Purged, now), Reuse::Unusable(_)));
        let _ = keep_ms(facts, policy, now);
    }
    let _ = only_if_cached(request);
}

fn conditions(request: Request<'_>, stored: Response<'_>) {
    let evaluated = precondition::evaluate(request, stored, NOW.wall_ms);
    if !request.fields.iter().any(|(name, _)| name.starts_with("if-")) {
        assert_eq!(evaluated, precondition::Precondition::Holds);
    }
    let not_modified = precondition::not_modified_fields(stored.fields);
    assert!(not_modified.len() <= stored.fields.len() && !not_modified.has(name::CONTENT_LENGTH));
    let mut shared = request.fields.clone();
    validation::strip_conditions(&mut shared);
    assert!(!shared.has(name::IF_NONE_MATCH) && !shared.has(name::RANGE));
    assert!(!range::is_asked(Request { fields: &shared, ..request }));
}

fn connection(asked: &Fields, answered: &Fields) {
    let mut end_to_end = answered.clone();
    hop::strip(&mut end_to_end);
    let once = end_to_end.clone();
    hop::strip(&mut end_to_end);
    assert!(once == end_to_end && !once.has(name::CONNECTION) && !once.has(name::TRANSFER_ENCODING));
    assert!(upgrade::passing(asked).all(|protocol| !protocol.eq_ignore_ascii_case(b"h2c")));
    let _ = (upgrade::may_look_like_requests(asked), upgrade::is_answer_to(b"websocket", answered));
}

/// Field sections between empty lines; a line that is no field line is left out, as it never gets this far.
fn sections(data: &[u8]) -> impl Iterator<Item = Fields> {
    let mut lines = data.split(|byte| *byte == b'\n').peekable();
    std::iter::from_fn(move || {
        lines.peek()?;
        let mut fields = Fields::new();
        for line in lines.by_ref().take_while(|line| !line.is_empty()) {
            if let Some(colon) = line.iter().position(|byte| *byte == b':') {
                let _ = fields.push(&line[..colon], &line[colon + 1..]);
            }
        }
        Some(fields)
    })
}
