//! The configuration as it is written: every key optional, unknown keys refused, nothing defaulted.
//!
//! Quantities (durations and sizes) are kept as any scalar and read by `resolve`, so that a bare number
//! gets a remedy and not just "wrong type". The JSON Schema is made from these types; their doc
//! comments are its descriptions. Deliberately without `flatten` and untagged enums: both lose the
//! path of an error.

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::value::MapAccessDeserializer;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

/// A value that `resolve` reads: a duration, a size, a share, or text with a meaning of its own.
macro_rules! quantity {
    ($(#[$meta:meta])* $name:ident, $schema:tt) => {
        $(#[$meta])*
        #[derive(Debug, Clone, PartialEq, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub Value);
        impl JsonSchema for $name {
            fn schema_name() -> Cow<'static, str> {
                stringify!($name).into()
            }
            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!($schema)
            }
        }
    };
}

quantity!(
    /// A length of time.
    RawDuration, {"type": "string", "pattern": "^([0-9]+(ms|s|m|h|d))+$", "examples": ["500ms", "10s", "5m", "1h", "7d"]}
);
quantity!(
    /// A length of time or `off`.
    RawDurationOrOff, {"type": "string", "pattern": "^(off|([0-9]+(ms|s|m|h|d))+)$", "examples": ["30s", "off"]}
);
quantity!(
    /// A number of bytes.
    RawSize, {"type": "string", "pattern": "^[0-9]+ ?(B|KiB|MiB|GiB|TiB|KB|MB|GB|TB)$", "examples": ["64KiB", "512MiB", "512MB"]}
);
quantity!(
    /// A number in a time, or `off`.
    RawRate, {"type": "string", "pattern": "^(off|[0-9]+/[smhd])$", "examples": ["100/s", "1000/m", "off"]}
);
quantity!(
    /// A share.
    RawShare, {"type": "string", "pattern": "^[0-9.]+%$", "examples": ["60%"]}
);
quantity!(
    /// A number of bytes, a share of the cgroup's limit (or of the physical memory), or `auto`.
    RawMemoryLimit, {"type": "string", "pattern": "^(auto|[0-9.]+%|[0-9]+ ?(B|KiB|MiB|GiB|TiB|KB|MB|GB|TB))$", "examples": ["1GiB", "60%", "auto"]}
);
quantity!(
    /// A number of threads or `auto`.
    RawWorkers, {"oneOf": [{"const": "auto"}, {"type": "integer", "minimum": 1, "maximum": 1024}]}
);
quantity!(
    /// One lifetime for the usual statuses, or a table: status, class or `default` to lifetime.
    RawTtl, {"oneOf": [
        {"type": "string", "pattern": "^([0-9]+(ms|s|m|h|d))+$"},
        {"type": "object", "patternProperties": {"^([1-5][0-9][0-9]|[1-5]xx|default)$": {"type": "string"}}, "additionalProperties": false}
    ]}
);
quantity!(
    /// A text that must be equal, or a table with one of `present`, `equals`, `prefix`, `pattern`.
    RawValueMatch, {"oneOf": [
        {"type": "string"},
        {"type": "object", "additionalProperties": false, "minProperties": 1, "maxProperties": 1, "properties": {
            "present": {"type": "boolean"}, "equals": {"type": "string"}, "prefix": {"type": "string"}, "pattern": {"type": "string"}
        }}
    ]}
);
quantity!(
    /// One field value, or several for as many lines.
    RawFieldValues, {"oneOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}
);

quantity!(
    /// `true`: to port 443; `false`; or a port.
    RawRedirectToHttps, {"oneOf": [{"type": "boolean"}, {"type": "integer", "minimum": 1, "maximum": 65535}]}
);
quantity!(
    /// One address, or several.
    RawAddresses, {"oneOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}
);

/// The whole file.
///
/// The keys of routes may also stand here (defaults of all sites) and in a site (defaults of its
/// routes). The inner value replaces the outer one; field edits, rewrites and bypass rules add up.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RawConfig {
    /// Further files, relative to this one; `*` and `?` match within a name. They are merged over this file, in order of names.
    pub include: Option<Vec<String>>,
    pub server: RawServer,
    /// Listening sockets for clients, by name.
    pub listeners: BTreeMap<String, RawListener>,
    pub admin: RawAdmin,
    pub metrics: RawMetrics,
    pub memory: RawMemory,
    pub limits: RawLimits,
    pub fill: RawFill,
    /// Pools of endpoints, by name.
    pub upstreams: BTreeMap<String, RawUpstream>,
    /// Routed host spaces, by name.
    pub sites: BTreeMap<String, RawSite>,
    pub purge: RawPurge,
    pub shield: RawShield,
    pub lease: RawLease,
    pub acme: RawAcme,
    pub journal: RawJournal,
    pub log: RawLog,
    pub cache: RawCache,
    /// Requests that go past the cache.
    pub bypass: Vec<RawBypass>,
    /// Edits of the request on its way to the upstream.
    pub request_headers: RawEdits,
    /// Edits of the response on its way to the client.
    pub response_headers: RawEdits,
    /// Steps that change path and query on the way to the upstream, in order.
    pub rewrite: Vec<RawRewrite>,
    /// Host towards the upstream: `preserve`, `upstream`, or a literal host.
    pub host: Option<String>,
    /// Request cookies that neither cache key nor upstream see; a trailing `*` matches a prefix.
    pub strip_cookies: Option<Vec<String>>,
    pub accept_encoding: Option<RawAcceptEncoding>,
    pub compression: RawCompression,
    pub tags: RawTags,
    /// Send Cache-Status (RFC 9211).
    pub cache_status: Option<bool>,
    /// Show the cache key in Cache-Status.
    pub show_key: Option<bool>,
    /// Send `X-Cache: HIT` or `MISS`.
    pub x_cache: Option<bool>,
    /// Send everything that comes without TLS to https, at port 443 or this one.
    pub redirect_to_https: Option<RawRedirectToHttps>,
    pub hsts: RawHsts,
    pub rate_limit: RawRateLimit,
}

/// The process.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RawServer {
    /// Name in Via, Cache-Status and CDN-Loop: a token.
    pub name: Option<String>,
    /// Worker threads; `auto`: one per core.
    pub workers: Option<RawWorkers>,
    pub runtime: Option<RawRuntime>,
    /// How long SIGTERM lets everything go on with readiness fallen, before the listeners close.
    pub drain_delay: Option<RawDuration>,
    /// How long SIGTERM then waits for requests under way.
    pub drain_timeout: Option<RawDuration>,
    /// Networks whose X-Forwarded-*, Forwarded and X-Request-Id are believed.
    pub trusted_proxies: Option<Vec<String>>,
    /// Keep encoded slashes and the like in paths instead of refusing them.
    pub lenient_path: Option<bool>,
    /// How often the files of certificates are looked at; `off`: at a reload only.
    pub certificate_poll: Option<RawDurationOrOff>,
}

