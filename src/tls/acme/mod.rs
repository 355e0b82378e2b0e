//! Certificates from an authority that speaks ACME (RFC 8555): obtained, kept, and renewed in time.
//!
//! [`Acme`] is a thread with a runtime of its own; on it each certificate is a task ([`Keeper::tend`]) that asks for it when
//! [`schedule`] says so, [`authority`] leads an order to its end, [`store`] keeps what came of it. What is shown to clients is
//! taken from the files there by [`crate::tls::Server`], as of any other certificate. [`fleet`] shares it with other nodes.
//!
//! Invariants: an attempt is written down before it is made, so that no restart makes the authority be asked more often; what
//! cannot be used never replaces what can.

mod authority;
mod fleet;
mod http;
mod keys;
mod schedule;
mod store;

use crate::clock;
use crate::config::settings::{Acme as Settings, AcmeCertificate, Challenge, PemFile};
use crate::observe::metrics::{AcmeOutcome, Bound, Metrics};
use crate::redis::Redis;
use crate::tls::challenges::{self, Challenges};
use authority::{Authority, OrderError};
use fleet::{Fleet, Turn};
use schedule::{Attempts, Validity};
use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use store::Store;
use tokio::sync::{Semaphore, watch};
use tokio::task::AbortHandle;
use tokio::time::timeout;

/// RFC 8555 §6.1.
const USER_AGENT: &str = concat!("tiercel/", env!("CARGO_PKG_VERSION"));
/// The clock of a machine may leap: it is looked at so often while a time is waited for.
const LOOK_AT_CLOCK: Duration = Duration::from_secs(60);

/// Obtains certificates until it is dropped.
pub struct Acme {
    wanted: watch::Sender<Wanted>,
}

/// Which certificates, and from whom.
#[derive(Clone, PartialEq)]
pub struct Wanted {
    pub settings: Arc<Settings>,
    pub certificates: Vec<AcmeCertificate>,
}

/// What is used to obtain them.
#[derive(Clone)]
pub struct Means {
    pub challenges: Arc<Challenges>,
    pub metrics: Arc<Metrics>,
    /// Where nodes share what they obtain, if there is a secret to encrypt it with.
    pub redis: Option<Redis>,
    /// Called when a certificate has come to its place.
    pub obtained: Arc<dyn Fn() + Send + Sync>,
}

impl Acme {
    /// Starts the thread; orders go on while this lives.
    pub fn start(wanted: Wanted, means: Means) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (wanted, changes) = watch::channel(wanted);
        std::thread::Builder::new().name("acme".into()).spawn(move || runtime.block_on(keep(changes, means)))?;
        Ok(Self { wanted })
    }

    /// From now on these; orders for those that stay go on.
    pub fn want(&self, wanted: Wanted) {
        self.wanted.send_if_modified(|before| {
            let is_new = *before != wanted;
            *before = wanted;
            is_new
        });
    }
}

/// A task for each certificate that is wanted, until nobody can want any more.
async fn keep(mut changes: watch::Receiver<Wanted>, means: Means) {
    let mut tasks: HashMap<AcmeCertificate, AbortHandle> = HashMap::new();
    let mut keeper: Option<Arc<Keeper>> = None;
    loop {
        let wanted = changes.borrow_and_update().clone();
        if keeper.as_ref().is_none_or(|keeper| keeper.settings != wanted.settings) {
            for (certificate, task) in tasks.drain() {
                task.abort();
                means.metrics.acme.forget(&label(&certificate));
            }
            keeper = Keeper::new(&wanted.settings, &means).map(Arc::new);
        }
        tasks.retain(|certificate, task| {
            let stays = wanted.certificates.contains(certificate);
            if !stays {
                task.abort();
                means.metrics.acme.forget(&label(certificate));
            }
            stays
        });
        for certificate in wanted.certificates {
            if let Some(keeper) = keeper.as_ref().filter(|_| !tasks.contains_key(&certificate)) {
                let task = tokio::spawn(Arc::clone(keeper).tend(certificate.clone()));
                tasks.insert(certificate, task.abort_handle());
            }
        }
        if changes.changed().await.is_err() {
            return;
        }
    }
}

/// What certificates of one authority have in common.
struct Keeper {
    settings: Arc<Settings>,
    authority: Authority,
    fleet: Option<Arc<Fleet>>,
    /// Orders at a time.
    turns: Semaphore,
    means: Means,
}

