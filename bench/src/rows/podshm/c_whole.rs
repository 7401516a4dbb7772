//! [`super::whole`] through the C library: `podshm_table_get`, `podshm_caller_call` and `podshm_queue_try_push`.

use std::ptr;
use std::time::Duration;

use anyhow::{Result, ensure};

use super::c_library::{FULL, Handle, Library, OK, SPIN_ALWAYS};
use super::{Node, PATIENCE, PodshmHandle, PodshmTransport};
use crate::control::Control;
use crate::metric::Metric;
use crate::payload;
use crate::record;
use crate::row::{Bound, Plan, Row, Sample, Target};
use crate::transport::{Latencies, Order, Session, Transport, check_answer, check_drained, timed_oneway, timed_rtt};

/// A lookup by a key that is hashed each time.
pub struct CGet;

const READ: Metric = Metric::Read { size: record::SIZE };

impl Row for CGet {
    fn name(&self) -> &'static str {
        "podshm-c-get"
    }

    fn title(&self) -> String {
        "podshm table in C, by key each time".to_owned()
    }

    fn metrics(&self) -> Vec<Metric> {
        vec![READ]
    }

    fn targets(&self) -> Vec<Target> {
        vec![Target { metric: READ, bound: Bound::Beside("podshm-get"), fatal: false }]
    }

    fn measure(&self, peer: &mut Control, plan: Plan) -> Result<Vec<Sample>> {
        let (library, node) = (Library::load()?, Node::start()?);
        peer.send(&node.agent())?;
        let client = library.join(&node.client())?;
        let (table, name) = (library.make(library.table_new, client, c"records")?, b"record");
        let value = record::time_reads(plan.budget, |out| {
            let (room, mut len) = (out.len(), 0);
            // SAFETY: a table that is alive, bytes, room for all of the value, and a place for its length.
            let result = unsafe {
                (library.table_get)(
                    table,
                    name.as_ptr().cast(),
                    name.len(),
                    out.as_mut_ptr().cast(),
                    room,
                    &raw mut len,
                )
            };
            ensure!(result == OK && len == record::SIZE, "the record is missing");
            Ok(())
        })?;
        Ok(vec![Sample { metric: READ, value }])
    }

    fn serve(&self, control: &mut Control) -> Result<()> {
        PodshmHandle.serve(control)
    }
}

/// Calls and records by buffers.
pub struct CCalls;

impl Transport for CCalls {
    fn name(&self) -> &'static str {
        "podshm-c-call"
    }

    fn title(&self) -> String {
        "podshm in C, by buffers".to_owned()
    }

    fn sizes(&self) -> Vec<usize> {
        vec![64]
    }

    fn rates(&self) -> Vec<(usize, bool)> {
        vec![(64, false)]
    }

    fn targets(&self) -> Vec<Target> {
        let metrics = [Metric::Rtt { size: 64 }, Metric::Rate { size: 64, batched: false }];
        metrics.map(|metric| Target { metric, bound: Bound::Beside("podshm-call"), fatal: false }).to_vec()
    }

    fn connect(&self, peer: &mut Control) -> Result<Box<dyn Session>> {
        let (library, node) = (Library::load()?, Node::start()?);
        peer.send(&node.agent())?;
        let client = library.join(&node.client())?;
        let (queue, plain) =
            (library.make(library.queue_new, client, c"records")?, library.make(library.caller_new, client, c"echo")?);
        let mut call = ptr::null_mut();
        // SAFETY: a caller that is alive, and a place for the result.
        library.check(unsafe { (library.spinning)(plain, SPIN_ALWAYS, &raw mut call) })?;
        Ok(Box::new(CBuffers { library, client, queue, call, _node: node }))
    }

    fn serve(&self, control: &mut Control) -> Result<()> {
        PodshmTransport::DEFAULT.serve(control)
    }
}

struct CBuffers {
    library: Library,
    client: Handle,
    queue: Handle,
    call: Handle,
    _node: Node,
}

impl Session for CBuffers {
    fn rtt(&mut self, peer: &mut Control, size: usize, budget: Duration) -> Result<Latencies> {
        let (library, patience) = (self.library, PATIENCE.as_nanos() as u64);
        let (mut request, mut response) = (vec![0_u8; size], vec![0_u8; size]);
        timed_rtt(
            budget,
            |count| peer.send(&Order::Echo { size, count }),
            |seed| {
                payload::fill(&mut request, seed);
                let mut len = 0;
                // SAFETY: a caller that is alive, bytes, room for a response, and a place for its length.
                let result = unsafe {
                    (library.call)(
                        self.call,
                        request.as_ptr().cast(),
                        size,
                        response.as_mut_ptr().cast(),
                        size,
                        patience,
                        &raw mut len,
                    )
                };
                library.check(result)?;
                check_answer(payload::sum(&response[..len]), size, seed)
            },
        )
    }

    fn oneway(&mut self, peer: &mut Control, size: usize, batched: bool, budget: Duration) -> Result<f64> {
        let library = self.library;
        let mut record = vec![0_u8; size];
        timed_oneway(budget, |count| {
            peer.send(&Order::Drain { size, count, batched })?;
            let mut seed = 0;
            while seed < count {
                payload::fill(&mut record, seed);
                // SAFETY: a queue that is alive, and bytes.
                match unsafe { (library.try_push)(self.queue, record.as_ptr().cast(), size, ptr::null_mut()) } {
                    OK => seed += 1,
                    FULL => {}
                    other => library.check(other)?,
                }
            }
            check_drained(peer.recv()?, size, count)
        })
    }
}

impl Drop for CBuffers {
    fn drop(&mut self) {
        // SAFETY: alive until here; what was made of it goes with this process, as the peer waits for its hang-up only.
        unsafe { (self.library.client_free)(self.client) };
    }
}
