//! The hand-shake, attacked by members that are written by hand.

use podshm::{Agent, Client};
use podshm_broker::{DomainConfig, Limits};
use podshm_proto::{Down, Nothing, RefusalKind, RegionIds, Service, Up};
use podshm_region::{Memory, ReadMap};
use podshm_tests::raw::{Raw, RawClient, hello};
use podshm_tests::serving::Serving;
use podshm_tests::{Node, PATIENCE};
use rustix::fs::{FallocateFlags, SealFlags, fallocate, fcntl_add_seals, fstat};
use std::time::Duration;

/// An honest client's lookup, report and call.
fn works(client: &Client) {
    let mut buffer = [0; 256];
    assert_eq!(client.table("routes").unwrap().get(b"key", &mut buffer).unwrap(), Some(200));
    client.queue("reports").unwrap().push(b"report", PATIENCE).unwrap();
    assert_eq!(client.call("decide").unwrap().call(b"abc", &mut buffer, PATIENCE).unwrap(), 3);
    assert_eq!(&buffer[..3], b"cba");
}

fn says(message: &str, words: &[&str]) {
    for word in words {
        assert!(message.contains(word), "{message:?} does not say {word:?}");
    }
}

#[test]
fn holes_punched_before_the_seal_are_filled_again() {
    let node = Node::new(Limits::default());
    let agent = Serving::start(node.pod("agent"));
    let client = RawClient::hello(node.pod("a"));
    let (region, fd) = &client.regions[0];
    let keep = podshm_region::WriteMap::map(&client.memory()).unwrap();
    // All but the header: what an agent does about a header that is wiped is tested in lying_regions.rs.
    fallocate(fd, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, 4096, region.bytes - 4096).unwrap();
    assert_eq!(fstat(fd).unwrap().st_blocks, 8, "the holes are there before the seal");
    client.mapped();
    assert!(matches!(client.raw.receive(), Some((Down::Sealed(_), _))));
    assert!(fstat(fd).unwrap().st_blocks as u64 >= region.bytes / 512, "every block is back");
    assert!(fallocate(fd, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, 0, region.bytes).is_err());
    ReadMap::map(&client.memory(), region.bytes).unwrap();
    drop(keep);
    works(&Client::join(node.pod("b"), PATIENCE).unwrap());
    agent.stop();
}

#[test]
fn a_writer_that_seals_first_is_refused() {
    let node = Node::new(Limits::default());
    let agent = Serving::start(node.pod("agent"));
    let honest = Client::join(node.pod("b"), PATIENCE).unwrap();
    let seals = [
        SealFlags::FUTURE_WRITE | SealFlags::SEAL,
        SealFlags::SEAL,
        SealFlags::WRITE,
        SealFlags::WRITE | SealFlags::SEAL,
    ];
    for seals in seals {
        let client = RawClient::hello(node.pod("a"));
        fcntl_add_seals(&client.regions[0].1, seals).unwrap();
        client.mapped();
        let refused = client.raw.refused();
        assert_eq!(refused.kind(), RefusalKind::Region, "{refused:?}");
        node.settle("the liar's client is gone", |s| s.clients.len() == 1);
    }
    works(&honest);
    agent.stop();
}

#[test]
fn whoever_never_acknowledges_is_freed() {
    let node = Node::with(DomainConfig { map_deadline: Duration::from_millis(100), ..DomainConfig::new("d") });
    let agent = Serving::start(node.pod("agent"));
    let honest = Client::join(node.pod("b"), PATIENCE).unwrap();
    let before = node.broker.stats("d").unwrap();
    let client = RawClient::hello(node.pod("a"));
    says(&client.raw.refused().message, &["mapped in time"]);
    node.settle("the client is gone", |s| s.clients.len() == 1 && s.reserved == before.reserved);
    works(&honest);
    agent.stop();
}

