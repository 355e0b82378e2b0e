//! The fleet's journal over a real Redis: drives [`Fleet`], on a thread of its own.
//!
//! What is decided is decided there; here commands are sent, answers are read, and time passes. Start reading at `run`.
//! How things are written in Redis is `fleet::codec`; the scripts here do what has to happen there at once.

mod commands;

use super::fleet::protocol::{Answer, Command, Found, Instance, Policy};
use super::fleet::{Action, Event, Fleet, Note, Settings};
use super::{Journal, Mode, Position, Receipt, Selector};
use crate::clock;
use crate::config::settings::{self, OnCutoff};
use crate::observe::log::RateLimit;
use crate::observe::metrics::{JournalClass, JournalEvent, Metrics};
use crate::redis::Redis;
use crate::semantics::Now;
use crate::sync::Mutex;
use commands::Commands;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc as blocking;
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::AbortHandle;
use tokio::time::timeout;

/// How long a node that ends waits until the fleet was told all that is in force here; and then until Redis has noted that
/// it left.
const LEAVE_WAIT: Duration = Duration::from_secs(1);
/// How long it may take until Redis has noted that a node is forgotten: a little more than it is tried.
const FORGET_WAIT: Duration = Duration::from_secs(6);
/// What may happen with each read is logged no more often.
const LOGGED_EVERY_MS: u64 = 60_000;

/// This node's end of the fleet's journal.
pub struct Stream {
    journal: Arc<Journal>,
    redis: Redis,
    /// Bounded by those who send: one of each purge, and what commands came to, of which the fleet has some dozens.
    inputs: mpsc::UnboundedSender<Input>,
    /// Counts changes of receipts.
    told: watch::Sender<u64>,
    view: Mutex<View>,
    has_started: AtomicBool,
    is_name_taken: AtomicBool,
    /// A tick is on its way already.
    is_nudged: AtomicBool,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// The fleet as this node sees it.
#[derive(Debug, Clone, Default)]
pub struct View {
    /// This node.
    pub node: String,
    pub applied: Position,
    /// Own purges that have no place in the journal yet.
    pub unappended: usize,
    /// The others.
    pub nodes: Vec<OtherNode>,
}

/// Another node, as its last heartbeat that was seen here had it.
#[derive(Debug, Clone)]
pub struct OtherNode {
    pub name: String,
    pub policy: &'static str,
    pub applied: Position,
    /// Since when no later heartbeat was seen.
    pub unheard_ms: u64,
}

enum Input {
    Event(Event),
    /// Forget the node of this name, and say when Redis has noted it.
    Forget(String, oneshot::Sender<()>),
    /// Leave, and end.
    End(blocking::Sender<()>),
}

impl Stream {
    /// Follows the journal until [`Stream::leave`]. Whether Redis is there makes no difference to whether this succeeds.
    pub fn start(settings: &settings::Settings, redis: Redis, journal: Arc<Journal>, metrics: Arc<Metrics>) -> io::Result<Arc<Self>> {
        let (inputs, received) = mpsc::unbounded_channel();
        let own = &settings.journal;
        let fleet = Fleet::new(
            Settings {
                name: own.node.clone(),
                policy: policy(own),
                trust_ms: clock::ms(own.trust),
                repair_ms: clock::ms(own.repair),
                forget_after_ms: clock::ms(own.forget_after),
                receipts: settings.purge.bounds.receipts,
            },
            Instance(rand::random()),
            Arc::clone(&journal),
        );
        let stream = Arc::new(Self {
            journal,
            redis: redis.clone(),
            inputs: inputs.clone(),
            told: watch::Sender::new(0),
            view: Mutex::new(View { node: own.node.clone(), ..View::default() }),
            has_started: AtomicBool::new(false),
            is_name_taken: AtomicBool::new(false),
            is_nudged: AtomicBool::new(false),
            thread: Mutex::new(None),
        });
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (max_entries, trust, shared) = (own.max_entries, own.trust, Arc::clone(&stream));
        let thread = std::thread::Builder::new().name("journal".into()).spawn(move || {
            runtime.block_on(async move {
                let commands = Arc::new(Commands::new(&redis, max_entries, trust));
                let foreign_logged = RateLimit::new(LOGGED_EVERY_MS);
                let driver = Driver {
                    fleet,
                    stream: shared,
                    commands,
                    redis,
                    metrics,
                    inputs,
                    read: None,
                    trust,
                    foreign_logged,
                    forgetting: Vec::new(),
                };
                driver.run(received).await;
            });
        })?;
        *stream.thread.lock() = Some(thread);
        Ok(stream)
    }

