//! Serving one client: a bounded batch from each of its rings.

use super::answer::Deferral;
use super::client::{AgentClient, BATCH};
use super::desk::{Desk, Partial};
use super::{Handler, Own, Record};
use crate::clock;
use crate::frames::{REQUEST, RequestHead};
use podshm_layout::RingGeometry;
use podshm_layout::cursor::CursorLine;
use podshm_layout::geometry::NOTICE_AGENT_EPOCH;
use podshm_layout::mem::Load;
use podshm_layout::ring::{Consumer, Part, Record as Entry, RingError};
use podshm_layout::step::{self, Bug, Step};
use podshm_layout::sync::{Ordering, fence};
use podshm_proto::{ServiceKind, Services};
use podshm_region::ReadMap;

/// Answer bytes that may wait for a client before its requests are left alone.
const MOST_WAITING: usize = 4 << 20;

pub(super) struct Tools<'a> {
    pub(super) services: &'a Services,
    pub(super) scratch: &'a mut Vec<u8>,
    pub(super) deferral: &'a mut Deferral,
    pub(super) notice: &'a ReadMap,
    pub(super) epoch: u64,
    /// When its broker was surely there, in coarse time.
    pub(super) sure: u64,
}

/// Whether the agent of this epoch is the one that serves, by the broker's notice page: one cached word.
///
/// Asked before each batch, and once more when a record is copied out: an agent that was stopped in between may wake up when its
/// successor has handled the record and the client has overwritten it. A byte of that is written after the new epoch, so who has
/// copied one sees the epoch too.
#[inline(always)]
pub(super) fn serves(notice: &ReadMap, epoch: u64) -> bool {
    fence(Ordering::Acquire); // the copied bytes first, then the epoch
    notice.load(NOTICE_AGENT_EPOCH, Ordering::Acquire) == epoch
}

/// Whether it is too long ago that its broker was surely there to serve without asking.
#[inline(always)]
pub(super) fn is_late(sure: u64) -> bool {
    clock::now_coarse().saturating_sub(sure) > super::LEASE
}

/// A ring that the client writes.
#[derive(Debug)]
pub(super) struct Ring {
    service: usize,
    is_call: bool,
    geometry: RingGeometry,
    line: CursorLine,
    consumer: Consumer<ReadMap>,
    /// Records before this position may have been handled by a predecessor.
    maybe_seen: u64,
    /// Index of the answers' ring, for a call.
    answers: usize,
    pub(super) idempotent: bool,
    pub(super) longest: usize,
    pub(super) longest_answer: usize,
    pub(super) partial: Option<Partial>,
    corrupt: bool,
}

impl Ring {
    pub(super) fn new(
        services: &Services,
        service: usize,
        geometry: RingGeometry,
        consumer: Consumer<ReadMap>,
        maybe_seen: u64,
    ) -> Self {
        let offered = services.at(service);
        Ring {
            service,
            is_call: offered.is_some_and(|(_, kind)| kind == ServiceKind::Call),
            geometry,
            line: geometry.cursor_line(),
            consumer,
            maybe_seen,
            answers: services.ring_to_client(service),
            idempotent: offered.is_some_and(|(s, _)| s.idempotent),
            longest: offered.map_or(0, |(s, _)| s.longest as usize),
            longest_answer: offered.map_or(0, |(s, _)| s.longest_response as usize),
            partial: None,
            corrupt: false,
        }
    }

    pub(super) fn longest_record(&self) -> usize {
        self.geometry.max_record as usize
    }

    /// The client writes on in another region, at the same positions.
    pub(super) fn move_to(&mut self, mem: ReadMap) {
        self.consumer.move_to(mem);
    }

    /// Index of the ring that its answers go to, for a call.
    pub(super) fn answers(&self) -> Option<usize> {
        self.is_call.then_some(self.answers)
    }

    /// Everything that is there is handled, or the ring is given up.
    pub(super) fn is_empty(&mut self) -> bool {
        self.corrupt || matches!(self.consumer.peek(), Ok(None))
    }

    /// Closes where it stands; a request of which a part is missing is the successor's.
    pub(super) fn close(&self, own: &Own) {
        let position = self.partial.as_ref().map_or(self.consumer.position(), |p| p.position);
        self.line.close(own, position.max(self.line.acked(own)), self.maybe_seen);
    }

    /// The next record; a ring that lies is not looked at again: its client loses its own records, nobody else's.
    #[inline(always)]
    fn peek(&mut self, member: &str) -> Option<Entry> {
        if self.corrupt {
            return None;
        }
        match self.consumer.peek() {
            Ok(record) => record,
            Err(error) => {
                self.give_up(member, &error);
                None
            }
        }
    }

    #[cold]
    fn give_up(&mut self, member: &str, error: &RingError) {
        tracing::error!(member, %error, "ring given up");
        self.corrupt = true;
    }

    /// Says that a batch from `first` on is in hand; returns where it ends at the latest.
    #[inline(always)]
    fn claim(&self, first: &Entry, own: &Own) -> u64 {
        let budget = BATCH.min(u64::from(self.geometry.bytes) / 4);
        let claim = (first.position + budget).max(first.next);
        self.line.claim(own, claim.max(self.maybe_seen));
        claim
    }

    #[inline(always)]
    fn request_head(&self, record: &Entry) -> RequestHead {
        let word = |index| self.consumer.word(record, index);
        RequestHead::from_words(word(0), word(1), word(2))
    }

    /// Whether a predecessor may have handled the record at `position`.
    #[inline(always)]
    pub(super) fn may_be_seen(&self, position: u64) -> bool {
        position < self.maybe_seen
    }

