//! One client as its agent holds it: regions, cursors, sleep and wake.

use super::Own;
use super::answer::Inbound;
use super::answers::Answers;
use super::moving::{Coming, Reading};
use super::serve::Ring;
use crate::broker_socket::Received;
use crate::clock;
use crate::error::Error;
use crate::frames::ResponseHead;
use crate::wakes::Wakes;
use podshm_layout::PAGE;
use podshm_layout::geometry::{ARMED, WAKE};
use podshm_layout::mem::Store;
use podshm_layout::ring::{Consumer, Producer};
use podshm_layout::step::{self, Step};
use podshm_layout::sync::Ordering;
use podshm_layout::wake::{Sleeper, Waker, Wants};
use podshm_proto::{Region, Serve, ServiceKind};
use podshm_region::fork::ProcessFd;
use podshm_region::{Memory, ReadMap, WriteMap};

/// Most bytes of a ring that are handled between claim and acknowledgement.
pub(super) const BATCH: u64 = 16 * 1024;

#[derive(Debug)]
pub(super) struct AgentClient {
    pub(super) id: u64,
    pub(super) member: String,
    pub(super) gone: bool,
    pub(super) hot: bool,
    pub(super) head: ReadMap,
    pub(super) own: Own,
    pub(super) rings: Vec<Ring>,
    pub(super) answers: Vec<Answers>,
    sleeper: Sleeper,
    pub(super) waker: Waker,
    wake_word: u64,
    /// Number of the client's region.
    pub(super) c: u64,
    pub(super) answer: Region,
    /// The region that the client goes over to.
    pub(super) next: Option<Coming>,
    old_answer: Option<u64>,
    doorbell: Option<ProcessFd>,
    wakes: Wakes,
    /// How often something was there to be done.
    pub(super) progress: u64,
}

