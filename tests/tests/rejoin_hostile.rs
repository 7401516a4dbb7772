//! What a participant of a broker that was started anew may not offer: everything that is not its own, exactly as the ledger has it.

use podshm_broker::Limits;
use podshm_proto::{Down, Nothing, Offer, Present, RefusalKind, Refused, RegionIds, Rejoin, Rejoined, Up, Use};
use podshm_region::{Memory, WriteMap};
use podshm_tests::daemon::Daemon;
use podshm_tests::participant::Participant;
use podshm_tests::raw::{Raw, RawClient, hello};
use podshm_tests::serving::Serving;
use podshm_tests::{Node, PATIENCE};
use rustix::fs::{MemfdFlags, Mode, OFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create, open};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

const PROGRAM: &str = env!("CARGO_BIN_EXE_podshm-test-participant");
const BROKER: &str = env!("CARGO_BIN_EXE_podshm-test-broker");

fn back(agent: bool, rejoin: Rejoin) -> Up {
    let services = if agent { podshm_tests::raw::services() } else { Vec::new() };
    Up::Hello(podshm_proto::Hello { rejoin: Some(rejoin), ..hello(agent, services) })
}

fn client(client: u64) -> Rejoin {
    Rejoin { client, epoch: 1, ..Rejoin::default() }
}

fn offer(id: u64, used: Use) -> Offer {
    Offer { id, used: used.into(), client: 0, hung_up: false }
}

fn own(id: u64, fd: &OwnedFd) -> (Offer, &OwnedFd) {
    (offer(id, Use::Own), fd)
}

/// Says who comes back, presents this, and that it is all.
fn present(directory: &Path, hello: Up, offers: &[(Offer, &OwnedFd)]) -> Raw {
    let raw = Raw::connect(directory);
    raw.send(hello);
    let (offers, fds): (Vec<Offer>, Vec<_>) = offers.iter().map(|(offer, fd)| (*offer, fd.as_fd())).unzip();
    // Whoever was refused by its hello is not listened to any more.
    let _ = raw.send_with(Up::Present(Present { offers }), &fds);
    let _ = raw.send_with(Up::Presented(Nothing {}), &[]);
    raw
}

fn expect(what: &str, refused: &Refused, kind: RefusalKind, words: &[&str]) {
    assert_eq!(refused.kind(), kind, "{what}: {refused:?}");
    for word in words {
        assert!(refused.message.contains(word), "{what}: {word:?} is not in {:?}", refused.message);
    }
}

fn welcomed_back(raw: &Raw) -> Rejoined {
    match raw.receive() {
        Some((Down::Rejoined(rejoined), fds)) if fds.len() == 1 => rejoined,
        other => panic!("{other:?}"),
    }
}

/// Memory as a broker makes it, sealed as a broker seals it, and not the broker's.
fn forged(bytes: u64) -> OwnedFd {
    let memory = Memory::create("forged", bytes).unwrap();
    memory.seal().unwrap();
    memory.into_fd()
}

/// Of the right size and seals, without its blocks.
fn sparse(bytes: u64) -> OwnedFd {
    let fd = memfd_create("sparse", MemfdFlags::ALLOW_SEALING | MemfdFlags::CLOEXEC).unwrap();
    ftruncate(&fd, bytes).unwrap();
    let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::FUTURE_WRITE | SealFlags::SEAL;
    fcntl_add_seals(&fd, seals).unwrap();
    fd
}

fn opened_again(fd: &OwnedFd, flags: OFlags) -> OwnedFd {
    open(format!("/proc/self/fd/{}", fd.as_raw_fd()), flags | OFlags::CLOEXEC, Mode::empty()).unwrap()
}

/// The offers by which a client comes back in order.
fn all_of(client: &RawClient) -> Vec<(Offer, &OwnedFd)> {
    let used = [Use::Own, Use::Answer].into_iter().chain(std::iter::repeat(Use::Table));
    client.regions.iter().zip(used).map(|((region, fd), used)| (offer(region.id, used), fd)).collect()
}

