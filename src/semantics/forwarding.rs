//! Forwarding fields: what a hop in front of us says of its client.
//!
//! Nobody's word counts but a trusted proxy's: of anybody else all of them are dropped on arrival ([`CLIENT`]), so that
//! neither route, key, Vary nor origin ever sees them. A trusted proxy's go on, but none can shape a response that is stored
//! for others without being part of its key: those that origins build links from are keyed where they say something else than
//! the target does ([`keyed`]), the scheme is that of the key, and the others are not sent with a request whose answer may be
//! stored ([`drop_unkeyed`]).

use super::fields::{Names, list, trim};
use super::key::KeyPolicy;
use super::{Fields, Name, Target, name};

/// What a client may not say of itself.
pub const CLIENT: Names = Names::of(&[
    name::CF_CONNECTING_IP,
    name::CLIENT_CERT,
    name::CLIENT_CERT_CHAIN,
    name::FASTLY_CLIENT_IP,
    name::FORWARDED,
    name::FRONT_END_HTTPS,
    // What a client claims here chooses among forms of the response that the key does not tell apart.
    name::SURROGATE_CAPABILITY,
    name::TIERCEL_HOP,
    name::TRUE_CLIENT_IP,
    name::X_CLIENT_IP,
    name::X_CLUSTER_CLIENT_IP,
    name::X_FORWARDED_FOR,
    name::X_FORWARDED_HOST,
    name::X_FORWARDED_PORT,
    name::X_FORWARDED_PREFIX,
    name::X_FORWARDED_PROTO,
    name::X_FORWARDED_SCHEME,
    name::X_FORWARDED_SERVER,
    name::X_FORWARDED_SSL,
    name::X_HOST,
    name::X_HTTP_HOST_OVERRIDE,
    name::X_ORIGINAL_HOST,
    name::X_REAL_IP,
    name::X_REQUEST_ID,
    name::X_SCHEME,
    name::X_URL_SCHEME,
]);

/// Who a client is by its certificate (RFC 9440): the word of the handshake alone, and not even of a trusted proxy, which may
/// pass on what it does not know.
pub const CERTIFICATE: Names = Names::of(&[name::CLIENT_CERT, name::CLIENT_CERT_CHAIN]);

/// Of a trusted proxy's, those that are part of the key.
pub const KEYED: Names = Names::of(&KEYED_NAMES);
const KEYED_NAMES: [Name; 3] = [name::X_FORWARDED_HOST, name::X_FORWARDED_PORT, name::X_FORWARDED_PREFIX];

/// Whoever they come from: not sent with a request whose answer may be stored, unless the route's key has them. They say again,
/// in words that not every origin knows, what host, scheme, path or method the request has.
const UNKEYED: Names = Names::of(&[
    name::FRONT_END_HTTPS,
    name::X_FORWARDED_SCHEME,
    name::X_FORWARDED_SERVER,
    name::X_FORWARDED_SSL,
    name::X_HOST,
    name::X_HTTP_HOST_OVERRIDE,
    name::X_HTTP_METHOD,
    name::X_HTTP_METHOD_OVERRIDE,
    name::X_METHOD_OVERRIDE,
    name::X_ORIGINAL_HOST,
    name::X_ORIGINAL_URL,
    name::X_REWRITE_URL,
    name::X_SCHEME,
    name::X_URL_SCHEME,
]);

/// Fields that differ with every client or request, and that we write ourselves: a response that varies on one is nobody
/// else's.
pub fn is_per_client(name: &str) -> bool {
    ["forwarded", "x-forwarded-for", "x-request-id"].contains(&name)
}

/// Whether an origin of CGI's kin would take a field for [`CERTIFICATE`].
pub fn imitates_certificate(name: &[u8]) -> bool {
    with_dashes(name).and_then(|name| Name::lookup(&name)).is_some_and(|known| CERTIFICATE.contains(known))
}

