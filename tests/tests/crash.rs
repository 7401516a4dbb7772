//! Agents that are killed or stopped with work in flight, at random moments: nothing that was accepted is lost, what comes twice is
//! marked, every call ends, every lookup finds its key. At named steps: see `steps_agent.rs`.

use podshm_broker::DomainConfig;
use podshm_tests::load::Load;
use podshm_tests::participant::Participant;
use podshm_tests::raw::Random;
use podshm_tests::{Node, deliveries, patient};
use std::time::Duration;

const PROGRAM: &str = env!("CARGO_BIN_EXE_podshm-test-participant");
/// Random moments at which an agent is killed.
const KILLS: u32 = 200;
const CLIENTS: u32 = 3;

#[test]
fn agents_killed_at_random_moments_lose_nothing() {
    let node = Node::with(patient());
    let (directory, file) = (node.pod("agent"), node.root().join("deliveries"));
    let start = |index| Participant::agent(PROGRAM, &directory, &file, index, None);
    let mut random = Random(0x2545_f491_4f6c_dd1d);
    let mut agent = start(1);
    node.settle("the first agent serves", |s| s.agent);
    let load = Load::start(&node, CLIENTS).with_comers(&node);
    for kill in 0..KILLS {
        let epoch = node.broker.stats("d").unwrap().epoch;
        // Every fourth dies while it takes over, the others at work.
        let pause = if kill % 4 == 0 { random.below(3_000) } else { random.below(40_000) };
        std::thread::sleep(Duration::from_micros(pause));
        agent.kill();
        agent = start(kill + 2);
        node.settle("another agent serves", |s| s.agent && s.epoch > epoch);
    }
    load.await_progress("the last kill");
    let sent = load.stop();
    node.settle("all is drained", |s| s.clients.is_empty());
    let tally = deliveries::check(&deliveries::read(&file), &sent);
    eprintln!("{KILLS} kills: {tally:?}");
    assert!(tally.records > u64::from(KILLS) * 50, "{tally:?} is no load");
    assert!(tally.repeated < tally.records / 2, "{tally:?}");
    agent.kill();
}

#[test]
fn a_stopped_agent_does_no_harm_when_it_wakes_up() {
    let node = Node::with(DomainConfig { close_grace: Duration::from_millis(200), ..patient() });
    let (directory, file) = (node.pod("agent"), node.root().join("deliveries"));
    let start = |index| Participant::agent(PROGRAM, &directory, &file, index, None);
    let mut agent = start(1);
    node.settle("the first agent serves", |s| s.agent);
    let load = Load::start(&node, CLIENTS);
    for stop in 0..10 {
        std::thread::sleep(Duration::from_millis(37));
        let epoch = node.broker.stats("d").unwrap().epoch;
        agent.signal(libc::SIGSTOP);
        let successor = start(stop + 2);
        node.settle("the successor serves", |s| s.agent && s.epoch > epoch);
        if stop % 2 == 0 {
            load.await_progress("the successor's start"); // the others wake up while it takes over
        }
        agent.signal(libc::SIGCONT);
        agent.await_end();
        agent = successor;
    }
    let sent = load.stop();
    node.settle("all is drained", |s| s.clients.is_empty());
    eprintln!("{:?}", deliveries::check(&deliveries::read(&file), &sent));
    agent.kill();
}
