//! What the figures were measured on, and where the two processes run.

use std::fmt;
use std::fs;

use anyhow::{Context, Result, ensure};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use serde::Serialize;

use crate::clock::Clock;

/// The two cores in use.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Cores {
    /// Where the process that measures runs.
    pub first: usize,
    /// Where its peer runs.
    pub second: usize,
}

impl Cores {
    /// The first and the last that this process may run on.
    pub fn choose() -> Result<Self> {
        let allowed = sched_getaffinity(None).context("sched_getaffinity")?;
        let mut cores = (0..CpuSet::MAX_CPU).filter(|&core| allowed.is_set(core));
        let first = cores.next().context("no core to run on")?;
        let second = cores.next_back();
        ensure!(second.is_some(), "expected two cores to run on, found one; widen the affinity (taskset, cpuset)");
        Ok(Self { first, second: second.unwrap_or(first) })
    }
}

/// Keeps the calling thread on one core.
pub fn pin_to(core: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(core);
    sched_setaffinity(None, &set).with_context(|| format!("pinning to core {core}"))
}

/// Lets this process and those it starts have as many descriptors as root allowed: a thousand clients have some thousands.
pub fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
}

/// Lets the calling thread run anywhere, as a program does that nobody has pinned.
pub fn unpin() -> Result<()> {
    let mut set = CpuSet::new();
    (0..CpuSet::MAX_CPU).for_each(|core| set.set(core));
    sched_setaffinity(None, &set).context("unpinning")
}

/// Where and how the run took place.
#[derive(Debug, Serialize)]
pub struct Machine {
    /// Model name of the CPU.
    pub cpu: String,
    /// Kernel release.
    pub kernel: String,
    /// How many cores are online.
    pub cores_online: usize,
    /// The two that were used.
    pub cores: Cores,
    /// One-minute load average at the start: above .3, something else is running.
    pub load: f64,
    /// What one reading of the clock adds to each round trip; ns.
    pub clock_ns: f64,
    /// The command line.
    pub command: String,
}

impl Machine {
    /// This machine, now.
    pub fn describe(cores: Cores) -> Self {
        Self {
            cpu: cpu_model(),
            kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
            cores_online: std::thread::available_parallelism().map_or(0, usize::from),
            cores,
            load: load(),
            clock_ns: Clock::shared().cost_ns(),
            command: std::env::args().collect::<Vec<_>>().join(" "),
        }
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{}, Linux {}, {} cores (processes on {} and {})",
            self.cpu, self.kernel, self.cores_online, self.cores.first, self.cores.second
        )?;
        writeln!(
            f,
            "load {:.2} at the start; a reading of the clock, one per round trip, is {:.0} ns",
            self.load, self.clock_ns
        )?;
        write!(f, "{}", self.command)
    }
}

fn cpu_model() -> String {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    info.lines()
        .find_map(|line| line.strip_prefix("model name"))
        .map_or("an unnamed CPU", |rest| rest.trim_start_matches(['\t', ':', ' ']))
        .to_owned()
}

fn load() -> f64 {
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    load.split(' ').next().and_then(|one_minute| one_minute.parse().ok()).unwrap_or(f64::NAN)
}
