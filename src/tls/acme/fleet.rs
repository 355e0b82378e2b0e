//! What the nodes of a fleet share through Redis: certificates with their keys, the account, answers to challenges, how often was
//! asked in vain, and whose turn it is to ask.
//!
//! All of it is encrypted (AES-256-GCM) with a secret of the fleet, and bound to its name: who may write in Redis can take a
//! record away or put an older one back, and nothing more. Redis away is no failure: nobody waits for it for longer than a
//! budget, and every node goes on with what it has.

use crate::clock;
use crate::config::settings::{Challenge, Secret};
use crate::observe::metrics::RedisUse;
use crate::redis::{FromRedisValue, Link, Message, Redis, RedisError, Script, cmd};
use crate::tls::tickets;
use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use parking_lot::Mutex;
use std::collections::{HashMap, VecDeque};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::Instant;

/// What Redis may take for an answer.
const BUDGET: Duration = Duration::from_secs(1);
/// So long after its holder died another node gets a turn. It is renewed three times in that.
const TURN_TTL: Duration = Duration::from_secs(30);
/// News that may wait to be read; beyond, they are heard of with the next.
const NEWS_MAX: usize = 64;
/// Answers that are remembered to stand somewhere; the oldest is forgotten for another.
const ANNOUNCED_MAX: usize = 256;
/// Of the form of records.
const VERSION: u8 = 1;

/// The fleet, as far as certificates of one directory go.
pub struct Fleet {
    shared: Arc<Shared>,
    news: News,
    announced: Announced,
    listener: AbortHandle,
}

/// Who is to hear of what, by name: it changes whenever something may be new.
type News = Arc<Mutex<HashMap<String, watch::Sender<u64>>>>;

/// Names under which nodes have lately put answers to challenges, and until when those stand.
type Announced = Arc<Mutex<VecDeque<(String, Instant)>>>;

struct Shared {
    redis: Redis,
    link: Link,
    channel: String,
    /// The directory: fleets with several keep them apart.
    scope: String,
    seal: Seal,
    renew: Script,
    end: Script,
    /// That a record cannot be opened is told once, until one can.
    is_strange: Mutex<bool>,
}

/// Why it is not known what stands under a name.
#[derive(Debug, thiserror::Error)]
pub enum Unknown {
    #[error(transparent)]
    Redis(#[from] RedisError),
    /// It is of another secret or version, or damaged.
    #[error("what stands there cannot be opened")]
    Strange,
}

/// Whose turn it is.
pub enum Turn {
    /// This node's, until it is dropped.
    Own(#[expect(dead_code, reason = "it is held, and ends with its holder")] Lock),
    /// Another node's.
    Others,
    /// Redis does not say.
    Unknown,
}

/// What another node answers.
pub type Asked = Pin<Box<dyn Future<Output = Option<String>> + Send>>;

/// A turn, renewed while this lives.
pub struct Lock {
    shared: Arc<Shared>,
    name: String,
    key: String,
    token: String,
    renewal: AbortHandle,
}

const RENEW: &str = "if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end return redis.call('PEXPIRE', KEYS[1], ARGV[2])";
const END: &str = "if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end return redis.call('DEL', KEYS[1])";

impl Fleet {
    /// To be called on a runtime. `scope`: what is shared is that of one directory. `answers_last`: how long an answer stands that was
    /// told of.
    pub fn new(redis: &Redis, secret: &Secret, scope: &str, answers_last: Duration) -> Self {
        let channel = redis.keys().channel("acme");
        let shared = Arc::new(Shared {
            link: redis.link(RedisUse::Acme),
            redis: redis.clone(),
            channel: channel.clone(),
            scope: scope.to_owned(),
            seal: Seal::new(secret),
            renew: Script::new(RENEW),
            end: Script::new(END),
            is_strange: Mutex::new(false),
        });
        let news = News::default();
        let announced = Announced::default();
        let (told, answers, mut messages) = (Arc::clone(&news), Arc::clone(&announced), redis.subscribe(vec![channel], NEWS_MAX));
        let listener = tokio::spawn(async move {
            while let Some(message) = messages.next().await {
                let told = told.lock();
                let hear = |name: &watch::Sender<u64>| name.send_modify(|count| *count += 1);
                match message {
                    // What was missed while nobody listened is as good as heard of now.
                    Message::Listening => told.values().for_each(hear),
                    Message::Published { message, .. } => {
                        let Ok(name) = std::str::from_utf8(&message) else { continue };
                        told.get(name).into_iter().for_each(hear);
                        if is_answer(name) {
                            announce(&mut answers.lock(), name, Instant::now() + answers_last);
                        }
                    }
                }
            }
        });
        Self { shared, news, announced, listener: listener.abort_handle() }
    }

