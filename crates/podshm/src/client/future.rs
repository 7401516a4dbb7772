//! Calls for async programs, on any executor.

use super::Shared;
use super::call::Caller;
use super::inbox::Taken;
use super::line::{CallLine, Sending};
use crate::clock;
use crate::error::Error;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

/// What a client's futures and its library thread tell each other.
#[derive(Debug, Default)]
pub(crate) struct Futures {
    /// Futures that are alive.
    alive: AtomicU64,
    /// Those that wait for room or for an agent, not for a response.
    for_room: Mutex<Vec<Waker>>,
    /// When the first one's time is over.
    next_deadline: Mutex<Option<Instant>>,
}

impl Futures {
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        *self.next_deadline.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the library's thread look again at `deadline`.
    fn look_at(&self, deadline: Instant, shared: &Shared) {
        let mut next = self.next_deadline.lock().unwrap_or_else(PoisonError::into_inner);
        if next.is_none_or(|next| deadline < next) {
            *next = Some(deadline);
            shared.released.wake();
        }
    }

    /// For the library's thread, when responses may have come or a deadline has passed: takes what is there and wakes whom it
    /// is for. Asks for the doorbell again while anybody waits.
    pub(super) fn serve(&self, shared: &Shared) {
        if self.alive.load(Ordering::Acquire) == 0 {
            return;
        }
        shared.sleepers.arm_doorbell();
        let now = Instant::now();
        if self.next_deadline().is_some_and(|next| next <= now) {
            *self.next_deadline.lock().unwrap_or_else(PoisonError::into_inner) = None;
        }
        let mut next: Option<Instant> = None;
        for service in shared.offer.load().calls.values() {
            let Ok(mut line) = service.visit() else { continue };
            if let Err(error) = service.pump(&mut line, shared, None) {
                tracing::error!(%error, "responses can't be read");
            }
            let expires = line.inbox.expire(now);
            next = [next, expires].into_iter().flatten().min();
        }
        let waiting = std::mem::take(&mut *self.for_room.lock().unwrap_or_else(PoisonError::into_inner));
        waiting.into_iter().for_each(Waker::wake);
        if let Some(next) = next {
            self.look_at(next, shared);
        }
    }
}

impl Caller {
    /// [`Caller::call`] for async programs, on any executor. The request is sent at the first poll; no poll waits. The library's
    /// thread wakes the future when its response is there or its time is over, and when an agent comes where [`Caller::wait_for_agent`] is set.
    pub fn call_async(&self, request: impl Into<Vec<u8>>, timeout: Duration) -> CallFuture {
        let until = Instant::now() + timeout;
        CallFuture { caller: self.clone(), request: request.into(), sending: None, is_sent: false, until, timeout }
    }
}

/// A call as a future. Dropping it cancels it.
#[derive(Debug)]
pub struct CallFuture {
    caller: Caller,
    request: Vec<u8>,
    sending: Option<Sending>,
    is_sent: bool,
    until: Instant,
    timeout: Duration,
}

impl CallFuture {
    /// Gets on as far as it goes without waiting.
    fn step(&mut self, line: &mut CallLine) -> Result<Option<Vec<u8>>, Error> {
        let shared = &*self.caller.client.shared;
        let Some(sending) = &mut self.sending else { return Ok(None) };
        if !self.is_sent {
            let request = &self.request;
            let mut fill = |offset: usize, dst: &mut [u8]| dst.copy_from_slice(&request[offset..offset + dst.len()]);
            loop {
                match sending.advance(line, shared, &mut fill) {
                    Ok(is_sent) => break self.is_sent = is_sent,
                    Err(Error::AgentAway) if self.caller.waits_for_agent && Instant::now() < self.until => {
                        // Of one that was half sent the next agent may be there already. Whoever waits for room is woken when one comes, too.
                        if !sending.starts_over() {
                            return Ok(None);
                        }
                    }
                    Err(error) => return Err(error),
                }
            }
        }
        self.caller.service.pump(line, shared, None)?;
        if sending.id != 0
            && let Taken::Done(result) = line.inbox.take(sending.id)
        {
            return result.map(|rest| Some(rest.bytes)); // no sink: all of it
        }
        if Instant::now() >= self.until {
            let what = if self.is_sent { "the response" } else { "room for the request" };
            return Err(Error::Deadline { what, waited: self.timeout });
        }
        Ok(None)
    }
}

impl Future for CallFuture {
    type Output = Result<Vec<u8>, Error>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        if let Err(error) = this.caller.check(this.request.len()) {
            return Poll::Ready(Err(error));
        }
        if this.sending.is_none() {
            this.sending = Some(Sending::new(this.request.len(), clock::wire_deadline(this.timeout)));
            this.caller.client.shared.futures.alive.fetch_add(1, Ordering::AcqRel);
        }
        let client = this.caller.client.clone();
        let shared = &*client.shared;
        for armed in [false, true] {
            let service = Arc::clone(&this.caller.service);
            let mut line = match service.enter() {
                Ok(line) => line,
                Err(error) => return Poll::Ready(Err(error)),
            };
            match this.step(&mut line) {
                Ok(None) => {}
                Ok(Some(response)) => return Poll::Ready(Ok(response)),
                Err(error) => return Poll::Ready(Err(error)),
            }
            // Under the same entry as the look above: whoever fills the slot from now on wakes this task.
            let waits_for_response = this.is_sent
                && this.sending.as_ref().and_then(|s| line.inbox.slot(s.id)).is_some_and(|slot| {
                    slot.waker = Some(context.waker().clone());
                    slot.expires = Some(this.until);
                    true
                });
            drop(line);
            if !armed {
                if !waits_for_response {
                    let mut waiting = shared.futures.for_room.lock().unwrap_or_else(PoisonError::into_inner);
                    waiting.push(context.waker().clone());
                }
                shared.futures.look_at(this.until, shared);
                shared.sleepers.arm_doorbell();
            }
        }
        Poll::Pending
    }
}

impl Drop for CallFuture {
    fn drop(&mut self) {
        if let Some(sending) = &self.sending
            && self.caller.client.shared.check_fork().is_ok()
        {
            self.caller.client.shared.futures.alive.fetch_sub(1, Ordering::AcqRel);
            if sending.id != 0 {
                self.caller.service.give_up(sending.id);
            }
        }
    }
}
