//! Listening sockets: one per address and core with SO_REUSEPORT, so that cores share nothing while accepting. Of a socket
//! that has a path there is one, from which all cores accept; std's TcpListener serves as the owner of its descriptor.

use crate::config::settings::ListenAddress;
use anyhow::{Context, Result};
use socket2::{Domain, Protocol, SockAddr, SockFilter, SockRef, Socket, Type};
use std::fs::Permissions;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Connections that the kernel queues per socket before they are accepted.
const BACKLOG: i32 = 4096;

/// What a listener accepts from.
pub struct Opened {
    pub address: ListenAddress,
    pub sockets: Vec<TcpListener>,
    /// Where it is a socket of this machine.
    pub file: Option<SocketFile>,
}

/// As many sockets as there are workers to accept from them.
pub fn bind_listener(address: &ListenAddress, count: usize) -> Result<Opened> {
    match address {
        ListenAddress::Tcp(address) => {
            let sockets = bind(*address, count)?;
            Ok(Opened { address: ListenAddress::Tcp(sockets[0].local_addr()?), sockets, file: None })
        }
        ListenAddress::Unix { path, mode } => {
            let (socket, file) = bind_file(path, *mode).with_context(|| format!("cannot listen on {address}"))?;
            let sockets = (0..count).map(|_| socket.try_clone()).collect::<std::io::Result<_>>()?;
            Ok(Opened { address: address.clone(), sockets, file: Some(file) })
        }
    }
}

/// The name of a listening socket; dropped, it goes, unless it is somebody else's by then.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    /// Device and inode.
    identity: (u64, u64),
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if identity(&self.path).is_ok_and(|there| there == self.identity) {
            let _ = std::fs::remove_file(&self.path); // whoever starts next takes it for what it is
        }
    }
}

fn identity(path: &Path) -> std::io::Result<(u64, u64)> {
    let file = std::fs::symlink_metadata(path)?;
    Ok((file.dev(), file.ino()))
}

/// Binds under another name first, so that nobody connects before the permissions are right, and what a process left behind
/// that is gone is replaced at once.
fn bind_file(path: &Path, mode: u32) -> Result<(TcpListener, SocketFile)> {
    if let Ok(there) = std::fs::symlink_metadata(path) {
        anyhow::ensure!(there.file_type().is_socket(), "there is something that is no socket: choose another path, or remove it");
        let listens = Socket::new(Domain::UNIX, Type::STREAM, None)?.connect(&SockAddr::unix(path)?).is_ok();
        anyhow::ensure!(!listens, "another process listens there");
    }
    let mut new = path.as_os_str().to_owned();
    new.push(format!(".{}", std::process::id()));
    let new = PathBuf::from(new);
    let _ = std::fs::remove_file(&new); // of an earlier process with our number
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    socket.bind(&SockAddr::unix(&new)?).context("cannot bind: does the directory exist, and may this user write to it?")?;
    let placed = std::fs::set_permissions(&new, Permissions::from_mode(mode)).and_then(|()| {
        socket.listen(BACKLOG)?;
        std::fs::rename(&new, path)
    });
    if let Err(error) = placed {
        let _ = std::fs::remove_file(&new); // the error says enough
        return Err(error.into());
    }
    let file = SocketFile { path: path.to_owned(), identity: identity(path)? };
    Ok((socket.into(), file))
}

/// Binds `count` sockets to one address; port 0 is resolved by the first. All or none.
///
/// SO_REUSEPORT would silently share the port with another process of the same user, so the address is first bound
/// without it: an occupied port is an error, also here.
pub fn bind(address: SocketAddr, count: usize) -> Result<Vec<TcpListener>> {
    let told = || format!("cannot listen on {address}: is the port taken, or does it need a privilege?");
    if count <= 1 {
        return Ok(vec![open(address, false, true).with_context(told)?]);
    }
    if address.port() != 0 {
        drop(open(address, false, false).with_context(told)?);
    }
    let mut bound: Vec<TcpListener> = Vec::with_capacity(count);
    for _ in 0..count {
        let at = bound.first().map_or(Ok(address), TcpListener::local_addr)?;
        bound.push(open(at, true, true).with_context(told)?);
    }
    Ok(bound)
}

/// Binds the UDP socket beside those.
pub fn bind_udp(address: SocketAddr) -> Result<UdpSocket> {
    let socket = UdpSocket::bind(address).with_context(|| format!("cannot listen on {address} (UDP), for HTTP/3: is the port taken?"))?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

fn open(address: SocketAddr, shared: bool, listen: bool) -> std::io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(shared)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    if listen {
        // Accepted sockets have it from here, which saves each of them a call.
        socket.set_tcp_nodelay(true)?;
        socket.listen(BACKLOG)?;
    }
    Ok(socket.into())
}

/// Lets no new handshake begin on a listening socket, while those under way end and queued connections stay: a filter
/// drops segments that have SYN without ACK. The client tries again, and finds the port closed or a successor there.
pub fn refuse_handshakes(socket: &impl AsFd) -> std::io::Result<()> {
    const FLAGS_OF_SEGMENT: u32 = 13; // the filter sees the TCP header first
    const SYN: u32 = 0x02;
    const SYN_OR_ACK: u32 = 0x12;
    const WHOLE: u32 = u32::MAX;
    SockRef::from(socket).attach_filter(&[
        SockFilter::new(LOAD_BYTE, 0, 0, FLAGS_OF_SEGMENT),
        SockFilter::new(AND, 0, 0, SYN_OR_ACK),
        SockFilter::new(JUMP_IF_EQUAL, 0, 1, SYN),
        SockFilter::new(RETURN, 0, 0, 0),
        SockFilter::new(RETURN, 0, 0, WHOLE),
    ])
}

/// Opcodes of classic BPF (linux/bpf_common.h).
const LOAD_BYTE: u16 = 0x30;
const AND: u16 = 0x54;
const JUMP_IF_EQUAL: u16 = 0x15;
const RETURN: u16 = 0x06;

/// Raises the soft limit of open files to the hard one; the limits on connections derive from what comes out.
pub fn raise_descriptor_limit() -> u64 {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum }); // an old limit serves too
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_that_closes_takes_no_handshake_and_keeps_who_is_queued() {
        let socket = bind(([127, 0, 0, 1], 0).into(), 1).unwrap().remove(0);
        let address = socket.local_addr().unwrap();
        let queued = std::net::TcpStream::connect(address).unwrap();
        refuse_handshakes(&socket).unwrap();
        let late = std::net::TcpStream::connect_timeout(&address, std::time::Duration::from_millis(50)).unwrap_err();
        assert_eq!(late.kind(), std::io::ErrorKind::TimedOut);
        let (_, client) = socket.accept().unwrap();
        assert_eq!(client, queued.local_addr().unwrap());
        assert_eq!(socket.accept().unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
    }

    #[test]
    fn an_occupied_port_is_refused_also_with_several_sockets() {
        let first = bind(([127, 0, 0, 1], 0).into(), 2).unwrap();
        let address = first[0].local_addr().unwrap();
        assert_eq!(first[1].local_addr().unwrap(), address);
        assert!(bind(address, 2).unwrap_err().to_string().contains(&address.to_string()));
        assert!(bind(address, 1).is_err());
    }
}
