//! Message transports: round trips and one-way rates between two processes.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};

use crate::clock::Clock;
use crate::control::Control;
use crate::metric::{Metric, SIZES};
use crate::payload;
use crate::row::{Plan, Row, Sample, Target};

/// A way of moving messages between two processes.
pub trait Transport {
    /// What `--only` matches.
    fn name(&self) -> &'static str;

    /// What it is, for the report.
    fn title(&self) -> String;

    /// Sizes of round trips that it can do.
    fn sizes(&self) -> Vec<usize> {
        SIZES.to_vec()
    }

    /// `(size, batched)` of the one-way rates that it can do.
    fn rates(&self) -> Vec<(usize, bool)> {
        vec![(64, false), (1 << 20, false)]
    }

    /// Bytes of each ring, where that is a choice.
    fn ring(&self) -> Option<u32> {
        None
    }

    /// What it should reach.
    fn targets(&self) -> Vec<Target> {
        Vec::new()
    }

    /// Sets everything up; `peer` talks to [`Transport::serve`].
    fn connect(&self, peer: &mut Control) -> Result<Box<dyn Session>>;

    /// The other end, in the peer process, until [`Order::End`].
    fn serve(&self, control: &mut Control) -> Result<()>;
}

/// A connected transport, seen from the side that measures.
pub trait Session {
    /// Round trips of `size` bytes each way for about `budget`.
    fn rtt(&mut self, peer: &mut Control, size: usize, budget: Duration) -> Result<Latencies>;

    /// Messages a second of `size` bytes, one way.
    fn oneway(&mut self, peer: &mut Control, size: usize, batched: bool, budget: Duration) -> Result<f64>;
}

/// What the peer process is to do next.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub enum Order {
    /// Receive `count` messages of `size` bytes, answering each with as many.
    Echo {
        /// Bytes each way.
        size: usize,
        /// How many.
        count: u64,
    },
    /// Receive `count` messages of `size` bytes, then send the sum of their sums (u64) over the
    /// control line.
    Drain {
        /// Bytes a message.
        size: usize,
        /// How many.
        count: u64,
        /// Whether they come in batches.
        batched: bool,
    },
    /// Go.
    End,
}

/// How long each round trip took.
#[derive(Debug)]
pub struct Latencies {
    ns: Vec<f64>,
}

impl Latencies {
    /// From ticks of `clock`, in any order; must not be empty.
    pub fn new(ticks: &[u32], clock: Clock) -> Self {
        let mut ns: Vec<f64> = ticks.iter().map(|&t| clock.ns(t.into())).collect();
        ns.sort_unstable_by(f64::total_cmp);
        Self { ns }
    }

    /// The value that `quantile` (0 to 1) of them don't exceed; ns. Counters tick in steps (of
    /// 10 ns here), so it is interpolated within the step, by how far into its equals it lies.
    pub fn quantile(&self, quantile: f64) -> f64 {
        let rank = (self.ns.len() - 1) as f64 * quantile;
        let value = self.ns[rank.round() as usize];
        let below = self.ns.partition_point(|&ns| ns < value);
        let up_to = self.ns.partition_point(|&ns| ns <= value);
        let lower = below.checked_sub(1).map_or(value, |at| (self.ns[at] + value) / 2.0);
        let upper = self.ns.get(up_to).map_or(value, |next| (value + next) / 2.0);
        let into = (rank - below as f64 + 0.5) / (up_to - below) as f64;
        lower + (upper - lower) * into.clamp(0.0, 1.0)
    }
}

