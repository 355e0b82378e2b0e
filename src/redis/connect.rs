//! Making a connection: where to, with what, and whom it reached.

use super::keys::slot;
use super::{RedisError, Use};
use crate::clock;
use crate::config::settings::{self, RedisAddress, RedisMode};
use ::redis::aio::{ConnectionLike, MultiplexedConnection};
use ::redis::cluster_async::ClusterConnection;
use ::redis::cluster_routing::{Route, RoutingInfo, SingleNodeRoutingInfo, SlotAddr};
use ::redis::{
    AsyncConnectionConfig, Client, ClientTlsConfig, Cmd, ConnectionAddr, IntoConnectionInfo, Pipeline, ProtocolVersion, PushInfo,
    RedisConnectionInfo, RedisResult, TlsCertificates, Value,
};
use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::task::JoinSet;

/// Commands that may be on their way in one connection; more wait in the caller, within its time.
const COMMANDS_UNDER_WAY: usize = 4096;

/// Where connections lead.
pub(super) struct Target {
    mode: RedisMode,
    addresses: Vec<RedisAddress>,
    /// Which of the addresses is tried next.
    turn: AtomicUsize,
    login: RedisConnectionInfo,
    sentinel_login: RedisConnectionInfo,
    certificates: Option<TlsCertificates>,
    connect_timeout: Duration,
}

/// A connection, to be cloned for each command.
#[derive(Clone)]
pub(super) enum Connection {
    One(MultiplexedConnection),
    Cluster(ClusterConnection),
}

/// Whom a connection reached. Another server, or another history of the same one, has other ids.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Server {
    /// Changes when the process restarts; empty where the user may not ask (`+info`), and in a Cluster.
    pub run_id: String,
    /// Changes when a replica becomes master; empty like `run_id`.
    pub replication_id: String,
    pub role: Role,
    /// What it does when its memory is full (`maxmemory-policy`); empty where it has no limit, and like `run_id`.
    pub when_full: String,
}

/// What is wrong with a `maxmemory-policy` for what connections of this use keep there.
pub fn unsuited(policy: &str, purpose: Use) -> Option<&'static str> {
    match (policy, purpose) {
        ("noeviction", Use::Bodies) => Some("takes no more when it is full"),
        ("noeviction" | "", _) => None,
        (_, Use::Journal) if !policy.starts_with("volatile-") => Some("may evict the journal, which costs the whole tier"),
        _ => None,
    }
}

/// A server that holds keys: in a Cluster the master of a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Holder(Option<u16>);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Role {
    Master,
    Replica,
    #[default]
    Unknown,
}

impl Target {
    pub fn new(settings: &settings::Redis) -> Result<Self, RedisError> {
        let login = RedisConnectionInfo::default().set_db(settings.database.into());
        let login = settings.user.as_ref().map_or(login.clone(), |user| login.set_username(user));
        let login = settings.password.as_ref().map_or(login.clone(), |password| login.set_password(password.expose()));
        let sentinel_login = RedisConnectionInfo::default();
        let sentinel_login =
            settings.sentinel_password.as_ref().map_or(sentinel_login.clone(), |password| sentinel_login.set_password(password.expose()));
        let is_encrypted = settings.addresses.iter().any(|address| matches!(address, RedisAddress::Tls { .. }));
        if is_encrypted {
            // The one provider of this program; an error says that it is installed already.
            let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        }
        let tls = &settings.tls;
        let pem = |file: &Option<settings::PemFile>| file.as_ref().map(|file| file.pem.clone());
        let client_tls =
            pem(&tls.certificate).zip(pem(&tls.key)).map(|(client_cert, client_key)| ClientTlsConfig { client_cert, client_key });
        let certificates = is_encrypted.then(|| TlsCertificates { client_tls, root_cert: pem(&tls.roots) });
        let target = Self {
            mode: settings.mode.clone(),
            addresses: settings.addresses.clone(),
            turn: AtomicUsize::new(0),
            login,
            sentinel_login,
            certificates,
            connect_timeout: settings.connect_timeout,
        };
        for address in &target.addresses {
            target.client(address, &target.login)?; // certificates are read here
        }
        Ok(target)
    }

    /// Whether a replica is the wrong one: with Sentinel there is a master somewhere.
    pub fn wants_master(&self) -> bool {
        matches!(self.mode, RedisMode::Sentinel { .. })
    }

    pub fn connect_timeout(&self) -> Duration {
        self.connect_timeout
    }

    /// One attempt, for as long as connecting may take in all.
    pub async fn connect(&self) -> Result<Connection, RedisError> {
        tokio::time::timeout(self.connect_timeout, self.connect_once()).await.unwrap_or(Err(RedisError::Timeout))
    }

