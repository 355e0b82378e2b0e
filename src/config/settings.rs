//! Settings as the program uses them: resolved, typed, immutable. No later code asks "was it set?".

use crate::semantics::condition::ValueMatch;
use crate::semantics::key::KeyPolicy;
use crate::semantics::policy::CachePolicy;
use ipnet::IpNet;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// A whole configuration.
#[derive(Debug, Clone)]
pub struct Settings {
    pub server: Server,
    pub listeners: Vec<Listener>,
    pub admin: Admin,
    pub metrics: Metrics,
    pub memory: Memory,
    pub limits: Limits,
    pub fill: Fill,
    pub upstreams: Vec<Arc<Upstream>>,
    pub sites: Vec<Arc<Site>>,
    pub purge: Purge,
    pub shield: Shield,
    pub journal: Journal,
    pub log: Log,
    pub lease: Lease,
    pub acme: Arc<Acme>,
    /// `[cache.redis]`: the tier that the fleet shares, where there is one.
    pub redis: Option<RedisTier>,
    /// Hash of the resolved configuration, for metrics and `explain`.
    pub hash: String,
    /// Overrides that widen what RFC 9111 allows and other things worth saying once at start.
    pub warnings: Vec<String>,
}

impl Settings {
    /// All sockets that connections of HTTP come in by.
    pub fn sockets(&self) -> impl Iterator<Item = Listener> {
        let peers = self.shield.listen.map(|address| Listener {
            name: SHIELD_LISTENER.into(),
            address: ListenAddress::Tcp(address),
            kind: ListenerKind::Peers,
            h2c: true,
            http3: None,
            proxy_protocol: Vec::new(),
            redirect_to_https: None,
            tls: self.shield.tls.as_ref().map(|tls| Arc::new(tls.towards_askers())),
        });
        self.listeners.iter().cloned().chain(peers)
    }
}

#[derive(Debug, Clone)]
pub struct Server {
    /// Name in Via, Cache-Status and CDN-Loop: a token.
    pub name: String,
    /// Worker threads that serve connections.
    pub workers: usize,
    pub runtime: Runtime,
    /// How long SIGTERM lets everything go on with readiness fallen, before the listeners close.
    pub drain_delay: Duration,
    /// How long SIGTERM then waits for requests under way.
    pub drain_timeout: Duration,
    /// Peers whose X-Forwarded-*, Forwarded, X-Request-Id are believed.
    pub trusted_proxies: Vec<IpNet>,
    /// Keep encoded slashes and the like in paths instead of refusing them.
    pub lenient_path: bool,
    /// How often the files of certificates are looked at; `None`: at a reload only.
    pub certificate_poll: Option<Duration>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Runtime {
    /// One current_thread runtime per core.
    PerCore,
    /// tokio's multi-thread scheduler.
    Shared,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listener {
    pub name: String,
    pub address: ListenAddress,
    pub kind: ListenerKind,
    /// HTTP/2 in plain text is served to clients that begin with its preface.
    pub h2c: bool,
    /// HTTP/3 over UDP on the same port; there only with TLS.
    pub http3: Option<Http3>,
    /// Who begins each connection with the PROXY protocol.
    pub proxy_protocol: Vec<IpNet>,
    /// Port of https to which everything is sent that comes without it.
    pub redirect_to_https: Option<u16>,
    /// `None`: plain text.
    pub tls: Option<Arc<ListenerTls>>,
}

/// Where a listener is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum ListenAddress {
    Tcp(SocketAddr),
    Unix {
        path: PathBuf,
        /// Who may connect, as permissions of a file.
        mode: u32,
    },
}

impl ListenAddress {
    /// What a path is written behind.
    pub const UNIX: &str = "unix:";

    /// 0 also where there is none.
    pub const fn port(&self) -> u16 {
        match self {
            Self::Tcp(address) => address.port(),
            Self::Unix { .. } => 0,
        }
    }

    /// Whether only its listener's name tells which one it is.
    pub const fn is_any_port(&self) -> bool {
        matches!(self, Self::Tcp(address) if address.port() == 0)
    }
}

impl fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix { path, .. } => write!(f, "{}{}", Self::UNIX, path.display()),
        }
    }
}

/// HTTP/3 on a listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Http3 {
    /// The port that clients are told; `None`: that of the listener.
    pub port: Option<u16>,
    /// Every client shows first that its address is its own.
    pub retry: bool,
}

