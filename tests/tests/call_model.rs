//! The call service against a plain model: calls begun, cancelled, answered at once and later, whole and in parts, with deadlines, over
//! agents that hand over and crash. Each call gets exactly its own answer, or an outcome that is true of it.
//!
//! Client and agent are the library's, and one thread drives both, so that what happens between two steps is the test's choice.

use podshm::client::{CallFuture, Pending};
use podshm::{Agent, Answer, Client, Error, ErrorKind, Handler, Progress, Request};
use podshm_broker::Limits;
use podshm_tests::{Node, PATIENCE};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

const RING: u32 = 8192;
/// Longest record of a message in a ring of that size.
const FRAGMENT: usize = RING as usize / 4;
const LONGEST: usize = 20_000;
const LONG: Duration = Duration::from_secs(3600);

/// What the handler does with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum How {
    Reply,
    Owned,
    InPlace,
    Later,
    Fail(u32),
    /// Puts it off, and then says that it failed.
    FailLater(u32),
    /// Returns without an answer.
    Nothing,
    /// Puts it off and lets it fall.
    Drop,
}

#[derive(Clone, Copy, Debug)]
struct Plan {
    /// May be handled twice.
    again: bool,
    len: usize,
    answer: usize,
    how: How,
    /// The handler takes it in parts, if it comes in parts.
    streams: bool,
}

#[derive(Clone, Debug)]
enum Op {
    /// As a future, which waits for room without holding anybody up.
    Call(Plan),
    /// By `start`, with a deadline that is over at once or soon.
    Start(Plan, u64),
    /// As a future with such a deadline.
    Soon(Plan, u64),
    Serve(usize),
    /// Answers one that was put off.
    AnswerOne(usize),
    Look(usize),
    LookAtAll,
    Cancel(usize),
    HandOver,
    Crash,
}

/// Around the places where a message becomes one of two, three, … parts, and anywhere.
fn lens(front: usize) -> impl Strategy<Value = usize> {
    let edge = (1..6usize, 0..5usize).prop_map(move |(parts, off)| parts * FRAGMENT - front + off - 2);
    prop_oneof![3 => 0..200usize, 4 => edge, 1 => 0..=LONGEST, 1 => Just(LONGEST)]
}

fn plans() -> impl Strategy<Value = Plan> {
    let how = prop_oneof![
        4 => Just(How::Reply),
        2 => Just(How::Owned),
        2 => Just(How::InPlace),
        4 => Just(How::Later),
        1 => (16..99u32).prop_map(How::Fail),
        1 => (0..99u32).prop_map(How::FailLater),
        1 => Just(How::Nothing),
        1 => Just(How::Drop),
    ];
    (any::<bool>(), lens(24), lens(16), how, any::<bool>()).prop_map(|(again, len, answer, how, streams)| Plan {
        again,
        len: len.max(8),
        answer,
        how,
        streams,
    })
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let op = prop_oneof![
        12 => plans().prop_map(Op::Call),
        1 => (plans(), 0..3u64).prop_map(|(plan, ms)| Op::Start(plan, ms)),
        1 => (plans(), 0..3u64).prop_map(|(plan, ms)| Op::Soon(plan, ms)),
        8 => (1..4usize).prop_map(Op::Serve),
        5 => any::<usize>().prop_map(Op::AnswerOne),
        6 => any::<usize>().prop_map(Op::Look),
        3 => Just(Op::LookAtAll),
        2 => any::<usize>().prop_map(Op::Cancel),
        1 => Just(Op::HandOver),
        1 => Just(Op::Crash),
    ];
    proptest::collection::vec(op, 1..120)
}

fn pattern(number: u64, salt: u64, len: usize) -> Vec<u8> {
    let mut word = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ salt;
    let next = || {
        word = word.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
        (word >> 56) as u8
    };
    std::iter::repeat_with(next).take(len).collect()
}

