//! A thousand clients of one agent: what they cost it while they are idle, and what one pays that is not.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use podshm::{Caller, Client, Spin};

use super::{Node, PATIENCE, default_agent, serve_until_told};
use crate::control::Control;
use crate::metric::Metric;
use crate::row::{Bound, Plan, Row, Sample, Target};
use crate::task::{self, Task};
use crate::transport::timed_rtt;

/// Clients, and the processes that they are spread over.
const CLIENTS: usize = 1000;
const PROCESSES: usize = 4;
/// How long the agent is watched.
const WATCHED: Duration = Duration::from_secs(2);

/// See above.
pub struct Crowd;

const NONE: Metric = Metric::Cpu { what: "CPU of an agent without clients" };
const MORE: Metric = Metric::Cpu { what: "more CPU with 1,000 idle clients" };
const SWITCHES: Metric = Metric::PerSecond { what: "times that the agent woke up, 1,000 idle clients" };
const AMONG: Metric = Metric::Once { what: "call of 64 B, one of 1,000 clients, the others idle" };
const ALONE: Metric = Metric::Once { what: "call of 64 B, once they have left" };

impl Row for Crowd {
    fn name(&self) -> &'static str {
        "podshm-crowd"
    }

    fn title(&self) -> String {
        "podshm".to_owned()
    }

    fn metrics(&self) -> Vec<Metric> {
        vec![NONE, MORE, SWITCHES, AMONG, ALONE]
    }

    fn targets(&self) -> Vec<Target> {
        // A thousandth of a core: what two measurements of the same idle agent differ by.
        vec![Target { metric: MORE, bound: Bound::Under(1e6), fatal: false }]
    }

    fn every(&self) -> u32 {
        15
    }

    fn measure(&self, peer: &mut Control, plan: Plan) -> Result<Vec<Sample>> {
        let node = Node::start()?;
        peer.send(&node.agent())?;
        let agent = Process(peer.recv()?);
        let directory = node.client().to_string_lossy().into_owned();
        let (none, _) = agent.watched(WATCHED)?;

        let client = Client::join(&directory, PATIENCE)?;
        let call = client.call("call")?.spin(Spin::Always);
        let each = (CLIENTS / PROCESSES).to_string();
        let start = |_| Task::start(self.name(), &[&directory, &each]);
        let mut crowd = (0..PROCESSES).map(start).collect::<Result<Vec<_>>>()?;
        for task in &mut crowd {
            ensure!(task.line()? == "joined", "expected the clients to have joined");
        }
        let joined = node.broker.stats("bench")?.clients.len();
        ensure!(joined == CLIENTS + 1, "expected {} clients, found {joined}", CLIENTS + 1);
        std::thread::sleep(Duration::from_millis(100));
        let (idle, switches) = agent.watched(WATCHED)?;
        let among = trip(&call, plan.budget)?;
        for task in crowd {
            task.finish()?;
        }
        let alone = trip(&call, plan.budget)?;
        let values = [none, idle - none, switches, among, alone];
        Ok(self.metrics().into_iter().zip(values).map(|(metric, value)| Sample { metric, value }).collect())
    }

    fn serve(&self, control: &mut Control) -> Result<()> {
        let directory: PathBuf = control.recv()?;
        let agent = default_agent(&directory)?;
        control.send(&std::process::id())?;
        serve_until_told(agent, control)
    }

    fn task(&self, arguments: &[String]) -> Result<()> {
        let [directory, count] = arguments else { anyhow::bail!("expected a directory and a number") };
        let join = |_| Ok(Client::join(directory, PATIENCE)?);
        let clients = (0..count.parse::<usize>()?).map(join).collect::<Result<Vec<Client>>>()?;
        task::say("joined")?;
        task::until_told();
        drop(clients);
        Ok(())
    }
}

/// p50 of a call of 64 B; ns.
fn trip(call: &Caller, budget: Duration) -> Result<f64> {
    let mut answer = [0; 64];
    let trips = timed_rtt(
        budget,
        |_| Ok(()),
        |_| {
            ensure!(call.call(&[1; 64], &mut answer, PATIENCE)? == 64, "expected an answer of 64 bytes");
            Ok(())
        },
    )?;
    Ok(trips.quantile(0.5))
}

/// Another process, by what /proc says of its threads.
struct Process(u32);

impl Process {
    /// CPU in ns and times that a thread went to sleep, both a second.
    fn watched(&self, time: Duration) -> Result<(f64, f64)> {
        let begun = Instant::now();
        let before = self.used()?;
        std::thread::sleep(time);
        let after = self.used()?;
        let seconds = begun.elapsed().as_secs_f64();
        Ok(((after.0 - before.0) / seconds, (after.1 - before.1) / seconds))
    }

    fn used(&self) -> Result<(f64, f64)> {
        let (mut cpu, mut switches) = (0.0, 0.0);
        for thread in std::fs::read_dir(format!("/proc/{}/task", self.0))? {
            let thread = thread?.path();
            let schedstat = std::fs::read_to_string(thread.join("schedstat"))?;
            cpu += schedstat.split(' ').next().unwrap_or_default().parse::<f64>().context("schedstat")?;
            let status = std::fs::read_to_string(thread.join("status"))?;
            let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
            switches += line.context("no context switches in /proc")?.trim().parse::<f64>()?;
        }
        Ok((cpu, switches))
    }
}
