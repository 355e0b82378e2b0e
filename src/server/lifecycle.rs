//! Start, signals, drain.

use super::Server;
use crate::config::{Settings, Sources};
use crate::observe::metrics::Metrics;
use anyhow::{Context, Result};
use std::backtrace::{Backtrace, BacktraceStatus};
use std::io::Write;
use std::sync::Arc;
use tokio::runtime::Runtime;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// `tiercel run`: serves until SIGTERM or SIGINT, then drains; a second one ends as soon as the access log is written.
/// SIGHUP reloads, SIGUSR1 reopens log files.
pub fn run(sources: Sources, settings: Settings) -> Result<()> {
    match serve(sources, settings, announce)? {
        true => Ok(()),
        false => anyhow::bail!("connections were cut at the drain timeout"),
    }
}

/// Serves; `announce` is called once requests are welcome. True if nothing had to be cut at the end.
pub fn serve(sources: Sources, settings: Settings, announce: impl FnOnce(&Server)) -> Result<bool> {
    let log = crate::observe::log::init(&settings.log)?;
    // Before anybody is told where we are, and may send signals.
    let mut signals = Signals::listen()?;
    let server = Server::start(sources, settings, Some(log))?;
    report_panics(Arc::clone(&server.state.proxy.metrics));
    announce(&server);
    signals.obey(&server);
    tracing::info!("draining");
    let access_log = Arc::clone(&server.state.proxy.access_log);
    std::thread::Builder::new().name("second-signal".into()).spawn(move || {
        signals.wait_for_end();
        tracing::warn!("second signal: ending without waiting for what is under way");
        access_log.close(); // takes two seconds at most
        std::process::exit(1);
    })?;
    let clean = server.drain();
    tracing::info!(clean, "ended");
    Ok(clean)
}

/// Prints the bound addresses, one a line: `listener http http://127.0.0.1:8080`.
fn announce(server: &Server) {
    let mut out = std::io::stdout().lock();
    let named = server.listeners().into_iter().map(|listener| (format!("listener {}", listener.name), listener.url()));
    let own = [("admin", server.admin), ("metrics", server.metrics)];
    let own = own.into_iter().filter_map(|(what, address)| Some((what.to_owned(), format!("http://{}", address?))));
    for (what, url) in named.chain(own) {
        let _ = writeln!(out, "{what} {url}"); // nobody may be reading
    }
    let _ = out.flush();
}

/// The signals that we act on; from the first moment on none of them does what it would by default.
struct Signals {
    runtime: Runtime,
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
    reopen: Signal,
}

enum Order {
    End,
    Reload,
    Reopen,
}

impl Signals {
    fn listen() -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let entered = runtime.enter();
        let listen = |kind| signal(kind).context("cannot listen for signals");
        let (terminate, interrupt) = (listen(SignalKind::terminate())?, listen(SignalKind::interrupt())?);
        let (hangup, reopen) = (listen(SignalKind::hangup())?, listen(SignalKind::user_defined1())?);
        drop(entered);
        Ok(Self { runtime, terminate, interrupt, hangup, reopen })
    }

    fn next(&mut self) -> Order {
        let Self { runtime, terminate, interrupt, hangup, reopen } = self;
        runtime.block_on(async {
            tokio::select! {
                _ = terminate.recv() => Order::End,
                _ = interrupt.recv() => Order::End,
                _ = hangup.recv() => Order::Reload,
                _ = reopen.recv() => Order::Reopen,
            }
        })
    }

    /// Until one says to end.
    fn obey(&mut self, server: &Server) {
        loop {
            match self.next() {
                Order::End => return,
                Order::Reload => _ = server.state.reload(), // a refusal is logged and counted there
                Order::Reopen => server.state.proxy.access_log.reopen(),
            }
        }
    }

    fn wait_for_end(&mut self) {
        while !matches!(self.next(), Order::End) {}
    }
}

/// Counts every panic, whichever thread or task it ends, and writes it to the log.
fn report_panics(metrics: Arc<Metrics>) {
    std::panic::set_hook(Box::new(move |panic| {
        metrics.panicked();
        let at = panic.location().map(ToString::to_string);
        let thread = std::thread::current();
        let backtrace = Backtrace::capture();
        let backtrace = (backtrace.status() == BacktraceStatus::Captured).then(|| backtrace.to_string());
        tracing::error!(at, thread = thread.name(), text = panic.payload_as_str(), backtrace, "panic");
    }));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_counted() {
        let metrics = Metrics::new(1);
        assert!(metrics.render().contains("\ntiercel_panics_total 0\n"));
        let before = std::panic::take_hook();
        report_panics(Arc::clone(&metrics));
        assert!(std::panic::catch_unwind(|| panic!("on purpose")).is_err());
        std::panic::set_hook(before);
        // Others may panic on purpose meanwhile: at least ours is there.
        assert!(!metrics.render().contains("\ntiercel_panics_total 0\n"));
    }
}