fn request(number: u64, plan: &Plan) -> Vec<u8> {
    [&number.to_le_bytes()[..], &pattern(number, 1, plan.len - 8)].concat()
}

fn answer(number: u64, plan: &Plan) -> Vec<u8> {
    pattern(number, 2, plan.answer)
}

/// A call as the model knows it.
#[derive(Debug)]
struct Entry {
    plan: Plan,
    has_deadline: bool,
    /// Before it began: crashes, agents that closed without all their answers, and agents that the client had not got when they served.
    crashes: u32,
    cuts: u32,
    skipped: u32,
    handled: u32,
    ended: Option<Result<Vec<u8>, ErrorKind>>,
}

/// What the handler knows and does.
#[derive(Default)]
struct Book {
    calls: Vec<Entry>,
    later: Vec<(u64, podshm::Deferred)>,
    /// Of each service, what has come of a request that is taken in parts.
    parts: BTreeMap<String, Vec<u8>>,
}

impl Book {
    fn number(&self, bytes: &[u8]) -> u64 {
        let number = u64::from_le_bytes(bytes[..8].try_into().expect("a number"));
        assert!(number < self.calls.len() as u64, "nobody made call {number}");
        number
    }
}

impl Handler for Book {
    fn part(&mut self, part: Request<'_>, offset: usize) -> bool {
        if offset == 0 {
            let number = self.number(part.bytes);
            if !self.calls[number as usize].plan.streams {
                return false;
            }
            self.parts.remove(part.service);
        }
        let parts = self.parts.entry(part.service.to_owned()).or_default();
        assert_eq!(parts.len(), offset, "parts come in order");
        parts.extend_from_slice(part.bytes);
        true
    }

    fn call(&mut self, asked: Request<'_>, to: &mut Answer<'_>) {
        let parts = self.parts.remove(asked.service).unwrap_or_default();
        // A request that was given up may have left parts behind.
        let bytes = if asked.bytes.is_empty() { parts } else { asked.bytes.to_vec() };
        let number = self.number(&bytes);
        let entry = &mut self.calls[number as usize];
        let plan = entry.plan;
        assert!(bytes == request(number, &plan) && asked.len == plan.len, "request {number} is another: {plan:?}");
        assert_eq!(asked.service, if plan.again { "again" } else { "once" });
        entry.handled += 1;
        let bytes = answer(number, &plan);
        match plan.how {
            How::Reply => to.reply(&bytes),
            How::Owned => to.reply_owned(bytes),
            How::InPlace => to.reply_with(bytes.len(), move |offset, part| {
                part.copy_from_slice(&bytes[offset..offset + part.len()]);
            }),
            How::Later | How::FailLater(_) | How::Drop => self.later.push((number, to.defer())),
            How::Fail(status) => to.fail(status),
            How::Nothing => {}
        }
    }
}

enum Out {
    Future(CallFuture),
    Pending(Pending),
}

impl Out {
    fn look(&mut self) -> Option<Result<Vec<u8>, Error>> {
        match self {
            Out::Pending(pending) => pending.try_take().transpose(),
            Out::Future(future) => match Pin::new(future).poll(&mut Context::from_waker(Waker::noop())) {
                Poll::Ready(result) => Some(result),
                Poll::Pending => None,
            },
        }
    }
}

struct Run {
    agent: Option<Agent>,
    client: Client,
    book: Book,
    out: BTreeMap<u64, Out>,
    restarts: u32,
    crashes: u32,
    cuts: u32,
    skipped: u32,
    is_skipped: bool,
    node: Node,
}

fn connect(node: &Node) -> Agent {
    let builder = Agent::builder().call("once", RING, LONGEST as u32).idempotent_call("again", RING, LONGEST as u32);
    let mut agent = builder.connect(node.pod("agent"), PATIENCE).unwrap();
    agent.ready().unwrap();
    agent
}

