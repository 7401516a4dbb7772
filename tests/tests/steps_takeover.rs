//! What a client does in the instant between two agents, held there: neither a record nor a wake-up falls between them.

use podshm::steps::{Action, Plan, Step};
use podshm::{Agent, Answer, Client, ErrorKind, Handler, Record, Request};
use podshm_broker::DomainConfig;
use podshm_testkit::numbered;
use podshm_tests::deliveries::{self, Sent};
use podshm_tests::gates::Gate;
use podshm_tests::participant::Participant;
use podshm_tests::{Node, PATIENCE, patient};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const PROGRAM: &str = env!("CARGO_BIN_EXE_podshm-test-participant");
/// A gate holds every thread of the process, so one test at a time.
static TURN: Mutex<()> = Mutex::new(());

/// A predecessor that was stopped before it acknowledged wakes up when its successor has read its cursors, and acknowledges. The
/// client, which has not heard of the successor, must not take that for room: the successor has not read what lies there.
#[test]
fn what_a_superseded_agent_acknowledges_is_no_room() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let node = Node::with(DomainConfig { close_grace: Duration::from_millis(50), ..patient() });
    let (directory, file) = (node.pod("agent"), node.root().join("deliveries"));
    let agent = |index, step, nth| {
        let plan = Plan { step, nth, action: Action::Stop };
        Participant::agent(PROGRAM, &directory, &file, index, Some(plan))
    };
    let mut predecessor = agent(1, Step::DrainAcknowledging, 3);
    node.settle("the first agent serves", |s| s.agent);
    let client = Client::join(node.pod("a"), PATIENCE).unwrap();
    let reports = client.queue("reports").unwrap();
    let mut accepted = 0;
    let mut fill = || loop {
        match reports.try_push(&numbered::encode(7, accepted, 200)) {
            Ok(_) => accepted += 1,
            Err(e) if e.kind() == ErrorKind::Full => return accepted,
            Err(e) => panic!("{e}"),
        }
    };
    let until = Instant::now() + PATIENCE;
    while !predecessor.is_stopped() {
        fill();
        assert!(Instant::now() < until, "the predecessor does not stop");
    }
    let before = fill();
    let gate = Gate::close(Step::LinkMapped);
    let mut successor = agent(2, Step::HandoverClient, 1);
    successor.await_stop();
    gate.await_arrival();
    predecessor.signal(libc::SIGCONT);
    predecessor.await_end();
    assert_eq!(fill(), before, "nobody who serves has made room");
    successor.signal(libc::SIGCONT);
    drop(gate);
    let until = Instant::now() + PATIENCE;
    while fill() < before + 1000 {
        assert!(Instant::now() < until, "the successor takes nothing");
    }
    let sent = Sent { sender: 7, accepted: fill(), ..Sent::default() };
    drop((reports, client));
    node.settle("all is drained", |s| s.clients.is_empty());
    deliveries::check(&deliveries::read(&file), &[sent]);
    successor.kill();
}

/// Counts records and parts of requests; answers a request with itself.
struct Count(Arc<AtomicU64>);

impl Handler for Count {
    fn record(&mut self, _: Record<'_>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    fn part(&mut self, _: Request<'_>, _: usize) -> bool {
        self.0.fetch_add(1, Ordering::Relaxed);
        false
    }

    fn call(&mut self, request: Request<'_>, answer: &mut Answer<'_>) {
        answer.reply(request.bytes);
    }
}

/// An agent in a thread that counts records, and says when its clients are cold.
struct Counting {
    stop: Arc<AtomicBool>,
    cold: Arc<AtomicBool>,
    count: Arc<AtomicU64>,
    thread: JoinHandle<()>,
}

impl Counting {
    fn start(node: &Node) -> Counting {
        let directory = node.pod("agent");
        let (stop, cold, count) = (Arc::default(), Arc::default(), Arc::default());
        let (stopped, is_cold, mut counts): (Arc<AtomicBool>, Arc<AtomicBool>, _) =
            (Arc::clone(&stop), Arc::clone(&cold), Count(Arc::clone(&count)));
        let thread = std::thread::spawn(move || {
            let mut agent = podshm_tests::roles::services().connect(directory, PATIENCE).unwrap();
            agent.ready().unwrap();
            loop {
                let cold = |agent: &Agent| agent.clients() > 0 && agent.hot_clients() == 0;
                match agent.poll(&mut counts).unwrap() {
                    podshm::Progress::Idle => {
                        agent.wait(Duration::from_millis(5)).unwrap();
                        is_cold.store(cold(&agent), Ordering::Relaxed);
                    }
                    podshm::Progress::Handled(_) => {}
                    podshm::Progress::CloseAsked => break,
                }
                if stopped.load(Ordering::Relaxed) {
                    break;
                }
            }
            agent.close(Vec::new()).unwrap();
        });
        Counting { stop, cold, count, thread }
    }

    fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap();
    }
}

fn wait_for(what: &str, good: impl Fn() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !good() {
        assert!(Instant::now() < until, "{what} does not happen");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// A record that was accepted when the successor slept already and the client had not heard of it: nobody rang the successor's
/// doorbell. So the client rings once it is over.
#[test]
fn a_record_accepted_between_two_agents_wakes_the_second() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let node = Node::new(Default::default());
    let first = Counting::start(&node);
    let client = Client::join(node.pod("a"), PATIENCE).unwrap();
    let reports = client.queue("reports").unwrap();
    reports.try_push(b"one").unwrap();
    wait_for("the first record", || first.count.load(Ordering::Relaxed) == 1);
    let gate = Gate::close(Step::LinkMapped);
    let second = Counting::start(&node);
    gate.await_arrival();
    first.thread.join().unwrap();
    wait_for("the second agent's sleep", || second.cold.load(Ordering::Relaxed));
    reports.try_push(b"two").unwrap();
    drop(gate);
    wait_for("the second record", || second.count.load(Ordering::Relaxed) == 1);
    second.stop();
}

/// A call of which the old agent has read a part when it closes: the new one finds all of it in the ring.
#[test]
fn a_call_that_is_half_sent_when_the_agent_closes_is_answered_by_the_next() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let node = Node::new(Default::default());
    let first = Counting::start(&node);
    let client = Client::join(node.pod("a"), PATIENCE).unwrap();
    let decide = client.call("decide").unwrap();
    let gate = Gate::close(Step::PushDoorbell);
    let caller = std::thread::spawn(move || {
        let request = numbered::encode(1, 1, 7_000);
        let mut response = vec![0; request.len()];
        let len = decide.call(&request, &mut response, PATIENCE).unwrap();
        assert_eq!((len, response), (request.len(), request));
    });
    gate.await_arrival();
    wait_for("the first part", || first.count.load(Ordering::Relaxed) == 1);
    let second = Counting::start(&node);
    first.thread.join().unwrap();
    wait_for("the second agent's look at it", || second.count.load(Ordering::Relaxed) == 1);
    drop(gate);
    caller.join().unwrap();
    second.stop();
}
