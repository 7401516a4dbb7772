//! A broker gives way to its successor: it passes on the regions, which would die with it where nobody else holds them, and ends.
//!
//! ```text
//!  new                                          old, which has the lock
//!    ├─ connects to DIRECTORY/handover.sock ──────► writes down what it knows; handles nothing from here on
//!    │◄───── region numbers + descriptors, 128 at a time, then an empty message
//!    ├─ one byte ─────────────────────────────────► ends; its sockets hang up, the kernel lets the lock go
//!    └─ takes the lock, reads the ledger, serves: participants come back as after a crash
//! ```
//! An old one that dies in the midst leaves what it has passed on so far and its ledger. One that does not answer is killed: it is
//! stopped or stuck, and while it has the lock nobody serves. A new one that dies in the midst changes nothing: the old one goes on.

use crate::BrokerError;
use crate::event_loop::Loop;
use podshm_layout::step::{self, Step};
use podshm_region::peer::{Peer, credentials, process_of};
use podshm_region::{Memory, descriptors};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, connect, listen, socket_with,
};
use rustix::process::{Signal, pidfd_send_signal};
use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long either side waits for the other's next word.
const PATIENCE: Duration = Duration::from_secs(3);
/// Regions in one message.
const AT_ONCE: usize = 128;
const SOCKET: &str = "handover.sock";

/// Where the next broker asks this one to give way. In root's own directory: nobody else gets there.
pub(crate) fn listen_for_successor(directory: &Path) -> Result<OwnedFd, BrokerError> {
    let path = directory.join(SOCKET);
    let listening = || -> io::Result<OwnedFd> {
        let temporary: PathBuf = directory.join(".handover.sock.new");
        let _ = std::fs::remove_file(&temporary);
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        bind(&socket, &SocketAddrUnix::new(&temporary)?)?;
        listen(&socket, 4)?;
        std::fs::rename(&temporary, &path)?;
        Ok(socket)
    };
    listening().map_err(|source| BrokerError::System { what: format!("listening at {}", path.display()), source })
}

/// Asks the broker that has the lock to give way; returns what it has passed on. It is ending, or dead, when this returns.
pub(crate) fn ask_to_give_way(directory: &Path) -> BTreeMap<u64, Memory> {
    let mut passed = BTreeMap::new();
    let asked = || -> io::Result<OwnedFd> {
        let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        set_socket_timeout(&socket, Timeout::Recv, Some(PATIENCE))?;
        set_socket_timeout(&socket, Timeout::Send, Some(PATIENCE))?;
        connect(&socket, &SocketAddrUnix::new(directory.join(SOCKET))?)?;
        Ok(socket)
    };
    let socket = match asked() {
        Ok(socket) => socket,
        // It has just begun, or just ended.
        Err(error) => {
            tracing::debug!(%error, "no broker to ask");
            return passed;
        }
    };
    match receive_all(&socket, &mut passed) {
        Ok(()) => tracing::info!(regions = passed.len(), "the broker before this one gives way"),
        Err(error) => {
            tracing::warn!(%error, regions = passed.len(), "the broker before this one does not pass everything on");
            end(&socket);
        }
    }
    passed
}

fn receive_all(socket: &OwnedFd, passed: &mut BTreeMap<u64, Memory>) -> io::Result<()> {
    let mut buffer = [0; 8 * AT_ONCE];
    loop {
        let (bytes, fds) = descriptors::receive(socket, &mut buffer)?;
        match bytes {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            1 => break,
            _ => {}
        }
        for (id, fd) in buffer[..bytes].chunks_exact(8).zip(fds) {
            let id = u64::from_le_bytes(id.try_into().expect("eight bytes"));
            passed.insert(id, Memory::from_fd(fd).map_err(io::Error::other)?);
        }
    }
    descriptors::send(socket, &[1], &[])
}

/// Kills the broker at the other end, if it is another process: it has had its time.
fn end(socket: &OwnedFd) {
    let own = rustix::process::getpid().as_raw_nonzero().get();
    match (credentials(socket), process_of(socket.as_fd())) {
        (Ok(peer), Ok(Peer::Alive(process, _))) if peer.pid != own => {
            tracing::warn!(pid = peer.pid, "the broker before this one does not answer; it is killed");
            let _ = pidfd_send_signal(process, Signal::KILL);
        }
        _ => {}
    }
}

impl Loop {
    /// A successor is at the door.
    pub(crate) fn give_way(&mut self) {
        let Some(door) = self.door.as_ref() else { return };
        let Ok(socket) = accept_with(door, SocketFlags::CLOEXEC) else { return };
        self.state.commit();
        step::at(Step::Handing);
        match self.pass_on(&socket) {
            Ok(()) => {
                tracing::info!("another broker takes over from this one");
                step::at(Step::Handed);
                (self.stop, self.gives_way) = (true, true);
            }
            Err(error) => tracing::warn!(%error, "the next broker has gone; this one goes on"),
        }
    }

    fn pass_on(&self, socket: &OwnedFd) -> io::Result<()> {
        if self.state.unwritten.is_some() {
            return Err(io::Error::other("the ledger can't be written, so nobody could go on from it"));
        }
        set_socket_timeout(socket, Timeout::Send, Some(PATIENCE))?;
        set_socket_timeout(socket, Timeout::Recv, Some(PATIENCE))?;
        let all: Vec<(u64, &Memory)> = self.state.regions.pass_on().collect();
        for some in all.chunks(AT_ONCE) {
            let ids: Vec<u8> = some.iter().flat_map(|(id, _)| id.to_le_bytes()).collect();
            let fds: Vec<_> = some.iter().map(|(_, memory)| memory.as_fd()).collect();
            descriptors::send(socket, &ids, &fds)?;
        }
        descriptors::send(socket, &[0], &[])?;
        match descriptors::receive(socket, &mut [0; 8])? {
            (0, _) => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(()),
        }
    }
}
