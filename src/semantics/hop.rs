//! Fields that belong to one connection (RFC 9110 §7.6.1).

use super::fields::{Names, list};
use super::{Fields, Name, name};

/// Fields of one connection by definition.
///
/// Proxy-Authenticate and Proxy-Authentication-Info are not among them: they are meant for the next client outward,
/// and a gateway passes them on (RFC 9110 §11.7).
/// HTTP2-Settings goes with an upgrade to h2c (RFC 7540 §3.2.1), whether Connection names it or not.
pub const OF_CONNECTION: Names = Names::of(&[
    name::CONNECTION,
    name::HTTP2_SETTINGS,
    name::KEEP_ALIVE,
    name::PROXY_CONNECTION,
    name::TE,
    name::TRAILER,
    name::TRANSFER_ENCODING,
    name::UPGRADE,
]);

/// Fields that a Connection option cannot remove: RFC 9110 §7.6.1 forbids to list fields meant for all recipients, and
/// without these a message would mean something else, be framed or stored otherwise, or lose its loop protection.
const PROTECTED: Names = Names::of(&PROTECTED_NAMES);
const PROTECTED_NAMES: [Name; 18] = [
    name::AUTHORIZATION,
    name::CACHE_CONTROL,
    name::CDN_CACHE_CONTROL,
    name::CDN_LOOP,
    name::CONTENT_ENCODING,
    name::CONTENT_LENGTH,
    name::CONTENT_RANGE,
    name::CONTENT_TYPE,
    name::COOKIE,
    name::DATE,
    name::ETAG,
    name::EXPIRES,
    name::HOST,
    name::LAST_MODIFIED,
    name::LOCATION,
    name::SET_COOKIE,
    name::VARY,
    name::VIA,
];

/// Removes Connection, every field it names, and those that belong to one connection by definition:
/// HTTP2-Settings, Keep-Alive, Proxy-Connection, TE, Trailer, Transfer-Encoding, Upgrade.
///
/// A Connection option never removes Cache-Control, Host, Content-Length, Content-Type, Date, ETag, Set-Cookie,
/// Authorization, Vary and a few more that say what a message is.
pub fn strip(fields: &mut Fields) {
    if fields.has_any(OF_CONNECTION) {
        // As a rule it says no more than this, and nothing has to be looked for.
        if !fields.values(name::CONNECTION).flat_map(list).all(|option| option.eq_ignore_ascii_case(b"keep-alive")) {
            drop_named(fields);
        }
        fields.remove_any(OF_CONNECTION);
    }
}

/// Whether Connection names a field of this section that may go no further. It was for us alone: neither key nor Vary may
/// know what the origin will not see, or a response made without it would be kept as one made with it.
pub fn names_fields(fields: &Fields) -> bool {
    let options = fields.values(name::CONNECTION).flat_map(list);
    let mut others = options.filter(|option| !option.eq_ignore_ascii_case(b"keep-alive") && !option.eq_ignore_ascii_case(b"close"));
    others.any(|option| {
        fields.iter().any(|(name, _)| option.eq_ignore_ascii_case(name.as_bytes()) && is_removable(Name::lookup(name.as_bytes())))
    })
}

/// Removes what Connection names; Connection itself and what goes with it by definition stay until [`strip`].
pub fn drop_named(fields: &mut Fields) {
    let options: Vec<Vec<u8>> = fields.values(name::CONNECTION).flat_map(list).map(<[u8]>::to_ascii_lowercase).collect();
    fields.retain(|number, name, _| !is_removable(number) || !options.iter().any(|option| option.eq_ignore_ascii_case(name)));
}

/// Whether a field goes because Connection names it, and for no other reason.
fn is_removable(number: Option<Name>) -> bool {
    !number.is_some_and(|name| OF_CONNECTION.contains(name) || PROTECTED.contains(name))
}

/// A test for the fields that [`strip`] removes from this section.
pub fn of_connection(fields: &Fields) -> impl Fn(Option<Name>, &[u8]) -> bool {
    let options: Vec<&[u8]> = fields.values(name::CONNECTION).flat_map(list).collect();
    move |number, name| match number {
        Some(number) if OF_CONNECTION.contains(number) => true,
        Some(number) if PROTECTED.contains(number) => false,
        _ => options.iter().any(|option| option.eq_ignore_ascii_case(name)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_of_the_connection_go_and_others_stay() {
        let mut fields = Fields::new();
        for (name, value) in [
            ("Connection", "a, Keep-Alive"),
            ("connection", ",, B"),
            ("Keep-Alive", "timeout=5"),
            ("Proxy-Connection", "close"),
            ("TE", "trailers"),
            ("Trailer", "x"),
            ("Transfer-Encoding", "chunked"),
            ("Upgrade", "h2c"),
            ("HTTP2-Settings", "AAMAAABk"),
            ("A", "1"),
            ("b", "2"),
            ("C", "3"),
            ("Proxy-Authenticate", "Basic"),
        ] {
            fields.push(name, value).unwrap();
        }
        strip(&mut fields);
        assert_eq!(fields.wire(), b"c: 3\r\nproxy-authenticate: Basic\r\n");
        let before = fields.clone();
        strip(&mut fields);
        assert_eq!(fields, before);
    }

    #[test]
    fn what_connection_names_can_go_before_the_rest() {
        let mut fields = Fields::new();
        for (name, value) in [("Connection", "keep-alive, close"), ("Keep-Alive", "timeout=5"), ("A", "1"), ("Cookie", "b")] {
            fields.push(name, value).unwrap();
        }
        assert!(!names_fields(&fields));
        fields.push("connection", "upgrade, cookie, missing").unwrap();
        fields.push("Upgrade", "websocket").unwrap();
        assert!(!names_fields(&fields));
        fields.push("Connection", ",a").unwrap();
        assert!(names_fields(&fields));
        drop_named(&mut fields);
        assert!(!fields.contains("a") && !names_fields(&fields));
        assert_eq!(fields.len(), 6);
    }

    #[test]
    fn connection_cannot_remove_what_the_message_is() {
        let mut fields = Fields::new();
        let options: Vec<_> = PROTECTED_NAMES.iter().map(|name| name.as_str()).collect();
        fields.append(name::CONNECTION, options.join(",")).unwrap();
        for name in PROTECTED_NAMES {
            fields.append(name, "x").unwrap();
        }
        strip(&mut fields);
        assert_eq!(fields.len(), PROTECTED_NAMES.len());
    }
}
