//! A broker that is slow to come back: the time that participants have does not begin before they have somewhere to come to.

use podshm::Client;
use podshm_broker::{Broker, BrokerConfig, DomainConfig};
use podshm_tests::many::{Log, Many, services};
use podshm_tests::{PATIENCE, add_pod, until};
use std::path::Path;

fn start(root: &Path) -> Broker {
    let state = Some(root.join(".broker"));
    Broker::start_with(BrokerConfig { state, rejoin_grace: BrokerConfig::LEAST_GRACE }).unwrap()
}

#[test]
fn the_grace_begins_with_a_participants_domain_and_socket() {
    let root = std::env::temp_dir().join(format!("podshm-slow-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&root);
    std::fs::create_dir_all(&root).unwrap();
    let stats = |broker: &Broker, domain: &str| broker.stats(domain).unwrap();
    let first = start(&root);
    let pods = [("d", ["agent-d", "c-d"]), ("e", ["agent-e", "c-e"])];
    let mut there = Vec::new();
    for (domain, [agent, client]) in pods {
        first.add_domain(DomainConfig::new(domain)).unwrap();
        add_pod(&first, domain, &root, agent);
        add_pod(&first, domain, &root, client);
        let agent = Many::start(root.join(agent), services(), 1, Log::default());
        there.push((agent, Client::join(root.join(client), PATIENCE).unwrap()));
        until("it serves", || stats(&first, domain).agent && stats(&first, domain).clients.len() == 1);
    }
    drop(first);

    let second = start(&root);
    for (domain, [agent, client]) in pods {
        // Each time within the grace, all of them together several times over it.
        let pause = BrokerConfig::LEAST_GRACE.mul_f32(0.7);
        second.add_domain(DomainConfig::new(domain)).unwrap();
        for pod in [agent, client] {
            std::thread::sleep(pause);
            add_pod(&second, domain, &root, pod);
        }
        std::thread::sleep(pause);
    }
    for (domain, _) in pods {
        until("everybody is back", || stats(&second, domain).expected == 0);
        let now = stats(&second, domain);
        assert!(now.agent && now.clients.len() == 1 && now.clients[0].connected, "{domain}: {now:?}");
        assert_eq!((now.epoch, now.refused, now.unclaimed), (1, 0, 0), "{domain}: {now:?}");
    }
    for (agent, client) in there {
        drop(client);
        agent.stop();
    }
    drop(second);
    let _ = std::fs::remove_dir_all(&root);
}