/// How workers run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RawRuntime {
    PerCore,
    Shared,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RawListener {
    /// Address and port; port 0 takes a free one. `unix:/path`: a socket of this machine.
    pub address: Option<String>,
    /// Who may connect to a socket of this machine, as permissions of a file, in octal.
    pub socket_mode: Option<String>,
    /// Serve HTTP/2 in plain text, too, to clients that begin with its preface (prior knowledge).
    pub h2c: Option<bool>,
    /// Serve HTTP/3, too, over UDP on the same port: experimental, on listeners with TLS, in builds that have it.
    pub http3: Option<bool>,
    /// The UDP port that clients are told, where it is another from outside.
    pub http3_port: Option<u16>,
    /// Have every client of HTTP/3 show first that its address is its own, not only when many come at once.
    pub http3_retry: Option<bool>,
    /// Balancers that begin each connection with the PROXY protocol, version 1 or 2: networks or addresses.
    pub proxy_protocol: Option<Vec<String>>,
    /// Send everything that comes without TLS to https, at port 443 or this one.
    pub redirect_to_https: Option<RawRedirectToHttps>,
    /// Makes it a listener for https.
    pub tls: Option<RawListenerTls>,
}

/// TLS of a listener.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RawListenerTls {
    /// Certificates with their keys; each is shown to clients that ask for a name of it, the first to all others.
    pub certificates: Vec<RawCertificate>,
    /// The oldest version of TLS that is offered.
    pub min_version: Option<RawTlsVersion>,
    /// Suites by their IANA names, preferred first; all where none is named.
    pub suites: Option<Vec<String>>,
    /// Offer HTTP/2 (ALPN).
    pub http2: Option<bool>,
    /// From the connection to the end of the handshake.
    pub handshake_timeout: Option<RawDuration>,
    /// Handshakes at a time; more wait.
    pub handshakes: Option<u64>,
    /// File with a secret that nodes share, so that each resumes sessions of the others; read again on reload.
    pub ticket_key_file: Option<String>,
    /// Whether clients are asked for certificates.
    pub client_certificates: Option<RawAsked>,
    /// PEM: the certificates of those who may certify clients.
    pub client_ca_file: Option<String>,
    /// PEM: revocation lists of all of these.
    pub client_crl_file: Option<String>,
    /// What the upstream is told of a client's certificate (RFC 9440).
    pub client_cert_field: Option<RawTold>,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RawCertificate {
    /// PEM: the certificate, then its chain.
    pub cert_file: Option<String>,
    /// PEM: the private key, without a passphrase.
    pub key_file: Option<String>,
    /// DER: an OCSP response about the certificate, to be stapled to it.
    pub ocsp_file: Option<String>,
    /// Instead of files: hosts for which a certificate is obtained, and renewed, as `[acme]` says.
    pub acme: Option<Vec<String>>,
}

/// Who certifies hosts (ACME, RFC 8555), and how.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RawAcme {
    /// URL of the authority's directory.
    pub directory: Option<String>,
    /// PEM: who may certify the directory itself; without one the authorities of the system.
    pub ca_file: Option<String>,
    /// Where the authority reaches whoever runs this: `mailto:` URLs.
    pub contact: Option<Vec<String>>,
    /// Consent to the authority's terms of service; without it nothing is ordered.
    pub agree_to_terms: Option<bool>,
    /// External Account Binding: the key identifier that the authority gave out.
    pub eab_key_id: Option<String>,
    /// The key with it, in base64url.
    pub eab_key: Option<String>,
    /// File that holds this key.
    pub eab_key_file: Option<String>,
    /// Kind of the keys that are certified.
    pub key_type: Option<RawKeyType>,
    /// Where account, certificates and keys are kept.
    pub folder: Option<String>,
    /// How it is shown that hosts are ours, preferred first; the next attempt takes the next.
    pub challenges: Option<Vec<RawChallenge>>,
    /// So long before its end a certificate is renewed; without it when a third of its lifetime is left.
    pub renew_before: Option<RawDuration>,
    /// Share of that time by which it is renewed earlier, at most, by chance.
    pub renew_jitter: Option<RawShare>,
    /// After the first attempt that failed; twice as long after each further one.
    pub retry_first: Option<RawDuration>,
    /// At most so long.
    pub retry_max: Option<RawDuration>,
    /// From asking for a certificate to having it.
    pub order_timeout: Option<RawDuration>,
    /// For each answer of the authority.
    pub request_timeout: Option<RawDuration>,
    /// Certificates that are asked for at a time.
    pub orders: Option<u64>,
    /// A secret of the fleet with which certificates, keys and challenges are encrypted in Redis; without it they are not shared.
    pub seal: Option<String>,
    /// File that holds this secret.
    pub seal_file: Option<String>,
}

/// Kind of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum RawKeyType {
    P256,
    P384,
    Rsa2048,
}

/// How it is shown that a host is ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
pub enum RawChallenge {
    /// By a text under `/.well-known/acme-challenge/` on port 80 (RFC 8555 §8.3).
    #[serde(rename = "http-01")]
    Http01,
    /// By a certificate in a handshake on port 443 (RFC 8737).
    #[serde(rename = "tls-alpn-01")]
    TlsAlpn01,
}

/// Whether clients show certificates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum RawAsked {
    /// They are not asked.
    Off,
    /// Who shows one is known by it.
    Optional,
    /// Who shows none is not served.
    Required,
}

/// What the upstream is told of a client's certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum RawTold {
    /// Nothing.
    Off,
    /// Client-Cert.
    Cert,
    /// Client-Cert and Client-Cert-Chain.
    Chain,
}