/// TLS of a listener.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListenerTls {
    /// The first is shown to whoever names none that is there.
    pub certificates: Vec<CertificateSource>,
    /// The oldest that is offered.
    pub min_version: TlsVersion,
    /// Names of suites in order of preference; empty: all, in the order of the client.
    pub suites: Vec<String>,
    /// HTTP/2 is offered besides HTTP/1.1.
    pub http2: bool,
    /// From the connection to the end of the handshake.
    pub handshake_timeout: Duration,
    /// Handshakes at a time; more wait.
    pub handshakes: usize,
    /// Secret from which the keys of session tickets are made; `None`: the process's own.
    pub ticket_key: Option<PemFile>,
    /// `None`: clients are not asked for certificates, but where a site says so.
    pub client_certificates: Option<Arc<ClientCertificates>>,
}

/// Where a certificate comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CertificateSource {
    Files(CertificateFiles),
    Acme(AcmeCertificate),
}

/// A certificate that is obtained by ACME.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AcmeCertificate {
    /// Lower case, the first as it is written.
    pub hosts: Vec<String>,
    /// Where it is kept, key first, once it is there.
    pub file: PathBuf,
}

/// `[acme]`: who certifies hosts, and how.
#[derive(Debug, Clone, PartialEq)]
pub struct Acme {
    /// https.
    pub directory: String,
    /// Who may certify the directory; `None`: whom the system trusts.
    pub roots: Option<PemFile>,
    pub contact: Vec<String>,
    pub agree_to_terms: bool,
    pub eab: Option<ExternalAccount>,
    pub key_type: KeyType,
    /// All of one directory are below it in a folder of their own.
    pub folder: PathBuf,
    /// Preferred first, at least one.
    pub challenges: Vec<Challenge>,
    /// `None`: when a third of the lifetime is left.
    pub renew_before: Option<Duration>,
    /// Share of that time (0.10).
    pub renew_jitter: f64,
    pub retry_first: Duration,
    pub retry_max: Duration,
    pub order_timeout: Duration,
    pub request_timeout: Duration,
    /// Certificates that are asked for at a time.
    pub orders: usize,
    /// What the fleet shares is encrypted with it; `None`: nothing is shared.
    pub seal: Option<Secret>,
}

/// An account that the authority gave out beforehand (RFC 8555 §7.3.4).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExternalAccount {
    pub key_id: String,
    /// In base64url, which can be decoded.
    pub key: Secret,
}

impl ExternalAccount {
    /// The key itself (RFC 4648 §5); `None` where it is no base64url.
    pub fn key_bytes(&self) -> Option<Vec<u8>> {
        let text = self.key.expose().trim_end_matches('=');
        let (mut bytes, mut bits, mut held) = (Vec::with_capacity(text.len()), 0_u32, 0);
        for digit in text.bytes() {
            let value = match digit {
                b'A'..=b'Z' => digit - b'A',
                b'a'..=b'z' => digit - b'a' + 26,
                b'0'..=b'9' => digit - b'0' + 52,
                b'-' => 62,
                b'_' => 63,
                _ => return None,
            };
            (bits, held) = (bits << 6 | u32::from(value), held + 6);
            if held >= 8 {
                held -= 8;
                bytes.push((bits >> held) as u8);
            }
        }
        (text.len() % 4 != 1 && !bytes.is_empty()).then_some(bytes)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyType {
    P256,
    P384,
    Rsa2048,
}

impl KeyType {
    /// As in the configuration.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::P256 => "p256",
            Self::P384 => "p384",
            Self::Rsa2048 => "rsa2048",
        }
    }
}

/// How an authority is shown that a host is ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Challenge {
    /// RFC 8555 §8.3.
    Http01,
    /// RFC 8737.
    TlsAlpn01,
}

impl Challenge {
    /// As in the configuration, and in the protocol.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Http01 => "http-01",
            Self::TlsAlpn01 => "tls-alpn-01",
        }
    }
}

/// A certificate with its chain, and its key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateFiles {
    pub certificate: PemFile,
    pub key: PemFile,
    /// An OCSP response about the certificate, DER.
    pub ocsp: Option<PemFile>,
}

/// What clients are asked to show, and what becomes of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientCertificates {
    pub asked: Asked,
    /// Who may certify clients; there unless none is asked.
    pub authorities: Option<PemFile>,
    /// Revocation lists of these; with it every certificate of a chain must be in the scope of one.
    pub revoked: Option<PemFile>,
    pub told: Told,
}

