//! Whether the process that connected still lives, apart from its socket.
//!
//! ```text
//!  process dies ─┬─ its sockets close: the broker reads the end of the connection          at once, the usual way
//!                └─ a child (or somebody it was passed to) keeps the socket: no end comes  the pidfd says so, late
//! ```
//! Identity stays the socket; a pidfd decides nothing but this: who is dead is treated as gone although its socket is open, and
//! named, since whoever keeps the socket may keep the memory too, which nobody can then free. What the dead process had sent is read
//! first. Its region can't be written by anybody else: it was sealed against every other writer.

use crate::connections::{Connection, Role};
use crate::event_loop::Loop;
use crate::regions::ConnId;
use crate::state::State;
use podshm_proto::MAX_MESSAGE;
use podshm_region::fork::ProcessFd;
use podshm_region::peer::{Means, Peer, process_of};
use rustix::event::epoll;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

/// Tokens of processes are those of their connections with this bit.
const PROCESS: u64 = 1 << 63;
/// Turns of reading what a dead process had sent; past that somebody goes on sending in its name.
const TURNS: usize = 64;

/// How long a child that is being made may take to close what is its parent's: a daemon's starter ends right after its fork.
const GRACE: Duration = Duration::from_millis(500);

/// The connection whose process a token is about.
pub(crate) fn process_token(token: u64) -> Option<ConnId> {
    (token & PROCESS != 0).then_some(token & !PROCESS)
}

/// How this broker learns of deaths, for the log.
#[derive(Debug, Default)]
pub(crate) struct Liveness {
    means: Option<Means>,
    said_unknown: bool,
}

impl Liveness {
    /// Watches the process behind a new connection.
    pub(crate) fn watch(&mut self, poll: &OwnedFd, connection: &mut Connection) {
        let pidfd = match process_of(connection.socket.as_fd()) {
            Ok(Peer::Alive(pidfd, means)) => {
                self.say(means);
                pidfd
            }
            // Its hello may be in the socket; the end of the connection comes after it, or never: then it is silent and cut off.
            Ok(Peer::Dead) => return,
            Err(error) => {
                if !std::mem::replace(&mut self.said_unknown, true) {
                    tracing::warn!(%error, member = %connection.who.name(),
                        "processes that connect can't be watched: a socket that a child keeps hides its parent's death");
                }
                return;
            }
        };
        let token = epoll::EventData::new_u64(connection.id | PROCESS);
        match epoll::add(poll, &pidfd, token, epoll::EventFlags::IN) {
            Ok(()) => connection.process = Some(ProcessFd::new(pidfd)),
            Err(error) => tracing::warn!(%error, member = %connection.who.name(), "its process is not watched"),
        }
    }

    fn say(&mut self, means: Means) {
        if self.means.replace(means) == Some(means) {
            return;
        }
        match means {
            Means::PeerPidfd => tracing::debug!("deaths are seen by SO_PEERPIDFD"),
            Means::PeerCredentials => {
                tracing::info!("this kernel has no SO_PEERPIDFD (Linux 6.5): deaths are seen by the peer's pid")
            }
        }
    }
}

impl Loop {
    /// The process behind a connection has died; the end of the connection is to come by itself within [`GRACE`].
    pub(crate) fn process_died(&mut self, conn: ConnId, now: Instant) {
        let Some(connection) = self.state.connections.get_mut(&conn) else { return };
        if let Some(process) = connection.process.take() {
            let _ = epoll::delete(&self.poll, &process);
            connection.dead_since = Some(now);
        }
    }

    /// What is overdue: connections of dead processes that have not ended. What was sent through them is read first.
    pub(crate) fn check_dead(&mut self, now: Instant, buffer: &mut [u8; MAX_MESSAGE]) {
        let overdue = |c: &&Connection| c.dead_since.is_some_and(|since| now - since >= GRACE);
        let overdue: Vec<ConnId> = self.state.connections.values().filter(overdue).map(|c| c.id).collect();
        for conn in overdue {
            for _ in 0..TURNS {
                if !self.read(conn, buffer) {
                    break;
                }
            }
            self.state.end_held_open(conn);
        }
    }
}

