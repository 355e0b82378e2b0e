//! Takes up certificates whose files changed, and tells how long each is still valid.

use super::assembly::State;
use crate::clock;
use crate::observe::metrics::{CertificateChange, TlsSeries};
use crate::tls::client::Watched;
use crate::tls::{Refreshed, Server};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

/// Stands for a listener where we are the client.
const TOWARDS_PEERS: &str = "shield, asking";
/// How often it is told how long certificates are valid.
const TICK: Duration = Duration::from_secs(1);

/// Starts the thread; it ends with the server.
pub fn spawn(state: Weak<State>) -> std::io::Result<()> {
    std::thread::Builder::new().name("certificates".into()).spawn(move || {
        let mut looked = Instant::now();
        while let Some(state) = state.upgrade() {
            let poll = state.proxy.live.load().settings.server.certificate_poll;
            let is_due = poll.is_some_and(|poll| looked.elapsed() >= poll);
            take_up(&state, if is_due { refresh(&state) } else { Vec::new() });
            if is_due {
                looked = Instant::now();
            }
            drop(state);
            std::thread::sleep(poll.map_or(TICK, |poll| poll.min(TICK)));
        }
    })?;
    Ok(())
}

/// Takes up what changed, and says by which listener. Blocks.
fn refresh(state: &State) -> Vec<(String, Refreshed)> {
    let towards_peers = towards_peers(state).and_then(|client| client.refresh()).map(|change| (TOWARDS_PEERS.into(), change));
    of_listeners(state, Server::refresh).into_iter().chain(towards_peers).collect()
}

fn of_listeners(state: &State, refresh: impl Fn(&Server) -> Vec<Refreshed>) -> Vec<(String, Refreshed)> {
    let changes = state.secured().into_iter().flat_map(|(listener, server)| {
        let changes = refresh(&server);
        changes.into_iter().map(move |change| (listener.clone(), change))
    });
    changes.collect()
}

fn towards_peers(state: &State) -> Option<Arc<Watched>> {
    state.proxy.live.load().shield.as_ref()?.tls().cloned()
}

/// Takes up certificates that have just been obtained, without waiting for the next look.
#[cfg(feature = "acme")]
pub fn take_up_obtained(state: &State) {
    take_up(state, of_listeners(state, Server::refresh_obtained));
}

fn take_up(state: &State, changes: Vec<(String, Refreshed)>) {
    // Before the changes are: whoever hears of one finds what it changed.
    tell_expiries(state);
    changes.iter().for_each(|(listener, change)| tell(listener, change, &state.proxy.metrics.tls));
}

fn tell(listener: &str, change: &Refreshed, series: &TlsSeries) {
    match change {
        Refreshed::Replaced { file, days_left } => {
            series.certificate_changed(CertificateChange::Replaced);
            tracing::info!(listener, file, days_left, "certificate replaced");
        }
        Refreshed::Refused { file, error, remedy } => {
            series.certificate_changed(CertificateChange::Refused);
            tracing::error!(listener, file, error, remedy, "new certificate refused; the old one stays");
        }
        Refreshed::Unstapled { file, error } => {
            series.certificate_changed(CertificateChange::Unstapled);
            tracing::error!(listener, file, %error, remedy = error.remedy(), "the certificate is shown without an OCSP response");
        }
    }
}

/// Of all that is shown or verified by.
pub fn tell_expiries(state: &State) {
    let (now, series) = (clock::now().wall_ms, &state.proxy.metrics.tls);
    for (listener, server) in state.secured() {
        let expiries = server.expiries(now);
        for (file, until) in &expiries.certificates {
            series.certificate_expires(&listener, file, (until - now) / 1000);
        }
        for (file, until) in &expiries.revocation {
            series.revocation_expires(&listener, file, (until - now) / 1000);
        }
    }
    if let Some((file, until)) = towards_peers(state).and_then(|client| client.expiry()) {
        series.certificate_expires(TOWARDS_PEERS, &file, (until - now) / 1000);
    }
}
