//! What becomes of one client's requests of one service.

use super::answer::{Answer, Deferral};
use super::answers::Answers;
use super::serve::Ring;
use super::{Handler, Request};
use crate::clock;
use crate::frames::{RequestHead, STATUS_DEADLINE, STATUS_FAILED, STATUS_UNKNOWN};
use podshm_layout::ring::{Part, Record as Entry};
use podshm_layout::step::{self, Step};
use std::time::Duration;

pub(super) struct Desk<'a> {
    pub(super) service: &'a str,
    pub(super) client: u64,
    pub(super) member: &'a str,
    /// Index of the answers' ring.
    pub(super) to: usize,
    pub(super) deferral: &'a mut Deferral,
}

/// A request of which a part has come.
#[derive(Debug)]
pub(super) struct Partial {
    pub(super) head: RequestHead,
    /// Where its first part lies.
    pub(super) position: u64,
    so_far: usize,
    streamed: bool,
    bytes: Vec<u8>,
}

impl<'a> Desk<'a> {
    /// A request that came in one piece.
    #[inline(always)]
    pub(super) fn handle(
        &mut self,
        ring: &Ring,
        answers: &mut Answers,
        handler: &mut impl Handler,
        head: RequestHead,
        maybe_seen: bool,
        bytes: &[u8],
    ) {
        match self.time_left(ring, &head, maybe_seen, bytes.len() == head.total as usize) {
            Ok(time_left) => {
                let request = self.request(maybe_seen, time_left, bytes.len(), bytes);
                handler.call(request, &mut self.answer(ring, answers, &head));
                step::at(Step::CallHandled);
            }
            Err(status) => self.answer(ring, answers, &head).end(status),
        }
    }

    /// A part of one that comes in several. `head` comes with the first.
    #[cold]
    pub(super) fn handle_part(
        &mut self,
        ring: &mut Ring,
        answers: &mut Answers,
        handler: &mut impl Handler,
        record: &Entry,
        head: Option<RequestHead>,
        bytes: &[u8],
    ) {
        let started = match head {
            Some(head) => Partial { head, position: record.position, so_far: 0, streamed: false, bytes: Vec::new() },
            // Without a start it is the rest of one that was refused or that a predecessor had begun: its client sends it anew.
            None => match ring.partial.take() {
                Some(partial) => partial,
                None => return,
            },
        };
        let mut partial = started;
        let (head, offset) = (partial.head, partial.so_far);
        let total = head.total as usize;
        partial.so_far += bytes.len();
        let maybe_seen = ring.may_be_seen(partial.position);
        let fits = partial.so_far <= total && (partial.so_far == total) == (record.part == Part::Last);
        let time_left = match self.time_left(ring, &head, maybe_seen, fits) {
            Ok(time_left) => time_left,
            Err(status) => {
                ring.partial = None;
                return self.answer(ring, answers, &head).end(status);
            }
        };
        if offset == 0 || partial.streamed {
            let takes = handler.part(self.request(maybe_seen, time_left, total, bytes), offset);
            partial.streamed |= takes && offset == 0;
            if !self.deferral.is_served_here() {
                return;
            }
        }
        if !partial.streamed {
            partial.bytes.extend_from_slice(bytes);
        }
        if record.part != Part::Last {
            ring.partial = Some(partial);
            return;
        }
        let request = self.request(maybe_seen, time_left, total, &partial.bytes);
        handler.call(request, &mut self.answer(ring, answers, &head));
        step::at(Step::CallHandled);
    }

    /// How long the caller waits from now on, or why the request is not handled.
    #[inline(always)]
    fn time_left(&self, ring: &Ring, head: &RequestHead, maybe_seen: bool, fits: bool) -> Result<Duration, u32> {
        if !fits || head.total as usize > ring.longest {
            return Err(STATUS_FAILED);
        }
        if maybe_seen && !ring.idempotent {
            return Err(STATUS_UNKNOWN);
        }
        if head.deadline == 0 {
            return Ok(Duration::MAX);
        }
        // A deadline that passed within the last tick is found by the caller.
        match head.deadline.checked_sub(clock::now_coarse()) {
            Some(left) if left > 0 => Ok(Duration::from_nanos(left)),
            _ => Err(STATUS_DEADLINE),
        }
    }

    #[inline(always)]
    fn request<'r>(&self, maybe_seen: bool, time_left: Duration, len: usize, bytes: &'r [u8]) -> Request<'r>
    where
        'a: 'r,
    {
        Request { service: self.service, client: self.client, member: self.member, maybe_seen, time_left, len, bytes }
    }

    #[inline(always)]
    fn answer<'s>(&'s mut self, ring: &Ring, answers: &'s mut Answers, head: &RequestHead) -> Answer<'s> {
        Answer {
            answers,
            deferral: self.deferral,
            to: (self.client, self.to, head.id),
            longest: ring.longest_answer,
            is_given: false,
        }
    }
}
