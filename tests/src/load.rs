//! Clients in threads of the test's process that work all the while, whatever happens to agents and to other clients.

use crate::deliveries::{Outcome, Sent};
use crate::work::{Calls, Lookups, Pushes, is_no_room};
use crate::{Node, PATIENCE};
use podshm::Client;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// What a client has done so far.
#[derive(Debug, Default)]
struct Done {
    pushes: AtomicU64,
    answers: AtomicU64,
    /// Calls that nobody answered in time.
    late: AtomicU64,
    rounds: AtomicU64,
}

impl Done {
    fn now(&self) -> [u64; 3] {
        [&self.pushes, &self.answers, &self.rounds].map(|n| n.load(Ordering::Relaxed))
    }
}

/// Clients at work, each with a thread that reports, one that calls and one that looks up.
#[derive(Debug)]
pub struct Load {
    stop: Arc<AtomicBool>,
    done: Vec<Arc<Done>>,
    threads: Vec<JoinHandle<Sent>>,
    comers: Option<JoinHandle<Vec<Sent>>>,
    /// Held so that clients leave when the test says so.
    _clients: Vec<Client>,
}

impl Load {
    /// Senders 0 to `clients`, each in a pod of its own. An agent must serve.
    pub fn start(node: &Node, clients: u32) -> Load {
        let stop = Arc::new(AtomicBool::new(false));
        let mut load = Load { stop, done: Vec::new(), threads: Vec::new(), comers: None, _clients: Vec::new() };
        for sender in 0..clients {
            let client = Client::join(node.pod(&format!("steady-{sender}")), PATIENCE).unwrap();
            let done = Arc::new(Done::default());
            load.threads.push(reporter(&client, sender, &load.stop, &done));
            load.threads.push(caller(&client, sender, &load.stop, &done));
            load.threads.push(reader(&client, sender, &load.stop, &done));
            load.done.push(done);
            load._clients.push(client);
        }
        load
    }

    /// Lets further clients join, work a little and leave again, one after another.
    pub fn with_comers(mut self, node: &Node) -> Load {
        let (stop, directory) = (Arc::clone(&self.stop), node.pod("comers"));
        let come = move || {
            let mut all = Vec::new();
            while !stop.load(Ordering::Relaxed) {
                let mut sent = Sent { sender: 100_000 + all.len() as u32, ..Sent::default() };
                let client = Client::join(&directory, PATIENCE).expect("a domain with room lets clients in");
                let (mut pushes, mut calls) = (Pushes::new(&client, sent.sender), Calls::new(&client, sent.sender));
                calls.next = all.len() as u64; // of every kind and length
                for _ in 0..10 {
                    // Full where no agent serves: then it leaves with what it has.
                    let _ = pushes.some();
                }
                let (number, outcome) = calls.one();
                if Calls::is_once(number) { &mut sent.once } else { &mut sent.again }.insert(number, outcome);
                sent.accepted = pushes.accepted;
                all.push(sent);
            }
            all
        };
        self.comers = Some(std::thread::Builder::new().name("comers".into()).spawn(come).unwrap());
        self
    }

    /// Waits until every client has reported, been answered and looked up some more.
    pub fn await_progress(&self, after: &str) {
        self.await_least(after, [20, 3, 2]);
    }

    /// Waits until every client has looked up some more, whether an agent serves or not.
    pub fn await_lookups(&self, after: &str) {
        self.await_least(after, [0, 0, 2]);
    }

