//! RateLimit and RateLimit-Policy (draft-ietf-httpapi-ratelimit-headers): structured fields (RFC 9651), lists of one
//! policy.

use super::Rejected;
use crate::config::settings::RateLimit;

/// What the policy is called towards clients: names of sites and routes are nobody's business.
const POLICY: &str = "default";

/// `"default";q=100;w=60`: so many in so many seconds.
pub fn policy(settings: &RateLimit) -> String {
    format!("\"{POLICY}\";q={};w={}", settings.rate.count, settings.rate.per.as_secs())
}

/// `"default";r=0;t=2`: nothing is left; in so many seconds something is.
pub fn exhausted(rejected: Rejected) -> String {
    format!("\"{POLICY}\";r=0;t={}", rejected.retry_after_seconds())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::settings::{LimitBy, OnFault, Rate};
    use sfv::{BareItem, ListEntry, Parser};
    use std::time::Duration;

    #[test]
    fn fields_are_structured_lists() {
        let rate = Rate { count: 100, per: Duration::from_secs(60) };
        let (by, shared, on_fault) = (LimitBy::Client, false, OnFault::Allow);
        let settings = RateLimit { name: "shop".into(), rate, burst: 20, by, shared, on_fault };
        let rejected = Rejected { wait: Duration::from_millis(1200) };
        for (text, wanted) in [(policy(&settings), [("q", 100), ("w", 60)]), (exhausted(rejected), [("r", 0), ("t", 2)])] {
            let list: sfv::List = Parser::new(&text).parse().unwrap();
            let [ListEntry::Item(item)] = &list[..] else { panic!("{text}") };
            assert_eq!(item.bare_item.as_string().map(sfv::StringRef::as_str), Some("default"), "{text}");
            for (name, number) in wanted {
                let value = item.params.get(name).and_then(BareItem::as_integer).map(i64::from);
                assert_eq!(value, Some(number), "{text}");
            }
        }
    }
}
