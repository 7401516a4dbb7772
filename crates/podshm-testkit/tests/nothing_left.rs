//! A pod that is dropped, or whose harness is killed, leaves no process, mount or cgroup. One test at a time, since it
//! looks at the whole machine.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use podshm_testkit::{Isolation, Pod};

const PROBE: &str = env!("CARGO_BIN_EXE_podshm-pod-probe");
const SOON: Duration = Duration::from_secs(20);

fn gone(pid: u32) -> bool {
    !Path::new(&format!("/proc/{pid}")).exists()
}

/// Children of this process: helpers that were not reaped would show.
fn children() -> usize {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap().flatten();
    tasks
        .map(|task| {
            std::fs::read_to_string(task.path().join("children")).unwrap_or_default().split_whitespace().count()
        })
        .sum()
}

fn mounts() -> String {
    std::fs::read_to_string("/proc/self/mounts").unwrap()
}

fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < SOON, "waited for: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn nothing_is_left() {
    dropping_leaves_nothing();
    a_stopped_pod_can_be_dropped();
    for signal in ["-KILL", "-INT"] {
        killing_the_harness_kills_its_pod(signal);
    }
    killing_the_supervisor_kills_its_pod();
}

fn dropping_leaves_nothing() {
    let (before, none) = (mounts(), children());
    for _ in 0..5 {
        let mut pod = Pod::builder("dropped").uid(20001).spawn(PROBE, ["sleep"]).unwrap();
        assert_eq!(pod.stdout().next_within(SOON).as_deref(), Some("ready"));
        let second = pod.exec("/bin/sh", ["-c", "sleep 1000 & setsid sleep 1000 & wait"]).unwrap();
        wait_until("the shell's children are up", || pod.processes().len() >= 4);
        let mut pids = pod.processes();
        pids.extend(pod.init_pid());
        let cgroup: Option<PathBuf> = pod.cgroup_dir().map(Path::to_owned);
        assert!(cgroup.as_ref().is_none_or(|dir| dir.is_dir()));
        let walled = pod.isolation() != Isolation::None;
        drop(pod);
        assert_eq!(mounts(), before);
        assert!(cgroup.is_none_or(|dir| !dir.exists()));
        let left = || pids.iter().filter(|pid| !gone(**pid)).count();
        if walled {
            assert_eq!(left(), 0, "{pids:?}");
        } else {
            // Each process follows by itself, without waiting for its handle to be dropped.
            wait_until("plain processes have gone", || left() == 0);
        }
        drop(second);
        assert_eq!(children(), none);
    }
}

fn a_stopped_pod_can_be_dropped() {
    let mut pod = Pod::builder("halted").uid(20001).spawn(PROBE, ["sleep"]).unwrap();
    assert_eq!(pod.stdout().next_within(SOON).as_deref(), Some("ready"));
    pod.stop().unwrap();
    let pid = pod.pid();
    let start = Instant::now();
    drop(pod);
    assert!(gone(pid) && start.elapsed() < Duration::from_secs(5));
}

fn killing_the_harness_kills_its_pod(signal: &str) {
    let mut harness = Command::new(PROBE).arg("harness").stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(harness.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let words: Vec<&str> = line.split_whitespace().collect();
    let pids: Vec<u32> = words[1..4].iter().map(|word| word.parse().unwrap()).collect();
    assert!(pids.iter().filter(|pid| **pid != 0).all(|pid| !gone(*pid)), "{line}");
    assert!(Command::new("kill").args([signal, &harness.id().to_string()]).status().unwrap().success());
    harness.wait().unwrap();
    wait_until("the pod has followed its harness", || pids.iter().all(|pid| *pid == 0 || gone(*pid)));
    wait_until("its cgroup has gone", || words[4] == "-" || !Path::new(words[4]).exists());
}

fn killing_the_supervisor_kills_its_pod() {
    let mut pod = Pod::builder("decapitated").uid(20001).spawn(PROBE, ["sleep"]).unwrap();
    assert_eq!(pod.stdout().next_within(SOON).as_deref(), Some("ready"));
    if pod.isolation() == Isolation::None {
        return;
    }
    let status = std::fs::read_to_string(format!("/proc/{}/status", pod.pid())).unwrap();
    let supervisor = status.lines().find_map(|line| line.strip_prefix("PPid:")).unwrap().trim().to_owned();
    let cgroup = pod.cgroup_dir().map(Path::to_owned);
    assert!(Command::new("kill").args(["-KILL", &supervisor]).status().unwrap().success());
    let pid = pod.pid();
    wait_until("the pod has followed its supervisor", || gone(pid));
    assert!(pod.wait().is_err());
    drop(pod);
    assert!(cgroup.is_none_or(|dir| !dir.exists()), "the library removes what a killed supervisor could not");
}
