//! Participants at work around a broker that is killed, replaced and started anew.

use crate::daemon::{Daemon, Stats};
use crate::participant::Participant;
use crate::roles::{ask_to_stop, inherited_by, written_down};
use crate::{PATIENCE, deliveries};
use podshm::steps::Plan;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// A broker, an agent, and clients at work.
#[derive(Debug)]
pub struct Stage {
    /// The broker.
    pub daemon: Daemon,
    program: String,
    agents: u32,
    /// The agent that serves.
    pub agent: Option<Participant>,
    /// Clients by their number; none in the place of one that was killed.
    pub clients: Vec<Option<Participant>>,
}

impl Stage {
    /// A place without anybody. `program` is `podshm-test-participant`, `broker` is `podshm-test-broker`.
    pub fn empty(program: &str, broker: &str) -> Stage {
        let (daemon, program) = (Daemon::place(broker), program.to_owned());
        Stage { daemon, program, agents: 0, agent: None, clients: Vec::new() }
    }

    /// A broker, an agent, and so many clients, all at work.
    pub fn new(program: &str, broker: &str, clients: u32) -> Stage {
        let mut stage = Stage::empty(program, broker);
        stage.daemon.restart();
        stage.new_agent();
        for _ in 0..clients {
            stage.new_client();
        }
        stage.await_progress("the beginning");
        stage
    }

    /// Where agents write down what they are given.
    pub fn deliveries(&self) -> PathBuf {
        self.daemon.root().join("deliveries")
    }

    /// Starts an agent; the one before, if any, is the caller's.
    pub fn new_agent(&mut self) {
        let agent = self.agent_that(None);
        self.agent = Some(agent);
    }

    /// An agent that ends itself as `plan` says.
    pub fn agent_that(&mut self, plan: Option<Plan>) -> Participant {
        self.agents += 1;
        let (directory, file) = (self.daemon.pod("agent"), self.deliveries());
        Participant::agent(&self.program, &directory, &file, self.agents, plan)
    }

    /// Starts an agent whose table grows.
    pub fn new_growing_agent(&mut self) {
        self.agents += 1;
        let (directory, file) = (self.daemon.pod("agent"), self.deliveries());
        self.agent = Some(Participant::growing_agent(&self.program, &directory, &file, self.agents, None));
    }

    /// Starts an agent that offers one queue more.
    pub fn new_larger_agent(&mut self) {
        self.agents += 1;
        let (directory, file) = (self.daemon.pod("agent"), self.deliveries());
        self.agent = Some(Participant::larger_agent(&self.program, &directory, &file, self.agents, 1, None));
    }

    /// Where a client writes down what was accepted.
    pub fn noted(&self, sender: u32) -> PathBuf {
        self.daemon.root().join(format!("client-{sender}.log"))
    }

    /// Starts one more client; returns its number.
    pub fn new_client(&mut self) -> u32 {
        let sender = self.clients.len() as u32;
        let directory = self.daemon.pod(&format!("c-{sender}"));
        self.clients.push(Some(Participant::client(&self.program, &directory, &self.noted(sender), sender, None)));
        sender
    }

    /// How much of a client was accepted for sure.
    pub fn accepted(&self, sender: u32) -> u64 {
        written_down(&self.noted(sender), sender).1.accepted
    }

    /// The agent that left something to this one.
    pub fn inherited(&self, agent: u32) -> Option<u32> {
        let state = std::fs::read(inherited_by(&self.deliveries(), agent)).ok()?;
        Some(u32::from_le_bytes(state.try_into().ok()?))
    }

    /// What was delivered so far.
    pub fn delivered(&self) -> usize {
        if self.deliveries().exists() { deliveries::read_so_far(&self.deliveries()).len() } else { 0 }
    }

    /// Waits until every living client has sent, and the agent has got, more than now.
    pub fn await_progress(&self, what: &str) {
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
    pub fn books(&mut self) -> Stats {
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

    /// A signal to a client.
    pub fn signal_client(&self, sender: u32, signal: i32) {
        self.clients[sender as usize].as_ref().expect("it lives").signal(signal);
    }

    /// How much of one client was delivered so far.
    pub fn delivered_of(&self, sender: u32) -> usize {
        let of_one = |line: &&deliveries::Line| line.sender == sender && line.kind == deliveries::Kind::Record;
        deliveries::read_so_far(&self.deliveries()).iter().filter(of_one).count()
    }

    /// kill -9.
    pub fn kill_client(&mut self, sender: u32) {
        self.clients[sender as usize].take().expect("it lives").kill();
    }

    /// The broker is one like any other: one more client comes, another agent takes over in order, and nothing was repeated.
    pub fn goes_on_in_order(mut self) {
        self.new_client();
        self.await_progress("with a newcomer");
        let old = self.agent.take().expect("an agent");
        self.new_agent();
        old.await_end();
        self.await_progress("with another agent");
        let tally = self.check();
        assert_eq!(tally.repeated, 0, "{tally:?}");
    }

    /// Ends everybody, and checks that nothing was lost or repeated without a mark.
    pub fn check(self) -> deliveries::Tally {
        self.check_but(None)
    }

    /// [`Stage::check`] where all that this client had queued and that was not delivered may be lost.
    pub fn check_but(mut self, lost: Option<u32>) -> deliveries::Tally {
        for sender in 0..self.clients.len() as u32 {
            ask_to_stop(&self.noted(sender));
            if let Some(client) = self.clients[sender as usize].take() {
                client.await_end();
            }
        }
        self.daemon.settle("all is drained", |s| s.clients() == 0);
        let mut sent: Vec<_> =
            (0..self.clients.len() as u32).map(|sender| written_down(&self.noted(sender), sender).1).collect();
        for sent in sent.iter_mut().filter(|sent| Some(sent.sender) == lost) {
            (sent.in_hand, sent.accepted) = (sent.in_hand + sent.accepted, 0);
        }
        let tally = deliveries::check(&deliveries::read(&self.deliveries()), &sent);
        self.end_with(tally)
    }

    /// Ends the agent; nobody else is there any more.
    pub fn end_with(mut self, tally: deliveries::Tally) -> deliveries::Tally {
        self.agent.take().expect("an agent").kill();
        self.daemon.settle("everything but the current table is free", |s| !s.has_agent() && s.number("regions") <= 1);
        tally
    }
}
