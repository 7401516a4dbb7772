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
}

impl Bound {
    /// The row it is measured against.
    pub fn against(self) -> Option<&'static str> {
        match self {
            Self::AtMost(_, row) | Self::AtLeast(_, row) => Some(row),
            Self::Under(_) => None,
        }
    }
}

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

    /// Measured in every so many-th round only: what takes long, or is always the same.
    fn every(&self) -> u32 {
        1
    }

    /// Measures once, on core 0. `peer` talks to [`Row::serve`].
    fn measure(&self, peer: &mut Control, plan: Plan) -> Result<Vec<Sample>>;

    /// Runs in the peer process, on core 1, until told to end. By default nothing happens there.
    fn serve(&self, control: &mut Control) -> Result<()> {
        while !matches!(control.recv()?, Order::End) {}
        Ok(())
    }
}