impl AgentClient {
    pub(super) fn new(
        serve: &Serve,
        received: &mut Received,
        answer: Region,
        mut map: WriteMap,
        reading: Reading<'_>,
    ) -> Result<Self, Error> {
        let wrong = |what: &str| Error::Protocol(format!("client {}: {what}", serve.client));
        let c = *serve.regions.first().ok_or_else(|| wrong("its region is missing"))?;
        let geometry = reading.geometry(&c, &answer)?;
        let region = reading.map(&c, received.fd("the client's region")?)?;
        let old = match serve.regions.get(1) {
            Some(old) => {
                let memory = Memory::from_fd(received.fd("the predecessor's region")?)?;
                // It had cursors for the services of its time.
                let known = reading.services.of(old).count().min(reading.services.of(&c).count());
                let rings = reading.geometry(&Region { services: known as u32, ..c }, old)?.to_agent;
                Some((old.id, ReadMap::map(&memory, old.bytes)?, rings))
            }
            None => None,
        };
        let doorbell = if serve.gone { None } else { Some(received.fd("the doorbell")?) };
        let doorbell = doorbell.map(ProcessFd::new);
        let next = match serve.next {
            Some(region) => Some(Coming::new(region, received.fd("its next region")?, &answer, reading)?),
            None => None,
        };
        let own = map.window(0, PAGE);
        let answers = geometry
            .to_client
            .iter()
            .map(|ring| {
                let producer = Producer::new(map.window(ring.offset as usize, ring.bytes as usize), ring);
                Answers::new(producer.of_incarnation(answer.owner), region.part(0, PAGE))
            })
            .collect();
        let mut rings = Vec::new();
        let services = reading.services;
        let offered = services.iter().enumerate().filter(|(_, (_, k))| *k != ServiceKind::Table);
        for ((service, _), &ring) in offered.zip(&geometry.to_agent) {
            let before = old.as_ref().and_then(|(_, old, lines)| Some((old, lines.get(rings.len())?)));
            let (start, maybe_seen) = match before {
                None => (ring.start, 0),
                Some((old, before)) => {
                    let line = before.cursor_line();
                    let (cursors, started) = (line.read(old), line.started(old).is_some());
                    match cursors.closed {
                        _ if !started => (ring.start, 0),
                        // What is claimed past it was in the hand of one before, which did not close.
                        Some(closed) => (closed, cursors.claim),
                        // Not hung up and not closed: it may be at work on one batch even now.
                        None if serve.forced => (cursors.acked, cursors.claim.max(cursors.acked + BATCH)),
                        None => (cursors.acked, cursors.claim),
                    }
                }
            };
            // A client that was never told of the predecessor has accepted no more than its ring holds past these cursors.
            let maybe_seen = if serve.outdated { maybe_seen.max(start + u64::from(ring.bytes)) } else { maybe_seen };
            step::at(Step::HandoverStarting);
            ring.cursor_line().inherit(&own, start, maybe_seen);
            let consumer = Consumer::new(region.part(ring.offset as usize, ring.bytes as usize), &ring, start);
            rings.push(Ring::new(services, service, ring, consumer, maybe_seen));
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
            c: c.id,
            answer,
            next,
            old_answer: old.map(|(id, ..)| id),
            doorbell,
            wakes: Wakes::new(clock::now()),
            progress: 0,
        })
    }

    pub(super) fn longest_record(&self) -> usize {
        self.rings.iter().map(Ring::longest_record).max().unwrap_or(0)
    }

    pub(super) fn doorbell(&self) -> Option<&ProcessFd> {
        self.doorbell.as_ref()
    }

    pub(super) fn regions(&self) -> Vec<u64> {
        [Some(self.c), Some(self.answer.id), self.next.as_ref().map(|next| next.region.id)]
            .into_iter()
            .flatten()
            .collect()
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
        self.move_is_due() || !self.is_drained() || (self.has_answers_waiting() && self.flush_answers())
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

    /// Says "about to sleep", to be followed by a barrier and [`AgentClient::stays_cold`].
    pub(super) fn cool_down(&mut self) {
        // Answers that wait for room: reading one is news then.
        let wants = if self.has_answers_waiting() { Wants::ROOM } else { Wants::DOORBELL };
        self.sleeper.announce(&self.own, wants);
    }

    /// Looks once more, and says whether the client may be left to its doorbell.
    pub(super) fn stays_cold(&mut self) -> bool {
        let moved = self.has_answers_waiting() && self.flush_answers();
        self.progress += u64::from(moved);
        let cold = self.is_drained() && !moved && !self.gone && !self.move_is_due();
        if cold {
            self.hot = false;
        } else {
            self.sleeper.disarm(&self.own);
        }
        cold
    }

    /// Everything that it had sent is handled.
    pub(super) fn is_drained(&mut self) -> bool {
        self.rings.iter_mut().all(Ring::is_empty)
    }

    pub(super) fn has_answers_waiting(&self) -> bool {
        !self.gone && self.answers.iter().any(Answers::is_waiting)
    }

    pub(super) fn answer_later(&mut self, inbound: Inbound) {
        let head = ResponseHead { id: inbound.id, total: inbound.bytes.len() as u32, status: inbound.status };
        if let Some(answers) = self.answers.get_mut(inbound.ring) {
            answers.push(head, super::answer::Body::Bytes(inbound.bytes));
            self.wake();
        }
    }

    /// Writes what there is room for; says whether anything moved.
    pub(super) fn flush_answers(&mut self) -> bool {
        let mut moved = false;
        for answers in &mut self.answers {
            moved |= answers.flush();
        }
        if moved {
            self.wake();
        }
        moved
    }

    /// Wakes the client if it sleeps: on the futex, on its doorbell, or both.
    pub(super) fn wake(&mut self) {
        let Some(wants) = self.waker.check(&self.head) else { return };
        if wants.futex() {
            self.wake_word += 1;
            self.own.store(WAKE, self.wake_word, Ordering::Release);
            self.own.futex_wake(WAKE);
        }
        if let (true, Some(doorbell)) = (wants.doorbell(), &self.doorbell) {
            crate::doorbell::ring(doorbell);
        }
    }

    /// Closes every ring where it stands.
    pub(super) fn close(&mut self) {
        for ring in &self.rings {
            ring.close(&self.own);
            step::at(Step::HandoverClosing);
        }
    }
}
