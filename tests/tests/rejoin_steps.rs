//! A broker that is killed at each of its steps and started again: whoever was in the midst of something gets there all the same, nothing is
//! lost, and nothing stays in the books.

use podshm::steps::{Action, Plan, Side, Step};
use podshm_tests::restarting::Stage;
use podshm_tests::roles::ask_to_stop;
use std::time::Duration;

const PROGRAM: &str = env!("CARGO_BIN_EXE_podshm-test-participant");
const BROKER: &str = env!("CARGO_BIN_EXE_podshm-test-broker");

/// What brings the broker to a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cause {
    /// An agent and two clients come.
    Coming,
    /// Another agent takes over from the first.
    Upgrade,
    /// A client leaves.
    Leave,
    /// The next agent's table grows.
    Growth,
    /// The next agent offers more: clients go over to other regions.
    Move,
    /// The broker is the second on this ledger.
    Return,
    /// See `broker_upgrade.rs`.
    Handing,
}

/// What brings it there, and at which passing it is killed.
fn cause(step: Step) -> (Cause, u64) {
    match step {
        Step::BrokerLetIn | Step::BrokerSealed | Step::BrokerServed => (Cause::Coming, 2),
        Step::BrokerPool => (Cause::Coming, 3),
        Step::LedgerRewritten => (Cause::Coming, 1),
        Step::BrokerAskedClose => (Cause::Upgrade, 1),
        // The first is the first agent's.
        Step::BrokerEpoch => (Cause::Upgrade, 2),
        Step::BrokerHanded => (Cause::Upgrade, 1),
        Step::BrokerLeft | Step::BrokerForgot => (Cause::Leave, 1),
        Step::BrokerPublished => (Cause::Growth, 1),
        Step::BrokerNext | Step::BrokerTold | Step::BrokerMoved => (Cause::Move, 1),
        Step::RejoinClient => (Cause::Return, 2),
        Step::RejoinAgent | Step::RejoinSettled => (Cause::Return, 1),
        // Each change of an agent's and two clients' coming: see below.
        Step::LedgerWriting | Step::LedgerWritten => (Cause::Coming, 0),
        Step::Handing | Step::Handed => (Cause::Handing, 0),
        other => panic!("{} is the broker's: say here what brings it there", other.name()),
    }
}

fn run(step: Step, nth: u64, cause: Cause) {
    let what = format!("{} {nth}", step.name());
    let plan = Plan { step, nth, action: Action::Kill };
    let mut stage = Stage::empty(PROGRAM, BROKER);
    // Those whose end nobody saw are given up by then.
    stage.daemon.grace = Duration::from_millis(2500);
    for pod in ["agent", "c-0", "c-1", "c-2", "c-3", "c-4", "c-5"] {
        stage.daemon.pod(pod);
    }
    if cause == Cause::Return {
        stage.daemon.restart();
    } else {
        stage.daemon.start_with(Some(plan));
    }
    stage.new_agent();
    stage.new_client();
    stage.new_client();
    if cause != Cause::Coming {
        stage.await_progress(&what);
    }
    let mut old = None;
    match cause {
        // How many changes it takes depends on how many messages come at once: more come until it is reached.
        Cause::Coming | Cause::Handing => {
            while stage.clients.len() < 6 && !stage.daemon.dies_within(Duration::from_secs(1)) {
                stage.new_client();
            }
        }
        Cause::Upgrade | Cause::Growth | Cause::Move => {
            old = stage.agent.take();
            match cause {
                Cause::Growth => stage.new_growing_agent(),
                Cause::Move => stage.new_larger_agent(),
                _ => stage.new_agent(),
            }
        }
        Cause::Leave => {
            ask_to_stop(&stage.noted(1));
            stage.clients[1].take().expect("it lives").await_end();
        }
        Cause::Return => {
            stage.daemon.kill();
            stage.daemon.start_with(Some(plan));
        }
    }
    stage.daemon.await_death();
    stage.daemon.restart();
    if let Some(old) = old {
        old.await_end();
    }
    stage.await_progress(&what);
    if cause == Cause::Upgrade {
        assert_eq!(stage.inherited(2), Some(1), "what the first agent left in order, {what}");
    }
    stage.books();
    stage.check();
}

#[test]
fn a_broker_killed_at_any_step_is_followed_by_one_that_goes_on() {
    let steps = Step::ALL.iter().filter(|s| matches!(s.side(), Side::Broker | Side::Ledger));
    for step in steps {
        let (cause, nth) = cause(*step);
        if nth > 0 {
            run(*step, nth, cause);
        }
    }
}

#[test]
fn a_broker_killed_at_any_change_of_its_ledger_is_followed_by_one_that_goes_on() {
    for step in [Step::LedgerWriting, Step::LedgerWritten] {
        for nth in 1..=14 {
            run(step, nth, Cause::Coming);
        }
    }
}