/// Whether a request says who its client is, so that what is answered may be for nobody else (RFC 9111 §3.5, RFC 9440 §2.4).
pub fn has_credentials(request: &Fields) -> bool {
    request.has(name::AUTHORIZATION) || request.has(name::CLIENT_CERT)
}

/// Forgets what a client says of itself.
pub fn drop_untrusted(fields: &mut Fields) {
    fields.retain(|number, name, _| match number {
        Some(number) => !CLIENT.contains(number),
        None => !name.starts_with(b"x-forwarded-"),
    });
}

/// The forwarding fields that are part of the key, with their first values: those that say something else than the target.
pub fn keyed<'f>(target: &'f Target, fields: &'f Fields) -> impl Iterator<Item = (Name, &'f [u8])> {
    let there = KEYED_NAMES.into_iter().flat_map(|name| fields.values(name).map(move |value| (name, value)));
    there.filter(|(name, value)| !agrees(*name, value, target))
}

/// Whether a field tells the origin no more than the target does.
fn agrees(name: Name, value: &[u8], target: &Target) -> bool {
    match name {
        name::X_FORWARDED_HOST => value.eq_ignore_ascii_case(target.authority().as_bytes()),
        name::X_FORWARDED_PORT => value == target.port().as_bytes(),
        _ => false,
    }
}

/// Rids a request whose answer may be stored of what a trusted proxy says and the key does not hold.
pub fn drop_unkeyed(fields: &mut Fields, policy: &KeyPolicy) {
    let is_keyed = |name: &[u8]| std::str::from_utf8(name).is_ok_and(|name| policy.has_header(name));
    let is_part =
        |name: &[u8]| is_keyed(name) || policy.classes.iter().any(|class| class.forward.as_deref().map(str::as_bytes) == Some(name));
    fields.retain(|number, name, _| {
        let goes = is_unkeyed(number, name) || with_dashes(name).is_some_and(|name| is_part(&name));
        !goes || is_keyed(name)
    });
    if fields.has(name::FORWARDED) && !policy.has_header(name::FORWARDED.as_str()) {
        let kept = without_target(fields);
        fields.remove(name::FORWARDED);
        if !kept.is_empty() {
            let set = fields.append(name::FORWARDED, kept);
            debug_assert!(set.is_ok(), "parts of a field value are one");
        }
    }
}

/// Whether a request that went on with all its fields said something to the origin that the key may not hold.
pub fn has_unkeyed(fields: &Fields) -> bool {
    fields.has(name::FORWARDED) || fields.iter().any(|(name, _)| is_unkeyed(Name::lookup(name.as_bytes()), name.as_bytes()))
}

/// `number`: that of the name, if it is well known.
fn is_unkeyed(number: Option<Name>, name: &[u8]) -> bool {
    match number {
        Some(known) => UNKEYED.contains(known),
        None => name.starts_with(b"x-forwarded-") || name.starts_with(b"x-original-") || is_imitation(name),
    }
}

/// Whether a name would be one that means something here but for its underscores. CGI and its kin (RFC 3875 §4.1.18) make
/// one variable of both: an origin would read `X_Forwarded_Host` or `Accept_Language` as what key and Vary never saw.
fn is_imitation(name: &[u8]) -> bool {
    with_dashes(name).is_some_and(|name| Name::lookup(&name).is_some() || is_unkeyed(None, &name))
}

/// A name with dashes for its underscores, if it has any.
fn with_dashes(name: &[u8]) -> Option<Vec<u8>> {
    name.contains(&b'_').then(|| name.iter().map(|byte| if *byte == b'_' { b'-' } else { *byte }).collect())
}

/// Forwarded (RFC 7239 §4) without `host` and `proto`: of a client only the address is told on.
fn without_target(fields: &Fields) -> Vec<u8> {
    let mut kept: Vec<Vec<u8>> = Vec::new();
    for element in fields.values(name::FORWARDED).flat_map(list) {
        // Neither an address nor a token holds a semicolon; a quoted one would only lose more.
        let pairs: Vec<&[u8]> = element.split(|byte| *byte == b';').map(trim).filter(|pair| is_address(pair)).collect();
        if !pairs.is_empty() {
            kept.push(pairs.join(&b';'));
        }
    }
    kept.join(&b", "[..])
}

