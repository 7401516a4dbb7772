//! A broker that is killed and started anew is no event: those who are joined go on, come back by themselves, and the books are as before.

use podshm::steps::{Action, Plan, Step};
use podshm_tests::restarting::Stage;
use podshm_tests::{PATIENCE, until};
use std::time::{Duration, Instant};

const PROGRAM: &str = env!("CARGO_BIN_EXE_podshm-test-participant");
const BROKER: &str = env!("CARGO_BIN_EXE_podshm-test-broker");

#[test]
fn a_broker_that_is_killed_and_started_again_changes_nothing() {
    let mut stage = Stage::new(PROGRAM, BROKER, 3);
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
    stage.goes_on_in_order();
}

#[test]
fn joins_and_agents_wait_for_a_broker_that_is_away() {
    let mut stage = Stage::new(PROGRAM, BROKER, 1);
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
    let mut stage = Stage::new(PROGRAM, BROKER, 2);
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
    let mut stage = Stage::new(PROGRAM, BROKER, 2);
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
    let mut stage = Stage::new(PROGRAM, BROKER, 2);
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
    let mut stage = Stage::new(PROGRAM, BROKER, 3);
    stage.daemon.grace = Duration::from_secs(3);
    stage.books();
    stage.daemon.kill();
    stage.await_progress("without a broker");
    // What the second had queued dies with it: client, agent and broker together held it.
    stage.kill_client(1);
    stage.agent.take().expect("an agent").kill();
    stage.new_agent();
    stage.daemon.restart();
    stage
        .daemon
        .settle("the dead client's books are free", |s| s.clients() == 2 && s.connected() == 2 && s.has_agent());
    stage.await_progress("with the successor");
    stage.check_but(Some(1));
}

/// These clients are stopped while agents change: more than a client is sent that lets none go, each of which serves and handles nothing. The
/// last one drains them, and dies with the broker. The next starts from what the clients have, and marks whatever may have been handled.
fn sleep_through_agents(mut stage: Stage, clients: &[u32]) {
    let signal = |stage: &Stage, signal| clients.iter().for_each(|sender| stage.signal_client(*sender, signal));
    signal(&stage, libc::SIGSTOP);
    let accepted: Vec<u64> = clients.iter().map(|sender| stage.accepted(*sender)).collect();
    for _ in 0..5 {
        stage.agent_that(Some(Plan { step: Step::DrainPeeked, nth: 1, action: Action::Kill })).await_death();
    }
    stage.new_agent();
    let all = clients.iter().zip(accepted);
    until("they are drained", || all.clone().all(|(sender, accepted)| stage.delivered_of(*sender) as u64 >= accepted));
    stage.daemon.kill();
    stage.agent.take().expect("an agent").kill();
    stage.daemon.restart();
    signal(&stage, libc::SIGCONT);
    stage.new_agent();
    stage.await_progress("with the next one");
    let tally = stage.check();
    assert!(tally.repeated > 0, "what was handled comes again, marked: {tally:?}");
}

fn fill_ring(stage: &Stage, sender: u32) {
    until("its ring fills", || stage.accepted(sender) > stage.delivered_of(sender) as u64 + 20);
}

/// It has the regions of the agent before those that it slept through.
#[test]
fn a_client_that_slept_through_an_agent_that_dies_with_the_broker_goes_on() {
    let mut stage = Stage::new(PROGRAM, BROKER, 2);
    stage.daemon.grace = Duration::from_secs(2);
    stage.books();
    stage.agent.take().expect("an agent").kill();
    fill_ring(&stage, 1);
    sleep_through_agents(stage, &[1]);
}

/// They have the regions of an agent that died before it began on them, which don't say where to go on from: they say so themselves.
#[test]
fn a_client_whose_last_agent_never_began_goes_on_after_agent_and_broker() {
    let mut stage = Stage::new(PROGRAM, BROKER, 2);
    stage.daemon.grace = Duration::from_secs(2);
    stage.books();
    let first = stage.agent.take().expect("an agent");
    first.signal(libc::SIGSTOP);
    (0..2).for_each(|sender| fill_ring(&stage, sender));
    first.kill();
    stage.agent_that(Some(Plan { step: Step::HandoverStarting, nth: 1, action: Action::Kill })).await_death();
    // Time to get its regions.
    std::thread::sleep(Duration::from_millis(300));
    sleep_through_agents(stage, &[0, 1]);
}

/// Agent and successor are back before the clients are, which the agent says are there: nobody takes over before they had the time to come.
#[test]
fn clients_that_come_back_after_their_agents_are_not_given_up() {
    let mut stage = Stage::new(PROGRAM, BROKER, 2);
    stage.books();
    let signal = |stage: &Stage, signal| (0..2).for_each(|sender| stage.signal_client(sender, signal));
    stage.daemon.kill();
    signal(&stage, libc::SIGSTOP);
    stage.daemon.restart();
    let old = stage.agent.take().expect("an agent");
    stage.new_agent();
    std::thread::sleep(Duration::from_millis(700));
    signal(&stage, libc::SIGCONT);
    old.await_end();
    stage.await_progress("with the successor");
    let tally = stage.check();
    assert_eq!(tally.repeated, 0, "{tally:?}");
}

