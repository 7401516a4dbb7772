//! Regions whose writer lies: a client's to an honest agent, an agent's to an honest client.

use podshm::{Client, ErrorKind};
use podshm_layout::Layout;
use podshm_layout::mem::Store;
use podshm_proto::{Service, Services, Written};
use podshm_tests::raw::{Random, RawAgent, RawClient, poke};
use podshm_tests::serving::Serving;
use podshm_tests::{Node, PATIENCE};
use rustix::net::{SendFlags, send};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// A word that is likely to hurt: a header near its tag, a small or a huge number.
fn nasty(random: &mut Random, position: u64) -> u64 {
    match random.below(8) {
        0 => u64::MAX,
        1 => random.word(),
        2 => random.below(1 << 20),
        3 => position << 29 & !0xffff_ffff | 1 << 31 | random.below(1 << 31),
        4 => (position >> 3) << 32 | 1 << 31 | 4 << 26 | random.below(1 << 26),
        5 => (position >> 3) << 32 | 1 << 31 | random.below(8) << 26 | random.below(2000),
        6 => 1 << 63,
        _ => (position >> 3) << 32 | 1 << 31 | random.below(16) << 26 | 0x3ff_ffff,
    }
}

#[test]
fn a_client_that_scribbles_its_region_hurts_nobody_else() {
    scribble(0);
}

#[test]
fn a_client_that_scribbles_all_but_its_header_hurts_nobody_else() {
    scribble(8);
}

/// Four clients write noise all over their regions, but for the first words.
fn scribble(spared: u64) {
    let node = Node::new(Default::default());
    let agent = Serving::start(node.pod("agent"));
    let honest = Client::join(node.pod("b"), PATIENCE).unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let liars: Vec<_> = (0..4u64)
        .map(|n| {
            let (stop, directory) = (Arc::clone(&stop), node.pod(&format!("a{n}")));
            std::thread::spawn(move || {
                let mut random = Random(0x9e37_79b9_7f4a_7c15 + n);
                let mut joins = 0;
                while !stop.load(Ordering::Relaxed) {
                    let (client, mut window) = RawClient::join(&directory);
                    joins += 1;
                    let services = Services::check(client.welcome.services.clone()).unwrap();
                    let geometry = services.channel(client.welcome.client, 0, Written::both(Layout::NEWEST)).unwrap();
                    let size = client.regions[0].0.bytes;
                    for round in 0..200 {
                        for ring in &geometry.to_agent {
                            // The place where the agent looks first, with something that may pass for a record.
                            let at = ring.offset as usize + (ring.start % u64::from(ring.bytes)) as usize;
                            poke(&window, at, nasty(&mut random, ring.start));
                        }
                        for _ in 0..20 {
                            let at = if round % 2 == 0 { random.below(64) } else { random.below(size / 8) };
                            let position = random.below(1 << 20);
                            poke(&window, at.max(spared) as usize * 8, nasty(&mut random, position));
                        }
                        if round == 100 {
                            window.copy_in(64, &vec![0xff; size as usize - 64]);
                        }
                        let _ = send(&client.doorbell, &[1], SendFlags::DONTWAIT | SendFlags::NOSIGNAL);
                    }
                }
                joins
            })
        })
        .collect();
    let (decide, reports) = (honest.call("decide").unwrap(), honest.queue("reports").unwrap());
    let mut buffer = [0; 64];
    for n in 0..5000u64 {
        reports.push(&n.to_le_bytes(), PATIENCE).unwrap();
        if n % 5 == 0 {
            assert_eq!(decide.call(&n.to_le_bytes(), &mut buffer, PATIENCE).unwrap(), 8);
            assert_eq!(buffer[..8], n.to_be_bytes());
        }
    }
    stop.store(true, Ordering::Relaxed);
    for liar in liars {
        assert!(liar.join().unwrap() > 0);
    }
    let id = honest.id();
    drop((decide, reports, honest));
    node.settle("all are drained, liars too", |s| s.clients.is_empty());
    let mine: Vec<_> = agent.stop().into_iter().filter(|r| r.0 == id).map(|r| r.3).collect();
    assert_eq!(mine, (0..5000u64).map(|n| n.to_le_bytes().to_vec()).collect::<Vec<_>>());
}

/// A client whose header lies at the moment when the agent gets it: that client is refused, the agent goes on.
#[test]
fn a_client_whose_header_lies_from_the_start_does_not_end_the_agent() {
    let node = Node::new(Default::default());
    let agent = Serving::start(node.pod("agent"));
    let honest = Client::join(node.pod("b"), PATIENCE).unwrap();
    let liar = RawClient::hello(node.pod("a"));
    let mut map = podshm_region::WriteMap::map(&liar.memory()).unwrap();
    let window = map.window(0, 4096);
    for offset in [0, 8, 16, 24, 32] {
        poke(&window, offset, u64::MAX);
    }
    liar.mapped();
    std::thread::sleep(Duration::from_millis(200));
    let mut buffer = [0; 8];
    let answer = honest.call("decide").unwrap().call(b"abc", &mut buffer, Duration::from_secs(5));
    assert_eq!(answer.map_err(|e| e.to_string()), Ok(3), "the agent goes on");
    agent.stop();
}