/// What a site asks of its clients' certificates, instead of what the listener does.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RawSiteTls {
    /// Whether clients are asked for certificates.
    pub client_certificates: Option<RawAsked>,
    /// PEM: the certificates of those who may certify clients.
    pub client_ca_file: Option<String>,
    /// PEM: revocation lists of all of these.
    pub client_crl_file: Option<String>,
    /// What the upstream is told of a client's certificate (RFC 9440).
    pub client_cert_field: Option<RawTold>,
}

/// The keys about client certificates that listener and site share, seen alike.
#[derive(Debug, Clone, Copy)]
pub struct ClientKeys<'a> {
    pub asked: Option<RawAsked>,
    pub ca_file: Option<&'a str>,
    pub crl_file: Option<&'a str>,
    pub field: Option<RawTold>,
}

macro_rules! client_keys {
    ($($owner:ident),*) => {$(
        impl $owner {
            /// The keys about client certificates.
            pub fn client_keys(&self) -> ClientKeys<'_> {
                ClientKeys {
                    asked: self.client_certificates,
                    ca_file: self.client_ca_file.as_deref(),
                    crl_file: self.client_crl_file.as_deref(),
                    field: self.client_cert_field,
                }
            }
        }
    )*};
}

client_keys!(RawListenerTls, RawSiteTls);

/// Strict-Transport-Security (RFC 6797), on answers over https.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RawHsts {
    /// For so long browsers come by https only; `off`: the field is not sent.
    pub max_age: Option<RawDurationOrOff>,
    /// For all hosts below this one, too.
    pub include_subdomains: Option<bool>,
    /// Consent to be put on the lists that browsers are built with.
    pub preload: Option<bool>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
pub enum RawTlsVersion {
    #[serde(rename = "1.2")]
    Tls12,
    #[serde(rename = "1.3")]
    Tls13,
}

/// The admin listener: API, metrics, probes.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RawAdmin {
    /// Address and port, or `off`.
    pub address: Option<String>,
    /// Bearer token; needed where the address is not loopback.
    pub token: Option<String>,
    /// File that holds the token; read again on reload.
    pub token_file: Option<String>,
}

/// The read-only listener: metrics and probes.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RawMetrics {
    /// Address and port, or `off`.
    pub address: Option<String>,
}

/// The memory of the process and its parts.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RawMemory {
    /// What the process may hold, all in. `auto`: the smaller of 1GiB and 60% of what is there.
    pub limit: Option<RawMemoryLimit>,
    pub policy: Option<RawEviction>,
    /// Share for stored responses.
    pub stored_share: Option<RawShare>,
    /// Share for fills in flight and pinned bodies.
    pub fill_share: Option<RawShare>,
    /// Share at which new fills are not stored.
    pub pressure: Option<RawShare>,
}

/// What goes first when memory is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum RawEviction {
    TinyLfu,
    Lru,
}

/// Bounds on what clients may send.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RawLimits {
    /// Client connections in the process.
    pub connections: Option<u64>,
    /// Requests on one connection before it is closed.
    pub requests_per_connection: Option<u64>,
    /// Request line and fields (431).
    pub header_bytes: Option<RawSize>,
    /// Field lines (431).
    pub header_count: Option<u64>,
    /// Request target (414).
    pub url_bytes: Option<RawSize>,
    /// Request body (413).
    pub body_bytes: Option<RawSize>,
    /// From the first byte of a request head to its end (408).
    pub header_timeout: Option<RawDuration>,
    /// Between requests on a kept connection.
    pub idle_timeout: Option<RawDuration>,
    /// Between two reads of a request body (408).
    pub body_timeout: Option<RawDuration>,
    /// Bytes a second of a request body (408).
    pub body_rate: Option<RawSize>,
    /// Between two writes that make progress.
    pub write_timeout: Option<RawDuration>,
    /// Requests that wait for another's response head, in the process.
    pub waiting: Option<u64>,
    /// Callers of rate limits that are remembered, all limits together.
    pub rate_limit_callers: Option<u64>,
    /// What Redis may take to count a request for a shared rate limit.
    pub rate_limit_budget: Option<RawDuration>,
    /// Pieces of bodies that are coded at a time, beside the cores that serve; `auto`: one fewer than there are cores.
    pub compression_threads: Option<RawWorkers>,
    /// What compression dictionaries that are kept may hold, beside `memory.limit`'s shares.
    pub dictionary_memory: Option<RawSize>,
    pub http2: RawHttp2,
}

/// Bounds on connections of HTTP/2; what passes those on frames closes the connection.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RawHttp2 {
    /// Requests at a time on one connection; more are refused.
    pub streams: Option<u64>,
    /// Bytes of a request body that may come before they are read.
    pub stream_window: Option<RawSize>,
    /// The same for all of a connection.
    pub connection_window: Option<RawSize>,
    /// Bytes of an answer that are taken over before the client takes them, per stream.
    pub send_buffer: Option<RawSize>,
    /// Streams that a client may reset in ten seconds.
    pub resets: Option<u64>,
    /// Streams that a client reset before they were looked at.
    pub resets_pending: Option<u64>,
    /// Streams that had to be reset for a client's errors, in the life of a connection.
    pub errors: Option<u64>,
    /// Frames a second that bring nothing.
    pub idle_frames: Option<u64>,
    /// A connection on which nothing comes for this long is asked whether it is there...
    pub keep_alive: Option<RawDuration>,
    /// ...and closed if it does not answer within this.
    pub keep_alive_timeout: Option<RawDuration>,
}

