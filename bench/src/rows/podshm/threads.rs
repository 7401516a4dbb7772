//! Many threads push through one handle: records a second that arrive, from one process to one agent.

use std::path::PathBuf;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use podshm::{Agent, Client, DEFAULT_RING, QueueSender};

use super::{Counted, Node, PATIENCE};
use crate::control::Control;
use crate::metric::Metric;
use crate::payload;
use crate::row::{Plan, Row, Sample};

/// How many threads push.
const THREADS: [usize; 3] = [1, 8, 32];
const SIZE: usize = 64;

/// One handle, shared.
pub struct Threads;

impl Row for Threads {
    fn name(&self) -> &'static str {
        "podshm-threads"
    }

    fn title(&self) -> String {
        "podshm, one handle".to_owned()
    }

    fn metrics(&self) -> Vec<Metric> {
        THREADS.iter().map(|&threads| Metric::Pushing { threads }).collect()
    }

    fn measure(&self, peer: &mut Control, plan: Plan) -> Result<Vec<Sample>> {
        let node = Node::start()?;
        peer.send(&node.agent())?;
        let client = Client::join(node.client(), PATIENCE)?;
        let queue = client.queue("records")?;
        let sample = |&threads: &usize| {
            // A round of 32 threads on one core needs some turns of the scheduler.
            let value = rate(&queue, threads, plan.budget * 2, peer)?;
            Ok(Sample { metric: Metric::Pushing { threads }, value })
        };
        THREADS.iter().map(sample).collect()
    }

    fn serve(&self, control: &mut Control) -> Result<()> {
        let directory: PathBuf = control.recv()?;
        let mut agent = Agent::builder().queue("records", DEFAULT_RING, 1024).connect(directory, PATIENCE)?;
        agent.ready()?;
        agent.set_spin(Duration::from_secs(1));
        let mut handler = Counted::default();
        let (mut records, mut summed) = (0, 0_u64);
        loop {
            while !control.has_order()? {
                for _ in 0..100 {
                    agent.poll(&mut handler)?;
                }
            }
            // How many there will have been in all; `None` is the end, see `Order::End`.
            let Ok(Some(count)) = control.recv::<Option<u64>>() else { return Ok(()) };
            records += count;
            while handler.records.get() < records {
                agent.poll(&mut handler)?;
            }
            control.send(&handler.sum.get().wrapping_sub(summed))?;
            summed = handler.sum.get();
        }
    }
}

/// Records a second, of all threads together.
fn rate(queue: &QueueSender, threads: usize, budget: Duration, peer: &mut Control) -> Result<f64> {
    let (start, stop) = (Barrier::new(threads + 1), AtomicBool::new(false));
    let push = |thread: usize| -> Result<u64> {
        let mut bytes = [0; SIZE];
        payload::fill(&mut bytes, thread as u64);
        start.wait();
        let mut pushed = 0;
        while !stop.load(Ordering::Relaxed) {
            queue.push(&bytes, PATIENCE)?;
            pushed += 1;
        }
        Ok(pushed)
    };
    std::thread::scope(|scope| {
        let pushing: Vec<_> = (0..threads).map(|thread| scope.spawn(move || push(thread))).collect();
        start.wait();
        let begun = Instant::now();
        std::thread::sleep(budget);
        stop.store(true, Ordering::Relaxed);
        let (mut count, mut sum) = (0, 0_u64);
        for (thread, pushing) in pushing.into_iter().enumerate() {
            let pushed = pushing.join().expect("a pushing thread doesn't panic")?;
            count += pushed;
            sum = sum.wrapping_add(pushed.wrapping_mul(payload::expected(SIZE, thread as u64)));
        }
        peer.send(&Some(count))?;
        let found: u64 = peer.recv()?;
        let took = begun.elapsed();
        ensure!(found == sum, "{count} records of {threads} threads: expected the sum {sum:#x}, found {found:#x}");
        Ok(count as f64 / took.as_secs_f64())
    })
}