impl State {
    /// Ends a connection whose process is dead while its socket is not; names it.
    fn end_held_open(&mut self, conn: ConnId) {
        let Some(connection) = self.connections.get_mut(&conn) else { return };
        if connection.ending {
            // Refused, or known to be hung up: its socket says nothing any more.
            return self.end(conn);
        }
        let (member, role) = (connection.who.name(), format!("{:?}", connection.role));
        let Some(domain) = self.domains.get_mut(&connection.domain) else { return self.end(conn) };
        domain.held_open += 1;
        if let Role::Client(id) = connection.role
            && let Some(client) = domain.clients.get_mut(&id)
        {
            client.held_open = true;
        }
        tracing::warn!(
            domain = domain.config.name,
            member,
            role,
            "the process is dead and its socket is kept open, by a child of its or somebody it was passed to; it is treated as gone. Close sockets in children, or make them by fork(3) or exec"
        );
        self.end(conn);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{DomainConfig, Identity, Rights, state::Domain};
    use podshm_proto::{Nothing, Up, encode_up};
    use rustix::event::{EventfdFlags, eventfd};
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
    use std::sync::Arc;

    /// A connection (number 1) whose process has just died, and its other end.
    fn dying() -> (Loop, OwnedFd) {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (socket, other) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
        let event = || eventfd(0, EventfdFlags::CLOEXEC).unwrap();
        let poll = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
        let mut event_loop = Loop::new(poll, Arc::new(event()), std::sync::mpsc::channel().1);
        event_loop.state.domains.insert("d".into(), Domain::new(DomainConfig::new("d")).unwrap());
        let (namespace, pod, uid, service_account) = ("n".into(), "p".into(), "u".into(), "s".into());
        let who = Identity { namespace, pod, uid, service_account };
        let mut connection = Connection::new(1, socket, "d".into(), who, Rights { join: true, serve: false });
        connection.process = Some(ProcessFd::new(event()));
        event_loop.state.connections.insert(1, connection);
        (event_loop, other)
    }

    fn held_open_after_death(event_loop: &mut Loop) -> u64 {
        let (now, mut buffer) = (Instant::now(), [0; MAX_MESSAGE]);
        event_loop.process_died(1, now);
        event_loop.process_died(1, now + GRACE);
        event_loop.check_dead(now + GRACE / 2, &mut buffer);
        assert_eq!(event_loop.state.stats("d").unwrap().held_open, 0, "too early");
        event_loop.check_dead(now + GRACE, &mut buffer);
        event_loop.check_dead(now + GRACE * 2, &mut buffer);
        assert!(event_loop.state.connections.is_empty(), "the connection is over");
        event_loop.state.stats("d").unwrap().held_open
    }

    #[test]
    fn a_socket_that_stays_open_is_named_once() {
        let (mut event_loop, _kept) = dying();
        assert_eq!(held_open_after_death(&mut event_loop), 1);
    }

    #[test]
    fn a_socket_that_closed_is_an_ordinary_end() {
        let (mut event_loop, other) = dying();
        drop(other);
        assert_eq!(held_open_after_death(&mut event_loop), 0);
    }

    #[test]
    fn what_the_dead_process_had_sent_is_read_first() {
        let (mut event_loop, kept) = dying();
        // Not what a newcomer may say: it is refused, and that is its end.
        rustix::io::write(&kept, &encode_up(Up::Bye(Nothing {}))).unwrap();
        assert_eq!(held_open_after_death(&mut event_loop), 0);
        assert_eq!(event_loop.state.stats("d").unwrap().refused, 1);
    }

    #[test]
    fn whoever_goes_on_sending_in_its_name_is_cut_off() {
        let (mut event_loop, kept) = dying();
        if let Some(connection) = event_loop.state.connections.get_mut(&1) {
            connection.role = Role::Waiting;
        }
        let nothing = encode_up(Up::Release(podshm_proto::RegionIds { ids: Vec::new() }));
        while rustix::io::write(&kept, &nothing).is_ok() {}
        assert_eq!(held_open_after_death(&mut event_loop), 1);
    }
}
