//! Calls: request and response, many in flight.

use super::inbox::{Arrived, Look, Sink, Taken};
use super::line::{CallLine, CallService, Sending};
use super::waiting::{Patience, Spin};
use super::{Client, Shared};
use crate::clock;
use crate::error::Error;
use crate::stop;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;
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
/// let mut pending = decide.start(b"may bob write?", Duration::from_millis(50))?;
/// let answer = pending.wait()?; // or drop it: that cancels
/// # drop(answer); Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct Caller {
    pub(super) client: Client,
    pub(super) service: Arc<CallService>,
    longest: usize,
    spin: Spin,
    pub(super) waits_for_agent: bool,
}

/// Looks without a pause between them: about as long as an agent that is awake takes.
const LOOKS_AT_ONCE: u32 = 64;

/// Copies a response to where its caller wants it; says what that would take if it is too small.
struct Into<'a> {
    response: &'a mut [u8],
    needed: Option<usize>,
}

impl Sink for Into<'_> {
    #[inline(always)]
    fn part(&mut self, offset: usize, total: usize, arrived: Arrived<'_>) {
        match self.response.get_mut(offset..offset + arrived.len()) {
            Some(place) => arrived.copy_to(place),
            None => self.needed = Some(total),
        }
    }

    fn rest(&mut self, offset: usize, bytes: &[u8]) {
        let total = offset + bytes.len();
        match self.response.get_mut(offset..total) {
            Some(place) => place.copy_from_slice(bytes),
            None => self.needed = Some(total),
        }
    }
}

/// Shows a response part by part.
struct Each<F>(F);

impl<F: FnMut(usize, usize, &[u8])> Sink for Each<F> {
    #[inline(always)]
    fn part(&mut self, offset: usize, total: usize, mut arrived: Arrived<'_>) {
        (self.0)(offset, total, arrived.bytes());
    }

    fn rest(&mut self, offset: usize, bytes: &[u8]) {
        (self.0)(offset, offset + bytes.len(), bytes);
    }
}

impl Caller {
    pub(super) fn new(client: Client, service: Arc<CallService>, longest: usize) -> Self {
        Caller { client, service, longest, spin: Spin::default(), waits_for_agent: false }
    }

    /// Sets how long waits spin before they sleep.
    pub fn spin(mut self, spin: Spin) -> Self {
        self.spin = spin;
        self
    }

    /// Has a call that comes while no agent serves wait for the next one, within its timeout; [`Error::AgentAway`] then says that none came in
    /// time. Without it, which is the default, that is said at once.
    ///
    /// Nothing is sent twice: a call that was sent when its agent died ends as any other does ([`Error::OutcomeUnknown`], or the successor's
    /// answer). One that was half sent counts as not sent, and is written anew: [`Caller::call_with`] then asks for its parts from 0 again.
    pub fn wait_for_agent(mut self, waits: bool) -> Self {
        self.waits_for_agent = waits;
        self
    }

    /// Sends `request`, waits for the response until `timeout`, copies it into `response` and returns its length.
    #[inline]
    pub fn call(&self, request: &[u8], response: &mut [u8], timeout: Duration) -> Result<usize, Error> {
        let found = response.len();
        let mut sink = Into { response, needed: None };
        let fill = |offset: usize, dst: &mut [u8]| dst.copy_from_slice(&request[offset..offset + dst.len()]);
        let len = self.run(request.len(), fill, timeout, &mut sink)?;
        match sink.needed {
            None => Ok(len),
            Some(needed) => Err(Error::BufferTooSmall { needed, found }),
        }
    }

    /// Sends a request of `len` bytes which `fill(offset, part)` writes in place, part by part, and gives the response to
    /// `each(offset, total, part)` as it comes: no whole copy on either side, unless another thread found it first. Parts follow one
    /// another; where an agent died in the middle and its successor answers again, they start again at 0, and so do the request's where
    /// [`Caller::wait_for_agent`] is set. Returns the response's length.
    #[inline]
    pub fn call_with(
        &self,
        len: usize,
        fill: impl FnMut(usize, &mut [u8]),
        timeout: Duration,
        each: impl FnMut(usize, usize, &[u8]),
    ) -> Result<usize, Error> {
        self.run(len, fill, timeout, &mut Each(each))
    }

