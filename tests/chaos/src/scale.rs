//! Longest gaps with one, a hundred and a thousand clients, and how long a dead client's memory is away. Measured, not judged.

use crate::agents::{Agents, Variant};
use crate::entry::{self, What, now};
use crate::gaps::{Gaps, Longest, Wait};
use crate::node::{BrokerPod, PATIENCE, Place, program, text};
use crate::schedule::{Domain, Kind, Target};
use crate::verdict::Fault;
use anyhow::Context;
use rustix::process::Signal;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Of each kind of fault.
const TIMES: u32 = 5;
/// Clients in one process.
const IN_ONE: u32 = 100;
/// Threads that drive the clients, of all processes together, at least.
const DRIVERS: u32 = 4;
/// Work between two faults.
const BETWEEN: Duration = Duration::from_millis(1500);

/// What was measured with so many clients.
#[derive(Debug)]
struct Row {
    clients: u32,
    gaps: Gaps,
    /// From a successor's start after a crash until the first record that it was given, each time.
    draining: Vec<u64>,
    /// From a client's death until its regions were free, each time.
    freed: Vec<u64>,
}

/// Measures with each of these numbers of clients, and prints a table.
pub fn run(data: &Path, numbers: &[u32]) -> anyhow::Result<()> {
    println!(
        "clients are joins of their own, {IN_ONE} in a process of one pod, driven by {DRIVERS} threads or one for each process; lookup, report, call in turn"
    );
    let rows = numbers.iter().map(|number| measure(data, *number)).collect::<Result<Vec<_>, _>>()?;
    println!("\n{:>8}  {:<28} {:>10} {:>10} {:>10}   longest wait in ms", "clients", "", "lookup", "report", "call");
    for row in &rows {
        let line = |name: &str, longest: &Longest| {
            let cells = [0, 2, 4].map(|kind: usize| format!("{:>10.2}", longest[kind] as f64 / 1e6)).join(" ");
            println!("{:>8}  {name:<28} {cells}", row.clients);
        };
        line("control: no fault", &row.gaps.control);
        for (kind, longest) in &row.gaps.by_kind {
            line(kind.name(), longest);
        }
    }
    println!("\n{:>8}  {:<52} {:>10} {:>10}   in ms", "clients", "", "median", "longest");
    for row in &rows {
        for (name, times) in [
            ("a successor's start until it drains, after a crash", &row.draining),
            ("a client's death until its memory is back", &row.freed),
        ] {
            let mut times = times.clone();
            times.sort_unstable();
            let ms = |at: usize| times.get(at).map_or(0.0, |ns| *ns as f64 / 1e6);
            println!("{:>8}  {name:<52} {:>10.1} {:>10.1}", row.clients, ms(times.len() / 2), ms(times.len() - 1));
        }
    }
    Ok(())
}

fn measure(data: &Path, clients: u32) -> anyhow::Result<Row> {
    let place = Place::new(data)?;
    std::fs::write(place.log("stderr"), "")?;
    let broker = BrokerPod::start(&place, 2, clients + 8)?;
    let mut agents = Agents::new(&place, Domain::Work, None)?;
    agents.next(&place, &broker, &Variant::default())?;
    await_agent(&agents, &broker)?;
    let (pod, other) = (place.pod("client-0", 20_001, 2 << 30)?, place.pod("client-1", 20_002, 1 << 30)?);
    let program = text(&program("podshm-chaos")?);
    let many = |pod: &podshm_testkit::Pod, log: &Path, first: u32, count: u32, drivers: u32| {
        let numbers = [first, count, drivers].map(|number| number.to_string());
        let mut process = pod.exec(&program, ["many".to_owned(), text(log)].into_iter().chain(numbers))?;
        process.stdout().wait_for("joined", PATIENCE).with_context(|| format!("{count} clients do not join"))?;
        anyhow::Ok(process)
    };
    let mut processes = Vec::new();
    for first in (0..clients).step_by(IN_ONE as usize) {
        let (count, drivers) = (IN_ONE.min(clients - first), DRIVERS.div_ceil(clients.div_ceil(IN_ONE)));
        let log = place.log(&format!("many-{first}"));
        processes.push((many(&pod, &log, first, count, drivers)?, log));
    }
    std::thread::sleep(BETWEEN * 3);

    let (mut faults, mut draining) = (Vec::new(), Vec::new());
    for turn in 0..2 * TIMES {
        let (kind, at) = (if turn % 2 == 0 { Kind::Surge } else { Kind::AgentKill }, now());
        if kind == Kind::AgentKill {
            agents.kill()?;
        }
        let started = now();
        agents.next(&place, &broker, &Variant::default())?;
        await_agent(&agents, &broker)?;
        std::thread::sleep(BETWEEN);
        agents.reap()?;
        if kind == Kind::AgentKill {
            let first =
                entry::read(&agents.log()).flatten().find(|e| matches!(e.what, What::Delivered | What::Handled));
            draining.extend(first.map(|entry| entry.time.saturating_sub(started)));
        }
        faults.push(Fault { kind, target: Target::Agent(Domain::Work), at, until: now() });
    }

    let mut freed = Vec::new();
    for turn in 0..TIMES {
        let mut dying = many(&other, &place.log(&format!("dying-{turn}")), clients, 1, 1)?;
        broker.await_books("it is there", |books| books[0].clients == u64::from(clients) + 1)?;
        std::thread::sleep(Duration::from_millis(100));
        let at = now();
        dying.kill9()?;
        broker.await_books("its memory is back", |books| books[0].clients == u64::from(clients))?;
        freed.push(now() - at);
        dying.wait()?;
    }

    for (process, _) in &processes {
        let _ = process.signal(Signal::TERM);
    }
    for (process, _) in &mut processes {
        let status = process.wait_within(PATIENCE)?;
        anyhow::ensure!(
            status.is_some_and(|s| s.success()),
            "clients ended as {status:?}: {}",
            stderr(&place.log("stderr"))
        );
    }
    agents.kill()?;
    let waits: Vec<Wait> = processes
        .iter()
        .flat_map(|(_, log)| entry::read(log).flatten())
        .filter(|entry| entry.what == What::Waited)
        .map(|entry| Wait { pod: 0, kind: entry.aux, from: entry.time - entry.number, to: entry.time })
        .collect();
    Ok(Row { clients, gaps: Gaps::of(&waits, &faults), draining, freed })
}

fn await_agent(agents: &Agents, broker: &BrokerPod) -> anyhow::Result<()> {
    let until = Instant::now() + PATIENCE;
    while !agents.serves(broker) {
        anyhow::ensure!(Instant::now() < until, "the agent does not serve within {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

fn stderr(path: &PathBuf) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}