    /// Applies a purge here at once and has it told to the fleet.
    pub fn purge(&self, selectors: Vec<Selector>, mode: Mode, actor: &str, now: Now) -> Receipt {
        let purge = self.journal.issue(selectors, mode, actor, now);
        let receipt = Receipt::provisional(purge.clone());
        self.send(Event::Issued(purge));
        receipt
    }

    /// An unsafe method has invalidated something: the fleet is told shortly.
    pub fn nudge(&self) {
        if !self.is_nudged.swap(true, Ordering::AcqRel) {
            self.send(Event::Tick);
        }
    }

    /// Changes whenever a receipt may have.
    pub fn told(&self) -> watch::Receiver<u64> {
        self.told.subscribe()
    }

    /// Where the journal is.
    pub const fn redis(&self) -> &Redis {
        &self.redis
    }

    pub fn view(&self) -> View {
        self.view.lock().clone()
    }

    /// Whether everything was read that was there when this node came.
    pub fn has_started(&self) -> bool {
        self.has_started.load(Ordering::Acquire)
    }

    /// Another life of this node's name keeps it from being registered: a node that runs, or one that was killed just now.
    pub fn is_name_taken(&self) -> bool {
        self.is_name_taken.load(Ordering::Acquire)
    }

    /// No purge of any node waits any longer for the node of this name.
    pub async fn forget(&self, name: &str) -> Result<(), NotForgotten> {
        if !self.view.lock().nodes.iter().any(|node| node.name == name) {
            return Err(NotForgotten::Unknown);
        }
        let (noted, is_noted) = oneshot::channel();
        let _ = self.inputs.send(Input::Forget(name.to_owned(), noted)); // a node that ends drops it
        match timeout(FORGET_WAIT, is_noted).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) | Err(_) => Err(NotForgotten::NotNoted),
        }
    }

    /// Tells the fleet that this node serves no more, and ends. To be called when it does not.
    pub fn leave(&self) {
        let (done, left) = blocking::channel();
        let _ = self.inputs.send(Input::End(done)); // it has ended
        let _ = left.recv(); // an error says the same
        if let Some(thread) = self.thread.lock().take()
            && thread.join().is_err()
        {
            tracing::error!("the journal's thread panicked");
        }
    }

    fn send(&self, event: Event) {
        let _ = self.inputs.send(Input::Event(event)); // only a node that ends has no receiver
    }
}

/// Why a node is waited for as before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotForgotten {
    /// No other node has this name.
    Unknown,
    /// Redis has not noted it, as far as is known.
    NotNoted,
}

fn policy(own: &settings::Journal) -> Policy {
    let every_ms = clock::ms(own.revalidate_every);
    match own.on_cutoff {
        OnCutoff::Serve => Policy::Serve { at_most_ms: Some(clock::ms(own.serves_for())), every_ms },
        OnCutoff::Revalidate => Policy::Revalidate { every_ms },
        OnCutoff::Bypass => Policy::Bypass,
    }
}

struct Driver {
    fleet: Fleet,
    stream: Arc<Stream>,
    commands: Arc<Commands>,
    redis: Redis,
    metrics: Arc<Metrics>,
    inputs: mpsc::UnboundedSender<Input>,
    /// The read that waits for news.
    read: Option<AbortHandle>,
    trust: Duration,
    foreign_logged: RateLimit,
    /// Who waits until Redis has noted that the node of this name is forgotten.
    forgetting: Vec<(String, oneshot::Sender<()>)>,
}

impl Driver {
    async fn run(mut self, mut inputs: mpsc::UnboundedReceiver<Input>) {
        while let Some(input) = self.next(&mut inputs).await {
            if let Input::End(done) = input {
                self.leave(inputs).await;
                let _ = done.send(()); // whoever asked may not wait
                return;
            }
            self.take_input(input);
        }
    }

    /// What comes next, or that it is time.
    async fn next(&self, inputs: &mut mpsc::UnboundedReceiver<Input>) -> Option<Input> {
        let wait = Duration::from_millis(self.fleet.wake_at().saturating_sub(clock::now().mono_ms));
        timeout(wait, inputs.recv()).await.unwrap_or(Some(Input::Event(Event::Tick)))
    }

    fn take_input(&mut self, input: Input) {
        match input {
            Input::Event(event) => self.take(event),
            Input::Forget(name, noted) => {
                self.forgetting.retain(|(_, noted)| !noted.is_closed());
                self.forgetting.push((name.clone(), noted));
                self.take(Event::Forget(name));
            }
            Input::End(_) => {} // it ends already
        }
    }

