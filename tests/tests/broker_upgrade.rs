//! A broker that another one is started beside gives way: participants notice nothing, and what the old one alone held is not lost.

use podshm::Client;
use podshm::steps::{Action, Plan, Step};
use podshm_testkit::numbered;
use podshm_tests::PATIENCE;
use podshm_tests::deliveries::{self, Sent};
use podshm_tests::restarting::Stage;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use std::os::fd::OwnedFd;

const PROGRAM: &str = env!("CARGO_BIN_EXE_podshm-test-participant");
const BROKER: &str = env!("CARGO_BIN_EXE_podshm-test-broker");

#[test]
fn a_broker_gives_way_to_the_next_under_load() {
    let mut stage = Stage::new(PROGRAM, BROKER, 3);
    let before = stage.books();
    for _ in 0..3 {
        let (old, first) = stage.daemon.start_successor(None);
        assert_eq!(first, "ready");
        old.await_giving_way();
        assert_eq!(stage.books().books(), before.books());
        stage.await_progress("with the next broker");
    }
    // The old ones have left the sockets of the new one where they are.
    stage.goes_on_in_order();
}

#[test]
fn what_the_broker_alone_holds_goes_to_the_next() {
    let mut stage = Stage::new(PROGRAM, BROKER, 1);
    stage.agent.take().expect("an agent").kill();
    stage.daemon.settle("nobody serves", |s| !s.has_agent());
    // A client comes only where an agent serves, so this one came before: it fills its ring, and goes.
    stage.kill_client(0);
    stage.daemon.settle("nobody is there", |s| s.clients() == 1 && s.connected() == 0);
    let before = stage.daemon.stats();
    let (old, first) = stage.daemon.start_successor(None);
    assert_eq!(first, "ready");
    old.await_giving_way();
    let after = stage.daemon.settle("the next one knows", |s| s.number("expected") == 0);
    assert_eq!(after.books(), before.books());
    stage.new_agent();
    stage.daemon.settle("all is drained", |s| s.clients() == 0);
    // Everything that it had accepted was delivered, although client, agent and old broker are gone.
    stage.check();
}

#[test]
fn an_old_broker_that_is_stopped_or_dies_in_the_midst_holds_nothing_up() {
    let mut stage = Stage::new(PROGRAM, BROKER, 2);
    let before = stage.books();
    stage.daemon.signal(libc::SIGSTOP);
    let (old, first) = stage.daemon.start_successor(None);
    assert_eq!(first, "ready");
    old.await_kill();
    assert_eq!(stage.books().books(), before.books());
    for step in [Step::Handing, Step::Handed] {
        stage.daemon.kill();
        let plan = Plan { step, nth: 1, action: Action::Kill };
        assert_eq!(stage.daemon.start_with(Some(plan)), "ready");
        assert_eq!(stage.books().books(), before.books());
        let (old, first) = stage.daemon.start_successor(None);
        assert_eq!(first, "ready", "{}", step.name());
        old.await_kill();
        assert_eq!(stage.books().books(), before.books(), "{}", step.name());
        stage.await_progress(step.name());
    }
    let tally = stage.check();
    assert_eq!(tally.repeated, 0, "{tally:?}");
}

fn at_the_door(stage: &Stage) -> OwnedFd {
    let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
    let path = stage.daemon.root().join(".broker/handover.sock");
    connect(&socket, &SocketAddrUnix::new(path).unwrap()).unwrap();
    socket
}

#[test]
fn a_new_broker_that_dies_in_the_midst_changes_nothing() {
    let mut stage = Stage::new(PROGRAM, BROKER, 2);
    let before = stage.books();
    drop(at_the_door(&stage));
    assert_eq!(stage.books().books(), before.books());
    // One that takes nothing, and one that takes everything and never says so.
    let (silent, mut buffer) = (at_the_door(&stage), vec![0; 4096]);
    while podshm_region::descriptors::receive(&silent, &mut buffer).expect("it passes everything on").0 > 1 {}
    assert_eq!(stage.books().books(), before.books());
    drop(silent);
    assert!(stage.daemon.is_alive());
    // One that dies when it has everything: the same as a crash.
    let plan = Plan { step: Step::LedgerRewritten, nth: 1, action: Action::Kill };
    let (old, first) = stage.daemon.start_successor(Some(plan));
    assert_eq!(first, "");
    old.await_giving_way();
    stage.daemon.await_death();
    stage.daemon.restart();
    assert_eq!(stage.books().books(), before.books());
    stage.await_progress("after all");
    let tally = stage.check();
    assert_eq!(tally.repeated, 0, "{tally:?}");
}

#[test]
fn two_brokers_never_serve_at_once() {
    let mut stage = Stage::new(PROGRAM, BROKER, 1);
    let before = stage.books();
    // Each is started beside the one before, which has hardly begun.
    let mut all = Vec::new();
    for _ in 0..4 {
        let (old, first) = stage.daemon.start_successor(None);
        assert_eq!(first, "ready");
        all.push(old);
    }
    all.into_iter().for_each(|old| old.await_giving_way());
    assert_eq!(stage.books().books(), before.books());
    // A client finds the one that serves.
    let directory = stage.daemon.pod("late");
    let client = Client::join(&directory, PATIENCE).unwrap();
    let record = numbered::encode(77, 0, 64);
    client.queue("reports").unwrap().push(&record, PATIENCE).unwrap();
    drop(client);
    stage.daemon.settle("the late one is drained", |s| s.clients() == 1);
    let late: Vec<_> = deliveries::read_so_far(&stage.deliveries()).into_iter().filter(|l| l.sender == 77).collect();
    deliveries::check(&late, &[Sent { sender: 77, accepted: 1, ..Sent::default() }]);
}
