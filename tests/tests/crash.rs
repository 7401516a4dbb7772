//! Agents that are killed or stopped with work in flight: nothing that was accepted is lost, and what comes twice is marked.

use podshm::{Agent, Client, ErrorKind, Handler, Record};
use podshm_broker::DomainConfig;
use podshm_tests::raw::Random;
use podshm_tests::{Node, PATIENCE};
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Random moments at which an agent is killed.
const KILLS: u32 = 200;
const CLIENTS: u32 = 4;
/// Bytes of a line in the file of deliveries: client, position, maybe_seen, number.
const LINE: usize = 32;

struct Log(File);

impl Handler for Log {
    fn record(&mut self, r: Record<'_>) {
        let mut line = [0; LINE];
        line[..8].copy_from_slice(&r.client.to_le_bytes());
        line[8..16].copy_from_slice(&r.position.to_le_bytes());
        line[16..24].copy_from_slice(&u64::from(r.maybe_seen).to_le_bytes());
        line[24..].copy_from_slice(&r.bytes[..8].try_into().map(u64::from_le_bytes).unwrap().to_le_bytes());
        assert!(r.bytes[8..].iter().all(|b| *b == r.bytes[0]), "torn");
        assert_eq!(self.0.write(&line).unwrap(), LINE);
    }
}

/// The agent's process: nothing when run as a test.
#[test]
fn role_agent() {
    let (Ok(directory), Ok(file)) = (std::env::var("CRASH_AGENT"), std::env::var("CRASH_FILE")) else { return };
    let mut log = Log(OpenOptions::new().append(true).open(file).unwrap());
    let mut agent = Agent::builder().queue("reports", 16 * 1024, 256).connect(directory, PATIENCE).unwrap();
    agent.ready().unwrap();
    match agent.run(&mut log, || false) {
        Ok(()) => {}
        Err(e) => assert_eq!(e.kind(), ErrorKind::Superseded, "{e}"),
    }
}

struct Process(Child);

impl Process {
    fn start(directory: &Path, file: &Path) -> Process {
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "role_agent", "--test-threads=1"])
            .env("CRASH_AGENT", directory)
            .env("CRASH_FILE", file)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        Process(child)
    }

    fn signal(&self, signal: i32) {
        // SAFETY: a signal to a child that this value owns and has not reaped.
        assert_eq!(unsafe { libc::kill(self.0.id() as i32, signal) }, 0);
    }

    fn kill(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Ok(None) = self.0.try_wait() {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }
}

struct Load {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<(u64, u64)>>,
}

impl Load {
    fn start(node: &Node) -> Load {
        let stop = Arc::new(AtomicBool::new(false));
        let threads = (0..CLIENTS)
            .map(|c| {
                let (stop, directory) = (Arc::clone(&stop), node.pod(&format!("c{c}")));
                std::thread::spawn(move || {
                    let client = Client::join(directory, PATIENCE).unwrap();
                    let reports = client.queue("reports").unwrap();
                    let mut sent = 0u64;
                    let mut away = Instant::now();
                    while !stop.load(Ordering::Relaxed) {
                        let mut record = vec![sent as u8; 8 + (sent % 200) as usize];
                        record[..8].copy_from_slice(&sent.to_le_bytes());
                        match reports.push(&record, Duration::from_millis(100)) {
                            Ok(_) => (sent, away) = (sent + 1, Instant::now()),
                            // Not accepted: the same number goes again.
                            Err(e) => {
                                let kind = e.kind();
                                assert!(
                                    matches!(kind, ErrorKind::Full | ErrorKind::Deadline | ErrorKind::AgentAway),
                                    "{e}"
                                );
                                assert!(away.elapsed() < PATIENCE, "no agent takes anything: {e}");
                            }
                        }
                        if sent.is_multiple_of(64) {
                            std::thread::sleep(Duration::from_micros(300));
                        }
                    }
                    (client.id(), sent)
                })
            })
            .collect();
        Load { stop, threads }
    }

    fn stop(self) -> Vec<(u64, u64)> {
        self.stop.store(true, Ordering::Relaxed);
        self.threads.into_iter().map(|t| t.join().unwrap()).collect()
    }
}

