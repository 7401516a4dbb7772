//! Older and newer releases of the protocol: what one adds the other ignores, and what it does not know at all it says so about.

use podshm::{Client, ErrorKind};
use podshm_broker::Limits;
use podshm_proto::{Down, Hello, RefusalKind, RegionIds, Service, Up, encode_up};
use podshm_region::descriptors;
use podshm_tests::raw::{Raw, RawAgent, RawClient, hello};
use podshm_tests::serving::Serving;
use podshm_tests::{Node, PATIENCE};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, accept, bind, listen, socket_with};

/// Field 100, a number, and field 101, three bytes: what a later release might add anywhere.
const ADDED: [u8; 9] = [0xa0, 0x06, 0x2a, 0xaa, 0x06, 0x03, b'n', b'e', b'w'];

/// The message with [`ADDED`] at the end of its body and behind it.
fn with_additions(message: Up) -> Vec<u8> {
    let mut bytes = encode_up(message);
    assert_eq!(usize::from(bytes[1]), bytes.len() - 2, "a body of less than 128 bytes");
    bytes[1] += ADDED.len() as u8;
    assert!(bytes[1] < 128);
    bytes.extend_from_slice(&ADDED);
    bytes.extend_from_slice(&ADDED);
    bytes
}

#[test]
fn what_a_newer_participant_adds_is_ignored() {
    let node = Node::new(Limits::default());
    let agent = Serving::start(node.pod("agent"));
    let raw = Raw::connect(node.pod("a"));
    raw.bytes(&with_additions(Up::Hello(hello(false, Vec::new()))));
    let Some((Down::Welcome(welcome), fds)) = raw.receive() else { panic!("no welcome") };
    assert_eq!(welcome.protocol, podshm_proto::PROTOCOL);
    assert_eq!(fds.len(), welcome.regions.len() + 2);
    let c = welcome.regions[0].id;
    let map = podshm_region::WriteMap::map(&podshm_region::Memory::from_fd(fds[1].try_clone().unwrap()).unwrap());
    raw.bytes(&with_additions(Up::Mapped(RegionIds { ids: vec![c] })));
    match raw.receive() {
        Some((Down::Sealed(ids), _)) => assert_eq!(ids.ids, [c]),
        other => panic!("{other:?}"),
    }
    raw.bytes(&with_additions(Up::Release(RegionIds { ids: vec![welcome.regions[1].id] })));
    raw.bytes(&with_additions(Up::Bye(podshm_proto::Nothing {})));
    assert_eq!(raw.receive().map(|(message, _)| message), None, "it leaves in order");
    node.settle("it is gone", |s| s.clients.is_empty() && s.refused == 0);
    drop(map);
    agent.stop();
}

#[test]
fn what_nobody_here_knows_is_refused_by_name_also_after_joining() {
    let node = Node::new(Limits::default());
    let agent = Serving::start(node.pod("agent"));
    let (client, _window) = podshm_tests::raw::RawClient::join(node.pod("a"));
    // Field 77, an empty body: a message of a later protocol.
    client.raw.bytes(&[0xea, 0x04, 0x00]);
    let refused = client.raw.refused();
    assert_eq!(refused.kind(), RefusalKind::Protocol);
    for word in ["3 bytes", "protocol 3", "no body that this release knows", "newer release"] {
        assert!(refused.message.contains(word), "{refused:?}");
    }
    node.settle("it is gone", |s| s.clients.is_empty());
    agent.stop();
}

/// A broker by hand that answers every hello with these bytes.
fn broker_that_says(answers: Vec<u8>) -> (std::path::PathBuf, std::thread::JoinHandle<()>) {
    let directory = std::env::temp_dir().join(format!("podshm-skew-{}-{}", std::process::id(), answers.len()));
    std::fs::create_dir_all(&directory).unwrap();
    let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
    bind(&socket, &SocketAddrUnix::new(directory.join("broker.sock")).unwrap()).unwrap();
    listen(&socket, 8).unwrap();
    let thread = std::thread::spawn(move || {
        let connection = accept(&socket).unwrap();
        let mut buffer = vec![0; podshm_proto::MAX_MESSAGE];
        let (bytes, _) = descriptors::receive(&connection, &mut buffer).unwrap();
        assert!(matches!(podshm_proto::decode_up(&buffer[..bytes]), Ok(Up::Hello(_))));
        descriptors::send(&connection, &answers, &[]).unwrap();
        let _ = descriptors::receive(&connection, &mut buffer);
    });
    (directory, thread)
}

/// The other way round: a client whose broker speaks what it does not know says so.
#[test]
fn a_broker_that_says_what_a_client_does_not_know_is_named() {
    for answer in [vec![0xea, 0x04, 0x00], vec![0xff; 40], Vec::from(ADDED)] {
        let (directory, thread) = broker_that_says(answer.clone());
        let error = Client::join(&directory, PATIENCE).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
        let said = error.to_string();
        for word in [&format!("{} bytes", answer.len())[..], "protocol 3", "newer release"] {
            assert!(said.contains(word), "{said}");
        }
        thread.join().unwrap();
        std::fs::remove_dir_all(directory).unwrap();
    }
}

/// Participants of protocol 1 know nothing of going over to another region. Nobody is asked to who does not know how: whatever needs that
/// is refused by name, and what does not goes on.
#[test]
fn releases_that_can_not_go_over_are_left_as_they_are() {
    let queue = |name: &str| Service { name: name.into(), kind: 2, ring: 4096, longest: 64, ..Service::default() };
    let old = |hello: Hello| Hello { protocol_newest: 1, ..hello };
    let node = Node::new(Limits::default());
    let mut agent = RawAgent::start(node.pod("agent"), vec![queue("a"), queue("b")]);
    let directory = node.pod("old");
    let joining = std::thread::spawn(move || {
        let client = RawClient::hello_as(directory, old(hello(false, Vec::new())));
        let memory = podshm_region::WriteMap::map(&client.memory()).unwrap();
        client.mapped();
        (client, memory)
    });
    agent.next_client();
    let (client, _memory) = joining.join().unwrap();
    assert_eq!(client.welcome.protocol, 1);
    let refused = |hello: Hello| {
        let raw = Raw::connect(node.pod("agent"));
        raw.send(Up::Hello(hello));
        raw.refused()
    };
    // More services, an older layout, another order.
    let no = refused(hello(true, vec![queue("a"), queue("b"), queue("c")]));
    assert_eq!(no.kind(), RefusalKind::Services);
    assert!(no.message.contains("of test/old speaks protocol 1") && no.message.contains("more services"), "{no:?}");
    let no = refused(Hello { layout_newest: 1, ..hello(true, vec![queue("a"), queue("b")]) });
    assert_eq!(no.kind(), RefusalKind::Version);
    assert!(no.message.contains("of test/old speaks protocol 1") && no.message.contains("layout 2"), "{no:?}");
    let no = refused(old(hello(true, vec![queue("b"), queue("a")])));
    assert_eq!(no.kind(), RefusalKind::Services);
    assert!(no.message.contains("of test/agent speaks protocol 1") && no.message.contains("order"), "{no:?}");
    // Once it has left, more may come; and it comes in again with all of it from the start.
    drop(client);
    node.settle("it is gone", |s| s.clients.iter().all(|c| !c.connected));
    drop((agent.raw, agent.clients));
    node.settle("the agent is gone", |s| !s.agent);
    let _larger = RawAgent::start(node.pod("agent"), vec![queue("a"), queue("b"), queue("c")]);
    let again = RawClient::hello_as(node.pod("old"), old(hello(false, Vec::new())));
    assert_eq!(again.welcome.services.len(), 3);
}