#[test]
fn nobody_gets_what_is_not_his() {
    let mut daemon = Daemon::start(BROKER);
    let log = daemon.root().join("deliveries");
    let agents =
        [daemon.pod("agent"), daemon.pod("agent-other")].map(|pod| Participant::agent(PROGRAM, &pod, &log, 1, None));
    let (pod_a, pod_b, pod_agent_2) = (daemon.pod("a"), daemon.pod("b"), daemon.pod("agent-2"));
    let (a, _of_a) = RawClient::join(&pod_a);
    let (b, _of_b) = RawClient::join(&pod_b);
    let (foreign, _of_foreign) = RawClient::join(daemon.pod("other-a"));
    // Never acknowledged: half joined.
    let half = RawClient::hello(&pod_b);
    let quiet = |s: &podshm_tests::daemon::Stats| s.connected() == 3;
    daemon.settle("everybody has joined", quiet);
    daemon.kill();
    daemon.restart();
    daemon.settle("the agent is back", |s| s.has_agent());

    let (id_a, id_b) = (a.welcome.client, b.welcome.client);
    let ([c, answer, table], [other_c, other_a, _]) = (regions_of(&a), regions_of(&b));
    let size = c.0.bytes;
    let mut refused = 0;
    let mut no = |what: &str, directory: &Path, hello: Up, offers: &[(Offer, &OwnedFd)], kind, words: &[&str]| {
        expect(what, &present(directory, hello, offers).refused(), kind, words);
        refused += 1;
    };
    use RefusalKind::{NotAllowed, Protocol, Region};
    let as_a = || back(false, client(id_a));

    no(
        "a client that is not there",
        &pod_a,
        back(false, client(999)),
        &[],
        NotAllowed,
        &["client 999", "not in the ledger", "expected one of test/a"],
    );
    no(
        "another member's client",
        &pod_b,
        as_a(),
        &all_of(&a),
        NotAllowed,
        &["another member's", "expected one of test/b"],
    );
    no(
        "a client that is half joined",
        &pod_b,
        back(false, client(half.welcome.client)),
        &all_of(&half),
        NotAllowed,
        &["not in the ledger"],
    );
    no("forged", &pod_a, as_a(), &[own(c.0.id, &forged(size))], Region, &["its inode", "expected"]);
    no("sparse", &pod_a, as_a(), &[own(c.0.id, &sparse(size))], Region, &["its allocated blocks", "expected"]);
    no("oversized", &pod_a, as_a(), &[own(c.0.id, &forged(2 * size))], Region, &["its size", "expected"]);
    no(
        "unsealed",
        &pod_a,
        as_a(),
        &[own(c.0.id, &Memory::create("unsealed", size).unwrap().into_fd())],
        Region,
        &["its set of seals", "expected"],
    );
    let (pipe, _end) = rustix::pipe::pipe().unwrap();
    no("no memory at all", &pod_a, as_a(), &[own(c.0.id, &pipe)], Region, &["F_GET_SEALS", "expected the memory"]);
    no(
        "a descriptor that can't be read",
        &pod_a,
        as_a(),
        &[own(c.0.id, &opened_again(c.1, OFlags::WRONLY))],
        Region,
        &["mmap"],
    );
    no(
        "a descriptor that is only a path",
        &pod_a,
        as_a(),
        &[own(c.0.id, &opened_again(c.1, OFlags::PATH))],
        Region,
        &["F_GET_SEALS"],
    );
    no(
        "another client's region",
        &pod_a,
        as_a(),
        &[(offer(other_c.0.id, Use::Own), other_c.1)],
        NotAllowed,
        &["another client's", "expected one of client"],
    );
    no(
        "another client's region as it holds it",
        &pod_a,
        as_a(),
        &[(offer(other_c.0.id, Use::Held), other_c.1)],
        NotAllowed,
        &["another client's"],
    );
    no(
        "another client's answers",
        &pod_a,
        as_a(),
        &[(offer(other_a.0.id, Use::Answer), other_a.1)],
        NotAllowed,
        &["answers another client"],
    );
    let abroad = regions_of(&foreign);
    for (region, fd) in abroad {
        no(
            "another domain's",
            &pod_a,
            as_a(),
            &[(offer(region.id, Use::Held), fd)],
            NotAllowed,
            &["another domain's", "in domain other", "of domain d"],
        );
    }
    no(
        "its own under another's number",
        &pod_b,
        back(false, client(id_b)),
        &[(offer(other_c.0.id, Use::Own), c.1)],
        Region,
        &["its inode"],
    );
    no(
        "one region twice",
        &pod_a,
        as_a(),
        &[own(c.0.id, c.1), own(c.0.id, c.1)],
        Region,
        &["presented before", "expected each region once"],
    );
    no(
        "more than there is",
        &pod_a,
        as_a(),
        &[(offer(1 << 40, Use::Held), c.1)],
        Region,
        &["not in the ledger (which goes up to"],
    );
    no(
        "answers as its own",
        &pod_a,
        as_a(),
        &[(offer(answer.0.id, Use::Own), answer.1)],
        NotAllowed,
        &["can't be used as Own"],
    );
    no(
        "a table as its own",
        &pod_a,
        as_a(),
        &[(offer(table.0.id, Use::Own), table.1)],
        NotAllowed,
        &["can't be used as Own"],
    );
    no(
        "answers for others",
        &pod_a,
        as_a(),
        &[(offer(answer.0.id, Use::Pool), answer.1)],
        NotAllowed,
        &["can't be used as Pool"],
    );
    no(
        "a table's next generation",
        &pod_a,
        as_a(),
        &[(offer(table.0.id, Use::NextTable), table.1)],
        NotAllowed,
        &["can't be used as NextTable"],
    );
    no(
        "without its region",
        &pod_a,
        as_a(),
        &[(offer(answer.0.id, Use::Answer), answer.1)],
        Region,
        &["is missing", "expected", "found None"],
    );
    no("a client as an agent", &pod_a, back(true, client(0)), &[], NotAllowed, &["may not serve"]);
    no("an agent as a client", &pod_agent_2, as_a(), &all_of(&a), NotAllowed, &["may not join"]);
    no(
        "an agent that another has followed",
        &pod_agent_2,
        back(true, Rejoin { epoch: 1, ..client(0) }),
        &[],
        RefusalKind::Superseded,
        &["epoch 1", "not expected back from test/agent-2"],
    );
    no(
        "an agent of times to come",
        &pod_agent_2,
        back(true, Rejoin { epoch: 99, ..client(0) }),
        &[],
        NotAllowed,
        &["epoch 99"],
    );
    no(
        "a successor without tables",
        &pod_agent_2,
        back(true, Rejoin { epoch: 0, ..client(0) }),
        &[],
        Region,
        &["table of service 0 is missing"],
    );
    no(
        "a successor with another's table",
        &pod_agent_2,
        back(true, Rejoin { epoch: 0, ..client(0) }),
        &[(offer(table.0.id, Use::Table), table.1)],
        NotAllowed,
        &["another pod writes it"],
    );
    let too_few = Raw::connect(&pod_a);
    too_few.send(as_a());
    let offers = vec![offer(c.0.id, Use::Own), offer(answer.0.id, Use::Answer)];
    too_few.send_with(Up::Present(Present { offers }), &[c.1.as_fd()]).unwrap();
    expect("too few descriptors", &too_few.refused(), Protocol, &["1 descriptors", "expected 2"]);
    let newcomer = Raw::connect(&pod_a);
    newcomer.send(Up::Present(Present { offers: Vec::new() }));
    expect("presenting without a hello", &newcomer.refused(), Protocol, &["first message must be a hello"]);
    refused += 2;

    // All that changed nothing: those whose it is come back, and what was never sealed is told to them as gone.
    let half_c = half.regions[0].0.id;
    let offers: Vec<_> = all_of(&a).into_iter().chain([(offer(half_c, Use::Held), &half.regions[0].1)]).collect();
    let is_back = present(&pod_a, as_a(), &offers);
    assert_eq!(welcomed_back(&is_back), Rejoined { protocol: podshm_proto::PROTOCOL, epoch: 1, dropped: vec![half_c] });
    let also = present(&pod_b, back(false, client(id_b)), &all_of(&b));
    assert_eq!(welcomed_back(&also).dropped, []);
    let twice = present(&pod_a, as_a(), &all_of(&a)).refused();
    expect("twice", &twice, NotAllowed, &["is here"]);
    let stats = daemon.settle("both are back", |s| s.connected() == 2 && s.clients() == 2);
    assert_eq!(stats.number("refused"), refused + 1, "each is counted");
    // What was held gives no right: its own records go on, and nobody else's.
    drop((is_back, also));
    daemon.settle("they leave as anybody", |s| s.clients() == 0);
    drop(agents);
}

