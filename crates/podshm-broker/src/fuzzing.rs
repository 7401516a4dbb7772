//! The broker's decisions without its loop, for the project's own fuzz target: bytes and hang-ups go in, time is told, sockets come
//! out. No part of the API.

use crate::connections::Connection;
use crate::state::{Domain, DomainConfig, DomainStats, State};
use crate::{BrokerError, Identity, Rights};
use podshm_proto::{RefusalKind, decode_up};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

/// A broker's state, driven by hand.
#[derive(Debug)]
pub struct Decisions {
    state: State,
    domain: String,
    last: u64,
    later: Duration,
}

impl Decisions {
    /// A broker with one domain.
    pub fn new(config: DomainConfig) -> Result<Self, BrokerError> {
        let domain = config.name.clone();
        let mut state = State::default();
        state.domains.insert(domain.clone(), Domain::new(config)?);
        Ok(Decisions { state, domain, last: 0, later: Duration::ZERO })
    }

    /// A participant connects: the connection's number, and its end of the socket.
    pub fn connect(&mut self, who: Identity, rights: Rights) -> std::io::Result<(u64, OwnedFd)> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        self.last += 1;
        let connection = Connection::new(self.last, ours, self.domain.clone(), who, rights);
        self.state.connections.insert(self.last, connection);
        Ok((self.last, theirs))
    }

    /// One message of a participant; nothing where it has been cut off.
    pub fn message(&mut self, conn: u64, bytes: &[u8]) {
        if self.state.connections.get(&conn).is_none_or(|c| c.ending) {
            return;
        }
        match decode_up(bytes) {
            Ok(message) => self.state.message(conn, message),
            Err(error) => self.state.reject(conn, RefusalKind::Protocol, error),
        }
        self.state.commit();
    }

    /// A participant's process ends.
    pub fn hang_up(&mut self, conn: u64) {
        self.state.end(conn);
    }

    /// Time passes; what is overdue is done, and what was cut off ends.
    pub fn pass(&mut self, time: Duration) {
        self.later += time;
        let now = Instant::now() + self.later;
        self.state.check_agents(now);
        self.state.check_clients(now);
        self.state.check_returns(now, true);
        self.state.commit();
        self.settle();
    }

    /// Ends every connection that was cut off, as the loop does once its last words are sent.
    pub fn settle(&mut self) {
        loop {
            let ending: Vec<u64> = self.state.connections.values().filter(|c| c.ending).map(|c| c.id).collect();
            if ending.is_empty() {
                return;
            }
            ending.into_iter().for_each(|conn| self.state.end(conn));
        }
    }

    /// Whether the connection is there and not cut off.
    pub fn is_open(&self, conn: u64) -> bool {
        self.state.connections.get(&conn).is_some_and(|c| !c.ending)
    }

    /// What the domain holds.
    pub fn stats(&self) -> DomainStats {
        self.state.stats(&self.domain).unwrap_or_default()
    }

    /// Bytes of regions that nobody who is connected holds: the broker keeps them for a join or for a successor.
    pub fn kept_bytes(&self) -> u64 {
        let held = |id: u64| self.state.connections.keys().any(|conn| self.state.regions.is_held_by(id, *conn));
        self.state.regions.bytes_of(|region| !held(region.id))
    }
}
