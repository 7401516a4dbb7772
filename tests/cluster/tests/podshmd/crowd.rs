//! Pods with a volume come and go by the dozen, and leave nothing: no mount, socket, cgroup, and no memory of the daemon's.

use podshm_cluster::cgroups;
use podshm_cluster::images::POD;
use podshm_cluster::place::NODES;
use podshm_cluster::scene::{left_on, pod_on, report, space, with_volume};
use podshm_cluster::testing::{Cluster, Space, until};
use serde_json::json;
use std::time::{Duration, Instant};

/// Pods of a wave, on each node.
const OF_A_NODE: usize = 50;
/// The same where PODSHM_CHURN is `brief`.
const OF_A_NODE_BRIEFLY: usize = 5;
/// So long there are new waves, unless it is.
const MINUTES: Duration = Duration::from_secs(120);
/// What the daemon may have more of after a wave than after the one before: what its allocator keeps, and pages that the kernel has not
/// counted off yet. A pod's regions alone are more.
const SLACK: u64 = 4 << 20;
/// What the daemon may be charged for more: an agent has between half and all of its spare answer regions (four of 8 KiB), as it happens. 20 clients of a
/// node that left one of theirs each would be ten times that; in a brief run there is one, and what it leaves is told by its volume.
const SPARES: u64 = 2 * 8192;

/// What may not become more.
#[derive(Clone, Debug, PartialEq, Eq)]
struct State {
    /// Directories, sockets and mounts of volumes.
    left: usize,
    /// Memory cgroups of pods.
    cgroups: usize,
    /// What the daemon says that it is charged for.
    charged: u64,
    /// What the kernel charges it for.
    used: u64,
}

impl State {
    fn of(cluster: &Cluster, node: &str) -> State {
        let found = report(cluster, node).expect("a report");
        let system = space("podshm-system");
        let daemon = pod_on(cluster, &system, "app=podshmd", node);
        let of = "jsonpath={.metadata.uid}";
        let uid = cluster.within(&system, &["get", "pod", &daemon, "-o", of]).expect("the daemon's pod");
        State {
            left: left_on(cluster, node).len(),
            cgroups: cgroups::pods(node).expect("the node's cgroups"),
            charged: found["chargedBytes"].as_u64().expect("a number"),
            used: cgroups::memory_of_pod(node, &uid).expect("the daemon's cgroup"),
        }
    }

    /// Less is fine: what was there before may have been about to go itself.
    fn is_no_more_than(&self, before: &State) -> bool {
        self.left <= before.left
            && self.cgroups <= before.cgroups
            && self.charged <= before.charged + SPARES
            && self.used <= before.used + SLACK
    }
}

/// Waves of 50 pods on each node for two minutes; one small one for `make test`, which has PODSHM_CHURN=brief.
pub fn pods_come_and_go_and_leave_nothing(cluster: &Cluster, shop: &Space) {
    let is_brief = match std::env::var("PODSHM_CHURN").as_deref() {
        Err(_) => false,
        Ok("brief") => true,
        Ok(other) => panic!("PODSHM_CHURN: expected brief, or nothing, found {other:?}"),
    };
    let (of_a_node, least) = if is_brief { (OF_A_NODE_BRIEFLY, Duration::ZERO) } else { (OF_A_NODE, MINUTES) };
    // The first brings what stays: pages of programs, what the allocator keeps.
    wave(cluster, shop, "first", of_a_node);
    let before = NODES.map(|node| State::of(cluster, node));
    let (begin, mut waves) = (Instant::now(), 0);
    while waves == 0 || begin.elapsed() < least {
        wave(cluster, shop, &waves.to_string(), of_a_node);
        waves += 1;
    }
    let pods = waves * of_a_node * NODES.len();
    println!("{pods} pods with a volume came and went in {waves} waves, in {:.0} s", begin.elapsed().as_secs_f64());
    for (node, before) in NODES.iter().zip(before) {
        let gone = until("what came to be gone", || {
            Ok(Some(State::of(cluster, node)).filter(|now| now.is_no_more_than(&before)))
        });
        let after = gone
            .unwrap_or_else(|error| panic!("{error}: node {node} had {before:?}, has {:?}", State::of(cluster, node)));
        println!("node {node}: {before:?} before, {after:?} after them");
    }
}

fn wave(cluster: &Cluster, shop: &Space, wave: &str, of_a_node: usize) {
    let begin = Instant::now();
    let names: Vec<String> = (0..of_a_node * NODES.len()).map(|number| format!("crowd-{wave}-{number}")).collect();
    for (number, (name, node)) in names.iter().zip(NODES.iter().cycle()).enumerate() {
        let mut pod = with_volume(name, node, json!({"domain": "routing"}));
        // One of five on each node has a client, and so regions: all of them would not fit into the example's budget.
        if (number / NODES.len()).is_multiple_of(5) {
            pod["spec"]["containers"][0]["image"] = POD.into();
            pod["spec"]["containers"][0]["args"] = json!(["look"]);
        }
        cluster.create(shop, &pod).unwrap();
    }
    for name in &names {
        cluster.ready(shop, name).unwrap();
    }
    let ready = begin.elapsed().as_secs_f64();
    let all: Vec<&str> = names.iter().map(String::as_str).collect();
    cluster.within(shop, &[&["delete", "pod", "--wait=false", "--grace-period=1"], &all[..]].concat()).unwrap();
    for name in &names {
        cluster.gone(shop, name).unwrap();
    }
    println!(
        "wave {wave}: {} pods with a volume ready after {ready:.1} s, gone after {:.1} s",
        names.len(),
        begin.elapsed().as_secs_f64()
    );
}
