//! Conditions on the values of a field or parameter, as routes, bypass rules and client classes have them.

use super::Fields;
use regex::Regex;

/// What must hold of the values of one name.
#[derive(Debug, Clone)]
pub enum ValueMatch {
    Present,
    Absent,
    Equals(String),
    Prefix(String),
    Pattern(Regex),
}

impl ValueMatch {
    /// Whether one of the values fulfils the condition, or none is there where none may be.
    pub fn holds<'v>(&self, mut values: impl Iterator<Item = &'v [u8]>) -> bool {
        match self {
            Self::Present => values.next().is_some(),
            Self::Absent => values.next().is_none(),
            Self::Equals(text) => values.any(|value| value == text.as_bytes()),
            Self::Prefix(prefix) => values.any(|value| value.starts_with(prefix.as_bytes())),
            Self::Pattern(pattern) => values.any(|value| std::str::from_utf8(value).is_ok_and(|value| pattern.is_match(value))),
        }
    }
}

/// Whether all conditions on fields hold; names are in lower case.
pub fn all_hold(conditions: &[(String, ValueMatch)], fields: &Fields) -> bool {
    conditions.iter().all(|(name, condition)| condition.holds(values(fields, name)))
}

/// Values of the lines of a lower-case name, without allocating for one that is not well known.
fn values<'f>(fields: &'f Fields, name: &'f str) -> impl Iterator<Item = &'f [u8]> {
    fields.iter().filter(move |(line, _)| *line == name).map(|(_, value)| value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_compared_as_the_condition_says() {
        let some = |values: &[&'static str]| values.iter().map(|value| value.as_bytes()).collect::<Vec<_>>().into_iter();
        let pattern = || ValueMatch::Pattern(Regex::new("^b+$").unwrap());
        assert!(ValueMatch::Present.holds(some(&[""])) && !ValueMatch::Present.holds(some(&[])));
        assert!(ValueMatch::Absent.holds(some(&[])) && !ValueMatch::Absent.holds(some(&[""])));
        assert!(ValueMatch::Equals("b".into()).holds(some(&["a", "b"])) && !ValueMatch::Equals("b".into()).holds(some(&["bb"])));
        assert!(ValueMatch::Prefix("b".into()).holds(some(&["bb"])) && !ValueMatch::Prefix("b".into()).holds(some(&["ab"])));
        assert!(pattern().holds(some(&["bb"])) && !pattern().holds([&b"\xff"[..]].into_iter()));
    }
}
