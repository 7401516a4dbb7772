//! The library's agent beside a client by hand, which is honest for as long as it does nothing else: then every record and
//! request must be handled once, in order and whole, and every request answered; after its first lie only itself may suffer.

use crate::input::Input;
use crate::live::{self, HandClient, LONGEST, LONGEST_CALL};
use podshm::{Agent, Answer, Client, Handler, Progress, Record, Request};
use podshm_layout::ring::Part;
use podshm_tests::{Node, PATIENCE};
use std::cell::RefCell;
use std::collections::BTreeMap;

/// Records and requests that one poll of two clients may handle: 16 KiB of 8-byte records from each of their rings.
const MOST_HANDLED: usize = 2 * 2 * 2048 + 2;

thread_local! {
    static WORLD: RefCell<Option<World>> = const { RefCell::new(None) };
}

struct World {
    agent: Agent,
    honest: Client,
    node: Node,
    count: u64,
}

/// What the handler saw.
#[derive(Default)]
struct Seen {
    records: Vec<(u64, Vec<u8>)>,
    requests: Vec<(u64, Vec<u8>)>,
    /// Of each client, what it has of a request that it takes as it comes.
    parts: BTreeMap<u64, Vec<u8>>,
}

impl Handler for Seen {
    fn record(&mut self, record: Record<'_>) {
        assert!(record.bytes.len() <= LONGEST && record.service == "q" && !record.maybe_seen, "{record:?}");
        self.records.push((record.client, record.bytes.to_vec()));
    }

    fn call(&mut self, request: Request<'_>, answer: &mut Answer<'_>) {
        assert!(request.len <= LONGEST_CALL && request.service == "c" && !request.maybe_seen, "{request:?}");
        let parts = self.parts.remove(&request.client).unwrap_or_default();
        // A request that was given up may have left parts behind.
        let bytes = if request.bytes.len() == request.len { request.bytes.to_vec() } else { parts };
        assert_eq!(bytes.len(), request.len, "a request is whole");
        answer.reply_owned(bytes.iter().rev().copied().collect());
        self.requests.push((request.client, bytes));
    }

    /// Takes those as they come that begin with an odd byte.
    fn part(&mut self, request: Request<'_>, offset: usize) -> bool {
        assert!(offset + request.bytes.len() <= request.len && request.len <= LONGEST_CALL, "{offset} {request:?}");
        let parts = self.parts.entry(request.client).or_default();
        if offset == 0 {
            parts.clear();
        }
        let takes = if offset == 0 { request.bytes.first().is_some_and(|b| b % 2 == 1) } else { true };
        if takes {
            assert_eq!(parts.len(), offset, "parts come in order");
            parts.extend_from_slice(request.bytes);
        }
        takes
    }
}

impl World {
    fn new() -> Self {
        let node = live::node();
        let mut agent = Agent::builder();
        agent = agent.table("t", 10, 4096).queue("q", live::RING, LONGEST as u32);
        let mut agent =
            agent.call("c", live::RING, LONGEST_CALL as u32).connect(node.pod("agent"), PATIENCE).expect("an agent");
        agent.ready().expect("the broker is there");
        let honest = Client::join(node.pod("honest"), PATIENCE).expect("a client");
        let mut world = World { agent, honest, node, count: 0 };
        let mut seen = Seen::default();
        live::until("the honest client is served", || {
            world.poll(&mut seen);
            world.agent.clients() == 1
        });
        world
    }

    fn poll(&mut self, seen: &mut Seen) -> usize {
        match self.agent.poll(seen).expect("nothing that a client does ends its agent") {
            Progress::Handled(n) => {
                assert!(n <= MOST_HANDLED, "{n} handled in one poll");
                n
            }
            Progress::Idle => 0,
            Progress::CloseAsked => panic!("nobody asked the agent to close"),
        }
    }

