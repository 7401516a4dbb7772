//! Every subset of client, agent and broker killed together, in every order: what SEMANTICS.md promises for it, cell by cell.

use podshm_tests::restarting::Stage;
use std::time::Duration;

const PROGRAM: &str = env!("CARGO_BIN_EXE_podshm-test-participant");
const BROKER: &str = env!("CARGO_BIN_EXE_podshm-test-broker");

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Party {
    Client,
    Agent,
    Broker,
}
use Party::{Agent, Broker, Client};

/// What is promised where exactly these are killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Promise {
    /// Everything that was accepted arrives, once.
    Once,
    /// Everything that was accepted arrives; what was in the agent's hand may come twice, marked.
    AtLeastOnce,
    /// What the killed client had queued is lost; everybody else's arrives as above. Its memory is free again.
    LosesTheDead,
}

fn promise(killed: &[Party]) -> Promise {
    let is = |party| killed.contains(&party);
    match (is(Client), is(Agent), is(Broker)) {
        (_, false, _) => Promise::Once,
        (false, true, _) | (true, true, false) => Promise::AtLeastOnce,
        (true, true, true) => Promise::LosesTheDead,
    }
}

/// Kills them in this order, at once; brings back agent and broker; and checks.
fn cell(killed: &[Party]) {
    let mut stage = Stage::new(PROGRAM, BROKER, 3);
    stage.daemon.grace = Duration::from_millis(2500);
    stage.books();
    let is = |party| killed.contains(&party);
    for party in killed {
        match party {
            Client => stage.kill_client(1),
            Agent => stage.agent.take().expect("an agent").kill(),
            Broker => stage.daemon.kill(),
        }
    }
    let clients = if is(Client) { 2 } else { 3 };
    if is(Agent) {
        stage.new_agent();
    }
    if is(Broker) {
        stage.daemon.restart();
    }
    let what = format!("{killed:?}");
    stage.daemon.settle(&what, |s| s.has_agent() && s.connected() == clients && s.clients() == clients);
    stage.await_progress(&what);
    stage.books();
    match promise(killed) {
        Promise::Once => assert_eq!(stage.check().repeated, 0, "{what}"),
        Promise::AtLeastOnce => drop(stage.check()),
        Promise::LosesTheDead => drop(stage.check_but(Some(1))),
    }
}

fn orders(of: &[Party]) -> Vec<Vec<Party>> {
    if of.is_empty() {
        return vec![Vec::new()];
    }
    let mut all = Vec::new();
    for first in of {
        let rest: Vec<Party> = of.iter().copied().filter(|party| party != first).collect();
        all.extend(orders(&rest).into_iter().map(|order| [&[*first], &order[..]].concat()));
    }
    all
}

fn every_order(of: &[Party]) {
    orders(of).iter().for_each(|order| cell(order));
}

#[test]
fn nobody_is_killed() {
    every_order(&[]);
}

#[test]
fn one_is_killed() {
    [[Client], [Agent], [Broker]].iter().for_each(|one| every_order(one));
}

#[test]
fn client_and_agent_are_killed() {
    every_order(&[Client, Agent]);
}

#[test]
fn client_and_broker_are_killed() {
    every_order(&[Client, Broker]);
}

#[test]
fn agent_and_broker_are_killed() {
    every_order(&[Agent, Broker]);
}

#[test]
fn all_three_are_killed() {
    every_order(&[Client, Agent, Broker]);
}