impl Run {
    fn new() -> Run {
        let node = Node::new(Limits::default());
        let agent = connect(&node);
        let client = Client::join(node.pod("a"), PATIENCE).unwrap();
        let (book, out) = Default::default();
        let (restarts, crashes, cuts, skipped, is_skipped) = Default::default();
        let agent = Some(agent);
        let mut run = Run { agent, client, book, out, restarts, crashes, cuts, skipped, is_skipped, node };
        run.await_client();
        run
    }

    fn poll(&mut self) -> Progress {
        self.agent.as_mut().expect("an agent").poll(&mut self.book).unwrap()
    }

    fn await_client(&mut self) {
        let until = Instant::now() + PATIENCE;
        while self.agent.as_ref().expect("an agent").clients() == 0 {
            assert!(Instant::now() < until, "the agent does not get its client");
            self.poll();
        }
        // Agents change faster than a client lets go of the regions of those before: it is given the newest then.
        self.is_skipped = self.node.broker.stats("d").expect("the domain").clients.iter().any(|client| client.stale);
        self.skipped += u32::from(self.is_skipped);
    }

    fn begin(&mut self, plan: Plan, has_deadline: bool) -> (u64, podshm::Caller) {
        let number = self.book.calls.len() as u64;
        // The agent that serves now may be one of those.
        let (crashes, cuts, skipped) = (self.crashes, self.cuts, self.skipped - u32::from(self.is_skipped));
        self.book.calls.push(Entry { plan, has_deadline, crashes, cuts, skipped, handled: 0, ended: None });
        (number, self.client.call(if plan.again { "again" } else { "once" }).unwrap())
    }

    fn run(&mut self, op: Op) {
        match op {
            Op::Call(plan) | Op::Soon(plan, _) => {
                let timeout = if let Op::Soon(_, ms) = op { Duration::from_millis(ms) } else { LONG };
                let (number, caller) = self.begin(plan, timeout < LONG);
                self.out.insert(number, Out::Future(caller.call_async(request(number, &plan), timeout)));
                self.look(number);
            }
            Op::Start(plan, ms) => {
                let (number, caller) = self.begin(plan, true);
                match caller.start(&request(number, &plan), Duration::from_millis(ms)) {
                    Ok(pending) => drop(self.out.insert(number, Out::Pending(pending))),
                    Err(error) => self.ends(number, Err(error)),
                }
            }
            Op::Serve(rounds) => {
                for _ in 0..rounds {
                    self.poll();
                }
            }
            Op::AnswerOne(n) => {
                if !self.book.later.is_empty() {
                    let n = n % self.book.later.len();
                    self.answer_one(n);
                }
            }
            Op::Look(n) => {
                if let Some(number) = self.nth(n) {
                    self.look(number);
                }
            }
            Op::LookAtAll => self.look_at_all(),
            Op::Cancel(n) => {
                if let Some(number) = self.nth(n) {
                    self.out.remove(&number);
                }
            }
            Op::HandOver => self.hand_over(),
            Op::Crash => {
                self.agent = None;
                (self.restarts, self.crashes) = (self.restarts + 1, self.crashes + 1);
                self.agent = Some(connect(&self.node));
                self.await_client();
            }
        }
    }

    fn nth(&self, n: usize) -> Option<u64> {
        self.out.keys().nth(n % self.out.len().max(1)).copied()
    }

    fn answer_one(&mut self, n: usize) {
        let (number, deferred) = self.book.later.swap_remove(n);
        let plan = self.book.calls[number as usize].plan;
        match plan.how {
            How::Later => deferred.reply(answer(number, &plan)),
            How::FailLater(status) => deferred.fail(status),
            _ => drop(deferred),
        }
    }

