//! fork, from a C program: what a child may do, what it finds, and that the parent's death is noticed while the child lives on.

use podshm_tests::Node;
use podshm_tests::programs::{Talk, compile};
use podshm_tests::serving::Serving;
use std::collections::BTreeMap;
use std::process::Command;

fn serve(node: &Node, version: u8) -> Serving {
    Serving::start_with(node.pod("agent"), version, |agent| agent.queue("audit", 16 * 1024, 1024))
}

fn start(node: &Node, mode: &[&str]) -> Talk {
    let mut command = Command::new(compile("forks", node.root()));
    command.args(mode).arg(node.pod("a"));
    Talk::start(command)
}

/// How often each record of `client` came; none may be marked or out of order.
fn records(of: &[podshm_tests::serving::Handled], client: u64) -> BTreeMap<String, usize> {
    let mut counted = BTreeMap::new();
    for (_, position, maybe_seen, bytes) in of.iter().filter(|r| r.0 == client) {
        assert!(!maybe_seen, "record at {position} is marked");
        *counted.entry(String::from_utf8(bytes.clone()).unwrap()).or_default() += 1;
    }
    counted
}

fn counts(of: &[(&str, usize)]) -> BTreeMap<String, usize> {
    of.iter().map(|(record, times)| ((*record).to_owned(), *times)).collect()
}

#[test]
fn every_handle_refuses_in_a_child_and_works_on_in_the_parent() {
    let node = Node::new(Default::default());
    let first = serve(&node, 1);
    let before = node.broker.stats("d").unwrap();
    let mut program = start(&node, &["quiet"]);
    let parent = program.number("client");
    for way in [
        "fork",
        "fork and exit",
        "fork and silence",
        "fork twice",
        "clone",
        "_Fork",
        "vfork and exec",
        "posix_spawn",
        "fork again",
    ] {
        assert_eq!(program.word("did"), way);
    }
    program.word("forked");
    node.settle("every child's client is drained", |s| s.clients.len() == 1);
    let second = serve(&node, 2);
    program.tell();
    program.word("left");
    program.end();
    node.settle("all are drained", |s| s.clients.is_empty());
    let after = node.broker.stats("d").unwrap();
    assert_eq!((after.reserved, after.refused, after.discarded, after.held_open), (before.reserved, 0, 0, 0));
    let mut all = first.stop();
    all.extend(second.stop());
    let expected = counts(&[("parent", 5), ("held", 8), ("not published", 1)]);
    assert_eq!(records(&all, parent), expected, "the parent's records, each once");
    let children: std::collections::BTreeSet<u64> = all.iter().map(|r| r.0).filter(|c| *c != parent).collect();
    assert_eq!(children.len(), 8, "clients that children were: {children:?}");
    for child in children {
        let expected = counts(&[("child", 1), ("held", 8), ("not published", 1)]);
        assert_eq!(records(&all, child), expected, "client {child}'s records");
    }
}

#[test]
fn forks_under_load_hang_nobody_and_lose_nothing() {
    let node = Node::new(Default::default());
    let agent = serve(&node, 1);
    let mut program = start(&node, &["busy"]);
    let parent = program.number("client");
    let pushed = program.number("pushed") as usize;
    program.word("left");
    program.end();
    node.settle("all are drained", |s| s.clients.is_empty());
    let counted = records(&agent.stop(), parent);
    assert_eq!(counted, counts(&[("thread", pushed), ("held", 8), ("not published", 1)]));
    assert!(pushed > 0);
}

fn lives(pid: u64) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

#[test]
fn a_parents_death_is_noticed_while_its_child_lives_on() {
    let node = Node::new(Default::default());
    let agent = serve(&node, 1);
    let mut program = start(&node, &["orphan", "fork"]);
    let parent = program.number("client");
    let child = program.number("child");
    assert_eq!(node.broker.stats("d").unwrap().clients.len(), 1);
    program.kill();
    node.settle("the parent is drained", |s| s.clients.is_empty());
    assert_eq!(node.broker.stats("d").unwrap().held_open, 0, "in time, not late");
    assert!(lives(child), "the child has ended, so that this shows nothing");
    program.tell();
    program.word("child ends");
    assert_eq!(records(&agent.stop(), parent), counts(&[("parent", 1)]));
}

#[test]
fn a_daemon_is_a_client_of_its_own_when_its_starter_dies() {
    let node = Node::new(Default::default());
    let agent = serve(&node, 1);
    let mut program = start(&node, &["orphan", "twice"]);
    let parent = program.number("client");
    let daemon = program.number("joined");
    let pid = program.number("child");
    program.kill();
    node.settle("the starter is drained, the daemon is not", |s| s.clients.len() == 1);
    let left = &node.broker.stats("d").unwrap().clients[0];
    assert!(left.client == daemon && left.connected && lives(pid));
    program.tell();
    program.word("child ends");
    node.settle("all are drained", |s| s.clients.is_empty());
    let all = agent.stop();
    assert_eq!(records(&all, parent), counts(&[("parent", 1)]));
    assert_eq!(records(&all, daemon), counts(&[("child", 2)]));
}
