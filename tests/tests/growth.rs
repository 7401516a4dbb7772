//! An agent that asks for larger tables again and again.

use podshm_broker::Limits;
use podshm_proto::{Down, Grow, Publish, RefusalKind, RegionIds, Service, Up};
use podshm_tests::Node;
use podshm_tests::raw::RawAgent;

/// One that lets no old generation go is refused before the domain's memory passes its budget.
#[test]
fn an_agent_that_keeps_every_table_gets_no_more_of_them() {
    let limits = Limits { budget: 1 << 20, ..Limits::default() };
    let node = Node::new(limits);
    let table = Service { name: "t".into(), kind: 1, keys: 10, bytes: 1000, ..Service::default() };
    let agent = RawAgent::start(node.pod("agent"), vec![table]);
    let refused = (0..100).find_map(|_| {
        agent.raw.send(Up::Grow(Grow { service: 0, keys: 10, bytes: 1000 }));
        loop {
            match agent.raw.receive().expect("the broker goes on").0 {
                Down::Write(regions) => {
                    let id = regions.regions[0].id;
                    agent.raw.send(Up::Mapped(RegionIds { ids: vec![id] }));
                    agent.raw.send(Up::Publish(Publish { region: id }));
                }
                Down::Sealed(_) => return None,
                Down::Refused(refused) => return Some(refused),
                _ => {}
            }
        }
    });
    let refused = refused.expect("a hundred generations that nobody lets go are too many");
    assert_eq!(refused.kind, RefusalKind::OverLimit as i32);
    assert!(refused.message.contains("holds 4 generations of its tables: expected at most 4"), "{}", refused.message);
    let stats = node.broker.stats("d").unwrap();
    assert!(stats.region_bytes <= limits.budget, "{stats:?}");
    // It lets the old ones go, and may grow again.
    agent.raw.send(Up::Release(RegionIds { ids: agent.writable.iter().map(|(region, _)| region.id).collect() }));
    agent.raw.send(Up::Grow(Grow { service: 0, keys: 10, bytes: 1000 }));
    while !matches!(agent.raw.receive().expect("the broker goes on").0, Down::Write(_)) {}
}