    fn hand_over(&mut self) {
        // What is put off now has a second in `close`; it is not this test's to wait for.
        while !self.book.later.is_empty() {
            self.answer_one(0);
        }
        let next = connect(&self.node);
        let until = Instant::now() + PATIENCE;
        while self.poll() != Progress::CloseAsked {
            assert!(Instant::now() < until, "nobody asks the old agent to close");
            while !self.book.later.is_empty() {
                self.answer_one(0);
            }
        }
        let began = Instant::now();
        self.agent.as_mut().expect("an agent").close(Vec::new()).unwrap();
        // Nobody looks at calls meanwhile, so their answers may find no room; it waits for that, but no longer than a second.
        self.cuts += u32::from(began.elapsed() >= Duration::from_secs(1));
        self.restarts += 1;
        self.agent = Some(next);
        self.await_client();
    }

    fn look_at_all(&mut self) {
        for number in self.out.keys().copied().collect::<Vec<_>>() {
            self.look(number);
        }
    }

    fn look(&mut self, number: u64) {
        if let Some(result) = self.out.get_mut(&number).and_then(Out::look) {
            self.out.remove(&number);
            self.ends(number, result);
        }
    }

    /// The call's outcome is true of it.
    fn ends(&mut self, number: u64, result: Result<Vec<u8>, Error>) {
        let entry = &mut self.book.calls[number as usize];
        let what = format!("call {number}, {entry:?}, restarts {}, crashes {}", self.restarts, self.crashes);
        let plan = entry.plan;
        match &result {
            Ok(bytes) => {
                let gives = matches!(plan.how, How::Reply | How::Owned | How::InPlace | How::Later);
                assert!(gives && entry.handled > 0, "an answer from nowhere: {what}");
                assert!(*bytes == answer(number, &plan), "another answer, of {} bytes: {what}", bytes.len());
            }
            Err(Error::Failed { status }) => {
                let expected = match plan.how {
                    How::Fail(status) | How::FailLater(status) if status >= Answer::FIRST_STATUS => status,
                    _ => 1,
                };
                let fails = matches!(plan.how, How::Fail(_) | How::FailLater(_) | How::Nothing | How::Drop);
                assert!(fails && *status == expected && entry.handled > 0, "failed with {status}: {what}");
            }
            Err(error) => match error.kind() {
                ErrorKind::Deadline => assert!(entry.has_deadline, "{error}: {what}"),
                ErrorKind::OutcomeUnknown => {
                    // What an agent has answered that the client was never given is not seen.
                    let is_lost = self.cuts > entry.cuts || self.skipped > entry.skipped;
                    let cut = entry.handled > 0 && is_lost;
                    assert!(self.crashes > entry.crashes || cut, "{error}: {what}");
                }
                // That it is not handled later either is looked at in the end.
                ErrorKind::AgentAway => assert!(entry.handled == 0 && self.restarts > 0, "{error}: {what}"),
                other => panic!("{other:?}, {error}: {what}"),
            },
        }
        assert!(entry.ended.replace(result.map_err(|error| error.kind())).is_none(), "ended twice: {what}");
    }

    /// Every call that is still out ends.
    fn end(&mut self) {
        let until = Instant::now() + PATIENCE;
        while !self.out.is_empty() {
            assert!(Instant::now() < until, "these do not end: {:?}", self.out.keys());
            while !self.book.later.is_empty() {
                self.answer_one(0);
            }
            self.poll();
            self.look_at_all();
        }
        // What was cancelled or given up half way may still lie there.
        for _ in 0..10 {
            self.poll();
        }
        for (number, entry) in self.book.calls.iter().enumerate() {
            let what = format!("call {number}: {entry:?}");
            assert!(entry.plan.again || entry.handled <= 1, "handled twice: {what}");
            assert!(entry.ended != Some(Err(ErrorKind::AgentAway)) || entry.handled == 0, "it was not sent: {what}");
        }
    }
}

proptest! {
    // A case that hangs takes its time to say so: shrinking it is bounded.
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, max_shrink_time: 60_000, ..ProptestConfig::default() })]
    #[test]
    fn every_call_gets_its_own_answer_or_a_true_outcome(ops in ops()) {
        let mut run = Run::new();
        for op in ops {
            run.run(op);
        }
        run.end();
    }
}