impl ClientCertificates {
    /// Whether a handshake under one is as good as under the other. Contents of files do not count: they change while the
    /// policy stays.
    pub fn is_like(&self, other: &Self) -> bool {
        let policy = |one: &Self| {
            let path = |file: &Option<PemFile>| file.as_ref().map(|file| file.path.clone());
            (one.asked, one.told, path(&one.authorities), path(&one.revoked))
        };
        std::ptr::eq(self, other) || policy(self) == policy(other)
    }
}

/// Whether clients show certificates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asked {
    Nothing,
    /// Who shows one is known by it.
    Optional,
    /// Who shows none is not served.
    Required,
}

/// What the upstream is told of a client's certificate (RFC 9440).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Told {
    Nothing,
    /// Client-Cert.
    Certificate,
    /// Client-Cert-Chain, too.
    Chain,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TlsVersion {
    Tls12,
    Tls13,
}

impl TlsVersion {
    /// As in the configuration.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Tls12 => "1.2",
            Self::Tls13 => "1.3",
        }
    }
}

/// Whether an address, one of IPv4 written as IPv6 too, lies in one of these networks.
pub fn is_in(networks: &[IpNet], address: IpAddr) -> bool {
    let address = address.to_canonical();
    networks.iter().any(|network| network.contains(&address))
}

/// Who connects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ListenerKind {
    Clients,
    /// Other nodes of the fleet.
    Peers,
}

#[derive(Debug, Clone)]
pub struct Admin {
    /// `None`: no admin listener.
    pub address: Option<SocketAddr>,
    /// Needed where the address is not loopback.
    pub token: Option<Secret>,
}

#[derive(Debug, Clone)]
pub struct Metrics {
    /// The read-only listener.
    pub address: Option<SocketAddr>,
}

#[derive(Debug, Clone)]
pub struct Memory {
    /// Bytes: the process's, all in.
    pub limit: u64,
    pub policy: Eviction,
    /// Share of the limit for stored responses (0.60), fills in flight and pinned bodies (0.25).
    pub stored_share: f64,
    pub fill_share: f64,
    /// Share of the limit at which new fills are not stored (0.95).
    pub pressure: f64,
}

impl Memory {
    pub fn stored_bytes(&self) -> u64 {
        (self.limit as f64 * self.stored_share) as u64
    }
    pub fn fill_bytes(&self) -> u64 {
        (self.limit as f64 * self.fill_share) as u64
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Eviction {
    TinyLfu,
    Lru,
}

/// Bounds on what clients may send.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Client connections in the process.
    pub connections: usize,
    /// Requests on one connection before it is closed.
    pub requests_per_connection: u64,
    /// Bytes of request line and fields (431; the line alone: 414).
    pub header_bytes: usize,
    /// Field lines (431).
    pub header_count: usize,
    /// Bytes of the request target (414).
    pub url_bytes: usize,
    /// Bytes of a request body (413).
    pub body_bytes: u64,
    /// From the first byte of a head to its end (408).
    pub header_timeout: Duration,
    /// Between requests on a kept connection.
    pub idle_timeout: Duration,
    /// Between two reads of a request body (408).
    pub body_timeout: Duration,
    /// Bytes a second of a request body, on average beyond `body_timeout` (408); 0: no bound.
    pub body_rate: u64,
    /// Between two writes that make progress.
    pub write_timeout: Duration,
    /// Followers that wait for a head, in the process (DESIGN section 5).
    pub waiting: usize,
    /// Callers of rate limits that are remembered, all limits together.
    pub rate_limit_callers: u64,
    /// What Redis may take to count a request for a shared rate limit.
    pub rate_limit_budget: Duration,
    /// Pieces of bodies that are coded at a time, beside the cores that serve.
    pub compression_threads: usize,
    /// What compression dictionaries that are kept may hold.
    pub dictionary_memory: u64,
    pub http2: Http2,
}

impl Default for Limits {
    /// But for `compression_threads`: those depend on the machine.
    fn default() -> Self {
        Self {
            connections: 16_384,
            requests_per_connection: 100_000,
            header_bytes: 32 << 10,
            header_count: 128,
            url_bytes: 8 << 10,
            body_bytes: 4 << 30,
            header_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(75),
            body_timeout: Duration::from_secs(30),
            body_rate: 512,
            write_timeout: Duration::from_secs(30),
            waiting: 65_536,
            rate_limit_callers: 65_536,
            rate_limit_budget: Duration::from_millis(25),
            compression_threads: 1,
            dictionary_memory: 64 << 20,
            http2: Http2::default(),
        }
    }
}

/// What a connection of HTTP/2 may make us hold or do, besides [`Limits`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Http2 {
    /// Requests at a time on one connection.
    pub streams: u32,
    /// Bytes of a request body that may come before they are read.
    pub stream_window: u32,
    /// The same for all of a connection.
    pub connection_window: u32,
    /// Bytes of an answer that are taken over before the client takes them, per stream.
    pub send_buffer: usize,
    /// Streams that the client may reset in ten seconds.
    pub resets: u64,
    /// Streams that the client reset before they were looked at.
    pub resets_pending: usize,
    /// Streams that we had to reset for its errors, in the life of a connection.
    pub errors: usize,
    /// Frames a second that bring nothing.
    pub idle_frames: u64,
    /// A connection on which nothing comes for this long is asked whether it is there...
    pub keep_alive: Duration,
    /// ...and closed if it does not answer within this.
    pub keep_alive_timeout: Duration,
}

