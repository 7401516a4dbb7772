//! podshm itself: the measuring process is a client (and hosts the broker, which is idle then), the peer process the agent.

use std::cell::Cell;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use podshm::{Agent, Answer, Caller, Client, Handler, Progress, QueueSender, Record, Request, Spin};
use podshm_broker::{Broker, DomainConfig, Identity, Limits, Rights};

use crate::control::Control;
use crate::metric::{HASHBROWN, Metric, RAW_RING, SEQLOCK};
use crate::payload;
use crate::record;
use crate::routes::{self, COUNTS, Queries};
use crate::row::{Bound, Plan, Row, Sample, Target};
use crate::transport::{
    BATCH, Latencies, Order, Session, Transport, answer_seed, check_answer, check_drained, timed_oneway, timed_rtt,
};

const PATIENCE: Duration = Duration::from_secs(30);

/// A broker with one agent's and one client's socket.
struct Node {
    _broker: Broker,
    root: PathBuf,
}

impl Node {
    fn start() -> Result<Self> {
        let root = std::env::temp_dir().join(format!("podshm-bench-{}", std::process::id()));
        let broker = Broker::start()?;
        let limits = Limits { budget: 4 << 30, member_share: 1 << 30, ..Limits::default() };
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
        Ok(Node { _broker: broker, root })
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.root);
    }
}

/// Calls for round trips, a queue for rates.
pub struct PodshmTransport {
    /// Bytes of each ring.
    ring: u32,
    name: &'static str,
}

impl PodshmTransport {
    /// Rings as a client has them by default.
    pub const DEFAULT: Self = PodshmTransport { ring: 32 * 1024, name: "podshm" };
    /// Rings for big payloads.
    pub const LARGE: Self = PodshmTransport { ring: 512 * 1024, name: "podshm-large" };
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

impl Transport for PodshmTransport {
    fn name(&self) -> &'static str {
        self.name
    }

    fn title(&self) -> String {
        format!("podshm, rings of {} KiB", self.ring / 1024)
    }

    fn rates(&self) -> Vec<(usize, bool)> {
        vec![(64, false), (64, true)]
    }

    fn targets(&self) -> Vec<Target> {
        let most =
            |size, ratio| Target { metric: Metric::Rtt { size }, bound: Bound::AtMost(ratio, RAW_RING), fatal: false };
        let least = |batched, ratio| Target {
            metric: Metric::Rate { size: 64, batched },
            bound: Bound::AtLeast(ratio, RAW_RING),
            fatal: false,
        };
        if self.name == Self::LARGE.name {
            vec![most(64 << 10, 1.15), most(1 << 20, 1.1)]
        } else {
            let mut targets = vec![most(64, 1.2), least(true, 1.0), least(false, 0.5)];
            if cfg!(feature = "iceoryx2") {
                let third = Bound::AtMost(0.33, "iceoryx2-pubsub");
                targets.push(Target { metric: Metric::Rtt { size: 64 }, bound: third, fatal: false });
            }
            targets
        }
    }

    fn connect(&self, peer: &mut Control) -> Result<Box<dyn Session>> {
        let node = Node::start()?;
        peer.send(&node.root)?;
        let client = Client::join(node.root.join("client"), PATIENCE)?;
        let call = client.call("echo")?.spin(Spin::Always);
        let queue = client.queue("records")?;
        Ok(Box::new(PodshmSession { _node: node, call, queue }))
    }

    fn serve(&self, control: &mut Control) -> Result<()> {
        let root: PathBuf = control.recv()?;
        let mut agent = Agent::builder()
            .call("echo", self.ring, 1 << 20)
            .queue("records", self.ring.max(64 * 1024), 1024)
            .connect(root.join("agent"), PATIENCE)?;
        agent.ready()?;
        agent.set_spin(Duration::from_secs(1));
        let mut handler = Counted::default();
        while agent.clients() == 0 {
            agent.poll(&mut handler)?;
        }
        // Cumulative: the client may be ahead of its orders.
        let (mut calls, mut records, mut summed) = (0, 0, 0_u64);
        loop {
            match control.recv()? {
                Order::Echo { count, .. } => {
                    calls += count;
                    while handler.calls.get() < calls {
                        agent.poll(&mut handler)?;
                    }
                    // The last answer's parts may still wait for room: the next order says that they have arrived.
                    while !control.has_order()? {
                        for _ in 0..100 {
                            agent.poll(&mut handler)?;
                        }
                    }
                }
                Order::Drain { count, .. } => {
                    records += count;
                    while handler.records.get() < records {
                        agent.poll(&mut handler)?;
                    }
                    let sum = handler.sum.get();
                    control.send(&sum.wrapping_sub(summed))?;
                    summed = sum;
                }
                Order::End => return Ok(()),
            }
        }
    }
}

struct PodshmSession {
    call: Caller,
    queue: QueueSender,
    _node: Node,
}

impl Session for PodshmSession {
    fn rtt(&mut self, peer: &mut Control, size: usize, budget: Duration) -> Result<Latencies> {
        timed_rtt(
            budget,
            |count| peer.send(&Order::Echo { size, count }),
            |seed| {
                let mut sum = 0_u64;
                self.call.call_with(
                    size,
                    |offset, part| payload::fill_from(part, seed, offset / 8),
                    PATIENCE,
                    |_, _, part| sum = sum.wrapping_add(payload::sum(part)),
                )?;
                check_answer(sum, size, seed)
            },
        )
    }