    /// Changes whenever something may be new under this name.
    pub fn news_of(&self, name: &str) -> watch::Receiver<u64> {
        self.news.lock().entry(name.to_owned()).or_default().subscribe()
    }

    /// Gives others time to be there at the start.
    pub async fn ready(&self) {
        let _ = self.shared.link.ready(BUDGET).await; // the commands tell
    }

    /// What stands under this name.
    pub async fn get(&self, name: &str) -> Result<Option<Vec<u8>>, Unknown> {
        self.shared.get(name).await
    }

    /// Puts it there for so long.
    pub async fn put(&self, name: &str, bytes: &[u8], lasts: Duration) -> Result<(), RedisError> {
        let key = self.shared.key(name);
        let Some(sealed) = self.shared.seal.close(&key, bytes) else { return Ok(()) }; // nothing is shared that is not sealed
        let lasts_ms = clock::ms(lasts).max(1);
        self.shared.ask(cmd("SET").arg(&key).arg(sealed).arg("PX").arg(lasts_ms)).await
    }

    /// Puts it there for so long, unless something stands there; whether it does.
    pub async fn put_first(&self, name: &str, bytes: &[u8], lasts: Duration) -> Result<bool, RedisError> {
        let key = self.shared.key(name);
        let Some(sealed) = self.shared.seal.close(&key, bytes) else { return Ok(true) }; // nothing is shared that is not sealed
        let lasts_ms = clock::ms(lasts).max(1);
        let set: Option<String> = self.shared.ask(cmd("SET").arg(&key).arg(sealed).arg("NX").arg("PX").arg(lasts_ms)).await?;
        Ok(set.is_some())
    }

    /// Puts an answer to a challenge there, and tells the others that it stands.
    pub async fn put_answer(&self, challenge: Challenge, name: &str, text: &str, lasts: Duration) -> Result<(), RedisError> {
        let name = answer_name(challenge, name);
        self.put(&name, text.as_bytes(), lasts).await?;
        self.tell(&name).await
    }

    pub async fn remove(&self, name: &str) -> Result<(), RedisError> {
        self.shared.ask(cmd("DEL").arg(self.shared.key(name))).await
    }

    /// Tells the others that something is new under this name.
    pub async fn tell(&self, name: &str) -> Result<(), RedisError> {
        self.shared.ask(cmd("PUBLISH").arg(&self.shared.channel).arg(name)).await
    }

    /// Asks for the turn of this name.
    pub async fn turn(&self, name: &str) -> Turn {
        let (shared, key) = (&self.shared, self.shared.key(&format!("turn:{name}")));
        let token = format!("{:032x}", rand::random::<u128>());
        let set: Result<Option<String>, _> =
            shared.ask(cmd("SET").arg(&key).arg(&token).arg("NX").arg("PX").arg(clock::ms(TURN_TTL))).await;
        match set {
            Ok(Some(_)) => {
                let renewal = tokio::spawn(renew(Arc::clone(shared), key.clone(), token.clone())).abort_handle();
                Turn::Own(Lock { shared: Arc::clone(shared), name: name.to_owned(), key, token, renewal })
            }
            Ok(None) => Turn::Others,
            Err(_) => Turn::Unknown,
        }
    }

