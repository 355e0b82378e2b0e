//! A link between a client and a server that can be cut, held, slowed and garbled.
//!
//! Plain threads and blocking sockets, so that it owes nothing to the runtime under test.

use parking_lot::{Condvar, Mutex};
use socket2::SockRef;
use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};

/// What is wrong with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Trouble {
    #[default]
    None,
    /// Connections are reset, further ones at once.
    Cut,
    /// Nothing comes through, in either direction, and no connection ends. What was sent meanwhile comes through later.
    Held,
    /// What the server sends comes so much later.
    Slow(Duration),
    /// One connection is let in each so long, others are reset at once.
    OneEvery(Duration),
    /// What the server sends is replaced by as many bytes that mean nothing.
    Garbled,
}

/// It listens on an address of its own, and goes on to the server's. It ends when dropped.
pub struct Link {
    address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    trouble: Trouble,
    server: SocketAddr,
    /// Both ends of each connection.
    open: HashMap<usize, [TcpStream; 2]>,
    accepted: usize,
    let_in_at: Option<Instant>,
    dropped: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    ToServer,
    ToClient,
}

/// Bytes, and when they were read.
type Piece = (Instant, Vec<u8>);

impl Link {
    /// It listens beside the server, where nobody else does: a process that outlived a test which was killed goes on connecting
    /// to where its link was, and a node among those would be one of this fleet.
    pub fn to(server: SocketAddr) -> Self {
        let listener = TcpListener::bind((server.ip(), 0)).expect("loopback has a free port");
        let address = listener.local_addr().expect("a bound socket has an address");
        let state = State { trouble: Trouble::None, server, open: HashMap::new(), accepted: 0, let_in_at: None, dropped: false };
        let shared = Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new() });
        std::thread::spawn({
            let shared = shared.clone();
            move || accept(&listener, &shared)
        });
        Self { address, shared }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Makes it so from now on.
    pub fn make(&self, trouble: Trouble) {
        let mut state = self.shared.state.lock();
        state.trouble = trouble;
        if trouble == Trouble::Cut {
            state.reset_all();
        }
        drop(state);
        self.shared.changed.notify_all();
    }

    pub fn mend(&self) {
        self.make(Trouble::None);
    }

    /// Leads further connections to another server; those that are open end.
    pub fn lead_to(&self, server: SocketAddr) {
        let mut state = self.shared.state.lock();
        state.server = server;
        state.reset_all();
    }

    /// Connections that were accepted so far.
    pub fn accepted(&self) -> usize {
        self.shared.state.lock().accepted
    }

    /// Connections that are open.
    pub fn open(&self) -> usize {
        self.shared.state.lock().open.len()
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        let mut state = self.shared.state.lock();
        state.dropped = true;
        state.reset_all();
        drop(state);
        self.shared.changed.notify_all();
        let _ = TcpStream::connect(self.address); // wakes the acceptor
    }
}

impl State {
    /// Whether another connection is let in now.
    fn lets_in(&mut self) -> bool {
        let is_let_in = match self.trouble {
            Trouble::Cut => false,
            Trouble::OneEvery(pause) => self.let_in_at.is_none_or(|before| before.elapsed() >= pause),
            _ => true,
        };
        if is_let_in {
            self.let_in_at = Some(Instant::now());
        }
        is_let_in
    }

    fn reset_all(&mut self) {
        for (_, ends) in self.open.drain() {
            for end in ends {
                let _ = SockRef::from(&end).set_linger(Some(Duration::ZERO)); // gone already
                let _ = end.shutdown(Shutdown::Both); // gone already
            }
        }
    }
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    for client in listener.incoming() {
        let Ok(client) = client else { continue };
        let mut state = shared.state.lock();
        if state.dropped {
            return;
        }
        state.accepted += 1;
        let number = state.accepted;
        if !state.lets_in() {
            let _ = SockRef::from(&client).set_linger(Some(Duration::ZERO)); // dropped, it is reset
            continue;
        }
        let server = state.server;
        drop(state);
        let shared = shared.clone();
        std::thread::spawn(move || join(number, client, server, &shared));
    }
}

fn join(number: usize, client: TcpStream, server: SocketAddr, shared: &Arc<Shared>) {
    let Ok(server) = TcpStream::connect(server) else {
        let _ = SockRef::from(&client).set_linger(Some(Duration::ZERO)); // dropped, it is reset
        return;
    };
    for end in [&client, &server] {
        let _ = end.set_nodelay(true); // slower, not wrong
    }
    let another = |end: &TcpStream| end.try_clone().expect("a descriptor is free");
    {
        let mut state = shared.state.lock();
        if state.trouble == Trouble::Cut || state.dropped {
            return;
        }
        state.open.insert(number, [another(&client), another(&server)]);
    }
    for (direction, from, to) in [(Direction::ToServer, &client, &server), (Direction::ToClient, &server, &client)] {
        let (sender, receiver) = sync_channel(64);
        let (from, to, shared) = (another(from), another(to), shared.clone());
        std::thread::spawn(move || read(from, &sender));
        std::thread::spawn(move || {
            write(direction, &to, &receiver, &shared);
            let _ = to.shutdown(Shutdown::Write); // gone already
            if direction == Direction::ToClient {
                shared.state.lock().open.remove(&number);
            }
        });
    }
}

fn read(mut from: TcpStream, pieces: &SyncSender<Piece>) {
    let mut bytes = [0; 16 * 1024];
    while let Ok(read @ 1..) = from.read(&mut bytes) {
        if pieces.send((Instant::now(), bytes[..read].to_vec())).is_err() {
            return;
        }
    }
}

fn write(direction: Direction, mut to: &TcpStream, pieces: &Receiver<Piece>, shared: &Shared) {
    while let Ok((read_at, mut piece)) = pieces.recv() {
        let mut state = shared.state.lock();
        loop {
            let due = match state.trouble {
                _ if state.dropped => return,
                Trouble::Held => None,
                Trouble::Slow(delay) if direction == Direction::ToClient => Some(read_at + delay),
                _ => break,
            };
            match due {
                None => shared.changed.wait(&mut state),
                Some(due) if due <= Instant::now() => break,
                Some(due) => _ = shared.changed.wait_until(&mut state, due),
            }
        }
        if state.trouble == Trouble::Garbled && direction == Direction::ToClient {
            piece.fill(b'?');
        }
        drop(state);
        if to.write_all(&piece).is_err() {
            return;
        }
    }
}
