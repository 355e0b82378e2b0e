//! What an authority asks to see that a host is ours (RFC 8555 §8), and what it is answered.
//!
//! While a certificate is being obtained its answers stand here, for whatever listener is asked. Where the nodes of a fleet
//! share them, another node is asked for what is not known here; how, is told by whoever sets that up.

use arc_swap::ArcSwapOption;
use parking_lot::Mutex;
use rustls::ServerConfig;
use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::sync::Semaphore;

/// Where tokens are asked for (RFC 8555 §8.3).
pub const PATH: &str = "/.well-known/acme-challenge/";
/// Longest token that is looked for; the least that an authority sends has 22 characters (RFC 8555 §8).
const TOKEN_BYTES_MAX: usize = 256;
/// Questions of a kind under way to the fleet about answers of which a node has told; a further one is not a challenge.
const ASKED_MAX: usize = 16;
/// The same about others: nearly all are strangers', who so can crowd out only each other.
const STRANGERS_MAX: usize = 4;

/// Answers to challenges under way.
#[derive(Default)]
pub struct Challenges {
    own: Mutex<Own>,
    /// There may be an answer, here or elsewhere: nothing else is looked at without it.
    may_be_any: AtomicBool,
    fleet: ArcSwapOption<Fleet>,
}

#[derive(Default)]
struct Own {
    /// By token: the key authorization.
    texts: HashMap<String, Arc<str>>,
    /// By host: how the handshake goes on.
    certificates: HashMap<String, Arc<ServerConfig>>,
}

/// How the other nodes' answers are asked for.
pub struct Fleet {
    text: Elsewhere<Arc<str>>,
    certificate: Elsewhere<Arc<ServerConfig>>,
    /// Called where more is asked at a time than is asked for.
    full: Box<dyn Fn() + Send + Sync>,
}

/// What other nodes answer to a kind of challenge. Questions of the two kinds do not crowd out each other: a token is known to the
/// authority alone, a host to everybody.
pub struct Elsewhere<T> {
    ask: Ask<T>,
    is_announced: Box<dyn Fn(&str) -> bool + Send + Sync>,
    turns: Semaphore,
    strangers: Semaphore,
}

/// What a token, or a host, is answered elsewhere.
pub type Ask<T> = Box<dyn Fn(&str) -> Pin<Box<dyn Future<Output = Option<T>> + Send>> + Send + Sync>;

impl<T> Elsewhere<T> {
    /// `is_announced`: whether a node has told of an answer to this token or host. It may stand though nobody was heard to tell of it.
    pub fn new(ask: Ask<T>, is_announced: impl Fn(&str) -> bool + Send + Sync + 'static) -> Self {
        let [turns, strangers] = [ASKED_MAX, STRANGERS_MAX].map(Semaphore::new);
        Self { ask, is_announced: Box::new(is_announced), turns, strangers }
    }
}

impl Fleet {
    pub fn new(text: Elsewhere<Arc<str>>, certificate: Elsewhere<Arc<ServerConfig>>, full: impl Fn() + Send + Sync + 'static) -> Self {
        Self { text, certificate, full: Box::new(full) }
    }

    async fn ask<T>(&self, elsewhere: &Elsewhere<T>, name: &str) -> Option<T> {
        let turns = if (elsewhere.is_announced)(name) { &elsewhere.turns } else { &elsewhere.strangers };
        let Ok(_turn) = turns.try_acquire() else {
            (self.full)();
            return None;
        };
        (elsewhere.ask)(name).await
    }
}

/// An answer that stands while this does.
pub struct Standing {
    challenges: Arc<Challenges>,
    question: Question,
}

/// What is asked.
enum Question {
    Text(String),
    Certificate(String, Arc<ServerConfig>),
}

impl Challenges {
    pub fn may_be_any(&self) -> bool {
        self.may_be_any.load(Ordering::Relaxed)
    }

