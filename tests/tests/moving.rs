//! Clients that go over to their region's next generation: because a successor offers more services, or because it speaks an older
//! memory layout than theirs is written at.

use podshm::{AgentBuilder, Client, ErrorKind};
use podshm_broker::{DomainConfig, Limits};
use podshm_layout::geometry::MOVED;
use podshm_layout::mem::Load;
use podshm_layout::{Layout, Layouts};
use podshm_proto::{Down, RefusalKind, RegionIds, Service, Up};
use podshm_region::{Memory, WriteMap};
use podshm_tests::many::{Log, Many, QUEUES, Sent, Using, round, services, services_behind};
use podshm_tests::raw::{Random, Raw, RawClient, hello, poke};
use podshm_tests::{Node, PATIENCE, patient};
use std::time::{Duration, Instant};

const OLD: Layouts = Layouts::only(Layout::V1);

fn start(node: &Node, builder: AgentBuilder, version: u8, log: &Log) -> Many {
    Many::start(node.pod("agent"), builder, version, log.clone())
}

/// The next agent, once it serves; the one before has ended in order.
fn upgrade(node: &Node, serving: &mut Many, builder: AgentBuilder, version: u8, log: &Log) {
    let epoch = node.broker.stats("d").unwrap().epoch;
    let next = start(node, builder, version, log);
    node.settle("the next agent serves", |s| s.agent && s.epoch > epoch);
    std::mem::replace(serving, next).join();
}

/// The usual services with `more` queues `e0`, `e1` and so on, in between and in another order.
fn larger(more: usize) -> AgentBuilder {
    let extra = (0..more).rev().fold(podshm::Agent::builder(), |b, n| b.queue(&format!("e{n}"), 8192, 64));
    services_behind(extra.call("more", 8192, 4000).table("second", 100, 65536))
}

/// With room for regions of many services.
fn roomy() -> Node {
    let limits = Limits { budget: 1 << 30, member_share: 512 << 20, ..Limits::default() };
    Node::with(DomainConfig { limits, ..patient() })
}

fn join(node: &Node, pod: &str) -> Client {
    Client::join(node.pod(pod), PATIENCE).unwrap()
}

