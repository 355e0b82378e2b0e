//! From an endpoint's host to addresses.
//!
//! Literal addresses are used as they are. Names are looked up in `/etc/hosts`, then in the DNS, and kept for their
//! TTL. Nothing is asked before the first request, so a name server that is down never blocks the start. An answer that
//! is a little too old is used while it is being renewed; where asking fails the old addresses stay in use, and a
//! failure without any is remembered shortly, so that a flood of requests does not become a flood of questions.

use super::FetchError;
use crate::clock;
use hickory_resolver::TokioResolver;
use hickory_resolver::config::{LookupIpStrategy, ResolveHosts};
use parking_lot::Mutex;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::pin::pin;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// Bounds on how long an answer is kept, whatever its TTL says.
const TTL_MIN: Duration = Duration::from_secs(1);
const TTL_MAX: Duration = Duration::from_secs(3600);
/// How long what `/etc/hosts` says is kept.
const HOSTS_TTL: Duration = Duration::from_secs(10);
/// How long a failure is remembered before the next question.
const FAILURE_TTL: Duration = Duration::from_secs(2);
/// How long past its TTL an answer is used while it is being renewed; after that requests wait for the new one.
const GRACE: Duration = Duration::from_secs(30);
/// Addresses of one name that are kept.
const ADDRESSES_MAX: usize = 32;
const HOSTS_FILE: &str = "/etc/hosts";

/// A host and what is known of its addresses.
pub(crate) struct Host {
    name: String,
    /// The host is an address.
    literal: Option<Arc<[IpAddr]>>,
    known: Mutex<Known>,
    /// Counts questions that were answered, one way or the other.
    answered: watch::Sender<u64>,
    resolver: OnceLock<Option<TokioResolver>>,
}

/// What is known of a name.
#[derive(Debug, Default)]
struct Known {
    addresses: Option<Arc<[IpAddr]>>,
    /// Until then nothing is asked; `None`: never asked.
    settled_until: Option<Instant>,
    asking: bool,
}

/// What to do about a name now.
#[derive(Debug, PartialEq, Eq)]
enum State {
    Settled(Option<Arc<[IpAddr]>>),
    /// Usable, and time to ask again.
    Renew(Arc<[IpAddr]>),
    Ask,
}

impl Known {
    fn state(&self, now: Instant) -> State {
        let Some(until) = self.settled_until else { return State::Ask };
        match &self.addresses {
            addresses if now < until => State::Settled(addresses.clone()),
            Some(addresses) if now < until + GRACE => State::Renew(addresses.clone()),
            _ => State::Ask,
        }
    }

    fn record(&mut self, answer: Option<Answer>, now: Instant) {
        match answer {
            Some(Answer { addresses, ttl }) => {
                self.addresses = Some(addresses.into());
                self.settled_until = Some(now + ttl.clamp(TTL_MIN, TTL_MAX));
            }
            None => self.settled_until = Some(now + FAILURE_TTL),
        }
    }
}

/// Addresses (at least one) and how long they may be used.
#[derive(Debug, PartialEq, Eq)]
struct Answer {
    addresses: Vec<IpAddr>,
    ttl: Duration,
}

impl Host {
    pub(crate) fn new(host: &str) -> Arc<Self> {
        let name = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let literal = name.parse().ok().map(|address: IpAddr| Arc::from([address]));
        let (answered, _) = watch::channel(0);
        Arc::new(Self { name, literal, known: Mutex::default(), answered, resolver: OnceLock::new() })
    }

    /// The addresses, at least one. Waits at most `limit`, and only where none are known that could be used.
    pub(crate) async fn addresses(self: &Arc<Self>, limit: Duration) -> Result<Arc<[IpAddr]>, FetchError> {
        if let Some(literal) = &self.literal {
            return Ok(literal.clone());
        }
        let deadline = Instant::now() + limit;
        let mut answered = self.answered.subscribe();
        loop {
            let state = self.known.lock().state(Instant::now());
            match state {
                State::Settled(addresses) => return addresses.ok_or(FetchError::Dns),
                State::Renew(addresses) => {
                    self.ask_in_background();
                    return Ok(addresses);
                }
                State::Ask => self.ask_in_background(),
            }
            if !matches!(clock::timeout_at(deadline, pin!(answered.changed())).await, Ok(Ok(()))) {
                return self.known.lock().addresses.clone().ok_or(FetchError::DnsTimeout);
            }
        }
    }

