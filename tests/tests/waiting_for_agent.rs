//! Calls that wait for an agent where none serves: `Caller::wait_for_agent`.

use podshm::{Agent, Answer, Caller, Client, Error, ErrorKind, Handler, Progress, Request, Spin};
use podshm_tests::{Node, PATIENCE, until};
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const SOON: Duration = Duration::from_millis(50);

/// How often each request was handled, by its first eight bytes.
type Handled = Arc<Mutex<HashMap<u64, u32>>>;

/// Answers a request with itself.
struct Echo(Handled);

impl Handler for Echo {
    fn call(&mut self, request: Request<'_>, answer: &mut Answer<'_>) {
        let number = u64::from_le_bytes(request.bytes[..8].try_into().unwrap());
        *self.0.lock().unwrap().entry(number).or_default() += 1;
        answer.reply(request.bytes);
    }
}

/// How an agent is to end.
const CLOSES: u8 = 1;
const CRASHES: u8 = 2;

struct Running {
    end: Arc<AtomicU8>,
    thread: JoinHandle<()>,
}

/// What an agent that closes has read a part of is its successor's, up to half a ring: so long are those of the load below.
const RING: u32 = 16 * 1024;

fn connect(node: &Node) -> Agent {
    let mut agent = Agent::builder().call("ask", RING, 64 * 1024).connect(node.pod("agent"), PATIENCE).unwrap();
    agent.ready().unwrap();
    agent
}

impl Running {
    fn start(node: &Node, handled: &Handled) -> Running {
        let (mut agent, mut echo) = (connect(node), Echo(Arc::clone(handled)));
        let end = Arc::new(AtomicU8::new(0));
        let asked = Arc::clone(&end);
        let thread = std::thread::spawn(move || {
            loop {
                match (agent.poll(&mut echo).unwrap(), asked.load(Ordering::Relaxed)) {
                    (_, CRASHES) => return, // hangs up without a word
                    (Progress::CloseAsked, _) | (_, CLOSES) => break,
                    (Progress::Idle, _) => agent.wait(Duration::from_millis(1)).unwrap(),
                    _ => {}
                }
            }
            agent.close(Vec::new()).unwrap();
        });
        Running { end, thread }
    }

    fn end(self, how: u8) {
        self.end.store(how, Ordering::Relaxed);
        self.thread.join().unwrap();
    }
}

/// A request with this number, of so many bytes.
fn request(number: u64, len: usize) -> Vec<u8> {
    let mut bytes: Vec<u8> = (0..len).map(|at| (at * 7) as u8).collect();
    bytes[..8].copy_from_slice(&number.to_le_bytes());
    bytes
}

fn ask(caller: &Caller, request: &[u8], timeout: Duration) -> Result<(), Error> {
    let mut answer = vec![0; request.len()];
    let len = caller.call(request, &mut answer, timeout)?;
    assert!(answer[..len] == *request);
    Ok(())
}

fn ask_async(caller: &Caller, request: &[u8], timeout: Duration) -> Result<(), Error> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let answer = runtime.block_on(caller.call_async(request, timeout))?;
    assert!(answer == request);
    Ok(())
}

fn start(caller: &Caller, request: &[u8], timeout: Duration) -> Result<(), Error> {
    let answer = caller.start(request, timeout)?.wait()?;
    assert!(answer == request);
    Ok(())
}

/// A way to call, and wait for the answer.
type Ask = fn(&Caller, &[u8], Duration) -> Result<(), Error>;

/// One that comes while nobody serves waits for the next agent, and fails when its time is over, not before.
fn waits(ask: Ask) {
    let (node, handled) = (Node::new(Default::default()), Handled::default());
    let agent = Running::start(&node, &handled);
    let client = Client::join(node.pod("a"), PATIENCE).unwrap();
    let at_once = client.call("ask").unwrap();
    let patient = at_once.clone().wait_for_agent(true);
    ask(&patient, &request(1, 8), PATIENCE).unwrap();
    agent.end(CRASHES);
    until("the client sees that", || !client.agent_present());

    assert_eq!(ask(&at_once, &request(2, 8), PATIENCE * 100).unwrap_err().kind(), ErrorKind::AgentAway);
    for (number, len) in [(3, 8), (4, 50_000)] {
        let start = Instant::now();
        let error = ask(&patient, &request(number, len), SOON).unwrap_err();
        assert!(error.kind() == ErrorKind::AgentAway && start.elapsed() >= SOON, "{error} after {:?}", start.elapsed());
    }
    assert_eq!(ask(&patient, &request(5, 8), Duration::ZERO).unwrap_err().kind(), ErrorKind::AgentAway);

    let callers: Vec<_> = [(6, 8), (7, 50_000)]
        .map(|(number, len)| {
            let patient = patient.clone();
            std::thread::spawn(move || ask(&patient, &request(number, len), PATIENCE).unwrap())
        })
        .into();
    std::thread::sleep(SOON);
    let agent = Running::start(&node, &handled);
    callers.into_iter().for_each(|caller| caller.join().unwrap());
    agent.end(CLOSES);
    // What was said not to be sent was not.
    assert_eq!(*handled.lock().unwrap(), HashMap::from([(1, 1), (6, 1), (7, 1)]));
}

