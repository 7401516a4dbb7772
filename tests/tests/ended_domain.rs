//! A domain ends when nobody has it, and not before.

use podshm::Client;
use podshm_broker::{BrokerError, DomainConfig};
use podshm_tests::serving::Serving;
use podshm_tests::{Node, PATIENCE, until};
use std::time::Duration;

fn in_use(node: &Node) -> String {
    match node.broker.remove_domain("d") {
        Err(BrokerError::InUse { by, .. }) => by,
        other => panic!("{other:?}, expected that somebody has it"),
    }
}

#[test]
fn a_domain_ends_when_nobody_has_it_and_leaves_no_memory() {
    let node = Node::with(DomainConfig { drain_grace: Duration::from_secs(1), ..DomainConfig::new("d") });
    node.broker.add_domain(DomainConfig::new("other")).unwrap();
    let agent = Serving::start(node.pod("agent"));
    let client = Client::join(node.pod("a"), PATIENCE).unwrap();
    assert!(in_use(&node).contains("2 pods have a socket"));
    // The agent ends, and a record that nobody has taken stays with a client that goes.
    agent.stop();
    client.queue("reports").unwrap().push(b"report", PATIENCE).unwrap();
    drop(client);
    for pod in ["a", "agent"] {
        node.broker.remove_socket(&node.pod(pod)).unwrap();
    }
    assert!(in_use(&node).contains("1 clients are not drained"));
    assert!(node.broker.stats("d").unwrap().domain_bytes > 0);
    until("the record to be given up, and the domain to end", || node.broker.remove_domain("d").is_ok());

    assert!(matches!(node.broker.stats("d"), Err(BrokerError::NoDomain { .. })));
    assert!(matches!(node.broker.remove_domain("d"), Err(BrokerError::NoDomain { .. })));
    assert_eq!(node.broker.stats("other").unwrap().region_bytes, 0, "its tables went with it");
    node.broker.add_domain(DomainConfig::new("d")).unwrap();
    assert_eq!(node.broker.stats("d").unwrap().epoch, 0, "another one of that name");
}
