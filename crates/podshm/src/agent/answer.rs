//! Answers: small ones at once, large ones part by part, late ones from any thread.

use super::answers::Answers;
use crate::frames::{ResponseHead, STATUS_FAILED, STATUS_OK};
use podshm_region::fork;
use rustix::io::write;
use std::fmt;
use std::os::fd::OwnedFd;
use std::sync::{Arc, mpsc};

/// Writes a part of an answer in place: offset, bytes.
pub(super) type Fill = Box<dyn FnMut(usize, &mut [u8]) + Send>;

/// The bytes of an answer that has no room yet.
pub(super) enum Body {
    /// Given.
    Bytes(Vec<u8>),
    /// Written on demand.
    Fill(Fill),
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Body::Bytes(bytes) => write!(f, "Bytes({})", bytes.len()),
            Body::Fill(_) => f.write_str("Fill"),
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

/// How answers that come later come.
#[derive(Debug)]
pub(super) struct Deferral {
    pub(super) sender: mpsc::Sender<Inbound>,
    pub(super) event: Arc<OwnedFd>,
    /// Deferred and not answered yet.
    pub(super) out: usize,
    /// The process that answers; not a child that a handler has forked.
    pub(super) process: u32,
}

impl Deferral {
    /// Whether this is the process that serves: a handler may have forked, and a child has none of the agent's memory. One load.
    #[inline(always)]
    pub(super) fn is_served_here(&self) -> bool {
        fork::epoch() == self.process
    }
}

/// Where a handler puts its answer. The first one counts. A child that the handler has forked answers nothing: that stays with its
/// parent.
#[derive(Debug)]
pub struct Answer<'a> {
    pub(super) answers: &'a mut Answers,
    pub(super) deferral: &'a mut Deferral,
    /// Client, ring of its answers, number of the call.
    pub(super) to: (u64, usize, u64),
    /// Longest answer of the service.
    pub(super) longest: usize,
    /// Answered, or to be answered later.
    pub(super) is_given: bool,
}

impl Answer<'_> {
    /// Answers with `bytes`.
    #[inline]
    pub fn reply(&mut self, bytes: &[u8]) {
        if let Some(head) = self.head(bytes.len())
            && !self.answers.at_once(head, |place| place.copy_from_slice(bytes))
        {
            self.answers.push(head, Body::Bytes(bytes.to_vec()));
        }
    }

    /// Answers with bytes that are not copied again if they have to wait for room.
    pub fn reply_owned(&mut self, bytes: Vec<u8>) {
        if let Some(head) = self.head(bytes.len())
            && !self.answers.at_once(head, |place| place.copy_from_slice(&bytes))
        {
            self.answers.push(head, Body::Bytes(bytes));
        }
    }

    /// Answers with `len` bytes that `fill(offset, part)` writes in place, part by part, as the client makes room.
    #[inline]
    pub fn reply_with(&mut self, len: usize, mut fill: impl FnMut(usize, &mut [u8]) + Send + 'static) {
        if let Some(head) = self.head(len)
            && !self.answers.at_once(head, |place| fill(0, place))
        {
            self.answers.push(head, Body::Fill(Box::new(fill)));
        }
    }

    /// Answers later, from any thread.
    pub fn defer(&mut self) -> Deferred {
        let to = (!self.is_given).then_some(self.to);
        self.deferral.out += usize::from(!self.is_given);
        self.is_given = true;
        let (sender, event) = (self.deferral.sender.clone(), Arc::clone(&self.deferral.event));
        Deferred { process: self.deferral.process, to, longest: self.longest, sender, event }
    }

    /// Says that the call failed, with a status of the agent's own from [`Answer::FIRST_STATUS`] on; 1 for no more than that.
    pub fn fail(&mut self, status: u32) {
        self.end(failure(status));
    }

    /// The first status that agents may give a meaning to; callers find it in [`Error::Failed`](crate::Error::Failed).
    pub const FIRST_STATUS: u32 = 16;

    /// An answer without bytes.
    pub(super) fn end(&mut self, status: u32) {
        if std::mem::replace(&mut self.is_given, true) || !self.deferral.is_served_here() {
            return;
        }
        let head = ResponseHead { id: self.to.2, total: 0, status };
        if !self.answers.at_once(head, |_| {}) {
            self.answers.push(head, Body::Bytes(Vec::new()));
        }
    }

    /// The head of the first answer; `None` where one was given, or where it is too long.
    #[inline(always)]
    fn head(&mut self, len: usize) -> Option<ResponseHead> {
        if !self.deferral.is_served_here() {
            return None;
        }
        if len > self.longest {
            too_long(len, self.longest);
            self.end(STATUS_FAILED);
            return None;
        }
        if std::mem::replace(&mut self.is_given, true) {
            return None;
        }
        Some(ResponseHead { id: self.to.2, total: len as u32, status: STATUS_OK })
    }
}

#[cold]
fn too_long(len: usize, longest: usize) {
    tracing::error!(len, longest, "an answer is longer than its service allows; the call fails");
}

/// What the caller is told: the agent's own status, or that of a call which failed for no reason that is said.
fn failure(status: u32) -> u32 {
    if status < Answer::FIRST_STATUS { STATUS_FAILED } else { status }
}

impl Drop for Answer<'_> {
    /// A handler that gave none leaves no caller waiting.
    #[inline]
    fn drop(&mut self) {
        self.end(STATUS_FAILED);
    }
}

/// The right and the duty to answer a request. Dropping it tells the caller that it failed.
#[derive(Debug)]
pub struct Deferred {
    process: u32,
    to: Option<(u64, usize, u64)>,
    longest: usize,
    sender: mpsc::Sender<Inbound>,
    event: Arc<OwnedFd>,
}

impl Deferred {
    /// Answers. One that is longer than its service allows fails the call.
    pub fn reply(mut self, bytes: Vec<u8>) {
        if bytes.len() > self.longest {
            too_long(bytes.len(), self.longest);
            return self.send(STATUS_FAILED, Vec::new());
        }
        self.send(STATUS_OK, bytes);
    }

    /// Says that the call failed, as [`Answer::fail`] does.
    pub fn fail(mut self, status: u32) {
        self.send(failure(status), Vec::new());
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
