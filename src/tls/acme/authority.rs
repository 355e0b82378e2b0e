//! The authority: our account with it, and an order from its beginning to the certificate (RFC 8555 §7).

use super::fleet::{Fleet, Turn};
use super::http::{Http, HttpError};
use super::keys::{self, Request};
use super::schedule::Validity;
use super::store::{self, Damage, Store, StoredAccount};
use crate::clock;
use crate::config::settings::{Acme, AcmeCertificate, Challenge, PemFile};
use crate::observe::metrics::AcmeOutcome;
use crate::tls::certificate::CertificateError;
use crate::tls::challenges::{Challenges, Standing, is_token};
use instant_acme::{
    Account, AccountCredentials, AuthorizationStatus, ChallengeHandle, ChallengeType, Error, ExternalAccountKey, Identifier, NewAccount,
    NewOrder, Order, OrderStatus, Problem, RetryPolicy,
};
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep};

/// An authority, as `[acme]` names it.
pub struct Authority {
    settings: Arc<Acme>,
    http: Http,
    challenges: Arc<Challenges>,
    fleet: Option<Arc<Fleet>>,
    /// Held while the account is looked up or made: there is one.
    account: Mutex<()>,
}

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum OrderError {
    #[error(transparent)]
    Http(HttpError),
    /// As it says.
    #[error("{text}")]
    Refused { text: String, kind: Option<String> },
    #[error("{host} was not found to be ours by {challenge}: {text}")]
    Challenge { host: String, challenge: &'static str, text: String },
    #[error("{0} is certified by none of the challenges that are configured")]
    NoChallenge(String),
    #[error("what the authority answered cannot be used: {0}")]
    Unusable(String),
    #[error("not done within {} s", .0.as_secs_f64())]
    Timeout(Duration),
    #[error("cannot be kept: {0}")]
    Store(#[from] io::Error),
}

impl OrderError {
    pub const fn outcome(&self) -> AcmeOutcome {
        match self {
            Self::Refused { .. } | Self::Challenge { .. } | Self::NoChallenge(_) => AcmeOutcome::Refused,
            Self::Timeout(_) => AcmeOutcome::Timeout,
            Self::Http(_) | Self::Unusable(_) | Self::Store(_) => AcmeOutcome::Failed,
        }
    }

    pub fn remedy(&self) -> &'static str {
        let has = |kind: &Option<String>, end: &str| kind.as_deref().is_some_and(|kind| kind.ends_with(end));
        match self {
            Self::Http(HttpError::Tls(_)) => "name in acme.ca_file who certifies the directory, if it is no public authority",
            Self::Http(_) => "look at acme.directory, at name servers and firewalls",
            Self::Refused { kind, .. } if has(kind, ":rateLimited") => {
                "wait: it is tried again, later each time; test with the authority's staging directory"
            }
            Self::Refused { kind, .. } if has(kind, ":externalAccountRequired") => {
                "set acme.eab_key_id and acme.eab_key_file as the authority gave them out"
            }
            Self::Refused { kind, .. } if has(kind, ":rejectedIdentifier") || has(kind, ":caa") => {
                "take hosts that this authority certifies: look at their CAA records"
            }
            Self::Refused { .. } | Self::Unusable(_) => "the message says what the authority does not like",
            Self::Challenge { challenge, .. } if *challenge == Challenge::TlsAlpn01.as_str() => {
                "have the host's name lead here, and port 443 to a listener with TLS, with no other TLS before it; or use http-01"
            }
            Self::Challenge { .. } => "have the host's name lead here, and port 80 to a listener without TLS; or use tls-alpn-01",
            Self::NoChallenge(_) => "allow http-01 and tls-alpn-01 in acme.challenges",
            Self::Timeout(_) => "it is tried again; give a longer acme.order_timeout if the authority is always slow",
            Self::Store(_) => "let this user write to acme.folder, and look at the room on its disk",
        }
    }
}

impl From<Error> for OrderError {
    fn from(error: Error) -> Self {
        match error {
            Error::Api(problem) => Self::Refused { kind: problem.r#type.clone(), text: problem.to_string() },
            Error::Timeout(_) => Self::Unusable("the order made no progress".into()),
            Error::Other(cause) => match cause.downcast::<HttpError>() {
                Ok(error) => Self::Http(*error),
                Err(cause) => Self::Unusable(cause.to_string()),
            },
            error => Self::Unusable(error.to_string()),
        }
    }
}

/// Between questions how far the authority is; longer each time.
const POLL_FIRST: Duration = Duration::from_millis(100);
const POLL_GROWTH: f32 = 1.5;

impl Authority {
    /// `None`: the configuration would have been refused.
    pub fn new(settings: &Arc<Acme>, challenges: &Arc<Challenges>, fleet: Option<Arc<Fleet>>) -> Option<Self> {
        let http = Http::new(settings)?;
        Some(Self { settings: Arc::clone(settings), http, challenges: Arc::clone(challenges), fleet, account: Mutex::default() })
    }

    /// How long it asked to wait when it last refused something.
    pub fn take_wait(&self) -> Option<Duration> {
        self.http.take_wait()
    }

    /// Obtains a certificate: key and chain, as they are kept. `failures`: attempts before, of which each takes another
    /// challenge.
    pub async fn obtain(&self, certificate: &AcmeCertificate, failures: u32) -> Result<Vec<u8>, OrderError> {
        let store = Store::of(certificate);
        let account = self.account(&store).await?;
        let identifiers: Vec<_> = certificate.hosts.iter().map(|host| Identifier::Dns(host.clone())).collect();
        let mut order = match account.new_order(&NewOrder::new(&identifiers)).await.map_err(OrderError::from) {
            Err(OrderError::Refused { kind, text }) if kind.as_deref().is_some_and(|kind| kind.ends_with(":accountDoesNotExist")) => {
                self.forget_account(&store).await?; // the next attempt makes another
                return Err(OrderError::Refused { kind, text });
            }
            order => order?,
        };
        let standing = self.answer(&mut order, certificate, failures).await?;
        let ready = order.poll_ready(&self.patience()).await;
        match ready {
            Ok(OrderStatus::Ready) => {}
            Ok(OrderStatus::Invalid) | Err(Error::Api(_)) => return Err(self.why_invalid(&mut order, ready.err()).await),
            Ok(status) => return Err(OrderError::Unusable(format!("the order is {status:?}"))),
            Err(error) => return Err(error.into()),
        }
        drop(standing);
        let request = Request::new(&certificate.hosts, self.settings.key_type).map_err(|error| OrderError::Unusable(error.to_string()))?;
        order.finalize_csr(&request.der).await?;
        let chain = order.poll_certificate(&self.patience()).await?;
        let pem = keys::together(&request.key, &chain);
        let file = PemFile { path: certificate.file.clone(), pem };
        verified(certificate, &file).await.map_err(|damage| OrderError::Unusable(damage.to_string()))?;
        Ok(file.pem)
    }

    fn patience(&self) -> RetryPolicy {
        RetryPolicy::new().initial_delay(POLL_FIRST).backoff(POLL_GROWTH).timeout(self.settings.order_timeout)
    }

    /// Has an answer stand for every host that the authority wants to look at, and tells it to look.
    async fn answer(&self, order: &mut Order, certificate: &AcmeCertificate, failures: u32) -> Result<Vec<Standing>, OrderError> {
        let mut standing = Vec::new();
        let mut authorizations = order.authorizations();
        while let Some(authorization) = authorizations.next().await {
            let mut authorization = authorization?;
            let host = match authorization.identifier().identifier {
                Identifier::Dns(host) if certificate.hosts.contains(host) => host.clone(),
                other => return Err(OrderError::Unusable(format!("an authorization for {other:?}, which was not asked for"))),
            };
            match authorization.status {
                AuthorizationStatus::Valid => continue,
                AuthorizationStatus::Pending => {}
                status => return Err(OrderError::Unusable(format!("the authorization for {host} is {status:?}"))),
            }
            let offered = |challenge: &Challenge| authorization.challenges.iter().any(|offered| offered.r#type == kind(*challenge));
            let own = &self.settings.challenges;
            let turn = failures as usize % own.len();
            let chosen = own[turn..].iter().chain(&own[..turn]).copied().find(offered);
            let chosen = chosen.ok_or_else(|| OrderError::NoChallenge(host.clone()))?;
            let mut challenge = authorization.challenge(kind(chosen)).ok_or_else(|| OrderError::NoChallenge(host.clone()))?;
            let text = challenge.key_authorization();
            standing.push(self.stand(&challenge, chosen, &host)?);
            if let Some(fleet) = &self.fleet {
                let name = if chosen == Challenge::Http01 { &challenge.token } else { &host };
                // Where Redis is away the authority may still come to this node.
                let _ = fleet.put_answer(chosen, name, text.as_str(), self.settings.order_timeout).await;
            }
            challenge.set_ready().await.map_err(|error| match error {
                // It has looked already.
                Error::Api(problem) if is_of_challenge(&problem) => {
                    OrderError::Challenge { host: host.clone(), challenge: chosen.as_str(), text: problem.to_string() }
                }
                error => error.into(),
            })?;
        }
        Ok(standing)
    }

    fn stand(&self, challenge: &ChallengeHandle<'_>, chosen: Challenge, host: &str) -> Result<Standing, OrderError> {
        let text = challenge.key_authorization();
        match chosen {
            Challenge::Http01 if is_token(&challenge.token) => Ok(self.challenges.put_text(&challenge.token, text.as_str())),
            Challenge::Http01 => Err(OrderError::Unusable("a token that is none (RFC 8555 §8.1)".into())),
            Challenge::TlsAlpn01 => {
                let config = keys::challenge(host, text.as_str());
                let config =
                    config.ok_or_else(|| OrderError::Unusable(format!("no certificate for a challenge can be made for {host}")))?;
                Ok(self.challenges.put_certificate(host, config))
            }
        }
    }

    /// The order itself may not say which of its challenges failed.
    async fn why_invalid(&self, order: &mut Order, error: Option<Error>) -> OrderError {
        let mut authorizations = order.authorizations();
        while let Some(Ok(mut authorization)) = authorizations.next().await {
            if authorization.refresh().await.is_err() {
                continue;
            }
            let failed = authorization.challenges.iter().find_map(|challenge| Some((&challenge.r#type, challenge.error.as_ref()?)));
            if let Some((r#type, problem)) = failed {
                let challenge = [Challenge::Http01, Challenge::TlsAlpn01].into_iter().find(|known| kind(*known) == *r#type);
                let challenge = challenge.map_or("another challenge", Challenge::as_str);
                return OrderError::Challenge { host: authorization.identifier().to_string(), challenge, text: problem.to_string() };
            }
        }
        error.map_or_else(|| OrderError::Unusable("the order is invalid".into()), OrderError::from)
    }

    /// The account that is kept here, or in the fleet, or a new one.
    async fn account(&self, store: &Store) -> Result<Account, OrderError> {
        let _one = self.account.lock().await;
        let mut kept = self.kept_account(store);
        let mut turn = Turn::Unknown;
        if let (None, Some(fleet)) = (&kept, &self.fleet) {
            turn = turn_for_account(fleet).await;
            if let Ok(Some(shared)) = fleet.get(ACCOUNT).await {
                keep_shared_account(store, &shared)?;
                kept = self.kept_account(store);
            }
        }
        let builder = Account::builder_with_http(Box::new(self.http.clone()));
        let contact: Vec<&str> = self.settings.contact.iter().map(String::as_str).collect();
        let (account, kept) = match kept {
            Some((mut kept, credentials)) => {
                let account = builder.from_credentials(credentials).await?;
                if kept.contact != self.settings.contact {
                    account.update_contacts(&contact).await?;
                    kept.contact.clone_from(&self.settings.contact);
                    store.keep_account(&kept)?;
                }
                (account, kept)
            }
            None => {
                let terms_of_service_agreed = self.settings.agree_to_terms;
                let wanted = NewAccount { contact: &contact, terms_of_service_agreed, only_return_existing: false };
                let external = self.settings.eab.as_ref();
                let external = external.and_then(|eab| Some(ExternalAccountKey::new(eab.key_id.clone(), &eab.key_bytes()?)));
                let (account, credentials) = builder.create(&wanted, self.settings.directory.clone(), external.as_ref()).await?;
                let kept = StoredAccount::new(&self.settings.contact, &credentials)?;
                store.keep_account(&kept)?;
                tracing::info!(directory = self.settings.directory, account = account.id(), "account with the authority made");
                (account, kept)
            }
        };
        let others = match &self.fleet {
            Some(fleet) => share_account(fleet, &kept).await,
            None => None,
        };
        drop(turn);
        let Some(others) = others else { return Ok(account) };
        keep_shared_account(store, &others)?;
        let Some((_, credentials)) = self.kept_account(store) else { return Ok(account) };
        Ok(Account::builder_with_http(Box::new(self.http.clone())).from_credentials(credentials).await?)
    }

    fn kept_account(&self, store: &Store) -> Option<(StoredAccount, AccountCredentials)> {
        store.account().unwrap_or_else(|damage| {
            tracing::warn!(error = %damage, "the account with the authority cannot be used; another one is made");
            None
        })
    }

    /// The authority does not know it any more. One that another node has made since stays.
    async fn forget_account(&self, store: &Store) -> Result<(), OrderError> {
        if let (Some((kept, _)), Some(fleet)) = (self.kept_account(store), &self.fleet)
            && fleet.get(ACCOUNT).await.is_ok_and(|shared| shared.as_deref() == kept.bytes().ok().as_deref())
        {
            let _ = fleet.remove(ACCOUNT).await; // it is found out again
        }
        Ok(store.forget_account()?)
    }
}

/// Where the fleet shares the account, and for how long beyond its last use.
const ACCOUNT: &str = "account";
const ACCOUNT_LASTS: Duration = Duration::from_secs(400 * 86_400);
/// Between two looks whether another node has made the account.
const ACCOUNT_POLL: Duration = Duration::from_millis(200);

/// Has the fleet know this account, unless it knows another one: what stands there of that. So nodes that start together end with one.
async fn share_account(fleet: &Fleet, kept: &StoredAccount) -> Option<Vec<u8>> {
    let bytes = kept.bytes().ok()?;
    // Where Redis is away another node makes one of its own.
    if !matches!(fleet.put_first(ACCOUNT, &bytes, ACCOUNT_LASTS).await, Ok(false)) {
        return None;
    }
    match fleet.get(ACCOUNT).await {
        Ok(Some(shared)) if kept.is_another(&shared) => Some(shared),
        // Its contact may be new, and it is in use.
        _ => {
            let _ = fleet.put(ACCOUNT, &bytes, ACCOUNT_LASTS).await;
            None
        }
    }
}

/// From now on the account of the fleet is this node's, too.
fn keep_shared_account(store: &Store, bytes: &[u8]) -> io::Result<()> {
    if let Some(old) = store.keep_shared_account(bytes)? {
        let remedy = "nothing needs to be done; deactivate the old one with the authority if nobody uses it any more";
        tracing::warn!(kept = %old.display(), remedy, "the fleet's account with the authority takes the place of another one");
    }
    Ok(())
}

async fn turn_for_account(fleet: &Fleet) -> Turn {
    loop {
        match fleet.turn(ACCOUNT).await {
            Turn::Others => tokio::time::sleep(ACCOUNT_POLL).await,
            turn => return turn,
        }
    }
}

/// Whether it says what was found where a host was looked at, and not what is wrong with a request (RFC 8555 §6.7).
fn is_of_challenge(problem: &Problem) -> bool {
    const FOUND: [&str; 5] = [":connection", ":dns", ":incorrectResponse", ":tls", ":unauthorized"];
    problem.r#type.as_deref().is_some_and(|kind| FOUND.iter().any(|found| kind.ends_with(found)))
}

const fn kind(challenge: Challenge) -> ChallengeType {
    match challenge {
        Challenge::Http01 => ChallengeType::Http01,
        Challenge::TlsAlpn01 => ChallengeType::TlsAlpn01,
    }
}

/// How far clocks may be apart: so long it is waited for a certificate to be valid here, too.
const CLOCKS_APART: Duration = Duration::from_secs(60);

/// [`store::verify`] of what was just issued, by a clock that may be a little ahead of ours.
pub async fn verified(certificate: &AcmeCertificate, file: &PemFile) -> Result<Validity, Damage> {
    let until = Instant::now() + CLOCKS_APART;
    loop {
        match store::verify(certificate, file.clone(), clock::now().wall_ms) {
            Err(Damage::Certificate(CertificateError::Early(_))) if Instant::now() < until => sleep(Duration::from_secs(1)).await,
            verified => return verified,
        }
    }
}
