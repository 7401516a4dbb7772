//! Clients that have nothing to say cost the agent nothing.

use podshm::{Agent, Client, Handler, Progress};
use podshm_broker::Limits;
use podshm_tests::{Node, PATIENCE};
use std::time::{Duration, Instant};

struct Nobody;
impl Handler for Nobody {}

fn serve_until(agent: &mut Agent, what: &str, good: impl Fn(&Agent) -> bool) {
    let until = Instant::now() + PATIENCE;
    while !good(agent) {
        assert!(Instant::now() < until, "{what} did not happen; {} clients are hot", agent.hot_clients());
        if agent.poll(&mut Nobody).unwrap() == Progress::Idle {
            agent.wait(Duration::from_millis(5)).unwrap();
        }
    }
}

#[test]
fn clients_that_join_and_send_nothing_are_not_polled() {
    let node = Node::new(Limits::default());
    let mut agent = Agent::builder().queue("reports", 4096, 64).connect(node.pod("agent"), PATIENCE).unwrap();
    agent.ready().unwrap();
    serve_until(&mut agent, "the take-over", |agent| agent.epoch() == 1);
    let mut clients = Vec::new();
    // The second comes to an agent that has slept since the first.
    for count in 1..=3 {
        clients.push(Client::join(node.pod("a"), PATIENCE).unwrap());
        serve_until(&mut agent, "the client's coming", |agent| agent.clients() == count);
        serve_until(&mut agent, "going to sleep", |agent| agent.hot_clients() == 0);
    }
    clients[1].queue("reports").unwrap().push(b"a word", PATIENCE).unwrap();
    serve_until(&mut agent, "waking up", |agent| agent.hot_clients() == 1);
    serve_until(&mut agent, "going to sleep again", |agent| agent.hot_clients() == 0);
}
