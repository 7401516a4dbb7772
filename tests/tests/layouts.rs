//! Participants that speak different memory layouts in one domain: old and new, coming and going, under load.

use podshm::{Client, ErrorKind};
use podshm_broker::{DomainConfig, Limits};
use podshm_layout::{Layout, Layouts};
use podshm_proto::{Down, Hello, Nothing, RefusalKind, RegionIds, Service, Up};
use podshm_tests::many::{Log, Many, Sent, Using, services};
use podshm_tests::raw::{Raw, RawAgent, RawClient, hello};
use podshm_tests::{Node, PATIENCE};
use std::time::Duration;

const OLD: Layouts = only(Layout::V1);
const NEW: Layouts = Layouts::ALL;

const fn only(layout: Layout) -> Layouts {
    Layouts::only(layout)
}

fn agent(node: &Node, layouts: Layouts, version: u8, log: &Log) -> Many {
    Many::start(node.pod("agent"), services().layouts(layouts), version, log.clone())
}

fn join(node: &Node, pod: &str, layouts: Layouts) -> Client {
    Client::join_speaking(layouts, node.pod(pod), PATIENCE).unwrap()
}

/// The layouts that C, A and T of a newcomer are written at.
fn layouts_for(node: &Node, layouts: (u32, u32)) -> Vec<u32> {
    let client = RawClient::hello_as(node.pod("looker"), speaking(hello(false, Vec::new()), layouts));
    client.regions.iter().map(|(region, _)| region.layout).collect()
}

fn speaking(hello: Hello, (layout_oldest, layout_newest): (u32, u32)) -> Hello {
    Hello { layout_oldest, layout_newest, ..hello }
}

fn says(message: &str, words: &[&str]) {
    for word in words {
        assert!(message.contains(word), "{message:?} does not say {word:?}");
    }
}

#[test]
fn an_old_client_makes_the_domain_go_down_and_its_leaving_lets_it_go_up_again() {
    let node = Node::new(Limits::default());
    let log = Log::default();
    let first = agent(&node, NEW, 1, &log);
    let new = Using::start(join(&node, "new", NEW));
    assert_eq!(layouts_for(&node, (1, 2)), [2, 2, 2]);
    assert_eq!(node.broker.stats("d").unwrap().layout, 2);
    let old = join(&node, "old", OLD);
    let old = Using::start(old);
    assert_eq!(node.broker.stats("d").unwrap().layout, 1);
    // A new client that comes while the old one is there gets what all speak, and reads the table at 1.
    assert_eq!(layouts_for(&node, (1, 2)), [1, 1, 1]);
    std::thread::sleep(Duration::from_millis(100));
    log.check(&Sent { client: u64::MAX, queues: [0; 4], answers: 0, tolerant: false });
    let sent = old.stop();
    node.settle("the old one is gone", |s| s.clients.iter().all(|c| c.client != sent.client) && s.layout == 2);
    // C and A are each client's own and go up at once; what the table is written at changes with its next generation only.
    let up = layouts_for(&node, (1, 2));
    assert_eq!((up[0], up[2]), (2, 1));
    first.grow();
    node.settle("growth goes up", |_| layouts_for(&node, (1, 2)) == [2, 2, 2]);
    log.check(&sent);
    let sent = new.stop();
    assert!(sent.answers > 0);
    node.settle("all are gone", |s| s.clients.is_empty());
    log.check(&sent);
    first.stop();
}

#[test]
fn new_clients_work_with_an_old_agent_and_go_on_with_a_new_one() {
    let node = Node::new(Limits::default());
    let log = Log::default();
    let mut serving = agent(&node, OLD, 1, &log);
    assert_eq!(layouts_for(&node, (1, 2)), [1, 1, 1]);
    let users = [("a", NEW), ("b", NEW), ("c", OLD)].map(|(pod, layouts)| Using::start(join(&node, pod, layouts)));
    let [a, b, c] = users;
    let mut upgrade = |layouts, version| {
        let epoch = node.broker.stats("d").unwrap().epoch;
        let next = agent(&node, layouts, version, &log);
        node.settle("the next agent serves", |s| s.agent && s.epoch > epoch);
        std::mem::replace(&mut serving, next).join();
        std::thread::sleep(Duration::from_millis(50));
    };
    // While the old client is there everything stays at 1, whoever serves; a roll-back to the old agent is possible.
    for (layouts, version) in [(NEW, 2), (OLD, 3), (NEW, 4)] {
        upgrade(layouts, version);
        assert_eq!(layouts_for(&node, (1, 2)), [1, 1, 1]);
    }
    let sent = c.stop();
    node.settle("the old one is gone", |s| s.clients.iter().all(|c| c.client != sent.client));
    log.check(&sent);
    // The take-over goes up: each client's A and the table at 2, while their C's stay as they were made.
    upgrade(NEW, 5);
    assert_eq!(layouts_for(&node, (1, 2)), [2, 2, 2]);
    upgrade(NEW, 6);
    for sent in [a.stop(), b.stop()] {
        assert!(sent.answers > 0);
        node.settle("drained", |s| s.clients.iter().all(|c| c.client != sent.client));
        log.check(&sent);
    }
    serving.stop();
}