impl Http2 {
    /// Those of connections from other nodes of the fleet, on which the requests of many clients come, and go as they leave.
    pub fn of_peers() -> Self {
        Self { streams: 256, resets: 1_000_000, idle_frames: 1_000_000, send_buffer: 256 << 10, ..Self::default() }
    }
}

impl Default for Http2 {
    fn default() -> Self {
        Self {
            streams: 128,
            stream_window: 64 << 10,
            connection_window: 1 << 20,
            send_buffer: 64 << 10,
            resets: 500,
            resets_pending: 20,
            errors: 256,
            idle_frames: 10_000,
            keep_alive: Duration::from_secs(20),
            keep_alive_timeout: Duration::from_secs(10),
        }
    }
}

/// Fills in flight.
#[derive(Debug, Clone)]
pub struct Fill {
    /// Bytes by which the furthest reader of a response that is not stored may lead the slowest.
    pub lag: u64,
    /// How long, in sum, a slow reader may hold others up before it is detached.
    pub stall: Duration,
    /// A fill without readers goes on if its declared rest is at most this many bytes...
    pub finish_rest: u64,
    /// ...or if at least this share of it is there.
    pub finish_share: f64,
    /// A follower whose range begins more than this beyond what has arrived goes on alone.
    pub range_ahead: u64,
    /// "Do not line up" markers: first, longest, how many.
    pub marker_first: Duration,
    pub marker_max: Duration,
    pub marker_count: usize,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Upstream {
    pub name: String,
    pub endpoints: Vec<Endpoint>,
    pub balance: Balance,
    pub http: UpstreamHttp,
    pub http1: UpstreamCodec,
    pub http2: UpstreamHttp2,
    /// Connections per endpoint.
    pub connections: usize,
    /// Requests that may wait for a connection, per endpoint.
    pub queue: usize,
    pub queue_timeout: Duration,
    /// Fetches at a time that a purge of much caused; 0: any number. The others wait, `queue` of them...
    pub purge_concurrency: usize,
    /// ...and so long.
    pub purge_queue_timeout: Duration,
    pub idle_connections: usize,
    pub idle_timeout: Duration,
    pub connect_timeout: Duration,
    /// From the request sent to the head of the response.
    pub first_byte_timeout: Duration,
    /// Between two reads of the body.
    pub read_timeout: Duration,
    /// For the whole exchange; `None`: no bound.
    pub total_timeout: Option<Duration>,
    /// Retries on a fresh connection where nothing came back and the request is idempotent.
    pub retries: u32,
    /// Bounds on the response head.
    pub header_bytes: usize,
    pub header_count: usize,
    /// For endpoints with https.
    pub tls: UpstreamTls,
    /// Each connection begins with it, and serves the requests of one client: one request.
    pub proxy_protocol: Option<ProxyProtocol>,
}

/// Versions of the PROXY protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProxyProtocol {
    V1,
    V2,
}

/// TLS towards an upstream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpstreamTls {
    /// Certificates are verified.
    pub verify: bool,
    /// Who may certify it; `None`: whom the system trusts.
    pub roots: Option<PemFile>,
    /// Shown where the upstream asks for one.
    pub certificate: Option<CertificateFiles>,
    /// Asked for (SNI) and verified; `None`: the endpoint's host.
    pub server_name: Option<String>,
    /// The oldest that is taken.
    pub min_version: TlsVersion,
}

