//! Cache policy and cache key: each level changes what the levels around it have set.

use super::key;
use super::redis;
use super::table::Table;
use crate::config::raw::{RawBodyKey, RawCache, RawClientDirectives, RawSetCookie, RawShare, RawTtl, RawVary};
use crate::config::report::Report;
use crate::config::shape::join;
use crate::config::units;
use crate::semantics::StatusCode;
use crate::semantics::fields::is_token_byte;
use crate::semantics::freshness::is_heuristically_cacheable;
use crate::semantics::key::KeyPolicy;
use crate::semantics::policy::{BodyKey, CachePolicy, ClientDirectives, SetCookie, Statuses, TtlRule, VaryPolicy};
use crate::semantics::targeted::TargetList;
use std::num::NonZeroU64;
use std::time::Duration;

const STATUS_ALLOWED: &str = r#"a status "200", a class "4xx", or "default""#;

/// Applies a `cache` table to the policy of the level around it.
pub fn apply(at: &str, raw: &RawCache, policy: &mut CachePolicy, key_policy: &mut KeyPolicy, report: &mut Report) {
    warn_of_widening(at, raw, report);
    let ttl = join(at, "ttl");
    if let Some(lifetimes) = &raw.ttl.replace {
        policy.ttl_override = ttl_rules(&join(&ttl, "override"), lifetimes, report);
    }
    if let Some(lifetimes) = &raw.ttl.default {
        policy.ttl_default = ttl_rules(&join(&ttl, "default"), lifetimes, report);
    }
    policy.enabled = raw.enabled.unwrap_or(policy.enabled);
    policy.heuristic = raw.heuristic.unwrap_or(policy.heuristic);
    policy.heuristic_with_cookie = raw.heuristic_with_cookie.unwrap_or(policy.heuristic_with_cookie);
    if let Some(fields) = &raw.targeted {
        policy.targeted = TargetList::new(&targeted(&join(at, "targeted"), fields, report), policy.targeted.device());
    }
    policy.deception_guard = raw.deception_guard.unwrap_or(policy.deception_guard);
    policy.error_guard = raw.error_guard.unwrap_or(policy.error_guard);
    policy.collapse = raw.collapse.unwrap_or(policy.collapse);
    policy.set_cookie = match raw.set_cookie {
        None => policy.set_cookie,
        Some(RawSetCookie::Bypass) => SetCookie::Bypass,
        Some(RawSetCookie::Store) => SetCookie::Store,
        Some(RawSetCookie::Strip) => SetCookie::Strip,
    };
    policy.client_directives = match raw.client_directives {
        None => policy.client_directives,
        Some(RawClientDirectives::Ignore) => ClientDirectives::Ignore,
        Some(RawClientDirectives::Honour) => ClientDirectives::Honour,
    };
    policy.no_vary_search = raw.no_vary_search.unwrap_or(policy.no_vary_search);
    apply_vary(&join(at, "vary"), &raw.vary, &mut policy.vary, report);
    apply_body_key(&join(at, "body_key"), &raw.body_key, &mut policy.body_key, report);
    quantities(at, raw, policy, report);
    policy.early_refresh = lifetime_share(at, "early_refresh", raw.early_refresh.as_ref(), policy.early_refresh, report);
    policy.ttl_jitter = lifetime_share(&ttl, "jitter", raw.ttl.jitter.as_ref(), policy.ttl_jitter, report);
    key::apply(&join(at, "key"), &raw.key, key_policy, report);
    redis::check_level(at, &raw.redis, report);
}

/// Languages or formats of one route; each costs time on every request for a response that varies.
const CHOICES_MAX: usize = 64;

fn apply_vary(at: &str, raw: &RawVary, vary: &mut VaryPolicy, report: &mut Report) {
    if let Some(fields) = &raw.ignore {
        vary.ignore = field_names(&join(at, "ignore"), fields, report);
    }
    if let Some(languages) = &raw.languages {
        vary.languages = choices(&join(at, "languages"), languages, is_language, "a language tag such as \"en\" or \"pt-BR\"", report);
    }
    if let Some(formats) = &raw.images {
        vary.images = choices(&join(at, "images"), formats, is_image, "a format such as \"image/webp\"", report);
    }
}

