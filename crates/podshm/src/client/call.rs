//! Calls: request and response, many in flight.

use super::link::{Channel, Cursors};
use super::queue::lock;
use super::waiting::Spin;
use super::{Client, Shared};
use crate::clock;
use crate::error::Error;
use crate::frames::{self, REQUEST, RESPONSE, RequestHead, ResponseHead};
use podshm_layout::ring::{Consumer, Part, Producer, PushError};
use podshm_layout::step::{self, Step};
use podshm_region::{ReadMap, Window};
use std::collections::HashMap;
use std::future::Future;
use std::hash::{BuildHasherDefault, Hasher};
use std::os::fd::{AsFd, BorrowedFd};
use std::pin::Pin;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker as TaskWaker};
use std::time::{Duration, Instant};

/// The way to call the agent. Clones and threads share it; any number of calls may be out.
///
/// ```no_run
/// # fn main() -> Result<(), podshm::Error> {
/// use std::time::Duration;
/// let client = podshm::Client::join("/run/podshm/guard", Duration::from_secs(5))?;
/// let decide = client.call("decide")?.spin(podshm::Spin::Never);
/// let mut answer = [0; 256];
/// let len = decide.call(b"may alice read?", &mut answer, Duration::from_millis(50))?;
/// println!("{} bytes", len);
/// let pending = decide.start(b"may bob write?", Duration::from_millis(50))?;
/// let answer = pending.wait()?; // or drop it: that cancels
/// # drop(answer); Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct Caller {
    client: Client,
    ring: usize,
    inbox: usize,
    longest: usize,
    spin: Spin,
}

impl Caller {
    pub(super) fn new(client: Client, service: usize) -> Self {
        let services = &client.shared.services;
        let (ring, inbox) = (services.ring_to_agent(service), services.ring_to_client(service));
        let longest = services.at(service).map_or(0, |(s, _)| s.longest as usize);
        Caller { client, ring, inbox, longest, spin: Spin::default() }
    }

    /// Sets how long waits spin before they sleep.
    pub fn spin(mut self, spin: Spin) -> Self {
        self.spin = spin;
        self
    }

    /// Sends `request`, waits for the response until `timeout`, copies it into `response` and returns its length.
    pub fn call(&self, request: &[u8], response: &mut [u8], timeout: Duration) -> Result<usize, Error> {
        let fill = |offset: usize, dst: &mut [u8]| dst.copy_from_slice(&request[offset..offset + dst.len()]);
        let mut needed = None;
        let room = response.len();
        let len = self.call_with(request.len(), fill, timeout, |offset, total, bytes| {
            if total > room {
                needed = Some(total);
            } else {
                response[offset..offset + bytes.len()].copy_from_slice(bytes);
            }
        })?;
        match needed {
            Some(needed) => Err(Error::BufferTooSmall { needed, found: room }),
            None => Ok(len),
        }
    }

    /// Sends a request of `len` bytes which `fill(offset, part)` writes in place, part by part, and gives the response to
    /// `each(offset, total, part)` as it comes: no whole copy on either side. Returns the response's length.
    pub fn call_with(
        &self,
        len: usize,
        fill: impl FnMut(usize, &mut [u8]),
        timeout: Duration,
        mut each: impl FnMut(usize, usize, &[u8]),
    ) -> Result<usize, Error> {
        let start = Instant::now();
        let until = start + timeout;
        let id = self.send(len, fill, until, true)?;
        let shared = &*self.client.shared;
        let mut looks = 0u32;
        loop {
            {
                let mut inbox = self.lock();
                let mut done = None;
                inbox.pump(
                    shared,
                    self.inbox,
                    Some((id, &mut |offset, total, bytes: &[u8]| {
                        each(offset, total, bytes);
                        if offset + bytes.len() == total {
                            done = Some(total);
                        }
                    })),
                )?;
                if let Some(total) = done {
                    return Ok(total);
                }
                match inbox.take(id) {
                    Taken::Waiting => {}
                    Taken::Done(result) => {
                        let bytes = result?;
                        each(0, bytes.len(), &bytes);
                        return Ok(bytes.len());
                    }
                }
            }
            looks = looks.wrapping_add(1);
            // A look at the clock costs more than a look at the ring.
            if looks.is_multiple_of(16) || self.spin == Spin::Never {
                let now = Instant::now();
                if now >= until {
                    self.lock().forget(id);
                    return Err(Error::Deadline { what: "the response", waited: timeout });
                }
                let spins = match self.spin {
                    Spin::Never => false,
                    Spin::For(budget) => now - start < budget,
                    Spin::Always => true,
                };
                if !spins {
                    let link = shared.link.load_full();
                    shared.sleepers.sleep(&shared.own, &link.channel, until, || self.lock().has_news(shared));
                    continue;
                }
            }
            std::hint::spin_loop();
        }
    }

