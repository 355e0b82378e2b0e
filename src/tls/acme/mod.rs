//! Certificates from an authority that speaks ACME (RFC 8555): obtained, kept, and renewed in time.
//!
//! [`Acme`] is a thread with a runtime of its own; on it each certificate is a task ([`Keeper::tend`]) that asks for it when
//! [`schedule`] says so, [`authority`] leads an order to its end, [`store`] keeps what came of it. What is shown to clients is
//! taken from the files there by [`crate::tls::Server`], as of any other certificate.
//!
//! Invariants: an attempt is written down before it is made, so that no restart makes the authority be asked more often; what
//! cannot be used never replaces what can.

mod authority;
mod http;
mod keys;
mod schedule;
mod store;

use crate::clock;
use crate::config::settings::{Acme as Settings, AcmeCertificate};
use crate::observe::metrics::{AcmeOutcome, Metrics};
use crate::tls::challenges::Challenges;
use authority::{Authority, OrderError};
use schedule::Attempts;
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
    /// Called with a certificate that has come to its place.
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
            tasks.drain().for_each(|(_, task)| task.abort());
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
    /// Orders at a time.
    turns: Semaphore,
    means: Means,
}

/// As in the metrics of TLS.
fn label(certificate: &AcmeCertificate) -> String {
    certificate.file.display().to_string()
}

impl Keeper {
    fn new(settings: &Arc<Settings>, means: &Means) -> Option<Self> {
        let authority = Authority::new(settings, &means.challenges)?;
        Some(Self { settings: Arc::clone(settings), authority, turns: Semaphore::new(settings.orders), means: means.clone() })
    }

    /// Obtains a certificate, and renews it again and again.
    async fn tend(self: Arc<Self>, certificate: AcmeCertificate) {
        let (store, hosts) = (Store::of(&certificate), certificate.hosts.join(" "));
        let mut is_told = false;
        loop {
            let now = clock::now().wall_ms;
            let valid = store.certificate(&certificate, now).unwrap_or_else(|damage| {
                let remedy = "it is obtained anew; give back the file if you have it";
                tracing::error!(file = label(&certificate), error = %damage, remedy, "the certificate that is kept cannot be used");
                None
            });
            if valid.is_none() && !std::mem::replace(&mut is_told, true) {
                tracing::warn!(
                    hosts,
                    "there is no certificate yet: until it is obtained clients that ask for these hosts get another, or none"
                );
            }
            let attempts = attempts_so_far(&store, &certificate);
            let due = schedule::due(valid, &attempts, &self.settings, now, rand::random());
            self.means.metrics.acme.waits(&label(&certificate), due / 1000, attempts.failures);
            wait_until(due).await;
            self.attempt(&certificate, &store, attempts).await;
        }
    }

    async fn attempt(&self, certificate: &AcmeCertificate, store: &Store, before: Attempts) {
        let Ok(_turn) = self.turns.acquire().await else { return };
        let (hosts, failures, acme) = (certificate.hosts.join(" "), before.failures, &self.means.metrics.acme);
        let attempt = before.begin(&self.settings, clock::now().wall_ms, rand::random());
        let done = match store.keep_attempts(certificate, &attempt) {
            Ok(()) => self.obtain(certificate, store, failures).await,
            Err(error) => Err(error.into()), // what came of it could not be kept either
        };
        let Err(error) = done else { return };
        acme.ended(error.outcome());
        let attempt = attempt.failed(error.to_string(), self.authority.take_wait(), &self.settings, clock::now().wall_ms);
        let seconds = (attempt.next_ms - clock::now().wall_ms) / 1000;
        tracing::error!(hosts, %error, remedy = error.remedy(), failures = attempt.failures, next_attempt_in_seconds = seconds, "certificate not obtained");
        if store.keep_attempts(certificate, &attempt).is_err() {
            // It would be forgotten, and tried again at once.
            acme.waits(&label(certificate), attempt.next_ms / 1000, attempt.failures);
            wait_until(attempt.next_ms).await;
        }
    }

    async fn obtain(&self, certificate: &AcmeCertificate, store: &Store, failures: u32) -> Result<(), OrderError> {
        let hosts = certificate.hosts.join(" ");
        tracing::info!(hosts, directory = self.settings.directory, "asking for a certificate");
        let limit = self.settings.order_timeout;
        let obtaining = Box::pin(self.authority.obtain(certificate, failures));
        let pem = timeout(limit, obtaining).await.unwrap_or(Err(OrderError::Timeout(limit)))?;
        store.keep_certificate(certificate, &pem)?;
        store.forget_attempts(certificate)?;
        self.means.metrics.acme.ended(AcmeOutcome::Obtained);
        tracing::info!(hosts, file = label(certificate), "certificate obtained");
        (self.means.obtained)();
        Ok(())
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
