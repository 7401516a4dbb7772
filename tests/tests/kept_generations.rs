//! What a client keeps of agents that are gone: only what it still reads.

use podshm::steps::Step;
use podshm::{Agent, Answer, Caller, Client, ErrorKind, Handler, Request};
use podshm_tests::gates::passed;
use podshm_tests::{Node, PATIENCE, until};
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// Steps are counted for the process, so one test at a time.
static TURN: Mutex<()> = Mutex::new(());

struct Echo;

impl Handler for Echo {
    fn call(&mut self, request: Request<'_>, answer: &mut Answer<'_>) {
        answer.reply(request.bytes);
    }
}

fn agent(directory: &Path) -> Agent {
    let mut agent =
        Agent::builder().idempotent_call("again", 16 * 1024, 16 * 1024).connect(directory, PATIENCE).unwrap();
    agent.ready().unwrap();
    agent
}

/// Starts a call that waits for its answer by one way or another.
type Ask = fn(Caller, Vec<u8>) -> Result<Vec<u8>, podshm::Error>;

/// A call in several parts that waits while agents come and go: it names the agent that it was sent to, and must not keep that one's
/// region. It would be one of the two that a client may keep, and the agent that answers could not be given to it.
fn outlives_agents(ask: Ask) {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let node = Node::new(Default::default());
    let directory = node.pod("agent");
    let (mut first, joining) = (agent(&directory), node.pod("a"));
    let joining = std::thread::spawn(move || Client::join(joining, PATIENCE).unwrap());
    until("the client joins", || {
        first.wait(Duration::from_millis(1)).unwrap();
        first.clients() == 1
    });
    let client = joining.join().unwrap();
    let again = client.call("again").unwrap();
    let request: Vec<u8> = (0..7000u32).map(|n| n as u8).collect();
    let asked = request.clone();
    let sent = || passed().get(&Step::CallSent).copied().unwrap_or(0);
    let before = sent();
    let caller: JoinHandle<_> = std::thread::spawn(move || ask(again, asked));
    until("all of it is sent", || sent() > before);

    // The first two read nothing.
    drop(first);
    node.settle("the first agent is gone", |s| !s.agent);
    until("the client sees that", || !client.agent_present());
    let mut second = agent(&directory);
    until("the second agent has the client", || {
        second.wait(Duration::from_millis(1)).unwrap();
        second.clients() == 1
    });
    until("the client has the second agent", || client.agent_present());
    drop(second);
    node.settle("the second agent is gone", |s| !s.agent);
    let mut third = agent(&directory);
    until("the call is answered", || {
        third.poll(&mut Echo).unwrap();
        caller.is_finished()
    });
    match caller.join().unwrap() {
        Ok(answer) => assert!(answer == request),
        // The first one was there when it was sent, and may have had it in hand.
        Err(error) => assert_eq!(error.kind(), ErrorKind::OutcomeUnknown, "{error}"),
    }
    third.close(Vec::new()).unwrap();
}

#[test]
fn a_thread_that_waits_for_an_answer_keeps_no_agent() {
    outlives_agents(|caller, request| {
        let mut answer = vec![0; 16 * 1024];
        let len = caller.call(&request, &mut answer, PATIENCE * 3)?;
        answer.truncate(len);
        Ok(answer)
    });
}

#[test]
fn a_future_that_waits_for_an_answer_keeps_no_agent() {
    outlives_agents(|caller, request| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(caller.call_async(request, PATIENCE * 3))
    });
}