    /// Sends `request` and returns at once; the response waits in the returned handle. Waits for room if the ring is full.
    pub fn start(&self, request: &[u8], timeout: Duration) -> Result<Pending, Error> {
        let until = Instant::now() + timeout;
        let fill = |offset: usize, dst: &mut [u8]| dst.copy_from_slice(&request[offset..offset + dst.len()]);
        let id = self.send(request.len(), fill, until, true)?;
        Ok(Pending { caller: self.clone(), id, until, timeout })
    }

    /// [`Caller::call`] for async programs, on any executor. The request is sent at the first poll.
    pub fn call_async(&self, request: impl Into<Vec<u8>>, timeout: Duration) -> CallFuture {
        let until = Instant::now() + timeout;
        CallFuture { caller: self.clone(), request: request.into(), id: None, until, timeout }
    }

    /// A descriptor that becomes readable when responses may have come, for epoll. Read it (8 bytes) before you look by
    /// [`Pending::try_take`]; [`Pending::arm`] asks for the next event.
    pub fn event_fd(&self) -> BorrowedFd<'_> {
        self.client.shared.event.as_fd()
    }

    fn send(
        &self,
        len: usize,
        mut fill: impl FnMut(usize, &mut [u8]),
        until: Instant,
        wait: bool,
    ) -> Result<u64, Error> {
        let shared = &*self.client.shared;
        shared.check_fork()?;
        if len > self.longest || len > frames::MAX_CALL {
            return Err(Error::TooLong { what: "request", found: len, most: self.longest });
        }
        let link = shared.link.load_full();
        if !link.is_alive() {
            return Err(Error::AgentAway);
        }
        let id = self.lock().open();
        let left = until.saturating_duration_since(Instant::now());
        let deadline = clock::now() + left.as_nanos().min(u128::from(u64::MAX / 2)) as u64;
        let head = RequestHead { id, deadline, total: len as u32 };
        let mut producer = lock(shared, self.ring);
        match send_parts(shared, &link.channel, link.epoch, &mut producer, head, &mut fill, (until, self.spin, wait)) {
            Ok(position) => {
                step::at(Step::CallSent);
                drop(producer);
                self.lock().sent(id, position);
                Ok(id)
            }
            Err(error) => {
                drop(producer);
                self.lock().forget(id);
                Err(error)
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inbox> {
        self.client.shared.calls[self.inbox].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Writes a request as one record or as fragments; returns the position of the first.
fn send_parts(
    shared: &Shared,
    channel: &Channel,
    epoch: u64,
    producer: &mut Producer<Window>,
    head: RequestHead,
    fill: &mut impl FnMut(usize, &mut [u8]),
    (until, spin, wait): (Instant, Spin, bool),
) -> Result<u64, Error> {
    let most = (producer.bytes() / 4).min(frames::FRAGMENT as u64) as usize;
    let cursors = Cursors { head: &channel.head, notice: &shared.notice, epoch };
    let total = head.total as usize;
    let mut first_position = None;
    let mut offset = 0;
    loop {
        let front = if first_position.is_none() { REQUEST } else { 0 };
        let len = (total - offset).min(most - front);
        let last = offset + len == total;
        let part = match (first_position.is_none(), last) {
            (true, true) => Part::Whole,
            (true, false) => Part::First,
            (false, false) => Part::Middle,
            (false, true) => Part::Last,
        };
        let room = loop {
            match producer.reserve(front + len, &cursors) {
                Ok(room) => break room,
                Err(PushError::Full { needed, free }) => {
                    let waited = Duration::ZERO;
                    if !wait {
                        return Err(PushError::Full { needed, free }.into());
                    }
                    if Instant::now() >= until {
                        return Err(Error::Deadline { what: "room for the request", waited });
                    }
                    if shared.link.load().epoch != epoch {
                        // A request of which a part was sent is not handled: the new agent drops it.
                        return Err(Error::AgentAway);
                    }
                    if spin == Spin::Always {
                        std::hint::spin_loop();
                    } else {
                        let enough = |p: &mut Producer<Window>| p.refresh(&cursors).is_ok_and(|f| f >= needed);
                        let spun = (0..2000).any(|_| {
                            std::hint::spin_loop();
                            enough(producer)
                        });
                        if !spun {
                            shared.sleepers.sleep(&shared.own, channel, until, || enough(producer));
                        }
                    }
                }
                Err(other) => return Err(other.into()),
            }
        };
        producer.fill(&room, |bytes| {
            if front > 0 {
                bytes[..REQUEST].copy_from_slice(&head.encode());
            }
            fill(offset, &mut bytes[front..]);
        });
        let position = producer.commit(room, part);
        producer.publish();
        first_position.get_or_insert(position);
        if let Ok(mut waker) = channel.waker.lock() {
            channel.ring_doorbell(&mut waker);
        }
        offset += len;
        if last {
            return Ok(first_position.unwrap_or(position));
        }
    }
}

#[derive(Debug)]
struct Slot {
    /// Where its request starts, once that is sent.
    position: Option<u64>,
    done: Option<Result<Vec<u8>, Outcome>>,
    waker: Option<TaskWaker>,
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

enum Taken {
    Waiting,
    Done(Result<Vec<u8>, Error>),
}

type Sink<'a> = Option<(u64, &'a mut dyn FnMut(usize, usize, &[u8]))>;

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

/// Responses of one call service, and who waits for them.
#[derive(Debug)]
pub(crate) struct Inbox {
    epoch: u64,
    channel: Option<Arc<Channel>>,
    consumer: Option<Consumer<ReadMap>>,
    slots: HashMap<u64, Slot, BuildHasherDefault<Numbers>>,
    last_id: u64,
    /// A response of which a part has come: its head, how much, and the bytes if nobody takes them as they come.
    partial: Option<(ResponseHead, usize, Vec<u8>)>,
    scratch: Vec<u8>,
    /// The new agent has not said yet where it starts.
    unresolved: bool,
}

impl Inbox {
    pub(crate) fn new(epoch: u64) -> Self {
        Inbox {
            epoch,
            channel: None,
            consumer: None,
            slots: HashMap::default(),
            last_id: 0,
            partial: None,
            scratch: Vec::new(),
            unresolved: false,
        }
    }

    fn open(&mut self) -> u64 {
        self.last_id += 1;
        self.slots.insert(self.last_id, Slot { position: None, done: None, waker: None });
        self.last_id
    }

    fn sent(&mut self, id: u64, position: u64) {
        if let Some(slot) = self.slots.get_mut(&id) {
            slot.position = Some(position);
        }
    }

    fn forget(&mut self, id: u64) {
        self.slots.remove(&id);
    }

    fn take(&mut self, id: u64) -> Taken {
        match self.slots.get_mut(&id).map(|slot| slot.done.take()) {
            Some(Some(result)) => {
                self.slots.remove(&id);
                Taken::Done(result.map_err(Error::from))
            }
            Some(None) => Taken::Waiting,
            None => Taken::Done(Err(Error::Cancelled)),
        }
    }

    /// Looks whether a pump would find something.
    fn has_news(&mut self, shared: &Shared) -> bool {
        if self.epoch != shared.link.load().epoch || self.consumer.is_none() {
            return true;
        }
        self.consumer.as_mut().is_some_and(|c| !matches!(c.peek(), Ok(None)))
    }

    pub(crate) fn wake_all(&mut self) {
        for slot in self.slots.values_mut() {
            if let Some(waker) = slot.waker.take() {
                waker.wake();
            }
        }
    }

    /// Goes over to the serving agent's channel, after everything that the old one has answered.
    pub(crate) fn follow(&mut self, shared: &Shared, ring: usize) {
        if let Err(error) = self.pump(shared, ring, None) {
            tracing::error!(%error, "responses of the old agent were dropped");
            let link = shared.link.load();
            self.attach(shared, ring, link.epoch, &link.channel);
            self.unresolved = true;
        }
    }

    /// Takes every response that is there. A response to `mine` goes to its sink part by part; others wait in their slots.
    fn pump(&mut self, shared: &Shared, ring: usize, mut mine: Sink<'_>) -> Result<(), Error> {
        let link = shared.link.load();
        if self.consumer.is_none() {
            self.attach(shared, ring, link.epoch, &link.channel);
        }
        self.pump_channel(shared, ring, &mut mine)?;
        if link.epoch != self.epoch {
            self.attach(shared, ring, link.epoch, &link.channel);
            self.unresolved = true;
            self.pump_channel(shared, ring, &mut mine)?;
        }
        if self.unresolved {
            self.resolve(shared, ring);
        }
        Ok(())
    }

    fn attach(&mut self, shared: &Shared, ring: usize, epoch: u64, channel: &Arc<Channel>) {
        let geometry = channel.response_geometry(ring);
        self.epoch = epoch;
        self.consumer = Some(channel.responses(ring));
        self.channel = Some(Arc::clone(channel));
        self.partial = None;
        self.scratch.resize(geometry.max_record as usize, 0);
        let place = channel.place();
        geometry.cursor_line().reset_for(&shared.own, place, geometry.start);
    }

    fn pump_channel(&mut self, shared: &Shared, ring: usize, mine: &mut Sink<'_>) -> Result<(), Error> {
        let (Some(consumer), Some(channel)) = (self.consumer.as_mut(), self.channel.as_ref()) else { return Ok(()) };
        let mut progress = false;
        let mut budget = 256;
        while budget > 0 {
            budget -= 1;
            let Some(record) = consumer.peek()? else { break };
            progress = true;
            let bytes = &mut self.scratch[..record.len];
            consumer.copy_out(&record, 0, bytes);
            step::at(Step::AnswerCopied);
            consumer.advance(&record);
            let (head, offset, body) = match record.part {
                Part::Whole | Part::First => match ResponseHead::decode(bytes) {
                    Some(head) => (head, 0, &bytes[RESPONSE..]),
                    None => continue,
                },
                _ => match &self.partial {
                    Some((head, so_far, _)) => (*head, *so_far, &bytes[..]),
                    None => continue, // the rest of a response whose start was a predecessor's
                },
            };
            let total = head.total as usize;
            if offset + body.len() > total || total > frames::MAX_CALL {
                self.partial = None;
                continue; // a lying agent: its answer is dropped, the caller's deadline ends the wait
            }
            let complete = offset + body.len() == total;
            let mut kept = match self.partial.take() {
                Some((_, _, kept)) if offset > 0 => kept,
                _ => Vec::new(),
            };
            let for_sink = match mine {
                Some((id, sink)) if *id == head.id && head.status == frames::STATUS_OK && kept.is_empty() => {
                    sink(offset, total, body);
                    true
                }
                _ => {
                    kept.extend_from_slice(body);
                    false
                }
            };
            if !complete {
                self.partial = Some((head, offset + body.len(), kept));
            } else if for_sink {
                self.slots.remove(&head.id);
            } else if let Some(slot) = self.slots.get_mut(&head.id) {
                slot.done = Some(match head.status {
                    frames::STATUS_OK => Ok(kept),
                    frames::STATUS_UNKNOWN => Err(Outcome::Unknown),
                    frames::STATUS_DEADLINE => Err(Outcome::Deadline),
                    status => Err(Outcome::Failed(status)),
                });
                if let Some(waker) = slot.waker.take() {
                    waker.wake();
                }
            }
        }
        if progress {
            channel.response_geometry(ring).cursor_line().acknowledge(&shared.own, consumer.position());
            step::at(Step::AnswerAcknowledged);
            // The agent may wait for room for the rest of its answers.
            if let Ok(mut waker) = channel.waker.lock() {
                channel.ring_for_room(&mut waker);
            }
        }
        Ok(())
    }

    /// Calls whose request lies before the place where the new agent started, and that the old one has not answered, may or
    /// may not have been handled.
    fn resolve(&mut self, shared: &Shared, ring: usize) {
        let Some(channel) = &self.channel else { return };
        let request_ring = shared
            .services
            .iter()
            .enumerate()
            .filter(|(_, (_, kind))| *kind == podshm_proto::ServiceKind::Call)
            .nth(ring)
            .map(|(index, _)| shared.services.ring_to_agent(index));
        let Some(line) = request_ring.map(|r| shared.geometry.to_agent[r].cursor_line()) else { return };
        let Some(started) = line.started(&channel.head) else { return };
        self.unresolved = false;
        for slot in self.slots.values_mut() {
            if slot.done.is_none() && slot.position.is_some_and(|p| p < started) {
                slot.done = Some(Err(Outcome::Unknown));
                if let Some(waker) = slot.waker.take() {
                    waker.wake();
                }
            }
        }
    }
}

/// A call that is out. Dropping it cancels it: the agent may still handle it, nobody waits for the response.
#[derive(Debug)]
pub struct Pending {
    caller: Caller,
    id: u64,
    until: Instant,
    timeout: Duration,
}

impl Pending {
    /// The response if it has come.
    pub fn try_take(&mut self) -> Result<Option<Vec<u8>>, Error> {
        let shared = &*self.caller.client.shared;
        shared.check_fork()?;
        let mut inbox = self.caller.lock();
        inbox.pump(shared, self.caller.inbox, None)?;
        match inbox.take(self.id) {
            Taken::Done(result) => result.map(Some),
            Taken::Waiting if Instant::now() >= self.until => {
                Err(Error::Deadline { what: "the response", waited: self.timeout })
            }
            Taken::Waiting => Ok(None),
        }
    }

    /// Asks for an event on [`Caller::event_fd`] with the next response. Look by [`Pending::try_take`] once more after this.
    pub fn arm(&self) {
        let shared = &*self.caller.client.shared;
        if shared.check_fork().is_ok() {
            shared.sleepers.arm_doorbell(&shared.own);
        }
    }

    /// Waits for the response until the call's deadline.
    pub fn wait(mut self) -> Result<Vec<u8>, Error> {
        let start = Instant::now();
        loop {
            if let Some(response) = self.try_take()? {
                return Ok(response);
            }
            let spins = match self.caller.spin {
                Spin::Never => false,
                Spin::For(budget) => start.elapsed() < budget,
                Spin::Always => true,
            };
            if spins {
                std::hint::spin_loop();
                continue;
            }
            let shared = &*self.caller.client.shared;
            let link = shared.link.load_full();
            let ready = || self.caller.lock().has_news(shared);
            shared.sleepers.sleep(&shared.own, &link.channel, self.until, ready);
        }
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        if self.caller.client.shared.check_fork().is_ok() {
            self.caller.lock().forget(self.id);
        }
    }
}

/// A call as a future. Dropping it cancels it. The deadline is noticed at the next poll; use your runtime's timer for a wake-up
/// at the deadline itself.
#[derive(Debug)]
pub struct CallFuture {
    caller: Caller,
    request: Vec<u8>,
    id: Option<u64>,
    until: Instant,
    timeout: Duration,
}

impl Future for CallFuture {
    type Output = Result<Vec<u8>, Error>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        let shared = Arc::clone(&this.caller.client.shared);
        if let Err(error) = shared.check_fork() {
            return Poll::Ready(Err(error));
        }
        if this.id.is_none() {
            let request = &this.request;
            let fill = |offset: usize, dst: &mut [u8]| dst.copy_from_slice(&request[offset..offset + dst.len()]);
            this.id = Some(match this.caller.send(request.len(), fill, this.until, true) {
                Ok(id) => id,
                Err(error) => return Poll::Ready(Err(error)),
            });
        }
        let id = this.id.unwrap_or(0);
        for armed in [false, true] {
            let mut inbox = this.caller.lock();
            if let Err(error) = inbox.pump(&shared, this.caller.inbox, None) {
                return Poll::Ready(Err(error));
            }
            if let Taken::Done(result) = inbox.take(id) {
                return Poll::Ready(result);
            }
            if Instant::now() >= this.until {
                return Poll::Ready(Err(Error::Deadline { what: "the response", waited: this.timeout }));
            }
            if !armed {
                if let Some(slot) = inbox.slots.get_mut(&id) {
                    slot.waker = Some(context.waker().clone());
                }
                drop(inbox);
                shared.sleepers.arm_doorbell(&shared.own);
            }
        }
        Poll::Pending
    }
}

impl Drop for CallFuture {
    fn drop(&mut self) {
        if let (Some(id), true) = (self.id, self.caller.client.shared.check_fork().is_ok()) {
            self.caller.lock().forget(id);
        }
    }
}