/// As in the metrics of TLS.
fn label(certificate: &AcmeCertificate) -> String {
    certificate.file.display().to_string()
}

/// Names of what the fleet shares of a certificate.
fn shared_name(what: &str, certificate: &AcmeCertificate) -> String {
    format!("{what}:{}", certificate.file.file_stem().unwrap_or_default().to_string_lossy())
}

const CERTIFICATE: &str = "certificate";
const ATTEMPTS: &str = "attempts";
/// Before it is looked again whether another node has obtained what is wanted, if nothing is heard of it.
const OTHERS_WAIT: Duration = Duration::from_secs(5);

/// Of another node's turn, where nothing comes of it and it is urgent; at least twice as long as an order may take.
const OTHERS_AT_MOST: Duration = Duration::from_secs(300);

/// An attempt that came to nothing.
enum FailedAttempt {
    /// When to try again is kept.
    Kept,
    /// It could not be: until then nothing may be asked for.
    Unkept(i64),
}

impl Keeper {
    fn new(settings: &Arc<Settings>, means: &Means) -> Option<Self> {
        let fleet = means.redis.as_ref().zip(settings.seal.as_ref());
        let fleet = fleet.map(|(redis, secret)| Arc::new(Fleet::new(redis, secret, &settings.directory, settings.order_timeout)));
        means.challenges.ask_fleet(fleet.as_ref().map(|fleet| answers_of(fleet, &means.metrics)));
        let authority = Authority::new(settings, &means.challenges, fleet.clone())?;
        Some(Self { settings: Arc::clone(settings), authority, fleet, turns: Semaphore::new(settings.orders), means: means.clone() })
    }

    /// Obtains a certificate, and renews it again and again.
    async fn tend(self: Arc<Self>, certificate: AcmeCertificate) {
        let store = Store::of(&certificate);
        let mut news = self.fleet.as_ref().map(|fleet| fleet.news_of(&shared_name(CERTIFICATE, &certificate)));
        if let Some(fleet) = &self.fleet {
            fleet.ready().await;
        }
        let mut is_told = false;
        // Two certificates in a row are never nearer than this, whatever they say of themselves.
        let mut not_before = 0;
        let mut others_since = None;
        loop {
            let valid = self.share(&certificate, &store, kept(&certificate, &store)).await;
            if valid.is_none() && !std::mem::replace(&mut is_told, true) {
                let hosts = certificate.hosts.join(" ");
                tracing::warn!(
                    hosts,
                    "there is no certificate yet: until it is obtained clients that ask for these hosts get another, or none"
                );
            }
            let attempts = self.attempts(&certificate, &store).await;
            let due = schedule::due(valid, &attempts, &self.settings, clock::now().wall_ms, rand::random()).max(not_before);
            self.means.metrics.acme.waits(&label(&certificate), due / 1000, attempts.failures);
            tokio::select! {
                () = wait_until(due) => {}
                () = changed(&mut news) => continue,
            }
            let turn = match &self.fleet {
                Some(fleet) => fleet.turn(&shared_name(CERTIFICATE, &certificate)).await,
                None => Turn::Unknown,
            };
            let now = clock::now().wall_ms;
            let is_urgent = valid.is_none_or(|valid| now >= schedule::urgent(valid, &self.settings));
            // A turn ends with its holder: one that goes on and on without a certificate is nobody's.
            let others_ms = now - *others_since.get_or_insert(now);
            let are_late = is_urgent && others_ms > OTHERS_AT_MOST.max(self.settings.order_timeout * 2).as_millis() as i64;
            let is_others = match &turn {
                // It may have come since.
                Turn::Own(_) => {
                    self.share(&certificate, &store, valid).await != valid || self.attempts(&certificate, &store).await != attempts
                }
                Turn::Others if are_late => {
                    let hosts = certificate.hosts.join(" ");
                    tracing::warn!(hosts, "another node has the turn to obtain this for long, and nothing comes of it: asking without");
                    false
                }
                Turn::Others => true,
                Turn::Unknown => self.fleet.is_some() && !is_urgent,
            };
            if !matches!(turn, Turn::Others) {
                others_since = None;
            }
            if !is_others {
                others_since = None;
                let failed = self.attempt(&certificate, &store, attempts).await;
                drop(turn);
                match failed {
                    None => not_before = clock::now().wall_ms + schedule::apart(kept(&certificate, &store), &self.settings),
                    Some(FailedAttempt::Unkept(next_ms)) => wait_until(next_ms).await,
                    Some(FailedAttempt::Kept) => {}
                }
            } else if !matches!(turn, Turn::Own(_)) {
                let _ = timeout(OTHERS_WAIT, changed(&mut news)).await;
            }
        }
    }

