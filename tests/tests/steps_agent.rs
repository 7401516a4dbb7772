//! Agents that are killed or stopped at every step they pass, under load.
//!
//! ```text
//!   kill    predecessor ──► agent, armed ──► dies at its step ──► successor
//!   stop    predecessor ──► agent, armed ──► stops at its step ──► successor ──► the agent wakes up, finds itself superseded, ends
//! ```
//! All the while clients report, call and look up, and check what they get; in the end the file of deliveries is checked: nothing lost,
//! torn, out of order, or twice without a mark; nothing handled twice that must not be.

use podshm::steps::{Action, Plan, Step};
use podshm_broker::DomainConfig;
use podshm_tests::load::Load;
use podshm_tests::participant::Participant;
use podshm_tests::{Node, deliveries, patient};
use std::cell::Cell;
use std::path::PathBuf;
use std::time::Duration;

const PROGRAM: &str = env!("CARGO_BIN_EXE_podshm-test-participant");
const CLIENTS: u32 = 2;

/// When an agent passes a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum When {
    /// Before it serves: its predecessor goes on meanwhile.
    Coming,
    /// While it serves, at this passing and the other.
    Serving(u64, u64),
    /// When a successor waits.
    Closing(u64),
    /// When a table grows.
    Growing,
    /// When a client of its goes over to another region: see `steps_moving.rs`.
    Moving,
    /// Never: it is a client's or the broker's.
    Never,
}

/// Every step has its place here; the compiler asks for that of a new one.
fn when(step: Step) -> When {
    use When::*;
    match step {
        Step::JoinConnected | Step::JoinWelcomed | Step::JoinMapped | Step::JoinAcknowledged | Step::JoinSealed => {
            Coming
        }
        // From here on the broker may let it serve.
        Step::HandoverReady | Step::HandoverTaken => Serving(1, 1),
        // Two clients with three rings each.
        Step::HandoverStarting => Serving(1, 5),
        Step::HandoverClient => Serving(1, 2),
        Step::DrainPeeked | Step::DrainClaimed | Step::DrainAcknowledging | Step::DrainAcknowledged => Serving(1, 20),
        Step::DrainCopied | Step::DrainHandled => Serving(1, 333),
        Step::CallClaimed | Step::CallCopied | Step::CallHandled => Serving(1, 7),
        Step::AnswerReserved | Step::AnswerPublished => Serving(1, 9),
        Step::PushReserved | Step::PushWritten | Step::PushCommitted | Step::PushPublished => Serving(1, 8),
        Step::SleepArmed => Serving(1, 4),
        // Fifteen records and one batch of two are published before an agent is ready.
        Step::TableWritten | Step::TableSwung => Serving(20, 41),
        Step::TableVersioned => Serving(16, 32),
        // A key that comes and goes.
        Step::TableTagged => Serving(16, 18),
        Step::TableCleared => Serving(1, 3),
        Step::TableBatchOpen => Serving(2, 5),
        Step::HandoverAsked | Step::HandoverClosed => Closing(1),
        Step::HandoverClosing => Closing(3),
        Step::GrowthAsked | Step::GrowthSealed | Step::GrowthCopied | Step::GrowthPublished => Growing,
        Step::FollowMapped | Step::FollowSeen | Step::FollowDone => Moving,
        other if !other.side().is_agents() => Never,
        missing => panic!("no {missing:?} is asked for here: say when"),
    }
}

/// A node whose agents come and go.
struct Stage {
    node: Node,
    directory: PathBuf,
    file: PathBuf,
    agents: Cell<u32>,
}

impl Stage {
    fn new() -> Stage {
        let node = Node::with(DomainConfig { close_grace: Duration::from_millis(50), ..patient() });
        let (directory, file) = (node.pod("agent"), node.root().join("deliveries"));
        Stage { node, directory, file, agents: Cell::new(0) }
    }

    fn agent(&self, plan: Option<Plan>) -> Participant {
        self.agents.set(self.agents.get() + 1);
        Participant::agent(PROGRAM, &self.directory, &self.file, self.agents.get(), plan)
    }

    fn growing_agent(&self, plan: Plan) -> Participant {
        self.agents.set(self.agents.get() + 1);
        Participant::growing_agent(PROGRAM, &self.directory, &self.file, self.agents.get(), Some(plan))
    }

    fn epoch(&self) -> u64 {
        self.node.broker.stats("d").unwrap().epoch
    }

    /// Waits until another agent serves than the one of `epoch`.
    fn await_agent(&self, epoch: u64, what: &str) {
        self.node.settle(what, |s| s.agent && s.epoch > epoch);
    }

    /// An agent without a plan, serving.
    fn plain(&self) -> Participant {
        let epoch = self.epoch();
        let agent = self.agent(None);
        self.await_agent(epoch, agent.what());
        agent
    }