    async fn connect_once(&self) -> Result<Connection, RedisError> {
        match &self.mode {
            RedisMode::Cluster => Ok(Connection::Cluster(self.cluster()?.get_async_connection().await?)),
            RedisMode::Standalone => Ok(Connection::One(self.open(self.next_address(), None).await?)),
            RedisMode::Sentinel { master } => Ok(Connection::One(self.open(&self.master(master).await?, None).await?)),
        }
    }

    /// A connection on which channels can be listened to: in a Cluster any node passes on what is published.
    pub async fn connect_for_channels(&self, pushed: impl ::redis::aio::AsyncPushSender) -> Result<MultiplexedConnection, RedisError> {
        let connect = async {
            let address = match &self.mode {
                RedisMode::Standalone | RedisMode::Cluster => self.next_address().clone(),
                RedisMode::Sentinel { master } => self.master(master).await?,
            };
            self.open(&address, Some(AsyncConnectionConfig::new().set_push_sender(pushed))).await
        };
        tokio::time::timeout(self.connect_timeout, connect).await.unwrap_or(Err(RedisError::Timeout))
    }

    /// Asks one Sentinel after the other where the master is.
    async fn master(&self, name: &str) -> Result<RedisAddress, RedisError> {
        let mut failure = RedisError::Away;
        for _ in &self.addresses {
            let sentinel = self.next_address();
            match self.ask_sentinel(sentinel, name).await {
                Ok(address) => return Ok(address),
                Err(error) => failure = error,
            }
        }
        Err(failure)
    }

    async fn ask_sentinel(&self, sentinel: &RedisAddress, name: &str) -> Result<RedisAddress, RedisError> {
        // A Sentinel that hangs must leave time for the next one, and for the master.
        let share = self.connect_timeout / (self.addresses.len() as u32 + 1);
        let ask = async {
            let mut connection =
                self.client(sentinel, &self.sentinel_login)?.get_multiplexed_async_connection_with_config(&plain()).await?;
            let mut question = ::redis::cmd("SENTINEL");
            question.arg("GET-MASTER-ADDR-BY-NAME").arg(name);
            let answer: Option<(String, u16)> = question.query_async(&mut connection).await?;
            answer.ok_or_else(|| RedisError::Misconfigured(format!("Sentinel knows no master named \"{name}\"")))
        };
        let (host, port) = tokio::time::timeout(share, ask).await.unwrap_or(Err(RedisError::Timeout))?;
        Ok(match sentinel {
            RedisAddress::Tls { .. } => RedisAddress::Tls { host, port },
            RedisAddress::Tcp { .. } | RedisAddress::Unix { .. } => RedisAddress::Tcp { host, port },
        })
    }

    async fn open(&self, address: &RedisAddress, config: Option<AsyncConnectionConfig>) -> Result<MultiplexedConnection, RedisError> {
        let listens = config.is_some();
        // Messages of channels come beside answers in the newer protocol only.
        let login = if listens { self.login.clone().set_protocol(ProtocolVersion::RESP3) } else { self.login.clone() };
        let config = config.map_or_else(plain, |config| config.set_connection_timeout(None).set_response_timeout(None));
        Ok(self.client(address, &login)?.get_multiplexed_async_connection_with_config(&config).await?)
    }

    fn client(&self, address: &RedisAddress, login: &RedisConnectionInfo) -> Result<Client, RedisError> {
        let info = connection_address(address).into_connection_info()?.set_redis_settings(login.clone());
        Ok(match (&self.certificates, address) {
            (Some(certificates), RedisAddress::Tls { .. }) => Client::build_with_tls(info, certificates.clone())?,
            _ => Client::open(info)?,
        })
    }

    fn cluster(&self) -> Result<::redis::cluster::ClusterClient, RedisError> {
        let mut nodes = Vec::new();
        for address in &self.addresses {
            nodes.push(connection_address(address).into_connection_info()?.set_redis_settings(self.login.clone()));
        }
        let builder = ::redis::cluster::ClusterClient::builder(nodes)
            .connection_timeout(self.connect_timeout)
            .response_timeout(CLUSTER_ANSWER_MAX)
            .connection_concurrency_limit(COMMANDS_UNDER_WAY)
            .retries(CLUSTER_RETRIES)
            .min_retry_wait(CLUSTER_WAIT_MS)
            .max_retry_wait(CLUSTER_WAIT_MS);
        let builder = match self.certificates.clone() {
            Some(certificates) => builder.certs(certificates),
            None => builder,
        };
        Ok(builder.build()?)
    }

    fn next_address(&self) -> &RedisAddress {
        &self.addresses[self.turn.fetch_add(1, Ordering::Relaxed) % self.addresses.len()]
    }
}

