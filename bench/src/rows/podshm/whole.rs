//! The Rust library as a C program would use it: keys that are not resolved, records, requests and responses in buffers. What the C library's rows
//! are judged beside.

use std::time::Duration;

use anyhow::{Result, ensure};
use podshm::{Caller, Client, ErrorKind, QueueSender, Spin};

use super::{Node, PATIENCE, PodshmHandle, PodshmTransport};
use crate::control::Control;
use crate::metric::Metric;
use crate::payload;
use crate::record;
use crate::row::{Plan, Row, Sample};
use crate::transport::{Latencies, Order, Session, Transport, check_answer, check_drained, timed_oneway, timed_rtt};

/// A lookup by a key that is hashed each time, under updates at 1 kHz.
pub struct Get;

const READ: Metric = Metric::Read { size: record::SIZE };

impl Row for Get {
    fn name(&self) -> &'static str {
        "podshm-get"
    }

    fn title(&self) -> String {
        "podshm table, by key each time".to_owned()
    }

    fn metrics(&self) -> Vec<Metric> {
        vec![READ]
    }

    fn measure(&self, peer: &mut Control, plan: Plan) -> Result<Vec<Sample>> {
        let node = Node::start()?;
        peer.send(&node.agent())?;
        let table = Client::join(node.client(), PATIENCE)?.table("records")?;
        let value = record::time_reads(plan.budget, |out| {
            ensure!(table.get(b"record", out)? == Some(record::SIZE), "the record is missing");
            Ok(())
        })?;
        Ok(vec![Sample { metric: READ, value }])
    }

    fn serve(&self, control: &mut Control) -> Result<()> {
        PodshmHandle.serve(control)
    }
}

/// Calls and records by buffers.
pub struct Calls;

impl Transport for Calls {
    fn name(&self) -> &'static str {
        "podshm-call"
    }

    fn title(&self) -> String {
        "podshm, by buffers".to_owned()
    }

    fn sizes(&self) -> Vec<usize> {
        vec![64]
    }

    fn rates(&self) -> Vec<(usize, bool)> {
        vec![(64, false)]
    }

    fn connect(&self, peer: &mut Control) -> Result<Box<dyn Session>> {
        let node = Node::start()?;
        peer.send(&node.agent())?;
        let client = Client::join(node.client(), PATIENCE)?;
        let (call, queue) = (client.call("echo")?.spin(Spin::Always), client.queue("records")?);
        Ok(Box::new(Buffers { call, queue, _node: node }))
    }

    fn serve(&self, control: &mut Control) -> Result<()> {
        PodshmTransport::DEFAULT.serve(control)
    }
}

struct Buffers {
    call: Caller,
    queue: QueueSender,
    _node: Node,
}

impl Session for Buffers {
    fn rtt(&mut self, peer: &mut Control, size: usize, budget: Duration) -> Result<Latencies> {
        let (mut request, mut response) = (vec![0; size], vec![0; size]);
        timed_rtt(
            budget,
            |count| peer.send(&Order::Echo { size, count }),
            |seed| {
                payload::fill(&mut request, seed);
                let len = self.call.call(&request, &mut response, PATIENCE)?;
                check_answer(payload::sum(&response[..len]), size, seed)
            },
        )
    }

    fn oneway(&mut self, peer: &mut Control, size: usize, batched: bool, budget: Duration) -> Result<f64> {
        let mut record = vec![0; size];
        timed_oneway(budget, |count| {
            peer.send(&Order::Drain { size, count, batched })?;
            let mut seed = 0;
            while seed < count {
                payload::fill(&mut record, seed);
                match self.queue.try_push(&record) {
                    Ok(_) => seed += 1,
                    Err(e) if e.kind() == ErrorKind::Full => {}
                    Err(e) => return Err(e.into()),
                }
            }
            check_drained(peer.recv()?, size, count)
        })
    }
}
