//! One call service of this process: requests out, responses in.

use super::Shared;
use super::inbox::{Inbox, Sink};
use super::link::Channel;
use super::outlet::Outlet;
use crate::error::Error;
use crate::frames::{self, REQUEST, RequestHead};
use podshm_layout::ring::{Part, PushError};
use podshm_layout::step::{self, Step};
use podshm_region::biased::{Biased, Guard};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// What threads share of a call service.
#[derive(Debug)]
pub(crate) struct CallService {
    line: Biased<CallLine>,
    /// What a thread that waits looks at without the lock: where the next response will lie, and how many were kept for others.
    position: AtomicU64,
    completions: AtomicU64,
    /// Calls that were given up from within a callback, by a thread that had the line then; whether there are any.
    given_up: Mutex<Vec<u64>>,
    has_given_up: AtomicBool,
    ring: usize,
}

/// What a thread knew when it last had the lock.
#[derive(Debug)]
pub(super) struct Known {
    channel: Arc<Channel>,
    version: u64,
    completions: u64,
}

impl Known {
    pub(super) fn channel(&self) -> &Channel {
        &self.channel
    }
}

#[derive(Debug)]
pub(crate) struct CallLine {
    pub(super) outlet: Outlet,
    pub(super) inbox: Inbox,
    pub(super) last_id: u64,
    /// The call whose request is half written: its other parts come next in the ring.
    pub(super) sending: Option<u64>,
}

impl CallService {
    pub(crate) fn new(outlet: Outlet, inbox: Inbox, ring: usize) -> Self {
        let position = AtomicU64::new(inbox.signs().0);
        let line = Biased::plain(CallLine { outlet, inbox, last_id: 0, sending: None });
        let (completions, given_up, has_given_up) = Default::default();
        CallService { line, position, completions, given_up, has_given_up, ring }
    }

    /// See [`Biased::allow_owner`].
    pub(super) fn allow_owner(&self) -> bool {
        self.line.allow_owner()
    }

    #[inline(always)]
    pub(super) fn enter(&self) -> Result<Guard<'_, CallLine>, Error> {
        Ok(self.line.enter()?)
    }

    /// For the library thread.
    pub(super) fn visit(&self) -> Result<Guard<'_, CallLine>, Error> {
        Ok(self.line.visit()?)
    }

    /// Nobody waits for call `id` any more. From within a callback that runs under the line it is forgotten when that is next pumped, which is
    /// before a response to it is kept.
    pub(super) fn give_up(&self, id: u64) {
        if let Ok(mut line) = self.enter() {
            line.give_up(id);
        } else {
            self.given_up.lock().unwrap_or_else(PoisonError::into_inner).push(id);
            // Relaxed: seen by whoever has the line next, of which this thread lets go after this.
            self.has_given_up.store(true, Ordering::Relaxed);
        }
    }

    #[cold]
    fn forget_given_up(&self, line: &mut CallLine) {
        self.has_given_up.store(false, Ordering::Relaxed);
        let given_up = std::mem::take(&mut *self.given_up.lock().unwrap_or_else(PoisonError::into_inner));
        given_up.into_iter().for_each(|id| line.give_up(id));
    }

    /// Takes what is there; shows other threads what it found.
    pub(super) fn pump(
        &self,
        line: &mut CallLine,
        shared: &Shared,
        mine: Option<(u64, &mut dyn Sink)>,
    ) -> Result<(), Error> {
        if self.has_given_up.load(Ordering::Relaxed) {
            self.forget_given_up(line);
        }
        let result = line.inbox.pump(shared, &mut line.outlet, mine);
        let (position, completions) = line.inbox.signs();
        self.position.store(position, Ordering::Relaxed);
        self.completions.store(completions, Ordering::Relaxed);
        result
    }

    /// For [`CallService::has_changed`], taken under the lock.
    pub(super) fn known(&self, line: &CallLine, shared: &Shared) -> Known {
        Known {
            channel: Arc::clone(line.inbox.channel()),
            version: shared.version.load(Ordering::Acquire),
            completions: line.inbox.signs().1,
        }
    }

    /// Whether it is worth taking the lock again. Four loads.
    #[inline]
    pub(super) fn has_changed(&self, known: &Known, shared: &Shared) -> bool {
        self.completions.load(Ordering::Relaxed) != known.completions
            || shared.version.load(Ordering::Relaxed) != known.version
            || known.channel.has_response(self.ring, self.position.load(Ordering::Relaxed))
    }
}

impl CallLine {
    /// Nobody waits for it. Of a request that is half sent the rest stays unsent; the agent drops what it has of it when the next one comes.
    pub(super) fn give_up(&mut self, id: u64) {
        self.inbox.forget(id);
        if self.sending == Some(id) {
            self.sending = None;
        }
    }