    /// Takes up what another node has obtained, or shares what this one has: whichever was issued later. What is there then.
    async fn share(&self, certificate: &AcmeCertificate, store: &Store, own: Option<Validity>) -> Option<Validity> {
        let Some(fleet) = &self.fleet else { return own };
        let Ok(shared) = fleet.get(&shared_name(CERTIFICATE, certificate)).await else { return own };
        let is_absent = shared.is_none();
        let file = shared.map(|pem| PemFile { path: certificate.file.clone(), pem });
        let theirs = match &file {
            None => None,
            Some(file) => match authority::verified(certificate, file).await {
                Ok(valid) => Some(valid),
                Err(damage) => {
                    tracing::debug!(file = label(certificate), error = %damage, "what the fleet shares is not used");
                    None
                }
            },
        };
        match file.filter(|_| theirs > own) {
            Some(file) => match store.keep_certificate(certificate, &file.pem).and_then(|()| store.forget_attempts(certificate)) {
                Ok(()) => {
                    self.means.metrics.acme.ended(AcmeOutcome::Given);
                    tracing::info!(hosts = certificate.hosts.join(" "), file = label(certificate), "certificate taken from another node");
                    (self.means.obtained)();
                    theirs
                }
                Err(error) => {
                    let error = OrderError::from(error);
                    tracing::error!(file = label(certificate), %error, remedy = error.remedy(), "certificate of another node not taken");
                    own
                }
            },
            None => {
                // What is there and cannot be used here may be good elsewhere, by another clock or version.
                if let Some(valid) = own
                    && own > theirs
                    && (is_absent || theirs.is_some())
                    && let Ok(Some(file)) = store.certificate_file(certificate)
                {
                    self.offer(fleet, certificate, &file.pem, valid.until).await;
                }
                own
            }
        }
    }

    async fn offer(&self, fleet: &Fleet, certificate: &AcmeCertificate, pem: &[u8], until: i64) {
        let lasts = u64::try_from(until - clock::now().wall_ms).map(Duration::from_millis);
        let Ok(lasts) = lasts else { return };
        // Where Redis is away it is offered again when it is back.
        let name = shared_name(CERTIFICATE, certificate);
        if fleet.put(&name, pem, lasts).await.is_ok() {
            let _ = fleet.tell(&name).await;
        }
    }

    /// Those of this node, or of another that failed later.
    async fn attempts(&self, certificate: &AcmeCertificate, store: &Store) -> Attempts {
        let own = attempts_so_far(store, certificate);
        let Some(fleet) = &self.fleet else { return own };
        let shared = fleet.get(&shared_name(ATTEMPTS, certificate)).await.ok().flatten();
        let shared: Option<Attempts> = shared.and_then(|bytes| serde_json::from_slice(&bytes).ok());
        shared.filter(|shared| shared.next_ms > own.next_ms).unwrap_or(own)
    }

    async fn keep_attempts(&self, certificate: &AcmeCertificate, store: &Store, attempts: &Attempts) -> io::Result<()> {
        store.keep_attempts(certificate, attempts)?;
        if let Some(fleet) = &self.fleet {
            let (name, lasts) = (shared_name(ATTEMPTS, certificate), self.settings.retry_max * 2);
            let _ = fleet.put(&name, &serde_json::to_vec(attempts)?, lasts).await; // the others find out for themselves
        }
        Ok(())
    }