/// A member that joins and leaves before the seal must not make the broker's memory grow.
#[test]
fn joins_that_are_broken_off_leave_nothing_behind() {
    let node = Node::new(Limits::default());
    let agent = Serving::start(node.pod("agent"));
    let honest = Client::join(node.pod("b"), PATIENCE).unwrap();
    let before = node.broker.stats("d").unwrap();
    for _ in 0..40 {
        drop(RawClient::hello(node.pod("a")));
    }
    node.settle("the clients are gone", |s| s.clients.len() == 1 && s.reserved == before.reserved);
    // The pool of answer regions may be fuller or emptier than before, by less than its size.
    node.settle("nothing is left behind", |s| s.regions <= before.regions + 6);
    works(&honest);
    agent.stop();
}

#[test]
fn a_second_acknowledgement_is_refused() {
    let node = Node::new(Limits::default());
    let agent = Serving::start(node.pod("agent"));
    let (client, _window) = RawClient::join(node.pod("a"));
    client.mapped();
    let refused = client.raw.refused();
    assert_eq!(refused.kind(), RefusalKind::Protocol);
    says(&refused.message, &["expected region", "once"]);
    let client = RawClient::hello(node.pod("a"));
    client.raw.send(Up::Mapped(RegionIds { ids: vec![client.regions[1].0.id] }));
    says(&client.raw.refused().message, &["expected region"]);
    works(&Client::join(node.pod("b"), PATIENCE).unwrap());
    agent.stop();
}

#[test]
fn garbage_is_refused_by_name_and_nobody_else_notices() {
    let node = Node::new(Limits::default());
    let agent = Serving::start(node.pod("agent"));
    let honest = Client::join(node.pod("b"), PATIENCE).unwrap();
    let mut random = podshm_tests::raw::Random(0x1234_5678_9abc_def1);
    let unknown = vec![0x7a, 0]; // field 15, empty
    let mut messages = vec![unknown, vec![0xff; 100], vec![0x0a, 0xff, 0xff, 0xff, 0xff, 0x0f]];
    messages.extend((0..50).map(|n| (0..1 + n * 37).map(|_| random.word() as u8).collect()));
    let mut unreadable = 0;
    for message in messages {
        let raw = Raw::connect(node.pod("a"));
        raw.bytes(&message);
        let refused = raw.refused();
        assert_eq!(refused.kind(), RefusalKind::Protocol, "{refused:?}");
        unreadable += usize::from(refused.message.contains("is not one of protocol 3"));
    }
    assert!(unreadable >= 40, "{unreadable}");
    // Once more after joining.
    let (client, _window) = RawClient::join(node.pod("a"));
    client.raw.bytes(&[0xff; 9]);
    says(&client.raw.refused().message, &["9 bytes", "protocol 3", "newer release"]);
    works(&honest);
    agent.stop();
}

#[test]
fn wrong_versions_are_told_which_ones_are_right() {
    let node = Node::new(Limits::default());
    let agent = Serving::start(node.pod("agent"));
    let before = node.broker.stats("d").unwrap().regions;
    let cases = [((4, 9), (1, 1), "protocol 4 to 9", "1 to 3"), ((1, 1), (7, 8), "layout 7 to 8", "1 to 2")];
    for (protocol, layout, word, ours) in cases {
        let raw = Raw::connect(node.pod("a"));
        raw.send(Up::Hello(podshm_proto::Hello {
            protocol_oldest: protocol.0,
            protocol_newest: protocol.1,
            layout_oldest: layout.0,
            layout_newest: layout.1,
            ..hello(false, Vec::new())
        }));
        let refused = raw.refused();
        assert_eq!(refused.kind(), RefusalKind::Version);
        says(&refused.message, &["by hand", word, ours, "upgrade"]);
    }
    // A newer one that still speaks ours works.
    let raw = Raw::connect(node.pod("a"));
    raw.send(Up::Hello(podshm_proto::Hello { protocol_newest: 9, layout_newest: 9, ..hello(false, Vec::new()) }));
    match raw.receive() {
        Some((Down::Welcome(welcome), _)) => assert_eq!((welcome.protocol, welcome.layout), (3, 2)),
        other => panic!("{other:?}"),
    }
    drop(raw);
    node.settle("the client is gone", |s| s.clients.is_empty());
    assert!(node.broker.stats("d").unwrap().regions <= before + 5);
    agent.stop();
}

