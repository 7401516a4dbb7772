//! A domain at its full budget, with a reader that is stopped and pins old generations: its agent restarts all the same.

use podshm::client::TableSnapshot;
use podshm::{Client, ErrorKind};
use podshm_broker::{ClientStats, DomainConfig, DomainStats, Limits, SuccessorWaits};
use podshm_tests::load::Load;
use podshm_tests::participant::Participant;
use podshm_tests::{Node, PATIENCE, deliveries, patient, roles};
use std::time::{Duration, Instant};

const PROGRAM: &str = env!("CARGO_BIN_EXE_podshm-test-participant");
const RESTARTS: u32 = 20;
const STEADY: u32 = 1;

/// What the services take with `clients` clients.
fn reserved_with(clients: u32) -> u64 {
    let node = Node::new(Limits::default());
    let agent = Participant::agent(PROGRAM, &node.pod("agent"), &node.root().join("deliveries"), 1, None);
    let joined: Vec<Client> =
        (0..clients).map(|c| Client::join(node.pod(&format!("p{c}")), PATIENCE).unwrap()).collect();
    let reserved = node.broker.stats("d").unwrap().reserved;
    drop(joined);
    agent.kill();
    reserved
}

fn of_member<'a>(stats: &'a DomainStats, member: &str) -> &'a ClientStats {
    stats.clients.iter().find(|c| c.member == member).expect("this member is joined")
}

#[test]
fn an_agent_restarts_in_a_full_domain_whatever_a_stopped_reader_pins() {
    let budget = reserved_with(STEADY + 1);
    let node = Node::with(DomainConfig { limits: Limits { budget, ..Limits::default() }, ..patient() });
    let (directory, file) = (node.pod("agent"), node.root().join("deliveries"));
    let mut agent = Participant::agent(PROGRAM, &directory, &file, 1, None);
    let load = Load::start(&node, STEADY);
    let noted = node.root().join("reader.log");
    let reader = Participant::client(PROGRAM, &node.pod("reader"), &noted, 77, None);
    node.settle("all joined", |s| s.clients.len() == STEADY as usize + 1);
    let until = Instant::now() + PATIENCE;
    while roles::written_down(&noted, 77).1.accepted < 100 {
        assert!(Instant::now() < until, "the reader does not come to work");
    }
    let refused = || Client::join(node.pod("one-more"), PATIENCE).expect_err("the domain is full");
    assert_eq!(refused().kind(), ErrorKind::Refused);

    reader.signal(libc::SIGSTOP);
    for restart in 0..RESTARTS {
        let epoch = node.broker.stats("d").unwrap().epoch;
        // Killed and started anew, or upgraded: then both are there for a while.
        let predecessor = if restart % 2 == 0 { agent.kill_and_none() } else { Some(agent) };
        agent = Participant::agent(PROGRAM, &directory, &file, restart + 2, None);
        node.settle("the next agent serves", |s| s.agent && s.epoch > epoch);
        predecessor.into_iter().for_each(Participant::await_end);
        load.await_progress(&format!("restart {restart}"));
        let stats = node.broker.stats("d").unwrap();
        assert!(stats.region_bytes_peak <= budget, "restart {restart}: budget {budget}, {stats:#?}");
        assert_eq!(stats.reserved, budget);
    }
    // Of the generations it may keep, one is the first.
    let stats = node.broker.stats("d").unwrap();
    let stale: Vec<&str> = stats.clients.iter().filter(|c| c.stale).map(|c| c.member.as_str()).collect();
    assert_eq!(stale, ["test/reader"], "it is stale, alone, and named");
    assert!(of_member(&stats, "test/reader").connected);
    assert_eq!(refused().kind(), ErrorKind::Refused);

    reader.signal(libc::SIGCONT);
    node.settle("the reader catches up", |s| !of_member(s, "test/reader").stale);
    let before = roles::written_down(&noted, 77).1;
    let until = Instant::now() + PATIENCE;
    while roles::written_down(&noted, 77).1.accepted < before.accepted + 100 {
        assert!(Instant::now() < until, "the reader does not go on");
    }
    roles::ask_to_stop(&noted);
    reader.await_end();
    let mut sent = load.stop();
    sent.push(roles::written_down(&noted, 77).1);
    node.settle("all is drained", |s| s.clients.is_empty());
    let tally = deliveries::check(&deliveries::read(&file), &sent);
    eprintln!("{tally:?}");
    agent.kill();
    node.settle("everything but the current table is free", |s| s.regions == 1 && !s.agent);
    let stats = node.broker.stats("d").unwrap();
    assert!(stats.region_bytes_peak <= budget, "budget {budget}, {stats:#?}");
}