/// Fetches under way that are shared and stored.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RawFill {
    /// Bytes by which the furthest reader of a response that is not stored may lead the slowest.
    pub lag: Option<RawSize>,
    /// How long, in sum, a slow reader may hold others up.
    pub stall: Option<RawDuration>,
    /// A fill without readers goes on if at most this much is missing...
    pub finish_rest: Option<RawSize>,
    /// ...or at least this share is there.
    pub finish_share: Option<RawShare>,
    /// A range that begins more than this beyond what has arrived is fetched by itself.
    pub range_ahead: Option<RawSize>,
    /// First and longest time for which requests for an unshareable response do not line up.
    pub marker_first: Option<RawDuration>,
    pub marker_max: Option<RawDuration>,
    /// How many of those are remembered.
    pub marker_count: Option<u64>,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RawUpstream {
    /// `http://host:port`, `https://host:port` or `unix:/path`, one or more.
    pub endpoints: Option<Vec<String>>,
    pub balance: Option<RawBalance>,
    /// What is spoken to the endpoints. `auto`: over TLS what they choose, HTTP/2 first; in plain text HTTP/1.1.
    pub http: Option<RawUpstreamHttp>,
    /// What speaks HTTP/1.1 to the endpoints.
    pub http1: Option<RawCodec>,
    pub http2: RawUpstreamHttp2,
    /// Connections per endpoint.
    pub connections: Option<u64>,
    /// Requests that may wait for a connection, per endpoint.
    pub queue: Option<u64>,
    pub queue_timeout: Option<RawDuration>,
    /// Fetches at a time that a purge of a prefix, host, site or everything caused; 0: any number.
    pub purge_concurrency: Option<u64>,
    /// How long others may wait for that.
    pub purge_queue_timeout: Option<RawDuration>,
    /// Idle connections kept, per endpoint.
    pub idle_connections: Option<u64>,
    pub idle_timeout: Option<RawDuration>,
    pub connect_timeout: Option<RawDuration>,
    /// From the request sent to the head of the response.
    pub first_byte_timeout: Option<RawDuration>,
    /// Between two reads of the body.
    pub read_timeout: Option<RawDuration>,
    /// For the whole exchange.
    pub total_timeout: Option<RawDurationOrOff>,
    /// Further attempts of an idempotent request to which nothing came back.
    pub retries: Option<u64>,
    /// Response head.
    pub header_bytes: Option<RawSize>,
    /// Field lines of a response head.
    pub header_count: Option<u64>,
    pub tls: RawUpstreamTls,
    /// Begin each connection with the PROXY protocol.
    pub proxy_protocol: Option<RawProxyProtocol>,
}

/// Whether upstreams are told of clients by the PROXY protocol, in which version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum RawProxyProtocol {
    Off,
    V1,
    V2,
}

/// The version of HTTP that is spoken to an upstream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
pub enum RawUpstreamHttp {
    #[serde(rename = "1.1")]
    One,
    #[serde(rename = "2")]
    Two,
    #[serde(rename = "auto")]
    Auto,
}

/// Connections of HTTP/2 to the endpoints.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RawUpstreamHttp2 {
    /// Requests at a time on one connection, where the upstream allows as many.
    pub streams: Option<u64>,
    /// Bytes of a response that may come before they are read; a connection has as many for each of its streams.
    pub stream_window: Option<RawSize>,
    /// A connection with requests is asked every so often whether the upstream is there, and closed if it does not answer in the same time.
    pub keep_alive: Option<RawDuration>,
}

/// TLS towards endpoints with https.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RawUpstreamTls {
    /// PEM: who may certify the upstream, instead of whom the system trusts.
    pub ca_file: Option<String>,
    /// PEM: the certificate that is shown to an upstream that asks for one, then its chain.
    pub cert_file: Option<String>,
    /// PEM: its key.
    pub key_file: Option<String>,
    /// The name to ask for (SNI) and to verify, instead of the endpoint's host.
    pub server_name: Option<String>,
    /// The oldest version of TLS that is taken.
    pub min_version: Option<RawTlsVersion>,
    /// Take any certificate from anybody.
    pub insecure_skip_verify: Option<bool>,
}

/// How endpoints take turns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RawBalance {
    RoundRobin,
    LeastRequests,
}

/// What speaks HTTP/1.1 to an upstream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RawCodec {
    Own,
    Hyper,
}

/// A routed host space.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RawSite {
    /// `shop.example.com`, `*.example.com`; none: the default site, for every other host.
    pub hosts: Option<Vec<String>>,
    pub tls: RawSiteTls,
    /// Where routes go that name no upstream of their own. Not needed where there is one upstream, or one named `default`.
    pub upstream: Option<String>,
    /// In order; the first that matches wins. One that matches everything is added at the end.
    pub routes: Vec<RawRoute>,
    pub cache: RawCache,
    /// Requests that go past the cache.
    pub bypass: Vec<RawBypass>,
    /// Edits of the request on its way to the upstream.
    pub request_headers: RawEdits,
    /// Edits of the response on its way to the client.
    pub response_headers: RawEdits,
    /// Steps that change path and query on the way to the upstream, in order.
    pub rewrite: Vec<RawRewrite>,
    /// Host towards the upstream: `preserve`, `upstream`, or a literal host.
    pub host: Option<String>,
    /// Request cookies that neither cache key nor upstream see; a trailing `*` matches a prefix.
    pub strip_cookies: Option<Vec<String>>,
    pub accept_encoding: Option<RawAcceptEncoding>,
    pub compression: RawCompression,
    pub tags: RawTags,
    /// Send Cache-Status (RFC 9211).
    pub cache_status: Option<bool>,
    /// Show the cache key in Cache-Status.
    pub show_key: Option<bool>,
    /// Send `X-Cache: HIT` or `MISS`.
    pub x_cache: Option<bool>,
    /// Send everything that comes without TLS to https, at port 443 or this one.
    pub redirect_to_https: Option<RawRedirectToHttps>,
    pub hsts: RawHsts,
    pub rate_limit: RawRateLimit,
    pub purge: RawRoutePurge,
    pub log: RawRouteLog,
}