    /// The honest client is served as if nobody else were there.
    fn still_serves(&mut self, seen: &mut Seen) {
        self.count += 1;
        let bytes = self.count.to_le_bytes();
        self.honest.queue("q").expect("a queue").try_push(&bytes).expect("room");
        let mut out = self.honest.call("c").expect("a call").start(&bytes, PATIENCE).expect("sent");
        let mut answer = None;
        live::until("the honest client is answered", || {
            self.poll(seen);
            answer = out.try_take().expect("an answer");
            answer.is_some()
        });
        assert_eq!(answer.expect("an answer"), self.count.to_be_bytes());
        let mine = self.honest.id();
        live::until("the honest client's record is handled", || {
            self.poll(seen);
            seen.records.iter().any(|(client, record)| (*client, &record[..]) == (mine, &bytes[..]))
        });
    }
}

/// The client by hand: what it sent and what must come of it.
struct Sender {
    hand: HandClient,
    honest: bool,
    records: Vec<Vec<u8>>,
    requests: Vec<Vec<u8>>,
    /// Answers that must come, in order: number, status, bytes.
    answers: Vec<(u64, u32, Vec<u8>)>,
    got: usize,
    half: Option<(u64, u32, usize, Vec<u8>)>,
    last_id: u64,
}

/// The target.
pub fn agent(data: &[u8]) {
    WORLD.with_borrow_mut(|world| run(world.get_or_insert_with(World::new), &mut Input::new(data)));
}

fn run(world: &mut World, input: &mut Input<'_>) {
    let mut seen = Seen::default();
    let hand = HandClient::join(&world.node);
    let (records, requests, answers) = Default::default();
    let mut sender = Sender { hand, honest: true, records, requests, answers, got: 0, half: None, last_id: 0 };
    live::until("the client by hand is served", || {
        world.poll(&mut seen);
        world.agent.clients() == 2
    });
    while !input.is_empty() {
        match input.choice(10) {
            0 | 1 => {
                let bytes = vec![input.u8(); input.below(LONGEST + 1)];
                if sender.hand.own.push(0, Part::Whole, [&bytes, &[]], &sender.hand.peer) {
                    sender.records.push(bytes);
                }
            }
            2 | 3 => sender.request(input),
            4 => sender.broken_request(input),
            5 => {
                sender.honest = false;
                let at = if input.choice(2) == 0 { input.below(512) } else { input.below(3 * 512 + 2048) };
                sender.hand.own.scribble(at, input.word());
            }
            6 => sender.scribble_next(input),
            7 => sender.take_answers(),
            _ => {
                world.poll(&mut seen);
            }
        }
    }
    // It reads its answers for as long as there are more to come, and leaves.
    if sender.honest {
        live::until("every request is answered", || {
            world.poll(&mut seen);
            sender.take_answers();
            sender.got == sender.answers.len()
        });
    }
    world.still_serves(&mut seen);
    let (id, honest) = (sender.hand.id, sender.honest);
    drop(sender.hand);
    live::until("the client is drained and forgotten", || {
        world.poll(&mut seen);
        world.agent.clients() == 1
    });
    if honest {
        let of = |all: Vec<(u64, Vec<u8>)>| -> Vec<_> { all.into_iter().filter(|r| r.0 == id).map(|r| r.1).collect() };
        assert_eq!(of(seen.records), sender.records, "records of an honest client");
        assert_eq!(of(seen.requests), sender.requests, "requests of an honest client");
    }
}