    /// The hot path: the whole request in one record, if there is room now and nobody is in the middle of his. Returns the
    /// call's number and where its request lies.
    #[inline(always)]
    pub(super) fn send_at_once(
        &mut self,
        shared: &Shared,
        len: usize,
        deadline: u64,
        fill: &mut impl FnMut(usize, &mut [u8]),
    ) -> Result<Option<(u64, u64)>, Error> {
        let CallLine { outlet, last_id, sending, .. } = self;
        outlet.follow(shared);
        if !outlet.channel.is_alive() {
            return Err(Error::AgentAway);
        }
        if sending.is_some() || REQUEST + len > frames::fragment(outlet.producer.bytes()) {
            return Ok(None);
        }
        let room = match outlet.reserve(REQUEST + len) {
            Ok(room) => room,
            Err(PushError::Full { .. }) => return Ok(None),
            Err(other) => return Err(other.into()),
        };
        *last_id += 1;
        let head = RequestHead { id: *last_id, deadline, total: len as u32 };
        outlet.producer.fill(&room, |bytes| {
            let (front, body) = bytes.split_at_mut(REQUEST);
            front.copy_from_slice(&head.encode());
            fill(0, body);
        });
        // `fill` may have forked: then this call is the parent's.
        shared.check_fork()?;
        let position = outlet.producer.commit(room, Part::Whole);
        outlet.publish();
        step::at(Step::CallSent);
        Ok(Some((*last_id, position)))
    }
}

/// A request on its way into the ring.
#[derive(Debug)]
pub(super) struct Sending {
    /// The call's number once its first part is in the ring; 0 before.
    pub(super) id: u64,
    /// Where its first part lies.
    pub(super) position: u64,
    deadline: u64,
    len: usize,
    offset: usize,
    /// Which agent's region answers it; a number, because whoever waits for long must not keep the region.
    to: Option<u64>,
}

impl Sending {
    pub(super) fn new(len: usize, deadline: u64) -> Self {
        Sending { id: 0, position: 0, deadline, len, offset: 0, to: None }
    }

    /// Nothing of it counts as sent any more; its deadline stays. Says whether something did.
    pub(super) fn starts_over(&mut self) -> bool {
        let had_begun = self.id != 0;
        *self = Sending::new(self.len, self.deadline);
        had_begun
    }

    fn head(&self, id: u64) -> RequestHead {
        RequestHead { id, deadline: self.deadline, total: self.len as u32 }
    }

    /// Writes as many parts as there is room for; says whether that was all. Opens the slot with the first one.
    pub(super) fn advance(
        &mut self,
        line: &mut CallLine,
        shared: &Shared,
        fill: &mut impl FnMut(usize, &mut [u8]),
    ) -> Result<bool, Error> {
        line.outlet.follow(shared);
        if self.id == 0 && line.sending.is_some() {
            return Ok(false);
        }
        let replaced = self.to.is_some_and(|to| to != line.outlet.channel.place());
        if replaced || !line.outlet.channel.is_alive() {
            // A request of which a part was sent is not handled: the next agent drops it.
            self.give_up(line);
            return Err(Error::AgentAway);
        }
        let most = frames::fragment(line.outlet.producer.bytes());
        loop {
            let front = if self.id == 0 { REQUEST } else { 0 };
            let len = (self.len - self.offset).min(most - front);
            let last = self.offset + len == self.len;
            let part = match (self.id == 0, last) {
                (true, true) => Part::Whole,
                (true, false) => Part::First,
                (false, false) => Part::Middle,
                (false, true) => Part::Last,
            };
            let room = match line.outlet.reserve(front + len) {
                Ok(room) => room,
                Err(PushError::Full { .. }) => return Ok(false),
                Err(other) => {
                    self.give_up(line);
                    return Err(other.into());
                }
            };
            let id = if self.id == 0 { line.last_id + 1 } else { self.id };
            let (head, offset) = (self.head(id), self.offset);
            line.outlet.producer.fill(&room, |bytes| {
                if front > 0 {
                    bytes[..REQUEST].copy_from_slice(&head.encode());
                }
                fill(offset, &mut bytes[front..]);
            });
            shared.check_fork()?;
            let position = line.outlet.producer.commit(room, part);
            if self.id == 0 {
                (self.id, self.position, line.last_id) = (id, position, id);
                self.to = Some(line.outlet.channel.place());
                line.inbox.open(id, position);
            }
            line.outlet.publish();
            self.offset += len;
            line.sending = if last { None } else { Some(id) };
            if last {
                step::at(Step::CallSent);
                return Ok(true);
            }
        }
    }

    /// See [`CallLine::give_up`].
    pub(super) fn give_up(&self, line: &mut CallLine) {
        if self.id != 0 {
            line.give_up(self.id);
        }
    }
}
