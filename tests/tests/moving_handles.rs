//! What a client's handles have in hand while the client goes over to its region's next generation: batches, calls that are half sent,
//! calls that are out, marks, and records in rings that the broker does not know to be in use.

use podshm::steps::Step;
use podshm::{Agent, Answer, Client, Deferred, Handler, Progress, Record, Request};
use podshm_tests::gates::{Gate, passed};
use podshm_tests::{Node, PATIENCE, until};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// A gate holds every client of the process, so one test at a time.
static TURN: Mutex<()> = Mutex::new(());

/// Keeps records, echoes requests; "later" is answered when the test says so.
#[derive(Default)]
struct Kept {
    records: Vec<(String, u64, bool)>,
    later: Vec<Deferred>,
    /// Dies at this record.
    dies_at: Option<u64>,
}

impl Kept {
    fn of(&self, queue: &str) -> Vec<u64> {
        self.records.iter().filter(|(name, ..)| name == queue).map(|(_, number, _)| *number).collect()
    }
}

impl Handler for Kept {
    fn record(&mut self, r: Record<'_>) {
        let number = u64::from_le_bytes(r.bytes.try_into().unwrap());
        self.records.push((r.service.to_owned(), number, r.maybe_seen));
        if self.dies_at == Some(number) {
            std::panic::resume_unwind(Box::new("as a crash would end it"));
        }
    }

    fn call(&mut self, request: Request<'_>, answer: &mut Answer<'_>) {
        if request.bytes == b"later" { self.later.push(answer.defer()) } else { answer.reply(request.bytes) }
    }
}

/// An agent that is ready, with so many queues `e0`, `e1` … beyond the usual.
fn agent(node: &Node, more: usize) -> Agent {
    let usual =
        Agent::builder().queue("reports", 16 * 1024, 64).queue("audit", 4096, 64).call("decide", 16 * 1024, 64 * 1024);
    let all = (0..more).fold(usual, |builder, n| builder.queue(&format!("e{n}"), 4096, 64));
    let mut agent = all.connect(node.pod("agent"), PATIENCE).unwrap();
    agent.set_spin(Duration::ZERO);
    agent.ready().unwrap();
    agent
}

/// An agent with a client that has joined.
fn start(node: &Node) -> (Agent, Client) {
    let (mut agent, directory) = (agent(node, 0), node.pod("a"));
    let joining = std::thread::spawn(move || Client::join(directory, PATIENCE).unwrap());
    until("the client joins", || {
        agent.wait(Duration::from_millis(1)).unwrap();
        agent.clients() == 1
    });
    (agent, joining.join().unwrap())
}

/// The next agent, once it has the client.
fn take_over(node: &Node, mut old: Agent, more: usize, kept: &mut Kept) -> Agent {
    let mut next = agent(node, more);
    until("the old agent is asked to close", || {
        old.wait(Duration::from_millis(1)).unwrap();
        old.poll(kept).unwrap() == Progress::CloseAsked
    });
    old.close(Vec::new()).unwrap();
    await_client(&mut next, kept);
    next
}

fn await_client(agent: &mut Agent, kept: &mut Kept) {
    until("the agent has the client", || {
        agent.wait(Duration::from_millis(1)).unwrap();
        agent.poll(kept).unwrap();
        agent.clients() == 1
    });
}

/// Waits until the client has gone over, serving it meanwhile.
fn await_move(agent: &mut Agent, kept: &mut Kept, client: &Client, newest: &str) {
    serve_until("the client goes over", agent, kept, |_| client.queue(newest).is_ok());
}

/// Waits until the client is held there, serving it meanwhile.
fn await_arrival(gate: &Gate, agent: &mut Agent, kept: &mut Kept) {
    serve_until("the client's coming to its step", agent, kept, |_| gate.arrives_within(Duration::from_millis(1)));
}

fn serve_until(what: &str, agent: &mut Agent, kept: &mut Kept, mut good: impl FnMut(&Kept) -> bool) {
    until(what, || {
        agent.poll(kept).unwrap();
        agent.wait(Duration::from_millis(1)).unwrap();
        good(kept)
    });
}

fn push(client: &Client, queue: &str, numbers: std::ops::Range<u64>) {
    let queue = client.queue(queue).unwrap();
    for number in numbers {
        queue.try_push(&number.to_le_bytes()).unwrap();
    }
}