#[test]
fn messages_out_of_turn_are_refused() {
    let node = Node::new(Limits::default());
    let agent = Serving::start(node.pod("agent"));
    let honest = Client::join(node.pod("b"), PATIENCE).unwrap();
    let first = Raw::connect(node.pod("a"));
    first.send(Up::Mapped(RegionIds { ids: vec![1] }));
    says(&first.refused().message, &["first message must be a hello"]);
    let twice = RawClient::hello(node.pod("a"));
    twice.raw.send(Up::Hello(hello(false, Vec::new())));
    says(&twice.raw.refused().message, &["second hello", "another connection"]);
    let server = Raw::connect(node.pod("a"));
    let service = Service { name: "x".into(), kind: 2, ring: 4096, longest: 10, ..Service::default() };
    server.send(Up::Hello(hello(true, vec![service])));
    let refused = server.refused();
    assert_eq!(refused.kind(), RefusalKind::NotAllowed);
    says(&refused.message, &["test/a", "may not serve domain d", "agents"]);
    let joiner = Raw::connect(node.pod("agent"));
    joiner.send(Up::Hello(hello(false, Vec::new())));
    assert_eq!(joiner.refused().kind(), RefusalKind::NotAllowed);
    let of_agents = [
        Up::Ready(Nothing {}),
        Up::Grow(podshm_proto::Grow { service: 0, keys: 10, bytes: 10 }),
        Up::Publish(podshm_proto::Publish { region: 1 }),
        Up::Closed(podshm_proto::State { state: Vec::new() }),
        Up::Drained(podshm_proto::ClientId { client: honest.id() }),
    ];
    for message in of_agents {
        let (client, _window) = RawClient::join(node.pod("a"));
        client.raw.send(message);
        let refused = client.raw.refused();
        assert_eq!(refused.kind(), RefusalKind::Protocol);
        says(&refused.message, &["may send now"]);
    }
    // Regions that were never its own can't be released by it.
    let (client, _window) = RawClient::join(node.pod("a"));
    client.raw.send(Up::Release(RegionIds { ids: (0..100).collect() }));
    works(&honest);
    agent.stop();
}

#[test]
fn limits_refuse_before_any_page_is_touched() {
    let limits = |change: &dyn Fn(&mut Limits)| {
        let mut limits = Limits::default();
        change(&mut limits);
        limits
    };
    let cases = [
        ("share", limits(&|l| l.member_share = 250_000), vec!["needs", "118784 bytes", "of 250000 left", "share"], 0),
        ("clients", limits(&|l| l.clients = 1), vec!["1 clients", "raise its client limit"], 0),
        ("processes", limits(&|l| l.member_clients = 1), vec!["test/a", "1 processes", "raise the per-member"], 0),
        ("budget", limits(&|l| l.budget = 1_300_000), vec!["needs", "of 1300000 left", "raise the domain's budget"], 0),
    ];
    let mut failed = Vec::new();
    for (name, limits, words, skip) in cases {
        let node = Node::new(limits);
        let agent = Serving::start(node.pod("agent"));
        let mut joined = Vec::new();
        let refused = loop {
            let raw = Raw::connect(node.pod("a"));
            raw.send(Up::Hello(hello(false, Vec::new())));
            match raw.receive() {
                Some((Down::Welcome(_), _)) => joined.push(raw),
                Some((Down::Refused(refused), _)) => break refused,
                other => panic!("{other:?}"),
            }
            assert!(joined.len() < 60, "{name}: nothing refuses");
        };
        assert_eq!(refused.kind(), RefusalKind::OverLimit, "{name}");
        says(&refused.message, &words[skip..]);
        // Let the pool settle, then be refused again and again.
        std::thread::sleep(Duration::from_millis(200));
        let before = node.broker.stats("d").unwrap();
        for _ in 0..20 {
            let raw = Raw::connect(node.pod("a"));
            raw.send(Up::Hello(hello(false, Vec::new())));
            assert_eq!(raw.refused().kind(), RefusalKind::OverLimit, "{name}");
        }
        std::thread::sleep(Duration::from_millis(100));
        let after = node.broker.stats("d").unwrap();
        if (after.regions, after.region_bytes, after.reserved) != (before.regions, before.region_bytes, before.reserved)
        {
            failed.push(format!("{name}: {} regions before 20 refusals, {} after", before.regions, after.regions));
        }
        drop(joined);
        node.settle("all are gone", |s| s.clients.is_empty());
        works(&Client::join(node.pod("a"), PATIENCE).unwrap());
        agent.stop();
    }
    assert!(failed.is_empty(), "{failed:#?}");
}

