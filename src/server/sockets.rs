//! Listening sockets: one per address and core with SO_REUSEPORT, so that cores share nothing while accepting.

use anyhow::{Context, Result};
use socket2::{Domain, Protocol, Socket, Type};
use std::net::{SocketAddr, TcpListener};

/// Connections that the kernel queues per socket before they are accepted.
const BACKLOG: i32 = 4096;

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

fn open(address: SocketAddr, shared: bool, listen: bool) -> std::io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(shared)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    if listen {
        socket.listen(BACKLOG)?;
    }
    Ok(socket.into())
}

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
    fn an_occupied_port_is_refused_also_with_several_sockets() {
        let first = bind(([127, 0, 0, 1], 0).into(), 2).unwrap();
        let address = first[0].local_addr().unwrap();
        assert_eq!(first[1].local_addr().unwrap(), address);
        assert!(bind(address, 2).unwrap_err().to_string().contains(&address.to_string()));
        assert!(bind(address, 1).is_err());
    }
}
