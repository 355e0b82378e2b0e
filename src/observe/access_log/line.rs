//! One line per request in three formats. Cookies and credentials are never read here.

use super::shared::{Ids, Kind, Place, Shared};
use super::text::{self, Member, Object, TARGET_MAX, TEXT_MAX, member};
use crate::body::BodyError;
use crate::config::settings::AccessFormat;
use crate::listener::{Peer, RequestHead, Sent};
use crate::proxy::outcome::Outcome;
use crate::semantics::cache_status::Forward;
use crate::semantics::storage::NotStored;
use crate::semantics::{Method, name};
use std::borrow::Cow;

/// Everything a line is made of.
#[derive(Clone, Copy)]
pub(super) struct Line<'a> {
    pub(super) wall_ms: i64,
    pub(super) peer: &'a Peer,
    pub(super) head: &'a RequestHead,
    pub(super) outcome: &'a Outcome,
    pub(super) sent: &'a Sent,
    pub(super) site: &'a str,
    pub(super) route: &'a str,
}

impl Line<'_> {
    /// Appends the line and its line feed.
    pub(super) fn write(&self, format: AccessFormat, shared: &mut Shared, out: &mut Vec<u8>) {
        match format {
            AccessFormat::Combined => self.combined(shared, out),
            AccessFormat::Json => self.json(shared, out),
            AccessFormat::Ecs => self.ecs(shared, out),
        }
    }

    /// The combined log format, then `name=value` pairs: those who read the former ignore the latter.
    fn combined(&self, shared: &mut Shared, out: &mut Vec<u8>) {
        text::address(self.client(), out);
        out.extend_from_slice(b" - - [");
        shared.stamp.combined(self.wall_ms, out);
        out.extend_from_slice(b"] \"");
        text::quoted(self.head.method.as_str().as_bytes(), TEXT_MAX, out);
        out.push(b' ');
        let (path, query) = self.path_and_query();
        text::quoted(path, TARGET_MAX, out);
        if let Some(query) = query {
            out.push(b'?');
            text::quoted(query, TARGET_MAX, out);
        }
        out.push(b' ');
        out.extend_from_slice(self.protocol().as_bytes());
        out.extend_from_slice(b"\" ");
        text::number(self.sent.status.as_u16(), out);
        out.push(b' ');
        text::number(self.sent.body_bytes, out);
        for quoted in [self.referer(), self.user_agent().map(Cow::Borrowed)] {
            out.extend_from_slice(b" \"");
            text::quoted(quoted.as_deref().unwrap_or(b"-"), TEXT_MAX, out);
            out.push(b'"');
        }
        self.combined_pairs(shared, out);
        out.push(b'\n');
    }

    fn combined_pairs(&self, shared: &mut Shared, out: &mut Vec<u8>) {
        let outcome = self.outcome;
        let host = self.head.fields.get(name::HOST);
        let pairs: [(&str, Option<&[u8]>); 10] = [
            ("result", Some(outcome.result.as_str().as_bytes())),
            ("tier", Some(outcome.source.as_str().as_bytes())),
            ("reason", self.reason().map(str::as_bytes)),
            ("detail", outcome.own_detail().map(str::as_bytes)),
            ("error", self.error().map(str::as_bytes)),
            ("site", Some(self.site.as_bytes())),
            ("route", Some(self.route.as_bytes())),
            ("host", host),
            ("upstream", outcome.upstream.as_deref().map(str::as_bytes)),
            ("endpoint", outcome.endpoint.as_deref().map(str::as_bytes)),
        ];
        for (key, value) in pairs {
            out.push(b' ');
            out.extend_from_slice(key.as_bytes());
            out.push(b'=');
            text::word(value.unwrap_or_default(), out);
        }
        out.extend_from_slice(b" request_id=");
        match &outcome.request_id {
            Some(id) => text::word(id.as_bytes(), out),
            None => out.extend_from_slice(shared.ids.next()),
        }
        for (key, duration) in [(" upstream_ms=", outcome.timing.first_byte), (" wait_ms=", outcome.timing.waited)] {
            out.extend_from_slice(key.as_bytes());
            match duration {
                Some(duration) => text::milliseconds(text::nanoseconds(duration), out),
                None => out.push(b'-'),
            }
        }
        out.extend_from_slice(b" duration_ms=");
        text::milliseconds(self.sent.duration_ns, out);
    }

    fn json(&self, shared: &mut Shared, out: &mut Vec<u8>) {
        let mut line = Object::begin(out);
        line.plain(member!("timestamp"), |out| shared.stamp.rfc3339(self.wall_ms, out));
        line.plain(member!("client"), |out| text::address(self.client(), out));
        match self.head.method {
            Method::GET => line.token(member!("method"), "GET"),
            _ => line.text(member!("method"), self.head.method.as_str().as_bytes(), TEXT_MAX),
        }
        line.text_if(member!("host"), self.head.fields.get(name::HOST));
        let (path, query) = self.path_and_query();
        line.text(member!("path"), path, TARGET_MAX);
        if let Some(query) = query {
            line.text(member!("query"), query, TARGET_MAX);
        }
        line.number(member!("status"), self.sent.status.as_u16());
        line.number(member!("bytes"), self.sent.body_bytes);
        line.value(member!("duration_ms"), |out| text::milliseconds(self.sent.duration_ns, out));
        line.members(shared.common.members(self.place()));
        self.json_cache(&mut line);
        self.json_upstream(&mut line);
        self.request_id(&mut shared.ids, &mut line, member!("request_id"));
        if let Some(trace) = self.trace_id() {
            line.text(member!("trace_id"), trace, TEXT_MAX);
        }
        line.text_if(member!("referer"), self.referer().as_deref());
        line.text_if(member!("user_agent"), self.user_agent());
        line.end();
    }

    fn json_cache(&self, line: &mut Object<'_>) {
        let outcome = self.outcome;
        line.text_if(member!("reason"), self.reason().map(str::as_bytes));
        line.text_if(member!("detail"), outcome.own_detail().map(str::as_bytes));
        line.text_if(member!("error"), self.error().map(str::as_bytes));
        if outcome.forward.is_some() {
            line.boolean(member!("stored"), outcome.stored);
            line.boolean(member!("collapsed"), outcome.collapsed);
        }
        if let Some(age) = outcome.age_ms {
            line.number(member!("age_ms"), age);
        }
        if let Some(ttl) = outcome.ttl_ms {
            line.number(member!("ttl_ms"), ttl);
        }
        if let Some(coding) = outcome.coding {
            line.token(member!("coding"), coding.as_str());
        }
    }

    fn json_upstream(&self, line: &mut Object<'_>) {
        let outcome = self.outcome;
        line.text_if(member!("upstream"), outcome.upstream.as_deref().map(str::as_bytes));
        line.text_if(member!("endpoint"), outcome.endpoint.as_deref().map(str::as_bytes));
        if let Some(status) = outcome.forward_status {
            line.number(member!("upstream_status"), status);
        }
        line.milliseconds_if(member!("connect_ms"), outcome.timing.connect);
        line.milliseconds_if(member!("upstream_ms"), outcome.timing.first_byte);
        line.milliseconds_if(member!("wait_ms"), outcome.timing.waited);
    }

    /// Elastic Common Schema; what it has no field for goes under `tiercel.`.
    fn ecs(&self, shared: &mut Shared, out: &mut Vec<u8>) {
        let mut line = Object::begin(out);
        line.plain(member!("@timestamp"), |out| shared.stamp.rfc3339(self.wall_ms, out));
        line.token(member!("ecs.version"), "8.17.0");
        line.token(member!("event.dataset"), "tiercel.access");
        line.token(member!("event.kind"), "event");
        line.number(member!("event.duration"), self.sent.duration_ns);
        line.plain(member!("client.ip"), |out| text::address(self.client(), out));
        line.text(member!("http.request.method"), self.head.method.as_str().as_bytes(), TEXT_MAX);
        self.request_id(&mut shared.ids, &mut line, member!("http.request.id"));
        if let Some(referer) = self.referer() {
            line.text(member!("http.request.referrer"), &referer, TEXT_MAX);
        }
        line.number(member!("http.response.status_code"), self.sent.status.as_u16());
        line.number(member!("http.response.body.bytes"), self.sent.body_bytes);
        line.token(member!("http.version"), &self.protocol()["HTTP/".len()..]);
        line.token(member!("url.scheme"), self.peer.scheme.as_str());
        if let Some(host) = self.head.fields.get(name::HOST) {
            line.text(member!("url.domain"), without_port(host), TEXT_MAX);
        }
        let (path, query) = self.path_and_query();
        line.text(member!("url.path"), path, TARGET_MAX);
        if let Some(query) = query {
            line.text(member!("url.query"), query, TARGET_MAX);
        }
        if let Some(agent) = self.user_agent() {
            line.text(member!("user_agent.original"), agent, TEXT_MAX);
        }
        if let Some(trace) = self.trace_id() {
            line.text(member!("trace.id"), trace, TEXT_MAX);
        }
        self.ecs_tiercel(&mut line);
        line.end();
    }

    fn ecs_tiercel(&self, line: &mut Object<'_>) {
        let outcome = self.outcome;
        line.token(member!("tiercel.result"), outcome.result.as_str());
        line.token(member!("tiercel.tier"), outcome.source.as_str());
        line.text_if(member!("tiercel.reason"), self.reason().map(str::as_bytes));
        line.text_if(member!("tiercel.detail"), outcome.own_detail().map(str::as_bytes));
        line.text_if(member!("tiercel.error"), self.error().map(str::as_bytes));
        if outcome.forward.is_some() {
            line.boolean(member!("tiercel.stored"), outcome.stored);
            line.boolean(member!("tiercel.collapsed"), outcome.collapsed);
        }
        if let Some(coding) = outcome.coding {
            line.token(member!("tiercel.coding"), coding.as_str());
        }
        line.text(member!("tiercel.site"), self.site.as_bytes(), TEXT_MAX);
        line.text(member!("tiercel.route"), self.route.as_bytes(), TEXT_MAX);
        line.text(member!("tiercel.listener"), self.peer.listener.as_bytes(), TEXT_MAX);
        line.text_if(member!("tiercel.upstream"), outcome.upstream.as_deref().map(str::as_bytes));
        line.text_if(member!("tiercel.endpoint"), outcome.endpoint.as_deref().map(str::as_bytes));
        line.milliseconds_if(member!("tiercel.upstream_ms"), outcome.timing.first_byte);
        line.milliseconds_if(member!("tiercel.wait_ms"), outcome.timing.waited);
    }

    /// Every line has an id, also where nobody was told any.
    fn request_id(&self, ids: &mut Ids, line: &mut Object<'_>, name: Member) {
        match &self.outcome.request_id {
            Some(id) => line.text(name, id.as_bytes(), TEXT_MAX),
            None => line.plain(name, |out| out.extend_from_slice(ids.next())),
        }
    }

    fn client(&self) -> std::net::IpAddr {
        self.outcome.client.unwrap_or_else(|| self.peer.client.ip())
    }

    fn kind(&self) -> Kind {
        Kind {
            scheme: self.peer.scheme,
            protocol: self.peer.protocol,
            is_http_1_0: self.head.minor_version == 0,
            result: self.outcome.result,
            source: self.outcome.source,
        }
    }

    fn place(&self) -> Place<'_> {
        let (listener, route) = (&*self.peer.listener, self.outcome.route);
        Place { kind: self.kind(), listener, route, site_name: self.site, route_name: self.route }
    }

    fn protocol(&self) -> &'static str {
        self.kind().protocol()
    }

    /// Why the answer was not stored; else why the request went forward.
    fn reason(&self) -> Option<&'static str> {
        let outcome = self.outcome;
        outcome.not_stored.map(NotStored::as_str).or_else(|| outcome.forward.map(Forward::as_str))
    }

    /// How the answer broke off; else why we made it up.
    fn error(&self) -> Option<&'static str> {
        self.sent.aborted.map(aborted).or(self.outcome.error)
    }

    /// The query only where it may be logged. Of an absolute target the authority is left out: it may hold a password.
    fn path_and_query(&self) -> (&[u8], Option<&[u8]>) {
        let (before, query) = split_query(&self.head.target);
        let path = if before.starts_with(b"/") { before } else { path_of_absolute(before) };
        (path, query.filter(|_| self.outcome.log_query))
    }

    /// Without query and password.
    fn referer(&self) -> Option<Cow<'_, [u8]>> {
        let value = self.head.fields.get(name::REFERER)?;
        let value = if self.outcome.log_query { value } else { split_query(value).0 };
        let Some(authority) = find(value, b"://").map(|at| at + 3) else { return Some(value.into()) };
        let end = value[authority..].iter().position(|byte| matches!(byte, b'/' | b'?' | b'#')).map_or(value.len(), |at| authority + at);
        let host = after_userinfo(&value[authority..end]);
        if host.len() == end - authority {
            return Some(value.into());
        }
        Some([&value[..authority], host, &value[end..]].concat().into())
    }

    fn user_agent(&self) -> Option<&[u8]> {
        self.head.fields.get(name::USER_AGENT)
    }

    /// The trace id of a traceparent field: 32 hexadecimal digits.
    fn trace_id(&self) -> Option<&[u8]> {
        let value = self.head.fields.get(name::TRACEPARENT)?;
        let id = value.get(3..35)?;
        (value[2] == b'-' && value.get(35) == Some(&b'-') && id.iter().all(u8::is_ascii_hexdigit)).then_some(id)
    }
}