/// What happens to requests that match.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RawRoute {
    /// Name in logs and metrics; derived from the path where absent.
    pub name: Option<String>,
    /// The path begins so.
    pub path: Option<String>,
    /// The path is this.
    pub exact: Option<String>,
    /// A regular expression is found in the path; `^` and `$` anchor it.
    pub pattern: Option<String>,
    /// Any of these methods.
    pub methods: Option<Vec<String>>,
    /// Request fields, all of them.
    pub headers: BTreeMap<String, RawValueMatch>,
    /// Query parameters, all of them, compared as they stand in the URL.
    pub query: BTreeMap<String, RawValueMatch>,
    /// Name of an upstream.
    pub upstream: Option<String>,
    /// Answer with a redirect.
    pub redirect: Option<RawRedirect>,
    /// Answer with this.
    pub respond: Option<RawRespond>,
    pub cache: RawCache,
    /// Requests that go past the cache.
    pub bypass: Vec<RawBypass>,
    /// Edits of the request on its way to the upstream.
    pub request_headers: RawEdits,
    /// Edits of the response on its way to the client.
    pub response_headers: RawEdits,
    /// Steps that change path and query on the way to the upstream, in order.
    pub rewrite: Vec<RawRewrite>,
    /// Host towards the upstream: `preserve`, `upstream`, or a literal host.
    pub host: Option<String>,
    /// Request cookies that neither cache key nor upstream see; a trailing `*` matches a prefix.
    pub strip_cookies: Option<Vec<String>>,
    pub accept_encoding: Option<RawAcceptEncoding>,
    pub compression: RawCompression,
    pub tags: RawTags,
    /// Send Cache-Status (RFC 9211).
    pub cache_status: Option<bool>,
    /// Show the cache key in Cache-Status.
    pub show_key: Option<bool>,
    /// Send `X-Cache: HIT` or `MISS`.
    pub x_cache: Option<bool>,
    /// Send everything that comes without TLS to https, at port 443 or this one.
    pub redirect_to_https: Option<RawRedirectToHttps>,
    pub hsts: RawHsts,
    pub rate_limit: RawRateLimit,
    pub purge: RawRoutePurge,
    pub log: RawRouteLog,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RawRedirect {
    /// 301, 302, 303, 307 or 308.
    pub status: Option<u16>,
    /// Where to; may hold `{host}`, `{path}` and `{query}` (with its question mark).
    pub location: Option<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RawRespond {
    /// 200 to 599.
    pub status: Option<u16>,
    pub content_type: Option<String>,
    pub body: Option<String>,
    /// File that holds the body; read again on reload.
    pub body_file: Option<String>,
}

/// What the cache may do.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RawCache {
    pub enabled: Option<bool>,
    pub ttl: RawTtls,
    /// A tenth of the time since Last-Modified where the response says nothing (RFC 9111 §4.2.2).
    pub heuristic: Option<bool>,
    /// Upper bound of a heuristic lifetime.
    pub heuristic_max: Option<RawDuration>,
    /// Heuristic lifetimes for requests with cookies, too.
    pub heuristic_with_cookie: Option<bool>,
    /// How long a stale response is used while it is refreshed, where it says nothing (RFC 5861 §3).
    pub stale_while_revalidate: Option<RawDuration>,
    /// How long a stale response is used when the upstream fails, where it says nothing (RFC 5861 §4).
    pub stale_if_error: Option<RawDuration>,
    /// Share of the lifetime at its end in which a hit refreshes what it found, in the background.
    pub early_refresh: Option<RawShare>,
    /// A response is stored with this many requests for its key, lately: 1 to 255.
    pub store_after: Option<u64>,
    /// A page or an API answer under a path that looks static is not stored unless the origin names its freshness.
    pub deception_guard: Option<bool>,
    /// An error that an odd request may have caused (400, 405, 414, 431, 501, ...) is stored only with explicit freshness,
    /// and not where the request was odd.
    pub error_guard: Option<bool>,
    /// How long a stale response with a validator is kept to be revalidated.
    pub keep_stale: Option<RawDuration>,
    /// Fields that say what this cache may do, before Cache-Control and Expires do; the first that is there and valid
    /// governs (RFC 9213).
    pub targeted: Option<Vec<String>>,
    pub set_cookie: Option<RawSetCookie>,
    /// What Cache-Control of clients does, only-if-cached and no-store aside.
    pub client_directives: Option<RawClientDirectives>,
    /// Longer bodies are not stored.
    pub max_object_size: Option<RawSize>,
    /// A range of something up to this size fetches the whole.
    pub range_whole_max: Option<RawSize>,
    /// Ranges that one request may ask for; more are answered with the whole.
    pub range_parts_max: Option<u64>,
    /// Keep large responses in blocks of this size, fetched as they are wanted; "0B": off.
    pub blocks: Option<RawSize>,
    /// One fetch for all who ask at the same time.
    pub collapse: Option<bool>,
    /// Responses per URL that differ by Vary.
    pub max_variants: Option<u64>,
    pub body_key: RawBodyKey,
    pub vary: RawVary,
    /// A response's No-Vary-Search counts: it answers all URLs whose queries it calls equivalent.
    pub no_vary_search: Option<bool>,
    pub key: RawKey,
    pub redis: RawCacheRedis,
}