/// Round trips for about `budget`, after warming up. `order` tells the peer how many are coming;
/// `trip` does one (send `seed`, receive the answer, check it).
pub fn timed_rtt(
    budget: Duration,
    mut order: impl FnMut(u64) -> Result<()>,
    mut trip: impl FnMut(u64) -> Result<()>,
) -> Result<Latencies> {
    let clock = Clock::shared();
    let mut ticks = Vec::new();
    let mut run = |count: u64| -> Result<Duration> {
        ticks.clear();
        ticks.resize(count as usize, 0_u32); // touched before, not between the trips
        order(count)?;
        let begun = Instant::now();
        let mut last = clock.now();
        for (seed, slot) in (1..).zip(ticks.iter_mut()) {
            trip(seed)?;
            let now = clock.now();
            *slot = u32::try_from(now - last).unwrap_or(u32::MAX);
            last = now;
        }
        Ok(begun.elapsed())
    };
    let count = warmed_count(budget, &mut run)?;
    run(count)?;
    Ok(Latencies::new(&ticks, clock))
}

/// Messages a second for about `budget`, after warming up. `run` sends that many and returns when
/// the peer has said that all have arrived.
pub fn timed_oneway(budget: Duration, mut run: impl FnMut(u64) -> Result<()>) -> Result<f64> {
    let mut timed = |count| -> Result<Duration> {
        let begun = Instant::now();
        run(count)?;
        Ok(begun.elapsed())
    };
    let count = warmed_count(budget, &mut timed)?;
    Ok(count as f64 / timed(count)?.as_secs_f64())
}

/// Doubles until a quarter of `budget` is used, which warms up, and says how many fill it.
fn warmed_count(budget: Duration, run: &mut impl FnMut(u64) -> Result<Duration>) -> Result<u64> {
    let mut count = 16;
    loop {
        let took = run(count)?;
        if took >= budget / 4 {
            let scaled = count as f64 * budget.as_secs_f64() / took.as_secs_f64();
            return Ok((scaled as u64).max(16));
        }
        count *= 2;
    }
}

/// One end of a two-way stream of messages, where a transport is no more than that.
pub trait Pipe {
    /// Sends the payload of `seed`, `len` bytes; when `flush` is false it may wait for a later one.
    fn send(&mut self, len: usize, seed: u64, flush: bool) -> Result<()>;

    /// Receives the next message, which has `len` bytes, and sums it.
    fn recv(&mut self, len: usize) -> Result<u64>;
}

/// How many messages a batch has.
pub const BATCH: u64 = 32;

/// A [`Session`] over a [`Pipe`].
#[derive(Debug)]
pub struct PipeSession<P>(pub P);

impl<P: Pipe> Session for PipeSession<P> {
    fn rtt(&mut self, peer: &mut Control, size: usize, budget: Duration) -> Result<Latencies> {
        let pipe = &mut self.0;
        timed_rtt(
            budget,
            |count| peer.send(&Order::Echo { size, count }),
            |seed| {
                pipe.send(size, seed, true)?;
                check_answer(pipe.recv(size)?, size, seed)
            },
        )
    }

    fn oneway(&mut self, peer: &mut Control, size: usize, batched: bool, budget: Duration) -> Result<f64> {
        let pipe = &mut self.0;
        timed_oneway(budget, |count| {
            peer.send(&Order::Drain { size, count, batched })?;
            for seed in 0..count {
                let flush = !batched || seed % BATCH == BATCH - 1 || seed == count - 1;
                pipe.send(size, seed, flush)?;
            }
            check_drained(peer.recv()?, size, count)
        })
    }
}

/// Serves a [`PipeSession`] in the peer process.
pub fn serve_pipe(mut pipe: impl Pipe, control: &mut Control) -> Result<()> {
    loop {
        match control.recv()? {
            Order::Echo { size, count } => {
                for _ in 0..count {
                    let sum = pipe.recv(size)?;
                    pipe.send(size, answer_seed(sum), true)?;
                }
            }
            Order::Drain { size, count, .. } => {
                let mut sum = 0_u64;
                for _ in 0..count {
                    sum = sum.wrapping_add(pipe.recv(size)?);
                }
                control.send(&sum)?;
            }
            Order::End => return Ok(()),
        }
    }
}