    /// Up to where everything is handled: a message that is still coming in stays in the ring while it fits half of it.
    #[inline(always)]
    fn handled_to(&self) -> u64 {
        let (position, half) = (self.consumer.position(), u64::from(self.geometry.bytes) / 2);
        match &self.partial {
            Some(p) if p.head.total as u64 + 1024 <= half && position - p.position <= half => p.position,
            _ => position,
        }
    }

    /// Everything before `position` is handled, and nothing is in hand any more but what a predecessor had.
    #[inline(always)]
    fn acknowledge(&self, own: &Own, position: u64) {
        step::at(Step::DrainAcknowledging);
        if step::is_planted(Bug::SkippedAcknowledgement) && position / 8192 % 2 == 1 {
            return;
        }
        self.line.acknowledge(own, position);
        step::at(Step::DrainAcknowledged);
        self.line.claim(own, position.max(self.maybe_seen));
    }
}

impl AgentClient {
    /// One bounded batch from each of the client's rings; returns how many records it handled.
    #[inline]
    pub(super) fn serve(&mut self, tools: &mut Tools<'_>, handler: &mut impl Handler) -> usize {
        let mut handled = 0;
        for index in 0..self.rings.len() {
            handled += if self.rings[index].is_call {
                self.serve_call(index, tools, handler)
            } else {
                self.serve_queue(index, tools, handler)
            };
            if !tools.deferral.is_served_here() {
                return handled;
            }
        }
        if self.has_answers_waiting() {
            handled += usize::from(self.flush_answers());
        }
        self.progress += u64::from(handled > 0);
        if handled > 0 && !self.gone {
            self.wake();
        }
        handled
    }

    #[inline(always)]
    fn serve_queue(&mut self, index: usize, tools: &mut Tools<'_>, handler: &mut impl Handler) -> usize {
        let ring = &mut self.rings[index];
        let Some(first) = ring.peek(&self.member) else { return 0 };
        step::at(Step::DrainPeeked);
        let service = tools.services.at(ring.service).map_or("", |(s, _)| s.name.as_str());
        let claim = ring.claim(&first, &self.own);
        step::at(Step::DrainClaimed);
        let mut handled = 0;
        let mut next = Some(first);
        while let Some(record) = next {
            if record.next > claim {
                break;
            }
            let head = |bytes| Record {
                service,
                client: self.id,
                member: &self.member,
                position: record.position,
                maybe_seen: ring.may_be_seen(record.position),
                bytes,
            };
            let mut is_ours = true;
            let taken = handler.record_in_place(head(&[]), record.len, &mut |place| {
                ring.consumer.copy_out(&record, 0, place);
                is_ours = serves(tools.notice, tools.epoch);
                is_ours
            });
            if !taken && is_ours {
                let bytes = &mut tools.scratch[..record.len];
                ring.consumer.copy_out(&record, 0, bytes);
                is_ours = serves(tools.notice, tools.epoch);
                if is_ours {
                    step::at(Step::DrainCopied);
                    handler.record(head(bytes));
                }
            }
            if !is_ours {
                return handled;
            }
            step::at(Step::DrainHandled);
            // A handler that has forked: what follows is the parent's.
            if !tools.deferral.is_served_here() {
                return handled;
            }
            ring.consumer.advance(&record);
            handled += 1;
            next = ring.peek(&self.member);
        }
        ring.acknowledge(&self.own, ring.consumer.position());
        handled
    }

    #[inline(always)]
    fn serve_call(&mut self, index: usize, tools: &mut Tools<'_>, handler: &mut impl Handler) -> usize {
        let AgentClient { rings, answers, member, own, id: client, .. } = self;
        let ring = &mut rings[index];
        let Some(first) = ring.peek(member) else { return 0 };
        let (to, answers) = (ring.answers, &mut answers[ring.answers]);
        if answers.waiting_bytes() > MOST_WAITING {
            return 0;
        }
        let service = tools.services.at(ring.service).map_or("", |(s, _)| s.name.as_str());
        let claim = ring.claim(&first, own);
        step::at(Step::CallClaimed);
        // With a message in hand it reads on from further than a successor assumes who has not seen this claim.
        if ring.partial.is_some() && is_late(tools.sure) {
            return 0;
        }
        let mut desk = Desk { service, client: *client, member, to, deferral: tools.deferral };
        let mut handled = 0;
        let mut next = Some(first);
        while let Some(record) = next {
            if record.next > claim {
                break;
            }
            let front = if matches!(record.part, Part::Whole | Part::First) { REQUEST } else { 0 };
            // A record that is too short for its head is nobody's request.
            if record.len >= front {
                let bytes = &mut tools.scratch[..record.len - front];
                ring.consumer.copy_out(&record, front, bytes);
                let head = (front > 0).then(|| ring.request_head(&record));
                if !serves(tools.notice, tools.epoch) {
                    return handled;
                }
                step::at(Step::CallCopied);
                match (record.part, head) {
                    (Part::Whole, Some(head)) => {
                        let seen = ring.may_be_seen(record.position);
                        ring.partial = None; // a message that was given up by its sender
                        desk.handle(ring, answers, handler, head, seen, bytes);
                    }
                    _ => desk.handle_part(ring, answers, handler, &record, head, bytes),
                }
                if !desk.deferral.is_served_here() {
                    return handled;
                }
            }
            ring.consumer.advance(&record);
            handled += 1;
            next = ring.peek(member);
        }
        ring.acknowledge(own, ring.handled_to());
        handled
    }
}
