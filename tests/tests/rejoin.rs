//! A broker that is killed and started anew is no event: those who are joined go on, come back by themselves, and the books are as before.

use podshm_tests::daemon::{Daemon, Stats};
use podshm_tests::participant::Participant;
use podshm_tests::roles::{ask_to_stop, written_down};
use podshm_tests::{PATIENCE, deliveries};
use std::path::PathBuf;
use std::time::{Duration, Instant};

const PROGRAM: &str = env!("CARGO_BIN_EXE_podshm-test-participant");
const BROKER: &str = env!("CARGO_BIN_EXE_podshm-test-broker");

/// A broker, an agent, and clients at work.
struct Stage {
    daemon: Daemon,
    agents: u32,
    agent: Option<Participant>,
    clients: Vec<Option<Participant>>,
}

impl Stage {
    fn new(clients: u32) -> Stage {
        let mut stage = Stage { daemon: Daemon::start(BROKER), agents: 0, agent: None, clients: Vec::new() };
        stage.new_agent();
        for _ in 0..clients {
            stage.new_client();
        }
        stage.await_progress("the beginning");
        stage
    }

    fn deliveries(&self) -> PathBuf {
        self.daemon.root().join("deliveries")
    }

    fn new_agent(&mut self) {
        self.agents += 1;
        let (directory, file) = (self.daemon.pod("agent"), self.deliveries());
        self.agent = Some(Participant::agent(PROGRAM, &directory, &file, self.agents, None));
    }

    fn noted(&self, sender: u32) -> PathBuf {
        self.daemon.root().join(format!("client-{sender}.log"))
    }

    fn new_client(&mut self) -> u32 {
        let sender = self.clients.len() as u32;
        let directory = self.daemon.pod(&format!("c-{sender}"));
        self.clients.push(Some(Participant::client(PROGRAM, &directory, &self.noted(sender), sender, None)));
        sender
    }

    fn accepted(&self, sender: u32) -> u64 {
        written_down(&self.noted(sender), sender).1.accepted
    }

    fn delivered(&self) -> usize {
        if self.deliveries().exists() { deliveries::read_so_far(&self.deliveries()).len() } else { 0 }
    }