    fn take(&mut self, event: Event) {
        if matches!(event, Event::Tick) {
            // Before it is looked at what there is to tell: whatever comes later nudges anew.
            self.stream.is_nudged.store(false, Ordering::Release);
        }
        let now = clock::now();
        if matches!(event, Event::Failed(..)) {
            self.look_elsewhere(now);
        }
        self.observe(&event, now);
        for action in self.fleet.on(event, now) {
            self.act(action, now);
        }
        self.show(now);
    }

    /// A server that answers and takes nothing may have been replaced as master: where the trust has lapsed over that, the
    /// connections are made anew, and who is master is asked for.
    fn look_elsewhere(&self, now: Now) {
        if !self.stream.journal.is_trusted(now) {
            self.commands.reconnect_after(self.trust);
        }
    }

    fn act(&mut self, action: Action, now: Now) {
        match action {
            Action::Send(ticket, command) => {
                let (is_read, class) = (matches!(command, Command::Read(_)), class(&command));
                let (commands, inputs, metrics) = (Arc::clone(&self.commands), self.inputs.clone(), Arc::clone(&self.metrics));
                let task = tokio::spawn(async move {
                    let outcome = commands.run(command).await;
                    if let (Some(class), Ok(Answer::Appended(Some(_)))) = (class, &outcome) {
                        metrics.journal.appended(class);
                    }
                    let event = match outcome {
                        Ok(answer) => Event::Answered(ticket, answer),
                        Err(error) => Event::Failed(ticket, error.to_string()),
                    };
                    let _ = inputs.send(Input::Event(event)); // the node ends
                });
                if is_read && let Some(before) = self.read.replace(task.abort_handle()) {
                    before.abort();
                }
            }
            Action::Told(_) => self.stream.told.send_modify(|changes| *changes += 1),
            Action::Forgotten(name) => {
                let all = std::mem::take(&mut self.forgetting);
                let (noted, waiting): (Vec<_>, Vec<_>) = all.into_iter().partition(|(waits_for, _)| *waits_for == name);
                self.forgetting = waiting;
                for (_, noted) in noted {
                    let _ = noted.send(()); // whoever asked may not wait
                }
            }
            Action::Note(note) => self.note(note, now),
        }
    }

    /// What the metrics tell of an answer, before it is acted on.
    fn observe(&self, event: &Event, now: Now) {
        let metrics = &self.metrics.journal;
        match event {
            Event::Answered(_, Answer::Read(Found { purges, unsafe_methods, .. })) => {
                let now_there = self.redis.time_ms(now.wall_ms);
                for entry in purges.iter().filter(|entry| entry.position > self.fleet.applied()) {
                    let appended_ms = i64::try_from(entry.position.ms).unwrap_or(i64::MAX);
                    let took_ms = now_there.saturating_sub(appended_ms).max(0).unsigned_abs();
                    metrics.propagated(Duration::from_millis(took_ms));
                }
                metrics.applied(JournalClass::Purge, purges.len());
                metrics.applied(JournalClass::UnsafeMethod, unsafe_methods.len());
            }
            Event::Answered(_, Answer::Beat(answer)) => {
                if let Some(record) = &answer.record {
                    let applied = self.fleet.applied();
                    // Where nothing was applied yet, since the epoch began: that is its number.
                    let since_ms = applied.ms.max(applied.epoch);
                    metrics.lag(if applied < record.last { record.last.ms.saturating_sub(since_ms) } else { 0 });
                }
            }
            Event::Failed(..) => metrics.event(JournalEvent::CommandFailed, 1),
            _ => {}
        }
    }

