//! An agent in a thread with several services of each kind, so that it matters where each ring's cursors are; and a client's thread
//! that uses all of them until it is told to stop.

use crate::PATIENCE;
use podshm::{Agent, AgentBuilder, Answer, Client, ErrorKind, Handler, Progress, Record, Request};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

/// Queues `q0` to `q3`.
pub const QUEUES: usize = 4;
/// Calls `c0` to `c2`.
pub const CALLS: usize = 3;
/// Length of the one value in table `routes`, under `key`: all bytes are the agent's version.
pub const VALUE: usize = 200;

/// Numbers that came, in order, with their marks: by client and queue.
pub type Came = BTreeMap<(u64, String), Vec<(u64, bool)>>;

/// What the agents of one test have handled.
#[derive(Clone, Debug, Default)]
pub struct Log(Arc<Mutex<Came>>);

impl Handler for Log {
    fn record(&mut self, r: Record<'_>) {
        let number = u64::from_le_bytes(r.bytes.try_into().expect("a number"));
        let mut came = self.0.lock().expect("the log");
        came.entry((r.client, r.service.to_owned())).or_default().push((number, r.maybe_seen));
    }

    fn call(&mut self, request: Request<'_>, answer: &mut Answer<'_>) {
        let mut bytes = request.service.as_bytes().to_vec();
        bytes.extend_from_slice(request.bytes);
        answer.reply_owned(bytes);
    }
}

impl Log {
    /// Everything so far.
    pub fn came(&self) -> Came {
        self.0.lock().expect("the log").clone()
    }

    /// Fails unless everything that this client has sent came exactly once and in order.
    pub fn check(&self, sent: &Sent) {
        let came = self.came();
        for (queue, &count) in sent.queues.iter().enumerate() {
            let got = came.get(&(sent.client, format!("q{queue}"))).cloned().unwrap_or_default();
            let wrong = got.iter().enumerate().find(|(n, (number, seen))| *n as u64 != *number || *seen);
            assert_eq!(wrong, None, "client {}, queue {queue}: exactly once, in order, unmarked", sent.client);
            assert_eq!(got.len() as u64, count, "client {}, queue {queue}", sent.client);
        }
    }
}

impl Log {
    /// Fails unless everything that this client has sent came, in order, and what came more than once was marked but for once.
    pub fn check_marked(&self, sent: &Sent) {
        let came = self.came();
        for (queue, &count) in sent.queues.iter().enumerate() {
            let got = came.get(&(sent.client, format!("q{queue}"))).cloned().unwrap_or_default();
            let what = format!("client {}, queue {queue}", sent.client);
            let mut next = 0;
            for &(number, seen) in &got {
                assert!(number <= next, "{what}: {number} came before {next}");
                assert!(number == next || seen, "{what}: {number} came again, unmarked");
                next = next.max(number + 1);
            }
            assert_eq!(next, count, "{what}");
        }
    }
}

/// The services of these agents.
pub fn services() -> AgentBuilder {
    services_behind(Agent::builder())
}

/// The services of these agents behind others.
pub fn services_behind(builder: AgentBuilder) -> AgentBuilder {
    let queues = (0..QUEUES)
        .fold(builder.table("routes", 100, 64 * 1024), |builder, n| builder.queue(&format!("q{n}"), 4096, 64));
    (0..CALLS).fold(queues, |builder, n| builder.call(&format!("c{n}"), 16 * 1024, 20_000))
}

