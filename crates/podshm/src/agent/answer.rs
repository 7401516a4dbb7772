//! Answers: small ones at once, large ones part by part, late ones from any thread.

use crate::frames::{STATUS_FAILED, STATUS_OK};
use podshm_region::fork;
use rustix::io::write;
use std::fmt;
use std::os::fd::OwnedFd;
use std::sync::{Arc, mpsc};

/// Writes a part of an answer in place: offset, bytes.
pub(super) type Fill = Box<dyn FnMut(usize, &mut [u8]) + Send>;

/// The bytes of an answer.
pub(super) enum Body {
    /// In the agent's reusable buffer.
    InBuffer,
    /// Given.
    Bytes(Vec<u8>),
    /// Written on demand.
    Fill(usize, Fill),
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Body::InBuffer => f.write_str("InBuffer"),
            Body::Bytes(bytes) => write!(f, "Bytes({})", bytes.len()),
            Body::Fill(len, _) => write!(f, "Fill({len})"),
        }
    }
}

/// An answer that came later.
#[derive(Debug)]
pub(super) struct Inbound {
    pub(super) client: u64,
    pub(super) ring: usize,
    pub(super) id: u64,
    pub(super) status: u32,
    pub(super) bytes: Vec<u8>,
}

/// Where a handler puts its answer.
#[derive(Debug)]
pub struct Answer<'a> {
    pub(super) buffer: &'a mut Vec<u8>,
    pub(super) body: Option<Body>,
    pub(super) deferral: (&'a mpsc::Sender<Inbound>, &'a Arc<OwnedFd>),
    pub(super) to: (u64, usize, u64),
    pub(super) deferred: bool,
}

impl Answer<'_> {
    /// Answers with `bytes`.
    pub fn reply(&mut self, bytes: &[u8]) {
        self.buffer.clear();
        self.buffer.extend_from_slice(bytes);
        self.body = Some(Body::InBuffer);
    }

    /// Answers with bytes that are not copied again.
    pub fn reply_owned(&mut self, bytes: Vec<u8>) {
        self.body = Some(Body::Bytes(bytes));
    }

    /// Answers with `len` bytes that `fill(offset, part)` writes in place, part by part, as the client makes room.
    pub fn reply_with(&mut self, len: usize, fill: impl FnMut(usize, &mut [u8]) + Send + 'static) {
        self.body = Some(Body::Fill(len, Box::new(fill)));
    }

    /// Answers later, from any thread.
    pub fn defer(&mut self) -> Deferred {
        self.deferred = true;
        let (client, ring, id) = self.to;
        let process = fork::epoch();
        Deferred {
            process,
            to: Some((client, ring, id)),
            sender: self.deferral.0.clone(),
            event: Arc::clone(self.deferral.1),
        }
    }
}

/// The right and the duty to answer a request. Dropping it tells the caller that it failed.
#[derive(Debug)]
pub struct Deferred {
    process: u32,
    to: Option<(u64, usize, u64)>,
    sender: mpsc::Sender<Inbound>,
    event: Arc<OwnedFd>,
}

impl Deferred {
    /// Answers.
    pub fn reply(mut self, bytes: Vec<u8>) {
        self.send(STATUS_OK, bytes);
    }

    fn send(&mut self, status: u32, bytes: Vec<u8>) {
        // In a forked child the duty stays with the parent.
        if let (Some((client, ring, id)), true) = (self.to.take(), fork::epoch() == self.process) {
            let _ = self.sender.send(Inbound { client, ring, id, status, bytes });
            let _ = write(&self.event, &1u64.to_ne_bytes());
        }
    }
}

impl Drop for Deferred {
    fn drop(&mut self) {
        self.send(STATUS_FAILED, Vec::new());
    }
}
