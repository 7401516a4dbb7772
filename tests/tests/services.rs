//! Table, queue and call end to end, over a real broker and real regions, agent and clients in threads of one process.

use podshm::{Agent, Answer, Client, ErrorKind, Handler, Progress, Record, Request, Spin};
use podshm_broker::{Limits, SuccessorWaits};
use podshm_tests::{Node, PATIENCE};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

#[derive(Clone, Default)]
struct Seen {
    records: Arc<Mutex<Vec<podshm_tests::serving::Handled>>>,
    requests: Arc<Mutex<u64>>,
}

impl Handler for Seen {
    fn record(&mut self, r: Record<'_>) {
        self.records.lock().unwrap().push((r.client, r.position, r.maybe_seen, r.bytes.to_vec()));
    }

    fn call(&mut self, request: Request<'_>, answer: &mut Answer<'_>) {
        *self.requests.lock().unwrap() += 1;
        match request.bytes {
            b"late" => {
                let later = answer.defer();
                std::thread::spawn(move || {
                    std::thread::sleep(Duration::from_millis(20));
                    later.reply(b"late answer".to_vec());
                });
            }
            b"nothing" => {}
            bytes => {
                let mut bytes = bytes.to_vec();
                bytes.reverse();
                answer.reply_owned(bytes);
            }
        }
    }
}

struct Running {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    seen: Seen,
}

impl Running {
    fn start(node: &Node, version: u8) -> Running {
        Self::start_as(node, "agent", version, Seen::default())
    }

    fn start_as(node: &Node, pod: &str, version: u8, seen: Seen) -> Running {
        let directory = node.pod(pod);
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, mut handler) = (Arc::clone(&stop), seen.clone());
        let thread = std::thread::spawn(move || {
            let mut agent = Agent::builder()
                .table("routes", 100, 64 * 1024)
                .queue("reports", 64 * 1024, 1024)
                .call("decide", 32 * 1024, 4 << 20)
                .connect(directory, PATIENCE)
                .unwrap();
            for n in 0..50u8 {
                agent.table("routes").unwrap().put(format!("key-{n}").as_bytes(), &[version; 200]).unwrap();
            }
            agent.ready().unwrap();
            loop {
                match agent.poll(&mut handler).unwrap() {
                    Progress::Handled(_) => {}
                    Progress::Idle => agent.wait(Duration::from_millis(20)).unwrap(),
                    Progress::CloseAsked => break,
                }
                if stopped.load(Ordering::Relaxed) {
                    break;
                }
            }
            agent.close(vec![version]).unwrap();
        });
        Running { stop, thread: Some(thread), seen }
    }

    fn stop(mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap();
    }

    fn join(mut self) {
        self.thread.take().unwrap().join().unwrap();
    }
}

