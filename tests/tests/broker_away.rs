//! A broker that is gone: those who are joined go on.

use podshm::{Agent, Client, Handler, Record};
use podshm_broker::Limits;
use podshm_tests::{Node, PATIENCE};
use std::time::{Duration, Instant};

/// Counts records, and ends the broker with the first.
struct Count(usize, Option<Node>);

impl Handler for Count {
    fn record(&mut self, _record: Record<'_>) {
        self.0 += 1;
        self.1 = None;
    }
}

#[test]
fn an_agent_that_has_something_to_tell_a_broker_that_is_gone_goes_on() {
    let node = Node::new(Limits::default());
    let mut agent = Agent::builder().queue("reports", 4096, 64).connect(node.pod("agent"), PATIENCE).unwrap();
    agent.ready().unwrap();
    let mut count = Count(0, None);
    let serve_until = |agent: &mut Agent, count: &mut Count, what: &str, good: &dyn Fn(&Agent, usize) -> bool| {
        let until = Instant::now() + PATIENCE;
        while !good(agent, count.0) {
            assert!(Instant::now() < until, "{what} did not happen");
            agent.poll(count).unwrap();
            agent.wait(Duration::from_millis(5)).unwrap();
        }
    };
    serve_until(&mut agent, &mut count, "the take-over", &|agent, _| agent.epoch() == 1);
    let client = Client::join(node.pod("a"), PATIENCE).unwrap();
    serve_until(&mut agent, &mut count, "the client's coming", &|agent, _| agent.clients() == 1);
    let other = Client::join(node.pod("b"), PATIENCE).unwrap();
    serve_until(&mut agent, &mut count, "the other client's coming", &|agent, _| agent.clients() == 2);
    client.queue("reports").unwrap().push(b"last words", PATIENCE).unwrap();
    drop(client);
    node.settle("the client's end", |stats| stats.clients.iter().any(|client| !client.connected));
    // The agent hears that its client is gone, handles its record, and has nobody to say to that it is drained.
    count.1 = Some(node);
    serve_until(&mut agent, &mut count, "the drain", &|agent, count| count == 1 && agent.clients() == 1);
    other.queue("reports").unwrap().push(b"we go on", PATIENCE).unwrap();
    serve_until(&mut agent, &mut count, "the other client's record", &|_, count| count == 2);
    agent.close(Vec::new()).unwrap();
}
