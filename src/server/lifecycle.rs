//! Start, signals, drain.

use super::Server;
use crate::config::{Settings, Sources};
use crate::observe::log::LogHandle;
use anyhow::{Context, Result};
use std::io::Write;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// `tiercel run`: serves until SIGTERM or SIGINT, then drains; a second one ends at once. SIGHUP reloads, SIGUSR1
/// reopens log files.
pub fn run(sources: Sources, settings: Settings) -> Result<()> {
    let log = crate::observe::log::init(&settings.log)?;
    let server = Server::start(sources, settings)?;
    announce(&server);
    wait(&server, Some(&log))?;
    tracing::info!("draining");
    std::thread::Builder::new().name("second-signal".into()).spawn(second_signal)?;
    let clean = server.drain();
    tracing::info!(clean, "ended");
    if clean { Ok(()) } else { anyhow::bail!("connections were cut at the drain timeout") }
}

/// Prints the bound addresses, one a line: `http 127.0.0.1:8080`.
pub fn announce(server: &Server) {
    let mut out = std::io::stdout().lock();
    let named = server.listeners().into_iter().map(|(name, address)| (format!("listener {name}"), address));
    let admin = server.admin.map(|address| ("admin".to_owned(), address));
    let metrics = server.metrics.map(|address| ("metrics".to_owned(), address));
    for (what, address) in named.chain(admin).chain(metrics) {
        let _ = writeln!(out, "{what} http://{address}"); // nobody may be reading
    }
    let _ = out.flush();
}

/// Serves signals until one says to end.
pub fn wait(server: &Server, log: Option<&LogHandle>) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let listen = |kind| signal(kind).context("cannot listen for signals");
        let mut end: [Signal; 2] = [listen(SignalKind::terminate())?, listen(SignalKind::interrupt())?];
        let (mut hangup, mut reopen) = (listen(SignalKind::hangup())?, listen(SignalKind::user_defined1())?);
        let [terminate, interrupt] = &mut end;
        loop {
            tokio::select! {
                _ = terminate.recv() => return Ok(()),
                _ = interrupt.recv() => return Ok(()),
                _ = reopen.recv() => server.state.proxy.access_log.reopen(),
                _ = hangup.recv() => {
                    let state = std::sync::Arc::clone(&server.state);
                    // Refusals are logged and counted there.
                    if let (Ok(Ok(settings)), Some(log)) = (tokio::task::spawn_blocking(move || state.reload()).await, log) {
                        if let Err(error) = log.set_level(&settings.log) {
                            tracing::warn!(%error, "log level not changed");
                        }
                    }
                }
            }
        }
    })
}

fn second_signal() {
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else { return };
    runtime.block_on(async {
        let (Ok(mut terminate), Ok(mut interrupt)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) else { return };
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    });
    std::process::exit(1);
}