/// The broker is stopped for longer than its participants have: that time is not taken from them.
#[test]
fn the_grace_does_not_run_while_the_broker_does_not() {
    let mut stage = Stage::new(PROGRAM, BROKER, 2);
    stage.daemon.grace = Duration::from_secs(2);
    stage.books();
    let signal = |stage: &Stage, signal| (0..2).for_each(|sender| stage.signal_client(sender, signal));
    stage.daemon.kill();
    stage.agent.take().expect("an agent").kill();
    signal(&stage, libc::SIGSTOP);
    stage.daemon.restart();
    stage.daemon.signal(libc::SIGSTOP);
    std::thread::sleep(Duration::from_secs(5));
    stage.daemon.signal(libc::SIGCONT);
    std::thread::sleep(Duration::from_millis(500));
    signal(&stage, libc::SIGCONT);
    stage.new_agent();
    stage.await_progress("with the successor");
    assert_eq!(stage.books().number("unclaimed"), 0);
    stage.check();
}

/// A domain at its budget: what is expected back is charged until it is back or given up, so nobody else gets its place.
#[test]
fn a_domain_at_its_budget_stays_within_it() {
    let mut stage = Stage::new(PROGRAM, BROKER, 2);
    let full = stage.books();
    stage.daemon.kill();
    (stage.daemon.budget, stage.daemon.grace) = (full.number("reserved"), Duration::from_secs(3));
    stage.kill_client(1);
    stage.daemon.restart();
    let directory = stage.daemon.pod("one-more");
    let refused = podshm::Client::join(&directory, PATIENCE).expect_err("there is no room");
    assert_eq!(refused.kind(), podshm::ErrorKind::Refused);
    assert!(refused.to_string().contains("raise the domain's budget"), "{refused}");
    assert!(stage.daemon.stats().number("reserved") <= full.number("reserved"));
    stage.daemon.settle("the dead one's part is free", |s| s.clients() == 1);
    let joined = podshm::Client::join(&directory, PATIENCE).expect("its place is free");
    assert!(stage.daemon.stats().number("reserved") <= full.number("reserved"));
    drop(joined);
    stage.await_progress("with the one that lives");
    stage.check();
}

/// An agent that is stopped while its broker is replaced, and for so long that a successor serves: when it wakes up it finds out before it
/// handles anything, although no broker can write the notice page that it looks at. What was in its hand is marked.
#[test]
fn an_agent_that_slept_through_a_restart_does_no_harm() {
    let mut stage = Stage::new(PROGRAM, BROKER, 2);
    stage.daemon.grace = Duration::from_secs(2);
    stage.books();
    for turn in 0..3 {
        let slept = stage.agent.take().expect("an agent");
        if turn == 1 {
            // In its sleep, from which a signal wakes it before it hears that the broker has hung up.
            let signal = |signal| (0..2).for_each(|sender| stage.signal_client(sender, signal));
            signal(libc::SIGSTOP);
            std::thread::sleep(Duration::from_millis(200));
            slept.signal(libc::SIGSTOP);
            signal(libc::SIGCONT);
        } else {
            slept.signal(libc::SIGSTOP);
        }
        stage.daemon.kill();
        stage.daemon.restart();
        stage.new_agent();
        stage.await_progress("with the successor");
        if turn == 2 {
            // It finds the broker, and has no answer of it for a while.
            stage.daemon.signal(libc::SIGSTOP);
        }
        slept.signal(libc::SIGCONT);
        if turn == 2 {
            std::thread::sleep(Duration::from_millis(300));
            stage.daemon.signal(libc::SIGCONT);
        }
        slept.await_end();
    }
    stage.check();
}

#[test]
fn a_minute_without_a_broker_is_not_noticed_by_open_channels_and_joins_wait() {
    let mut stage = Stage::new(PROGRAM, BROKER, 2);
    let before = stage.books();
    stage.daemon.kill();
    let directory = stage.daemon.pod("late");
    let join = std::thread::spawn(move || podshm::Client::join(directory, Duration::from_secs(120)).map(drop));
    let gone = Instant::now();
    while gone.elapsed() < Duration::from_secs(60) {
        stage.await_progress("without a broker");
        std::thread::sleep(Duration::from_millis(500));
    }
    assert!(!join.is_finished(), "nobody is there to let it in");
    stage.daemon.restart();
    join.join().unwrap().expect("it joins once the broker is back");
    stage.daemon.settle("who joined meanwhile has left", |s| s.clients() == 2 && s.connected() == 2);
    let after = stage.books();
    assert_eq!(after.number("reserved"), before.number("reserved"));
    assert_eq!(after.number("discarded") + after.number("unclaimed"), 0, "{after:?}");
    stage.goes_on_in_order();
}
