//! Clients that are killed or stopped at every step they pass, and at random moments: what they had accepted is delivered, nothing torn
//! comes to the agent, their memory comes back, and nobody else notices.

use podshm::steps::{Action, Plan, Step};
use podshm_broker::{DomainConfig, DomainStats};
use podshm_tests::deliveries::{self, Kind, Sent, Tally};
use podshm_tests::load::Load;
use podshm_tests::participant::Participant;
use podshm_tests::raw::Random;
use podshm_tests::roles::{ask_to_stop, refused_pushes, written_down};
use podshm_tests::{Node, PATIENCE, patient};
use std::path::PathBuf;
use std::time::{Duration, Instant};

const PROGRAM: &str = env!("CARGO_BIN_EXE_podshm-test-participant");
/// Random moments at which a client is killed.
const KILLS: u32 = 200;
/// Answer regions that an agent keeps in spare, and what a join may have under way.
const SPARE: usize = 8;

/// When a client passes a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum When {
    /// While it joins, before its region is acknowledged.
    Joining,
    /// While it joins, when the broker has its acknowledgement.
    Joined,
    /// At work, at this passing and the other.
    AtWork(u64, u64),
    /// When another agent takes over.
    NewAgent,
    /// When it goes over to another region: see `steps_moving.rs`.
    Moving,
    /// Never: it is an agent's or the broker's.
    Never,
}

/// Every step has its place here; the compiler asks for that of a new one.
fn when(step: Step) -> When {
    use When::*;
    match step {
        Step::JoinConnected | Step::JoinWelcomed | Step::JoinMapped => Joining,
        Step::JoinAcknowledged | Step::JoinSealed => Joined,
        Step::PushReserved | Step::PushWritten | Step::PushCommitted => AtWork(1, 222),
        Step::PushPublished | Step::PushDoorbell => AtWork(1, 111),
        Step::SleepArmed => AtWork(1, 6),
        Step::CallSent => AtWork(1, 11),
        Step::AnswerCopied | Step::AnswerAcknowledged => AtWork(1, 13),
        Step::LinkMapped | Step::LinkSwapped => NewAgent,
        Step::MoveMapped | Step::MoveCopied | Step::MoveMarked | Step::MoveSleepers | Step::MoveDone => Moving,
        other if !other.side().is_clients() => Never,
        missing => panic!("no {missing:?} is asked for here: say when"),
    }
}

/// A node with an agent, one client that works all the while, and clients that come to grief.
struct Stage {
    node: Node,
    file: PathBuf,
    agents: u32,
    agent: Option<Participant>,
    load: Load,
    before: DomainStats,
    victims: u32,
}

impl Stage {
    fn new(config: DomainConfig) -> Stage {
        let node = Node::with(config);
        let file = node.root().join("deliveries");
        let agent = Participant::agent(PROGRAM, &node.pod("agent"), &file, 1, None);
        let load = Load::start(&node, 1);
        node.settle("the pool of answer regions is full", |s| s.regions == 2 + 1 + 3);
        let before = node.broker.stats("d").unwrap();
        Stage { node, file, agents: 1, agent: Some(agent), load, before, victims: 0 }
    }

    /// What victim number `sender` writes down.
    fn noted(&self, sender: u32) -> PathBuf {
        self.node.root().join(format!("victim-{sender}.log"))
    }

    fn victim(&mut self, pod: &str, plan: Option<Plan>) -> (u32, Participant) {
        self.victims += 1;
        let sender = 1000 + self.victims;
        (sender, Participant::client(PROGRAM, &self.node.pod(pod), &self.noted(sender), sender, plan))
    }

    fn upgrade(&mut self) {
        let epoch = self.node.broker.stats("d").unwrap().epoch;
        self.agents += 1;
        let next = Participant::agent(PROGRAM, &self.node.pod("agent"), &self.file, self.agents, None);
        self.node.settle("the next agent serves", |s| s.agent && s.epoch > epoch);
        self.agent.replace(next).expect("there is an agent").await_end();
    }

    fn crash(&mut self) {
        let epoch = self.node.broker.stats("d").unwrap().epoch;
        self.agent.take().expect("there is an agent").kill();
        self.agents += 1;
        self.agent = Some(Participant::agent(PROGRAM, &self.node.pod("agent"), &self.file, self.agents, None));
        self.node.settle("the next agent serves", |s| s.agent && s.epoch > epoch);
    }