    /// What other nodes answer to this challenge.
    pub fn asker(&self, challenge: Challenge) -> impl Fn(&str) -> Asked + Send + Sync + 'static {
        let shared = Arc::clone(&self.shared);
        move |name| {
            let (shared, name) = (Arc::clone(&shared), answer_name(challenge, name));
            Box::pin(async move { String::from_utf8(shared.get(&name).await.ok()??).ok() }) as Asked
        }
    }

    /// Whether a node has told of an answer to this challenge.
    pub fn announced(&self, challenge: Challenge) -> impl Fn(&str) -> bool + Send + Sync + 'static {
        let announced = Arc::clone(&self.announced);
        move |name| is_announced(&mut announced.lock(), &answer_name(challenge, name), Instant::now())
    }
}

fn answer_name(challenge: Challenge, name: &str) -> String {
    format!("{}:{name}", challenge.as_str())
}

fn is_answer(name: &str) -> bool {
    let challenge = name.split_once(':').map(|(challenge, _)| challenge);
    [Challenge::Http01, Challenge::TlsAlpn01].iter().any(|known| challenge == Some(known.as_str()))
}

fn announce(answers: &mut VecDeque<(String, Instant)>, name: &str, until: Instant) {
    answers.retain(|(known, _)| known != name);
    if answers.len() == ANNOUNCED_MAX {
        answers.pop_front();
    }
    answers.push_back((name.to_owned(), until));
}

/// All stand for the same time, so that the oldest lapses first. What has lapsed is a stranger's question as any other: a host stays
/// known to everybody.
fn is_announced(answers: &mut VecDeque<(String, Instant)>, name: &str, now: Instant) -> bool {
    while answers.pop_front_if(|(_, until)| *until <= now).is_some() {}
    answers.iter().any(|(known, _)| known == name)
}

impl Drop for Fleet {
    fn drop(&mut self) {
        self.listener.abort();
    }
}

impl Shared {
    fn key(&self, name: &str) -> String {
        self.redis.keys().acme(format_args!("{}:{name}", self.scope))
    }

    async fn ask<T: FromRedisValue>(&self, command: &crate::redis::Cmd) -> Result<T, RedisError> {
        self.link.query(command, BUDGET).await
    }

    async fn get(&self, name: &str) -> Result<Option<Vec<u8>>, Unknown> {
        let key = self.key(name);
        let Some(record) = self.ask::<Option<Vec<u8>>>(cmd("GET").arg(&key)).await? else { return Ok(None) };
        let opened = self.seal.open(&key, &record);
        let was_strange = std::mem::replace(&mut *self.is_strange.lock(), opened.is_none());
        if opened.is_none() && !was_strange {
            let remedy = "give all nodes the same acme.seal_file";
            tracing::error!(key, remedy, "what the fleet shares for ACME cannot be opened, and is not used");
        }
        opened.map(Some).ok_or(Unknown::Strange)
    }
}

/// Until it is another's.
async fn renew(shared: Arc<Shared>, key: String, token: String) {
    loop {
        tokio::time::sleep(TURN_TTL / 3).await;
        let renewed = shared.link.script(&shared.renew, &[&key], &[&token, &clock::ms(TURN_TTL).to_string()], BUDGET).await;
        if matches!(renewed, Ok(false)) {
            return;
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        self.renewal.abort();
        let shared = Arc::clone(&self.shared);
        let [name, key, token] = [&mut self.name, &mut self.key, &mut self.token].map(std::mem::take);
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                // It lapses where nobody can be told; those who wait look for themselves then.
                if let Ok(true) = shared.link.script(&shared.end, &[&key], &[&token], BUDGET).await {
                    let told: Result<(), _> = shared.ask(cmd("PUBLISH").arg(&shared.channel).arg(name)).await;
                    drop(told);
                }
            });
        }
    }
}

/// Encrypts records, each bound to its name.
struct Seal(Option<RandomizedNonceKey>);

