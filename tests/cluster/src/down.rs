//! Takes the cluster down, and checks that nothing of it is left.

use crate::place::{Place, nodes};
use crate::supervise::{alive, outer};
use crate::{cgroups, control, network};
use anyhow::{Context, ensure};
use rustix::process::{Pid, Signal, kill_process};
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

/// How long the kernel may take to end what is in a namespace.
const PATIENCE: Duration = Duration::from_secs(60);

/// Ends everything that [`crate::up::up`] started. There may be nothing.
pub fn down(place: &Place) -> anyhow::Result<()> {
    let begin = Instant::now();
    let sets = || nodes().iter().chain([&control::SET]);
    // The outer ones first: one that has made no first process yet makes none.
    let all: Vec<String> = sets().map(|set| outer(set)).chain(sets().map(|set| (*set).to_owned())).collect();
    for name in &all {
        if let Some(pid) = alive(place, name).and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?)) {
            kill_process(pid, Signal::KILL).with_context(|| format!("ending {name}"))?;
        }
    }
    for name in &all {
        while alive(place, name).is_some() {
            ensure!(begin.elapsed() < PATIENCE, "{name} does not end");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    cgroups::remove(PATIENCE)?;
    network::remove();
    while network::is_there() {
        ensure!(begin.elapsed() < PATIENCE, "the host's link to the cluster does not go");
        std::thread::sleep(Duration::from_millis(20));
    }
    let sysctls = fs::read_to_string(place.path("sysctls")).ok();
    if place.root().exists() {
        fs::remove_dir_all(place.root()).with_context(|| format!("removing {}", place.root().display()))?;
    }
    let left = left(place)?;
    ensure!(left.is_empty(), "left of the cluster:\n  {}", left.join("\n  "));
    if let Some(before) = sysctls {
        let now = crate::node::sysctls();
        ensure!(before == now, "the machine's sysctls were\n{before}and are now\n{now}");
    }
    println!("cluster down in {:.1} s; nothing of it is left", begin.elapsed().as_secs_f64());
    Ok(())
}

/// What is left of a cluster on the machine, each with where it is.
pub fn left(place: &Place) -> anyhow::Result<Vec<String>> {
    let mut left: Vec<String> = cgroups::left()?.iter().map(|group| format!("cgroup {}", group.display())).collect();
    let root = place.root().display().to_string();
    if place.root().exists() {
        left.push(format!("directory {root}"));
    }
    if network::is_there() {
        left.push(format!("interface {}", crate::place::name()));
    }
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    left.extend(mounts.lines().filter(|line| line.contains(&root)).map(|line| format!("mount {line}")));
    for process in fs::read_dir("/proc")?.flatten().map(|entry| entry.path()) {
        let command = fs::read(process.join("cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command).replace('\0', " ");
        // Dead ones that nobody has waited for have no command line.
        if is_ours(&command, &root) {
            left.push(format!("process {}: {command}", process.display()));
        }
    }
    Ok(left)
}

/// Every program of a cluster has the cluster's directory in its command line, makes a set of namespaces, or is a shim of containerd's.
fn is_ours(command: &str, root: &str) -> bool {
    let mut words = command.split(' ');
    let program = words.next().map(Path::new).and_then(Path::file_name).unwrap_or_default();
    let is_set = program == "podshm-cluster" && matches!(words.next(), Some("set" | "first"));
    let is_shim = program == "containerd-shim-runc-v2" && command.contains("-namespace k8s.io");
    is_set || is_shim || command.contains(&format!("{root}/"))
}
