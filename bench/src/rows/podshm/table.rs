//! Lookups: by a resolved key under updates, and by key over all routes.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use podshm::{Agent, Client, Progress};

use super::{Counted, Node, PATIENCE};
use crate::control::Control;
use crate::metric::{HASHBROWN, Metric, SEQLOCK};
use crate::payload;
use crate::record;
use crate::routes::{self, COUNTS, Queries};
use crate::row::{Bound, Plan, Row, Sample, Target};
use crate::transport::Order;

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
        peer.send(&node.agent())?;
        let client = Client::join(node.client(), PATIENCE)?;
        let mut key = client.table("records")?.key(b"record");
        let value = record::time_reads(plan.budget, |out| {
            ensure!(key.get(out)? == Some(record::SIZE), "the record is missing");
            Ok(())
        })?;
        Ok(vec![Sample { metric: READ, value }])
    }

    fn serve(&self, control: &mut Control) -> Result<()> {
        let directory: PathBuf = control.recv()?;
        let mut agent = Agent::builder().table("records", 100, 64 * 1024).connect(directory, PATIENCE)?;
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
            peer.send(&Some(node.agent()))?;
            let client = Client::join(node.client(), PATIENCE)?;
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
        while let Some(directory) = control.recv::<Option<PathBuf>>()? {
            let count = *counts.next().context("more tables than counts")?;
            let bytes = count as u64 * 320;
            let mut agent = Agent::builder().table("routes", count as u64, bytes).connect(directory, PATIENCE)?;
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