impl Seal {
    fn new(secret: &Secret) -> Self {
        let key = tickets::digest(b"tiercel acme", secret.expose().as_bytes());
        Self(RandomizedNonceKey::new(&AES_256_GCM, &key).ok())
    }

    fn close(&self, name: &str, bytes: &[u8]) -> Option<Vec<u8>> {
        let mut sealed = bytes.to_vec();
        let nonce = self.0.as_ref()?.seal_in_place_append_tag(Aad::from(name.as_bytes()), &mut sealed).ok()?;
        Some([&[VERSION][..], nonce.as_ref(), &sealed].concat())
    }

    /// `None`: of another secret, name or version, or damaged.
    fn open(&self, name: &str, record: &[u8]) -> Option<Vec<u8>> {
        let (version, rest) = record.split_first()?;
        let (nonce, sealed) = rest.split_first_chunk::<NONCE_LEN>().filter(|_| *version == VERSION)?;
        let mut bytes = sealed.to_vec();
        let nonce = Nonce::assume_unique_for_key(*nonce);
        let length = self.0.as_ref()?.open_in_place(nonce, Aad::from(name.as_bytes()), &mut bytes).ok()?.len();
        bytes.truncate(length);
        Some(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn seal(secret: &str) -> Seal {
        Seal::new(&Secret::new(secret))
    }

    #[test]
    fn only_the_fleet_opens_what_it_sealed_and_only_under_its_name() {
        let one = seal("a secret of the fleet");
        let record = one.close("name", b"key").unwrap();
        assert_eq!(seal("a secret of the fleet").open("name", &record).as_deref(), Some(&b"key"[..]));
        assert_eq!(one.open("other name", &record), None);
        assert_eq!(seal("another secret").open("name", &record), None);
        assert!(!record.windows(3).any(|part| part == b"key"));
        assert_ne!(one.close("name", b"key").unwrap(), record, "each with a nonce of its own");
        for end in 0..record.len() {
            assert_eq!(one.open("name", &record[..end]), None);
        }
    }

    #[test]
    fn answers_that_were_told_of_are_remembered_up_to_a_bound() {
        let mut answers = VecDeque::new();
        for name in (0..=ANNOUNCED_MAX).map(|number| answer_name(Challenge::Http01, &number.to_string())) {
            assert!(is_answer(&name) && !is_answer("account"));
            announce(&mut answers, &name, Instant::now());
            announce(&mut answers, &name, Instant::now());
        }
        assert_eq!((answers.len(), &answers[0].0[..], &answers[ANNOUNCED_MAX - 1].0[..]), (ANNOUNCED_MAX, "http-01:1", "http-01:256"));
    }

    #[test]
    fn an_answer_that_was_told_of_is_forgotten_when_it_no_longer_stands() {
        let (mut answers, now, second) = (VecDeque::new(), Instant::now(), Duration::from_secs(1));
        announce(&mut answers, "tls-alpn-01:a.example", now + second);
        announce(&mut answers, "tls-alpn-01:b.example", now + 2 * second);
        announce(&mut answers, "tls-alpn-01:a.example", now + 3 * second); // another order
        assert!(is_announced(&mut answers, "tls-alpn-01:a.example", now + 2 * second));
        assert!(!is_announced(&mut answers, "tls-alpn-01:b.example", now + 2 * second));
        assert!(!is_announced(&mut answers, "tls-alpn-01:a.example", now + 3 * second));
        assert!(answers.is_empty());
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic_and_no_changed_record_is_opened(
            bytes in proptest::collection::vec(any::<u8>(), 0..64), at in any::<prop::sample::Index>(), flip in 1_u8..
        ) {
            let seal = seal("a secret of the fleet");
            prop_assert_eq!(seal.open("name", &bytes), None);
            let mut record = seal.close("name", &bytes).unwrap();
            let at = at.index(record.len());
            record[at] ^= flip;
            prop_assert_eq!(seal.open("name", &record), None);
        }
    }
}