    /// Waits until every living client has sent, and the agent has got, more than now.
    fn await_progress(&self, what: &str) {
        let alive = |n: &usize| self.clients[*n].is_some();
        let before: Vec<(u32, u64)> =
            (0..self.clients.len()).filter(alive).map(|n| (n as u32, self.accepted(n as u32))).collect();
        let delivered = self.delivered();
        let until = Instant::now() + PATIENCE * 2;
        loop {
            let sent = before.iter().all(|(sender, accepted)| self.accepted(*sender) > accepted + 50);
            if sent && self.delivered() > delivered + 50 {
                return;
            }
            assert!(Instant::now() < until, "no progress: {what}");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// The books when nobody comes or goes.
    fn books(&mut self) -> Stats {
        let clients = self.clients.iter().flatten().count();
        let quiet = |s: &Stats| {
            s.has_agent() && s.connected() == clients && s.clients() == clients && s.number("expected") == 0
        };
        loop {
            // What is topped up for the next join comes a little later.
            let before = self.daemon.settle("everybody is there", quiet);
            std::thread::sleep(Duration::from_millis(100));
            let stats = self.daemon.stats();
            if stats == before {
                return stats;
            }
        }
    }

    fn kill_client(&mut self, sender: u32) {
        self.clients[sender as usize].take().expect("it lives").kill();
    }

    /// Ends everybody, and checks that nothing was lost or repeated without a mark.
    fn check(mut self) -> deliveries::Tally {
        for sender in 0..self.clients.len() as u32 {
            ask_to_stop(&self.noted(sender));
            if let Some(client) = self.clients[sender as usize].take() {
                client.await_end();
            }
        }
        self.daemon.settle("all is drained", |s| s.clients() == 0);
        let sent: Vec<_> =
            (0..self.clients.len() as u32).map(|sender| written_down(&self.noted(sender), sender).1).collect();
        let tally = deliveries::check(&deliveries::read(&self.deliveries()), &sent);
        self.agent.take().expect("an agent").kill();
        self.daemon.settle("everything but the current table is free", |s| !s.has_agent() && s.number("regions") <= 1);
        tally
    }
}

#[test]
fn a_broker_that_is_killed_and_started_again_changes_nothing() {
    let mut stage = Stage::new(3);
    let before = stage.books();
    stage.daemon.kill();
    stage.await_progress("without a broker");
    stage.daemon.restart();
    let after = stage.books();
    assert_eq!(after.books(), before.books());
    assert_eq!(
        after.number("inherited_bytes"),
        after.number("region_bytes"),
        "all of it is charged to the one that died"
    );
    assert_eq!(before.number("inherited_bytes"), 0);
    stage.await_progress("with the new broker");
    // It is a broker like any other: one more comes, and another agent takes over in order.
    stage.new_client();
    stage.await_progress("with a newcomer");
    let old = stage.agent.take().expect("an agent");
    stage.new_agent();
    old.await_end();
    stage.await_progress("with another agent");
    let tally = stage.check();
    assert_eq!(tally.repeated, 0, "{tally:?}");
}

#[test]
fn joins_and_agents_wait_for_a_broker_that_is_away() {
    let mut stage = Stage::new(1);
    stage.books();
    // They know where to go.
    let (_, _) = (stage.daemon.pod("c-1"), stage.daemon.pod("c-2"));
    stage.daemon.kill();
    stage.new_client();
    stage.new_client();
    let old = stage.agent.take().expect("an agent");
    stage.new_agent();
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(stage.accepted(1) + stage.accepted(2), 0, "nobody lets them in");
    stage.daemon.restart();
    old.await_end();
    stage.await_progress("with those who waited");
    stage.books();
    let tally = stage.check();
    assert_eq!(tally.repeated, 0, "{tally:?}");
}

#[test]
fn twenty_restarts_in_a_row_lose_and_repeat_nothing() {
    let mut stage = Stage::new(2);
    let before = stage.books();
    for turn in 0..20 {
        stage.daemon.kill();
        if turn % 3 == 0 {
            stage.await_progress("without a broker");
        }
        stage.daemon.restart();
        if turn % 2 == 0 {
            let after = stage.books();
            assert_eq!(after.books(), before.books(), "restart {turn}");
        }
    }
    let after = stage.books();
    assert_eq!(after.books(), before.books());
    stage.await_progress("after all");
    let tally = stage.check();
    assert_eq!(tally.repeated, 0, "{tally:?}");
}

#[test]
fn a_client_that_dies_while_the_broker_is_away_is_drained_and_freed() {
    let mut stage = Stage::new(2);
    stage.daemon.grace = Duration::from_secs(3);
    stage.books();
    stage.daemon.kill();
    stage.await_progress("without a broker");
    stage.kill_client(1);
    stage.daemon.restart();
    stage.daemon.settle("the dead client's books are free", |s| s.clients() == 1 && s.connected() == 1);
    stage.await_progress("with the one that lives");
    stage.check();
}

#[test]
fn an_agent_that_dies_while_the_broker_is_away_has_a_successor_that_loses_nothing() {
    let mut stage = Stage::new(2);
    stage.books();
    stage.daemon.kill();
    stage.await_progress("without a broker");
    stage.agent.take().expect("an agent").kill();
    // Both orders: the successor waits for the broker, or the broker is there first.
    stage.new_agent();
    stage.daemon.restart();
    stage.await_progress("with the successor");
    stage.books();
    stage.daemon.kill();
    stage.agent.take().expect("an agent").kill();
    stage.daemon.restart();
    stage.new_agent();
    stage.await_progress("with the next one");
    stage.check();
}

#[test]
fn a_client_and_the_agent_that_die_while_the_broker_is_away_leave_the_others_whole() {
    let mut stage = Stage::new(3);
    stage.daemon.grace = Duration::from_secs(3);
    stage.books();
    stage.daemon.kill();
    stage.await_progress("without a broker");
    // What the second had queued dies with it: client, agent and broker together held it.
    let lost = stage.accepted(1);
    stage.kill_client(1);
    stage.agent.take().expect("an agent").kill();
    stage.new_agent();
    stage.daemon.restart();
    stage
        .daemon
        .settle("the dead client's books are free", |s| s.clients() == 2 && s.connected() == 2 && s.has_agent());
    stage.await_progress("with the successor");
    assert!(lost > 0);
    let sent: Vec<_> = [0, 2].map(|n| n).into();
    for sender in sent.iter().copied() {
        ask_to_stop(&stage.noted(sender));
        stage.clients[sender as usize].take().expect("it lives").await_end();
    }
    stage.daemon.settle("all is drained", |s| s.clients() == 0);
    let lines: Vec<_> = deliveries::read(&stage.deliveries()).into_iter().filter(|line| line.sender != 1).collect();
    let sent: Vec<_> = sent.into_iter().map(|sender| written_down(&stage.noted(sender), sender).1).collect();
    deliveries::check(&lines, &sent);
}