/// The agent has handled what came into a new ring, and ends, in order or not, before the broker has heard that the client went over:
/// its successor goes on in that ring where it was.
#[test]
fn a_ring_that_the_broker_does_not_know_to_be_in_use_goes_on_with_the_next_agent() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    for crashes in [false, true] {
        let node = Node::new(Default::default());
        let (first, client) = start(&node);
        let gate = Gate::close(Step::MoveDone);
        let mut kept = Kept::default();
        let mut second = take_over(&node, first, 1, &mut kept);
        await_move(&mut second, &mut kept, &client, "e0");
        await_arrival(&gate, &mut second, &mut kept);
        push(&client, "e0", 0..50);
        serve_until("the first half", &mut second, &mut kept, |kept| kept.of("e0").len() == 50);
        let mut third = if crashes {
            drop(second);
            node.settle("the second agent is gone", |s| !s.agent);
            let mut third = agent(&node, 1);
            await_client(&mut third, &mut kept);
            third
        } else {
            take_over(&node, second, 1, &mut kept)
        };
        push(&client, "e0", 50..100);
        serve_until("the second half", &mut third, &mut kept, |kept| kept.of("e0").last() == Some(&99));
        drop(gate);
        serve_until("the client has the third agent", &mut third, &mut kept, |_| client.agent_present());
        push(&client, "e0", 100..110);
        serve_until("the rest", &mut third, &mut kept, |kept| kept.of("e0").last() == Some(&109));
        assert_eq!(kept.of("e0"), (0..110).collect::<Vec<_>>(), "crash: {crashes}");
        third.close(Vec::new()).unwrap();
    }
}

/// A client that has to go over twice, because the agent that asked for the first time died: it is not asked again before the one that
/// serves has followed it, which finds both in one look otherwise.
#[test]
fn a_client_goes_over_again_when_its_agent_has_followed() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let node = Node::new(Default::default());
    let (first, client) = start(&node);
    let gate = Gate::close(Step::MoveMapped);
    let mut kept = Kept::default();
    let mut second = take_over(&node, first, 1, &mut kept);
    await_arrival(&gate, &mut second, &mut kept);
    drop(second);
    node.settle("the second agent is gone", |s| !s.agent);
    let mut third = agent(&node, 2);
    await_client(&mut third, &mut kept);
    let taken = || passed().get(&Step::FollowMapped).copied().unwrap_or(0);
    let before = taken();
    drop(gate);
    until("the third agent is shown where the client goes over to", || {
        third.wait(Duration::from_millis(1)).unwrap();
        taken() > before
    });
    until("the client goes over", || client.queue("e0").is_ok());
    push(&client, "e0", 0..20);
    std::thread::sleep(Duration::from_millis(50)); // time to be asked again
    await_move(&mut third, &mut kept, &client, "e1");
    push(&client, "e0", 20..40);
    push(&client, "e1", 0..20);
    serve_until("everything", &mut third, &mut kept, |kept| kept.records.len() == 60);
    assert_eq!((kept.of("e0"), kept.of("e1")), ((0..40).collect(), (0..20).collect()));
    third.close(Vec::new()).unwrap();
}

/// A batch that is held open holds up the going over of its own ring and no other: what is in those comes through.
#[test]
fn a_batch_that_is_held_open_holds_up_no_other_ring() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let node = Node::new(Default::default());
    let (first, client) = start(&node);
    // Behind the new agent's coming, before the going over.
    let gate = Gate::close(Step::MoveMapped);
    let mut kept = Kept::default();
    let mut second = take_over(&node, first, 1, &mut kept);
    await_arrival(&gate, &mut second, &mut kept);
    let audit = client.queue("audit").unwrap();
    let mut batch = audit.batch().unwrap();
    batch.try_push(&7u64.to_le_bytes()).unwrap();
    push(&client, "reports", 0..5);
    let marked = Gate::close(Step::MoveMarked);
    drop(gate);
    await_arrival(&marked, &mut second, &mut kept);
    drop(marked);
    push_beside(&client, 5..10);
    serve_until("records beside an open batch", &mut second, &mut kept, |kept| kept.of("reports").len() == 10);
    assert!(client.queue("e0").is_err() && kept.of("audit").is_empty());
    batch.publish();
    drop(batch);
    serve_until("the batch's record", &mut second, &mut kept, |kept| kept.of("audit") == [7]);
    serve_until("the rest of the going over", &mut second, &mut kept, |_| client.queue("e0").is_ok());
    assert_eq!(kept.of("reports"), (0..10).collect::<Vec<_>>());
    second.close(Vec::new()).unwrap();
}

/// From another thread: this one holds a batch.
fn push_beside(client: &Client, numbers: std::ops::Range<u64>) {
    std::thread::scope(|s| s.spawn(|| push(client, "reports", numbers)).join().unwrap());
}

/// A request that is longer than its ring: some of it is in the old region, the rest comes into the new one.
#[test]
fn a_call_that_is_half_sent_goes_over_with_its_ring() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let node = Node::new(Default::default());
    let (first, client) = start(&node);
    // The first ring is copied: from here on the client goes over by itself.
    let gate = Gate::close(Step::MoveCopied);
    let mut kept = Kept::default();
    let mut second = take_over(&node, first, 1, &mut kept);
    await_arrival(&gate, &mut second, &mut kept);
    let decide = client.call("decide").unwrap();
    let caller = std::thread::spawn(move || {
        let request: Vec<u8> = (0..60_000u32).map(|n| (n / 7) as u8).collect();
        let mut answer = vec![0; request.len()];
        let len = decide.call(&request, &mut answer, PATIENCE).unwrap();
        assert!(len == request.len() && answer == request);
    });
    std::thread::sleep(Duration::from_millis(100)); // a full ring
    drop(gate);
    until("the client goes over", || client.queue("e0").is_ok());
    assert!(!caller.is_finished());
    serve_until("the answer", &mut second, &mut kept, |_| caller.is_finished());
    caller.join().unwrap();
    second.close(Vec::new()).unwrap();
}

