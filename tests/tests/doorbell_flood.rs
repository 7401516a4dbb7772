//! Doorbells rung for nothing: the agent leaves them alone after a while and polls, so that a flood costs it no system calls, other
//! clients' records flow, and the flooder's own as well. And the same the other way round.

use podshm::{Agent, Client, Handler, Progress, Record, Spin, WakeStats};
use podshm_layout::geometry::ARMED;
use podshm_proto::Service;
use podshm_tests::programs::{Talk, compile};
use podshm_tests::raw::{Pushing, RawAgent, poke};
use podshm_tests::serving::Serving;
use podshm_tests::{Node, PATIENCE};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::net::{RecvFlags, SendFlags, Shutdown, recv, send, shutdown};
use std::collections::BTreeMap;
use std::future::Future;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Rings a doorbell until it is stopped, in every way that its owner can.
struct Flood {
    stop: Arc<AtomicBool>,
    rounds: Arc<AtomicU64>,
    thread: JoinHandle<()>,
}

impl Flood {
    fn start(doorbell: &OwnedFd) -> Flood {
        let doorbell = doorbell.try_clone().unwrap();
        let (stop, rounds) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopped, counted) = (Arc::clone(&stop), Arc::clone(&rounds));
        let thread = std::thread::spawn(move || {
            let flags = fcntl_getfl(&doorbell).unwrap();
            while !stopped.load(Ordering::Relaxed) {
                let round = counted.fetch_add(1, Ordering::Relaxed);
                // This end's flags, which are its own: the other end must not block by them.
                let flip = if round.is_multiple_of(2) { flags - OFlags::NONBLOCK } else { flags | OFlags::NONBLOCK };
                fcntl_setfl(&doorbell, flip).unwrap();
                for size in [1, 1, 1, 512, 4096] {
                    let _ = send(&doorbell, &[1; 4096][..size], SendFlags::DONTWAIT | SendFlags::NOSIGNAL);
                }
                let _ = recv(&doorbell, &mut [0u8; 64][..], RecvFlags::DONTWAIT);
                if round.is_multiple_of(16) {
                    std::thread::yield_now();
                }
            }
        });
        Flood { stop, rounds, thread }
    }

    /// Waits for `more` rounds.
    fn go_on(&self, more: u64) {
        let until = self.rounds.load(Ordering::Relaxed) + more;
        while self.rounds.load(Ordering::Relaxed) < until {
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap();
    }
}