#[test]
fn a_call_waits_for_the_next_agent() {
    waits(ask);
}

#[test]
fn a_call_that_is_started_waits_for_the_next_agent() {
    waits(start);
}

#[test]
fn a_future_waits_for_the_next_agent() {
    waits(ask_async);
}

/// A request that is longer than the ring, of which an agent that dies has read nothing: the next gets all of it, from the start.
#[test]
fn a_call_that_is_half_sent_is_written_anew() {
    let (node, handled) = (Node::new(Default::default()), Handled::default());
    let agent = Running::start(&node, &handled);
    let client = Client::join(node.pod("a"), PATIENCE).unwrap();
    let patient = client.call("ask").unwrap().wait_for_agent(true);
    agent.end(CLOSES);
    // It reads nothing.
    let mut idle = connect(&node);
    until("the client has the second agent", || {
        idle.wait(Duration::from_millis(1)).unwrap();
        idle.clients() == 1 && client.agent_present()
    });
    let written = Arc::new(AtomicUsize::new(0));
    let seen = Arc::clone(&written);
    let caller = std::thread::spawn(move || {
        let (request, mut answer, mut starts) = (request(1, 50_000), vec![0; 50_000], 0);
        let fill = |offset: usize, part: &mut [u8]| {
            starts += u32::from(offset == 0);
            part.copy_from_slice(&request[offset..offset + part.len()]);
            seen.store(offset, Ordering::Relaxed);
        };
        let each = |offset: usize, _: usize, part: &[u8]| answer[offset..offset + part.len()].copy_from_slice(part);
        patient.call_with(request.len(), fill, PATIENCE, each).unwrap();
        assert!(answer == request);
        starts
    });
    until("the ring is full", || written.load(Ordering::Relaxed) >= 8_000);
    drop(idle);
    node.settle("the second agent is gone", |s| !s.agent);
    let agent = Running::start(&node, &handled);
    assert_eq!(caller.join().unwrap(), 2);
    agent.end(CLOSES);
    assert_eq!(*handled.lock().unwrap(), HashMap::from([(1, 1)]));
}

/// Threads and futures call while agents follow one another, with and without a gap; what the calls came to.
fn agents_follow(rounds: impl Iterator<Item = u8>) -> Vec<(u64, Result<(), Error>)> {
    let (node, handled) = (Node::new(Default::default()), Handled::default());
    let mut agent = Running::start(&node, &handled);
    let client = Client::join(node.pod("a"), PATIENCE).unwrap();
    let patient = client.call("ask").unwrap().spin(Spin::Never).wait_for_agent(true);
    let stop = Arc::new(AtomicBool::new(false));
    let callers: Vec<_> = [ask as Ask, ask, start, ask_async]
        .into_iter()
        .zip(0u64..)
        .map(|(ask, thread)| {
            let (patient, stop) = (patient.clone(), Arc::clone(&stop));
            std::thread::spawn(move || {
                let numbers = (0..).map(|n| thread << 32 | n).take_while(|_| !stop.load(Ordering::Relaxed));
                let one =
                    |number| (number, ask(&patient, &request(number, 8 + (number as usize % 5) * 1500), PATIENCE));
                numbers.map(one).collect::<Vec<_>>()
            })
        })
        .collect();
    for (how, epoch) in rounds.zip(2..) {
        if how == 0 {
            let next = Running::start(&node, &handled);
            agent.thread.join().unwrap(); // it is asked to close
            agent = next;
        } else {
            agent.end(how);
            agent = Running::start(&node, &handled);
        }
        // It answers this client before it goes: SEMANTICS says what becomes of calls otherwise (S19).
        ask(&patient, &request(9 << 32 | epoch, 8), PATIENCE).unwrap();
    }
    stop.store(true, Ordering::Relaxed);
    let found: Vec<_> = callers.into_iter().flat_map(|caller| caller.join().unwrap()).collect();
    agent.end(CLOSES);
    let handled = handled.lock().unwrap();
    assert!(handled.values().all(|times| *times == 1), "nothing is handled twice");
    assert!(found.iter().all(|(number, result)| result.is_err() || handled.contains_key(number)));
    found
}

#[test]
fn no_call_fails_as_agents_follow_in_order() {
    for (number, result) in agents_follow([0, CLOSES].into_iter().cycle().take(12)) {
        result.unwrap_or_else(|error| panic!("{number}: {error}"));
    }
}

/// What was in a dying agent's hand is not repeated; nothing else fails.
#[test]
fn a_call_that_was_sent_is_not_repeated() {
    for (number, result) in agents_follow([CRASHES, 0, CRASHES].into_iter().cycle().take(12)) {
        if let Err(error) = result {
            assert_eq!(error.kind(), ErrorKind::OutcomeUnknown, "{number}: {error}");
        }
    }
}