/// A handle to a service that is on its way.
fn soon<T>(what: &str, handle: impl Fn() -> Result<T, podshm::Error>) -> T {
    let until = Instant::now() + PATIENCE;
    loop {
        match handle() {
            Ok(handle) => return handle,
            Err(e) => assert!(e.kind() == ErrorKind::NoService && Instant::now() < until, "{what}: {e}"),
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_successor_that_offers_more_takes_over_under_load() {
    let node = Node::with(patient());
    let log = Log::default();
    let mut serving = start(&node, services(), 1, &log);
    let clients: Vec<Client> = (0..3).map(|n| join(&node, &format!("c{n}"))).collect();
    let users: Vec<Using> = clients.iter().cloned().map(Using::start).collect();
    assert_eq!(clients[0].queue("e0").unwrap_err().kind(), ErrorKind::NoService);
    std::thread::sleep(Duration::from_millis(30));
    upgrade(&node, &mut serving, larger(1), 2, &log);
    for (n, client) in clients.iter().enumerate() {
        let extra = soon("e0", || client.queue("e0"));
        for number in 0..500u64 {
            extra.push(&number.to_le_bytes(), PATIENCE).unwrap();
        }
        let mut answer = [0; 100];
        let len = client.call("more").unwrap().call(&[n as u8; 8], &mut answer, PATIENCE).unwrap();
        assert_eq!(&answer[..len], [b"more".as_slice(), &[n as u8; 8]].concat());
        assert_eq!(client.table("second").unwrap().len().unwrap(), 0);
    }
    // A newcomer has everything from the start; and once more, by one that offers yet more.
    let newcomer = join(&node, "new");
    newcomer.queue("e0").unwrap().push(&0u64.to_le_bytes(), PATIENCE).unwrap();
    upgrade(&node, &mut serving, larger(3), 3, &log);
    for client in clients.iter().chain([&newcomer]) {
        for name in ["e1", "e2"] {
            soon(name, || client.queue(name)).push(&0u64.to_le_bytes(), PATIENCE).unwrap();
        }
    }
    upgrade(&node, &mut serving, larger(3), 4, &log);
    std::thread::sleep(Duration::from_millis(30));
    let ids: Vec<u64> = clients.iter().map(Client::id).collect();
    let sent: Vec<Sent> = users.into_iter().map(Using::stop).collect();
    drop((clients, newcomer));
    node.settle("all are drained", |s| s.clients.is_empty());
    for sent in &sent {
        assert!(sent.answers > 10);
        log.check(sent);
    }
    let came = log.came();
    for id in ids {
        let numbers: Vec<u64> = came[&(id, "e0".to_owned())].iter().map(|(number, _)| *number).collect();
        assert_eq!(numbers, (0..500).collect::<Vec<_>>());
        assert_eq!(came[&(id, "e2".to_owned())], [(0, false)]);
    }
    serving.stop();
    node.settle("everything is free but both tables", |s| s.regions == 2 && !s.agent);
}

/// Agents that crash while their clients go over, or just before, or just after.
#[test]
fn agents_that_crash_while_clients_go_over_lose_nothing() {
    let node = roomy();
    let log = Log::default();
    let mut random = Random(0x1234_5678_9abc_def1);
    let mut serving = start(&node, services(), 1, &log);
    let clients: Vec<Client> = (0..2).map(|n| join(&node, &format!("c{n}"))).collect();
    let users: Vec<Using> = clients.iter().cloned().map(Using::start_tolerant).collect();
    for more in 1..16 {
        let epoch = node.broker.stats("d").unwrap().epoch;
        let next = if more % 2 == 0 {
            serving.crash();
            start(&node, larger(more), more as u8, &log)
        } else {
            let next = start(&node, larger(more), more as u8, &log);
            serving.join();
            next
        };
        node.settle("the next agent serves", |s| s.agent && s.epoch > epoch);
        std::thread::sleep(Duration::from_micros(random.below(8_000)));
        serving = next;
    }
    let last = "e14";
    for client in &clients {
        soon(last, || client.queue(last)).push(&7u64.to_le_bytes(), PATIENCE).unwrap();
    }
    let sent: Vec<Sent> = users.into_iter().map(Using::stop).collect();
    drop(clients);
    node.settle("all are drained", |s| s.clients.is_empty());
    for sent in &sent {
        log.check_marked(sent);
        assert!(log.came()[&(sent.client, last.to_owned())].iter().all(|(number, _)| *number == 7));
    }
    serving.stop();
    node.settle("everything is free but both tables", |s| s.regions == 2 && !s.agent);
}

/// Clients that leave at any moment of their going over: all that they had pushed is delivered.
#[test]
fn clients_that_leave_while_they_go_over_lose_nothing() {
    let node = roomy();
    let log = Log::default();
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let mut serving = start(&node, services(), 1, &log);
    let mut all = Vec::new();
    for more in 1..16 {
        let using: Vec<Using> = (0..3).map(|n| Using::start(join(&node, &format!("c{n}")))).collect();
        let epoch = node.broker.stats("d").unwrap().epoch;
        let next = start(&node, larger(more), more as u8, &log);
        node.settle("the next agent serves", |s| s.agent && s.epoch > epoch);
        std::mem::replace(&mut serving, next).join();
        std::thread::sleep(Duration::from_micros(random.below(5_000)));
        all.extend(using.into_iter().map(Using::stop));
    }
    node.settle("all are drained", |s| s.clients.is_empty());
    for sent in &all {
        log.check(sent);
    }
    serving.stop();
    node.settle("everything is free but both tables", |s| s.regions == 2 && !s.agent);
}

#[test]
fn more_services_are_refused_before_a_page_is_touched_where_the_books_do_not_permit() {
    let (node, log) = (
        Node::with(DomainConfig { limits: Limits { budget: 4 << 20, ..Limits::default() }, ..patient() }),
        Log::default(),
    );
    let serving = start(&node, services(), 1, &log);
    let client = join(&node, "c");
    let mut sent = Sent { client: client.id(), queues: [0; QUEUES], answers: 0, tolerant: false };
    round(&client, &mut sent);
    let before = node.broker.stats("d").unwrap();
    let huge = || services_behind(podshm::Agent::builder().queue("huge", 4 << 20, 64));
    let table = || services_behind(podshm::Agent::builder().table("huge", 1000, 8 << 20));
    for (builder, words) in [
        (huge(), ["larger regions for the clients", "raise the domain's budget"]),
        (table(), ["the domain's tables", "raise the domain's budget"]),
    ] {
        let error = builder.connect(node.pod("agent"), PATIENCE).unwrap_err();
        assert!(words.iter().all(|word| error.to_string().contains(word)), "{error}");
        node.settle("nothing has changed", |s| {
            (s.reserved, s.regions, s.region_bytes) == (before.reserved, before.regions, before.region_bytes)
        });
    }
    // One that fits and goes away before it serves gives everything back.
    let fits = services_behind(podshm::Agent::builder().queue("fits", 8192, 64));
    let waiting = fits.connect(node.pod("agent"), PATIENCE).unwrap();
    assert!(node.broker.stats("d").unwrap().reserved > before.reserved);
    drop(waiting);
    node.settle("it is as if it had not come", |s| (s.reserved, s.regions) == (before.reserved, before.regions));
    round(&client, &mut sent);
    assert_eq!(client.queue("fits").unwrap_err().kind(), ErrorKind::NoService);
    drop(client);
    node.settle("drained", |s| s.clients.is_empty());
    log.check(&sent);
    serving.stop();
}

/// Both C's of a client are in the books while it goes over, and one afterwards: as if it had joined a domain of that size.
#[test]
fn what_a_client_took_to_go_over_is_given_back() {
    let reserved = |agents: &[usize]| {
        let (node, log) = (Node::with(patient()), Log::default());
        let mut serving = start(&node, services(), 1, &log);
        let client = if agents.len() > 1 { Some(join(&node, "c")) } else { None };
        for more in agents {
            upgrade(&node, &mut serving, larger(*more), 2, &log);
        }
        let client = client.unwrap_or_else(|| join(&node, "c"));
        drop(soon("e2", || client.queue("e2")));
        // One of C, one of A, up to four in the pool, two tables.
        node.settle("what is left behind is let go", |s| s.regions <= 8);
        let reserved = node.broker.stats("d").unwrap().reserved;
        drop(client);
        serving.stop();
        reserved
    };
    assert_eq!(reserved(&[1, 2, 3]), reserved(&[3]));
}

/// More calls than the layout of the clients' regions has cursor lines for: they go over to the older layout, which has, before the agent
/// comes that offers them.
#[test]
fn more_rings_than_a_layout_holds_come_at_an_older_one() {
    let (node, log) = (Node::with(patient()), Log::default());
    let mut serving = start(&node, services(), 1, &log);
    let client = join(&node, "c");
    let users: Vec<Using> = (0..2).map(|n| Using::start(join(&node, &format!("u{n}")))).collect();
    assert_eq!(node.broker.stats("d").unwrap().layout, 2);
    let many = || (0..31).fold(podshm::Agent::builder(), |b, n| b.call(&format!("x{n}"), 4096, 64));
    upgrade(&node, &mut serving, services_behind(many()), 2, &log);
    assert_eq!(node.broker.stats("d").unwrap().layout, 1);
    let mut answer = [0; 64];
    let last = soon("x30", || client.call("x30"));
    let len = last.call(b"?", &mut answer, PATIENCE).unwrap();
    assert_eq!(&answer[..len], b"x30?");
    drop((last, client));
    let sent: Vec<Sent> = users.into_iter().map(Using::stop).collect();
    node.settle("all are drained", |s| s.clients.is_empty());
    sent.iter().for_each(|sent| log.check(sent));
    serving.stop();
}

/// Clients by hand: one says that it has gone over and has marked nothing, the other marks everything, has copied nothing, and writes
/// what no ring holds. Each loses what is its own.
#[test]
fn clients_that_lie_about_going_over_harm_themselves_alone() {
    let (node, log) = (Node::with(patient()), Log::default());
    let mut serving = start(&node, services(), 1, &log);
    let honest = Using::start(join(&node, "honest"));
    let liars = ["silent", "mad"].map(|pod| RawClient::join(node.pod(pod)));
    upgrade(&node, &mut serving, larger(1), 2, &log);
    for ((liar, own), marks) in liars.iter().zip([0, u64::MAX]) {
        let (next, fds) = loop {
            match liar.raw.receive() {
                Some((Down::Next(next), fds)) => break (next, fds),
                Some(_) => {}
                None => panic!("the broker hung up"),
            }
        };
        let ids = RegionIds { ids: vec![next.region.id] };
        let memory = Memory::from_fd(fds.into_iter().next().unwrap()).unwrap();
        let garbage = WriteMap::map(&memory).unwrap().window(0, next.region.bytes as usize);
        liar.raw.send(Up::Mapped(ids.clone()));
        loop {
            match liar.raw.receive() {
                Some((Down::Sealed(sealed), _)) if sealed == ids => break,
                Some(_) => {}
                None => panic!("the broker hung up"),
            }
        }
        for offset in (podshm_layout::PAGE..garbage.size()).step_by(8) {
            poke(&garbage, offset, marks);
        }
        poke(own, MOVED, marks);
        liar.raw.send(Up::Moved(ids));
    }
    let no = liars[0].0.raw.refused();
    assert!(no.kind() == RefusalKind::Protocol && no.message.contains("with its mark"), "{no:?}");
    node.settle("who lied to the broker is gone", |s| s.clients.len() == 2);
    upgrade(&node, &mut serving, larger(2), 3, &log);
    let sent = honest.stop();
    drop(liars);
    node.settle("all are drained", |s| s.clients.is_empty());
    log.check(&sent);
    serving.stop();
}

#[test]
fn services_that_go_or_change_are_refused_by_name() {
    let (node, log) = (Node::with(patient()), Log::default());
    let serving = start(&node, services(), 1, &log);
    let refused = |services: Vec<Service>| {
        let raw = Raw::connect(node.pod("agent"));
        raw.send(Up::Hello(hello(true, services)));
        raw.refused()
    };
    let queue = |name: &str, ring: u32| Service { name: name.into(), kind: 2, ring, longest: 64, ..Service::default() };
    let routes = Service { name: "routes".into(), kind: 1, keys: 100, bytes: 64 * 1024, ..Service::default() };
    let no = refused(vec![routes.clone(), queue("q0", 4096), queue("other", 4096)]);
    assert_eq!(no.kind(), RefusalKind::Services);
    for word in ["\"q1\"", "not offered", "use another domain"] {
        assert!(no.message.contains(word), "{no:?}");
    }
    let no = refused(vec![routes, queue("q0", 8192), queue("q1", 4096)]);
    assert_eq!(no.kind(), RefusalKind::Services);
    for word in ["\"q0\"", "ring of 8192 bytes", "joined with a queue with a ring of 4096 bytes"] {
        assert!(no.message.contains(word), "{no:?}");
    }
    serving.stop();
}

/// A roll-back to a release that does not read what the clients have by now: they go over to the older layout first.
#[test]
fn a_roll_back_to_an_older_layout_loses_and_repeats_nothing() {
    let (node, log) = (Node::with(patient()), Log::default());
    let mut serving = start(&node, services(), 1, &log);
    let users: Vec<Using> = (0..3).map(|n| Using::start(join(&node, &format!("c{n}")))).collect();
    assert_eq!(node.broker.stats("d").unwrap().layout, 2);
    for (version, builder, layout) in [
        (2, services().layouts(OLD), 1),
        (3, services(), 2),
        (4, services().layouts(OLD), 1),
        (5, larger(1).layouts(OLD), 1),
        (6, larger(2), 2),
    ] {
        std::thread::sleep(Duration::from_millis(20));
        upgrade(&node, &mut serving, builder, version, &log);
        assert_eq!(node.broker.stats("d").unwrap().layout, layout);
    }
    let sent: Vec<Sent> = users.into_iter().map(Using::stop).collect();
    node.settle("all are drained", |s| s.clients.is_empty());
    for sent in &sent {
        assert!(sent.answers > 10);
        log.check(sent);
    }
    serving.stop();
    node.settle("everything is free but both tables", |s| s.regions == 2 && !s.agent);
}

/// The same after a crash: no agent serves while the clients go over.
#[test]
fn a_roll_back_after_a_crash_loses_nothing() {
    let (node, log) = (Node::with(patient()), Log::default());
    let mut serving = start(&node, services(), 1, &log);
    let users: Vec<Using> = (0..3).map(|n| Using::start_tolerant(join(&node, &format!("c{n}")))).collect();
    for version in 2..8 {
        std::thread::sleep(Duration::from_millis(20));
        let epoch = node.broker.stats("d").unwrap().epoch;
        serving.crash();
        let builder = if version % 2 == 0 { services().layouts(OLD) } else { services() };
        serving = start(&node, builder, version, &log);
        node.settle("the next agent serves", |s| s.agent && s.epoch > epoch);
    }
    let sent: Vec<Sent> = users.into_iter().map(Using::stop).collect();
    node.settle("all are drained", |s| s.clients.is_empty());
    for sent in &sent {
        log.check_marked(sent);
    }
    serving.stop();
}

/// What a dead client has left at a layout that only the newer agent reads waits for that one.
#[test]
fn what_a_dead_client_left_waits_for_an_agent_that_reads_it() {
    let node = Node::with(patient());
    let log = Log::default();
    let serving = start(&node, services(), 1, &log);
    let client = join(&node, "c");
    let mut sent = Sent { client: client.id(), queues: [0; QUEUES], answers: 0, tolerant: true };
    round(&client, &mut sent);
    serving.crash();
    node.settle("no agent serves", |s| !s.agent);
    for queue in 0..QUEUES {
        client.queue(&format!("q{queue}")).unwrap().push(&1u64.to_le_bytes(), PATIENCE).unwrap();
        sent.queues[queue] += 1;
    }
    drop(client);
    node.settle("it is gone", |s| s.clients.iter().all(|c| !c.connected));
    let old = start(&node, services().layouts(OLD), 2, &log);
    node.settle("the older agent serves", |s| s.agent);
    let other = join(&node, "other");
    let mut others = Sent { client: other.id(), queues: [0; QUEUES], answers: 0, tolerant: false };
    round(&other, &mut others);
    assert_eq!(node.broker.stats("d").unwrap().clients.len(), 2, "what it left is kept");
    let mut serving = old;
    // Another one that does not read it does not wait for it: nobody who serves drains it.
    upgrade(&node, &mut serving, services().layouts(OLD), 3, &log);
    assert_eq!(node.broker.stats("d").unwrap().clients.len(), 2, "what it left is kept");
    upgrade(&node, &mut serving, services(), 4, &log);
    drop(other);
    node.settle("all are drained", |s| s.clients.is_empty() && s.discarded == 0);
    log.check_marked(&sent);
    log.check(&others);
    serving.stop();
}