    /// `None`: it is obtained.
    async fn attempt(&self, certificate: &AcmeCertificate, store: &Store, before: Attempts) -> Option<FailedAttempt> {
        let Ok(_turn) = self.turns.acquire().await else { return Some(FailedAttempt::Kept) };
        let (hosts, failures, acme) = (certificate.hosts.join(" "), before.failures, &self.means.metrics.acme);
        let attempt = before.begin(&self.settings, clock::now().wall_ms, rand::random());
        let done = match self.keep_attempts(certificate, store, &attempt).await {
            Ok(()) => self.obtain(certificate, store, failures).await,
            Err(error) => Err(error.into()), // what came of it could not be kept either
        };
        let Err(error) = done else { return None };
        acme.ended(error.outcome());
        let attempt = attempt.failed(error.to_string(), self.authority.take_wait(), &self.settings, clock::now().wall_ms);
        let next_attempt_in_seconds = (attempt.next_ms - clock::now().wall_ms) / 1000;
        let failures = attempt.failures;
        tracing::error!(hosts, %error, remedy = error.remedy(), failures, next_attempt_in_seconds, "certificate not obtained");
        if self.keep_attempts(certificate, store, &attempt).await.is_err() {
            // It would be forgotten, and tried again at once.
            acme.waits(&label(certificate), attempt.next_ms / 1000, attempt.failures);
            return Some(FailedAttempt::Unkept(attempt.next_ms));
        }
        Some(FailedAttempt::Kept)
    }

    async fn obtain(&self, certificate: &AcmeCertificate, store: &Store, failures: u32) -> Result<(), OrderError> {
        let hosts = certificate.hosts.join(" ");
        tracing::info!(hosts, directory = self.settings.directory, "asking for a certificate");
        let limit = self.settings.order_timeout;
        let obtaining = Box::pin(self.authority.obtain(certificate, failures));
        let pem = timeout(limit, obtaining).await.unwrap_or(Err(OrderError::Timeout(limit)))?;
        store.keep_certificate(certificate, &pem)?;
        let valid = store.certificate(certificate, clock::now().wall_ms).ok().flatten();
        let valid = valid.ok_or_else(|| OrderError::Unusable("it cannot be read back from where it is kept".into()))?;
        store.forget_attempts(certificate)?;
        self.means.metrics.acme.ended(AcmeOutcome::Obtained);
        tracing::info!(hosts, file = label(certificate), "certificate obtained");
        (self.means.obtained)();
        if let Some(fleet) = &self.fleet {
            let _ = fleet.remove(&shared_name(ATTEMPTS, certificate)).await; // it holds nobody up who has the certificate
            self.offer(fleet, certificate, &pem, valid.until).await;
        }
        Ok(())
    }
}

/// What the other nodes answer to challenges.
fn answers_of(fleet: &Fleet, metrics: &Arc<Metrics>) -> challenges::Fleet {
    let (ask_text, ask_certificate, metrics) = (fleet.asker(Challenge::Http01), fleet.asker(Challenge::TlsAlpn01), Arc::clone(metrics));
    let text = move |token: &str| {
        let asked = ask_text(token);
        Box::pin(async move { asked.await.map(Arc::from) }) as _
    };
    let certificate = move |host: &str| {
        let (asked, host) = (ask_certificate(host), host.to_owned());
        Box::pin(async move { keys::challenge(&host, &asked.await?) }) as _
    };
    let text = challenges::Elsewhere::new(Box::new(text), fleet.announced(Challenge::Http01));
    let certificate = challenges::Elsewhere::new(Box::new(certificate), fleet.announced(Challenge::TlsAlpn01));
    challenges::Fleet::new(text, certificate, move || metrics.bound(Bound::AcmeQuestions))
}

/// The certificate that is here, if it can be used.
fn kept(certificate: &AcmeCertificate, store: &Store) -> Option<Validity> {
    store.certificate(certificate, clock::now().wall_ms).unwrap_or_else(|damage| {
        let remedy = "it is obtained anew; give back the file if you have it";
        tracing::error!(file = label(certificate), error = %damage, remedy, "the certificate that is kept cannot be used");
        None
    })
}

/// Until something is new in the fleet.
async fn changed(news: &mut Option<watch::Receiver<u64>>) {
    let is_over = match news {
        Some(news) => news.changed().await.is_err(),
        None => true,
    };
    if is_over {
        std::future::pending::<()>().await;
    }
}

fn attempts_so_far(store: &Store, certificate: &AcmeCertificate) -> Attempts {
    store.attempts(certificate).unwrap_or_else(|damage| {
        tracing::warn!(file = label(certificate), error = %damage, "how many attempts failed is forgotten");
        Attempts::default()
    })
}

/// Until the wall clock says so, milliseconds since 1970.
async fn wait_until(due: i64) {
    loop {
        let left = due.saturating_sub(clock::now().wall_ms);
        match u64::try_from(left) {
            Ok(left) if left > 0 => tokio::time::sleep(Duration::from_millis(left).min(LOOK_AT_CLOCK)).await,
            _ => return,
        }
    }
}
