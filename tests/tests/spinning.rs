//! However many threads wait with a budget for spinning, and however large that is: no more of them spin than half of the processors.

use podshm::{Client, ErrorKind, Spin};
use podshm_tests::participant::Participant;
use podshm_tests::{Node, PATIENCE, patient};
use rustix::time::{ClockId, clock_gettime};
use std::time::Duration;

const PROGRAM: &str = env!("CARGO_BIN_EXE_podshm-test-participant");
const THREADS: usize = 16;

/// What this thread has used of a processor, in ns.
fn used() -> i64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec * 1_000_000_000 + time.tv_nsec
}

#[test]
fn all_waiters_of_a_process_share_what_they_spin() {
    let node = Node::with(patient());
    let agent = Participant::agent(PROGRAM, &node.pod("agent"), &node.root().join("deliveries"), 1, None);
    node.settle("the agent serves", |s| s.agent);
    let client = Client::join(node.pod("a"), PATIENCE).unwrap();
    client.call("again").unwrap().call(&[0; 64], &mut [0; 4096], PATIENCE).expect("it answers");
    agent.signal(libc::SIGSTOP);
    let wait = || {
        let call = client.call("again").unwrap().spin(Spin::For(PATIENCE));
        let before = used();
        let error = call.call(&[0; 64], &mut [0; 4096], Duration::from_secs(2)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Deadline, "{error}");
        used() - before
    };
    let used: Vec<i64> = std::thread::scope(|scope| {
        let waiting: Vec<_> = (0..THREADS).map(|_| scope.spawn(wait)).collect();
        waiting.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let most = used.iter().max().unwrap();
    let spinning = used.iter().filter(|used| **used > most / 4).count();
    let places = (std::thread::available_parallelism().unwrap().get() / 2).max(1);
    assert!(spinning <= places, "{spinning} have spun, expected {places} at most: {used:?}");
    agent.kill();
}