/// A full domain with two clients that keep two generations of its table each, no two of them the same; and an agent that is to follow the one
/// that serves.
struct Crowded {
    node: Node,
    budget: u64,
    kept: [Vec<TableSnapshot>; 2],
    /// They keep nothing but that.
    _clients: [Client; 2],
    agents: [Participant; 2],
}

impl Crowded {
    fn new(room_grace: Duration) -> Self {
        let budget = reserved_with(2);
        let limits = Limits { budget, ..Limits::default() };
        let node = Node::with(DomainConfig { limits, room_grace, ..patient() });
        let (directory, file) = (node.pod("agent"), node.root().join("deliveries"));
        let start = |index| Participant::agent(PROGRAM, &directory, &file, index, None);
        let mut agent = start(1);
        let clients = ["p0", "p1"].map(|pod| Client::join(node.pod(pod), PATIENCE).unwrap());
        let tables = [0, 1].map(|of: usize| clients[of].table("routes").unwrap());
        let mut kept = [Vec::new(), Vec::new()];
        for generation in 1..=5 {
            if generation > 1 {
                agent.kill();
                node.settle("nobody serves", |s| !s.agent);
                agent = start(generation);
            }
            node.settle("the next generation is there", |s| s.agent && s.epoch == u64::from(generation));
            // The first client keeps 1 and 2, the second 3 and 4, nobody the one that serves.
            let Some(of) = [0, 0, 1, 1].get(generation as usize - 1).copied() else { break };
            let until = Instant::now() + PATIENCE;
            while tables[of].generation_number().unwrap() < u64::from(generation) {
                assert!(Instant::now() < until, "client {of} does not come to generation {generation}");
                std::thread::yield_now();
            }
            kept[of].push(tables[of].snapshot().unwrap());
        }
        let next = start(100);
        Crowded { node, budget, kept, _clients: clients, agents: [agent, next] }
    }
}

#[test]
fn a_successor_waits_for_room_that_a_client_is_about_to_give() {
    let mut crowded = Crowded::new(PATIENCE * 3);
    let node = &crowded.node;
    node.settle("it waits for room", |s| s.successor == Some(SuccessorWaits::Room));
    assert!(node.broker.stats("d").unwrap().agent, "the one before serves on");
    crowded.kept[1].clear();
    node.settle("it comes as soon as the second lets go", |s| s.agent && s.epoch == 6);
    let stats = node.broker.stats("d").unwrap();
    assert!(stats.region_bytes_peak <= crowded.budget, "budget {}, {stats:#?}", crowded.budget);
    crowded.agents.into_iter().for_each(Participant::kill);
}

#[test]
fn clients_that_let_nothing_go_keep_no_successor_out() {
    let crowded = Crowded::new(Duration::from_millis(300));
    crowded.node.settle("it comes all the same", |s| s.agent && s.epoch == 6);
    let stats = crowded.node.broker.stats("d").unwrap();
    assert!(stats.region_bytes_peak > crowded.budget, "there was room, so that this shows nothing: {stats:#?}");
    assert!(crowded.kept.iter().all(|kept| kept.len() == 2));
    crowded.agents.into_iter().for_each(Participant::kill);
}
