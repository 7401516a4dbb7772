//! The previous release beside today's: each one's clients, agents and broker with the other's, and each once with a memory layout
//! that really differs. The order in which a fleet is upgraded is in docs/upgrading.md; none of the orders here may lose anything.

use podshm_tests::previous::Release::{Previous, Today};
use podshm_tests::previous::{Release, Skew};

const TODAY: &str = env!("CARGO_BIN_EXE_podshm-test-participant");
/// As it is, and as if the previous release knew no memory layout but the first.
const LAYOUTS: [bool; 2] = [false, true];

#[test]
fn the_previous_releases_client_works_with_todays_agent_and_broker() {
    for layout_1 in LAYOUTS {
        let mut skew = Skew::new(TODAY, Today);
        let agent = skew.agent(Today, false, 1);
        // One of today's before it, so that the domain has to go down for an old layout.
        skew.client(Today, false, 0);
        skew.await_progress("alone", 1);
        skew.settle("the newest layout", |s| s.layout == 2);
        skew.client(Previous, layout_1, 1);
        skew.await_progress("beside today's", 1);
        skew.settle("its layout", |s| s.layout == if layout_1 { 1 } else { 2 });
        skew.end_clients();
        skew.check_each_once();
        agent.kill();
    }
}

#[test]
fn todays_client_works_with_the_previous_agent_and_broker() {
    for layout_1 in LAYOUTS {
        let mut skew = Skew::new(TODAY, Previous);
        let agent = skew.agent(Previous, layout_1, 1);
        skew.client(Today, false, 0);
        skew.client(Previous, layout_1, 1);
        skew.await_progress("at first", 1);
        skew.end_clients();
        skew.check_each_once();
        agent.kill();
    }
}

/// Upgrades and roll-backs of the agent, graceful, with clients of both releases at work.
fn agents_hand_over(broker: Release, layout_1: bool) {
    let mut skew = Skew::new(TODAY, broker);
    let mut agent = skew.agent(Previous, layout_1, 1);
    // No client speaks the first layout only: what is written then depends on the agent alone.
    skew.client(Previous, false, 0);
    skew.client(Today, false, 1);
    skew.await_progress("before the upgrade", 1);
    for (index, who) in [(2, Today), (3, Previous), (4, Today), (5, Previous)] {
        let next = skew.agent(who, layout_1 && who == Previous, index);
        agent.await_end();
        agent = next;
        skew.await_progress("after a hand-over", index);
        let layout = if layout_1 && who == Previous { 1 } else { 2 };
        skew.settle("the layout of who serves", |s| s.layout == layout);
        if index == 2 {
            // Their regions are at today's layout, so that a roll-back has them go over.
            skew.client(Today, false, 2);
            skew.client(Previous, false, 3);
            skew.await_progress("beside newcomers", index);
        }
    }
    skew.end_clients();
    skew.check_each_once();
    agent.kill();
}

#[test]
fn agents_of_both_releases_hand_over_to_each_other() {
    for layout_1 in LAYOUTS {
        agents_hand_over(Today, layout_1);
    }
}

#[test]
fn agents_of_both_releases_hand_over_to_each_other_at_the_previous_broker() {
    for layout_1 in LAYOUTS {
        agents_hand_over(Previous, layout_1);
    }
}

/// The broker of one release ends and the other's takes its place: channels that are open go on without a gap in their numbers, and
/// newcomers of both releases are let in. (Release 0.1.0 does not come back to a broker that restarts.)
fn brokers_follow(first: Release, second: Release, layout_1: bool) {
    let mut skew = Skew::new(TODAY, first);
    let agent = skew.agent(Previous, layout_1, 1);
    skew.client(Previous, false, 0);
    skew.client(Today, false, 1);
    skew.await_progress("before the broker ends", 1);
    skew.end_broker();
    skew.await_progress("without a broker", 1);
    skew.start_broker(second);
    skew.await_progress("beside the second broker", 1);
    skew.end_clients();
    agent.kill();
    let agent = skew.agent(Today, false, 2);
    skew.client(Today, false, 2);
    skew.client(Previous, layout_1, 3);
    skew.await_progress("at the second broker", 2);
    skew.end_clients();
    skew.check_each_once();
    agent.kill();
}

#[test]
fn todays_broker_takes_the_place_of_the_previous_one() {
    for layout_1 in LAYOUTS {
        brokers_follow(Previous, Today, layout_1);
    }
}

#[test]
fn the_previous_broker_takes_the_place_of_todays() {
    for layout_1 in LAYOUTS {
        brokers_follow(Today, Previous, layout_1);
    }
}