#[test]
fn lookups_reports_and_calls_go_through() {
    let node = Node::new(Limits::default());
    let agent = Running::start(&node, 1);
    let client = Client::join(node.pod("a"), PATIENCE).unwrap();
    assert_eq!(client.member(), "test/a");
    let routes = client.table("routes").unwrap();
    let mut buffer = [0; 256];
    assert_eq!(routes.get(b"key-7", &mut buffer).unwrap(), Some(200));
    assert_eq!(buffer[..200], [1; 200]);
    assert_eq!(routes.get(b"key-77", &mut buffer).unwrap(), None);
    let mut key = routes.key(b"key-9");
    assert_eq!(key.get(&mut buffer).unwrap(), Some(200));
    assert!(routes.age().unwrap() < PATIENCE);
    let guard = routes.guard(b"key-1").unwrap().unwrap();
    let mut part = [0; 4];
    guard.read(196, &mut part).unwrap();
    assert_eq!(part, [1; 4]);

    let reports = client.queue("reports").unwrap();
    for n in 0..10_000u64 {
        reports.push(&n.to_le_bytes(), PATIENCE).unwrap();
    }
    let decide = client.call("decide").unwrap();
    for spin in [Spin::Never, Spin::default(), Spin::Always] {
        let decide = decide.clone().spin(spin);
        for len in [0, 1, 64, 1000, 8000, 8192, 20_000, 1 << 20] {
            let request: Vec<u8> = (0..len).map(|i| i as u8).collect();
            let mut response = vec![0; len];
            assert_eq!(decide.call(&request, &mut response, PATIENCE).unwrap(), len, "{spin:?} {len}");
            response.reverse();
            assert_eq!(response, request);
        }
    }
    assert_eq!(decide.call(b"late", &mut buffer, PATIENCE).unwrap(), 11);
    assert_eq!(decide.call(b"nothing", &mut buffer, PATIENCE).unwrap_err().kind(), ErrorKind::Failed);
    assert_eq!(decide.call(&[1; 300], &mut buffer, PATIENCE).unwrap_err().kind(), ErrorKind::BufferTooSmall);
    assert_eq!(decide.call(&vec![1; 5 << 20], &mut buffer, PATIENCE).unwrap_err().kind(), ErrorKind::TooLong);
    let pending: Vec<_> = (0..100u8).map(|n| decide.start(&[n, 1], PATIENCE).unwrap()).collect();
    for (n, mut pending) in pending.into_iter().enumerate().rev() {
        assert_eq!(pending.wait().unwrap(), [1, n as u8]);
    }
    drop(decide.start(b"cancelled", PATIENCE).unwrap());

    assert_eq!(client.table("reports").unwrap_err().kind(), ErrorKind::WrongKind);
    assert_eq!(client.queue("else").unwrap_err().kind(), ErrorKind::NoService);
    let seen = agent.seen.clone();
    drop((client, routes, key, guard, reports, decide));
    node.settle("the client's memory is free", |s| s.clients.is_empty());
    agent.stop();
    let records = seen.records.lock().unwrap();
    assert_eq!(records.len(), 10_000);
    assert!(records.iter().enumerate().all(|(n, r)| r.3 == (n as u64).to_le_bytes() && !r.2));
    node.settle("everything is free", |s| s.regions == 1 && !s.agent);
}

#[test]
fn a_graceful_upgrade_under_load_loses_and_repeats_nothing() {
    let node = Node::new(Limits::default());
    let seen = Seen::default();
    let mut agent = Running::start_as(&node, "agent", 1, seen.clone());
    let stop = Arc::new(AtomicBool::new(false));
    let clients: Vec<_> = (0..4)
        .map(|c| {
            let (stop, directory) = (Arc::clone(&stop), node.pod(&format!("c{c}")));
            std::thread::spawn(move || {
                let client = Client::join(directory, PATIENCE).unwrap();
                let (reports, decide) = (client.queue("reports").unwrap(), client.call("decide").unwrap());
                let routes = client.table("routes").unwrap();
                let mut key = routes.key(b"key-3");
                let (mut sent, mut answered, mut buffer) = (0u64, 0, [0; 256]);
                while !stop.load(Ordering::Relaxed) {
                    reports.push(&sent.to_le_bytes(), PATIENCE).unwrap();
                    sent += 1;
                    assert_eq!(key.get(&mut buffer).unwrap(), Some(200));
                    assert!(buffer[..200].iter().all(|b| *b == buffer[0]), "torn");
                    if sent.is_multiple_of(64) {
                        match decide.call(b"abc", &mut buffer, PATIENCE) {
                            Ok(3) => answered += 1,
                            Ok(n) => panic!("answer of {n} bytes"),
                            Err(e) => assert!(
                                matches!(e.kind(), ErrorKind::AgentAway),
                                "a graceful upgrade answers every call that it took: {e}"
                            ),
                        }
                    }
                }
                assert!(answered > 0);
                (client.id(), sent)
            })
        })
        .collect();
    for version in 2..8 {
        std::thread::sleep(Duration::from_millis(100));
        let next = Running::start_as(&node, "agent", version, seen.clone());
        agent.join();
        agent = next;
    }
    std::thread::sleep(Duration::from_millis(100));
    stop.store(true, Ordering::Relaxed);
    let sent: Vec<(u64, u64)> = clients.into_iter().map(|c| c.join().unwrap()).collect();
    node.settle("all clients are drained", |s| s.clients.is_empty());
    agent.stop();
    let records = seen.records.lock().unwrap();
    for (client, sent) in sent {
        let got: Vec<u64> =
            records.iter().filter(|r| r.0 == client).map(|r| u64::from_le_bytes(r.3[..].try_into().unwrap())).collect();
        assert_eq!(got.len() as u64, sent, "client {client}");
        assert!(got.iter().enumerate().all(|(n, s)| n as u64 == *s), "exactly once, in order");
    }
    node.settle("everything is free", |s| s.regions == 1);
}

