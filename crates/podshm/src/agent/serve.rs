//! One client as its agent serves it.

use super::answer::{Answer, Body, Inbound};
use super::{Handler, Own, Record, Request};
use crate::broker_socket::Received;
use crate::clock;
use crate::error::Error;
use crate::frames::{
    self, REQUEST, RESPONSE, RequestHead, ResponseHead, STATUS_DEADLINE, STATUS_FAILED, STATUS_OK, STATUS_UNKNOWN,
};
use crate::wakes::{self, Wakes};
use podshm_layout::geometry::{ARMED, WAKE};
use podshm_layout::mem::{Load, Store};
use podshm_layout::ring::{Consumer, Part, Producer};
use podshm_layout::sync::Ordering;
use podshm_layout::wake::{Sleeper, Waker, Wants};
use podshm_layout::{PAGE, RingGeometry};
use podshm_proto::{Region, Serve, ServiceKind, Services};
use podshm_region::fork::ProcessFd;
use podshm_region::{Memory, ReadMap, Window, WriteMap};
use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::{Arc, mpsc};
use std::time::Duration;

/// Most bytes of a ring that are handled between claim and acknowledgement.
const BATCH: u64 = 16 * 1024;
/// Answer bytes that may wait for a client before its requests are left alone.
const MOST_WAITING: usize = 4 << 20;

pub(super) struct Tools<'a> {
    pub(super) services: &'a Services,
    pub(super) scratch: &'a mut Vec<u8>,
    pub(super) answer: &'a mut Vec<u8>,
    pub(super) deferred: &'a mpsc::Sender<Inbound>,
    pub(super) deferred_event: &'a Arc<OwnedFd>,
    pub(super) deferred_out: &'a mut usize,
}

/// A ring that the client writes.
#[derive(Debug)]
struct Ring {
    service: usize,
    kind: ServiceKind,
    geometry: RingGeometry,
    consumer: Consumer<ReadMap>,
    /// Records before this position may have been handled by a predecessor.
    maybe_seen: u64,
    /// Index of the answers' ring, for a call.
    answers: usize,
    partial: Option<Partial>,
    corrupt: bool,
}

/// A request of which a part has come.
#[derive(Debug)]
struct Partial {
    head: RequestHead,
    position: u64,
    so_far: usize,
    streamed: bool,
    bytes: Vec<u8>,
}

#[derive(Debug)]
struct Outgoing {
    head: ResponseHead,
    offset: usize,
    body: Body,
}

/// A ring that the client reads.
#[derive(Debug)]
struct Answers {
    producer: Producer<Window>,
    waiting: VecDeque<Outgoing>,
    waiting_bytes: usize,
}

#[derive(Debug)]
pub(super) struct AgentClient {
    id: u64,
    member: String,
    pub(super) gone: bool,
    pub(super) hot: bool,
    head: ReadMap,
    own: Own,
    rings: Vec<Ring>,
    answers: Vec<Answers>,
    sleeper: Sleeper,
    waker: Waker,
    wake_word: u64,
    regions: Vec<u64>,
    old_answer: Option<u64>,
    doorbell: Option<ProcessFd>,
    wakes: Wakes,
    /// How often something was there to be done.
    progress: u64,
}

