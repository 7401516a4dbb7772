//! An honest agent in a thread: it keeps records and reverses requests.

use podshm::{Agent, AgentBuilder, Answer, Handler, Progress, Record, Request, WakeStats};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

/// A record that was handled: client, position, whether a predecessor may have seen it, bytes.
pub type Handled = (u64, u64, bool, Vec<u8>);

#[derive(Clone, Default)]
struct Keep(Arc<Mutex<Vec<Handled>>>);

impl Handler for Keep {
    fn record(&mut self, r: Record<'_>) {
        self.0.lock().unwrap().push((r.client, r.position, r.maybe_seen, r.bytes.to_vec()));
    }

    fn call(&mut self, request: Request<'_>, answer: &mut Answer<'_>) {
        let mut bytes = request.bytes.to_vec();
        bytes.reverse();
        answer.reply_owned(bytes);
    }
}

/// A running agent.
#[derive(Debug)]
pub struct Serving {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    records: Arc<Mutex<Vec<Handled>>>,
    wakes: Arc<Mutex<WakeStats>>,
}

impl Serving {
    /// Starts it on `directory`, with table `routes`, queue `reports` and call `decide`.
    pub fn start(directory: PathBuf) -> Serving {
        Self::start_with(directory, 1, |agent| agent)
    }

    /// The same with more services, and with values of bytes `version` in the table.
    pub fn start_with(
        directory: PathBuf,
        version: u8,
        offer: impl FnOnce(AgentBuilder) -> AgentBuilder + Send + 'static,
    ) -> Serving {
        let (stop, mut keep) = (Arc::new(AtomicBool::new(false)), Keep::default());
        let (stopped, records) = (Arc::clone(&stop), Arc::clone(&keep.0));
        let wakes = Arc::default();
        let stats: Arc<Mutex<WakeStats>> = Arc::clone(&wakes);
        let (ready, is_ready) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            let agent = Agent::builder().table("routes", 100, 64 * 1024).queue("reports", 16 * 1024, 1024).call(
                "decide",
                16 * 1024,
                64 * 1024,
            );
            let mut agent = offer(agent).connect(directory, crate::PATIENCE).unwrap();
            agent.table("routes").unwrap().put(b"key", &[version; 200]).unwrap();
            agent.ready().unwrap();
            ready.send(()).unwrap();
            while !stopped.load(Ordering::Relaxed) {
                *stats.lock().unwrap() = agent.wake_stats();
                match agent.poll(&mut keep).unwrap() {
                    Progress::Handled(_) => {}
                    Progress::Idle => agent.wait(Duration::from_millis(10)).unwrap(),
                    Progress::CloseAsked => break,
                }
            }
            agent.close(Vec::new()).unwrap();
        });
        is_ready.recv().expect("the agent starts");
        Serving { stop, thread: Some(thread), records, wakes }
    }

    /// What it was woken by so far.
    pub fn wakes(&self) -> WakeStats {
        *self.wakes.lock().unwrap()
    }

    /// What it has handled so far.
    pub fn records(&self) -> Vec<Handled> {
        self.records.lock().unwrap().clone()
    }

    /// Ends it in order; fails where it has panicked.
    pub fn stop(mut self) -> Vec<Handled> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().expect("the agent ends well");
        self.records()
    }
}