    /// Waits until a call of every client has ended because its deadline passed: the agent answers nobody now.
    pub fn await_deadlines(&self, after: &str) {
        let before: Vec<u64> = self.done.iter().map(|d| d.late.load(Ordering::Relaxed)).collect();
        let until = Instant::now() + PATIENCE;
        while self.done.iter().zip(&before).any(|(d, before)| d.late.load(Ordering::Relaxed) == *before) {
            assert!(Instant::now() < until, "no call ends by its deadline after {after}");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn await_least(&self, after: &str, least: [u64; 3]) {
        let before: Vec<[u64; 3]> = self.done.iter().map(|d| d.now()).collect();
        let until = Instant::now() + PATIENCE;
        loop {
            let now: Vec<[u64; 3]> = self.done.iter().map(|d| d.now()).collect();
            let good = |(now, before): (&[u64; 3], &[u64; 3])| (0..3).all(|i| now[i] - before[i] >= least[i]);
            if now.iter().zip(&before).all(good) {
                return;
            }
            assert!(!self.threads.iter().any(JoinHandle::is_finished), "a client gave up after {after}");
            assert!(
                Instant::now() < until,
                "no progress after {after}: [reports, answers, rounds of lookups] {before:?}, then {now:?}"
            );
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Ends the work; says what each sender knows of what it sent.
    pub fn stop(self) -> Vec<Sent> {
        self.stop.store(true, Ordering::Relaxed);
        let mut sent: Vec<Sent> = Vec::new();
        for thread in self.threads {
            let part = thread.join().expect("a client's thread ends well");
            match sent.iter_mut().find(|s| s.sender == part.sender) {
                Some(sent) => {
                    sent.accepted += part.accepted;
                    sent.once.extend(part.once);
                    sent.again.extend(part.again);
                }
                None => sent.push(part),
            }
        }
        sent.extend(self.comers.into_iter().flat_map(|comers| comers.join().expect("clients join and leave well")));
        sent
    }
}

fn spawn(name: &str, sender: u32, work: impl FnOnce() -> Sent + Send + 'static) -> JoinHandle<Sent> {
    std::thread::Builder::new().name(format!("{name}-{sender}")).spawn(work).unwrap()
}

fn reporter(client: &Client, sender: u32, stop: &Arc<AtomicBool>, done: &Arc<Done>) -> JoinHandle<Sent> {
    let (mut pushes, stop, done) = (Pushes::new(client, sender), Arc::clone(stop), Arc::clone(done));
    spawn("reporter", sender, move || {
        let mut last = Instant::now();
        for turn in 1u64.. {
            if stop.load(Ordering::Relaxed) {
                break;
            }
            match pushes.some() {
                Ok(()) => last = Instant::now(),
                Err(e) => {
                    assert!(is_no_room(&e), "{e}");
                    assert!(last.elapsed() < PATIENCE, "nobody takes a record: {e}");
                }
            }
            done.pushes.store(pushes.accepted, Ordering::Relaxed);
            if turn.is_multiple_of(16) {
                std::thread::sleep(Duration::from_micros(300));
            }
        }
        Sent { sender, accepted: pushes.accepted, ..Sent::default() }
    })
}

fn caller(client: &Client, sender: u32, stop: &Arc<AtomicBool>, done: &Arc<Done>) -> JoinHandle<Sent> {
    let (mut calls, stop, done) = (Calls::new(client, sender), Arc::clone(stop), Arc::clone(done));
    spawn("caller", sender, move || {
        let mut sent = Sent { sender, ..Sent::default() };
        while !stop.load(Ordering::Relaxed) {
            let (number, outcome) = calls.one();
            if Calls::is_once(number) { &mut sent.once } else { &mut sent.again }.insert(number, outcome);
            match outcome {
                Outcome::Answered => drop(done.answers.fetch_add(1, Ordering::Relaxed)),
                Outcome::Deadline => drop(done.late.fetch_add(1, Ordering::Relaxed)),
                _ => std::thread::sleep(Duration::from_millis(1)),
            }
            if number.is_multiple_of(16) {
                std::thread::sleep(Duration::from_micros(300));
            }
        }
        sent
    })
}

fn reader(client: &Client, sender: u32, stop: &Arc<AtomicBool>, done: &Arc<Done>) -> JoinHandle<Sent> {
    let (mut lookups, stop, done) = (Lookups::new(client), Arc::clone(stop), Arc::clone(done));
    spawn("reader", sender, move || {
        while !stop.load(Ordering::Relaxed) {
            lookups.round();
            done.rounds.fetch_add(1, Ordering::Relaxed);
            std::thread::sleep(Duration::from_micros(200));
        }
        Sent { sender, ..Sent::default() }
    })
}