/// Waits until `stats` are `good`.
fn settle(what: &str, stats: impl Fn() -> WakeStats, good: impl Fn(&WakeStats) -> bool) -> WakeStats {
    let until = Instant::now() + PATIENCE;
    loop {
        let now = stats();
        if good(&now) {
            return now;
        }
        assert!(Instant::now() < until, "{what} did not happen: {now:?}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Wakes that `peers` can cause within `elapsed` by ringing for nothing: a burst, 100 a second, and 16 after each silence.
fn allowed(peers: u64, elapsed: Duration, silenced: u64) -> u64 {
    let rate = elapsed.as_millis() as u64 / 10 + 1;
    peers * (256 + rate) + 17 * silenced
}

#[test]
fn a_flood_does_not_keep_the_agent_in_system_calls() {
    let node = Node::new(Default::default());
    let agent = Serving::start(node.pod("agent"));
    let start = Instant::now();
    let mut flooder = Pushing::join(node.pod("a"), "reports");
    let flood = Flood::start(&flooder.client.doorbell);
    settle("a silence", || agent.wakes(), |s| s.silenced >= 3);
    flood.go_on(20_000);
    let stats = agent.wakes();
    let most = allowed(1, start.elapsed(), stats.silenced);
    assert!(stats.rung <= most, "{stats:?}: {most} wakes are what a flood may cause in {:?}", start.elapsed());
    // Each wake and each turn of a loop that sleeps for 10 ms are a few looks; a look is a system call.
    let turns = stats.rung + stats.polls + start.elapsed().as_millis() as u64 / 10 + 1;
    assert!(stats.looks <= 8 * turns, "{stats:?}: more looks than {turns} turns explain");

    // Others are served meanwhile.
    let honest = Client::join(node.pod("b"), PATIENCE).unwrap();
    let (decide, reports) = (honest.call("decide").unwrap(), honest.queue("reports").unwrap());
    let mut buffer = [0; 8];
    for n in 0..300u64 {
        reports.push(&n.to_le_bytes(), PATIENCE).unwrap();
        assert_eq!(decide.call(&n.to_le_bytes(), &mut buffer, PATIENCE).unwrap(), 8);
    }
    // And the flooder's own records arrive.
    let id = flooder.client.welcome.client;
    for n in 0..100u64 {
        let until = Instant::now() + PATIENCE;
        while !flooder.push(&n.to_le_bytes()) {
            assert!(Instant::now() < until, "no room for the flooder's record");
            std::thread::yield_now();
        }
        let arrived = |_: &WakeStats| agent.records().iter().filter(|r| r.0 == id).count() as u64 > n;
        settle("a flooder's record", || agent.wakes(), arrived);
    }
    flood.stop();
    drop(flooder);
    let honest_id = honest.id();
    drop((honest, decide, reports));
    node.settle("all are drained", |s| s.clients.is_empty());
    let records = agent.stop();
    assert_eq!(records.iter().filter(|r| r.0 == honest_id).count(), 300);
}

/// In an event loop the agent has no turn but by its descriptor: it must stay quiet under a flood, and call by itself for the records of
/// whoever is not listened to, and for the hang-up.
#[test]
fn an_agent_in_an_event_loop_is_not_kept_awake_by_a_flood() {
    #[derive(Default)]
    struct Count(BTreeMap<u64, u64>);
    #[derive(Clone, Default)]
    struct Seen {
        wakes: WakeStats,
        /// How often the descriptor was readable.
        calls: u64,
        records: BTreeMap<u64, u64>,
    }
    impl Handler for Count {
        fn record(&mut self, record: Record<'_>) {
            *self.0.entry(record.client).or_default() += 1;
        }
    }
    let node = Node::new(Default::default());
    let (directory, stop) = (node.pod("agent"), Arc::new(AtomicBool::new(false)));
    let seen: Arc<Mutex<Seen>> = Arc::default();
    let (stopped, shared) = (Arc::clone(&stop), Arc::clone(&seen));
    let (ready, is_ready) = std::sync::mpsc::channel();
    let agent = std::thread::spawn(move || {
        let mut agent = Agent::builder().queue("reports", 16 * 1024, 1024).connect(directory, PATIENCE).unwrap();
        agent.ready().unwrap();
        ready.send(()).unwrap();
        let (mut count, mut calls) = (Count::default(), 0);
        while !stopped.load(Ordering::Relaxed) {
            while agent.poll(&mut count).unwrap() != Progress::Idle {}
            *shared.lock().unwrap() = Seen { wakes: agent.wake_stats(), calls, records: count.0.clone() };
            if agent.park().unwrap() {
                let mut fds = [PollFd::from_borrowed_fd(agent.event_fd(), PollFlags::IN)];
                // A tenth of a second without anything is this test's own turn, in which it looks whether to stop.
                let turn = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
                if poll(&mut fds, Some(&turn)).unwrap() > 0 {
                    calls += 1;
                }
            }
        }
    });
    is_ready.recv().expect("the agent starts");
    let seen = || seen.lock().unwrap().clone();
    let wakes = || seen().wakes;
    let count = |client: u64| seen().records.get(&client).copied().unwrap_or(0);
    let start = Instant::now();
    let mut flooder = Pushing::join(node.pod("a"), "reports");
    let id = flooder.client.welcome.client;
    let flood = Flood::start(&flooder.client.doorbell);
    settle("a silence", wakes, |s| s.silenced >= 3);
    flood.go_on(20_000);
    let Seen { wakes: stats, calls, .. } = seen();
    let most = allowed(1, start.elapsed(), stats.silenced);
    assert!(stats.rung <= most, "{stats:?}: {most} wakes are what a flood may cause in {:?}", start.elapsed());
    // The descriptor calls for a ring, for a polled client's turn, and for the broker: a join is a few messages.
    let explained = stats.rung + stats.polls + 50;
    assert!(calls <= explained, "the descriptor called {calls} times, {explained} have a reason: {stats:?}");
    // The flooder's own records, and somebody else's.
    for n in 0..50u64 {
        let until = Instant::now() + PATIENCE;
        while !flooder.push(&n.to_le_bytes()) {
            assert!(Instant::now() < until, "no room for the flooder's record");
            std::thread::yield_now();
        }
        settle("a flooder's record", wakes, |_| count(id) > n);
    }
    let honest = Client::join(node.pod("b"), PATIENCE).unwrap();
    let reports = honest.queue("reports").unwrap();
    for n in 0..300u64 {
        reports.push(&n.to_le_bytes(), PATIENCE).unwrap();
    }
    settle("the honest client's records", wakes, |_| count(honest.id()) == 300);
    // The flood ends with a hang-up, which is heard although nobody listens.
    flood.stop();
    drop(flooder);
    node.settle("the flooder is drained", |s| s.clients.len() == 1);
    drop((reports, honest));
    node.settle("all are drained", |s| s.clients.is_empty());
    stop.store(true, Ordering::Relaxed);
    agent.join().unwrap();
}

#[test]
fn whoever_stops_flooding_is_listened_to_again() {
    let node = Node::new(Default::default());
    let agent = Serving::start(node.pod("agent"));
    let mut flooder = Pushing::join(node.pod("a"), "reports");
    let flood = Flood::start(&flooder.client.doorbell);
    settle("a silence", || agent.wakes(), |s| s.silenced >= 1);
    flood.stop();
    // No more polls: the doorbell is back in the epoll, and empty.
    let until = Instant::now() + PATIENCE;
    loop {
        let before = agent.wakes();
        std::thread::sleep(Duration::from_millis(200));
        let after = agent.wakes();
        if before.polls == after.polls && before.rung == after.rung {
            break;
        }
        assert!(Instant::now() < until, "it is polled for ever: {after:?}");
    }
    let rung = agent.wakes().rung;
    assert!(flooder.push(b"listened to"));
    assert_eq!(send(&flooder.client.doorbell, &[1], SendFlags::NOSIGNAL), Ok(1));
    settle("its wake", || agent.wakes(), |s| s.rung > rung);
    settle("its record", || agent.wakes(), |_| agent.records().len() == 1);
    drop(flooder);
    node.settle("it is drained", |s| s.clients.is_empty());
    agent.stop();
}

#[test]
fn records_arrive_without_a_doorbell() {
    let node = Node::new(Default::default());
    let agent = Serving::start(node.pod("agent"));
    let mut shut = Vec::new();
    for how in [Shutdown::Read, Shutdown::Write, Shutdown::Both] {
        let client = Pushing::join(node.pod("a"), "reports");
        shutdown(&client.client.doorbell, how).unwrap();
        shut.push(client);
    }
    settle("the hang-ups", || agent.wakes(), |s| s.rung >= 2);
    for n in 0..20u64 {
        for client in &mut shut {
            assert!(client.push(&n.to_le_bytes()));
            // What still can ring, does.
            let _ = send(&client.client.doorbell, &[1], SendFlags::DONTWAIT | SendFlags::NOSIGNAL);
            let id = client.client.welcome.client;
            let arrived = || agent.records().iter().filter(|r| r.0 == id).count() as u64 > n;
            settle("a record", || agent.wakes(), |_| arrived());
        }
    }
    drop(shut);
    node.settle("all are drained", |s| s.clients.is_empty());
    assert_eq!(agent.stop().len(), 60);
}

#[test]
fn a_doorbell_that_its_owner_never_reads_blocks_nobody() {
    let node = Node::new(Default::default());
    let agent = Serving::start(node.pod("agent"));
    let honest = Client::join(node.pod("b"), PATIENCE).unwrap();
    let mut deaf = Pushing::join(node.pod("a"), "reports");
    let (decide, mut buffer) = (honest.call("decide").unwrap(), [0; 8]);
    // Each record finds it asleep anew, so that the agent rings for each batch, until the socket is full.
    for n in 1..=2000u64 {
        poke(&deaf.head, ARMED, n << 2 | 2);
        while !deaf.push(&n.to_le_bytes()) {
            std::thread::yield_now();
        }
        let _ = send(&deaf.client.doorbell, &[1], SendFlags::DONTWAIT | SendFlags::NOSIGNAL);
        let id = deaf.client.welcome.client;
        if n % 4 == 0 {
            assert_eq!(decide.call(&n.to_le_bytes(), &mut buffer, PATIENCE).unwrap(), 8);
        }
        if n % 500 == 0 {
            let arrived = || agent.records().iter().filter(|r| r.0 == id).count() as u64 == n;
            settle("its records", || agent.wakes(), |_| arrived());
        }
    }
    let mut rings = 0;
    while recv(&deaf.client.doorbell, &mut [0u8; 1][..], RecvFlags::DONTWAIT).is_ok_and(|(n, _)| n > 0) {
        rings += 1;
    }
    assert!(rings > 0, "it was never rung");
    drop((deaf, honest, decide));
    node.settle("all are drained", |s| s.clients.is_empty());
    agent.stop();
}

#[test]
fn an_agents_flood_does_not_keep_its_client_in_system_calls() {
    let node = Node::new(Default::default());
    let service = Service { name: "reports".into(), kind: 2, ring: 16 * 1024, longest: 1024, ..Service::default() };
    let mut agent = RawAgent::start(node.pod("agent"), vec![service]);
    let directory = node.pod("a");
    let start = Instant::now();
    let client = std::thread::spawn(move || Client::join(directory, PATIENCE).unwrap());
    let (_, mut fds) = agent.next_client();
    let client = client.join().unwrap();
    let doorbell = fds.pop().unwrap();
    let flood = Flood::start(&doorbell);
    settle("a silence", || client.wake_stats(), |s| s.silenced >= 3);
    flood.go_on(20_000);
    let stats = client.wake_stats();
    let most = allowed(1, start.elapsed(), stats.silenced);
    assert!(stats.rung <= most, "{stats:?}: {most} wakes are what a flood may cause in {:?}", start.elapsed());
    // Its library thread listens to the broker, and to the hang-up, all the same.
    flood.stop();
    drop((doorbell, fds));
    let until = Instant::now() + PATIENCE;
    while client.agent_present() {
        assert!(Instant::now() < until, "the hang-up is not heard");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn ringing_a_dead_agent_kills_no_c_program() {
    let node = Node::new(Default::default());
    let agent = Serving::start(node.pod("agent"));
    let mut command = Command::new(compile("away", node.root()));
    command.arg(node.pod("a"));
    let mut program = Talk::start(command);
    let client = program.number("client");
    settle("the client is cold", || agent.wakes(), |s| s.looks > 50);
    agent.stop();
    program.tell();
    assert_eq!(program.line(), "pushed");
    program.end();
    let successor = Serving::start(node.pod("agent"));
    node.settle("all are drained", |s| s.clients.is_empty());
    assert_eq!(successor.stop().iter().filter(|r| r.0 == client && r.3 == b"away").count(), 10);
}

struct Unpark(std::thread::Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

#[test]
fn whoever_rings_for_something_is_never_silenced() {
    let node = Node::new(Default::default());
    let agent = Serving::start(node.pod("agent"));
    let client = Client::join(node.pod("a"), PATIENCE).unwrap();
    let threads: Vec<_> = (0..3)
        .map(|_| {
            let (reports, decide) = (client.queue("reports").unwrap(), client.call("decide").unwrap());
            std::thread::spawn(move || {
                let (never, mut buffer) = (decide.clone().spin(Spin::Never), [0; 8]);
                let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
                for n in 0..1500u64 {
                    // Alone and asleep each time, so that each of these needs a wake, and its answer another one.
                    reports.push(&n.to_le_bytes(), PATIENCE).unwrap();
                    assert_eq!(never.call(&n.to_le_bytes(), &mut buffer, PATIENCE).unwrap(), 8);
                    let mut future = decide.call_async(n.to_le_bytes(), PATIENCE);
                    loop {
                        match Pin::new(&mut future).poll(&mut Context::from_waker(&waker)) {
                            Poll::Ready(answer) => break assert_eq!(answer.unwrap(), n.to_be_bytes()),
                            Poll::Pending => std::thread::park(),
                        }
                    }
                    if n % 4 == 0 {
                        std::thread::sleep(Duration::from_micros(200));
                    }
                }
            })
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
    let (agents, clients) = (agent.wakes(), client.wake_stats());
    assert!(agents.rung > 300 && clients.rung > 300, "no wakes, so that this shows nothing: {agents:?} {clients:?}");
    assert_eq!((agents.silenced, clients.silenced), (0, 0), "{agents:?} {clients:?}");
    drop(client);
    agent.stop();
}
