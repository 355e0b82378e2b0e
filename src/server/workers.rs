//! Worker threads: one current_thread runtime each, or one shared multi-thread runtime (DESIGN section 9).

use super::accept::{self, Arrived, Doorway};
use crate::config::settings::Runtime;
use anyhow::{Context, Result};
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use tokio::sync::{mpsc, watch};

/// What a worker is told.
pub enum Command {
    /// Accept from this socket until `stop` turns true, then empty its queue and close it.
    Listen { socket: TcpListener, doorway: Arc<Doorway>, stop: watch::Receiver<bool>, open: Arc<()> },
    /// The same for HTTP/3.
    #[cfg(feature = "http3")]
    ListenQuic {
        socket: (std::net::UdpSocket, crate::config::settings::Http3),
        doorway: Arc<Doorway>,
        stop: watch::Receiver<bool>,
        open: Arc<()>,
    },
    /// Serve a connection that another worker accepted.
    Serve { arrived: Arrived, doorway: Arc<Doorway> },
    /// End: whatever connections are left are cut.
    End,
}

/// The threads that serve connections.
pub struct Workers {
    kind: Kind,
    pub shared: Arc<Shared>,
}

enum Kind {
    PerCore(Vec<JoinHandle<()>>),
    Shared(tokio::runtime::Runtime),
}

/// What workers know of each other.
pub struct Shared {
    /// Connections per worker.
    loads: Vec<AtomicUsize>,
    commands: Vec<mpsc::UnboundedSender<Command>>,
    /// One more reference per listening socket that is open.
    sockets: Arc<()>,
    /// One more reference per connection that is being turned away.
    turned_away: Arc<()>,
}

impl Shared {
    fn new(workers: usize, commands: Vec<mpsc::UnboundedSender<Command>>) -> Arc<Self> {
        let loads = (0..workers).map(|_| AtomicUsize::new(0)).collect();
        Arc::new(Self { loads, commands, sockets: Arc::default(), turned_away: Arc::default() })
    }

    /// Connections in the process.
    pub fn connections(&self) -> usize {
        self.loads.iter().map(|load| load.load(Ordering::Relaxed)).sum()
    }

    /// The same, worker by worker.
    pub fn connections_by_worker(&self) -> Vec<usize> {
        self.loads.iter().map(|load| load.load(Ordering::Relaxed)).collect()
    }

    /// Listening sockets that are open, those included that only empty their queues.
    pub fn open_sockets(&self) -> usize {
        Arc::strong_count(&self.sockets) - 1
    }

    /// Leave to turn a connection away politely, unless many are at it.
    pub fn turn_away(&self) -> Option<Arc<()>> {
        (Arc::strong_count(&self.turned_away) <= TURNED_AWAY_MAX).then(|| Arc::clone(&self.turned_away))
    }

    /// Counts a connection until the guard drops.
    pub fn count(self: &Arc<Self>, worker: usize) -> Counted {
        self.loads[worker].fetch_add(1, Ordering::Relaxed);
        Counted { shared: Arc::clone(self), worker }
    }

    /// The idlest other worker, where one connection more here would leave it with fewer than three quarters of ours.
    pub fn better_than(&self, worker: usize) -> Option<usize> {
        let load = |worker: usize| self.loads[worker].load(Ordering::Relaxed);
        let own = load(worker);
        if self.commands.len() < 2 || own < MIN_LOAD {
            return None;
        }
        (0..self.loads.len()).min_by_key(|other| load(*other)).filter(|idlest| load(*idlest) * 4 < (own + 1) * 3)
    }

    /// Whose counters a connection uses: the worker's own, or in turn where all share one runtime.
    pub fn counts_for(&self, worker: usize, turn: usize) -> usize {
        if self.commands.len() == self.loads.len() { worker } else { turn % self.loads.len() }
    }

    /// Gives a connection to the worker whose it is counted as.
    pub fn hand_over(&self, arrived: Arrived, doorway: &Arc<Doorway>) {
        let worker = &self.commands[arrived.counted.worker];
        let _ = worker.send(Command::Serve { arrived, doorway: Arc::clone(doorway) }); // fails only at the very end
    }
}

/// Below this many connections an uneven share is chance, not load.
const MIN_LOAD: usize = 8;