    /// Answers for this token.
    pub fn put_text(self: &Arc<Self>, token: &str, text: &str) -> Standing {
        self.own.lock().texts.insert(token.to_owned(), text.into());
        self.standing(Question::Text(token.to_owned()))
    }

    /// Answers for this host, lower case.
    pub fn put_certificate(self: &Arc<Self>, host: &str, config: Arc<ServerConfig>) -> Standing {
        self.own.lock().certificates.insert(host.to_owned(), Arc::clone(&config));
        self.standing(Question::Certificate(host.to_owned(), config))
    }

    fn standing(self: &Arc<Self>, question: Question) -> Standing {
        self.look();
        Standing { challenges: Arc::clone(self), question }
    }

    /// Asks other nodes, too, from now on; or not any more.
    pub fn ask_fleet(&self, fleet: Option<Fleet>) {
        self.fleet.store(fleet.map(Arc::new));
        self.look();
    }

    fn look(&self) {
        let own = self.own.lock();
        let is_any = !own.texts.is_empty() || !own.certificates.is_empty() || self.fleet.load().is_some();
        self.may_be_any.store(is_any, Ordering::Relaxed);
    }

    /// The answer to a token that stands here.
    pub fn text(&self, token: &str) -> Option<Arc<str>> {
        self.own.lock().texts.get(token).cloned()
    }

    /// Whether others may have an answer.
    pub fn has_fleet(&self) -> bool {
        self.fleet.load().is_some()
    }

    /// The answer of another node.
    pub async fn text_of_fleet(&self, token: &str) -> Option<Arc<str>> {
        let fleet = self.fleet.load_full()?;
        fleet.ask(&fleet.text, token).await
    }

    /// How the handshake goes on for this host.
    pub async fn certificate(&self, host: &str) -> Option<Arc<ServerConfig>> {
        let own = self.own.lock().certificates.get(host).cloned();
        if own.is_some() {
            return own;
        }
        let fleet = self.fleet.load_full()?;
        fleet.ask(&fleet.certificate, host).await
    }
}

impl Drop for Standing {
    fn drop(&mut self) {
        let mut own = self.challenges.own.lock();
        match &self.question {
            Question::Text(token) => drop(own.texts.remove(token)),
            // Another order may have put its own there since.
            Question::Certificate(host, put) => {
                if own.certificates.get(host).is_some_and(|there| Arc::ptr_eq(there, put)) {
                    own.certificates.remove(host);
                }
            }
        }
        drop(own);
        self.challenges.look();
    }
}

/// The token of a request for this target, in origin form.
pub fn token(target: &[u8]) -> Option<&str> {
    let token = std::str::from_utf8(target.strip_prefix(PATH.as_bytes())?).ok()?;
    is_token(token).then_some(token)
}