impl AgentClient {
    pub(super) fn new(
        serve: &Serve,
        received: &mut Received,
        answer: Region,
        mut map: WriteMap,
        services: &Services,
        layout: u32,
    ) -> Result<Self, Error> {
        let wrong = |what: &str| Error::Protocol(format!("client {}: {what}", serve.client));
        let geometry = services.channel(serve.client, answer.owner).map_err(|e| wrong(&e.to_string()))?;
        let c = serve.regions.first().ok_or_else(|| wrong("its region is missing"))?;
        let memory = Memory::from_fd(received.fd("the client's region")?)?;
        let region = ReadMap::map(&memory, geometry.client_bytes)?;
        let header = c.header(layout).ok_or_else(|| wrong("its region's kind"))?;
        header.check(&region).map_err(podshm_region::RegionError::from)?;
        let old = match serve.regions.get(1) {
            Some(old) => {
                let memory = Memory::from_fd(received.fd("the predecessor's region")?)?;
                Some((old.id, ReadMap::map(&memory, old.bytes)?))
            }
            None => None,
        };
        let doorbell = if serve.gone { None } else { Some(received.fd("the doorbell")?) };
        let doorbell = doorbell.map(ProcessFd::new);
        let own = map.window(0, PAGE);
        let answers = geometry
            .to_client
            .iter()
            .map(|ring| Answers {
                producer: Producer::new(map.window(ring.offset as usize, ring.bytes as usize), ring)
                    .of_incarnation(answer.owner),
                waiting: VecDeque::new(),
                waiting_bytes: 0,
            })
            .collect();
        let mut rings = Vec::new();
        for (service, (_, kind)) in services.iter().enumerate().filter(|(_, (_, k))| *k != ServiceKind::Table) {
            let ring = geometry.to_agent[services.ring_to_agent(service)];
            let (start, maybe_seen) = match &old {
                None => (ring.start, 0),
                Some((_, old)) => {
                    let cursors = ring.cursor_line().read(old);
                    let started = ring.cursor_line().started(old).is_some();
                    match cursors.closed {
                        _ if !started => (ring.start, 0),
                        Some(closed) => (closed, 0),
                        // Not hung up and not closed: it may be at work on one batch even now.
                        None if serve.forced => (cursors.acked, cursors.claim.max(cursors.acked + BATCH)),
                        None => (cursors.acked, cursors.claim),
                    }
                }
            };
            ring.cursor_line().reset(&own, start);
            rings.push(Ring {
                service,
                kind,
                geometry: ring,
                consumer: Consumer::new(region.part(ring.offset as usize, ring.bytes as usize), &ring, start),
                maybe_seen,
                answers: services.ring_to_client(service),
                partial: None,
                corrupt: false,
            });
        }
        Ok(AgentClient {
            id: serve.client,
            member: serve.member.clone(),
            gone: serve.gone,
            hot: true,
            head: region.part(0, PAGE),
            own,
            rings,
            answers,
            sleeper: Sleeper::at(ARMED),
            waker: Waker::at(ARMED),
            wake_word: 0,
            regions: vec![c.id, answer.id],
            old_answer: old.map(|(id, _)| id),
            doorbell,
            wakes: Wakes::new(clock::now()),
            progress: 0,
        })
    }

    pub(super) fn longest_record(&self) -> usize {
        self.rings.iter().map(|r| r.geometry.max_record as usize).max().unwrap_or(0)
    }

    pub(super) fn doorbell(&self) -> Option<&ProcessFd> {
        self.doorbell.as_ref()
    }

    pub(super) fn regions(&self) -> Vec<u64> {
        self.regions.clone()
    }

    /// The predecessor's region: its cursors are read, it is not needed any more.
    pub(super) fn released_at_once(&self) -> Option<u64> {
        self.old_answer
    }

    /// Whether to go on listening to its doorbell, which has rung.
    pub(super) fn rung(&mut self, now: u64) -> bool {
        self.wakes.rung(now, self.progress)
    }

    pub(super) fn hang_up(&mut self, now: u64) {
        self.doorbell = None;
        self.wakes.hung_up(now);
    }

    pub(super) fn next_look(&self) -> Option<u64> {
        self.wakes.next_look()
    }

    pub(super) fn looked(&mut self, now: u64, found: bool) -> bool {
        self.wakes.looked(now, found)
    }

    /// Whether there is something to do for it.
    pub(super) fn has_news(&mut self) -> bool {
        !self.is_drained() || (self.has_answers_waiting() && self.flush_answers())
    }

    pub(super) fn name_silenced(&self) {
        let (client, member) = (self.id, &self.member);
        tracing::warn!(member, client, "rings its doorbell for nothing; it is polled for a while instead");
    }

    pub(super) fn name_held_open(&self) {
        let (client, member) = (self.id, &self.member);
        tracing::warn!(member, client, "its process is dead and its doorbell is kept open elsewhere; it is drained");
    }

    pub(super) fn heat_up(&mut self) {
        self.hot = true;
        self.sleeper.disarm(&self.own);
    }