/// Connections above the limit that are told so at a time.
const TURNED_AWAY_MAX: usize = 256;

/// A connection that is counted.
pub struct Counted {
    shared: Arc<Shared>,
    worker: usize,
}

impl Counted {
    pub const fn worker(&self) -> usize {
        self.worker
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.shared.loads[self.worker].fetch_sub(1, Ordering::Relaxed);
    }
}

impl Workers {
    pub fn start(runtime: Runtime, count: usize) -> Result<Self> {
        match runtime {
            Runtime::PerCore => Self::per_core(count),
            Runtime::Shared => Self::multi_thread(count),
        }
    }

    fn per_core(count: usize) -> Result<Self> {
        let (commands, receivers): (Vec<_>, Vec<_>) = (0..count).map(|_| mpsc::unbounded_channel()).unzip();
        let shared = Shared::new(count, commands);
        let mut threads = Vec::with_capacity(count);
        for (worker, receiver) in receivers.into_iter().enumerate() {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().event_interval(EVENT_INTERVAL).build()?;
            let weak = Arc::downgrade(&shared);
            let thread = std::thread::Builder::new()
                .name(format!("worker-{worker}"))
                .spawn(move || runtime.block_on(obey(worker, receiver, weak)))
                .context("cannot start a worker thread")?;
            threads.push(thread);
        }
        Ok(Self { kind: Kind::PerCore(threads), shared })
    }

    fn multi_thread(count: usize) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(count).thread_name("worker").enable_all().build()?;
        let (command, receiver) = mpsc::unbounded_channel();
        let shared = Shared::new(count, vec![command]);
        runtime.spawn(obey(0, receiver, Arc::downgrade(&shared)));
        Ok(Self { kind: Kind::Shared(runtime), shared })
    }

    /// How many sockets an address needs.
    pub const fn sockets_per_address(runtime: Runtime, workers: usize) -> usize {
        match runtime {
            Runtime::PerCore => workers,
            Runtime::Shared => 1,
        }
    }

    /// Starts accepting; `sockets` are one per command queue.
    pub fn listen(&self, sockets: Vec<TcpListener>, doorway: &Arc<Doorway>, stop: &watch::Receiver<bool>) {
        for (socket, worker) in sockets.into_iter().zip(&self.shared.commands) {
            let (doorway, open) = (Arc::clone(doorway), Arc::clone(&self.shared.sockets));
            let _ = worker.send(Command::Listen { socket, doorway, stop: stop.clone(), open }); // threads outlive this
        }
    }

    /// The same for HTTP/3, whose socket is one worker's.
    #[cfg(feature = "http3")]
    pub fn listen_quic(
        &self,
        socket: (std::net::UdpSocket, crate::config::settings::Http3),
        doorway: &Arc<Doorway>,
        stop: &watch::Receiver<bool>,
    ) {
        let (doorway, open) = (Arc::clone(doorway), Arc::clone(&self.shared.sockets));
        let _ = self.shared.commands[0].send(Command::ListenQuic { socket, doorway, stop: stop.clone(), open }); // as above
    }

    /// Ends the threads; whatever connections are left are cut.
    pub fn end(self) {
        match self.kind {
            Kind::PerCore(threads) => {
                for worker in &self.shared.commands {
                    let _ = worker.send(Command::End); // it may have ended
                }
                for thread in threads {
                    let _ = thread.join(); // a panic there was reported already
                }
            }
            Kind::Shared(runtime) => runtime.shutdown_background(),
        }
    }
}

/// Polls of tasks between looks at the sockets: tokio's default of 61 lets pipelines and bursts starve accepting.
const EVENT_INTERVAL: u32 = 61;

async fn obey(worker: usize, mut commands: mpsc::UnboundedReceiver<Command>, shared: std::sync::Weak<Shared>) {
    while let Some(command) = commands.recv().await {
        let Some(shared) = shared.upgrade() else { return };
        match command {
            Command::Listen { socket, doorway, stop, open } => accept::spawn(worker, socket, doorway, shared, stop, open),
            #[cfg(feature = "http3")]
            Command::ListenQuic { socket, doorway, stop, open } => super::quic::spawn(worker, socket, doorway, shared, stop, open),
            Command::Serve { arrived, doorway } => accept::serve(arrived, &doorway),
            Command::End => return,
        }
    }
}