fn is_address(pair: &[u8]) -> bool {
    [&b"for="[..], b"by="].iter().any(|name| pair.get(..name.len()).is_some_and(|start| start.eq_ignore_ascii_case(name)))
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
    fn nothing_is_left_of_what_a_client_says_of_itself() {
        let mut said = fields(&[
            ("Forwarded", "for=1"),
            ("X-Forwarded-For", "1"),
            ("X-Forwarded-Anything", "1"),
            ("X-Host", "evil"),
            ("True-Client-IP", "1"),
            ("X-Url-Scheme", "https"),
            ("Accept", "a"),
            ("X-Forwardedness", "b"),
        ]);
        drop_untrusted(&mut said);
        assert_eq!(said.wire(), b"accept: a\r\nx-forwardedness: b\r\n");
    }

    #[test]
    fn only_what_differs_from_the_target_is_keyed() {
        let target = Target::from_url("https://shop.example/").unwrap();
        let keyed = |lines: &[(&str, &str)]| keyed(&target, &fields(lines)).map(|(name, value)| (name, value.to_vec())).collect::<Vec<_>>();
        assert_eq!(keyed(&[("X-Forwarded-Host", "Shop.example"), ("X-Forwarded-Port", "443"), ("X-Forwarded-Proto", "http")]), []);
        assert_eq!(
            keyed(&[("X-Forwarded-Prefix", "/a"), ("X-Forwarded-Port", "80"), ("X-Forwarded-Host", "b"), ("X-Forwarded-Host", "c")]),
            [
                (name::X_FORWARDED_HOST, b"b".to_vec()),
                (name::X_FORWARDED_HOST, b"c".to_vec()),
                (name::X_FORWARDED_PORT, b"80".to_vec()),
                (name::X_FORWARDED_PREFIX, b"/a".to_vec())
            ]
        );
    }

    #[test]
    fn what_is_not_keyed_is_not_sent() {
        let lines = [
            ("x-forwarded-ssl", "on"),
            ("x-forwarded-anything", "1"),
            ("x-host", "a"),
            ("x-url-scheme", "https"),
            ("x-forwarded-host", "b"),
            ("x-original-url", "/c"),
            ("forwarded", "for=192.0.2.1;host=a;proto=https, host=b"),
            ("forwarded", "For=\"[2001:db8::1]\"; BY=_x"),
        ];
        let mut sent = fields(&lines);
        drop_unkeyed(&mut sent, &KeyPolicy::default());
        assert_eq!(sent.wire(), b"x-forwarded-host: b\r\nforwarded: for=192.0.2.1, For=\"[2001:db8::1]\";BY=_x\r\n");
        let imitations = ["X_Forwarded_Host", "x-forwarded_uri", "Accept_Language", "X_Original_Url", "X-Original-Uri", "x_tenant"];
        let mut sent = fields(&imitations.map(|name| (name, "a")));
        sent.push("my_own", "b").unwrap();
        let tenants = KeyPolicy { headers: vec!["x-tenant".into(), "x_original_url".into()], ..KeyPolicy::default() };
        assert!(has_unkeyed(&sent));
        drop_unkeyed(&mut sent, &tenants);
        assert_eq!(sent.wire(), b"x_original_url: a\r\nmy_own: b\r\n");
        let mut sent = fields(&lines);
        let keyed = KeyPolicy { headers: vec!["x-host".into(), "Forwarded".into(), "x-forwarded-anything".into()], ..KeyPolicy::default() };
        drop_unkeyed(&mut sent, &keyed);
        assert_eq!(sent.len(), 5);
        assert!(sent.contains("x-host") && sent.contains("x-forwarded-anything"));
    }
}