/// What the answer to a request with that sum is filled from: it can't be made before the request
/// has been summed.
#[inline]
pub fn answer_seed(sum_of_request: u64) -> u64 {
    sum_of_request.rotate_left(1)
}

/// Checks the sum of the answer to the request of `seed`.
#[inline]
pub fn check_answer(sum: u64, size: usize, seed: u64) -> Result<()> {
    let expected = payload::expected(size, answer_seed(payload::expected(size, seed)));
    ensure!(sum == expected, "answer {seed} of {size} bytes: expected the sum {expected:#x}, found {sum:#x}");
    Ok(())
}

/// Checks what the peer says it summed over `count` messages of seeds `0 .. count`.
pub fn check_drained(sum: u64, size: usize, count: u64) -> Result<()> {
    // In closed form: this runs inside what is timed.
    let (count, words) = (u128::from(count), (size / 8) as u128);
    let seeds = count * count.saturating_sub(1) / 2;
    let expected = (seeds * words) as u64;
    let expected = expected.wrapping_add((count as u64).wrapping_mul(payload::expected(size, 0)));
    ensure!(sum == expected, "{count} messages of {size} bytes: expected the sum {expected:#x}, found {sum:#x}");
    Ok(())
}

/// A [`Transport`] as a [`Row`].
pub struct TransportRow<T>(pub T);

impl<T: Transport> Row for TransportRow<T> {
    fn name(&self) -> &'static str {
        self.0.name()
    }

    fn title(&self) -> String {
        self.0.title()
    }

    fn metrics(&self) -> Vec<Metric> {
        let trips = self.0.sizes().into_iter().flat_map(|size| [Metric::Rtt { size }, Metric::RttP99 { size }]);
        let rates = self.0.rates().into_iter();
        trips.chain(rates.map(|(size, batched)| Metric::Rate { size, batched })).collect()
    }

    fn ring(&self) -> Option<u32> {
        self.0.ring()
    }

    fn targets(&self) -> Vec<Target> {
        self.0.targets()
    }

    fn measure(&self, peer: &mut Control, plan: Plan) -> Result<Vec<Sample>> {
        let mut session = self.0.connect(peer)?;
        let mut samples = Vec::new();
        for size in self.0.sizes() {
            let latencies = session.rtt(peer, size, plan.budget)?;
            samples.push(Sample { metric: Metric::Rtt { size }, value: latencies.quantile(0.5) });
            samples.push(Sample { metric: Metric::RttP99 { size }, value: latencies.quantile(0.99) });
        }
        for (size, batched) in self.0.rates() {
            samples.push(Sample {
                metric: Metric::Rate { size, batched },
                value: session.oneway(peer, size, batched, plan.budget)?,
            });
        }
        Ok(samples)
    }

    fn serve(&self, control: &mut Control) -> Result<()> {
        self.0.serve(control)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_answer_is_noticed() {
        let right = payload::expected(64, answer_seed(payload::expected(64, 5)));
        assert!(check_answer(right, 64, 5).is_ok());
        assert!(check_answer(right ^ 1, 64, 5).is_err());
        let drained = (0..5).fold(0_u64, |sum, seed| sum.wrapping_add(payload::expected(1024, seed)));
        assert!(check_drained(drained, 1024, 5).is_ok());
        assert!(check_drained(drained, 1024, 4).is_err());
    }

    #[test]
    fn quantiles_are_exact() {
        let clock = Clock::shared();
        let ticks: Vec<u32> = (0..=100).rev().collect();
        let latencies = Latencies::new(&ticks, clock);
        // To the tick; its length is calibrated, so the last bit of the nanoseconds depends on the order of multiplications.
        for (q, ticks) in [(0.5, 50), (0.99, 99)] {
            let (found, expected) = (latencies.quantile(q), clock.ns(ticks));
            assert!((found / expected - 1.0).abs() < 1e-9, "{found} ns, expected {expected}");
        }
    }
}