fn choices(at: &str, texts: &[String], is_one: impl Fn(&str) -> bool, allowed: &str, report: &mut Report) -> Vec<String> {
    for (index, text) in texts.iter().enumerate() {
        let is_repeated = texts[..index].iter().any(|other| other.eq_ignore_ascii_case(text));
        if !is_one(text) || is_repeated {
            let what = if is_repeated { "named twice" } else { "not one of these" };
            report.problem(&format!("{at}[{index}]"), what, format!("\"{text}\""), allowed, "correct it, or remove it");
        }
    }
    if texts.len() > CHOICES_MAX {
        report.problem(at, "too many", texts.len().to_string(), format!("at most {CHOICES_MAX}"), "name those that many clients ask for");
    }
    texts.to_vec()
}

/// Subtags of one to eight letters and digits (RFC 5646 §2.1, loosely).
fn is_language(text: &str) -> bool {
    text.split('-').all(|subtag| (1..=8).contains(&subtag.len()) && subtag.bytes().all(|byte| byte.is_ascii_alphanumeric()))
}

fn is_image(text: &str) -> bool {
    text.strip_prefix("image/").is_some_and(|format| !format.is_empty() && format != "*" && format.bytes().all(is_token_byte))
}

fn apply_body_key(at: &str, raw: &RawBodyKey, body_key: &mut BodyKey, report: &mut Report) {
    if let Some(methods) = &raw.methods {
        for (index, method) in methods.iter().enumerate().filter(|(_, method)| !matches!(method.as_str(), "QUERY" | "POST")) {
            let (at, found) = (format!("{}[{index}]", join(at, "methods")), format!("\"{method}\""));
            report.problem(&at, "not a method that can be answered by its content", found, "\"QUERY\" or \"POST\"", "remove it");
        }
        let has = |name: &str| methods.iter().any(|method| method == name);
        (body_key.query, body_key.post) = (has("QUERY"), has("POST"));
    }
    let most = &mut body_key.max_bytes;
    *most = Table::new(report, at).size("max_bytes", raw.max_bytes.as_ref(), *most, 0..=CONTENT_BYTES_MAX);
}

/// It becomes part of the key, which is hashed, compared whole, and up to four times as long where it is no text.
const CONTENT_BYTES_MAX: u64 = 1 << 20;

/// Longest list of targeted fields: each is looked for in every response.
const TARGETED_MAX: usize = 8;

fn targeted(at: &str, names: &[String], report: &mut Report) -> Vec<String> {
    let fields = field_names(at, names, report);
    if fields.len() > TARGETED_MAX {
        report.problem(
            at,
            "too many fields",
            fields.len().to_string(),
            format!("at most {TARGETED_MAX}"),
            "name those that the origin sends",
        );
    }
    if let Some(index) = fields.iter().position(|name| name == "cache-control") {
        let remedy = "leave it out: it counts where none of the others does";
        report.problem(
            &format!("{at}[{index}]"),
            "not a targeted field",
            "\"cache-control\"",
            "fields that are for caches like this one",
            remedy,
        );
    }
    fields
}

