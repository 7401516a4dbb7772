//! One line of the report: something that is measured beside others.

use std::time::Duration;

use anyhow::Result;

use crate::control::Control;
use crate::metric::Metric;
use crate::transport::Order;

/// How long to measure.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Of one metric in one round; warming up comes on top.
    pub budget: Duration,
}

/// One figure of one round.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    /// What it is.
    pub metric: Metric,
    /// In the unit that [`Metric`] says.
    pub value: f64,
}

/// A bound that a row should keep.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// What is bounded.
    pub metric: Metric,
    /// By what.
    pub bound: Bound,
    /// Whether missing it fails the run.
    pub fatal: bool,
}

/// The bound of a [`Target`].
#[derive(Clone, Copy, Debug)]
pub enum Bound {
    /// At most this many times the same figure of that row.
    AtMost(f64, &'static str),
    /// At least this many times the same figure of that row.
    AtLeast(f64, &'static str),
    /// Below this, in the metric's unit.
    Under(f64),
    /// At most 5 % above what one takes in that row, or 1 ns where that is more.
    Beside(&'static str),
}

/// What [`Bound::Beside`] allows: so many times, or so many nanoseconds more.
pub const BESIDE: (f64, f64) = (1.05, 1.0);

impl Bound {
    /// The row it is measured against.
    pub fn against(self) -> Option<&'static str> {
        match self {
            Self::AtMost(_, row) | Self::AtLeast(_, row) | Self::Beside(row) => Some(row),
            Self::Under(_) => None,
        }
    }
}

/// How many times a raw ring's round trip one of a large payload (bytes) may take.
pub const LARGE_GOALS: [(usize, f64); 2] = [(64 << 10, 1.15), (1 << 20, 1.1)];

/// Something to measure. The harness starts a fresh peer process for every row in every round.
pub trait Row {
    /// What `--only` matches and other rows refer to: lower case, with dashes.
    fn name(&self) -> &'static str;

    /// What it is, for the report.
    fn title(&self) -> String;

    /// What [`Row::measure`] yields.
    fn metrics(&self) -> Vec<Metric>;

    /// What it should reach.
    fn targets(&self) -> Vec<Target> {
        Vec::new()
    }

    /// Bytes of each ring, where that is a choice.
    fn ring(&self) -> Option<u32> {
        None
    }

    /// Measured in every so many-th round only: what takes long, or is always the same.
    fn every(&self) -> u32 {
        1
    }

    /// Measures once, on core 0. `peer` talks to [`Row::serve`].
    fn measure(&self, peer: &mut Control, plan: Plan) -> Result<Vec<Sample>>;

    /// What a process of the program that [`Task::start`](crate::task::Task::start) starts for this row does.
    fn task(&self, arguments: &[String]) -> Result<()> {
        anyhow::bail!("row {} has no tasks, found {arguments:?}", self.name())
    }

    /// Runs in the peer process, on core 1, until told to end. By default nothing happens there.
    fn serve(&self, control: &mut Control) -> Result<()> {
        while !matches!(control.recv()?, Order::End) {}
        Ok(())
    }
}