#[test]
fn old_clients_come_and_go_under_load() {
    let node = Node::new(Limits::default());
    let log = Log::default();
    let mut serving = agent(&node, NEW, 1, &log);
    let users: Vec<Using> = (0..3).map(|n| Using::start(join(&node, &format!("c{n}"), NEW))).collect();
    let mut all = Vec::new();
    for round in 0..12u8 {
        let old = Using::start(join(&node, "old", OLD));
        if round % 2 == 0 {
            serving.grow();
        }
        if round % 3 == 0 {
            let next = agent(&node, NEW, round + 2, &log);
            std::mem::replace(&mut serving, next).join();
        }
        std::thread::sleep(Duration::from_millis(20));
        all.push(old.stop());
    }
    all.extend(users.into_iter().map(Using::stop));
    node.settle("all are drained", |s| s.clients.is_empty());
    for sent in all {
        log.check(&sent);
    }
    serving.stop();
    node.settle("everything is free", |s| s.regions <= 1 && !s.agent);
}

/// An old client comes while a successor is ready and waits for its predecessor to close.
#[test]
fn an_old_client_that_comes_between_two_agents_is_served() {
    let config = DomainConfig { close_grace: Duration::from_secs(60), ..DomainConfig::new("d") };
    let node = Node::with(config);
    let log = Log::default();
    let mut first = RawAgent::start(node.pod("agent"), vec![table()]);
    let successor = RawAgent::ready(node.pod("agent"), vec![table()]);
    node.settle("the successor waits", |s| s.agent);
    let directory = node.pod("old");
    let joining = std::thread::spawn(move || Client::join_speaking(OLD, directory, PATIENCE).unwrap());
    // The serving agent closes without having written its table again: it is the successor's turn.
    while !first.asked_to_close {
        first.step();
    }
    first.raw.send(Up::Closed(podshm_proto::State { state: Vec::new() }));
    first.raw.send(Up::Bye(Nothing {}));
    let mut successor = successor;
    successor.rewrites = true;
    while !successor.serves {
        successor.step();
    }
    successor.next_client();
    let old = joining.join().unwrap();
    assert_eq!(old.table("t").unwrap().len().unwrap(), 0);
    drop((old, log));
}

#[test]
fn who_cannot_be_met_is_refused_by_name() {
    let node = Node::new(Limits::default());
    let log = Log::default();
    let refused = |hello: Hello, pod: &str| {
        let raw = Raw::connect(node.pod(pod));
        raw.send(Up::Hello(hello));
        raw.refused()
    };
    // Nobody but the broker.
    let no = refused(speaking(hello(false, Vec::new()), (3, 4)), "a");
    assert_eq!(no.kind(), RefusalKind::Version);
    says(&no.message, &["by hand of test/a", "layout 3 to 4", "this broker 1 to 2", "upgrade"]);
    let no = refused(speaking(hello(false, Vec::new()), (2, 1)), "a");
    says(&no.message, &["2 to 1 is no range"]);
    let no = refused(speaking(hello(true, vec![table()]), (3, 9)), "agent");
    assert_eq!(no.kind(), RefusalKind::Version);
    // Two of a domain.
    let serving = agent(&node, OLD, 1, &log);
    let no = refused(speaking(hello(false, Vec::new()), (2, 3)), "a");
    assert_eq!(no.kind(), RefusalKind::Version);
    says(&no.message, &["by hand of test/a", "2 to 3", "podshm", "of test/agent", "1 to 1", "upgrade"]);
    let error = Client::join_speaking(only(Layout::V2), node.pod("a"), PATIENCE).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Version, "{error}");
    serving.stop();
    let serving = agent(&node, NEW, 1, &log);
    let old = join(&node, "old", OLD);
    let error = services().layouts(only(Layout::V2)).connect(node.pod("agent"), PATIENCE).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Version, "{error}");
    says(&error.to_string(), &["test/agent", "2 to 2", "of test/old", "1 to 1"]);
    // Nobody has noticed.
    let mut sent = Sent { client: old.id(), queues: [0; 4], answers: 0, tolerant: false };
    podshm_tests::many::round(&old, &mut sent);
    drop(old);
    node.settle("drained", |s| s.clients.is_empty());
    log.check(&sent);
    serving.stop();
}

