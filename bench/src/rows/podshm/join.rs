//! From joining to the first lookup: broker and agent are in another process and asleep, three services are offered.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use podshm::Client;

use super::{Node, PATIENCE, default_agent, serve_until_told};
use crate::control::Control;
use crate::machine;
use crate::metric::Metric;
use crate::outcome::median;
use crate::row::{Bound, Plan, Row, Sample, Target};
use crate::task::{self, Task};

/// Processes a round: starting one takes ten times what it measures.
const PROCESSES: usize = 8;
/// Further clients of a process a round.
const CLIENTS: usize = 20;

/// A process's first join, and further ones of the same process.
pub struct Join;

/// What iceoryx2's row measures too.
pub const FIRST: Metric = Metric::Once { what: "joining with three services to the first look-up, a new process" };
const FURTHER: Metric = Metric::Once { what: "the same, a further client of the process" };

impl Row for Join {
    fn name(&self) -> &'static str {
        "podshm-join"
    }

    fn title(&self) -> String {
        "podshm".to_owned()
    }

    fn metrics(&self) -> Vec<Metric> {
        vec![FIRST, FURTHER]
    }

    fn targets(&self) -> Vec<Target> {
        vec![Target { metric: FIRST, bound: Bound::Under(250_000.0), fatal: false }]
    }

    fn measure(&self, peer: &mut Control, _plan: Plan) -> Result<Vec<Sample>> {
        let directory: String = peer.recv()?;
        let first = in_new_processes(self.name(), &directory, PROCESSES)?;
        let mut further = Vec::new();
        let mut earlier = Client::join(&directory, PATIENCE)?;
        for _ in 0..CLIENTS {
            // The broker makes regions for the next joins meanwhile, as it would between joins.
            std::thread::sleep(Duration::from_micros(500));
            let (took, client) = join(Path::new(&directory))?;
            further.push(took);
            earlier = client;
        }
        drop(earlier);
        Ok(vec![Sample { metric: FIRST, value: median(&first) }, Sample { metric: FURTHER, value: median(&further) }])
    }

    fn serve(&self, control: &mut Control) -> Result<()> {
        let node = Node::start()?;
        let agent = default_agent(&node.agent())?;
        control.send(&node.client().to_string_lossy())?;
        serve_until_told(agent, control)
    }

    fn task(&self, arguments: &[String]) -> Result<()> {
        let directory = arguments.first().context("the directory of a socket")?;
        machine::unpin()?;
        let (took, _client) = join(Path::new(directory))?;
        task::say(took)?;
        task::until_told();
        Ok(())
    }
}

/// What `processes` new processes, one after the other, say that it took; ns.
pub fn in_new_processes(row: &str, argument: &str, processes: usize) -> Result<Vec<f64>> {
    (0..processes)
        .map(|_| {
            let mut task = Task::start(row, &[argument])?;
            let took = task.line()?.parse().context("a task's answer in ns")?;
            task.finish()?;
            Ok(took)
        })
        .collect()
}

fn join(directory: &Path) -> Result<(f64, Client)> {
    let begun = Instant::now();
    let client = Client::join(directory, PATIENCE)?;
    let (table, _queue, _call) = (client.table("table")?, client.queue("queue")?, client.call("call")?);
    let mut value = [0; 256];
    let found = table.get(b"key", &mut value)?;
    let took = begun.elapsed().as_nanos() as f64;
    ensure!(found == Some(200) && value[..200] == [7; 200], "the first look-up found {found:?}");
    Ok((took, client))
}