const fn aborted(error: BodyError) -> &'static str {
    match error {
        BodyError::Truncated => "body_truncated",
        BodyError::Timeout => "body_timeout",
        BodyError::Reset => "body_reset",
        BodyError::Malformed => "body_malformed",
        BodyError::Detached => "reader_detached",
        BodyError::ClientLeft => "client_left",
        BodyError::TooLarge => "body_too_large",
        BodyError::OtherVersion => "other_version",
        BodyError::NotCoded => "not_coded",
    }
}

fn split_query(url: &[u8]) -> (&[u8], Option<&[u8]>) {
    match memchr::memchr(b'?', url) {
        Some(at) => (&url[..at], Some(&url[at + 1..])),
        None => (url, None),
    }
}

/// Of a target that does not begin with its path; of an authority what stands behind the user's name.
fn path_of_absolute(target: &[u8]) -> &[u8] {
    let Some(at) = find(target, b"://") else { return after_userinfo(target) };
    let rest = &target[at + 3..];
    rest.iter().position(|byte| *byte == b'/').map_or(&b"/"[..], |slash| &rest[slash..])
}

fn find(text: &[u8], wanted: &[u8]) -> Option<usize> {
    memchr::memmem::find(text, wanted)
}

fn after_userinfo(authority: &[u8]) -> &[u8] {
    memchr::memrchr(b'@', authority).map_or(authority, |at| &authority[at + 1..])
}

fn without_port(host: &[u8]) -> &[u8] {
    match memchr::memrchr(b':', host) {
        Some(at) if host[at + 1..].iter().all(u8::is_ascii_digit) => &host[..at],
        _ => host,
    }
}