    /// Starts a question unless one is under way: a task per TTL, not per request.
    fn ask_in_background(self: &Arc<Self>) {
        if std::mem::replace(&mut self.known.lock().asking, true) {
            return;
        }
        let question = Question { host: self.clone(), answer: None };
        tokio::spawn(async move {
            let mut question = question;
            question.answer = question.host.ask().await;
        });
    }

    async fn ask(&self) -> Option<Answer> {
        let hosts = tokio::fs::read(HOSTS_FILE).await.unwrap_or_default();
        if let Some(addresses) = in_hosts_file(&String::from_utf8_lossy(&hosts), &self.name) {
            return Some(Answer { addresses, ttl: HOSTS_TTL });
        }
        if is_localhost(&self.name) {
            let addresses = vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
            return Some(Answer { addresses, ttl: TTL_MAX });
        }
        let resolver = self.resolver.get_or_init(resolver).as_ref()?;
        let found = resolver.lookup_ip(self.name.as_str()).await;
        let found = found.inspect_err(|error| tracing::warn!(host = %self.name, %error, "name not resolved")).ok()?;
        let ttl = found.valid_until().saturating_duration_since(std::time::Instant::now());
        let addresses = distinct(found.iter());
        (!addresses.is_empty()).then_some(Answer { addresses, ttl })
    }
}

/// A question under way. Its end is recorded on drop, also where its runtime goes away in the middle.
struct Question {
    host: Arc<Host>,
    answer: Option<Answer>,
}

impl Drop for Question {
    fn drop(&mut self) {
        let mut known = self.host.known.lock();
        known.asking = false;
        known.record(self.answer.take(), Instant::now());
        drop(known);
        self.host.answered.send_modify(|count| *count += 1);
    }
}

/// A resolver by `/etc/resolv.conf`; `None` where that cannot be used. Caching and the hosts file are ours.
fn resolver() -> Option<TokioResolver> {
    let built = TokioResolver::builder_tokio().and_then(|mut builder| {
        let options = builder.options_mut();
        options.cache_size = 0;
        options.use_hosts_file = ResolveHosts::Never;
        options.ip_strategy = LookupIpStrategy::Ipv4AndIpv6;
        builder.build()
    });
    built.inspect_err(|error| tracing::error!(%error, "no resolver for names of upstreams")).ok()
}

fn distinct(addresses: impl Iterator<Item = IpAddr>) -> Vec<IpAddr> {
    let mut all = Vec::new();
    for address in addresses.take(ADDRESSES_MAX) {
        if !all.contains(&address) {
            all.push(address);
        }
    }
    all
}

/// RFC 6761 §6.3: these names are the loopback addresses wherever nothing else says so.
fn is_localhost(name: &str) -> bool {
    let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
    name == "localhost" || name.ends_with(".localhost")
}