fn regions_of(client: &RawClient) -> [(&podshm_proto::Region, &OwnedFd); 3] {
    let all: Vec<_> = client.regions.iter().map(|(region, fd)| (region, fd)).collect();
    all.try_into().expect("C, A and a table")
}

/// One that keeps no ledger knows nobody, and says so; the client goes on with its agent.
#[test]
fn a_broker_without_a_ledger_knows_nobody() {
    let node = Node::new(Limits::default());
    let agent = Serving::start(node.pod("agent"));
    let (client_a, _window) = RawClient::join(node.pod("a"));
    let raw = present(&node.pod("a"), back(false, client(client_a.welcome.client)), &all_of(&client_a));
    expect("while it is here", &raw.refused(), RefusalKind::NotAllowed, &["is here"]);
    client_a.raw.send(Up::Mapped(RegionIds { ids: Vec::new() }));
    assert_eq!(client_a.raw.refused().kind(), RefusalKind::Protocol);
    let raw = present(&node.pod("a"), back(false, client(77)), &all_of(&client_a));
    expect("unknown", &raw.refused(), RefusalKind::NotAllowed, &["client 77", "join anew"]);
    let _ = (PATIENCE, WriteMap::map(&client_a.memory()).map(drop));
    agent.stop();
}

#[test]
fn a_ledger_that_somebody_wrote_into_is_named_and_nobody_is_served() {
    let mut daemon = Daemon::start(BROKER);
    daemon.kill();
    let good = std::fs::read(daemon.ledger()).unwrap();
    for at in [0, 17, good.len() - 1] {
        let mut bad = good.clone();
        bad[at] ^= 0x40;
        std::fs::write(daemon.ledger(), &bad).unwrap();
        let line = daemon.start_with(None);
        assert!(line.starts_with("failed ledger ") && line.contains(".broker/ledger, at byte"), "{line}");
        assert!(line.contains("expected") && line.contains("Move it away"), "{line}");
        daemon.await_failure();
        assert_eq!(std::fs::read(daemon.ledger()).unwrap(), bad, "it is left as it is");
    }
    // Cut short at the end: a kill in the midst of a write.
    std::fs::write(daemon.ledger(), &good[..good.len() - 1]).unwrap();
    daemon.restart();
    daemon.kill();
    std::fs::remove_file(daemon.ledger()).unwrap();
    daemon.restart();
}
