//! Responses of one call service, and who waits for them.

use super::Shared;
use super::link::Channel;
use super::outlet::Outlet;
use super::own::Own;
use crate::error::Error;
use crate::frames::{self, RESPONSE, ResponseHead};
use podshm_layout::cursor::CursorLine;
use podshm_layout::ring::{Consumer, Part, Record};
use podshm_layout::step::{self, Step};
use podshm_region::ReadMap;
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Waker as TaskWaker;
use std::time::{Duration, Instant};

/// A part of a response that lies in the agent's memory.
pub(super) struct Arrived<'a> {
    consumer: &'a Consumer<ReadMap>,
    record: &'a Record,
    front: usize,
    scratch: &'a mut [u8],
}

impl Arrived<'_> {
    pub(super) fn len(&self) -> usize {
        self.record.len - self.front
    }

    /// Copies it to where it belongs.
    #[inline(always)]
    pub(super) fn copy_to(&self, dst: &mut [u8]) {
        self.consumer.copy_out(self.record, self.front, dst);
    }

    /// Copies it to a place of this process's own that lasts until the next part.
    #[inline(always)]
    pub(super) fn bytes(&mut self) -> &[u8] {
        let len = self.len();
        let bytes = &mut self.scratch[..len];
        self.consumer.copy_out(self.record, self.front, bytes);
        bytes
    }
}

/// Where a waiting caller wants its response: called once for each part, in order.
pub(super) trait Sink {
    fn part(&mut self, offset: usize, total: usize, arrived: Arrived<'_>);

    /// All that is left from `offset` on, kept by another thread that found it.
    fn rest(&mut self, offset: usize, bytes: &[u8]);
}

#[derive(Debug)]
pub(super) struct Slot {
    /// Where its request starts, once that is sent.
    position: Option<u64>,
    done: Option<Result<Rest, Outcome>>,
    pub(super) waker: Option<TaskWaker>,
    /// When a future's time is over.
    pub(super) expires: Option<Instant>,
}

#[derive(Clone, Copy, Debug)]
enum Outcome {
    Unknown,
    Deadline,
    Failed(u32),
}

impl From<Outcome> for Error {
    fn from(outcome: Outcome) -> Self {
        match outcome {
            Outcome::Unknown => Error::OutcomeUnknown,
            Outcome::Deadline => Error::Deadline { what: "the agent's turn", waited: Duration::ZERO },
            Outcome::Failed(status) => Error::Failed { status },
        }
    }
}

/// What of a response is kept for its caller: everything from `offset` on. What comes before went to the caller's sink.
#[derive(Debug, Default)]
pub(super) struct Rest {
    pub(super) offset: usize,
    pub(super) bytes: Vec<u8>,
}

pub(super) enum Taken {
    Waiting,
    Done(Result<Rest, Error>),
}

/// What one look found.
pub(super) enum Look {
    Nothing,
    /// The response that was looked for, of that many bytes; its sink has it.
    Done(usize),
    /// Something that needs [`Inbox::pump`].
    Other,
}

/// Hashes call numbers, which this process counts itself: nobody else chooses them.
#[derive(Debug, Default)]
struct Numbers(u64);

impl Hasher for Numbers {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }

    fn write_u64(&mut self, number: u64) {
        self.0 = (self.0 ^ number).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

/// A response of which a part has come.
#[derive(Debug)]
struct Partial {
    head: ResponseHead,
    so_far: usize,
    /// Since somebody else than its caller has found a part.
    rest: Option<Rest>,
}

#[derive(Debug)]
pub(crate) struct Inbox {
    /// Index among the rings to the client.
    ring: usize,
    /// Index of the requests' ring among those to the agent.
    requests: usize,
    /// The link's version that `channel` is of.
    version: u64,
    channel: Arc<Channel>,
    consumer: Consumer<ReadMap>,
    own: Arc<Own>,
    cursor: CursorLine,
    slots: HashMap<u64, Slot, BuildHasherDefault<Numbers>>,
    partial: Option<Partial>,
    scratch: Vec<u8>,
    /// The new agent has not said yet where it starts.
    unresolved: bool,
    /// Slots that were filled: others in this process wait for that.
    completions: u64,
}

impl Inbox {
    pub(crate) fn new(ring: usize, requests: usize, channel: &Arc<Channel>, own: &Arc<Own>) -> Self {
        let mut inbox = Inbox {
            ring,
            requests,
            version: 0,
            channel: Arc::clone(channel),
            consumer: channel.responses(ring),
            cursor: own.response_cursor(ring),
            own: Arc::clone(own),
            slots: HashMap::default(),
            partial: None,
            scratch: Vec::new(),
            unresolved: false,
            completions: 0,
        };
        inbox.attach(Arc::clone(channel));
        inbox
    }

    /// Says that a response is waited for by slot.
    pub(super) fn open(&mut self, id: u64, position: u64) {
        self.slots.insert(id, Slot { position: Some(position), done: None, waker: None, expires: None });
    }

    pub(super) fn slot(&mut self, id: u64) -> Option<&mut Slot> {
        self.slots.get_mut(&id)
    }

    pub(super) fn forget(&mut self, id: u64) {
        self.slots.remove(&id);
    }

    pub(super) fn take(&mut self, id: u64) -> Taken {
        match self.slots.get_mut(&id).map(|slot| slot.done.take()) {
            Some(Some(result)) => {
                self.slots.remove(&id);
                Taken::Done(result.map_err(Error::from))
            }
            Some(None) => Taken::Waiting,
            None => Taken::Done(Err(Error::Cancelled)),
        }
    }

    /// Position of the next response, and how many slots were filled so far: what others look at without the lock.
    pub(super) fn signs(&self) -> (u64, u64) {
        (self.consumer.position(), self.completions)
    }

    pub(super) fn channel(&self) -> &Arc<Channel> {
        &self.channel
    }

    /// Whether the link has changed since the last pump.
    #[inline(always)]
    pub(super) fn is_behind(&self, shared: &Shared) -> bool {
        self.version != shared.version.load(Ordering::Acquire)
    }

    /// Looks whether a pump would find something, or one before has found it.
    pub(super) fn has_news(&mut self, shared: &Shared, id: u64) -> bool {
        self.is_behind(shared)
            || self.slots.get(&id).is_none_or(|slot| slot.done.is_some())
            || !matches!(self.consumer.peek(), Ok(None))
    }

    /// The hot path: a whole response to `id` that lies there goes to its sink at once, no slot needed.
    #[inline(always)]
    pub(super) fn look(&mut self, outlet: &mut Outlet, id: u64, sink: &mut impl Sink) -> Result<Look, Error> {
        let Some(record) = self.consumer.peek()? else { return Ok(Look::Nothing) };
        if record.part != Part::Whole || record.len < RESPONSE {
            return Ok(Look::Other);
        }
        let head = ResponseHead::from_words(self.consumer.word(&record, 0), self.consumer.word(&record, 1));
        let total = record.len - RESPONSE;
        if head.id != id || head.status != frames::STATUS_OK || head.total as usize != total {
            return Ok(Look::Other);
        }
        let arrived =
            Arrived { consumer: &self.consumer, record: &record, front: RESPONSE, scratch: &mut self.scratch };
        sink.part(0, total, arrived);
        step::at(Step::AnswerCopied);
        self.consumer.advance(&record);
        self.cursor.acknowledge(&self.own.first, self.consumer.position());
        step::at(Step::AnswerAcknowledged);
        outlet.made_room();
        Ok(Look::Done(total))
    }

    /// Takes every response that is there. A response to `mine` goes to its sink part by part; others wait in their slots.
    pub(super) fn pump(
        &mut self,
        shared: &Shared,
        outlet: &mut Outlet,
        mut mine: Option<(u64, &mut dyn Sink)>,
    ) -> Result<(), Error> {
        // Looked at first: what the old agent had answered by then is taken before its channel is left.
        let version = shared.version.load(Ordering::Acquire);
        if version == self.version {
            self.pump_channel(outlet, &mut mine)?;
        } else {
            let link = shared.link.load_full();
            if !Arc::ptr_eq(&link.channel, &self.channel) {
                if let Err(error) = self.pump_channel(outlet, &mut mine) {
                    tracing::error!(%error, "responses of the old agent were dropped");
                }
                self.attach(Arc::clone(&link.channel));
                self.unresolved = true;
            }
            self.version = version;
            self.pump_channel(outlet, &mut mine)?;
        }
        if self.unresolved {
            self.resolve();
        }
        Ok(())
    }

    /// Goes on in another generation of C.
    pub(super) fn move_to(&mut self, own: Arc<Own>) {
        self.own = own;
        self.cursor = self.own.response_cursor(self.ring);
        self.cursor.reset_for(&self.own.first, self.channel.place(), self.consumer.position());
    }

    fn attach(&mut self, channel: Arc<Channel>) {
        let geometry = channel.response_geometry(self.ring);
        self.consumer = channel.responses(self.ring);
        self.cursor = self.own.response_cursor(self.ring);
        self.partial = None;
        self.scratch.resize(geometry.max_record as usize, 0);
        self.cursor.reset_for(&self.own.first, channel.place(), geometry.start);
        self.channel = channel;
    }

    fn pump_channel(&mut self, outlet: &mut Outlet, mine: &mut Option<(u64, &mut dyn Sink)>) -> Result<(), Error> {
        let mut progress = false;
        // All that the ring can hold: what is left there would wait for a wake-up that has been. No more: the agent goes on writing.
        for _ in 0..self.channel.response_geometry(self.ring).bytes / 8 {
            let Some(record) = self.consumer.peek()? else { break };
            progress = true;
            self.take_record(&record, mine);
            step::at(Step::AnswerCopied);
            self.consumer.advance(&record);
        }
        if progress {
            self.cursor.acknowledge(&self.own.first, self.consumer.position());
            step::at(Step::AnswerAcknowledged);
            // The agent may wait for room for the rest of its answers.
            outlet.made_room();
        }
        Ok(())
    }

    fn take_record(&mut self, record: &Record, mine: &mut Option<(u64, &mut dyn Sink)>) {
        let (head, offset, front) = match record.part {
            Part::Whole | Part::First if record.len >= RESPONSE => {
                let words = (self.consumer.word(record, 0), self.consumer.word(record, 1));
                (ResponseHead::from_words(words.0, words.1), 0, RESPONSE)
            }
            Part::Whole | Part::First => return,
            _ => match &self.partial {
                Some(partial) => (partial.head, partial.so_far, 0),
                None => return, // the rest of a response whose start was a predecessor's
            },
        };
        let (total, len) = (head.total as usize, record.len - front);
        if offset + len > total || total > frames::MAX_CALL {
            self.partial = None;
            return; // a lying agent: its answer is dropped, the caller's deadline ends the wait
        }
        let mut rest = self.partial.take().filter(|_| offset > 0).and_then(|partial| partial.rest);
        let mut arrived = Arrived { consumer: &self.consumer, record, front, scratch: &mut self.scratch };
        let is_mine = match mine {
            Some((id, sink)) if *id == head.id && head.status == frames::STATUS_OK && rest.is_none() => {
                sink.part(offset, total, arrived);
                true
            }
            // Nobody waits any more: not a byte is kept.
            _ if !self.slots.contains_key(&head.id) => false,
            // Its caller has what came before, and this thread can't reach the caller's sink.
            _ => {
                let rest = rest.get_or_insert_with(|| Rest { offset, bytes: Vec::new() });
                rest.bytes.extend_from_slice(arrived.bytes());
                false
            }
        };
        if offset + len < total {
            self.partial = Some(Partial { head, so_far: offset + len, rest });
        } else if is_mine {
            self.slots.remove(&head.id);
        } else {
            self.complete(head, rest.unwrap_or_default());
        }
    }

    fn complete(&mut self, head: ResponseHead, rest: Rest) {
        let Some(slot) = self.slots.get_mut(&head.id) else { return };
        slot.done = Some(match head.status {
            frames::STATUS_OK => Ok(rest),
            frames::STATUS_UNKNOWN => Err(Outcome::Unknown),
            frames::STATUS_DEADLINE => Err(Outcome::Deadline),
            status => Err(Outcome::Failed(status)),
        });
        self.completions += 1;
        if let Some(waker) = slot.waker.take() {
            waker.wake();
        }
    }

    /// Calls whose request lies before the place where the new agent started, and that the old one has not answered, may or
    /// may not have been handled.
    fn resolve(&mut self) {
        let line = self.channel.cursor(self.requests);
        let Some(started) = line.and_then(|line| line.started(&self.channel.head)) else { return };
        self.unresolved = false;
        for slot in self.slots.values_mut() {
            if slot.done.is_none() && slot.position.is_some_and(|p| p < started) {
                slot.done = Some(Err(Outcome::Unknown));
                self.completions += 1;
                if let Some(waker) = slot.waker.take() {
                    waker.wake();
                }
            }
        }
    }

    /// Wakes futures whose time is over; says when the next one's is.
    pub(super) fn expire(&mut self, now: Instant) -> Option<Instant> {
        let mut next: Option<Instant> = None;
        for slot in self.slots.values_mut() {
            let (Some(expires), None) = (slot.expires, &slot.done) else { continue };
            if expires > now {
                next = Some(next.map_or(expires, |n| n.min(expires)));
            } else if let Some(waker) = slot.waker.take() {
                waker.wake();
            }
        }
        next
    }
}
