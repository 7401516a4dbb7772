//! A successor serves while most of its predecessor's clients are still to be given to it: who dies in between is drained all the same.

use podshm::steps::{Action, Plan, Step};
use podshm_tests::restarting::Stage;
use podshm_tests::until;
use std::time::Duration;

const PROGRAM: &str = env!("CARGO_BIN_EXE_podshm-test-participant");
const BROKER: &str = env!("CARGO_BIN_EXE_podshm-test-broker");
/// More than an agent has answer regions in spare.
const CLIENTS: u32 = 10;

#[test]
fn who_dies_before_the_successor_gets_him_is_drained() {
    let mut stopped = 0;
    for nth in 1..=4 {
        let mut stage = Stage::new(PROGRAM, BROKER, CLIENTS);
        let first = stage.agent.take().expect("an agent");
        first.signal(libc::SIGSTOP);
        let has_more = |stage: &Stage, n: u32| stage.accepted(n) > stage.delivered_of(n) as u64 + 20;
        until("the rings fill", || (0..CLIENTS).all(|n| has_more(&stage, n)));
        first.kill();
        let mut successor = stage.agent_that(Some(Plan { step: Step::JoinMapped, nth, action: Action::Stop }));
        successor.await_stop();
        // Where it is stopped while it connects, nobody serves; where it maps what it needs for all, it has some.
        let serves = stage.daemon.stats().has_agent();
        stopped += u32::from(serves);
        (0..CLIENTS).for_each(|n| stage.kill_client(n));
        stage.daemon.settle("the broker has heard of it", |s| s.connected() == 0);
        std::thread::sleep(Duration::from_millis(50));
        successor.signal(libc::SIGCONT);
        stage.agent = Some(successor);
        stage.check();
        if serves {
            break;
        }
    }
    assert!(stopped > 0, "no successor was stopped with clients to come");
}