fn services() -> Vec<Service> {
    vec![
        Service { name: "t".into(), kind: 1, keys: 100, bytes: 65536, ..Service::default() },
        Service { name: "q".into(), kind: 2, ring: 8192, longest: 100, ..Service::default() },
        Service {
            name: "c".into(),
            kind: 3,
            ring: 8192,
            longest: 100,
            response_ring: 8192,
            longest_response: 100,
            ..Service::default()
        },
    ]
}

/// Joins while the agent by hand is pumped.
fn join(node: &Node, agent: &mut RawAgent) -> (Client, podshm_proto::Serve, Vec<std::os::fd::OwnedFd>) {
    let directory = node.pod("a");
    let joining = std::thread::spawn(move || Client::join(directory, PATIENCE).unwrap());
    let (serve, fds) = agent.next_client();
    (joining.join().unwrap(), serve, fds)
}

#[test]
fn an_agent_whose_cursors_lie_gets_errors_not_panics() {
    let node = Node::new(Default::default());
    let mut agent = RawAgent::start(node.pod("agent"), services());
    for lie in [u64::MAX, u64::MAX - 7, 1 << 63, 1 << 40, 0] {
        let (client, serve, _fds) = join(&node, &mut agent);
        let checked = Services::check(services()).unwrap();
        let geometry = checked.channel(client.id(), 0, Written::both(Layout::NEWEST)).unwrap();
        let (_, window) = agent.writable.iter().find(|(r, _)| r.id == serve.answer).unwrap();
        let queue = client.queue("q").unwrap();
        let mut outcomes = Vec::new();
        for n in 0..1000u64 {
            for (ring, geometry) in geometry.to_agent.iter().enumerate() {
                let line = geometry.cursor as usize;
                for word in [0, 8, 24] {
                    poke(window, line + word, if n == 0 { geometry.start } else { lie });
                }
                poke(window, line + 16, if n < 900 { 0 } else { lie });
                poke(window, line + 32, n % 3 + ring as u64);
            }
            outcomes.push(queue.try_push(&n.to_le_bytes()).map_err(|e| e.kind()));
        }
        assert!(outcomes[0].is_ok() || lie == 0, "{outcomes:?}");
        assert!(outcomes.iter().any(Result::is_err), "a ring of 8192 bytes can't take 1000 records of 16");
        let kind = queue.push(b"x", Duration::from_millis(20)).unwrap_err().kind();
        assert!(
            matches!(kind, ErrorKind::Corrupt | ErrorKind::Full | ErrorKind::Deadline | ErrorKind::AgentAway),
            "{kind:?}"
        );
    }
}

#[test]
fn an_agent_that_answers_garbage_gets_errors_not_panics() {
    let node = Node::new(Default::default());
    let mut agent = RawAgent::start(node.pod("agent"), services());
    let mut random = Random(42);
    let mut kinds = std::collections::BTreeMap::new();
    for _ in 0..30 {
        let (client, serve, _fds) = join(&node, &mut agent);
        let (region, window) = agent.writable.iter_mut().find(|(r, _)| r.id == serve.answer).unwrap();
        let checked = Services::check(services()).unwrap();
        let ring = checked.channel(0, region.owner, Written::both(Layout::NEWEST)).unwrap().to_client[0];
        let call = client.call("c").unwrap();
        let at = ring.offset as usize + (ring.start % u64::from(ring.bytes)) as usize;
        window.copy_in(ring.offset as usize, &(0..ring.bytes).map(|_| random.word() as u8).collect::<Vec<_>>());
        poke(window, at, nasty(&mut random, ring.start));
        let mut buffer = [0; 100];
        let error = call.call(b"abc", &mut buffer, Duration::from_millis(30)).unwrap_err();
        *kinds.entry(format!("{:?}", error.kind())).or_insert(0) += 1;
        // And a table of noise.
        let table = client.table("t").unwrap();
        let (t, window) = agent.writable.iter_mut().find(|(r, _)| r.kind == 3).unwrap();
        window.copy_in(4096, &(4096..t.bytes).map(|_| random.word() as u8).collect::<Vec<_>>());
        for key in 0..200u32 {
            let _ = table.get(&key.to_le_bytes(), &mut buffer);
        }
        let _ = (table.len(), table.age(), table.version());
        if let Ok(mut snapshot) = table.snapshot().map(Some) {
            let snapshot = snapshot.take().unwrap();
            let _ = snapshot.get(b"key", &mut buffer);
            let _ = snapshot.finish();
        }
    }
    assert!(kinds.contains_key("Corrupt"), "garbage is named: {kinds:?}");
}
