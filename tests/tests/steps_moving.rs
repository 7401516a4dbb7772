//! Clients that go over to their region's next generation, with somebody killed, stopped or held at every step of it: the client, the
//! agent that it goes over for, the broker. Each agent offers one queue more than the one before, so that each has every client go over.

use podshm::Client;
use podshm::steps::{Action, Plan, Side, Step};
use podshm_broker::DomainConfig;
use podshm_testkit::numbered;
use podshm_tests::deliveries::{self, Kind, Sent, Tally};
use podshm_tests::gates::{Gate, passed};
use podshm_tests::load::Load;
use podshm_tests::participant::Participant;
use podshm_tests::roles::{ask_to_stop, written_down};
use podshm_tests::{Node, PATIENCE, patient};
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

const PROGRAM: &str = env!("CARGO_BIN_EXE_podshm-test-participant");
/// A gate holds every broker of the process, so one test at a time.
static TURN: Mutex<()> = Mutex::new(());

/// The steps of going over that this side passes; the compiler asks for the place of a new one in the other tests of steps.
fn steps(side: Side) -> impl Iterator<Item = Step> {
    const MOVING: [Step; 11] = [
        Step::MoveMapped,
        Step::MoveCopied,
        Step::MoveMarked,
        Step::MoveSleepers,
        Step::MoveDone,
        Step::FollowMapped,
        Step::FollowSeen,
        Step::FollowDone,
        Step::BrokerNext,
        Step::BrokerTold,
        Step::BrokerMoved,
    ];
    MOVING.into_iter().filter(move |step| step.side() == side)
}

/// A node with two clients that work all the while, a guest that uses what is new, and agents that come and go.
struct Stage {
    node: Node,
    file: PathBuf,
    load: Load,
    guest: Client,
    sent: Vec<Sent>,
    agents: u32,
    /// Queues that the newest agent offers beyond the usual.
    more: u32,
    victims: u32,
    keep_tables: bool,
    _turn: MutexGuard<'static, ()>,
}

/// Clients that stay.
const CLIENTS: usize = 3;
/// What the guest sends to a queue.
const GUESTS: u64 = 20;

impl Stage {
    fn new(config: DomainConfig) -> (Stage, Participant) {
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let node = Node::with(DomainConfig { close_grace: Duration::from_millis(50), ..config });
        let file = node.root().join("deliveries");
        let agent = Participant::agent(PROGRAM, &node.pod("agent"), &file, 1, None);
        let load = Load::start(&node, CLIENTS as u32 - 1);
        let guest = Client::join(node.pod("guest"), PATIENCE).unwrap();
        let stage = Stage {
            node,
            file,
            load,
            guest,
            sent: Vec::new(),
            agents: 1,
            more: 0,
            victims: 0,
            keep_tables: false,
            _turn: turn,
        };
        (stage, agent)
    }

    /// An agent that offers more than those before it.
    fn larger(&mut self, plan: Option<(Step, u64, Action)>) -> Participant {
        self.agents += 1;
        self.more += 1;
        let plan = plan.map(|(step, nth, action)| Plan { step, nth, action });
        Participant::larger_agent(PROGRAM, &self.node.pod("agent"), &self.file, self.agents, self.more, plan)
    }

    fn epoch(&self) -> u64 {
        self.node.broker.stats("d").unwrap().epoch
    }