#[test]
fn tables_over_the_budget_are_refused() {
    let node = Node::new(Limits { budget: 1 << 20, ..Limits::default() });
    let before = node.broker.stats("d").unwrap();
    let refused = Agent::builder().table("routes", 10_000, 4 << 20).connect(node.pod("agent"), PATIENCE).unwrap_err();
    says(&refused.to_string(), &["the domain's tables", "of 1048576 left", "raise the domain's budget"]);
    let after = node.broker.stats("d").unwrap();
    assert_eq!((after.regions, after.reserved), (before.regions, before.reserved));
}

/// A table that is grown again and again without being published stays within the budget.
#[test]
fn growth_without_publishing_stays_within_the_budget() {
    let node = Node::new(Limits { budget: 16 << 20, ..Limits::default() });
    let services = vec![Service { name: "t".into(), kind: 1, keys: 100, bytes: 65536, ..Service::default() }];
    let agent = podshm_tests::raw::RawAgent::start(node.pod("agent"), services);
    for _ in 0..100 {
        let before = agent.writable.len();
        agent.raw.send(Up::Grow(podshm_proto::Grow { service: 0, keys: 1000, bytes: 1 << 20 }));
        loop {
            match agent.raw.receive() {
                Some((Down::Write(regions), _)) => {
                    agent.raw.send(Up::Mapped(RegionIds { ids: regions.regions.iter().map(|r| r.id).collect() }));
                    break;
                }
                Some((Down::Refused(_), _)) | None => break,
                Some(_) => {}
            }
        }
        assert_eq!(agent.writable.len(), before);
        let stats = node.broker.stats("d").unwrap();
        assert!(stats.region_bytes <= 16 << 20, "{} bytes are alive in a budget of 16 MiB", stats.region_bytes);
    }
}

/// Memory from elsewhere in place of a region.
#[test]
fn a_region_from_elsewhere_is_refused_by_its_reader() {
    let memory = Memory::create("elsewhere", 8192).unwrap();
    assert!(ReadMap::map(&memory, 8192).is_err(), "not sealed");
    let keep = podshm_region::WriteMap::map(&memory).unwrap();
    memory.seal().unwrap();
    ReadMap::map(&memory, 8192).unwrap();
    for wrong in [0, 4096, 8191, 8193, 12288] {
        let error = ReadMap::map(&memory, wrong).unwrap_err().to_string();
        says(&error, &["size", "expected"]);
    }
    drop(keep);
}

/// Who asks and never reads is cut off; the broker does not keep answers for it for ever.
#[test]
fn a_participant_that_never_reads_is_cut_off() {
    let node = Node::new(Limits::default());
    let services = vec![Service { name: "t".into(), kind: 1, keys: 100, bytes: 65536, ..Service::default() }];
    let agent = podshm_tests::raw::RawAgent::start(node.pod("agent"), services);
    let (mut sent, mut full) = (0, 0);
    while sent < 40_000 && full < 1000 {
        if agent.raw.try_send(Up::Grow(podshm_proto::Grow { service: 7, keys: 10, bytes: 10 })) {
            (sent, full) = (sent + 1, 0);
        } else {
            full += 1;
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    assert!(sent > 16 * 1024, "{sent} messages don't fill what the broker keeps");
    node.settle("it is cut off", |s| !s.agent);
}