/// A running agent.
#[derive(Debug)]
pub struct Many {
    stop: Arc<AtomicBool>,
    crash: Arc<AtomicBool>,
    grow: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Many {
    /// Starts `builder` (with [`services`] and more) on `directory`. Returns when it has said that it is ready.
    pub fn start(directory: PathBuf, builder: AgentBuilder, version: u8, mut log: Log) -> Many {
        let flag = || Arc::new(AtomicBool::new(false));
        let (stop, crash, grow) = (flag(), flag(), flag());
        let (stopped, crashed, grows) = (Arc::clone(&stop), Arc::clone(&crash), Arc::clone(&grow));
        let (ready, is_ready) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            let mut agent = builder.connect(directory, PATIENCE).expect("the agent connects");
            let mut table = agent.table("routes").expect("a table");
            table.put(b"key", &[version; VALUE]).expect("room");
            agent.ready().expect("ready");
            ready.send(()).expect("somebody waits");
            let mut filler = 0u32;
            while !stopped.load(Ordering::Relaxed) {
                if crashed.load(Ordering::Relaxed) {
                    return; // without a word to anybody
                }
                if grows.swap(false, Ordering::Relaxed) {
                    let mut table = agent.table("routes").expect("a table");
                    for _ in 0..1000 {
                        filler += 1;
                        table.put(&filler.to_le_bytes(), &[version; 300]).expect("the table grows");
                    }
                }
                match agent.poll(&mut log).expect("the agent goes on") {
                    Progress::Handled(_) => {}
                    Progress::Idle => agent.wait(Duration::from_millis(5)).expect("the agent waits"),
                    Progress::CloseAsked => break,
                }
            }
            agent.close(Vec::new()).expect("the agent closes");
        });
        is_ready.recv().expect("the agent starts");
        Many { stop, crash, grow, thread: Some(thread) }
    }

    /// Makes its table grow.
    pub fn grow(&self) {
        self.grow.store(true, Ordering::Relaxed);
    }

    /// Ends it as a crash would: nothing is closed, everybody finds out by its hang-up.
    pub fn crash(self) {
        self.crash.store(true, Ordering::Relaxed);
        self.join();
    }

    /// Ends it in order.
    pub fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.join();
    }

    /// Waits until it has ended because it was asked to; fails where it has panicked.
    pub fn join(mut self) {
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the agent ends well");
        }
    }
}

/// What a client has sent.
#[derive(Clone, Copy, Debug)]
pub struct Sent {
    /// Its number.
    pub client: u64,
    /// Records that were accepted, by queue.
    pub queues: [u64; QUEUES],
    /// Calls that were answered.
    pub answers: u64,
    /// Its agents may crash: calls may have an unknown outcome.
    pub tolerant: bool,
}

/// A client's thread.
#[derive(Debug)]
pub struct Using {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Sent>,
}

impl Using {
    /// Looks up, pushes and calls through every service until it is told to stop; fails by itself where an answer or a value is wrong.
    pub fn start(client: Client) -> Using {
        Self::start_as(client, false)
    }

    /// [`Using::start`] where agents crash.
    pub fn start_tolerant(client: Client) -> Using {
        Self::start_as(client, true)
    }

    fn start_as(client: Client, tolerant: bool) -> Using {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut sent = Sent { client: client.id(), queues: [0; QUEUES], answers: 0, tolerant };
            while !stopped.load(Ordering::Relaxed) {
                round(&client, &mut sent);
            }
            sent
        });
        Using { stop, thread }
    }

    /// Stops it and says what it has sent.
    pub fn stop(self) -> Sent {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("the client ends well")
    }
}

/// One lookup, one record for each queue, one call for each call service.
pub fn round(client: &Client, sent: &mut Sent) {
    let mut buffer = [0; 256];
    let len = client.table("routes").and_then(|t| t.get(b"key", &mut buffer)).expect("lookups never stop");
    assert_eq!(len, Some(VALUE));
    assert!(buffer[..VALUE].iter().all(|byte| *byte == buffer[0]), "torn");
    for (queue, count) in sent.queues.iter_mut().enumerate() {
        let queue = client.queue(&format!("q{queue}")).expect("a queue");
        queue.push(&count.to_le_bytes(), PATIENCE).expect("a record is accepted");
        *count += 1;
    }
    for call in 0..CALLS {
        let (name, mut answer) = (format!("c{call}"), vec![0; 8_000]);
        // Now and then one that goes in fragments, and that fits half the ring: it survives a hand-over when half sent.
        let request = vec![call as u8; if sent.answers.is_multiple_of(16) { 6_000 } else { 8 }];
        match client.call(&name).and_then(|c| c.call(&request, &mut answer, PATIENCE)) {
            Ok(len) => {
                assert_eq!((&answer[..2], &answer[2..len]), (name.as_bytes(), &request[..]), "the right answer");
                sent.answers += 1;
            }
            Err(error) => {
                let kind = error.kind();
                let away = kind == ErrorKind::AgentAway || kind == ErrorKind::OutcomeUnknown && sent.tolerant;
                assert!(away, "{error}");
            }
        }
    }
}
