//! Answers on their way to one client, in one ring.

use super::answer::Body;
use crate::frames::{self, RESPONSE, ResponseHead};
use podshm_layout::cursor::CursorLine;
use podshm_layout::ring::{Part, Producer};
use podshm_layout::step::{self, Step};
use podshm_region::{ReadMap, Window};
use std::collections::VecDeque;

/// A ring that the client reads, and what has no room in it yet.
#[derive(Debug)]
pub(super) struct Answers {
    producer: Producer<Window>,
    /// First page of the client's region, where its cursors are.
    peer: ReadMap,
    waiting: VecDeque<Outgoing>,
    /// Bytes that wait, and one for each answer.
    waiting_bytes: usize,
}

#[derive(Debug)]
struct Outgoing {
    head: ResponseHead,
    offset: usize,
    body: Body,
}

impl Answers {
    pub(super) fn new(producer: Producer<Window>, peer: ReadMap) -> Self {
        Answers { producer, peer, waiting: VecDeque::new(), waiting_bytes: 0 }
    }

    /// The client has its cursors elsewhere from now on.
    pub(super) fn read_cursors_at(&mut self, peer: ReadMap, line: CursorLine) {
        self.peer = peer;
        self.producer.read_cursors_at(line);
    }

    pub(super) fn waiting_bytes(&self) -> usize {
        self.waiting_bytes
    }

    pub(super) fn is_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// The hot path: an answer that fits one record is written at once by `fill`, if there is room and none waits before it.
    #[inline(always)]
    pub(super) fn at_once(&mut self, head: ResponseHead, fill: impl FnOnce(&mut [u8])) -> bool {
        let len = RESPONSE + head.total as usize;
        if !self.waiting.is_empty() || len > frames::fragment(self.producer.bytes()) {
            return false;
        }
        let Ok(room) = self.producer.reserve(len, &self.peer) else { return false };
        step::at(Step::AnswerReserved);
        self.producer.fill(&room, |bytes| {
            let (front, body) = bytes.split_at_mut(RESPONSE);
            front.copy_from_slice(&head.encode());
            fill(body);
        });
        self.producer.commit(room, Part::Whole);
        self.producer.publish();
        step::at(Step::AnswerPublished);
        true
    }

    /// Any answer: as much as there is room for now, the rest as the client makes room.
    pub(super) fn push(&mut self, head: ResponseHead, body: Body) {
        self.waiting_bytes += head.total as usize + 1;
        self.waiting.push_back(Outgoing { head, offset: 0, body });
        self.flush();
    }

    /// Writes what there is room for; says whether that was anything, a part of an answer included.
    pub(super) fn flush(&mut self) -> bool {
        let mut moved = false;
        let most = frames::fragment(self.producer.bytes());
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
            let Ok(room) = self.producer.reserve(front + len, &self.peer) else { return moved };
            step::at(Step::AnswerReserved);
            let offset = out.offset;
            self.producer.fill(&room, |bytes| {
                if front > 0 {
                    bytes[..RESPONSE].copy_from_slice(&out.head.encode());
                }
                match &mut out.body {
                    Body::Bytes(given) => bytes[front..].copy_from_slice(&given[offset..offset + len]),
                    Body::Fill(fill) => fill(offset, &mut bytes[front..]),
                }
            });
            self.producer.commit(room, part);
            self.producer.publish();
            step::at(Step::AnswerPublished);
            moved = true;
            out.offset += len;
            if last {
                self.waiting_bytes -= total + 1;
                self.waiting.pop_front();
            }
        }
        moved
    }
}