    /// Arms, looks once more, and says whether the client may be left to its doorbell.
    pub(super) fn cool_down(&mut self) -> bool {
        // Answers that wait for room: reading one is news then.
        let waits = self.has_answers_waiting();
        self.sleeper.arm(&self.own, if waits { Wants::ROOM } else { Wants::DOORBELL });
        let moved = waits && self.flush_answers();
        self.progress += u64::from(moved);
        let empty = self.rings.iter_mut().all(|r| r.corrupt || matches!(r.consumer.peek(), Ok(None)));
        let cold = empty && !moved && !self.gone;
        if !cold {
            self.sleeper.disarm(&self.own);
        }
        cold
    }

    /// Everything that it had sent is handled.
    pub(super) fn is_drained(&mut self) -> bool {
        self.rings.iter_mut().all(|r| r.corrupt || matches!(r.consumer.peek(), Ok(None)))
    }

    fn answers_left(&self) -> usize {
        self.answers.iter().map(|a| a.waiting_bytes).sum()
    }

    pub(super) fn has_answers_waiting(&self) -> bool {
        !self.gone && self.answers.iter().any(|a| !a.waiting.is_empty())
    }

    /// One bounded batch from each of the client's rings; returns how many records it handled.
    pub(super) fn serve(&mut self, tools: &mut Tools<'_>, handler: &mut impl Handler) -> usize {
        let mut handled = 0;
        for index in 0..self.rings.len() {
            handled += match self.rings[index].kind {
                ServiceKind::Call => self.serve_call(index, tools, handler),
                _ => self.serve_queue(index, tools, handler),
            };
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

    fn serve_queue(&mut self, index: usize, tools: &mut Tools<'_>, handler: &mut impl Handler) -> usize {
        let ring = &mut self.rings[index];
        let name = tools.services.at(ring.service).map_or("", |(s, _)| s.name.as_str());
        let line = ring.geometry.cursor_line();
        let Some(first) = peek(ring, &self.member) else { return 0 };
        let budget = BATCH.min(u64::from(ring.geometry.bytes) / 4);
        let claim = (first.position + budget).max(first.next);
        line.claim(&self.own, claim);
        let mut handled = 0;
        let mut next = Some(first);
        while let Some(record) = next {
            if record.next > claim {
                break;
            }
            let bytes = &mut tools.scratch[..record.len];
            ring.consumer.copy_out(&record, 0, bytes);
            handler.record(Record {
                service: name,
                client: self.id,
                member: &self.member,
                position: record.position,
                maybe_seen: record.position < ring.maybe_seen,
                bytes,
            });
            ring.consumer.advance(&record);
            handled += 1;
            next = peek(ring, &self.member);
        }
        acknowledge(line, &self.own, ring.consumer.position());
        handled
    }

    fn serve_call(&mut self, index: usize, tools: &mut Tools<'_>, handler: &mut impl Handler) -> usize {
        let ring = &mut self.rings[index];
        if self.answers[ring.answers].waiting_bytes > MOST_WAITING {
            return 0;
        }
        let Some((service, _)) = tools.services.at(ring.service) else { return 0 };
        let line = ring.geometry.cursor_line();
        let Some(first) = peek(ring, &self.member) else { return 0 };
        let budget = BATCH.min(u64::from(ring.geometry.bytes) / 4);
        let claim = (first.position + budget).max(first.next);
        line.claim(&self.own, claim);
        let mut handled = 0;
        let mut next = Some(first);
        while let Some(record) = next {
            if record.next > claim {
                break;
            }
            handled += 1;
            let bytes = &mut tools.scratch[..record.len];
            ring.consumer.copy_out(&record, 0, bytes);
            ring.consumer.advance(&record);
            if matches!(record.part, Part::Whole | Part::First) {
                ring.partial = None; // a message that was given up by its sender
            }
            let (head, offset, body, streamed) = match record.part {
                Part::Whole | Part::First => match RequestHead::decode(bytes) {
                    Some(head) => (head, 0, &bytes[REQUEST..], false),
                    None => {
                        next = peek(ring, &self.member);
                        continue;
                    }
                },
                _ => match &ring.partial {
                    Some(partial) => (partial.head, partial.so_far, &bytes[..], partial.streamed),
                    None => {
                        // The rest of a message whose start was a predecessor's: its client sends it anew.
                        next = peek(ring, &self.member);
                        continue;
                    }
                },
            };
            let position = ring.partial.as_ref().map_or(record.position, |p| p.position);
            let maybe_seen = position < ring.maybe_seen;
            // A deadline that passed within the last tick is found by the caller.
            let now = clock::now_coarse();
            let total = head.total as usize;
            let complete = offset + body.len() == total;
            let refused = if total > service.longest as usize || offset + body.len() > total {
                Some(STATUS_FAILED)
            } else if maybe_seen && !service.idempotent {
                Some(STATUS_UNKNOWN)
            } else if head.deadline != 0 && head.deadline <= now {
                Some(STATUS_DEADLINE)
            } else {
                None
            };
            let to = ring.answers;
            if let Some(status) = refused {
                ring.partial = None;
                let out = Outgoing {
                    head: ResponseHead { id: head.id, total: 0, status },
                    offset: 0,
                    body: Body::Bytes(Vec::new()),
                };
                self.answers[to].push(out, &self.head, tools.answer);
                next = peek(ring, &self.member);
                continue;
            }
            let mut request = Request {
                service: &service.name,
                client: self.id,
                member: &self.member,
                maybe_seen,
                time_left: if head.deadline == 0 { Duration::MAX } else { Duration::from_nanos(head.deadline - now) },
                len: total,
                bytes: body,
            };
            let streams = record.part != Part::Whole && (streamed || offset == 0) && handler.part(request, offset);
            if !complete {
                let mut partial = ring.partial.take().unwrap_or(Partial {
                    head,
                    position: record.position,
                    so_far: 0,
                    streamed: streams,
                    bytes: Vec::new(),
                });
                partial.so_far += body.len();
                if !partial.streamed {
                    partial.bytes.extend_from_slice(body);
                }
                ring.partial = Some(partial);
                next = peek(ring, &self.member);
                continue;
            }
            let mut whole = ring.partial.take();
            if let Some(partial) = &mut whole {
                if !partial.streamed {
                    partial.bytes.extend_from_slice(body);
                }
                request.bytes = &partial.bytes;
            }
            let mut answer = Answer {
                buffer: tools.answer,
                body: None,
                deferral: (tools.deferred, tools.deferred_event),
                to: (self.id, to, head.id),
                deferred: false,
            };
            handler.call(request, &mut answer);
            let (body, deferred) = (answer.body.take(), answer.deferred);
            if deferred {
                *tools.deferred_out += 1;
            } else {
                let (status, body, len) = match body {
                    Some(Body::InBuffer) => (STATUS_OK, Body::InBuffer, tools.answer.len()),
                    Some(Body::Bytes(bytes)) => {
                        let n = bytes.len();
                        (STATUS_OK, Body::Bytes(bytes), n)
                    }
                    Some(Body::Fill(n, fill)) => (STATUS_OK, Body::Fill(n, fill), n),
                    None => (STATUS_FAILED, Body::Bytes(Vec::new()), 0),
                };
                let head = ResponseHead { id: head.id, total: len as u32, status };
                self.answers[to].push(Outgoing { head, offset: 0, body }, &self.head, tools.answer);
            }
            next = peek(ring, &self.member);
        }
        self.finish_call(index, handled)
    }

    /// Acknowledges what was handled: a message that is still coming in stays in the ring while it fits half of it.
    fn finish_call(&mut self, index: usize, handled: usize) -> usize {
        let ring = &self.rings[index];
        let position = ring.consumer.position();
        let hold = ring.partial.as_ref().map(|p| p.position);
        let kept = hold.filter(|hold| position - hold <= u64::from(ring.geometry.bytes) / 2).unwrap_or(position);
        let fits =
            ring.partial.as_ref().is_none_or(|p| p.head.total as u64 + 1024 <= u64::from(ring.geometry.bytes) / 2);
        acknowledge(ring.geometry.cursor_line(), &self.own, if fits { kept } else { position });
        handled
    }

    pub(super) fn answer_later(&mut self, inbound: Inbound) {
        let head = ResponseHead { id: inbound.id, total: inbound.bytes.len() as u32, status: inbound.status };
        let out = Outgoing { head, offset: 0, body: Body::Bytes(inbound.bytes) };
        if let Some(answers) = self.answers.get_mut(inbound.ring) {
            answers.push(out, &self.head, &[]);
            self.wake();
        }
    }

    /// Writes what there is room for; says whether anything moved.
    pub(super) fn flush_answers(&mut self) -> bool {
        let before = self.answers_left();
        for answers in &mut self.answers {
            answers.flush(&self.head, &[]);
        }
        let moved = self.answers_left() != before;
        if moved {
            self.wake();
        }
        moved
    }

    /// Wakes the client if it sleeps: on the futex, on its doorbell, or both.
    fn wake(&mut self) {
        let Some(wants) = self.waker.check(&self.head) else { return };
        if wants.futex() {
            self.wake_word += 1;
            self.own.store(WAKE, self.wake_word, Ordering::Release);
            self.own.futex_wake(WAKE);
        }
        if let (true, Some(doorbell)) = (wants.doorbell(), &self.doorbell) {
            // Full, or hung up: then the client is awake, or gone.
            wakes::ring(doorbell);
        }
    }

    /// Closes every ring where it stands.
    pub(super) fn close(&mut self) {
        for ring in &self.rings {
            let position = ring.partial.as_ref().map_or(ring.consumer.position(), |p| p.position);
            let acked = ring.geometry.cursor_line().acked(&self.own);
            ring.geometry.cursor_line().close(&self.own, position.max(acked));
        }
    }
}

impl Answers {
    fn push(&mut self, out: Outgoing, peer: &impl Load, buffer: &[u8]) {
        self.waiting_bytes += out.head.total as usize + 1;
        self.waiting.push_back(out);
        self.flush(peer, buffer);
        // What is in the reusable buffer must not stay there.
        if let Some(last) = self.waiting.back_mut()
            && matches!(last.body, Body::InBuffer)
        {
            last.body = Body::Bytes(buffer.to_vec());
        }
    }

    fn flush(&mut self, peer: &impl Load, buffer: &[u8]) {
        let most = (self.producer.bytes() / 4).min(frames::FRAGMENT as u64) as usize;
        while let Some(out) = self.waiting.front_mut() {
            let total = out.head.total as usize;
            let front = if out.offset == 0 { RESPONSE } else { 0 };
            let len = (total - out.offset).min(most - front);
            let last = out.offset + len == total;
            let part = match (out.offset == 0, last) {
                (true, true) => Part::Whole,
                (true, false) => Part::First,
                (false, false) => Part::Middle,
                (false, true) => Part::Last,
            };
            // A full ring, or a client whose cursor lies: its answers wait, and are bounded.
            let Ok(room) = self.producer.reserve(front + len, peer) else { return };
            let offset = out.offset;
            self.producer.fill(&room, |bytes| {
                if front > 0 {
                    bytes[..RESPONSE].copy_from_slice(&out.head.encode());
                }
                let body = &mut bytes[front..];
                match &mut out.body {
                    Body::InBuffer => body.copy_from_slice(&buffer[offset..offset + len]),
                    Body::Bytes(given) => body.copy_from_slice(&given[offset..offset + len]),
                    Body::Fill(_, fill) => fill(offset, body),
                }
            });
            self.producer.commit(room, part);
            self.producer.publish();
            out.offset += len;
            if last {
                self.waiting_bytes -= total + 1;
                self.waiting.pop_front();
            }
        }
    }
}

/// The next record; a ring that lies is not looked at again: its client loses its own records, nobody else's.
fn peek(ring: &mut Ring, member: &str) -> Option<podshm_layout::ring::Record> {
    if ring.corrupt {
        return None;
    }
    match ring.consumer.peek() {
        Ok(record) => record,
        Err(error) => {
            tracing::error!(member, %error, "ring given up");
            ring.corrupt = true;
            None
        }
    }
}

fn acknowledge(line: podshm_layout::cursor::CursorLine, own: &Own, position: u64) {
    line.acknowledge(own, position);
    // Nothing is in hand any more.
    line.claim(own, position);
}
