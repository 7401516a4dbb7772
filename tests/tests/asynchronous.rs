//! Both sides in event loops: futures on the client's side, `run_async` and a bare epoll on the agent's.

use podshm::{Agent, Answer, Client, Error, ErrorKind, Handler, Progress, Record, Request};
use podshm_tests::{Node, PATIENCE};
use rustix::event::{PollFd, PollFlags, poll};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Answers "slow" later, "never" not at all, everything else at once, backwards.
#[derive(Default)]
struct Mixed {
    records: usize,
    kept: Vec<podshm::Deferred>,
}

impl Handler for Mixed {
    fn record(&mut self, _: Record<'_>) {
        self.records += 1;
    }

    fn call(&mut self, request: Request<'_>, answer: &mut Answer<'_>) {
        let reversed: Vec<u8> = request.bytes.iter().rev().copied().collect();
        if request.bytes.starts_with(b"slow") {
            let later = answer.defer();
            tokio::spawn(async move {
                tokio::time::sleep(Duration::from_millis(5)).await;
                later.reply(reversed);
            });
        } else if request.bytes == b"never" {
            self.kept.push(answer.defer());
        } else {
            answer.reply(&reversed);
        }
    }
}

fn describe() -> podshm::AgentBuilder {
    Agent::builder().queue("reports", 16 * 1024, 256).call("decide", 16 * 1024, 256 * 1024)
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

/// An agent on a runtime of its own, until told to stop.
fn serve(node: &Node) -> (tokio::sync::oneshot::Sender<()>, std::thread::JoinHandle<usize>) {
    let directory = node.pod("agent");
    let (stop, stopped) = tokio::sync::oneshot::channel();
    let thread = std::thread::spawn(move || {
        let (mut agent, mut handler) = (describe().connect(directory, PATIENCE).unwrap(), Mixed::default());
        agent.ready().unwrap();
        let until = async { drop(stopped.await) };
        runtime().block_on(agent.run_async(&mut handler, until)).unwrap();
        handler.records
    });
    (stop, thread)
}

#[test]
fn futures_and_an_agent_on_tokio() {
    let node = Node::new(Default::default());
    let (stop, agent) = serve(&node);
    let client = Client::join(node.pod("a"), PATIENCE).unwrap();
    let (decide, reports) = (client.call("decide").unwrap(), client.queue("reports").unwrap());
    runtime().block_on(async {
        // More requests than the ring holds, small and in fragments, answered at once and late, all at the same time.
        let mut calls = tokio::task::JoinSet::new();
        for n in 0..300u32 {
            let mut request = if n % 3 == 0 { b"slow".to_vec() } else { b"fast".to_vec() };
            request.extend(n.to_le_bytes());
            request.resize(if n % 50 == 0 { 100_000 } else { 8 + n as usize }, n as u8);
            let decide = decide.clone();
            calls.spawn(async move {
                let mut answer = decide.call_async(request.clone(), PATIENCE).await.unwrap();
                answer.reverse();
                assert_eq!(answer, request);
            });
        }
        for _ in 0..100 {
            reports.push(b"beside", PATIENCE).unwrap();
        }
        while let Some(call) = calls.join_next().await {
            call.unwrap();
        }
        // Nobody polls these again but the library, when their time is over.
        let start = Instant::now();
        let late =
            (decide.call_async(*b"never", Duration::from_millis(30)), decide.call_async(*b"never", PATIENCE * 3));
        let error = late.0.await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Deadline, "{error}");
        assert!(start.elapsed() >= Duration::from_millis(30));
        drop(late.1); // cancelled before it was sent
        let cancelled = decide.call_async(*b"never", PATIENCE);
        assert!(tokio::time::timeout(Duration::from_millis(10), cancelled).await.is_err());
        assert_eq!(decide.call_async(*b"still", PATIENCE).await.unwrap(), b"llits");
    });
    drop((decide, reports, client));
    node.settle("the client is drained", |s| s.clients.is_empty());
    stop.send(()).unwrap();
    assert_eq!(agent.join().unwrap(), 100);
    node.settle("everything is free", |s| s.regions == 0 && !s.agent);
}

#[test]
fn a_successor_takes_over_from_an_agent_on_tokio() {
    let node = Node::new(Default::default());
    let (_stop, first) = serve(&node);
    let client = Client::join(node.pod("a"), PATIENCE).unwrap();
    let decide = client.call("decide").unwrap();
    let ask = || -> Result<Vec<u8>, Error> { runtime().block_on(decide.call_async(*b"abc", PATIENCE)) };
    assert_eq!(ask().unwrap(), b"cba");
    let (stop, second) = serve(&node);
    first.join().unwrap();
    let until = Instant::now() + PATIENCE;
    loop {
        match ask() {
            Ok(answer) => break assert_eq!(answer, b"cba"),
            Err(e) => assert!(e.kind() == ErrorKind::AgentAway && Instant::now() < until, "{e}"),
        }
    }
    stop.send(()).unwrap();
    second.join().unwrap();
}