    fn check(self, load: Load, last: Participant) -> deliveries::Tally {
        let sent = load.stop();
        self.node.settle("all is drained", |s| s.clients.is_empty());
        let tally = deliveries::check(&deliveries::read(&self.file), &sent);
        last.kill();
        self.node.settle("everything but the current table is free", |s| s.regions == 1 && !s.agent);
        tally
    }
}

fn plan(step: Step, nth: u64, action: Action) -> Plan {
    Plan { step, nth, action }
}

#[test]
fn an_agent_killed_at_any_step_loses_nothing() {
    let stage = Stage::new();
    let mut current = stage.plain();
    let load = Load::start(&stage.node, CLIENTS).with_comers(&stage.node);
    let (mut killed, mut at_work) = (0, 0);
    for step in Step::ALL {
        let kill = |nth| plan(*step, nth, Action::Kill);
        match when(*step) {
            When::Never | When::Growing | When::Moving => continue,
            When::Coming => {
                stage.agent(Some(kill(1))).await_death();
                killed += 1;
            }
            When::Closing(nth) => {
                let epoch = stage.epoch();
                let armed = stage.agent(Some(kill(nth)));
                stage.await_agent(epoch, armed.what());
                current.await_end();
                load.await_progress(armed.what());
                current = stage.plain();
                armed.await_death();
                killed += 1;
            }
            When::Serving(first, other) => {
                // Over from one that closes in order, then over from one that died with a batch in hand.
                let armed = stage.agent(Some(kill(other)));
                armed.await_death();
                current.await_end();
                stage.agent(Some(plan(Step::DrainHandled, 50, Action::Kill))).await_death();
                stage.agent(Some(kill(first))).await_death();
                current = stage.plain();
                killed += 3;
                at_work += 2;
            }
        }
        load.await_progress(step.name());
    }
    let tally = stage.check(load, current);
    eprintln!("{killed} kills: {tally:?}");
    assert!(killed >= 60 && tally.repeated > 0, "{tally:?} is no proof");
    // A batch is a quarter of a ring of 16 KiB, a record takes 32 bytes at least.
    let most = killed * u64::from(CLIENTS) * 4096 / 32;
    assert!(tally.repeated <= most && at_work > 40, "{tally:?}");
}

#[test]
fn an_agent_stopped_at_any_step_does_no_harm_when_it_wakes_up() {
    let stage = Stage::new();
    let mut current = stage.plain();
    let load = Load::start(&stage.node, CLIENTS).with_comers(&stage.node);
    for step in Step::ALL {
        let stop = |nth| Some(plan(*step, nth, Action::Stop));
        let epoch = stage.epoch();
        match when(*step) {
            When::Never | When::Growing | When::Moving => continue,
            When::Coming => {
                let mut armed = stage.agent(stop(1));
                armed.await_stop();
                load.await_progress(armed.what());
                armed.signal(libc::SIGCONT);
                stage.await_agent(epoch, armed.what());
                current.await_end();
                current = armed;
            }
            When::Serving(_, nth) => {
                let mut armed = stage.agent(stop(nth));
                armed.await_stop();
                if *step == Step::CallHandled {
                    load.await_deadlines(armed.what());
                }
                current.await_end();
                current = stage.plain();
                load.await_progress(armed.what());
                armed.signal(libc::SIGCONT);
                armed.await_end();
            }
            When::Closing(nth) => {
                let mut armed = stage.agent(stop(nth));
                stage.await_agent(epoch, armed.what());
                current.await_end();
                current = stage.plain();
                armed.await_stop();
                load.await_progress(armed.what());
                armed.signal(libc::SIGCONT);
                armed.await_end();
            }
        }
        load.await_progress(step.name());
    }
    let tally = stage.check(load, current);
    eprintln!("{tally:?}");
    assert!(tally.marked > 0 && tally.unknown > 0, "{tally:?} is no proof");
}

#[test]
fn an_agent_killed_or_stopped_while_its_table_grows_leaves_a_whole_table() {
    let growing = Step::ALL.iter().filter(|s| when(**s) == When::Growing);
    for (step, action) in growing.flat_map(|s| [(*s, Action::Kill), (*s, Action::Stop)]) {
        let stage = Stage::new();
        let current = stage.plain();
        let load = Load::start(&stage.node, 1);
        let mut armed = stage.growing_agent(plan(step, 1, action));
        match action {
            Action::Kill => armed.await_death(),
            Action::Stop => {
                armed.await_stop();
                current.await_end();
                let successor = stage.plain();
                load.await_progress(armed.what());
                armed.signal(libc::SIGCONT);
                armed.await_end();
                successor.kill();
            }
        }
        let current = stage.plain();
        load.await_progress(step.name());
        stage.check(load, current);
    }
}
