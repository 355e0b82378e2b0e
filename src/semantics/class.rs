//! Classes of clients: a few values in the key in place of a field with thousands (User-Agent).

use super::Fields;
use super::condition::{ValueMatch, all_hold};

/// A way to part clients into classes (`cache.key.classes`).
#[derive(Debug, Clone)]
pub struct ClientClass {
    pub name: String,
    /// In order; the first that holds gives the value.
    pub rules: Vec<ClassRule>,
    /// Where no rule holds.
    pub default: String,
    /// The request field that tells the origin the value; in lower case.
    pub forward: Option<String>,
}

/// A value, and the conditions on request fields, all of which must hold for it.
#[derive(Debug, Clone)]
pub struct ClassRule {
    pub value: String,
    pub headers: Vec<(String, ValueMatch)>,
}

impl ClientClass {
    /// The value for a request with these fields.
    pub fn of(&self, fields: &Fields) -> &str {
        self.rules.iter().find(|rule| all_hold(&rule.headers, fields)).map_or(&self.default, |rule| &rule.value)
    }
}

/// Writes the values of classes that are forwarded into the request, in place of what the client sent by that name: from
/// there on the origin, Vary and everybody else see the value that selects.
pub fn forward(classes: &[ClientClass], fields: &mut Fields) {
    // All values first: no class is decided by what another one wrote.
    let values: Vec<(&str, String)> =
        classes.iter().filter_map(|class| Some((class.forward.as_deref()?, class.of(fields).to_owned()))).collect();
    for (name, value) in values {
        let set = fields.set(name, value);
        debug_assert!(set.is_ok(), "the configuration was checked: names are tokens, values too");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use regex::Regex;

    fn device() -> ClientClass {
        let by_agent = |value: &str, pattern: &str| ClassRule {
            value: value.into(),
            headers: vec![("user-agent".into(), ValueMatch::Pattern(Regex::new(pattern).unwrap()))],
        };
        ClientClass {
            name: "device".into(),
            rules: vec![by_agent("tablet", "(?i)ipad|tablet"), by_agent("mobile", "(?i)mobile")],
            default: "desktop".into(),
            forward: Some("x-device".into()),
        }
    }

    fn fields(lines: &[(&str, &str)]) -> Fields {
        let mut fields = Fields::new();
        for (name, value) in lines {
            fields.push(name, value).unwrap();
        }
        fields
    }

    #[test]
    fn the_first_rule_that_holds_gives_the_value() {
        for (agent, want) in [("x Mobile", "mobile"), ("iPad Mobile", "tablet"), ("x", "desktop"), ("", "desktop")] {
            assert_eq!(device().of(&fields(&[("user-agent", agent)])), want, "{agent}");
        }
        assert_eq!(device().of(&Fields::new()), "desktop");
    }

    #[test]
    fn a_forwarded_class_replaces_what_the_client_says() {
        let mut request = fields(&[("x-device", "evil"), ("user-agent", "Mobile"), ("X-Device", "two")]);
        forward(&[device()], &mut request);
        assert_eq!(request.wire(), b"user-agent: Mobile\r\nx-device: mobile\r\n");
        forward(&[ClientClass { forward: None, ..device() }], &mut request);
        assert_eq!(request.len(), 2);
    }
}