    /// Sends `request` and returns at once; the response waits in the returned handle. Waits for room if the ring is full, and for an agent
    /// where [`Caller::wait_for_agent`] is set.
    pub fn start(&self, request: &[u8], timeout: Duration) -> Result<Pending, Error> {
        let mut patience = Patience::new(timeout, self.spin);
        let mut fill = |offset: usize, dst: &mut [u8]| dst.copy_from_slice(&request[offset..offset + dst.len()]);
        self.check(request.len())?;
        let mut sending = Sending::new(request.len(), clock::wire_deadline(timeout));
        self.send(&mut sending, &mut fill, &mut patience)?;
        Ok(Pending { caller: self.clone(), id: sending.id, until: patience.until(), timeout })
    }

    /// A descriptor that becomes readable when responses may have come, for epoll. Read it (8 bytes) before you look by
    /// [`Pending::try_take`]; [`Pending::arm`] asks for the next event. A forked child has none: it would take its parent's events.
    pub fn event_fd(&self) -> Result<BorrowedFd<'_>, Error> {
        self.client.shared.check_fork()?;
        Ok(self.client.shared.event.as_fd())
    }

    #[inline(always)]
    pub(super) fn check(&self, len: usize) -> Result<(), Error> {
        self.client.shared.check_fork()?;
        if len > self.longest {
            return Err(Error::TooLong { what: "request", found: len, most: self.longest });
        }
        Ok(())
    }

    /// Sends, spins, takes: all under one entry of the service where nobody else wants it. Returns the response's length.
    #[inline(always)]
    fn run(
        &self,
        len: usize,
        mut fill: impl FnMut(usize, &mut [u8]),
        timeout: Duration,
        sink: &mut impl Sink,
    ) -> Result<usize, Error> {
        self.check(len)?;
        let shared = &*self.client.shared;
        let deadline = clock::wire_deadline(timeout);
        let mut patience = Patience::new(timeout, self.spin);
        let mut line = self.service.enter()?;
        let sent = match line.send_at_once(shared, len, deadline, &mut fill) {
            Err(Error::AgentAway) if self.waits_for_agent => None,
            other => other?,
        };
        let Some((id, position)) = sent else {
            drop(line);
            return self.run_waiting(Sending::new(len, deadline), &mut fill, &mut patience, sink);
        };
        let mut looks = 0u32;
        if self.spin != Spin::Never {
            loop {
                let CallLine { inbox, outlet, .. } = &mut *line;
                match inbox.look(outlet, id, sink)? {
                    Look::Done(total) => return Ok(total),
                    Look::Other => break,
                    Look::Nothing => {}
                }
                // Another thread's turn comes first, and a new agent answers elsewhere.
                if looks.is_multiple_of(8) && (line.is_wanted() || line.inbox.is_behind(shared)) {
                    break;
                }
                looks += 1;
                // A look at the clock costs more than a look at the ring.
                if looks.is_multiple_of(64) && (!patience.spins(&line.outlet.channel) || stop::is_due()) {
                    break;
                }
                if looks > LOOKS_AT_ONCE {
                    std::hint::spin_loop();
                }
            }
        }
        line.inbox.open(id, position);
        drop(line);
        self.await_response(id, sink, &mut patience)
    }

    #[cold]
    fn run_waiting(
        &self,
        mut sending: Sending,
        fill: &mut impl FnMut(usize, &mut [u8]),
        patience: &mut Patience,
        sink: &mut impl Sink,
    ) -> Result<usize, Error> {
        self.send(&mut sending, fill, patience)?;
        self.await_response(sending.id, sink, patience)
    }

    /// Writes all of a request, waiting for room, and for an agent if it is told to.
    fn send(
        &self,
        sending: &mut Sending,
        fill: &mut impl FnMut(usize, &mut [u8]),
        patience: &mut Patience,
    ) -> Result<(), Error> {
        let shared = &*self.client.shared;
        loop {
            let seen = shared.version.load(Ordering::Acquire);
            let mut line = self.service.enter()?;
            match sending.advance(&mut line, shared, fill) {
                Ok(true) => return Ok(()),
                Ok(false) => {}
                Err(Error::AgentAway) if self.waits_for_agent && !patience.is_over() => {
                    drop(line);
                    // Of one that was half sent the next agent may be there already.
                    if !sending.starts_over() {
                        stop::check()?;
                        shared.await_agent(seen, patience.until());
                    }
                    continue;
                }
                Err(error) => return Err(error),
            }
            // The agent may wait for room for its answers before it makes any.
            self.service.pump(&mut line, shared, None)?;
            if patience.is_over() {
                sending.give_up(&mut line);
                return Err(Error::Deadline { what: "room for the request", waited: patience.timeout() });
            }
            let channel = Arc::clone(&line.outlet.channel);
            drop(line);
            if let Err(stopped) = stop::check() {
                sending.give_up(&mut *self.service.enter()?);
                return Err(stopped);
            }
            if patience.spins(&channel) || patience.spins_for_room() {
                std::hint::spin_loop();
                continue;
            }
            let is_free = || {
                let Ok(mut line) = self.service.enter() else { return true };
                let enough = line.outlet.producer.bytes() / 8;
                line.sending.is_none_or(|id| id == sending.id) && line.outlet.free().is_ok_and(|free| free >= enough)
            };
            shared.sleepers.sleep(&channel, patience.until(), is_free);
        }
    }

    fn await_response(&self, id: u64, sink: &mut impl Sink, patience: &mut Patience) -> Result<usize, Error> {
        let shared = &*self.client.shared;
        loop {
            let known = {
                let mut line = self.service.enter()?;
                let mut total = None;
                let mut watched = Watched { sink, total: &mut total };
                self.service.pump(&mut line, shared, Some((id, &mut watched)))?;
                if let Some(total) = total {
                    return Ok(total);
                }
                if let Taken::Done(result) = line.inbox.take(id) {
                    let rest = result?;
                    sink.rest(rest.offset, &rest.bytes);
                    return Ok(rest.offset + rest.bytes.len());
                }
                if patience.is_over() {
                    line.inbox.forget(id);
                    return Err(Error::Deadline { what: "the response", waited: patience.timeout() });
                }
                self.service.known(&line, shared)
            };
            if let Err(stopped) = stop::check() {
                self.service.enter()?.inbox.forget(id);
                return Err(stopped);
            }
            self.wait_for_change(id, &known, patience);
        }
    }

    /// Spins, then sleeps, until the service is worth another look.
    fn wait_for_change(&self, id: u64, known: &super::line::Known, patience: &mut Patience) {
        let shared = &*self.client.shared;
        while patience.spins(known.channel()) {
            if stop::is_due() {
                return;
            }
            for _ in 0..32 {
                if self.service.has_changed(known, shared) {
                    return;
                }
                std::hint::spin_loop();
            }
        }
        if !patience.is_over() {
            let ready = || self.service.enter().map_or(true, |mut line| line.inbox.has_news(shared, id));
            shared.sleepers.sleep(known.channel(), patience.until(), ready);
        }
    }
}