/// The connection to Redis in a table of its own, with further keys.
macro_rules! redis_table {
    ($(#[$meta:meta])* $name:ident { $($(#[$more:meta])* $key:ident: $value:ty,)* }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Default, PartialEq, Deserialize, JsonSchema)]
        #[serde(default, deny_unknown_fields)]
        pub struct $name {
            /// `redis://host:port`, `rediss://host:port` (TLS) or `unix:/path`; of Sentinels and of a Cluster several.
            pub url: Option<RawAddresses>,
            pub mode: Option<RawRedisMode>,
            /// What Sentinel calls the master.
            pub sentinel_master: Option<String>,
            /// Password of the Sentinels.
            pub sentinel_password: Option<String>,
            /// File that holds it.
            pub sentinel_password_file: Option<String>,
            /// User of the ACL.
            pub user: Option<String>,
            pub password: Option<String>,
            /// File that holds the password.
            pub password_file: Option<String>,
            /// Number of the database.
            pub database: Option<u64>,
            pub tls: RawRedisTls,
            /// What the names of all keys begin with.
            pub prefix: Option<String>,
            /// For a connection to be made, Sentinel and login included.
            pub connect_timeout: Option<RawDuration>,
            $($(#[$more])* pub $key: $value,)*
        }

        impl $name {
            /// The keys that say where Redis is, and how to connect.
            pub fn server_keys(&self) -> RedisKeys<'_> {
                RedisKeys {
                    url: self.url.as_ref(),
                    mode: self.mode,
                    sentinel_master: self.sentinel_master.as_deref(),
                    sentinel_password: (self.sentinel_password.as_deref(), self.sentinel_password_file.as_deref()),
                    user: self.user.as_deref(),
                    password: (self.password.as_deref(), self.password_file.as_deref()),
                    database: self.database,
                    tls: &self.tls,
                    prefix: self.prefix.as_deref(),
                    connect_timeout: self.connect_timeout.as_ref(),
                }
            }
        }
    };
}

redis_table!(
    /// The tier that the fleet shares. Where Redis is stands at the top only; the rest also in sites and routes.
    RawCacheRedis {
        /// What this table says is done.
        enabled: Option<bool>,
        /// Longer bodies are not shared.
        max_object_size: Option<RawSize>,
        /// For so long a response is kept there at most.
        max_ttl: Option<RawDuration>,
        /// Only responses of these types are shared: `text/html`, `image/*`; none: all.
        content_types: Option<Vec<String>>,
        /// What a look-up may take.
        lookup_budget: Option<RawDuration>,
        /// For so long what is not there is not looked for again.
        remember_misses: Option<RawDuration>,
        /// Responses that may wait to be written.
        queue_entries: Option<u64>,
        /// Their bytes.
        queue_bytes: Option<RawSize>,
        /// A secret of the fleet with which what is kept there is sealed, for a Redis that others may write to.
        seal: Option<String>,
        /// File that holds it.
        seal_file: Option<String>,
    }
);

redis_table!(
    /// A Redis of its own for the journal of invalidations.
    RawJournalRedis {}
);

/// The keys that every table with a connection to Redis has.
#[derive(Debug, Clone, Copy)]
pub struct RedisKeys<'a> {
    pub url: Option<&'a RawAddresses>,
    pub mode: Option<RawRedisMode>,
    pub sentinel_master: Option<&'a str>,
    /// Literal, file.
    pub sentinel_password: (Option<&'a str>, Option<&'a str>),
    pub user: Option<&'a str>,
    /// Literal, file.
    pub password: (Option<&'a str>, Option<&'a str>),
    pub database: Option<u64>,
    pub tls: &'a RawRedisTls,
    pub prefix: Option<&'a str>,
    pub connect_timeout: Option<&'a RawDuration>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RawRedisMode {
    /// One server.
    Standalone,
    /// The master that the Sentinels at `url` name.
    Sentinel,
    /// A Cluster, found from the nodes at `url`.
    Cluster,
}

/// For `rediss://`.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RawRedisTls {
    /// File with the certificates to trust instead of the system's.
    pub roots: Option<String>,
    /// Files with a certificate and its key to show to Redis.
    pub certificate: Option<String>,
    pub key: Option<String>,
}

/// Freshness lifetimes.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RawTtls {
    /// Instead of what the origin says; never lifts no-store or private.
    #[serde(rename = "override")]
    pub replace: Option<RawTtl>,
    /// Where the origin says nothing.
    pub default: Option<RawTtl>,
    /// Share by which lifetimes are shortened at most, for each stored response by another part of it.
    pub jitter: Option<RawShare>,
}

/// Requests that are answered by what they carry.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RawBodyKey {
    /// QUERY (RFC 10008), and POST where it only asks.
    pub methods: Option<Vec<String>>,
    /// Longer content goes past the cache.
    pub max_bytes: Option<RawSize>,
}

/// Parts of the cache key besides scheme, host, path and query.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RawKey {
    /// Sort query parameters by name.
    pub query_sort: Option<bool>,
    /// Only these parameters count; a trailing `*` matches a prefix, `*` alone all.
    pub query_allow: Option<Vec<String>>,
    /// These parameters do not count; a trailing `*` matches a prefix.
    pub query_ignore: Option<Vec<String>>,
    /// The parameters of the shipped list of tracking parameters do not count (`tiercel version` names the list).
    pub ignore_tracking: Option<bool>,
    /// Request fields whose values count.
    pub headers: Option<Vec<String>>,
    /// Cookies whose values count.
    pub cookies: Option<Vec<String>>,
    /// Classes of clients, by name: a value of a few in place of a field of thousands.
    pub classes: Option<BTreeMap<String, RawClass>>,
}

/// A way to part clients into classes.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RawClass {
    /// In order; the first that holds gives the value.
    pub rules: Vec<RawClassRule>,
    /// The value where no rule holds.
    pub default: Option<String>,
    /// The request field that tells the upstream the value; what clients send by that name is dropped.
    pub forward: Option<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RawClassRule {
    pub value: Option<String>,
    /// Request fields, all of them.
    pub headers: BTreeMap<String, RawValueMatch>,
}

/// What is made of the fields that Vary names.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RawVary {
    /// Fields of Vary that do not matter here.
    pub ignore: Option<Vec<String>>,
    /// Languages that the upstream has: Accept-Language is reduced to the best of them.
    pub languages: Option<Vec<String>>,
    /// Image formats that the upstream may answer with: Accept is reduced to those that the client names.
    pub images: Option<Vec<String>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RawSetCookie {
    /// A response with Set-Cookie is not stored.
    Bypass,
    /// It is stored and replayed as it is.
    Store,
    /// It is stored without the field.
    Strip,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RawClientDirectives {
    Ignore,
    Honour,
}

/// Which requests go past the cache: all conditions given must hold.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RawBypass {
    /// A token for Cache-Status, log and metrics.
    pub reason: Option<String>,
    /// The path begins so.
    pub path: Option<String>,
    /// The path is this.
    pub exact: Option<String>,
    /// A regular expression is found in the path.
    pub pattern: Option<String>,
    /// Any of these methods.
    pub methods: Option<Vec<String>>,
    /// Request fields, all of them.
    pub headers: BTreeMap<String, RawValueMatch>,
    /// Query parameters, all of them.
    pub query: BTreeMap<String, RawValueMatch>,
    /// Any of these cookies; a trailing `*` matches a prefix.
    pub cookies: Option<Vec<String>>,
}

/// Edits of a field section: removals first, then `set`, then `add`.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RawEdits {
    /// One more line.
    pub add: BTreeMap<String, RawFieldValues>,
    /// One line instead of all.
    pub set: BTreeMap<String, String>,
    pub remove: Vec<String>,
}