#[test]
fn an_agent_on_a_bare_event_descriptor_sleeps_and_misses_nothing() {
    let node = Node::new(Default::default());
    let directory = node.pod("agent");
    let (stop, slept) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let (stopped, sleeps) = (Arc::clone(&stop), Arc::clone(&slept));
    let agent = std::thread::spawn(move || {
        let (mut agent, mut handler) = (describe().connect(directory, PATIENCE).unwrap(), Mixed::default());
        agent.ready().unwrap();
        while !stopped.load(Ordering::Relaxed) {
            if agent.poll(&mut handler).unwrap() == Progress::Idle && agent.park().unwrap() {
                sleeps.fetch_add(1, Ordering::Relaxed);
                // As long as it takes: a missed wake-up hangs here.
                poll(&mut [PollFd::from_borrowed_fd(agent.event_fd(), PollFlags::IN)], None).unwrap();
            }
        }
        handler.records
    });
    let client = Client::join(node.pod("a"), PATIENCE).unwrap();
    let (decide, reports) =
        (client.call("decide").unwrap().spin(podshm::Spin::Never), client.queue("reports").unwrap());
    let mut answer = [0; 8];
    for n in 0..2000u64 {
        reports.push(&n.to_le_bytes(), PATIENCE).unwrap();
        assert_eq!(decide.call(&n.to_le_bytes(), &mut answer, PATIENCE).unwrap(), 8);
    }
    assert!(slept.load(Ordering::Relaxed) > 100, "the agent slept {slept:?} times over 2,000 calls");
    stop.store(true, Ordering::Relaxed);
    reports.push(b"the last one wakes it", PATIENCE).unwrap();
    let records = agent.join().unwrap();
    assert!((2000..=2001).contains(&records), "{records} records");
}

#[test]
fn an_agent_on_a_bare_event_descriptor_looks_at_a_client_without_a_doorbell() {
    let node = Node::new(Default::default());
    let directory = node.pod("agent");
    let agent = std::thread::spawn(move || {
        let (mut agent, mut handler) = (describe().connect(directory, PATIENCE).unwrap(), Mixed::default());
        agent.ready().unwrap();
        let until = Instant::now() + PATIENCE;
        while handler.records < 20 && Instant::now() < until {
            if agent.poll(&mut handler).unwrap() == Progress::Idle && agent.park().unwrap() {
                let most = rustix::time::Timespec { tv_sec: PATIENCE.as_secs() as i64, tv_nsec: 0 };
                poll(&mut [PollFd::from_borrowed_fd(agent.event_fd(), PollFlags::IN)], Some(&most)).unwrap();
            }
        }
        (handler.records, agent.wake_stats())
    });
    let mut client = podshm_tests::raw::Pushing::join(node.pod("a"), "reports");
    rustix::net::shutdown(&client.client.doorbell, rustix::net::Shutdown::Both).unwrap();
    for n in 0..20u64 {
        assert!(client.push(&n.to_le_bytes()));
        std::thread::sleep(Duration::from_millis(10));
    }
    let (records, wakes) = agent.join().unwrap();
    assert_eq!(records, 20, "{wakes:?}");
    // A turn of the loop is a few looks, and it sleeps in between.
    assert!(wakes.polls > 0 && wakes.looks < 2000, "{wakes:?}");
}

#[test]
fn a_sleeping_agent_is_woken_by_another_thread() {
    let node = Node::new(Default::default());
    let mut agent = describe().connect(node.pod("agent"), PATIENCE).unwrap();
    agent.ready().unwrap();
    let mut handler = Mixed::default();
    // It takes over first; nobody has anything for it afterwards.
    while agent.inherited_state().is_none() {
        agent.poll(&mut handler).unwrap();
        agent.wait(Duration::from_millis(1)).unwrap();
    }
    let (waker, rung) = (agent.waker(), Arc::new(AtomicBool::new(false)));
    let (begin, ringing) = (Instant::now(), Arc::clone(&rung));
    let thread = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(50));
        ringing.store(true, Ordering::Relaxed);
        waker.wake();
    });
    // It may look up from its sleep for reasons of its own.
    while !rung.load(Ordering::Relaxed) {
        assert_eq!(agent.poll(&mut handler).unwrap(), Progress::Idle);
        agent.wait(PATIENCE * 10).unwrap();
    }
    assert!(begin.elapsed() < PATIENCE * 5, "it slept {:?}", begin.elapsed());
    thread.join().unwrap();
}