impl Default for UpstreamTls {
    fn default() -> Self {
        Self { verify: true, roots: None, certificate: None, server_name: None, min_version: TlsVersion::Tls12 }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// `http://host:port` or `https://host:port` as written.
    pub url: String,
    /// Host name or address.
    pub host: String,
    pub port: u16,
    /// https.
    pub is_secure: bool,
    /// The socket, where it is one of this machine: `host` is then `localhost`.
    pub socket: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Balance {
    RoundRobin,
    LeastRequests,
}

/// The version of HTTP that is spoken to an upstream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum UpstreamHttp {
    #[default]
    One,
    /// Over TLS it must be chosen (ALPN); in plain text it is known that the upstream speaks it.
    Two,
    /// Over TLS what is chosen, HTTP/2 first; in plain text HTTP/1.1.
    Auto,
}

impl UpstreamHttp {
    /// As in the configuration.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::One => "1.1",
            Self::Two => "2",
            Self::Auto => "auto",
        }
    }
}

/// Connections of HTTP/2 to an upstream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UpstreamHttp2 {
    /// Requests at a time on one connection, where the upstream allows as many.
    pub streams: usize,
    /// Bytes of a response that may come before they are read.
    pub stream_window: u32,
    /// A connection with requests is asked every so often whether the upstream is there.
    pub keep_alive: Duration,
}

impl Default for UpstreamHttp2 {
    fn default() -> Self {
        Self { streams: 100, stream_window: 128 << 10, keep_alive: Duration::from_secs(15) }
    }
}

/// What speaks HTTP/1.1 to an upstream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum UpstreamCodec {
    /// Our own: the task of the request reads and writes.
    #[default]
    Own,
    /// hyper's client: a task per connection.
    Hyper,
}

/// A routed host space.
#[derive(Debug, Clone)]
pub struct Site {
    pub name: String,
    /// Exact hosts and `*.suffix`; empty: the default site.
    pub hosts: Vec<String>,
    /// `None`: as the listener says.
    pub client_certificates: Option<Arc<ClientCertificates>>,
    /// In order; the first that matches wins. The last one matches everything.
    pub routes: Vec<Arc<Route>>,
}

#[derive(Debug, Clone)]
pub struct Route {
    /// Configured or derived from the match: `assets`, `default`.
    pub name: String,
    pub matcher: RouteMatch,
    pub action: Action,
    pub cache: CachePolicy,
    /// `cache.redis`, as far as it is of the route.
    pub redis: RedisAdmission,
    pub key: KeyPolicy,
    /// First match wins; each has a name that goes into Cache-Status.
    pub bypass: Vec<BypassRule>,
    pub request_edits: Vec<FieldEdit>,
    pub response_edits: Vec<FieldEdit>,
    /// Path and query rewriting towards the upstream.
    pub rewrite: Vec<Rewrite>,
    pub host: UpstreamHost,
    /// Request cookies that neither key nor upstream see; a trailing `*` matches a prefix.
    pub strip_cookies: Vec<String>,
    /// PURGE is allowed from these networks; empty: 405.
    pub purge_from: Vec<IpNet>,
    /// Surrogate key fields that are passed on to clients.
    pub forward_tags: Vec<String>,
    pub cache_status: bool,
    /// `key=` in Cache-Status.
    pub show_key: bool,
    /// `X-Cache: HIT|MISS`.
    pub x_cache: bool,
    /// Port of https to which everything is sent that comes without it.
    pub redirect_to_https: Option<u16>,
    /// Strict-Transport-Security (RFC 6797), on answers over https.
    pub hsts: Option<Hsts>,
    /// Log query strings.
    pub log_query: bool,
    pub rate_limit: Option<RateLimit>,
}

/// What browsers are told by Strict-Transport-Security.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hsts {
    pub max_age: Duration,
    pub include_subdomains: bool,
    pub preload: bool,
    /// All of it, as it is sent.
    pub value: String,
}

/// How many requests somebody may make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RateLimit {
    /// For metrics; limits of one name count together.
    pub name: String,
    pub rate: Rate,
    /// At once, after a pause.
    pub burst: u32,
    pub by: LimitBy,
    /// The nodes of the fleet count together, in Redis.
    pub shared: bool,
    pub on_fault: OnFault,
}