/// Following a slot that moved takes a second attempt, and one that is moving a third.
const CLUSTER_RETRIES: u32 = 2;
const CLUSTER_WAIT_MS: u64 = 10;
/// Time is kept by who waits, which a blocking read does for long; there has to be some bound here.
const CLUSTER_ANSWER_MAX: Duration = Duration::from_secs(60);

/// Time is kept by who waits.
fn plain() -> AsyncConnectionConfig {
    AsyncConnectionConfig::new().set_connection_timeout(None).set_response_timeout(None).set_concurrency_limit(COMMANDS_UNDER_WAY)
}

fn connection_address(address: &RedisAddress) -> ConnectionAddr {
    match address.clone() {
        RedisAddress::Tcp { host, port } => ConnectionAddr::Tcp(host, port),
        RedisAddress::Tls { host, port } => ConnectionAddr::TcpTls { host, port, insecure: false, tls_params: None },
        RedisAddress::Unix { path } => ConnectionAddr::Unix(path),
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, address) in self.addresses.iter().enumerate() {
            write!(f, "{}{address}", if at > 0 { ", " } else { "" })?;
        }
        match &self.mode {
            RedisMode::Standalone => Ok(()),
            RedisMode::Sentinel { master } => write!(f, " (Sentinel, {master})"),
            RedisMode::Cluster => write!(f, " (Cluster)"),
        }
    }
}

impl Connection {
    pub async fn send(&mut self, command: &Cmd) -> RedisResult<Value> {
        let answer = match self {
            Self::One(connection) => connection.req_packed_command(command).await,
            Self::Cluster(connection) => connection.req_packed_command(command).await,
        };
        answer?.extract_error()
    }

    pub async fn send_all<T: ::redis::FromRedisValue>(&mut self, pipeline: &Pipeline) -> RedisResult<T> {
        match self {
            Self::One(connection) => pipeline.query_async(connection).await,
            Self::Cluster(connection) => pipeline.query_async(connection).await,
        }
    }

    /// Sends commands together, whatever their keys: what each came to, in their order.
    pub async fn send_each(&mut self, commands: Vec<Cmd>) -> RedisResult<Vec<RedisResult<Value>>> {
        match self {
            Self::One(connection) => {
                let mut all = ::redis::pipe();
                let count = commands.len();
                for command in commands {
                    all.add_command(command);
                }
                let answers = connection.req_packed_commands(&all, 0, count).await?;
                Ok(answers.into_iter().map(Value::extract_error).collect())
            }
            // A pipeline goes to one slot there.
            Self::Cluster(connection) => {
                let mut sent = JoinSet::new();
                for (number, command) in commands.into_iter().enumerate() {
                    let mut connection = connection.clone();
                    sent.spawn(async move { (number, connection.req_packed_command(&command).await.and_then(Value::extract_error)) });
                }
                let mut answers = sent.join_all().await;
                answers.sort_unstable_by_key(|(number, _)| *number);
                Ok(answers.into_iter().map(|(_, answer)| answer).collect())
            }
        }
    }

    /// Who is there; in a Cluster, the master of a key's slot.
    pub async fn server(&mut self, key: Option<&str>) -> Result<Server, RedisError> {
        let question = ::redis::cmd("INFO");
        let answer = match self {
            Self::One(connection) => connection.req_packed_command(&question).await.and_then(Value::extract_error),
            Self::Cluster(connection) => {
                let Some(key) = key else { return Ok(Server { role: Role::Master, ..Server::default() }) };
                let route = SingleNodeRoutingInfo::SpecificNode(Route::new(slot(key), SlotAddr::Master));
                connection.route_command(question, RoutingInfo::SingleNode(route)).await
            }
        };
        match answer {
            Ok(answer) => {
                Ok(Server::read(&::redis::from_redis_value::<String>(answer).map_err(|error| RedisError::Unexpected(error.to_string()))?))
            }
            Err(error) if error.code() == Some("NOPERM") => Ok(Server::default()),
            Err(error) => Err(error.into()),
        }
    }

    /// The servers that hold keys: one; in a Cluster every master.
    pub async fn holders(&mut self) -> Result<Vec<Holder>, RedisError> {
        let Self::Cluster(connection) = self else { return Ok(vec![Holder(None)]) };
        let slots =
            connection.route_command(::redis::cmd("CLUSTER").arg("SLOTS").take(), RoutingInfo::SingleNode(SingleNodeRoutingInfo::Random));
        let unexpected = |error: ::redis::ParsingError| RedisError::Unexpected(error.to_string());
        let ranges: Vec<Vec<Value>> = ::redis::from_redis_value(slots.await?).map_err(unexpected)?;
        let mut masters: Vec<(Value, u16)> = Vec::new();
        for range in ranges {
            // First slot, last slot, the master, its replicas.
            let mut parts = range.into_iter();
            let (Some(first), Some(master)) = (parts.next(), parts.nth(1)) else { continue };
            if !masters.iter().any(|(known, _)| *known == master) {
                masters.push((master, ::redis::from_redis_value(first).map_err(unexpected)?));
            }
        }
        Ok(masters.into_iter().map(|(_, slot)| Holder(Some(slot))).collect())
    }

