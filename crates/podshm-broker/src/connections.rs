//! One connection: a socket that keeps message borders, with what could not be sent yet.

use crate::regions::ConnId;
use crate::rejoin::Returning;
use podshm_domain::{Identity, Rights, Spoken};
use podshm_proto::{Down, MAX_MESSAGE, PROTOCOL, RefusalKind, Refused, encode_down};
use podshm_region::descriptors;
use podshm_region::fork::ProcessFd;
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Instant;

/// Messages that may wait for a participant that doesn't read; past that it is cut off, by its own fault.
const MOST_WAITING: usize = 16 * 1024;

#[derive(Debug)]
pub(crate) enum Role {
    /// Has not said hello.
    New,
    /// It was here before this broker, and presents what it holds.
    Returning(Box<Returning>),
    /// A client's hello, waiting for an agent to serve it.
    Waiting,
    /// An agent's hello, waiting for room.
    Knocking,
    Client(u64),
    Agent,
}

#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) id: ConnId,
    pub(crate) socket: ProcessFd,
    /// The process that connected, while it lives and can be watched.
    pub(crate) process: Option<ProcessFd>,
    /// Since when that process is known to be dead.
    pub(crate) dead_since: Option<Instant>,
    pub(crate) domain: String,
    pub(crate) who: Identity,
    pub(crate) rights: Rights,
    pub(crate) role: Role,
    /// Its own name and version, as it said.
    pub(crate) software: String,
    /// The protocol that is spoken with it.
    pub(crate) protocol: u32,
    /// What it reads and writes, as it said.
    pub(crate) layouts: Spoken,
    /// It took the last descriptor: it is let in only to be told so.
    pub(crate) is_one_too_many: bool,
    pub(crate) since: Instant,
    pub(crate) ending: bool,
    pub(crate) ending_since: Option<Instant>,
    /// The loop has asked the kernel to say when the socket is writable.
    pub(crate) wants_out: bool,
    waiting: VecDeque<(Vec<u8>, Vec<ProcessFd>)>,
}

impl Connection {
    pub(crate) fn new(id: ConnId, socket: OwnedFd, domain: String, who: Identity, rights: Rights) -> Self {
        Connection {
            id,
            socket: ProcessFd::new(socket),
            process: None,
            dead_since: None,
            domain,
            who,
            rights,
            role: Role::New,
            software: String::new(),
            protocol: PROTOCOL,
            layouts: Spoken::OURS,
            is_one_too_many: false,
            since: Instant::now(),
            ending: false,
            ending_since: None,
            wants_out: false,
            waiting: VecDeque::new(),
        }
    }

    /// Queues a message: [`State::commit`](crate::state::State::commit) sends it. A participant that is gone is noticed by the loop.
    pub(crate) fn send(&mut self, message: Down, fds: Vec<OwnedFd>) {
        if self.waiting.len() >= MOST_WAITING {
            tracing::warn!(member = %self.who.name(), "participant does not read; cutting it off");
            self.ending = true;
            self.waiting.clear();
            return;
        }
        let fds = fds.into_iter().map(ProcessFd::new).collect();
        self.waiting.push_back((encode_down(message), fds));
    }

    pub(crate) fn refuse(&mut self, kind: RefusalKind, reason: impl ToString) {
        let message = reason.to_string();
        tracing::warn!(member = %self.who.name(), ?kind, message, "refused");
        self.send(Down::Refused(Refused { kind: kind.into(), message }), Vec::new());
    }

    pub(crate) fn flush(&mut self) {
        while let Some((bytes, fds)) = self.waiting.front() {
            let borrowed: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
            match descriptors::send(&self.socket, bytes, &borrowed) {
                Ok(()) => drop(self.waiting.pop_front()),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
                Err(_) => {
                    self.ending = true;
                    self.waiting.clear();
                }
            }
        }
    }

    pub(crate) fn has_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// The next message: `Ok(None)` where there is none now. Descriptors that a participant sends are closed unless it is one that comes
    /// back: it has none to give.
    pub(crate) fn receive(&mut self, buffer: &mut [u8; MAX_MESSAGE]) -> Result<Option<usize>, io::Error> {
        match descriptors::receive(&self.socket, buffer) {
            Ok((0, _)) => Err(io::ErrorKind::UnexpectedEof.into()),
            Ok((bytes, fds)) => {
                if let Role::Returning(returning) = &mut self.role {
                    returning.fds = fds;
                }
                Ok(Some(bytes))
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(e) => Err(e),
        }
    }
}
