//! A broker that is held at each of its steps: channels that are open go on meanwhile, and whoever it was busy with may die.

use podshm::steps::{Action, BadPlan, Plan, Side, Step};
use podshm_tests::gates::{Gate, passed};
use podshm_tests::load::Load;
use podshm_tests::participant::Participant;
use podshm_tests::roles::{ask_to_stop, written_down};
use podshm_tests::{Node, PATIENCE, deliveries, patient};
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

const PROGRAM: &str = env!("CARGO_BIN_EXE_podshm-test-participant");
/// A gate holds every broker of the process, so one test at a time.
static TURN: Mutex<()> = Mutex::new(());

/// What brings the broker to a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cause {
    Join,
    Leave,
    /// Another agent comes, and the old one serves until the broker goes on.
    Coming,
    /// Another agent takes over.
    Upgrade,
    Growth,
    /// A client goes over to another region: see `steps_moving.rs`.
    Move,
}

fn cause(step: Step) -> Cause {
    match step {
        Step::BrokerLetIn | Step::BrokerSealed | Step::BrokerServed => Cause::Join,
        Step::BrokerLeft | Step::BrokerForgot => Cause::Leave,
        Step::BrokerPool => Cause::Coming,
        Step::BrokerAskedClose | Step::BrokerEpoch | Step::BrokerHanded => Cause::Upgrade,
        Step::BrokerPublished => Cause::Growth,
        Step::BrokerNext | Step::BrokerTold | Step::BrokerMoved => Cause::Move,
        other => panic!("{} is the broker's: say here what brings it there", other.name()),
    }
}

struct Stage {
    node: Node,
    file: PathBuf,
    agents: u32,
    victims: u32,
}

impl Stage {
    fn new() -> Stage {
        let node = Node::with(patient());
        let file = node.root().join("deliveries");
        Stage { node, file, agents: 0, victims: 0 }
    }

    fn agent(&mut self, grows: bool) -> Participant {
        self.agents += 1;
        let start = if grows { Participant::growing_agent } else { Participant::agent };
        start(PROGRAM, &self.node.pod("agent"), &self.file, self.agents, None)
    }

    fn noted(&self, victim: u32) -> PathBuf {
        self.node.root().join(format!("victim-{victim}.log"))
    }

    fn victim(&mut self) -> Participant {
        self.victims += 1;
        let sender = 1000 + self.victims;
        Participant::client(PROGRAM, &self.node.pod("victim"), &self.noted(sender), sender, None)
    }

    /// Waits until the last victim is at work.
    fn await_work(&self) {
        let sender = 1000 + self.victims;
        let until = Instant::now() + PATIENCE;
        while written_down(&self.noted(sender), sender).1.accepted < 50 {
            assert!(Instant::now() < until, "the client does not come to work");
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
    }

    /// Lets the last victim end in order.
    fn end(&self, victim: Participant) {
        ask_to_stop(&self.noted(1000 + self.victims));
        victim.await_end();
    }

    fn check(self, load: Load, agent: Participant) {
        let mut sent = load.stop();
        sent.extend((1..=self.victims).map(|v| written_down(&self.noted(1000 + v), 1000 + v).1));
        self.node.settle("all is drained", |s| s.clients.is_empty());
        eprintln!("{:?}", deliveries::check(&deliveries::read(&self.file), &sent));
        agent.kill();
        self.node.settle("everything but the current table is free", |s| s.regions == 1 && !s.agent);
    }
}

#[test]
fn a_broker_held_at_any_step_holds_up_no_open_channel() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let mut stage = Stage::new();
    let mut agent = stage.agent(false);
    let load = Load::start(&stage.node, 1);
    let steps = Step::ALL.iter().filter(|s| s.side() == Side::Broker);
    for (step, dies) in steps.flat_map(|s| [(*s, false), (*s, true)]) {
        let what = step.name();
        match cause(step) {
            Cause::Join => {
                let gate = Gate::close(step);
                let victim = stage.victim();
                gate.await_arrival();
                load.await_progress(what);
                let survivor = if dies { victim.kill_and_none() } else { Some(victim) };
                drop(gate);
                if let Some(victim) = survivor {
                    stage.await_work();
                    stage.end(victim);
                }
            }
            Cause::Leave => {
                let victim = stage.victim();
                stage.await_work();
                let gate = Gate::close(step);
                if dies {
                    victim.kill()
                } else {
                    stage.end(victim)
                }
                gate.await_arrival();
                load.await_progress(what);
            }
            Cause::Coming | Cause::Upgrade => {
                let gate = Gate::close(step);
                let next = stage.agent(false);
                gate.await_arrival();
                match cause(step) {
                    Cause::Coming => load.await_progress(what),
                    _ => load.await_lookups(what),
                }
                let next = if dies { next.kill_and_none() } else { Some(next) };
                drop(gate);
                match (next, cause(step)) {
                    (Some(next), _) => std::mem::replace(&mut agent, next).await_end(),
                    // The one that served serves on.
                    (None, Cause::Coming) => {}
                    // It closed for a successor that is dead.
                    (None, _) => {
                        std::mem::replace(&mut agent, stage.agent(false)).await_end();
                    }
                }
            }
            Cause::Growth | Cause::Move => continue, // on stages of their own
        }
        load.await_progress(what);
        stage.node.settle(what, |s| s.clients.len() == 1 && s.agent);
    }
    stage.check(load, agent);
    let passed = passed();
    let held =
        Step::ALL.iter().filter(|s| s.side() == Side::Broker && !matches!(cause(**s), Cause::Growth | Cause::Move));
    assert_eq!(held.filter(|s| !passed.contains_key(s)).count(), 0, "{passed:?}");
}

#[test]
fn a_broker_held_while_a_table_grows_leaves_a_whole_table() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let steps = Step::ALL.iter().filter(|s| s.side() == Side::Broker && cause(**s) == Cause::Growth);
    for (step, dies) in steps.flat_map(|s| [(*s, false), (*s, true)]) {
        let mut stage = Stage::new();
        let first = stage.agent(false);
        let load = Load::start(&stage.node, 1);
        let gate = Gate::close(step);
        let mut agent = stage.agent(true);
        gate.await_arrival();
        load.await_progress(step.name());
        first.await_end();
        if dies {
            agent.kill();
            drop(gate);
            agent = stage.agent(false);
        } else {
            drop(gate);
        }
        load.await_progress(step.name());
        stage.check(load, agent);
    }
}

#[test]
fn plans_read_back_as_written_and_bad_ones_are_named() {
    for step in Step::ALL {
        for action in [Action::Kill, Action::Stop] {
            let plan = Plan { step: *step, nth: 7, action };
            assert_eq!(plan.to_string().parse(), Ok(plan));
        }
    }
    for bad in ["", "push.written", "push.written:1", "push.written:0:kill", "push:1:kill", "push.written:1:burn"] {
        assert_eq!(bad.parse::<Plan>(), Err(BadPlan { found: bad.into() }));
    }
}
