//! A doorbell and a broker's socket that a forked child keeps: the parent's death is noticed by its pidfd, named, and its region is
//! drained and freed, while a process that lives is never taken for dead.

use podshm_proto::Up;
use podshm_tests::programs::{Talk, compile};
use podshm_tests::raw::{Raw, RawClient, hello};
use podshm_tests::serving::Serving;
use podshm_tests::{Node, PATIENCE};
use std::process::Command;

fn lives(pid: u64) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

#[test]
fn a_dead_client_whose_sockets_a_child_keeps_is_named_drained_and_freed() {
    let node = Node::new(Default::default());
    let offer = |agent: podshm::AgentBuilder| agent.queue("audit", 16 * 1024, 1024);
    let agent = Serving::start_with(node.pod("agent"), 1, offer);
    let before = node.broker.stats("d").unwrap();
    let mut command = Command::new(compile("forks", node.root()));
    command.args(["orphan", "clone"]).arg(node.pod("a"));
    let mut program = Talk::start(command);
    let parent = program.number("client");
    let child = program.number("child");
    let during = node.broker.stats("d").unwrap();
    assert!(during.clients.len() == 1 && during.held_open == 0 && during.reserved > before.reserved);
    program.kill();
    node.settle("the dead client is drained", |s| s.clients.is_empty());
    assert!(lives(child), "the child has ended, so that this shows nothing");
    let after = node.broker.stats("d").unwrap();
    assert_eq!((after.held_open, after.discarded, after.reserved), (1, 0, before.reserved));
    // Its A came from the agent's pool, which is topped up only when it gets low.
    node.settle("its regions are freed", |s| s.regions < during.regions && s.regions <= before.regions);
    // The child still has the sockets, and hears that they are closed; nothing of it is noticed.
    program.tell();
    program.word("child ends");
    let records = agent.stop();
    assert_eq!(records.iter().filter(|r| r.0 == parent && r.3 == b"parent").count(), 1);
    assert_eq!(node.broker.stats("d").unwrap().held_open, 1);
}

/// The process behind `RawClient`s: nothing when run as a test.
#[test]
fn role_that_connects() {
    let Ok(directory) = std::env::var("HELD_OPEN") else { return };
    // Says goodbye with a message that is in the socket when it dies; its child keeps the socket.
    let (client, _window) = RawClient::join(&directory);
    let waiting = Raw::connect(&directory);
    waiting.send(Up::Hello(hello(false, Vec::new())));
    // SAFETY: the child reads its input to the end, by system calls alone, and leaves by _exit; the parent leaves by _exit too.
    unsafe {
        if libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0) == 0 {
            let mut byte = 0u8;
            while libc::read(0, (&raw mut byte).cast(), 1) > 0 {}
            libc::_exit(0);
        }
        client.raw.send(Up::Bye(podshm_proto::Nothing {}));
        libc::_exit(0);
    }
}

#[test]
fn what_the_dead_had_said_counts_first() {
    let node = Node::new(Default::default());
    let agent = Serving::start(node.pod("agent"));
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "role_that_connects", "--test-threads=1"]).env("HELD_OPEN", node.pod("a"));
    let mut program = Talk::start(command);
    program.end();
    // One said goodbye and is not named; the other one, which was let in and never mapped its region, is.
    node.settle("both are gone", |s| s.clients.is_empty() && s.held_open > 0);
    assert_eq!(node.broker.stats("d").unwrap().held_open, 1);
    agent.stop();
}

#[test]
fn a_thread_that_ends_is_no_death() {
    let node = Node::new(Default::default());
    let agent = Serving::start(node.pod("agent"));
    let directory = node.pod("a");
    let client = std::thread::spawn(move || podshm::Client::join(directory, PATIENCE).unwrap()).join().unwrap();
    let (decide, mut answer) = (client.call("decide").unwrap(), [0; 8]);
    for _ in 0..100 {
        assert_eq!(decide.call(b"ab", &mut answer, PATIENCE).unwrap(), 2);
    }
    let stats = node.broker.stats("d").unwrap();
    assert!(stats.held_open == 0 && stats.clients.len() == 1);
    drop((client, decide));
    node.settle("it has left", |s| s.clients.is_empty());
    assert_eq!(node.broker.stats("d").unwrap().held_open, 0);
    agent.stop();
}