/// What a shared limit does while Redis does not count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnFault {
    /// Each node counts for itself.
    Allow,
    Deny,
}

/// So many in such a time, a whole number of seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    pub count: u32,
    pub per: Duration,
}

/// Whose requests are counted together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LimitBy {
    Client,
    Everybody,
    /// Those with the same value of a field; those without it by client.
    Field(String),
}

#[derive(Debug, Clone, Default)]
pub struct RouteMatch {
    pub path: PathMatch,
    /// Empty: any.
    pub methods: Vec<http::Method>,
    /// All must hold.
    pub headers: Vec<(String, ValueMatch)>,
    pub query: Vec<(String, ValueMatch)>,
}

#[derive(Debug, Clone, Default)]
pub enum PathMatch {
    #[default]
    Any,
    Prefix(String),
    Exact(String),
    Pattern(regex::Regex),
}

#[derive(Debug, Clone)]
pub enum Action {
    Proxy(Arc<Upstream>),
    /// `location` may hold `{path}`, `{query}`, `{host}`.
    Redirect {
        status: u16,
        location: String,
    },
    Respond {
        status: u16,
        content_type: String,
        body: bytes::Bytes,
    },
}

/// A request that goes past the cache.
#[derive(Debug, Clone)]
pub struct BypassRule {
    /// Token for Cache-Status, log, metrics.
    pub reason: String,
    pub condition: RouteMatch,
    /// Any of these cookies present (trailing `*`: prefix).
    pub cookies: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FieldEdit {
    Add { name: String, value: String },
    Set { name: String, value: String },
    Remove { name: String },
}

#[derive(Debug, Clone)]
pub enum Rewrite {
    StripPrefix(String),
    AddPrefix(String),
    /// On the path; `$1` as in crate regex.
    Replace {
        pattern: regex::Regex,
        with: String,
    },
    /// Query parameters removed on the way to the upstream (and from the key).
    DropQuery(Vec<String>),
    SetQuery {
        name: String,
        value: String,
    },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UpstreamHost {
    /// What the client asked for.
    Preserve,
    /// The endpoint's.
    Upstream,
    Literal(String),
}

#[derive(Debug, Clone)]
pub struct Purge {
    pub bounds: PurgeBounds,
    pub keys: KeyBounds,
    /// Selectors in one call.
    pub selectors_per_call: usize,
    /// Unsafe methods invalidate.
    pub unsafe_methods: bool,
    /// Selectors that one caller may purge; `None`: any number.
    pub rate_limit: Option<RateLimit>,
}

/// How much of what was purged is remembered, and how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PurgeBounds {
    /// Provisional and remembered receipts.
    pub receipts: usize,
    /// Selectors kept exactly before they fold.
    pub map_capacity: usize,
    pub fold_slots: usize,
    /// How long after a purge of a prefix, host, site or everything the misses of what it matches count as its doing.
    pub recovery: Duration,
}

/// The surrogate keys of a response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeyBounds {
    /// In one response; more: not stored.
    pub keys_per_response: usize,
    /// Bytes of one.
    pub key_bytes: usize,
}

/// The fleet's journal of invalidations, as far as this node is concerned.
#[derive(Debug, Clone, PartialEq)]
pub struct Journal {
    /// `[journal.redis]`; without it that of the tier keeps the journal, where there is one.
    pub redis: Option<Redis>,
    /// What unsafe methods invalidate here the fleet is told.
    pub tell_unsafe: bool,
    /// Name of this node among those of the fleet.
    pub node: String,
    /// How long what is stored here may be used after the journal was last heard of.
    pub trust: Duration,
    /// How long purges of this node are kept to be appended again where the journal lost them.
    pub repair: Duration,
    pub on_cutoff: OnCutoff,
    /// How long a node that is cut off serves, if it is less than [`Journal::serves_for`] would be without; then it revalidates.
    pub serve_at_most: Option<Duration>,
    /// How old a confirmation may be that counts while cut off.
    pub revalidate_every: Duration,
    /// How long a node that vanished is waited for by purges.
    pub forget_after: Duration,
    /// Entries of each stream in Redis.
    pub max_entries: u64,
}

impl Journal {
    /// How much longer than `trust` others wait before they take a node as cut off.
    pub const MARGIN: Duration = Duration::from_secs(1);

