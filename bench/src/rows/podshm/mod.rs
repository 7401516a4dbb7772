//! podshm itself: the peer process is the agent, clients are in the measuring process and in others.
//!
//! The broker is a thread of the measuring process unless a row says otherwise; it is idle once everybody has joined.

mod c_library;
mod c_whole;
mod clients;
mod cost;
mod join;
mod paced;
mod table;
mod threads;
mod transport;
mod whole;

pub use c_library::{CHandle, CTransport};
pub use c_whole::{CCalls, CGet};
pub use clients::Crowd;
pub use cost::ClientCost;
pub use join::Join;
#[cfg(feature = "iceoryx2")]
pub use join::{FIRST, in_new_processes};
pub use paced::Paced;
pub use table::{PodshmHandle, PodshmTable};
pub use threads::Threads;
pub use transport::PodshmTransport;
pub use whole::{Calls, Get};

use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Result;
use podshm::{Agent, Answer, DEFAULT_CALL_RING, DEFAULT_RING, Handler, Record, Request};
use podshm_broker::{Broker, DomainConfig, Identity, Limits, Rights};

use crate::control::Control;
use crate::payload;
use crate::transport::{Order, answer_seed};

const PATIENCE: Duration = Duration::from_secs(30);

/// A broker with one agent's and one client's socket.
struct Node {
    broker: Broker,
    root: PathBuf,
}

impl Node {
    fn start() -> Result<Self> {
        let root = std::env::temp_dir().join(format!("podshm-bench-{}", std::process::id()));
        let broker = Broker::start()?;
        let limits = Limits { budget: 4 << 30, member_share: 2 << 30, member_clients: 2000, ..Limits::default() };
        broker.add_domain(DomainConfig { limits, ..DomainConfig::new("bench") })?;
        for (name, rights) in
            [("agent", Rights { join: false, serve: true }), ("client", Rights { join: true, serve: false })]
        {
            let directory = root.join(name);
            std::fs::create_dir_all(&directory)?;
            let who = Identity {
                namespace: "bench".into(),
                pod: name.into(),
                uid: name.into(),
                service_account: "default".into(),
            };
            broker.add_socket("bench", &directory, who, rights)?;
        }
        Ok(Node { broker, root })
    }
}

impl Node {
    /// Where the agent connects.
    fn agent(&self) -> PathBuf {
        self.root.join("agent")
    }

    /// Where clients join.
    fn client(&self) -> PathBuf {
        self.root.join("client")
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.root);
    }
}

/// An agent as the library's defaults have it: one table with a key, one queue, one call; it is ready.
fn default_agent(directory: &Path) -> Result<Agent> {
    let mut agent = Agent::builder()
        .table("table", 1000, 1 << 20)
        .queue("queue", DEFAULT_RING, 1024)
        .call("call", DEFAULT_CALL_RING, 64 * 1024)
        .connect(directory, PATIENCE)?;
    agent.table("table")?.put(b"key", &[7; 200])?;
    agent.ready()?;
    Ok(agent)
}

/// Serves as a program does, asleep when there is nothing to do, until the control line says something.
fn serve_until_told(mut agent: Agent, control: &mut Control) -> Result<()> {
    let told = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let _ = control.recv::<Order>();
            told.store(true, Ordering::Relaxed);
        });
        agent.run(&mut Counted::default(), || told.load(Ordering::Relaxed))
    })?;
    Ok(())
}

/// A handler is on its way while the agent looks at what it has done.
#[derive(Clone, Default)]
struct Counted {
    records: Rc<Cell<u64>>,
    calls: Rc<Cell<u64>>,
    sum: Rc<Cell<u64>>,
    of_request: u64,
}

impl Handler for Counted {
    fn record(&mut self, record: Record<'_>) {
        self.sum.set(self.sum.get().wrapping_add(payload::sum(record.bytes)));
        self.records.set(self.records.get() + 1);
    }

    fn part(&mut self, request: Request<'_>, offset: usize) -> bool {
        if offset == 0 {
            self.of_request = 0;
        }
        self.of_request = self.of_request.wrapping_add(payload::sum(request.bytes));
        true
    }

    fn call(&mut self, request: Request<'_>, answer: &mut Answer<'_>) {
        let sum = if request.bytes.is_empty() { self.of_request } else { payload::sum(request.bytes) };
        let seed = answer_seed(sum);
        if request.len <= 1024 {
            let mut bytes = [0; 1024];
            payload::fill(&mut bytes[..request.len], seed);
            answer.reply(&bytes[..request.len]);
        } else {
            answer.reply_with(request.len, move |offset, part| payload::fill_from(part, seed, offset / 8));
        }
        self.calls.set(self.calls.get() + 1);
    }
}