/// One step; exactly one of its forms.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RawRewrite {
    pub strip_prefix: Option<String>,
    pub add_prefix: Option<String>,
    /// A regular expression, replaced everywhere in the path by `with`.
    pub pattern: Option<String>,
    /// `$1` and `${name}` stand for groups of the pattern (write `$${name}`: `${` reads the environment).
    pub with: Option<String>,
    /// Query parameters that neither upstream nor cache key see; a trailing `*` matches a prefix.
    pub drop_query: Option<Vec<String>>,
    /// Query parameters to set.
    pub set_query: Option<BTreeMap<String, String>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RawAcceptEncoding {
    /// `gzip` where the client takes it, else `identity`.
    Normalise,
    Identity,
    /// As the client sent it.
    Forward,
}

/// Surrogate keys.
/// What is coded here: `true`, `false`, or a table.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RawCompression(pub RawCompressionTable);

/// What is coded here, and how.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RawCompressionTable {
    /// Answers are coded.
    pub enabled: Option<bool>,
    /// Codings that are made; the first of those that a client likes equally is taken.
    pub codings: Option<Vec<RawCoding>>,
    /// Content types that are coded: `text/html`, `text/*`, `*+json`.
    pub types: Option<Vec<String>>,
    /// Shorter responses are not coded.
    pub min_size: Option<RawSize>,
    /// Responses may show secrets beside what a request said: only what is stored for everybody is coded.
    pub sensitive: Option<bool>,
    /// How much work goes into what a client waits for.
    pub level: RawLevels,
    /// Answers after which a form is made anew in the background, with more work; 0: never.
    pub hot_hits: Option<u64>,
    /// How much work that is.
    pub hot_level: RawLevels,
    /// Longer responses are not made anew.
    pub hot_max_size: Option<RawSize>,
    /// What a coded response of the upstream may stand for, where its coding has to be taken off for a client.
    pub decode_max_size: Option<RawSize>,
    /// Bytes that each of its bytes may stand for, beyond the first MiB.
    pub decode_max_ratio: Option<u64>,
    /// Responses that the origin declares to be compression dictionaries (RFC 9842) are kept, and others coded against them.
    pub dictionaries: Option<bool>,
    /// Neither a dictionary nor what is coded against one is longer.
    pub dictionary_max_size: Option<RawSize>,
    /// Forms of one response against dictionaries; beyond, the oldest goes.
    pub dictionary_forms: Option<u64>,
}

/// How much work goes into a form.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RawLevels {
    /// 1 to 9.
    pub gzip: Option<u64>,
    /// 0 to 11.
    pub br: Option<u64>,
    /// 1 to 19.
    pub zstd: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RawCoding {
    Gzip,
    Br,
    Zstd,
}

impl<'de> Deserialize<'de> for RawCompression {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct SwitchOrTable;

        impl<'de> Visitor<'de> for SwitchOrTable {
            type Value = RawCompression;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("true, false, or a table")
            }

            fn visit_bool<E>(self, enabled: bool) -> Result<Self::Value, E> {
                Ok(RawCompression(RawCompressionTable { enabled: Some(enabled), ..RawCompressionTable::default() }))
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
                RawCompressionTable::deserialize(MapAccessDeserializer::new(map)).map(RawCompression)
            }
        }

        deserializer.deserialize_any(SwitchOrTable)
    }
}

impl JsonSchema for RawCompression {
    fn schema_name() -> Cow<'static, str> {
        "RawCompression".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let mut schema = RawCompressionTable::json_schema(generator);
        schema.insert("type".into(), serde_json::json!(["boolean", "object"]));
        schema
    }
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RawTags {
    /// Fields with surrogate keys that clients (a CDN in front) get to see.
    pub forward: Option<Vec<String>>,
}

/// How many requests somebody may make (429). A table here replaces the whole of an outer one.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RawRateLimit {
    /// So many in such a time, evenly.
    pub rate: Option<RawRate>,
    /// At once, after a pause; the number of the rate where absent.
    pub burst: Option<u64>,
    /// Whose requests are counted together: `client`, `everybody`, or those with the same value of a request field.
    pub by: Option<String>,
    /// For metrics; limits of one name count together. Derived from the place where absent.
    pub name: Option<String>,
    /// The nodes of the fleet count together, in Redis.
    pub shared: Option<bool>,
    /// What a shared limit does while Redis does not count.
    pub on_fault: Option<RawOnFault>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum RawOnFault {
    /// Each node counts for itself.
    Allow,
    /// Refuse.
    Deny,
}

/// The PURGE method.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RawRoutePurge {
    /// Networks from which PURGE is taken; none: 405.
    pub allow: Option<Vec<String>>,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RawRouteLog {
    /// Log query strings.
    pub query: Option<bool>,
}

/// Invalidation.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RawPurge {
    /// Networks from which PURGE is taken; none: 405.
    pub allow: Option<Vec<String>>,
    /// Receipts remembered.
    pub receipts: Option<u64>,
    /// Selectors in one call.
    pub selectors_per_call: Option<u64>,
    /// Selectors kept exactly before they fold.
    pub map_capacity: Option<u64>,
    /// Slots into which older ones fold.
    pub fold_slots: Option<u64>,
    /// Where POST, PUT, DELETE and the like invalidate their URL (RFC 9111 §4.4).
    pub unsafe_methods: Option<RawUnsafeMethods>,
    /// Surrogate keys of one response; a response with more is not stored.
    pub keys_per_response: Option<u64>,
    /// Length of one surrogate key.
    pub key_bytes: Option<RawSize>,
    /// How long after a purge of a prefix, host, site or everything the misses of what it matches count as its doing.
    pub recovery: Option<RawDuration>,
    /// Selectors that one caller may purge in a time (429).
    pub rate: Option<RawRate>,
    /// Selectors that it may purge at once, after a pause.
    pub burst: Option<u64>,
}

/// Where unsafe methods invalidate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum RawUnsafeMethods {
    /// On this node at once, on the others of its fleet shortly after.
    Fleet,
    /// On this node.
    Local,
    /// Nowhere.
    Off,
}