    /// What each of [`Self::holders`] does when it is full, as [`Server::when_full`].
    pub async fn policies(&mut self) -> Result<Vec<String>, RedisError> {
        let mut policies = Vec::new();
        for holder in self.holders().await? {
            let (info,): (String,) = self.send_all_to(holder, ::redis::pipe().cmd("INFO").arg("memory")).await?;
            policies.push(Server::read(&info).when_full);
        }
        Ok(policies)
    }

    /// Sends commands together to one of [`Self::holders`], whatever their keys.
    pub async fn send_all_to<T: ::redis::FromRedisValue>(&mut self, holder: Holder, pipeline: &Pipeline) -> Result<T, RedisError> {
        let (Self::Cluster(connection), Holder(Some(slot))) = (&mut *self, holder) else { return Ok(self.send_all(pipeline).await?) };
        let route = SingleNodeRoutingInfo::SpecificNode(Route::new(slot, SlotAddr::Master));
        let answers = connection.route_pipeline(pipeline.clone(), 0, pipeline.len(), route).await?;
        let answers = answers.into_iter().map(Value::extract_error).collect::<RedisResult<Vec<_>>>()?;
        ::redis::from_redis_value(Value::Array(answers)).map_err(|error| RedisError::Unexpected(error.to_string()))
    }

    /// Milliseconds by which the clock there is ahead of ours.
    pub async fn clock_offset(&mut self) -> Result<i64, RedisError> {
        let before = clock::now().wall_ms;
        let answer = self.send(&::redis::cmd("TIME")).await?;
        let between = before.midpoint(clock::now().wall_ms);
        let (seconds, micros): (i64, i64) = ::redis::from_redis_value(answer).map_err(|error| RedisError::Unexpected(error.to_string()))?;
        Ok(seconds.saturating_mul(1000).saturating_add(micros / 1000).saturating_sub(between))
    }
}

impl Server {
    /// Reads what INFO says.
    fn read(info: &str) -> Self {
        let value = |name: &str| info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).unwrap_or_default().trim();
        Self {
            run_id: value("run_id").to_owned(),
            replication_id: value("master_replid").to_owned(),
            role: match value("role") {
                "master" => Role::Master,
                "slave" => Role::Replica,
                _ => Role::Unknown,
            },
            when_full: if matches!(value("maxmemory"), "" | "0") { String::new() } else { value("maxmemory_policy").to_owned() },
        }
    }
}

/// What was pushed on a channel: its name and the message.
pub(super) fn pushed_message(push: PushInfo) -> Option<(String, Vec<u8>)> {
    if push.kind != ::redis::PushKind::Message {
        return None;
    }
    let mut parts = push.data.into_iter().map(::redis::from_redis_value::<Vec<u8>>);
    let (channel, message) = (parts.next()?.ok()?, parts.next()?.ok()?);
    Some((String::from_utf8(channel).ok()?, message))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn info_says_who_is_there() {
        let info = "# Server\r\nredis_version:7.0.15\r\nrun_id:abc\r\n\r\n# Replication\r\nrole:slave\r\nmaster_replid:def\r\nmaster_replid2:000\r\n";
        let server = Server::read(info);
        assert_eq!(server, Server { run_id: "abc".into(), replication_id: "def".into(), role: Role::Replica, when_full: String::new() });
        for (limit, when_full) in [("0", ""), ("1048576", "allkeys-lru")] {
            let info = format!("{info}# Memory\r\nmaxmemory:{limit}\r\nmaxmemory_policy:allkeys-lru\r\n");
            assert_eq!(Server::read(&info).when_full, when_full);
        }
        assert_eq!(Server::read(""), Server::default());
    }

    #[test]
    fn a_policy_suits_what_is_kept_under_it_or_not() {
        let wrong = |policy: &str| [Use::Journal, Use::Bodies, Use::Lookup].map(|purpose| unsuited(policy, purpose).is_some());
        for policy in ["", "volatile-lru", "volatile-ttl"] {
            assert_eq!(wrong(policy), [false; 3], "{policy}");
        }
        assert_eq!(wrong("noeviction"), [false, true, false]);
        assert_eq!(wrong("allkeys-lru"), [true, false, false]);
        assert_eq!(wrong("allkeys-random"), [true, false, false]);
    }
}