fn quantities(at: &str, raw: &RawCache, policy: &mut CachePolicy, report: &mut Report) {
    let mut t = Table::new(report, at);
    let durations = [
        ("heuristic_max", &raw.heuristic_max, &mut policy.heuristic_max_ms),
        ("stale_while_revalidate", &raw.stale_while_revalidate, &mut policy.stale_while_revalidate_ms),
        ("stale_if_error", &raw.stale_if_error, &mut policy.stale_if_error_ms),
        ("keep_stale", &raw.keep_stale, &mut policy.keep_stale_ms),
    ];
    for (key, raw, ms) in durations {
        *ms = t.duration(key, raw.as_ref(), Duration::from_millis(*ms)).as_millis() as u64;
    }
    policy.max_object_bytes = t.size("max_object_size", raw.max_object_size.as_ref(), policy.max_object_bytes, 0..=u64::MAX);
    policy.range_whole_max_bytes = t.size("range_whole_max", raw.range_whole_max.as_ref(), policy.range_whole_max_bytes, 0..=u64::MAX);
    if policy.range_whole_max_bytes > policy.max_object_bytes {
        if raw.range_whole_max.is_some() && raw.max_object_size.is_some() {
            let found = format!("\"{}\"", units::print_size(policy.range_whole_max_bytes));
            let most = units::print_size(policy.max_object_bytes);
            t.wrong_text(
                "range_whole_max",
                "larger than max_object_size",
                found,
                &format!("at most \"{most}\""),
                "lower it: what is not stored is not fetched whole for a range",
            );
        }
        policy.range_whole_max_bytes = policy.max_object_bytes;
    }
    policy.range_parts_max = t.count("range_parts_max", raw.range_parts_max, policy.range_parts_max as u64, 1..=256) as usize;
    policy.blocks = blocks(&mut t, raw, policy);
    policy.store_after = t.count("store_after", raw.store_after, policy.store_after.into(), 1..=255) as u8;
    policy.max_variants = t.count("max_variants", raw.max_variants, policy.max_variants as u64, 1..=65_536) as usize;
}

/// Most of a lifetime that jitter or early refresh may take: more of it would not be the origin's any more.
const LIFETIME_SHARE_MAX: f64 = 0.5;

fn lifetime_share(at: &str, key: &str, raw: Option<&RawShare>, default: f64, report: &mut Report) -> f64 {
    let mut t = Table::new(report, at);
    let share = t.share(key, raw, default);
    if share > LIFETIME_SHARE_MAX {
        t.wrong_text(
            key,
            "too much of the lifetime",
            format!("\"{}\"", units::print_share(share)),
            "at most \"50%\"",
            "write for example \"10%\"",
        );
    }
    share
}

/// Blocks are a power of two, so that they are what disks and clients ask for, and large enough to be worth a request.
fn blocks(t: &mut Table<'_>, raw: &RawCache, policy: &CachePolicy) -> Option<NonZeroU64> {
    let there = policy.blocks.map_or(0, NonZeroU64::get);
    let size = t.size("blocks", raw.blocks.as_ref(), there, 0..=BLOCK_MAX);
    let allowed = size == 0 || (size >= BLOCK_MIN && size.is_power_of_two());
    if !allowed {
        let found = format!("\"{}\"", units::print_size(size));
        t.wrong_text(
            "blocks",
            "not a size of blocks",
            found,
            "a power of two from \"64KiB\" to \"16MiB\", or \"0B\"",
            "write for example \"1MiB\"",
        );
    } else if size > 0 && !policy.collapse && (raw.blocks.is_some() || raw.collapse.is_some()) {
        let found = format!("\"{}\"", units::print_size(size));
        t.wrong_text(
            "blocks",
            "blocks without collapse",
            found,
            "collapse = true beside it",
            "blocks are fetched once for all who want them: leave collapse on, or blocks off",
        );
    }
    NonZeroU64::new(size).filter(|_| allowed)
}

const BLOCK_MIN: u64 = 64 << 10;
const BLOCK_MAX: u64 = 16 << 20;

