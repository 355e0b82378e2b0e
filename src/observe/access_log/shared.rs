//! What a worker's lines have in common, kept as text.

use super::text::{Object, TEXT_MAX, member};
use crate::listener::Protocol;
use crate::observe::time::Stamp;
use crate::proxy::outcome::{CacheResult, RouteId, Source, new_id};
use crate::semantics::target::Scheme;

/// Kept by each worker beside its buffer.
#[derive(Debug, Default)]
pub(super) struct Shared {
    pub(super) stamp: Stamp,
    pub(super) ids: Ids,
    pub(super) common: Common,
}

/// Ids for requests that nobody named: sixteen digits of chance, drawn once, and sixteen that count.
#[derive(Debug, Default)]
pub(super) struct Ids(Option<[u8; 32]>);

impl Ids {
    pub(super) fn next(&mut self) -> &[u8; 32] {
        let id = self.0.get_or_insert_with(|| {
            let mut drawn = new_id();
            drawn[16..].fill(b'0');
            drawn
        });
        // Where a digit starts again from nought, the one before it goes up: seldom more than the last one.
        for digit in id[16..].iter_mut().rev() {
            *digit = match *digit {
                b'f' => b'0',
                b'9' => b'a',
                lower => lower + 1,
            };
            if *digit != b'0' {
                break;
            }
        }
        id
    }
}

/// What the members of [`Common`] say besides the names of route, site and listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Kind {
    pub(super) scheme: Scheme,
    pub(super) protocol: Protocol,
    pub(super) is_http_1_0: bool,
    pub(super) result: CacheResult,
    pub(super) source: Source,
}

impl Kind {
    pub(super) const fn protocol(self) -> &'static str {
        match (self.protocol, self.is_http_1_0) {
            (Protocol::Http3, _) => "HTTP/3",
            (Protocol::Http2, _) => "HTTP/2",
            (Protocol::Http1, true) => "HTTP/1.0",
            (Protocol::Http1, false) => "HTTP/1.1",
        }
    }
}

/// Where a request came in, and what became of it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place<'a> {
    pub(super) kind: Kind,
    pub(super) listener: &'a str,
    pub(super) route: RouteId,
    pub(super) site_name: &'a str,
    pub(super) route_name: &'a str,
}

/// The members that requests of one kind to one route have in common. A route's names never change, and kinds and listeners are
/// few.
#[derive(Debug, Default)]
pub(super) struct Common(Vec<Vec<Known>>);

#[derive(Debug)]
struct Known {
    kind: Kind,
    listener: Box<str>,
    members: Box<[u8]>,
}

impl Common {
    pub(super) fn members(&mut self, place: Place<'_>) -> &[u8] {
        let at = place.route.0 as usize; // a bounded number of them, counted from nought
        if at >= self.0.len() {
            self.0.resize_with(at + 1, Vec::new);
        }
        let of_route = &mut self.0[at];
        let index = of_route.iter().position(|known| known.kind == place.kind && *known.listener == *place.listener);
        let index = index.unwrap_or_else(|| {
            of_route.push(Known { kind: place.kind, listener: place.listener.into(), members: place.members() });
            of_route.len() - 1
        });
        &of_route[index].members
    }
}

impl Place<'_> {
    fn members(&self) -> Box<[u8]> {
        let mut members = Vec::new();
        let mut object = Object::begin(&mut members);
        object.token(member!("scheme"), self.kind.scheme.as_str());
        object.token(member!("protocol"), self.kind.protocol());
        object.token(member!("result"), self.kind.result.as_str());
        object.token(member!("tier"), self.kind.source.as_str());
        object.text(member!("site"), self.site_name.as_bytes(), TEXT_MAX);
        object.text(member!("route"), self.route_name.as_bytes(), TEXT_MAX);
        object.text(member!("listener"), self.listener.as_bytes(), TEXT_MAX);
        members.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn ids_differ_and_count_in_digits() {
        let (mut one, mut other) = (Ids::default(), Ids::default());
        let ids: HashSet<[u8; 32]> = (0..1000).flat_map(|_| [*one.next(), *other.next()]).collect();
        assert_eq!(ids.len(), 2000);
        assert!(ids.iter().flatten().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f')));
        assert_eq!(one.next()[16..], format!("{:016x}", 1001).into_bytes());
    }

    #[test]
    fn common_members_are_those_of_their_route_kind_and_listener() {
        let kind =
            Kind { scheme: Scheme::Http, protocol: Protocol::Http1, is_http_1_0: false, result: CacheResult::Hit, source: Source::Memory };
        let place = Place { kind, listener: "http", route: RouteId(3), site_name: "a\"b", route_name: "c" };
        let other_route = Place { route: RouteId(0), site_name: "shop", ..place };
        let other_kind = Place { kind: Kind { scheme: Scheme::Https, protocol: Protocol::Http2, ..kind }, ..place };
        let other_listener = Place { listener: "tls", ..place };
        let mut common = Common::default();
        for _ in 0..2 {
            let mut of = |place| String::from_utf8(common.members(place).to_vec()).unwrap();
            let all = [of(place), of(other_route), of(other_kind), of(other_listener)];
            let hit = r#""result":"hit","tier":"memory","#;
            let expected = [
                format!(r#","scheme":"http","protocol":"HTTP/1.1",{hit}"site":"a\"b","route":"c","listener":"http""#),
                format!(r#","scheme":"http","protocol":"HTTP/1.1",{hit}"site":"shop","route":"c","listener":"http""#),
                format!(r#","scheme":"https","protocol":"HTTP/2",{hit}"site":"a\"b","route":"c","listener":"http""#),
                format!(r#","scheme":"http","protocol":"HTTP/1.1",{hit}"site":"a\"b","route":"c","listener":"tls""#),
            ];
            assert_eq!(all, expected);
        }
    }
}