    fn oneway(&mut self, peer: &mut Control, size: usize, batched: bool, budget: Duration) -> Result<f64> {
        timed_oneway(budget, |count| {
            peer.send(&Order::Drain { size, count, batched })?;
            let mut seed = 0;
            while seed < count {
                let mut batch = self.queue.batch()?;
                let n = if batched { BATCH.min(count - seed) } else { 1 };
                for _ in 0..n {
                    match batch.try_push_with(size, |bytes| payload::fill(bytes, seed)) {
                        Ok(_) => seed += 1,
                        Err(e) if e.kind() == podshm::ErrorKind::Full => break,
                        Err(e) => return Err(e.into()),
                    }
                }
            }
            check_drained(peer.recv()?, size, count)
        })
    }
}

/// A lookup by a resolved key, under updates at 1 kHz.
pub struct PodshmHandle;

const READ: Metric = Metric::Read { size: record::SIZE };

impl Row for PodshmHandle {
    fn name(&self) -> &'static str {
        "podshm-handle"
    }

    fn title(&self) -> String {
        "podshm table, by handle".to_owned()
    }

    fn metrics(&self) -> Vec<Metric> {
        vec![READ]
    }

    fn targets(&self) -> Vec<Target> {
        vec![Target { metric: READ, bound: Bound::AtMost(1.2, SEQLOCK), fatal: false }]
    }

    fn measure(&self, peer: &mut Control, plan: Plan) -> Result<Vec<Sample>> {
        let node = Node::start()?;
        peer.send(&node.root)?;
        let client = Client::join(node.root.join("client"), PATIENCE)?;
        let mut key = client.table("records")?.key(b"record");
        let value = record::time_reads(plan.budget, |out| {
            ensure!(key.get(out)? == Some(record::SIZE), "the record is missing");
            Ok(())
        })?;
        Ok(vec![Sample { metric: READ, value }])
    }

    fn serve(&self, control: &mut Control) -> Result<()> {
        let root: PathBuf = control.recv()?;
        let mut agent = Agent::builder().table("records", 100, 64 * 1024).connect(root.join("agent"), PATIENCE)?;
        let put = |version: u64, agent: &mut Agent| -> Result<()> {
            let mut record = [0; record::SIZE];
            payload::fill(&mut record, version);
            Ok(agent.table("records")?.put(b"record", &record)?)
        };
        put(1, &mut agent)?;
        agent.ready()?;
        let mut handler = Counted::default();
        while agent.clients() == 0 {
            agent.poll(&mut handler)?;
        }
        record::write_at_1_khz(control, |version| put(version + 1, &mut agent))
    }
}

/// Lookups by key over all routes.
pub struct PodshmTable;

impl Row for PodshmTable {
    fn name(&self) -> &'static str {
        "podshm-table"
    }

    fn title(&self) -> String {
        "podshm table, by key".to_owned()
    }

    fn metrics(&self) -> Vec<Metric> {
        COUNTS.iter().map(|&routes| Metric::Lookup { routes }).collect()
    }

    fn targets(&self) -> Vec<Target> {
        let most =
            |&routes| Target { metric: Metric::Lookup { routes }, bound: Bound::AtMost(1.3, HASHBROWN), fatal: false };
        COUNTS.iter().map(most).collect()
    }

    fn measure(&self, peer: &mut Control, plan: Plan) -> Result<Vec<Sample>> {
        let mut samples = Vec::new();
        for &count in &COUNTS {
            let node = Node::start()?;
            peer.send(&Some(node.root.clone()))?;
            let client = Client::join(node.root.join("client"), PATIENCE)?;
            let mut table = client.table("routes")?.reader()?;
            let queries = Queries::shuffled(count);
            let mut lookup = |key: &[u8], out: &mut [u8]| table.get(key, out).ok().flatten();
            queries.verify(&mut lookup)?;
            let value = queries.time(plan.budget, lookup);
            samples.push(Sample { metric: Metric::Lookup { routes: count }, value });
            peer.send(&())?;
        }
        peer.send(&None::<PathBuf>)?;
        Ok(samples)
    }

    fn serve(&self, control: &mut Control) -> Result<()> {
        let mut counts = COUNTS.iter();
        while let Some(root) = control.recv::<Option<PathBuf>>()? {
            let count = *counts.next().context("more tables than counts")?;
            let bytes = count as u64 * 320;
            let mut agent =
                Agent::builder().table("routes", count as u64, bytes).connect(root.join("agent"), PATIENCE)?;
            for index in 0..count {
                agent.table("routes")?.put(&routes::key(index), &routes::value(index))?;
            }
            agent.ready()?;
            let mut handler = Counted::default();
            while agent.clients() == 0 {
                let _: Progress = agent.poll(&mut handler)?;
            }
            control.recv::<()>()?;
        }
        match control.recv()? {
            Order::End => Ok(()),
            other => anyhow::bail!("expected the end, found {other:?}"),
        }
    }
}