    fn wait_for(&self, what: &str, mut good: impl FnMut() -> bool) {
        let until = Instant::now() + PATIENCE;
        while !good() {
            assert!(Instant::now() < until, "{what} does not happen");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Waits until another agent serves than the one of `epoch`, and the guest has gone over and uses what that one offers.
    fn await_agent(&mut self, epoch: u64, what: &str) {
        self.node.settle(what, |s| s.agent && s.epoch > epoch);
        self.await_over(what);
    }

    fn await_over(&mut self, what: &str) {
        self.load.await_progress(what);
        let newest = format!("more-{}", self.more - 1);
        self.wait_for(&format!("the guest's going over ({what})"), || self.guest.queue(&newest).is_ok());
        let (queue, sender) = (self.guest.queue(&newest).unwrap(), 500 + self.more);
        for number in 0..GUESTS {
            queue.push(&numbered::encode(sender, number, 40), PATIENCE).unwrap();
        }
        self.sent.push(Sent { sender, accepted: GUESTS, ..Sent::default() });
        let stats = self.node.broker.stats("d").unwrap();
        // Clients that are stopped keep tables, each that of its time.
        let keeps = self.keep_tables || stats.region_bytes <= stats.reserved;
        assert!(keeps, "more is there than was reserved ({what}): {stats:?}");
    }

    fn noted(&self, sender: u32) -> PathBuf {
        self.node.root().join(format!("victim-{sender}.log"))
    }

    /// A client in a process of its own, at work.
    fn victim(&mut self, pod: &str, plan: (Step, u64, Action)) -> (u32, Participant) {
        self.victims += 1;
        let sender = 1000 + self.victims;
        let plan = Plan { step: plan.0, nth: plan.1, action: plan.2 };
        let victim = Participant::client(PROGRAM, &self.node.pod(pod), &self.noted(sender), sender, Some(plan));
        self.wait_for("work", || written_down(&self.noted(sender), sender).1.accepted > 50);
        (sender, victim)
    }

    /// Passings of a client's step that count: of one that is passed for each ring, the first, the second, the last ring's, and the
    /// one for all together.
    fn nths(&self, step: Step) -> Vec<u64> {
        let rings = 3 + u64::from(self.more);
        match step {
            Step::MoveCopied | Step::MoveMarked => vec![1, 2, rings, rings + 1],
            _ => vec![1],
        }
    }

    fn check(mut self, last: Participant) -> Tally {
        let victims = (1..=self.victims).map(|v| written_down(&self.noted(1000 + v), 1000 + v).1);
        let victims: Vec<Sent> = victims.collect();
        self.sent.extend(victims);
        self.sent.extend(self.load.stop());
        drop(self.guest);
        self.node.settle("all is drained", |s| s.clients.is_empty() && s.discarded == 0);
        let tally = deliveries::check(&deliveries::read(&self.file), &self.sent);
        last.kill();
        self.node.settle("everything but the current table is free", |s| s.regions == 1 && !s.agent);
        tally
    }
}

#[test]
fn an_agent_killed_while_its_clients_go_over_loses_nothing() {
    let (mut stage, mut current) = Stage::new(patient());
    for step in steps(Side::Agent) {
        for nth in [1, 3] {
            let armed = stage.larger(Some((step, nth, Action::Kill)));
            let what = armed.what().to_owned();
            armed.await_death();
            current.await_end();
            let epoch = stage.epoch();
            current = stage.larger(None);
            stage.await_agent(epoch, &what);
        }
    }
    eprintln!("{:?}", stage.check(current));
}

#[test]
fn an_agent_stopped_while_its_clients_go_over_does_no_harm_when_it_wakes_up() {
    let (mut stage, mut current) = Stage::new(patient());
    for step in steps(Side::Agent) {
        for nth in [1, 3] {
            let mut armed = stage.larger(Some((step, nth, Action::Stop)));
            armed.await_stop();
            current.await_end();
            let epoch = stage.epoch();
            current = stage.larger(None);
            stage.await_agent(epoch, armed.what());
            armed.signal(libc::SIGCONT);
            armed.await_end();
            stage.load.await_progress(step.name());
        }
    }
    eprintln!("{:?}", stage.check(current));
}

#[test]
fn a_client_killed_while_it_goes_over_loses_nothing_and_holds_nothing() {
    let (mut stage, mut current) = Stage::new(patient());
    for step in steps(Side::Client) {
        for nth in 0..stage.nths(step).len() {
            let nth = stage.nths(step)[nth];
            let (_, victim) = stage.victim("victim", (step, nth, Action::Kill));
            let (what, epoch) = (victim.what().to_owned(), stage.epoch());
            let next = stage.larger(None);
            victim.await_death();
            std::mem::replace(&mut current, next).await_end();
            stage.await_agent(epoch, &what);
            stage.node.settle(&format!("{what}: it is drained"), |s| s.clients.len() == CLIENTS);
        }
    }
    eprintln!("{:?}", stage.check(current));
}

/// A client dies with some of its rings over, and the agent that had followed some of them dies, too: the next one finds in which
/// region each of them goes on.
#[test]
fn a_client_and_its_agent_killed_in_the_middle_of_it_lose_nothing() {
    let (mut stage, mut current) = Stage::new(patient());
    for (step, nth) in [(Step::MoveCopied, 2), (Step::MoveMarked, 1), (Step::MoveMarked, 2), (Step::MoveSleepers, 1)] {
        for seen in [1, 2, 3] {
            let (_, victim) = stage.victim("victim", (step, nth, Action::Kill));
            let what = format!("{} and {seen} marks seen", victim.what());
            let armed = stage.larger(Some((Step::FollowSeen, seen, Action::Kill)));
            armed.await_death();
            let next = stage.larger(None);
            victim.await_death();
            std::mem::replace(&mut current, next).await_end();
            stage.await_over(&what);
            stage.node.settle(&format!("{what}: it is drained"), |s| s.clients.len() == CLIENTS);
        }
    }
    eprintln!("{:?}", stage.check(current));
}

#[test]
fn clients_stopped_while_they_go_over_hold_nobody_up_and_go_on_when_they_wake_up() {
    let (mut stage, mut current) = Stage::new(patient());
    stage.keep_tables = true;
    let mut stopped = Vec::new();
    for step in steps(Side::Client) {
        for nth in 0..stage.nths(step).len() {
            let nth = stage.nths(step)[nth];
            let (sender, mut victim) = stage.victim(&format!("{}-{nth}", step.name()), (step, nth, Action::Stop));
            let epoch = stage.epoch();
            let next = stage.larger(None);
            victim.await_stop();
            std::mem::replace(&mut current, next).await_end();
            stage.await_agent(epoch, victim.what());
            let accepted = written_down(&stage.noted(sender), sender).1.accepted;
            stage.wait_for("delivery of what a stopped client has sent", || {
                let came = deliveries::read_so_far(&stage.file);
                came.iter().filter(|l| l.sender == sender && l.kind == Kind::Record).count() as u64 >= accepted
            });
            stopped.push((sender, victim));
        }
    }
    // They sleep over a crash, too.
    let epoch = stage.epoch();
    current.kill();
    current = stage.larger(None);
    stage.await_agent(epoch, "a crash");
    for (n, (sender, victim)) in stopped.into_iter().enumerate() {
        if n % 4 == 3 {
            victim.kill();
            continue;
        }
        let noted = stage.noted(sender);
        let before = written_down(&noted, sender).1.accepted;
        victim.signal(libc::SIGCONT);
        stage.wait_for(victim.what(), || written_down(&noted, sender).1.accepted > before + 50);
        ask_to_stop(&noted);
        victim.await_end();
    }
    stage.node.settle("who has ended is drained", |s| s.clients.len() == CLIENTS);
    eprintln!("{:?}", stage.check(current));
}

#[test]
fn a_broker_held_while_clients_go_over_holds_up_no_open_channel() {
    let (mut stage, mut current) = Stage::new(patient());
    for step in steps(Side::Broker) {
        for dies in [false, true] {
            let (what, epoch) = (step.name(), stage.epoch());
            let gate = Gate::close(step);
            let next = stage.larger(None);
            gate.await_arrival();
            stage.load.await_progress(what);
            std::mem::replace(&mut current, next).await_end();
            if dies {
                let next = stage.larger(None);
                std::mem::replace(&mut current, next).kill();
            }
            drop(gate);
            stage.await_agent(epoch, what);
        }
    }
    eprintln!("{:?}", stage.check(current));
    assert_eq!(steps(Side::Broker).filter(|s| !passed().contains_key(s)).count(), 0, "{:?}", passed());
}

/// A roll-back to an agent that speaks the older layout only, while the one that serves is stopped and can't follow anybody: it has its
/// time, then the next one goes on, and the clients come to it once they have gone over without an agent.
#[test]
fn a_roll_back_goes_on_without_an_agent_that_is_stopped() {
    let (mut stage, stopped) = Stage::new(DomainConfig::new("d"));
    stage.load.await_progress("the start");
    let epoch = stage.epoch();
    stopped.signal(libc::SIGSTOP);
    stage.agents += 1;
    let old = Participant::old_agent(PROGRAM, &stage.node.pod("agent"), &stage.file, stage.agents);
    stage.node.settle("the older agent serves", |s| s.agent && s.epoch > epoch && s.layout == 1);
    stage.load.await_progress("a roll-back");
    stopped.kill();
    let epoch = stage.epoch();
    let next = stage.larger(None);
    stage.await_agent(epoch, "a roll-back");
    old.await_end();
    eprintln!("{:?}", stage.check(next));
}