/// Layout 2 has room for fewer rings: a domain with more of them stays at layout 1.
#[test]
fn many_rings_keep_a_domain_at_the_layout_that_holds_them() {
    let queue = |n: usize| Service { name: format!("q{n}"), kind: 2, ring: 4096, longest: 64, ..Service::default() };
    let many: Vec<Service> = (0..40).map(queue).collect();
    let node = Node::new(Limits::default());
    let raw = Raw::connect(node.pod("agent"));
    raw.send(Up::Hello(speaking(hello(true, many.clone()), (2, 2))));
    let no = raw.refused();
    assert_eq!(no.kind(), RefusalKind::Version);
    says(&no.message, &["no memory layout older than 2", "more rings", "split the domain"]);
    let mut agent = RawAgent::start(node.pod("agent"), many);
    assert_eq!(layouts_for(&node, (1, 2)), [1, 1]);
    drop(agent.raw);
    agent.clients.clear();
}

/// An agent that does not write its table once more keeps the old client out, until the latter's deadline, and nobody else; it is
/// cut off in the end.
#[test]
fn an_agent_that_does_not_rewrite_keeps_out_only_who_needs_it() {
    let config = DomainConfig { map_deadline: Duration::from_millis(300), ..DomainConfig::new("d") };
    let node = Node::with(config);
    let mut agent = RawAgent::start(node.pod("agent"), vec![table()]);
    let old = Client::join_speaking(OLD, node.pod("old"), Duration::from_millis(100)).unwrap_err();
    assert_eq!(old.kind(), ErrorKind::Deadline, "{old}");
    let waits = Raw::connect(node.pod("old"));
    waits.send(Up::Hello(speaking(hello(false, Vec::new()), (1, 1))));
    // A new client is not held up by the one that waits before it.
    let directory = node.pod("new");
    let joining = std::thread::spawn(move || RawClient::join(directory));
    agent.next_client();
    let (new, _window) = joining.join().unwrap();
    assert_eq!(new.regions[2].0.layout, 2, "the table that stands");
    while let Some((message, _)) = agent.raw.receive() {
        if let Down::Refused(refused) = message {
            says(&refused.message, &["not written at the layout", "in time"]);
        }
    }
    node.settle("it is cut off", |s| !s.agent);
    // The next agent writes for both from the start.
    let mut next = RawAgent::start(node.pod("agent"), vec![table()]);
    assert!(next.writable.iter().all(|(region, _)| region.layout == 1));
    next.next_client();
    match waits.receive() {
        Some((Down::Welcome(welcome), _)) => assert!(welcome.regions.iter().all(|r| r.layout == 1)),
        other => panic!("{other:?}"),
    }
}

/// An agent may let go of the table that it was to write once more (it did not fit) and ask for a larger one, which comes at the
/// layout that is wanted.
#[test]
fn a_rewrite_that_does_not_fit_becomes_growth() {
    let node = Node::new(Limits::default());
    let mut agent = RawAgent::start(node.pod("agent"), vec![table()]);
    let waits = Raw::connect(node.pod("old"));
    waits.send(Up::Hello(speaking(hello(false, Vec::new()), (1, 1))));
    let asked = loop {
        agent.step();
        if let Some(rewrite) = agent.rewrite.take() {
            break rewrite;
        }
    };
    assert_eq!((asked.layout, asked.generation), (1, 2));
    agent.raw.send(Up::Grow(podshm_proto::Grow { service: 0, keys: 1000, bytes: 1 << 17 }));
    agent.raw.send(Up::Release(RegionIds { ids: vec![asked.id] }));
    let before = agent.writable.len();
    let larger = loop {
        agent.step();
        if let Some((region, _)) = agent.writable[before..].iter().find(|(r, _)| r.kind == 3) {
            break *region;
        }
    };
    assert_eq!(larger.layout, 1);
    assert!(larger.bytes > asked.bytes);
    while !agent.sealed.contains(&larger.id) {
        agent.step();
    }
    agent.raw.send(Up::Publish(podshm_proto::Publish { region: larger.id }));
    while !agent.writable.iter().any(|(r, _)| r.kind == 2 && r.layout == 1 && agent.sealed.contains(&r.id)) {
        agent.step();
    }
    match waits.receive() {
        Some((Down::Welcome(welcome), _)) => assert_eq!(welcome.regions[2].id, larger.id),
        other => panic!("{other:?}"),
    }
}

fn table() -> Service {
    Service { name: "t".into(), kind: 1, keys: 100, bytes: 65536, ..Service::default() }
}
