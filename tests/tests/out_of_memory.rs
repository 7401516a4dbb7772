//! Whoever runs into its pod's memory limit dies alone: real pods, real cgroups, v1 or v2.

use podshm_testkit::{Isolation, Pod};
use podshm_tests::roles::{LEAKS, ask_to_stop, leak_file, written_down};
use podshm_tests::{Node, deliveries, patient, until};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const PROGRAM: &str = env!("CARGO_BIN_EXE_podshm-test-participant");
/// Of a pod; what it writes down is charged to it as well, and can be reclaimed.
const LIMIT: u64 = 96 << 20;
/// Emulated machines are slow.
const SOON: Duration = Duration::from_secs(120);

/// A broker, and pods beside it.
struct Stage {
    node: Node,
    files: PathBuf,
}

impl Stage {
    fn new() -> Stage {
        let node = Node::with(patient());
        let files = node.root().join("files");
        std::fs::create_dir(&files).unwrap();
        std::fs::set_permissions(&files, PermissionsExt::from_mode(0o777)).unwrap();
        Stage { node, files }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.files.join(name)
    }

    /// `None` where pods have no walls or no memory cgroup here, which is said.
    fn pod(&self, role: &str, name: &str, file: &Path, number: u32) -> Option<Pod> {
        let directory = self.node.pod(name);
        std::fs::set_permissions(&directory, PermissionsExt::from_mode(0o777)).unwrap();
        let directory_inside = podshm_testkit::SOCKET_DIR;
        let pod = Pod::builder(name)
            // Agents go on in one file, so they are one user.
            .uid(if role == "agent" { 20_100 } else { 20_000 + number })
            .socket_dir(directory)
            .bind(&self.files, &self.files, false)
            .memory_limit(LIMIT)
            .env(LEAKS, "1")
            .spawn(PROGRAM, [role, directory_inside, file.to_str().unwrap(), &number.to_string()])
            .expect("a pod");
        if pod.isolation() == Isolation::None || pod.oom_kills().is_none() {
            eprintln!("SKIPPED: no namespaces or no memory cgroups here");
            return None;
        }
        Some(pod)
    }

    fn client(&self, number: u32) -> Option<Pod> {
        self.pod("client", &format!("c-{number}"), &self.noted(number), number)
    }

    fn noted(&self, number: u32) -> PathBuf {
        self.file(&format!("client-{number}.log"))
    }

    fn accepted(&self, number: u32) -> u64 {
        written_down(&self.noted(number), number).1.accepted
    }

    fn agent(&self, number: u32) -> Option<Pod> {
        let epoch = self.node.broker.stats("d").unwrap().epoch;
        let pod = self.pod("agent", "agent", &self.file("deliveries"), number)?;
        self.node.settle("the agent serves", |s| s.agent && s.epoch > epoch);
        Some(pod)
    }

    fn await_progress(&self, clients: &[u32]) {
        let before: Vec<u64> = clients.iter().map(|n| self.accepted(*n)).collect();
        let has_sent = || clients.iter().zip(&before).all(|(n, before)| self.accepted(*n) > before + 200);
        let start = Instant::now();
        while !has_sent() {
            assert!(start.elapsed() < SOON, "no progress of {clients:?}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Ends the clients in order, and checks that nothing was lost or came twice unmarked.
    fn check(&self, living: Vec<(u32, Pod)>, dead: &[u32]) {
        let senders: Vec<u32> = living.iter().map(|(n, _)| *n).chain(dead.iter().copied()).collect();
        for (number, mut pod) in living {
            ask_to_stop(&self.noted(number));
            let status = pod.wait_within(SOON).unwrap().expect("it ends when it is asked to");
            assert!(status.success(), "client {number}: {status}");
            assert_eq!(pod.oom_kills(), Some(0), "nobody else was killed");
        }
        self.node.settle("all is drained", |s| s.clients.is_empty());
        let sent: Vec<_> = senders.iter().map(|n| written_down(&self.noted(*n), *n).1).collect();
        eprintln!("{:?}", deliveries::check(&deliveries::read(&self.file("deliveries")), &sent));
    }
}

/// Has it take memory until the kernel kills it for that.
fn squeeze(pod: &mut Pod, file: &Path) {
    std::fs::write(leak_file(file), []).unwrap();
    let status = pod.wait_within(SOON).unwrap().expect("the kernel ends it");
    assert_eq!(status.signal(), Some(9), "{}: {status}", pod.name());
    until("the kernel counts it", || pod.oom_kills() == Some(1));
}

#[test]
fn an_agent_over_its_limit_dies_alone_and_its_successor_loses_nothing() {
    let stage = Stage::new();
    let Some(mut agent) = stage.agent(1) else { return };
    let clients: Vec<(u32, Pod)> = (0..2).map(|n| (n, stage.client(n).expect("a pod as before"))).collect();
    stage.await_progress(&[0, 1]);
    squeeze(&mut agent, &stage.file("deliveries"));
    drop(agent);
    std::fs::remove_file(leak_file(&stage.file("deliveries"))).unwrap();
    let successor = stage.agent(2).expect("a pod as before");
    stage.await_progress(&[0, 1]);
    stage.check(clients, &[]);
    assert_eq!(successor.oom_kills(), Some(0));
}

#[test]
fn a_client_over_its_limit_dies_alone_and_is_drained() {
    let stage = Stage::new();
    let Some(agent) = stage.agent(1) else { return };
    let clients: Vec<(u32, Pod)> = (0..2).map(|n| (n, stage.client(n).expect("a pod as before"))).collect();
    stage.await_progress(&[0, 1]);
    let with_two = stage.node.broker.stats("d").unwrap();
    let mut third = stage.client(2).expect("a pod as before");
    stage.await_progress(&[0, 1, 2]);
    squeeze(&mut third, &stage.noted(2));
    // What it was charged is the domain's again, to the byte.
    stage.node.settle("its part of the budget is free", |s| s.clients.len() == 2 && s.reserved == with_two.reserved);
    stage.await_progress(&[0, 1]);
    stage.check(clients, &[2]);
    assert_eq!(agent.oom_kills(), Some(0), "nobody else was killed");
}