/// Notes when a sink has got everything.
struct Watched<'a, S> {
    sink: &'a mut S,
    total: &'a mut Option<usize>,
}

impl<S: Sink> Sink for Watched<'_, S> {
    fn part(&mut self, offset: usize, total: usize, arrived: Arrived<'_>) {
        if offset + arrived.len() == total {
            *self.total = Some(total);
        }
        self.sink.part(offset, total, arrived);
    }

    fn rest(&mut self, offset: usize, bytes: &[u8]) {
        self.sink.rest(offset, bytes);
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
    /// The response if it has come. From within a callback of the same call: [`Error::Reentered`], and it is still out.
    pub fn try_take(&mut self) -> Result<Option<Vec<u8>>, Error> {
        let shared = &*self.caller.client.shared;
        shared.check_fork()?;
        let mut line = self.caller.service.enter()?;
        self.take_from(&mut line, shared)
    }

    fn take_from(&self, line: &mut CallLine, shared: &Shared) -> Result<Option<Vec<u8>>, Error> {
        self.caller.service.pump(line, shared, None)?;
        match line.inbox.take(self.id) {
            Taken::Done(result) => result.map(|rest| Some(rest.bytes)), // no sink: all of it
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
            shared.sleepers.arm_doorbell();
        }
    }

    /// Waits for the response until the call's deadline. From within a callback of the same call: [`Error::Reentered`], and it is still
    /// out.
    pub fn wait(&mut self) -> Result<Vec<u8>, Error> {
        let shared = &*self.caller.client.shared;
        shared.check_fork()?;
        let mut patience = Patience::new(self.until.saturating_duration_since(Instant::now()), self.caller.spin);
        loop {
            let known = {
                let mut line = self.caller.service.enter()?;
                if let Some(response) = self.take_from(&mut line, shared)? {
                    return Ok(response);
                }
                self.caller.service.known(&line, shared)
            };
            stop::check()?;
            self.caller.wait_for_change(self.id, &known, &mut patience);
        }
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        if self.caller.client.shared.check_fork().is_ok() {
            self.caller.service.give_up(self.id);
        }
    }
}
