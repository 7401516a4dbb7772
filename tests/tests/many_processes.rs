//! 64 processes of one pod joined at once, each a client of its own; the 65th is refused; when all have left the books are as before.

use podshm::{Client, ErrorKind};
use podshm_tests::programs::Talk;
use podshm_tests::serving::Serving;
use podshm_tests::{Node, PATIENCE};
use std::collections::BTreeSet;
use std::process::Command;

const PROCESSES: usize = 64;
const RECORDS: u64 = 20;
/// Of the 64, so many are killed instead of leaving.
const KILLED: usize = 8;

/// One process of the pod: nothing when run as a test.
#[test]
fn role_process() {
    let Ok(directory) = std::env::var("MANY_PROCESSES") else { return };
    let mut line = String::new();
    let client = Client::join(directory, PATIENCE).unwrap();
    println!("\njoined {}", client.id());
    assert!(std::io::stdin().read_line(&mut line).unwrap() > 0);
    let (reports, decide) = (client.queue("reports").unwrap(), client.call("decide").unwrap());
    let (routes, mut answer) = (client.table("routes").unwrap(), [0; 256]);
    for n in 0..RECORDS {
        reports.push(&n.to_le_bytes(), PATIENCE).unwrap();
        assert_eq!(routes.get(b"key", &mut answer).unwrap(), Some(200));
        assert_eq!(decide.call(&n.to_le_bytes(), &mut answer, PATIENCE).unwrap(), 8);
        assert_eq!(answer[..8], n.to_be_bytes());
    }
    println!("\nworked");
    assert!(std::io::stdin().read_line(&mut line).unwrap() > 0);
}

fn start(node: &Node) -> Talk {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "role_process", "--test-threads=1", "--nocapture"]);
    command.env("MANY_PROCESSES", node.pod("a"));
    Talk::start(command)
}

#[test]
fn sixty_four_processes_of_one_pod_join_and_the_next_is_refused() {
    let node = Node::new(Default::default());
    let agent = Serving::start(node.pod("agent"));
    let before = node.broker.stats("d").unwrap();
    let mut processes: Vec<Talk> = (0..PROCESSES).map(|_| start(&node)).collect();
    let ids: Vec<u64> = processes.iter_mut().map(|p| p.find("joined ").parse().unwrap()).collect();
    assert_eq!(ids.iter().collect::<BTreeSet<_>>().len(), PROCESSES, "each is a client of its own");
    let full = node.broker.stats("d").unwrap();
    assert_eq!(full.clients.iter().filter(|c| c.connected && c.member == "test/a").count(), PROCESSES);

    let refused = Client::join(node.pod("a"), PATIENCE).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Refused);
    assert!(refused.to_string().contains("test/a has its 64 processes joined"), "{refused}");
    let other = Client::join(node.pod("b"), PATIENCE).unwrap();
    node.settle("the refused one cost nothing", |s| s.clients.len() == PROCESSES + 1 && s.refused == 1);
    drop(other);
    node.settle("the other pod's has left", |s| s.clients.len() == PROCESSES && s.reserved == full.reserved);

    for process in &mut processes {
        process.tell();
    }
    for process in &mut processes {
        process.find("worked");
    }
    // One leaves, and another one gets its place.
    let mut first = processes.remove(0);
    first.tell();
    first.end();
    node.settle("one has left", |s| s.clients.len() == PROCESSES - 1);
    let mut next = start(&node);
    next.find("joined ");
    next.tell();
    next.find("worked");
    processes.push(next);
    for process in &mut processes[..KILLED] {
        process.kill();
    }
    for process in &mut processes[KILLED..] {
        process.tell();
    }
    for process in &mut processes[KILLED..] {
        process.end();
    }
    node.settle("all are drained", |s| s.clients.is_empty());
    let after = node.broker.stats("d").unwrap();
    assert_eq!((after.reserved, after.discarded, after.held_open), (before.reserved, 0, 0), "the books are as before");
    node.settle("all regions are freed", |s| s.regions <= before.regions);
    let records = agent.stop();
    for id in &ids {
        let got: Vec<u64> = records
            .iter()
            .filter(|r| r.0 == *id && !r.2)
            .map(|r| u64::from_le_bytes(r.3[..].try_into().unwrap()))
            .collect();
        assert_eq!(got, (0..RECORDS).collect::<Vec<_>>(), "records of client {id}");
    }
    assert_eq!(records.len(), (PROCESSES + 1) * RECORDS as usize);
}