/// Calls that were sent before the going over and are answered after it: whoever waits for them is woken, by whichever way.
#[test]
fn calls_that_are_out_are_answered_after_the_going_over() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let node = Node::new(Default::default());
    let (first, client) = start(&node);
    let gate = Gate::close(Step::MoveMapped);
    let mut kept = Kept::default();
    let mut second = take_over(&node, first, 1, &mut kept);
    await_arrival(&gate, &mut second, &mut kept);
    // Longer than the test waits: none of them may end by its time.
    let patience = PATIENCE * 3;
    let future = {
        let decide = client.call("decide").unwrap();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(decide.call_async(*b"later", patience)).unwrap()
        })
    };
    serve_until("the future's request", &mut second, &mut kept, |kept| kept.later.len() == 1);
    drop(gate);
    await_move(&mut second, &mut kept, &client, "e0");
    idle(&mut second, &mut kept);
    kept.later.remove(0).reply(b"to the future".to_vec());
    serve_until("the future's answer", &mut second, &mut kept, |_| future.is_finished());
    assert_eq!(future.join().unwrap(), b"to the future");

    // The same by the event descriptor, over another going over.
    let gate = Gate::close(Step::MoveMapped);
    let mut third = take_over(&node, second, 2, &mut kept);
    await_arrival(&gate, &mut third, &mut kept);
    let decide = client.call("decide").unwrap();
    let mut pending = decide.start(b"later", patience).unwrap();
    serve_until("the request", &mut third, &mut kept, |kept| kept.later.len() == 1);
    let _ = rustix::io::read(decide.event_fd().unwrap(), &mut [0; 8]);
    pending.arm();
    assert!(pending.try_take().unwrap().is_none());
    drop(gate);
    await_move(&mut third, &mut kept, &client, "e1");
    idle(&mut third, &mut kept);
    kept.later.remove(0).reply(b"to the event".to_vec());
    let serving = std::thread::spawn(move || {
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline && third.clients() > 0 {
            third.poll(&mut Kept::default()).unwrap();
            third.wait(Duration::from_millis(1)).unwrap();
        }
    });
    until("the answer", || {
        let mut fds = [PollFd::from_borrowed_fd(decide.event_fd().unwrap(), PollFlags::IN)];
        let timeout = Timespec { tv_sec: PATIENCE.as_secs() as i64, tv_nsec: 0 };
        assert_eq!(poll(&mut fds, Some(&timeout)).unwrap(), 1, "no event for the answer");
        let _ = rustix::io::read(decide.event_fd().unwrap(), &mut [0; 8]);
        pending.arm();
        pending.try_take().unwrap().is_some_and(|answer| answer == b"to the event")
    });
    drop((pending, decide, client));
    serving.join().unwrap();
}

/// Rounds in which there is nothing to be done but to follow the client: it is cold then.
fn idle(agent: &mut Agent, kept: &mut Kept) {
    let mut rounds = 0;
    serve_until("a rest", agent, kept, |_| {
        rounds += 1;
        rounds > 10
    });
}

/// What one agent had in hand when it died, a batch of a quarter of the ring, stays marked to its end: over the going over, and over an
/// agent that closes with some of it behind it.
#[test]
fn marks_go_over() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let node = Node::new(Default::default());
    let (mut first, client) = start(&node);
    push(&client, "reports", 0..10);
    let mut seen = Kept { dies_at: Some(2), ..Kept::default() };
    let died = catch_unwind(AssertUnwindSafe(|| serve_until("its death", &mut first, &mut seen, |_| false)));
    assert!(died.is_err());
    drop(first);
    node.settle("the first agent is gone", |s| !s.agent);
    let (mut last, mut kept) = (agent(&node, 1), Kept::default());
    await_client(&mut last, &mut kept);
    await_move(&mut last, &mut kept, &client, "e0");
    push(&client, "reports", 10..20);
    serve_until("some records", &mut last, &mut kept, |kept| kept.records.len() == 20);
    last = take_over(&node, last, 2, &mut kept);
    await_move(&mut last, &mut kept, &client, "e1");
    push(&client, "reports", 20..400);
    serve_until("everything", &mut last, &mut kept, |kept| kept.records.len() == 400);
    assert_eq!(kept.of("reports"), (0..400).collect::<Vec<_>>());
    // A record takes 16 bytes of 16 KiB.
    let marked: Vec<bool> = kept.records.iter().map(|(.., marked)| *marked).collect();
    assert!(marked[..256].iter().all(|marked| *marked), "marks end before the batch: {marked:?}");
    assert!(marked[256..].iter().all(|marked| !*marked), "marks go beyond the batch: {marked:?}");
    last.close(Vec::new()).unwrap();
}