    /// How long a node that is cut off serves under `on_cutoff = "serve"`: it has ended when others forget the node.
    pub fn serves_for(&self) -> Duration {
        let known = self.forget_after.saturating_sub(self.trust + Self::MARGIN);
        self.serve_at_most.map_or(known, |most| most.min(known))
    }
}

impl Settings {
    /// The certificates that listeners want from the authority, each once.
    pub fn acme_certificates(&self) -> Vec<AcmeCertificate> {
        let all = self.listeners.iter().filter_map(|listener| listener.tls.as_ref()).flat_map(|tls| &tls.certificates);
        let wanted = all.filter_map(|source| match source {
            CertificateSource::Acme(certificate) => Some(certificate.clone()),
            CertificateSource::Files(_) => None,
        });
        let mut wanted: Vec<_> = wanted.collect();
        wanted.sort();
        wanted.dedup();
        wanted
    }

    /// Where the fleet's journal is; `None`: this node is a fleet of its own.
    pub fn journal_redis(&self) -> Option<&Redis> {
        self.journal.redis.as_ref().or_else(|| Some(&self.redis.as_ref()?.server))
    }
}

/// What a node does with requests while it is cut off from the fleet's journal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnCutoff {
    #[default]
    Serve,
    Revalidate,
    Bypass,
}

impl OnCutoff {
    /// As in the configuration.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Serve => "serve",
            Self::Revalidate => "revalidate",
            Self::Bypass => "bypass",
        }
    }
}

/// How leases for fetches are held and waited for, where there is a tier that the fleet shares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lease {
    pub enabled: bool,
    /// Longest wait for another node's fetch.
    pub wait: Duration,
    /// So long after its holder died another gets it.
    pub ttl: Duration,
    /// So long what came of a fetch is known to nodes that ask later.
    pub kept: Duration,
}

/// The name of the listener for other nodes.
pub const SHIELD_LISTENER: &str = "shield";

/// The origin shield.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shield {
    /// Where other nodes reach this one; `None`: nowhere.
    pub listen: Option<SocketAddr>,
    /// None: there is no shield.
    pub peers: Vec<ShieldPeer>,
    /// Our own name among the peers, as [`peer_name`] writes it; there where `listen` is.
    pub advertise: Option<String>,
    /// There where anything of it is on.
    pub secret: Option<Secret>,
    /// `None`: nodes speak plain text.
    pub tls: Option<ShieldTls>,
    pub connect_timeout: Duration,
    /// From the request sent to the head of the answer.
    pub first_byte_timeout: Duration,
    /// Between two reads of the body.
    pub read_timeout: Duration,
    /// A connection on which nothing comes for this long is asked whether the peer is there, and closed after as long again.
    pub keep_alive: Duration,
    /// Failures in a row after which a peer is not asked...
    pub failures: u32,
    /// ...for this long at first; doubling up to the second.
    pub back_off: Duration,
    pub back_off_max: Duration,
    /// How long the owner waits for purges that the asker knows of and it does not yet.
    pub position_wait: Duration,
    /// For how long after it began, or came back, a node asks who stood in for it for what it owns; `None`: never.
    pub warm_time: Option<Duration>,
    /// How long it waits for that answer.
    pub warm_budget: Duration,
}

impl Shield {
    /// Whether this node asks others, or is asked.
    pub fn is_on(&self) -> bool {
        self.listen.is_some() || !self.peers.is_empty()
    }
}

/// TLS between nodes: whoever asks and whoever is asked show what the same authorities certified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShieldTls {
    pub certificate: CertificateFiles,
    pub authorities: PemFile,
    /// `None`: the certificate of a node is for the host that it has among the peers.
    pub server_name: Option<String>,
}

impl ShieldTls {
    /// From the connection to the end of a handshake that another node begins.
    const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
    /// Handshakes at a time; more wait.
    const HANDSHAKES: usize = 1024;

    /// How other nodes are asked.
    pub fn towards_owners(&self) -> UpstreamTls {
        UpstreamTls {
            verify: true,
            roots: Some(self.authorities.clone()),
            certificate: Some(self.certificate.clone()),
            server_name: self.server_name.clone(),
            min_version: TlsVersion::Tls13,
        }
    }