impl Sender {
    /// A request as the library sends it: whole, or in fragments of up to a quarter of the ring; sometimes given up half way.
    fn request(&mut self, input: &mut Input<'_>) {
        let body = vec![input.u8(); input.below(6000)];
        let (deadline, give_up) = (u64::from(input.choice(4)), input.choice(8) == 1);
        self.last_id += 1;
        // 1: long past. 2: in a century.
        let deadline = if deadline == 2 { u64::MAX / 2 } else { deadline % 2 };
        let mut head = [0; 24];
        head[..8].copy_from_slice(&self.last_id.to_le_bytes());
        head[8..16].copy_from_slice(&deadline.to_le_bytes());
        head[16..20].copy_from_slice(&(body.len() as u32).to_le_bytes());
        let most = live::RING as usize / 4;
        let need = body.len() + 24 + 16 * (body.len() / most + 2) + most;
        let peer = self.hand.peer.clone();
        let line = self.hand.geometry.to_agent[1].cursor_line();
        // After a lie the agent may have read further than was written.
        let unread = self.hand.own.rings[1].head().saturating_sub(line.acked(&peer));
        let free = u64::from(live::RING).saturating_sub(unread);
        if (free as usize) < need {
            return;
        }
        let mut offset = 0;
        loop {
            let front = if offset == 0 { 24 } else { 0 };
            let len = (body.len() - offset).min(most - front);
            let last = offset + len == body.len();
            let part = match (offset == 0, last) {
                (true, true) => Part::Whole,
                (true, false) => Part::First,
                (false, false) => Part::Middle,
                (false, true) => Part::Last,
            };
            if give_up && last && part != Part::Whole && deadline != 1 {
                return;
            }
            let pushed = self.hand.own.push(1, part, [&head[..front], &body[offset..offset + len]], &peer);
            self.honest &= pushed;
            offset += len;
            if last {
                break;
            }
        }
        if deadline == 1 {
            self.answers.push((self.last_id, 3, Vec::new()));
        } else {
            self.answers.push((self.last_id, 0, body.iter().rev().copied().collect()));
            self.requests.push(body);
        }
    }

    /// Fragments that no library sends.
    fn broken_request(&mut self, input: &mut Input<'_>) {
        self.honest = false;
        let part = [Part::Whole, Part::First, Part::Middle, Part::Last][usize::from(input.choice(4))];
        let mut head = [0; 24];
        for byte in &mut head {
            *byte = input.u8();
        }
        if input.choice(2) == 0 {
            head[18..20].fill(0);
        }
        let (front, len) = (usize::from(input.choice(25)), input.below(2000));
        let ring = usize::from(input.choice(8) != 0);
        let body = vec![input.u8(); len.min(self.hand.own.rings[ring].max_record() as usize - front)];
        self.hand.own.push(ring, part, [&head[..front], &body], &self.hand.peer);
    }

    /// A header of any kind where the agent looks next.
    fn scribble_next(&mut self, input: &mut Input<'_>) {
        self.honest = false;
        let ring = usize::from(input.choice(2));
        let geometry = self.hand.geometry.to_agent[ring];
        let position = self.hand.own.rings[ring].head();
        let word = position >> 3 << 32 | 1 << 31 | u64::from(input.choice(8)) << 26 | u64::from(input.u16());
        let at = u64::from(geometry.offset) + position % u64::from(geometry.bytes);
        self.hand.own.scribble(at as usize / 8, word);
    }

    /// Takes what has been answered; an honest client gets what it must.
    fn take_answers(&mut self) {
        let line = self.hand.geometry.to_client[0].cursor_line();
        loop {
            let record = match self.hand.answers.peek() {
                Ok(Some(record)) => record,
                Ok(None) => break,
                Err(error) => panic!("the agent is honest: {error}"),
            };
            let mut bytes = vec![0; record.len];
            self.hand.answers.copy_out(&record, 0, &mut bytes);
            self.hand.answers.advance(&record);
            let (id, status, total, mut so_far) = match record.part {
                Part::Whole | Part::First => {
                    let half = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
                    let id = u64::from(half(0)) | u64::from(half(4)) << 32;
                    (id, half(12), half(8) as usize, bytes[16..].to_vec())
                }
                _ => {
                    let (id, status, total, mut so_far) = self.half.take().expect("a first part before this one");
                    so_far.extend(bytes);
                    (id, status, total, so_far)
                }
            };
            assert!(so_far.len() <= total && total <= LONGEST_CALL);
            if so_far.len() < total {
                self.half = Some((id, status, total, so_far));
            } else if self.honest {
                let got = (id, status, std::mem::take(&mut so_far));
                assert_eq!(Some(&got), self.answers.get(self.got), "answer {} of an honest client", self.got);
                self.got += 1;
            }
        }
        if self.honest {
            line.acknowledge(&self.hand.own.page, self.hand.answers.position());
        }
    }
}