#[test]
fn tables_grow_without_readers_stopping() {
    let node = Node::new(Limits::default());
    let directory = node.pod("agent");
    let mut agent = Agent::builder().table("routes", 10, 4096).connect(directory, PATIENCE).unwrap();
    agent.table("routes").unwrap().put(b"fixed", &[7; 100]).unwrap();
    agent.ready().unwrap();
    let (stop, seen) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let (stopped, saw) = (Arc::clone(&stop), Arc::clone(&seen));
    let directory = node.pod("a");
    let reader = std::thread::spawn(move || {
        let client = Client::join(directory, PATIENCE).unwrap();
        let routes = client.table("routes").unwrap();
        let mut key = routes.key(b"fixed");
        let (mut buffer, mut generations) = ([0; 200], std::collections::BTreeSet::new());
        while !stopped.load(Ordering::Relaxed) {
            assert_eq!(key.get(&mut buffer).unwrap(), Some(100));
            assert_eq!(routes.get(b"fixed", &mut buffer).unwrap(), Some(100));
            generations.insert(routes.generation_number().unwrap());
            saw.store(generations.len(), Ordering::Relaxed);
        }
    });
    node.settle("the reader joins", |s| s.clients.len() == 1);
    struct Nothing;
    impl Handler for Nothing {}
    // On a busy machine the reader may sleep through all of them; the table grows on, slower then.
    let (mut n, until) = (0u32, Instant::now() + PATIENCE);
    while n < 3000 || seen.load(Ordering::Relaxed) <= 2 {
        assert!(
            Instant::now() < until,
            "the reader saw {} generations, expected several",
            seen.load(Ordering::Relaxed)
        );
        agent.table("routes").unwrap().put(&n.to_le_bytes(), &[1; 300]).unwrap();
        agent.poll(&mut Nothing).unwrap();
        n += 1;
        if n > 3000 {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    stop.store(true, Ordering::Relaxed);
    reader.join().unwrap();
    assert_eq!(agent.table("routes").unwrap().keys(), u64::from(n) + 1);
}

#[test]
fn the_broker_says_what_a_successor_waits_for() {
    let node = Node::new(Limits::default());
    let builder = Agent::builder().queue("reports", 64 * 1024, 1024);
    let waits = || node.broker.stats("d").unwrap().successor;
    let mut first = builder.clone().connect(node.pod("agent"), PATIENCE).unwrap();
    assert_eq!(waits(), Some(SuccessorWaits::Ready));
    first.ready().unwrap();
    node.settle("it serves", |s| s.agent && s.successor.is_none());
    let mut second = builder.connect(node.pod("agent"), PATIENCE).unwrap();
    assert_eq!(waits(), Some(SuccessorWaits::Ready));
    second.ready().unwrap();
    node.settle("the first is to close", |s| s.successor == Some(SuccessorWaits::Close));
    first.close(Vec::new()).unwrap();
    node.settle("the second serves", |s| s.agent && s.successor.is_none() && s.epoch == 2);
}