/// The journal of invalidations that the nodes of a fleet share.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RawJournal {
    pub redis: RawJournalRedis,
    /// Name of this node, of its own in the fleet and the same after a restart. Host name and port of the first listener
    /// where absent.
    pub node: Option<String>,
    /// How long what is stored here is used after the journal was last heard of; then the node is cut off.
    pub trust: Option<RawDuration>,
    /// How long purges of this node are kept to be appended again where the journal lost them.
    pub repair: Option<RawDuration>,
    pub on_cutoff: Option<RawOnCutoff>,
    /// How long a node that is cut off serves what it has stored, at most until others forget it; then it revalidates.
    pub serve_at_most: Option<RawDurationOrOff>,
    /// How old a confirmation of the origin may be that counts while cut off.
    pub revalidate_every: Option<RawDuration>,
    /// How long purges wait for a node that vanished without a word and may be serving still.
    pub forget_after: Option<RawDuration>,
    /// Entries of each of the two streams in Redis.
    pub max_entries: Option<u64>,
}

/// What a node does with requests while it is cut off from the journal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum RawOnCutoff {
    /// Serve what is stored, though it may have been purged.
    Serve,
    /// Ask the origin about everything first.
    Revalidate,
    /// Go past the cache.
    Bypass,
}

/// The origin shield: of all nodes of a fleet one asks the origin for a key.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RawShield {
    /// Where the other nodes reach this one: address and port, or `off`.
    pub listen: Option<String>,
    /// All nodes: `http://host:port`, or `dns:name:port` for as many as the name has addresses.
    pub peers: Option<Vec<String>>,
    /// What this node is called among the peers: `http://host:port`.
    pub advertise: Option<String>,
    /// What the nodes prove by that they belong together.
    pub secret: Option<String>,
    /// File that holds the secret; read again on reload.
    pub secret_file: Option<String>,
    /// TLS between the nodes, in which both sides show a certificate. Without it they speak plain text.
    pub tls: Option<RawShieldTls>,
    pub connect_timeout: Option<RawDuration>,
    /// From the request sent to the head of the answer.
    pub first_byte_timeout: Option<RawDuration>,
    /// Between two reads of the body.
    pub read_timeout: Option<RawDuration>,
    /// A connection on which nothing comes for this long is asked whether the peer is there, and closed after as long again.
    pub keep_alive: Option<RawDuration>,
    /// Failures in a row after which a peer is not asked.
    pub failures: Option<u64>,
    /// For how long, at first; it doubles while the peer does not answer.
    pub back_off: Option<RawDuration>,
    pub back_off_max: Option<RawDuration>,
    /// How long the owner waits for purges that the asker knows of and it does not yet.
    pub position_wait: Option<RawDuration>,
    /// For how long after it started, or came back to the fleet, a node asks the next one in the order for what it owns and
    /// does not have, before it asks the origin; `off`: never. It takes a journal that the nodes share.
    pub warm_time: Option<RawDurationOrOff>,
    /// How long it waits for that answer.
    pub warm_budget: Option<RawDuration>,
}

/// TLS between the nodes. The files are read again when they change.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RawShieldTls {
    /// PEM: the certificate that this node shows to those that it asks and to those that ask it, then its chain.
    pub cert_file: Option<String>,
    /// PEM: its key.
    pub key_file: Option<String>,
    /// PEM: who certifies the nodes of the fleet, and nobody else.
    pub ca_file: Option<String>,
    /// The name that the certificates of all nodes are for, instead of the hosts in `peers`.
    pub server_name: Option<String>,
}

/// One fetch per fleet without a shield: who fetches has a lease in the Redis of `cache.redis`.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RawLease {
    /// Where `cache.redis` is, too.
    pub enabled: Option<bool>,
    /// Longest wait for another node's fetch.
    pub wait: Option<RawDuration>,
    /// So long after its holder died another gets it.
    pub ttl: Option<RawDuration>,
    /// So long what came of a fetch is known to nodes that ask later.
    pub kept: Option<RawDuration>,
}

/// Logs.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RawLog {
    /// `error`, `warn`, `info`, `debug`, `trace`, or directives such as `info,tiercel::upstream=debug`.
    pub level: Option<String>,
    pub format: Option<RawLogFormat>,
    /// Log query strings.
    pub query: Option<bool>,
    pub access: RawAccessLog,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RawLogFormat {
    Text,
    Json,
}

/// One line per request.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RawAccessLog {
    /// `off`, `stdout`, or a file.
    pub target: Option<String>,
    pub format: Option<RawAccessFormat>,
    /// Lines that may wait to be written; more are dropped and counted.
    pub queue: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RawAccessFormat {
    Combined,
    Json,
    Ecs,
}

/// The keys that configuration, site and route share, seen alike.
#[derive(Debug, Clone, Copy)]
pub struct RouteKeys<'a> {
    pub cache: &'a RawCache,
    pub bypass: &'a [RawBypass],
    pub request_headers: &'a RawEdits,
    pub response_headers: &'a RawEdits,
    pub rewrite: &'a [RawRewrite],
    pub host: Option<&'a str>,
    pub strip_cookies: Option<&'a [String]>,
    pub accept_encoding: Option<RawAcceptEncoding>,
    pub compression: &'a RawCompression,
    pub forward_tags: Option<&'a [String]>,
    pub cache_status: Option<bool>,
    pub show_key: Option<bool>,
    pub x_cache: Option<bool>,
    pub redirect_to_https: Option<&'a RawRedirectToHttps>,
    pub hsts: &'a RawHsts,
    pub purge_allow: Option<&'a [String]>,
    pub log_query: Option<bool>,
    pub rate_limit: &'a RawRateLimit,
}

macro_rules! route_keys {
    ($($owner:ident),*) => {$(
        impl $owner {
            /// The keys that are shared with the other levels.
            pub fn route_keys(&self) -> RouteKeys<'_> {
                RouteKeys {
                    cache: &self.cache,
                    bypass: &self.bypass,
                    request_headers: &self.request_headers,
                    response_headers: &self.response_headers,
                    rewrite: &self.rewrite,
                    host: self.host.as_deref(),
                    strip_cookies: self.strip_cookies.as_deref(),
                    accept_encoding: self.accept_encoding,
                    compression: &self.compression,
                    forward_tags: self.tags.forward.as_deref(),
                    cache_status: self.cache_status,
                    show_key: self.show_key,
                    x_cache: self.x_cache,
                    redirect_to_https: self.redirect_to_https.as_ref(),
                    hsts: &self.hsts,
                    purge_allow: self.purge.allow.as_deref(),
                    log_query: self.log.query,
                    rate_limit: &self.rate_limit,
                }
            }
        }
    )*};
}

route_keys!(RawConfig, RawSite, RawRoute);