/// Base64url, as tokens are (RFC 8555 §8.1).
pub fn is_token(text: &str) -> bool {
    (1..=TOKEN_BYTES_MAX).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_answer_stands_as_long_as_it_is_held() {
        let challenges = Arc::new(Challenges::default());
        assert!(!challenges.may_be_any());
        let one = challenges.put_text("one", "one.key");
        let other = challenges.put_text("other", "other.key");
        assert_eq!(challenges.text("one").as_deref(), Some("one.key"));
        assert_eq!(challenges.text("none"), None);
        drop(one);
        assert_eq!(challenges.text("one"), None);
        assert!(challenges.may_be_any());
        drop(other);
        assert!(!challenges.may_be_any());
    }

    #[tokio::test]
    async fn an_order_that_ends_leaves_the_answer_of_another_for_the_same_host() {
        let challenges = Arc::new(Challenges::default());
        let config = || {
            Arc::new(
                ServerConfig::builder_with_provider(crate::tls::provider(&[]))
                    .with_safe_default_protocol_versions()
                    .unwrap()
                    .with_no_client_auth()
                    .with_cert_resolver(Arc::new(rustls::server::ResolvesServerCertUsingSni::new())),
            )
        };
        let (one, other) = (config(), config());
        let first = challenges.put_certificate("a.example", one);
        let second = challenges.put_certificate("a.example", Arc::clone(&other));
        drop(first);
        assert!(challenges.certificate("a.example").await.is_some_and(|there| Arc::ptr_eq(&there, &other)));
        drop(second);
        assert!(challenges.certificate("a.example").await.is_none());
    }

    #[tokio::test]
    async fn the_fleet_is_asked_only_so_often_at_a_time_and_strangers_crowd_out_nobody_else() {
        let challenges = Arc::new(Challenges::default());
        let gate = Arc::new(Semaphore::new(0));
        let held = Arc::clone(&gate);
        let ask: Ask<Arc<str>> = Box::new(move |token| {
            let (gate, token) = (Arc::clone(&held), token.to_owned());
            Box::pin(async move {
                let _ = gate.acquire().await;
                Some(token.into())
            })
        });
        let text = Elsewhere::new(ask, |token| token.starts_with("told"));
        let questions = Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let counted = Arc::clone(&questions);
        let ask: Ask<Arc<ServerConfig>> = Box::new(move |_| {
            counted.fetch_add(1, Ordering::Relaxed);
            Box::pin(async { None })
        });
        let certificate = Elsewhere::new(ask, |_| true);
        let refused = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&refused);
        challenges.ask_fleet(Some(Fleet::new(text, certificate, move || told.store(true, Ordering::Relaxed))));
        assert!(challenges.may_be_any() && challenges.has_fleet());
        let mut asked = Vec::new();
        for (kind, most) in [("stranger", STRANGERS_MAX), ("told", ASKED_MAX)] {
            for token in (0..most).map(|number| format!("{kind}-{number}")) {
                let challenges = Arc::clone(&challenges);
                asked.push((token.clone(), tokio::spawn(async move { challenges.text_of_fleet(&token).await })));
            }
            tokio::task::yield_now().await;
            assert!(!refused.swap(false, Ordering::Relaxed), "{kind}");
            assert_eq!(challenges.text_of_fleet(kind).await, None, "one too many");
            assert!(refused.swap(false, Ordering::Relaxed), "{kind}");
        }
        assert!(challenges.certificate("a.example").await.is_none());
        assert_eq!(questions.load(Ordering::Relaxed), 1, "those of the other kind have turns of their own");
        gate.close();
        for (token, asked) in asked {
            assert_eq!(asked.await.unwrap().as_deref(), Some(&token[..]));
        }
        challenges.ask_fleet(None);
        assert!(!challenges.may_be_any());
    }

    #[test]
    fn only_what_can_be_a_token_is_looked_for() {
        for (target, found) in [
            (
                "/.well-known/acme-challenge/LoqXcYV8q5ONbJQxbmR7SCTNo3tiAXDfowyjxAjEuX0",
                Some("LoqXcYV8q5ONbJQxbmR7SCTNo3tiAXDfowyjxAjEuX0"),
            ),
            ("/.well-known/acme-challenge/a-_9", Some("a-_9")),
            ("/.well-known/acme-challenge/", None),
            ("/.well-known/acme-challenge/a/b", None),
            ("/.well-known/acme-challenge/a?b", None),
            ("/.well-known/acme-challenge/..", None),
            ("/.well-known/acme-challenge", None),
            ("/", None),
        ] {
            assert_eq!(token(target.as_bytes()), found, "{target}");
        }
        assert_eq!(token(format!("{PATH}{}", "a".repeat(TOKEN_BYTES_MAX + 1)).as_bytes()), None);
    }

    proptest! {
        #[test]
        fn no_target_makes_it_panic_and_what_is_found_is_a_token(rest in proptest::collection::vec(any::<u8>(), 0..40)) {
            let target = [PATH.as_bytes(), &rest].concat();
            if let Some(found) = token(&target) {
                prop_assert_eq!(found.as_bytes(), &rest[..]);
                prop_assert!(found.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_'));
            }
        }
    }
}
