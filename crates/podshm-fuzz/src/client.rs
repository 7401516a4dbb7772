//! The library's client beside an agent by hand, which is honest for as long as it does nothing else: then every request arrives
//! whole and every answer is the one that was given; after its first lie there are errors with names, and no panic.

use crate::input::Input;
use crate::live::{self, HandAgent, HandChannel, LONGEST};
use podshm::client::{Key, Pending};
use podshm::{Client, Error, ErrorKind};
use podshm_layout::ring::Part;
use podshm_tests::{Node, PATIENCE};
use std::cell::RefCell;
use std::collections::VecDeque;
use std::time::Duration;

thread_local! {
    static WORLD: RefCell<Option<(HandAgent, Node)>> = const { RefCell::new(None) };
}

/// A call that is out: what was asked, what was answered (status and bytes), and the number by which the agent knows it.
struct Out {
    pending: Option<Pending>,
    request: Vec<u8>,
    answer: Option<(u32, Vec<u8>)>,
    id: Option<u64>,
}

/// The target.
pub fn client(data: &[u8]) {
    WORLD.with_borrow_mut(|world| {
        let (agent, node) = world.get_or_insert_with(|| {
            let node = live::node();
            (HandAgent::start(&node), node)
        });
        run(agent, node, &mut Input::new(data));
    });
}

struct Run {
    client: Client,
    key: Key,
    channel: HandChannel,
    honest: bool,
    out: Vec<Out>,
    /// Requests that were sent and not read by the agent, in order.
    unread: VecDeque<usize>,
    records: VecDeque<Vec<u8>>,
    half: Option<(u64, usize, Vec<u8>)>,
}

fn run(agent: &mut HandAgent, node: &Node, input: &mut Input<'_>) {
    let directory = node.pod("a");
    let joining = std::thread::spawn(move || Client::join(directory, PATIENCE).expect("a client"));
    let channel = agent.next();
    let client = joining.join().expect("the client joins");
    let key = client.table("t").expect("a table").key(b"key");
    let (out, unread, records) = Default::default();
    let mut run = Run { client, key, channel, honest: true, out, unread, records, half: None };
    while !input.is_empty() {
        match input.choice(12) {
            0 | 1 => run.start(input),
            2 | 3 => run.read_requests(),
            4 | 5 => run.answer(input),
            6 => run.take(input),
            7 => run.push(input),
            8 => {
                let n = input.below(run.out.len().max(1));
                if let Some(out) = run.out.get_mut(n) {
                    out.pending = None; // cancelled
                }
            }
            9 => {
                run.honest = false;
                let at = if input.choice(2) == 0 { input.below(512) } else { input.below(512 + 1024) };
                run.channel.own.scribble(at, input.word());
            }
            10 => run.broken_answer(input),
            _ => {
                agent.table().scribble(8 + input.below(2048), input.word());
                run.look_up();
            }
        }
    }
    run.read_requests();
    // What was answered has come.
    (0..run.out.len()).for_each(|n| run.look(n));
    let Run { client, key, channel, out, .. } = run;
    drop((out, key, client));
    agent.end(channel);
}

fn pattern(seed: u8, len: usize) -> Vec<u8> {
    (0..len).map(|i| seed.wrapping_add(i as u8)).collect()
}

/// What a client may be told of an agent that lies.
fn named(error: &Error) {
    use ErrorKind::*;
    let kind = error.kind();
    let fair = matches!(
        kind,
        Full | Deadline
            | AgentAway
            | OutcomeUnknown
            | Contended
            | TooLong
            | BufferTooSmall
            | Corrupt
            | Failed
            | Cancelled
    );
    assert!(fair && !error.to_string().is_empty(), "{error:?}");
}

impl Run {
    fn start(&mut self, input: &mut Input<'_>) {
        let request = pattern(input.u8(), input.below(5000));
        let line = self.channel.geometry.to_agent[1].cursor_line();
        let position = self.channel.rings[1].position();
        line.acknowledge(&self.channel.own.page, position);
        let fits = self.unread.iter().map(|n| self.out[*n].request.len() + 100).sum::<usize>() < 1000;
        if self.honest && !fits {
            return;
        }
        // An honest agent is waited for; a lying one says that the ring is full for as long as it likes.
        let timeout = if self.honest { Duration::from_secs(3600) } else { Duration::from_micros(300) };
        match self.client.call("c").expect("a call").start(&request, timeout) {
            Ok(pending) => {
                self.unread.push_back(self.out.len());
                self.out.push(Out { pending: Some(pending), request, answer: None, id: None });
            }
            Err(error) => {
                assert!(!self.honest, "{error}");
                named(&error);
            }
        }
    }

    /// The agent reads every request; they are what was sent.
    fn read_requests(&mut self) {
        while let Some(record) = self.channel.rings[1].peek().expect("the client is honest") {
            let mut bytes = vec![0; record.len];
            self.channel.rings[1].copy_out(&record, 0, &mut bytes);
            self.channel.rings[1].advance(&record);
            let (id, total, mut so_far) = match record.part {
                Part::Whole | Part::First => {
                    let id = u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes"));
                    let total = u32::from_le_bytes(bytes[16..20].try_into().expect("four bytes"));
                    (id, total as usize, bytes[24..].to_vec())
                }
                _ => {
                    let (id, total, mut so_far) = self.half.take().expect("a first part before this one");
                    so_far.extend(bytes);
                    (id, total, so_far)
                }
            };
            if so_far.len() < total {
                self.half = Some((id, total, so_far));
                continue;
            }
            if !self.honest {
                continue; // a request may have been given up half way
            }
            let n = self.unread.pop_front().expect("a request that was sent");
            assert_eq!(std::mem::take(&mut so_far), self.out[n].request, "request {n}");
            self.out[n].id = Some(id);
        }
    }