/// Reads the deliveries; fails where one is lost, unmarked twice, or out of order. Says how many came twice.
fn check(file: &Path, sent: &[(u64, u64)]) -> u64 {
    let bytes = std::fs::read(file).unwrap();
    assert_eq!(bytes.len() % LINE, 0, "whole lines");
    let word = |line: &[u8], at: usize| u64::from_le_bytes(line[at..at + 8].try_into().unwrap());
    let mut seen: BTreeMap<(u64, u64), (u64, u64, u64)> = BTreeMap::new();
    let mut first: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
    for line in bytes.chunks(LINE) {
        let (client, position, marked, number) = (word(line, 0), word(line, 8), word(line, 16), word(line, 24));
        let entry = seen.entry((client, number)).or_insert_with(|| {
            first.entry(client).or_default().push(number);
            (position, 0, 0)
        });
        assert_eq!(entry.0, position, "client {client}: number {number} has one position");
        entry.1 += 1;
        entry.2 += u64::from(marked == 0);
    }
    let mut repeated = 0;
    for ((client, number), (_, times, unmarked)) in &seen {
        assert!(*unmarked <= 1, "client {client}, number {number}: {times} deliveries, {unmarked} of them unmarked");
        repeated += times - 1;
    }
    for (client, sent) in sent {
        let got = first.get(client).map_or(&[][..], Vec::as_slice);
        let lost: Vec<u64> = (0..*sent).filter(|n| !seen.contains_key(&(*client, *n))).take(5).collect();
        assert!(lost.is_empty(), "client {client}: of {sent} accepted {lost:?} … are lost");
        assert_eq!(got.len() as u64, *sent, "client {client}: nothing that was not accepted");
        let out = got.iter().enumerate().find(|(n, number)| *n as u64 != **number);
        assert_eq!(out, None, "client {client}: out of order");
    }
    repeated
}

fn deliveries(node: &Node) -> PathBuf {
    let file = node.root().join("deliveries");
    File::create(&file).unwrap();
    file
}

#[test]
fn agents_killed_at_random_moments_lose_nothing() {
    let node = Node::with(DomainConfig::new("d"));
    let (directory, file) = (node.pod("agent"), deliveries(&node));
    let mut random = Random(0x2545_f491_4f6c_dd1d);
    let mut agent = Process::start(&directory, &file);
    node.settle("the first agent serves", |s| s.agent);
    let load = Load::start(&node);
    node.settle("all joined", |s| s.clients.len() == CLIENTS as usize);
    for kill in 0..KILLS {
        let epoch = node.broker.stats("d").unwrap().epoch;
        // Every fourth dies while it takes over, the others at work.
        let pause = if kill % 4 == 0 { random.below(3_000) } else { random.below(40_000) };
        std::thread::sleep(Duration::from_micros(pause));
        agent.kill();
        agent = Process::start(&directory, &file);
        node.settle("another agent serves", |s| s.agent && s.epoch > epoch);
    }
    let sent = load.stop();
    node.settle("all is drained", |s| s.clients.is_empty());
    let total: u64 = sent.iter().map(|s| s.1).sum();
    assert!(total > u64::from(KILLS) * 100, "{total} records are no load");
    let repeated = check(&file, &sent);
    eprintln!("{total} records over {KILLS} kills, {repeated} delivered again");
    assert!(repeated < total / 2);
    agent.kill();
}

#[test]
fn a_stopped_agent_does_no_harm_when_it_wakes_up() {
    let node = Node::with(DomainConfig { close_grace: Duration::from_millis(200), ..DomainConfig::new("d") });
    let (directory, file) = (node.pod("agent"), deliveries(&node));
    let mut agent = Process::start(&directory, &file);
    node.settle("the first agent serves", |s| s.agent);
    let load = Load::start(&node);
    node.settle("all joined", |s| s.clients.len() == CLIENTS as usize);
    for _ in 0..5 {
        std::thread::sleep(Duration::from_millis(37));
        let epoch = node.broker.stats("d").unwrap().epoch;
        agent.signal(libc::SIGSTOP);
        let successor = Process::start(&directory, &file);
        node.settle("the successor serves", |s| s.agent && s.epoch > epoch);
        std::thread::sleep(Duration::from_millis(50));
        agent.signal(libc::SIGCONT);
        let until = Instant::now() + PATIENCE;
        let status = loop {
            if let Some(status) = agent.0.try_wait().unwrap() {
                break status;
            }
            assert!(Instant::now() < until, "the stopped agent does not end");
            std::thread::sleep(Duration::from_millis(2));
        };
        assert!(status.success(), "the stopped agent ends in order: {status}");
        agent = successor;
    }
    let sent = load.stop();
    node.settle("all is drained", |s| s.clients.is_empty());
    let repeated = check(&file, &sent);
    eprintln!("{} records, {repeated} delivered again", sent.iter().map(|s| s.1).sum::<u64>());
    agent.kill();
}
