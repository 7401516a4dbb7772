//! A cgroup for each node, in every hierarchy: kubelets that shared one would remove each other's pods.

use crate::place::name;
use anyhow::{Context, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use std::collections::HashSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// As a kubelet wants it: its `cgroupRoot`.
pub fn root_of(node: &str) -> String {
    format!("/{}/{node}", name())
}

/// Mount points of all hierarchies; true where it is cgroup v2 with controllers.
fn hierarchies() -> anyhow::Result<Vec<(PathBuf, bool)>> {
    let mounts = fs::read_to_string("/proc/self/mounts").context("reading the mounts")?;
    let mut all = Vec::new();
    for line in mounts.lines() {
        let mut words = line.split(' ').skip(1);
        let (Some(point), Some(kind)) = (words.next(), words.next()) else { continue };
        let point = PathBuf::from(point);
        match kind {
            "cgroup" => all.push((point, false)),
            "cgroup2" => {
                let controllers = fs::read_to_string(point.join("cgroup.controllers")).unwrap_or_default();
                all.push((point, !controllers.trim().is_empty()));
            }
            _ => {}
        }
    }
    ensure!(!all.is_empty(), "no cgroup hierarchy is mounted; a kubelet needs one");
    Ok(all)
}

/// Makes a node's groups.
pub fn make(node: &str) -> anyhow::Result<()> {
    for (point, is_v2) in hierarchies()? {
        let (ours, theirs) = (point.join(name()), point.join(name()).join(node));
        for (parent, group) in [(&point, &ours), (&ours, &theirs)] {
            match fs::create_dir(group) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                other => other.with_context(|| format!("making the cgroup {}", group.display()))?,
            }
            // v1: a new group of cpuset has neither, and nobody may be put there.
            for file in ["cpuset.cpus", "cpuset.mems"] {
                if !is_v2 && group.join(file).exists() {
                    fs::write(group.join(file), fs::read(parent.join(file))?)?;
                }
            }
            if is_v2 {
                let all = fs::read_to_string(parent.join("cgroup.controllers"))?;
                for controller in all.split_whitespace() {
                    // Some can't be (a real-time group elsewhere holds cpu, say); the kubelet names what it misses.
                    let _ = fs::write(parent.join("cgroup.subtree_control"), format!("+{controller}"));
                }
            }
        }
    }
    Ok(())
}

/// Kills whatever runs in pods of a node, sandboxes included: a node that loses its power, with what stops its kubelet and containerd.
pub fn kill_pods(node: &str) -> anyhow::Result<usize> {
    let mut pids = HashSet::new();
    for (point, _) in hierarchies()? {
        processes(&point.join(name()).join(node).join("kubepods"), &mut pids);
    }
    for pid in &pids {
        // One that is gone by now is as dead as the others.
        let _ = kill_process(*pid, Signal::KILL);
    }
    Ok(pids.len())
}

fn processes(group: &Path, into: &mut HashSet<Pid>) {
    let text = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
    into.extend(text.lines().filter_map(|line| Pid::from_raw(line.parse().ok()?)));
    for entry in fs::read_dir(group).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            processes(&entry.path(), into);
        }
    }
}

/// How many groups of pods there are on a node: sandboxes that have gone leave none.
pub fn pods(node: &str) -> anyhow::Result<usize> {
    let root = memory_of_node(node)?;
    Ok(below(&root, &|name| name.starts_with("pod")).len())
}

/// Bytes that the kernel charges a pod for, by its UID, without what it would drop first: as the kubelet counts.
pub fn memory_of_pod(node: &str, uid: &str) -> anyhow::Result<u64> {
    let name = format!("pod{uid}");
    let found = below(&memory_of_node(node)?, &|found| found == name);
    let [group] = &found[..] else { bail!("pod {uid} has {} groups on node {node}", found.len()) };
    let (usage, inactive) = match group.join("memory.current").exists() {
        true => ("memory.current", "inactive_file "),
        false => ("memory.usage_in_bytes", "total_inactive_file "),
    };
    let usage: u64 = fs::read_to_string(group.join(usage))?.trim().parse()?;
    let all = fs::read_to_string(group.join("memory.stat"))?;
    let inactive = all.lines().find_map(|line| line.strip_prefix(inactive)?.parse::<u64>().ok());
    Ok(usage.saturating_sub(inactive.context("memory.stat has inactive_file")?))
}

/// A node's group in the hierarchy that counts memory.
fn memory_of_node(node: &str) -> anyhow::Result<PathBuf> {
    let mut all = hierarchies()?.into_iter().map(|(point, _)| point.join(name()).join(node));
    let counts =
        |group: &PathBuf| ["memory.current", "memory.usage_in_bytes"].iter().any(|file| group.join(file).exists());
    all.find(counts).with_context(|| format!("no cgroup counts the memory of node {node}"))
}

/// Groups below one, by name.
fn below(group: &Path, is_it: &dyn Fn(&str) -> bool) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(group).into_iter().flatten().flatten().filter(|entry| entry.path().is_dir()) {
        if entry.file_name().to_str().is_some_and(is_it) {
            found.push(entry.path());
        }
        found.extend(below(&entry.path(), is_it));
    }
    found
}

/// Removes all groups of the cluster, waiting for their last processes to go.
pub fn remove(patience: Duration) -> anyhow::Result<()> {
    let begin = Instant::now();
    for group in left()? {
        while let Err(error) = remove_tree(&group) {
            if begin.elapsed() > patience {
                return Err(error).with_context(|| format!("removing the cgroup {}", group.display()));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
    Ok(())
}

/// The cluster's groups that are there.
pub fn left() -> anyhow::Result<Vec<PathBuf>> {
    let all = hierarchies()?.into_iter().map(|(point, _)| point.join(name()));
    Ok(all.filter(|group| group.exists()).collect())
}

fn remove_tree(group: &Path) -> io::Result<()> {
    for entry in fs::read_dir(group)?.flatten() {
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    match fs::remove_dir(group) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