    /// How other nodes ask.
    fn towards_askers(&self) -> ListenerTls {
        ListenerTls {
            certificates: vec![CertificateSource::Files(self.certificate.clone())],
            min_version: TlsVersion::Tls13,
            suites: Vec::new(),
            http2: true,
            handshake_timeout: Self::HANDSHAKE_TIMEOUT,
            handshakes: Self::HANDSHAKES,
            ticket_key: None,
            client_certificates: Some(Arc::new(ClientCertificates {
                asked: Asked::Required,
                authorities: Some(self.authorities.clone()),
                revoked: None,
                told: Told::Nothing,
            })),
        }
    }
}

/// Where other nodes are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ShieldPeer {
    One {
        host: String,
        port: u16,
    },
    /// One peer for each address of the name.
    Names {
        host: String,
        port: u16,
    },
}

/// What a node is called among its peers: `host:port`, an IPv6 address in brackets.
pub fn peer_name(host: &str, port: u16) -> String {
    if host.contains(':') && !host.starts_with('[') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

#[derive(Debug, Clone)]
pub struct Log {
    pub level: String,
    pub format: LogFormat,
    pub access: AccessLog,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    Text,
    Json,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccessLog {
    pub target: LogTarget,
    pub format: AccessFormat,
    /// Lines that may wait for the writer; more are dropped and counted.
    pub queue: usize,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LogTarget {
    Off,
    Stdout,
    /// Reopened on SIGUSR1.
    File(PathBuf),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AccessFormat {
    Combined,
    Json,
    Ecs,
}

/// The tier that the fleet shares.
#[derive(Debug, Clone, PartialEq)]
pub struct RedisTier {
    pub server: Redis,
    /// What a look-up may take.
    pub lookup_budget: Duration,
    /// For so long what is not there is not looked for again.
    pub remember_misses: Duration,
    /// Responses that may wait to be written, and their bytes.
    pub queue_entries: usize,
    pub queue_bytes: u64,
    /// What is kept there is sealed with it; without one a checksum shows damage.
    pub key: Option<Secret>,
}

/// What of a route's responses the fleet shares.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RedisAdmission {
    pub enabled: bool,
    /// Longer bodies are not shared.
    pub max_object_bytes: u64,
    /// For so long a response is kept there at most.
    pub max_ttl: Duration,
    /// `text/html`, `image/*`, lower case; empty: all.
    pub content_types: Vec<String>,
}

impl Default for RedisAdmission {
    fn default() -> Self {
        Self { enabled: true, max_object_bytes: 8 << 20, max_ttl: Duration::from_secs(7 * 86_400), content_types: Vec::new() }
    }
}

/// A deployment of Redis and how to connect to it.
#[derive(Debug, Clone, PartialEq)]
pub struct Redis {
    pub mode: RedisMode,
    /// The server, the Sentinels, or some nodes of the Cluster; at least one.
    pub addresses: Vec<RedisAddress>,
    pub sentinel_password: Option<Secret>,
    pub user: Option<String>,
    pub password: Option<Secret>,
    pub database: u32,
    pub tls: RedisTls,
    /// What the names of all keys begin with; no braces, which mean something to a Cluster.
    pub prefix: String,
    /// For a connection to be made, Sentinel and login included.
    pub connect_timeout: Duration,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RedisMode {
    Standalone,
    /// The addresses are Sentinels' that know this master.
    Sentinel {
        master: String,
    },
    Cluster,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RedisAddress {
    Tcp { host: String, port: u16 },
    Tls { host: String, port: u16 },
    Unix { path: PathBuf },
}

impl fmt::Display for RedisAddress {
    /// As it is written.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (scheme, host, port) = match self {
            Self::Tcp { host, port } => ("redis", host, port),
            Self::Tls { host, port } => ("rediss", host, port),
            Self::Unix { path } => return write!(f, "unix:{}", path.display()),
        };
        if host.contains(':') { write!(f, "{scheme}://[{host}]:{port}") } else { write!(f, "{scheme}://{host}:{port}") }
    }
}

/// For `rediss://`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RedisTls {
    /// Trusted instead of the system's.
    pub roots: Option<PemFile>,
    /// Shown to Redis; both or none.
    pub certificate: Option<PemFile>,
    pub key: Option<PemFile>,
}

/// A file that was read.
#[derive(Clone, PartialEq, Eq)]
pub struct PemFile {
    pub path: PathBuf,
    pub pem: Vec<u8>,
}

impl fmt::Debug for PemFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.path)
    }
}

/// Text that never shows.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}