/// What an operator may want, and should have heard once.
fn warn_of_widening(at: &str, raw: &RawCache, report: &mut Report) {
    if raw.ttl.replace.is_some() {
        report.warn(&join(&join(at, "ttl"), "override"), "replaces the freshness that the origin declares (RFC 9111 section 4.2)");
    }
    if let Some(status) = raw.ttl.default.as_ref().and_then(default_beyond_the_rules) {
        let what = format!("keeps answers with {status} that name no freshness, which RFC 9111 section 3 leaves to the origin");
        report.warn(&join(&join(at, "ttl"), "default"), &what);
    }
    if raw.vary.ignore.as_ref().is_some_and(|fields| !fields.is_empty()) {
        report.warn(&join(&join(at, "vary"), "ignore"), "responses are reused although Vary forbids it (RFC 9111 section 4.1)");
    }
    if matches!(raw.set_cookie, Some(RawSetCookie::Store)) {
        report.warn(&join(at, "set_cookie"), "cookies of one client are replayed to others (RFC 9111 section 7.3)");
    }
    if matches!(raw.set_cookie, Some(RawSetCookie::Strip)) {
        report.warn(&join(at, "set_cookie"), "responses that set cookies are stored and reused without them (RFC 9111 section 7.3)");
    }
    if raw.body_key.methods.as_ref().is_some_and(|methods| methods.iter().any(|method| method == "POST")) {
        report.warn(
            &join(&join(at, "body_key"), "methods"),
            "POST is taken as safe, and answered from store by its content (RFC 9110 section 9.3.3)",
        );
    }
    if raw.heuristic_with_cookie == Some(true) {
        report.warn(
            &join(at, "heuristic_with_cookie"),
            "responses to requests with cookies are stored without the origin's word (RFC 9111 section 4.2.2)",
        );
    }
}

/// The first key of a table of defaults that means statuses which caches may not keep of their own accord.
fn default_beyond_the_rules(raw: &RawTtl) -> Option<&str> {
    let keeps = |status: u16| StatusCode::from_u16(status).is_ok_and(is_heuristically_cacheable);
    let is_beyond = |status: &&String| match statuses(status) {
        Some(Statuses::One(status)) => !keeps(status),
        Some(Statuses::Class(_)) => true,
        Some(Statuses::Usual) | None => false,
    };
    raw.0.as_object()?.keys().find(is_beyond).map(String::as_str)
}

/// A lifetime, or a table of them: single statuses before classes before `default`, whatever their order.
fn ttl_rules(at: &str, raw: &RawTtl, report: &mut Report) -> Vec<TtlRule> {
    let Some(table) = raw.0.as_object() else {
        let (parent, key) = at.rsplit_once('.').unwrap_or(("", at));
        let lifetime = Table::new(report, parent).quantity(key, &raw.0, units::duration, units::DURATION_ALLOWED);
        return lifetime
            .map(|lifetime| TtlRule { statuses: Statuses::Usual, lifetime_ms: lifetime.as_millis() as u64 })
            .into_iter()
            .collect();
    };
    let rule = |(status, lifetime): (&String, &serde_json::Value)| {
        let statuses = statuses(status);
        if statuses.is_none() {
            let remedy = if status.len() == 3 && status.starts_with(|c| ('1'..='5').contains(&c)) {
                format!("write \"{}xx\"", &status[..1])
            } else {
                String::new()
            };
            report.wrong_name(&join(at, status), "not a status", status, STATUS_ALLOWED, &remedy);
        }
        let lifetime = Table::new(report, at).quantity(status, lifetime, units::duration, units::DURATION_ALLOWED)?;
        Some(TtlRule { statuses: statuses?, lifetime_ms: lifetime.as_millis() as u64 })
    };
    let mut rules: Vec<TtlRule> = table.iter().filter_map(rule).collect();
    rules.sort_by_key(|rule| match rule.statuses {
        Statuses::One(status) => (0, status),
        Statuses::Class(class) => (1, u16::from(class)),
        Statuses::Usual => (2, 0),
    });
    rules
}

fn statuses(text: &str) -> Option<Statuses> {
    if text == "default" {
        return Some(Statuses::Usual);
    }
    if let Some(class) = text.strip_suffix("xx") {
        return class.parse().ok().filter(|class| (1..=5).contains(class)).map(Statuses::Class);
    }
    text.parse().ok().filter(|status| (100..=599).contains(status)).map(Statuses::One)
}

/// Field names in lower case.
pub fn field_names(at: &str, names: &[String], report: &mut Report) -> Vec<String> {
    for (index, name) in names.iter().enumerate() {
        if name.is_empty() || !name.bytes().all(is_token_byte) {
            report.problem(
                &format!("{at}[{index}]"),
                "not a field name",
                format!("\"{name}\""),
                "letters, digits and -",
                "write for example \"accept-language\"",
            );
        }
    }
    names.iter().map(|name| name.to_ascii_lowercase()).collect()
}
