//! Upgrade (RFC 9110 §7.8): to which protocols a client may switch through us.
//!
//! HTTP/2 and TLS end here. Whoever spoke HTTP/2 through a tunnel would send requests that nothing here sees: no cache, no
//! route, no loop protection; h2c is obsolete besides (RFC 9113 §3.1). TLS (RFC 2817) secures one hop, and a tunnel has two.

use super::fields::{is_token_byte, list};
use super::{Fields, name};

/// Protocols that are never switched to through us, whatever version follows them.
const OF_THIS_HOP: [&[u8]; 3] = [b"h2c", b"h2", b"tls"];

/// Protocols named by a request that may be asked for upstream. What is no protocol by the grammar is left out: somebody
/// might find one of this hop in it.
pub fn passing(fields: &Fields) -> impl Iterator<Item = &[u8]> {
    named(fields).filter(|protocol| is_protocol(protocol) && !is_of_this_hop(protocol))
}

/// Whether bytes behind a request with these fields, whose upgrade was declined or ignored, may be of another protocol and
/// look like requests all the same. Those of HTTP/2 and TLS cannot: the one begins with a preface that is refused
/// (RFC 9113 §3.4), the other with a byte that is in no method.
pub fn may_look_like_requests(fields: &Fields) -> bool {
    named(fields).any(|protocol| !is_of_this_hop(protocol))
}

/// Whether the fields of a 101 name protocols, and only such as were asked for.
pub fn is_answer_to(asked: &[u8], fields: &Fields) -> bool {
    let mut protocols = named(fields).peekable();
    protocols.peek().is_some() && protocols.all(|protocol| list(asked).any(|known| known.eq_ignore_ascii_case(protocol)))
}

fn named(fields: &Fields) -> impl Iterator<Item = &[u8]> {
    fields.values(name::UPGRADE).flat_map(list)
}

/// `protocol-name ["/" protocol-version]`, both tokens.
fn is_protocol(member: &[u8]) -> bool {
    let mut parts = member.splitn(2, |byte| *byte == b'/');
    parts.all(|part| !part.is_empty() && part.iter().all(|byte| is_token_byte(*byte)))
}

fn is_of_this_hop(protocol: &[u8]) -> bool {
    let name = protocol.split(|byte| *byte == b'/').next().unwrap_or_default();
    OF_THIS_HOP.iter().any(|known| name.eq_ignore_ascii_case(known))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn upgrade(lines: &[&str]) -> Fields {
        let mut fields = Fields::new();
        for line in lines {
            fields.append(name::UPGRADE, line).unwrap();
        }
        fields
    }

    #[test]
    fn http_2_and_tls_end_here_and_others_pass() {
        for (lines, passed, may_follow) in [
            (&["websocket"][..], &["websocket"][..], true),
            (&["h2c"], &[], false),
            (&["H2C, h2", "tls/1.2, TLS"], &[], false),
            (&["h2c, websocket", "foo/2, TLS/1.0"], &["websocket", "foo/2"], true),
            (&["h2cx, xh2"], &["h2cx", "xh2"], true),
            (&["web socket, \"h2c\", a/b/c, /1, a/"], &[], true),
            (&["", ","], &[], false),
        ] {
            let fields = upgrade(lines);
            let found: Vec<&str> = passing(&fields).map(|protocol| std::str::from_utf8(protocol).unwrap()).collect();
            assert_eq!((&found[..], may_look_like_requests(&fields)), (passed, may_follow), "{lines:?}");
        }
    }

    #[test]
    fn a_101_names_what_was_asked_for_and_nothing_else() {
        for (asked, lines, wanted) in [
            ("websocket", &["WebSocket"][..], true),
            ("a/1, b", &["b", "A/1"], true),
            ("websocket", &["h2c"], false),
            ("websocket", &["websocket, h2c"], false),
            ("websocket", &["websocket", "h2c"], false),
            ("a/1", &["a"], false),
            ("websocket", &[""], false),
            ("websocket", &[], false),
            ("", &["websocket"], false),
        ] {
            assert_eq!(is_answer_to(asked.as_bytes(), &upgrade(lines)), wanted, "{asked}: {lines:?}");
        }
    }

    proptest! {
        #[test]
        fn what_passes_is_a_list_that_means_the_same_again(value in "[ -~]{0,40}|(h2c|TLS/1|a|b/2|,| ){0,9}") {
            let fields = upgrade(&[value.trim()]);
            let passed: Vec<Vec<u8>> = passing(&fields).map(<[u8]>::to_vec).collect();
            let joined = passed.join(&b", "[..]);
            for protocol in &passed {
                let lower = String::from_utf8(protocol.to_ascii_lowercase()).unwrap();
                let name = lower.split_once('/').map_or(&*lower, |(name, _)| name);
                prop_assert!(!["h2c", "h2", "tls"].contains(&name), "{}", lower);
            }
            let again = upgrade(&[std::str::from_utf8(&joined).unwrap()]);
            prop_assert_eq!(passing(&again).map(<[u8]>::to_vec).collect::<Vec<_>>(), passed);
        }
    }
}
