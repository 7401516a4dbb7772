//! What a client with one table, one queue and one call costs its node in memory, by default settings.
//!
//! Counted are the regions that the broker makes for it, and by how much its own process, the agent and the broker grow:
//! anonymous memory and page tables, as the kernel has them in /proc. Not counted: the table itself, which all clients
//! share, and the kernel's own objects (two socket pairs' worth of sockets and the memfds' inodes).

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use podshm::Client;

use super::{Node, PATIENCE, default_agent, serve_until_told};
use crate::control::Control;
use crate::metric::Metric;
use crate::outcome::median;
use crate::row::{Bound, Plan, Row, Sample, Target};
use crate::task::{self, Task};

/// Clients, each a process of its own.
const CLIENTS: usize = 16;

/// After so long a client has done what it does once.
const SETTLED: Duration = Duration::from_millis(200);

/// See above.
pub struct ClientCost;

const REGIONS: Metric = Metric::Memory { what: "a client's regions, charged to the broker" };
const PROCESS: Metric = Metric::Memory { what: "by how much a process grows that joins" };
const OTHERS: Metric = Metric::Memory { what: "by how much agent and broker grow for a client" };
const ALL: Metric = Metric::Memory { what: "all that a client costs the node" };

impl Row for ClientCost {
    fn name(&self) -> &'static str {
        "podshm-cost"
    }

    fn title(&self) -> String {
        "podshm, a table, a queue, a call".to_owned()
    }

    fn metrics(&self) -> Vec<Metric> {
        vec![REGIONS, PROCESS, OTHERS, ALL]
    }

    fn targets(&self) -> Vec<Target> {
        vec![Target { metric: ALL, bound: Bound::Under(160.0 * 1024.0), fatal: false }]
    }

    fn every(&self) -> u32 {
        10
    }

    fn measure(&self, peer: &mut Control, _plan: Plan) -> Result<Vec<Sample>> {
        let node = Node::start()?;
        peer.send(&node.agent())?;
        let agent: u32 = peer.recv()?;
        let directory = node.client().to_string_lossy().into_owned();
        let join = || -> Result<(Task, f64)> {
            let mut task = Task::start(self.name(), &[&directory])?;
            let grown = task.line()?.parse()?;
            Ok((task, grown))
        };
        // The first clients make agent and broker grow by what they need for any client.
        let warm = (0..4).map(|_| join()).collect::<Result<Vec<_>>>()?;
        let look = || -> Result<(f64, f64)> {
            std::thread::sleep(Duration::from_millis(20));
            let regions = node.broker.stats("bench")?.region_bytes as f64;
            Ok((regions, private_bytes("self")? + private_bytes(&agent.to_string())?))
        };
        let before = look()?;
        let joined = (0..CLIENTS).map(|_| join()).collect::<Result<Vec<_>>>()?;
        let after = look()?;
        let stats = node.broker.stats("bench")?;
        ensure!(stats.clients.len() == warm.len() + CLIENTS, "some clients are gone: {stats:?}");
        let (tasks, grown): (Vec<Task>, Vec<f64>) = joined.into_iter().unzip();
        for task in warm.into_iter().map(|(task, _)| task).chain(tasks) {
            task.finish()?;
        }
        let share = |before: f64, after: f64| (after - before) / CLIENTS as f64;
        let values = [share(before.0, after.0), median(&grown), share(before.1, after.1).max(0.0)];
        let all = values.iter().sum();
        Ok([REGIONS, PROCESS, OTHERS, ALL]
            .into_iter()
            .zip(values.into_iter().chain([all]))
            .map(|(metric, value)| Sample { metric, value })
            .collect())
    }

    fn serve(&self, control: &mut Control) -> Result<()> {
        let directory: PathBuf = control.recv()?;
        let agent = default_agent(&directory)?;
        control.send(&std::process::id())?;
        serve_until_told(agent, control)
    }

    fn task(&self, arguments: &[String]) -> Result<()> {
        let directory = arguments.first().context("the directory of a socket")?;
        let before = private_bytes("self")?;
        let client = Client::join(directory, PATIENCE)?;
        let (mut value, mut answer) = ([0; 256], [0; 64]);
        let table = client.table("table")?;
        ensure!(table.get(b"key", &mut value)?.is_some(), "the key is missing");
        client.queue("queue")?.push(&[1; 64], PATIENCE)?;
        client.call("call")?.call(&[2; 64], &mut answer, PATIENCE)?;
        // What it keeps is asked for: the thread that registers the process for barriers lives for some ten milliseconds.
        std::thread::sleep(SETTLED);
        task::say(private_bytes("self")? - before)?;
        task::until_told();
        Ok(())
    }
}

/// Anonymous memory and page tables of a process; bytes.
fn private_bytes(process: &str) -> Result<f64> {
    let rollup = std::fs::read_to_string(format!("/proc/{process}/smaps_rollup"))?;
    let status = std::fs::read_to_string(format!("/proc/{process}/status"))?;
    let kib = |text: &str, field: &str| -> Result<f64> {
        let line =
            text.lines().find_map(|line| line.strip_prefix(field)).with_context(|| format!("no {field} in /proc"))?;
        let number = line.trim_start_matches(':').trim().trim_end_matches("kB").trim();
        number.parse().with_context(|| format!("{field} {number} in /proc"))
    };
    Ok(1024.0 * (kib(&rollup, "Anonymous")? + kib(&status, "VmPTE")?))
}
