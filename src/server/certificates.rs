//! Takes up certificates whose files changed, and tells how long each is still valid.

use super::assembly::State;
use crate::clock;
use crate::observe::metrics::{CertificateChange, TlsSeries};
use crate::tls::{Refreshed, Server};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

/// How often it is told how long certificates are valid.
const TICK: Duration = Duration::from_secs(1);

/// Starts the thread; it ends with the server.
pub fn spawn(state: Weak<State>) -> std::io::Result<()> {
    std::thread::Builder::new().name("certificates".into()).spawn(move || {
        let mut looked = Instant::now();
        while let Some(state) = state.upgrade() {
            let poll = state.proxy.live.load().settings.server.certificate_poll;
            let is_due = poll.is_some_and(|poll| looked.elapsed() >= poll);
            take_up(&state, |server| if is_due { server.refresh() } else { Vec::new() });
            if is_due {
                looked = Instant::now();
            }
            drop(state);
            std::thread::sleep(poll.map_or(TICK, |poll| poll.min(TICK)));
        }
    })?;
    Ok(())
}

/// Takes up certificates that have just been obtained, without waiting for the next look.
#[cfg(feature = "acme")]
pub fn take_up_obtained(state: &State) {
    take_up(state, Server::refresh_obtained);
}

fn take_up(state: &State, refresh: impl Fn(&Server) -> Vec<Refreshed>) {
    for (listener, server) in state.secured() {
        let changes = refresh(&server);
        // Before the changes are: whoever hears of one finds what it changed.
        tell_expiry(&listener, &server, &state.proxy.metrics.tls);
        changes.iter().for_each(|change| tell(&listener, change, &state.proxy.metrics.tls));
    }
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

/// Of all that a listener shows or verifies by.
pub fn tell_expiry(listener: &str, server: &Arc<Server>, series: &TlsSeries) {
    let now = clock::now().wall_ms;
    let expiries = server.expiries(now);
    for (file, until) in &expiries.certificates {
        series.certificate_expires(listener, file, (until - now) / 1000);
    }
    for (file, until) in &expiries.revocation {
        series.revocation_expires(listener, file, (until - now) / 1000);
    }
}