    fn wait_for(&self, what: &str, good: impl Fn() -> bool) {
        let until = Instant::now() + PATIENCE;
        while !good() {
            assert!(Instant::now() < until, "{what} does not happen");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Waits until nothing of the victims is left in the books.
    fn await_books(&self, what: &str) {
        let before = &self.before;
        self.node.settle(&format!("the memory of {what} comes back"), |s| {
            s.clients.len() == 1 && s.reserved == before.reserved && s.regions <= before.regions + SPARE
        });
    }

    fn check(self) -> Tally {
        let mut sent: Vec<Sent> = (1..=self.victims).map(|v| written_down(&self.noted(1000 + v), 1000 + v).1).collect();
        self.await_books("every victim");
        assert_eq!(self.node.broker.stats("d").unwrap().discarded, 0);
        sent.extend(self.load.stop());
        self.node.settle("all is drained", |s| s.clients.is_empty());
        let tally = deliveries::check(&deliveries::read(&self.file), &sent);
        self.agent.expect("there is an agent").kill();
        self.node.settle("everything but the current table is free", |s| s.regions == 1 && !s.agent);
        tally
    }
}

#[test]
fn a_client_killed_at_any_step_loses_nothing_and_holds_nothing() {
    let mut stage = Stage::new(patient());
    for step in Step::ALL {
        let nths = match when(*step) {
            When::Never | When::Moving => continue,
            When::AtWork(first, other) => vec![first, other],
            _ => vec![1],
        };
        for nth in nths {
            let (sender, victim) = stage.victim("victim", Some(Plan { step: *step, nth, action: Action::Kill }));
            let what = victim.what().to_owned();
            if when(*step) == When::NewAgent {
                stage.wait_for("work", || written_down(&stage.noted(sender), sender).1.accepted > 50);
                stage.upgrade();
            }
            victim.await_death();
            stage.load.await_progress(&what);
            stage.await_books(&what);
        }
    }
    // And with its ring full, which is several batches, and no agent left who knew it.
    let (sender, victim) = stage.victim("victim", None);
    stage.wait_for("work", || written_down(&stage.noted(sender), sender).1.accepted > 50);
    stage.agent.as_ref().expect("there is an agent").signal(libc::SIGSTOP);
    stage.wait_for("a full ring", || refused_pushes(&stage.noted(sender)) > 3);
    victim.kill();
    stage.crash();
    stage.await_books("a client with a full ring");
    let victims = stage.victims;
    let tally = stage.check();
    eprintln!("{victims} clients killed: {tally:?}");
    assert!(victims >= 25 && tally.records > 5_000, "{tally:?}");
}

#[test]
fn clients_stopped_at_every_step_hold_nobody_up_and_go_on_when_they_wake_up() {
    let mut stage = Stage::new(DomainConfig { map_deadline: Duration::from_secs(2), ..DomainConfig::new("d") });
    let (mut joining, mut stopped) = (Vec::new(), Vec::new());
    for step in Step::ALL {
        let nth = match when(*step) {
            When::Never | When::Moving => continue,
            When::AtWork(_, other) => other,
            _ => 1,
        };
        let plan = Plan { step: *step, nth, action: Action::Stop };
        let (sender, mut victim) = stage.victim(&format!("victim-{}", step.name()), Some(plan));
        if when(*step) == When::NewAgent {
            stage.wait_for("work", || written_down(&stage.noted(sender), sender).1.accepted > 50);
            stage.upgrade();
        }
        victim.await_stop();
        stage.load.await_progress(victim.what());
        let accepted = written_down(&stage.noted(sender), sender).1.accepted;
        let delivered = || {
            deliveries::read_so_far(&stage.file).iter().filter(|l| l.sender == sender && l.kind == Kind::Record).count()
        };
        stage.wait_for("delivery of what a stopped client has sent", || delivered() as u64 >= accepted);
        if when(*step) == When::Joining { &mut joining } else { &mut stopped }.push((sender, victim));
    }
    stage.crash();
    stage.load.await_progress("a crash");
    stage.upgrade();
    stage.load.await_progress("an upgrade");
    let present = stopped.len() + 1;
    stage.node.settle("who does not map in time is let go", |s| s.clients.len() == present);
    let stale = |s: &DomainStats| s.clients.iter().filter(|c| c.stale).count();
    assert!(stale(&stage.node.broker.stats("d").unwrap()) > 0, "who sleeps over many agents is named");
    for (_, victim) in joining {
        victim.signal(libc::SIGCONT);
        victim.await_refusal();
    }
    for (n, (sender, victim)) in stopped.into_iter().enumerate() {
        let noted = stage.noted(sender);
        if n % 3 == 2 {
            victim.kill();
            continue;
        }
        let before = written_down(&noted, sender).1.accepted;
        victim.signal(libc::SIGCONT);
        stage.wait_for(victim.what(), || written_down(&noted, sender).1.accepted > before + 50);
        ask_to_stop(&noted);
        victim.await_end();
    }
    eprintln!("{:?}", stage.check());
}

#[test]
fn clients_killed_at_random_moments_lose_nothing() {
    let mut stage = Stage::new(patient());
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let mut slots: [Option<Participant>; 4] = Default::default();
    for kill in 0..KILLS {
        let slot = kill as usize % slots.len();
        if let Some(victim) = slots[slot].take() {
            std::thread::sleep(Duration::from_micros(random.below(12_000)));
            victim.kill();
        }
        slots[slot] = Some(stage.victim(&format!("slot-{slot}"), None).1);
        match kill % 50 {
            20 => stage.crash(),
            40 => stage.upgrade(),
            _ => {}
        }
    }
    slots.into_iter().flatten().for_each(Participant::kill);
    stage.load.await_progress("the last kill");
    let tally = stage.check();
    eprintln!("{KILLS} clients killed: {tally:?}");
    assert!(tally.records > u64::from(KILLS) * 10, "{tally:?} is no load");
}
