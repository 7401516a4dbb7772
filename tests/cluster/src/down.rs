//! Takes the cluster down, and checks that nothing of it is left.

use crate::place::{INSTANCE_ENV, Place, instance as instance_here, nodes};
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
    let is_below = |line: &&str| line.contains(&format!("{root}/")) || line.contains(&format!("{root} "));
    left.extend(mounts.lines().filter(is_below).map(|line| format!("mount {line}")));
    for process in fs::read_dir("/proc")?.flatten().map(|entry| entry.path()) {
        let command = fs::read(process.join("cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command).replace('\0', " ");
        // Dead ones that nobody has waited for have no command line.
        let environment = fs::read(process.join("environ")).unwrap_or_default();
        if is_ours(&command, &String::from_utf8_lossy(&environment), &root, instance_here()) {
            left.push(format!("process {}: {command}", process.display()));
        }
    }
    Ok(left)
}

/// Every program of a cluster has the cluster's directory in its command line, makes a set of namespaces, or is a shim of containerd's. The
/// latter two are told from another cluster's on this machine by what they were started with.
fn is_ours(command: &str, environment: &str, root: &str, here: u32) -> bool {
    let mut words = command.split(' ');
    let program = words.next().map(Path::new).and_then(Path::file_name).unwrap_or_default();
    let is_set = program == "podshm-cluster" && matches!(words.next(), Some("set" | "first"));
    let is_shim = program == "containerd-shim-runc-v2" && command.contains("-namespace k8s.io");
    let said = environment.split('\0').find_map(|line| line.strip_prefix(INSTANCE_ENV)?.strip_prefix('='));
    let instance = said.map_or(Some(0), |said| if said.is_empty() { Some(0) } else { said.parse().ok() });
    ((is_set || is_shim) && instance == Some(here)) || command.contains(&format!("{root}/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_clusters_programs_are_not_ours() {
        let root = "/var/tmp/podshm-cluster";
        let shim = "/usr/bin/containerd-shim-runc-v2 -namespace k8s.io -id 1";
        for (command, environment, expected) in [
            ("/t/podshm-cluster set a", "HOME=/root", true),
            ("/t/podshm-cluster set a", "PODSHM_CLUSTER_INSTANCE=0\0HOME=/root", true),
            ("/t/podshm-cluster first control", "HOME=/root\0PODSHM_CLUSTER_INSTANCE=2\0", false),
            (shim, "PODSHM_CLUSTER_INSTANCE=\0", true),
            (shim, "PODSHM_CLUSTER_INSTANCE=1\0", false),
            ("/c/kubelet --config=/var/tmp/podshm-cluster/a/kubelet.yaml", "", true),
            ("/c/kubelet --config=/var/tmp/podshm-cluster2/a/kubelet.yaml", "", false),
            ("/t/podshm-cluster up", "", false),
        ] {
            // Whichever instance the tests themselves run for.
            assert_eq!(is_ours(command, environment, root, 0), expected, "{command} {environment:?}");
        }
    }
}