/// The addresses that a hosts file gives a name; `None` where it does not have the name.
fn in_hosts_file(text: &str, name: &str) -> Option<Vec<IpAddr>> {
    let name = name.strip_suffix('.').unwrap_or(name);
    let lines = text.lines().filter_map(|line| {
        let mut words = line.split('#').next().unwrap_or_default().split_whitespace();
        let address = words.next()?.parse::<IpAddr>().ok()?;
        words.any(|word| word.eq_ignore_ascii_case(name)).then_some(address)
    });
    Some(distinct(lines)).filter(|addresses| !addresses.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn hosts_file_is_read_as_others_read_it() {
        let text =
            "# comment\n127.0.0.1 localhost Lo\n::1\tlocalhost # app\n10.0.0.1 app app.example\n10.0.0.1 app\nnot-an-address app\n10.0.0.2";
        assert_eq!(in_hosts_file(text, "localhost"), Some(vec![address("127.0.0.1"), address("::1")]));
        assert_eq!(in_hosts_file(text, "LO"), Some(vec![address("127.0.0.1")]));
        assert_eq!(in_hosts_file(text, "app."), Some(vec![address("10.0.0.1")]));
        assert_eq!(in_hosts_file(text, "example"), None);
        assert_eq!(in_hosts_file(text, "10.0.0.2"), None);
    }

    #[test]
    fn localhost_names_need_no_name_server() {
        assert!(is_localhost("localhost") && is_localhost("LOCALHOST.") && is_localhost("app.localhost"));
        assert!(!is_localhost("notlocalhost") && !is_localhost("localhost.example"));
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_is_fresh_then_renewed_then_waited_for() {
        let (mut known, now) = (Known::default(), Instant::now());
        assert_eq!(known.state(now), State::Ask);
        let addresses: Arc<[IpAddr]> = Arc::from([address("10.0.0.1")]);
        let ttl = Duration::from_secs(5);
        known.record(Some(Answer { addresses: addresses.to_vec(), ttl }), now);
        assert_eq!(known.state(now), State::Settled(Some(addresses.clone())));
        assert_eq!(known.state(now + ttl), State::Renew(addresses));
        assert_eq!(known.state(now + ttl + GRACE), State::Ask);
    }

    #[tokio::test(start_paused = true)]
    async fn old_addresses_outlive_a_failure_and_a_failure_alone_is_remembered_shortly() {
        let (mut known, now) = (Known::default(), Instant::now());
        known.record(None, now);
        assert_eq!(known.state(now), State::Settled(None));
        assert_eq!(known.state(now + FAILURE_TTL), State::Ask);
        let addresses: Arc<[IpAddr]> = Arc::from([address("10.0.0.1")]);
        known.record(Some(Answer { addresses: addresses.to_vec(), ttl: Duration::ZERO }), now);
        let later = now + TTL_MIN + GRACE;
        assert_eq!(known.state(later), State::Ask);
        known.record(None, later);
        assert_eq!(known.state(later), State::Settled(Some(addresses)));
    }

    /// As where the process was stopped: the timer fires first, and what came is handed out in the turn after that.
    #[tokio::test(start_paused = true)]
    async fn an_answer_that_came_in_time_is_used_though_it_is_handed_out_after_it() {
        let (host, limit) = (Host::new("app.example"), Duration::from_secs(1));
        host.known.lock().asking = true;
        let answer = Some(Answer { addresses: vec![address("10.0.0.1")], ttl: TTL_MAX });
        let question = Question { host: Arc::clone(&host), answer };
        let handed_out = Instant::now() + limit + clock::LAST_LOOK / 2;
        tokio::spawn(async move {
            tokio::time::sleep_until(handed_out).await;
            drop(question);
        });
        assert_eq!(*host.addresses(limit).await.unwrap(), [address("10.0.0.1")]);
    }

    #[tokio::test]
    async fn literal_addresses_are_not_looked_up() {
        for (host, want) in [("127.0.0.1", "127.0.0.1"), ("[::1]", "::1"), ("::1", "::1")] {
            assert_eq!(*Host::new(host).addresses(Duration::ZERO).await.unwrap(), [address(want)]);
        }
    }

    proptest! {
        #[test]
        fn no_hosts_file_panics(text in "(?s).{0,200}", name in ".{0,10}") {
            in_hosts_file(&text, &name);
        }

        #[test]
        fn a_line_that_was_written_is_found(address: [u8; 4], name in "[a-z][a-z0-9.-]{0,20}[a-z]", before in "[ -~]{0,20}") {
            let text = format!("#{before}\n{}\t other {name} \n", Ipv4Addr::from(address));
            prop_assert_eq!(in_hosts_file(&text, &name), Some(vec![Ipv4Addr::from(address).into()]));
        }
    }
}
