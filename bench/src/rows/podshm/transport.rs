//! Calls for round trips, a queue for rates.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use podshm::{Agent, Caller, Client, DEFAULT_RING, QueueSender, Spin};

use super::{Counted, Node, PATIENCE};
use crate::control::Control;
use crate::metric::{Metric, RAW_RING, SIZES};
use crate::payload;
use crate::row::{Bound, LARGE_GOALS, Target};
use crate::transport::{
    BATCH, Latencies, Order, Session, Transport, check_answer, check_drained, timed_oneway, timed_rtt,
};

/// Calls for round trips, a queue for rates.
#[derive(Clone, Copy)]
pub struct PodshmTransport {
    name: &'static str,
    /// Bytes of each ring.
    ring: u32,
}

impl PodshmTransport {
    /// Rings as a client has them by default.
    pub const DEFAULT: Self = PodshmTransport { name: "podshm", ring: DEFAULT_RING };
    /// Rings for big payloads.
    pub const LARGE: Self = PodshmTransport { name: "podshm-large", ring: 1 << 20 };
    /// Others, to see what size big payloads need.
    pub const RINGS: [Self; 3] = [
        PodshmTransport { name: "podshm-128k", ring: 128 << 10 },
        PodshmTransport { name: "podshm-256k", ring: 256 << 10 },
        PodshmTransport { name: "podshm-512k", ring: 512 << 10 },
    ];

    fn is_for_large(&self) -> bool {
        self.ring > DEFAULT_RING
    }
}

impl Transport for PodshmTransport {
    fn name(&self) -> &'static str {
        self.name
    }

    fn title(&self) -> String {
        format!("podshm, rings of {} KiB", self.ring / 1024)
    }

    fn ring(&self) -> Option<u32> {
        Some(self.ring)
    }

    fn sizes(&self) -> Vec<usize> {
        if self.is_for_large() { LARGE_GOALS.map(|(size, _)| size).to_vec() } else { SIZES.to_vec() }
    }

    fn rates(&self) -> Vec<(usize, bool)> {
        if self.is_for_large() { Vec::new() } else { vec![(64, false), (64, true)] }
    }

    fn targets(&self) -> Vec<Target> {
        let goal = |metric, bound| Target { metric, bound, fatal: false };
        let trip = |size, times, row| goal(Metric::Rtt { size }, Bound::AtMost(times, row));
        let rate = |batched, times| goal(Metric::Rate { size: 64, batched }, Bound::AtLeast(times, RAW_RING));
        if self.name == Self::LARGE.name {
            LARGE_GOALS.map(|(size, times)| trip(size, times, RAW_RING)).to_vec()
        } else if self.is_for_large() {
            Vec::new()
        } else {
            let peer = cfg!(feature = "iceoryx2").then(|| trip(64, 0.33, "iceoryx2-pubsub"));
            [trip(64, 1.2, RAW_RING), rate(true, 1.0), rate(false, 0.5)].into_iter().chain(peer).collect()
        }
    }

    fn connect(&self, peer: &mut Control) -> Result<Box<dyn Session>> {
        let node = Node::start()?;
        peer.send(&node.agent())?;
        let client = Client::join(node.client(), PATIENCE)?;
        let call = client.call("echo")?.spin(Spin::Always);
        let queue = client.queue("records")?;
        Ok(Box::new(PodshmSession { call, queue, _node: node }))
    }

    fn serve(&self, control: &mut Control) -> Result<()> {
        let directory: PathBuf = control.recv()?;
        let mut agent = Agent::builder()
            .call("echo", self.ring, 1 << 20)
            .queue("records", self.ring, 1024)
            .connect(directory, PATIENCE)?;
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