    fn note(&self, note: Note, now: Now) {
        let applied = self.fleet.applied();
        let (event, count) = match note {
            Note::Loss(refusal) => {
                tracing::error!(%applied, ?refusal, "Redis has lost entries of the journal: a new epoch is proposed");
                (JournalEvent::Loss, 1)
            }
            Note::ServerChanged => {
                tracing::warn!(%applied, "another server keeps the journal");
                (JournalEvent::ServerChanged, 1)
            }
            Note::Unvouched => {
                tracing::error!(%applied, "nobody can say that the server that keeps the journal has all of it: a new epoch is proposed");
                (JournalEvent::Unvouched, 1)
            }
            Note::Epoch { epoch, kept } => {
                tracing::warn!(epoch, kept, "the journal has a new epoch");
                (JournalEvent::Epoch, 1)
            }
            Note::BehindTrim => {
                tracing::warn!(%applied, "entries of the journal were trimmed before they were read here: what is stored is dropped");
                (JournalEvent::BehindTrim, 1)
            }
            Note::Gap => {
                tracing::warn!(%applied, "an entry of the journal does not follow the last one applied");
                (JournalEvent::Gap, 1)
            }
            Note::Hole => {
                tracing::error!(%applied, "entries of the journal were taken out of its stream in Redis: what is stored is dropped");
                (JournalEvent::Hole, 1)
            }
            Note::Foreign { entries } => {
                let held_back = self.foreign_logged.pass(now.mono_ms);
                if let Some(held_back) = held_back {
                    tracing::warn!(entries, held_back, "the journal's stream in Redis has entries that are not the journal's: passed over");
                }
                (JournalEvent::Foreign, entries)
            }
            Note::Repaired { purges } => {
                tracing::info!(purges, "purges of this node are appended to the new epoch");
                (JournalEvent::Repaired, purges)
            }
            Note::GivenUp { purges } => {
                tracing::error!(
                    purges,
                    "more purges wait for Redis than are kept (purge.receipts): in the stead of these everything is purged when it is back"
                );
                (JournalEvent::GivenUp, purges)
            }
            Note::StoodIn => {
                tracing::error!(%applied, "more invalidations waited for Redis than are kept: the fleet drops everything in their stead");
                (JournalEvent::StoodIn, 1)
            }
            Note::NameTaken => {
                tracing::error!(
                    node = self.stream.view.lock().node,
                    "another running node has the name of this one, which stays cut off from the fleet's journal until it has one of its \
                     own: set journal.node"
                );
                (JournalEvent::NameTaken, 1)
            }
        };
        self.metrics.journal.event(event, count);
    }

    /// What others read.
    fn show(&self, now: Now) {
        if self.fleet.has_started() && !self.stream.has_started.swap(true, Ordering::AcqRel) {
            tracing::info!(applied = %self.fleet.applied(), "the journal is followed");
        }
        self.stream.journal.set_remembered(self.fleet.is_remembered());
        self.stream.is_name_taken.store(self.fleet.is_name_taken(), Ordering::Release);
        let mut view = self.stream.view.lock();
        view.applied = self.fleet.applied();
        view.unappended = self.fleet.unappended();
        self.metrics.journal.unappended(view.unappended);
        view.nodes.clear();
        view.nodes.extend(self.fleet.members().map(|seen| OtherNode {
            name: seen.member.name.clone(),
            policy: policy_name(seen.member.policy),
            applied: seen.member.applied,
            unheard_ms: now.mono_ms.saturating_sub(seen.changed_at),
        }));
        self.metrics.journal.nodes(view.nodes.len() + 1);
    }

    /// When the fleet was told all that is in force here, until Redis has noted that; or does not answer.
    async fn leave(mut self, mut inputs: mpsc::UnboundedReceiver<Input>) {
        let told = async {
            while self.fleet.untold() > 0
                && let Some(input) = self.next(&mut inputs).await
            {
                self.take_input(input);
            }
        };
        let _ = timeout(LEAVE_WAIT, told).await; // what is left is counted
        let left = self.fleet.untold();
        if left > 0 {
            tracing::error!(left, "purges and writes of this node that the fleet was not told end with it: purge again elsewhere");
        }
        let now = clock::now();
        let mut awaited = None;
        for action in self.fleet.on(Event::Leave, now) {
            if let Action::Send(ticket, _) = &action {
                awaited = Some(*ticket);
            }
            self.act(action, now);
        }
        let answered = async {
            while let Some(input) = inputs.recv().await {
                if let Input::Event(Event::Answered(ticket, _) | Event::Failed(ticket, _)) = input
                    && Some(ticket) == awaited
                {
                    return;
                }
            }
        };
        if timeout(LEAVE_WAIT, answered).await.is_err() {
            tracing::warn!("Redis did not note in time that this node left: purges wait for it until its registration lapses");
        }
    }
}

/// Of what is appended.
const fn class(command: &Command) -> Option<JournalClass> {
    match command {
        Command::Append { .. } => Some(JournalClass::Purge),
        Command::AppendUnsafe { .. } => Some(JournalClass::UnsafeMethod),
        _ => None,
    }
}

const fn policy_name(policy: Policy) -> &'static str {
    match policy {
        Policy::Serve { .. } => "serve",
        Policy::Revalidate { .. } => "revalidate",
        Policy::Bypass => "bypass",
    }
}