    /// The agent answers one, as the library does.
    fn answer(&mut self, input: &mut Input<'_>) {
        let waiting: Vec<usize> = (0..self.out.len()).filter(|n| self.out[*n].id.is_some()).collect();
        let status = u32::from(input.choice(4));
        let body = if status == 0 { pattern(input.u8(), input.below(3000)) } else { Vec::new() };
        if waiting.is_empty() {
            return;
        }
        let n = waiting[input.below(waiting.len())];
        // Only where all of it has room.
        self.drain();
        let (most, peer) = (live::RING as usize / 4, self.channel.peer.clone());
        if !self.channel.own.has_room(0, 4000, &peer) {
            return;
        }
        let id = self.out[n].id.take().expect("one that waits");
        let mut offset = 0;
        loop {
            let mut head = [0; 16];
            head[..8].copy_from_slice(&id.to_le_bytes());
            head[8..12].copy_from_slice(&(body.len() as u32).to_le_bytes());
            head[12..].copy_from_slice(&status.to_le_bytes());
            let front = if offset == 0 { 16 } else { 0 };
            let len = (body.len() - offset).min(most - front);
            let last = offset + len == body.len();
            let part = match (offset == 0, last) {
                (true, true) => Part::Whole,
                (true, false) => Part::First,
                (false, false) => Part::Middle,
                (false, true) => Part::Last,
            };
            let pushed = self.channel.own.push(0, part, [&head[..front], &body[offset..offset + len]], &peer);
            self.honest &= pushed;
            offset += len;
            if last {
                break;
            }
        }
        self.out[n].answer = Some((status, body));
    }

    /// Lets the client take in what was answered, so that there is room.
    fn drain(&mut self) {
        for n in 0..self.out.len() {
            if self.out[n].pending.is_some() && self.out[n].answer.is_none() {
                self.look(n);
                return;
            }
        }
    }

    fn take(&mut self, input: &mut Input<'_>) {
        let waiting: Vec<usize> = (0..self.out.len()).filter(|n| self.out[*n].pending.is_some()).collect();
        if !waiting.is_empty() {
            let n = waiting[input.below(waiting.len())];
            self.look(n);
        }
    }

    fn look(&mut self, n: usize) {
        let out = &mut self.out[n];
        let Some(pending) = &mut out.pending else { return };
        let taken = pending.try_take();
        if !self.honest {
            match taken {
                Ok(None) => {}
                Ok(Some(bytes)) => {
                    assert!(bytes.len() <= live::RING as usize * 16, "{} bytes out of nothing", bytes.len());
                    out.pending = None;
                }
                Err(error) => {
                    named(&error);
                    out.pending = None;
                }
            }
            return;
        }
        let expected = out.answer.as_ref().map(|(status, body)| match status {
            0 => Ok(body.clone()),
            2 => Err(ErrorKind::OutcomeUnknown),
            3 => Err(ErrorKind::Deadline),
            _ => Err(ErrorKind::Failed),
        });
        match (taken.map_err(|error| error.kind()).transpose(), expected) {
            (None, None) => {}
            (Some(taken), Some(expected)) => {
                assert_eq!(taken, expected, "answer to request {n}");
                out.pending = None;
            }
            (taken, expected) => panic!("request {n}: {taken:?}, expected {expected:?}"),
        }
    }

    fn push(&mut self, input: &mut Input<'_>) {
        let record = pattern(input.u8(), input.below(LONGEST + 2));
        match self.client.queue("q").expect("a queue").try_push(&record) {
            Ok(_) => self.records.push_back(record),
            Err(error) if self.honest => {
                let room = matches!(error.kind(), ErrorKind::Full | ErrorKind::TooLong);
                assert!(room && (record.len() > LONGEST) == (error.kind() == ErrorKind::TooLong), "{error}");
            }
            Err(error) => named(&error),
        }
        if input.choice(4) != 0 {
            return;
        }
        while let Some(record) = self.channel.rings[0].peek().expect("the client is honest") {
            let mut bytes = vec![0; record.len];
            self.channel.rings[0].copy_out(&record, 0, &mut bytes);
            self.channel.rings[0].advance(&record);
            if self.honest {
                assert_eq!(Some(bytes), self.records.pop_front());
            }
        }
        let line = self.channel.geometry.to_agent[0].cursor_line();
        if self.honest {
            line.acknowledge(&self.channel.own.page, self.channel.rings[0].position());
        }
    }

    /// Fragments that no library sends.
    fn broken_answer(&mut self, input: &mut Input<'_>) {
        self.honest = false;
        let part = [Part::Whole, Part::First, Part::Middle, Part::Last][usize::from(input.choice(4))];
        let mut head = [0; 16];
        head[0] = input.u8();
        for byte in &mut head[8..] {
            *byte = input.u8();
        }
        if input.choice(2) == 0 {
            head[10..].fill(0);
        }
        let front = usize::from(input.choice(17));
        let body = vec![input.u8(); input.below(2000)];
        self.channel.own.push(0, part, [&head[..front], &body], &self.channel.peer);
    }

    /// A table that is scribbled over: a value within the limits or an error with a name.
    fn look_up(&mut self) {
        let mut buffer = [0; 512];
        let table = self.client.table("t").expect("a table");
        for result in [self.key.get(&mut buffer), table.get(b"other", &mut buffer)] {
            match result {
                Ok(len) => assert!(len.is_none_or(|len| len <= buffer.len())),
                Err(error) => named(&error),
            }
        }
        let _ = (table.len(), table.age(), table.version());
        let result = self.key.read(|at, len| {
            assert!(len <= 65_536);
            at(0, &mut buffer[..len.min(512)])
        });
        if let Err(error) = result {
            named(&error);
        }
    }
}
