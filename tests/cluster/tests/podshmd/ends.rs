//! The node daemon, its mount helper and the node's own programs end and come back while pods push records.

use anyhow::ensure;
use podshm_cluster::images::{PODSHMD, PODSHMD_NEXT};
use podshm_cluster::place::NODES;
use podshm_cluster::scene::{left_on, pod_on, sender, signal, under_load, with_volume};
use podshm_cluster::supervise::ask;
use podshm_cluster::testing::{Cluster, Space, until};
use serde_json::{Value, json};
use std::fs;
use std::time::{Duration, Instant};

/// How a DaemonSet is rolled: both ways that there are.
pub const SURGE: &str = r#"{"spec":{"updateStrategy":{"rollingUpdate":{"maxSurge":1,"maxUnavailable":0}}}}"#;
pub const UNAVAILABLE: &str = r#"{"spec":{"updateStrategy":{"rollingUpdate":{"maxSurge":0,"maxUnavailable":1}}}}"#;

pub fn rolled(cluster: &Cluster, of: &Space, what: &str, strategy: &str) {
    cluster.within(of, &["patch", what, "--type=merge", "-p", strategy]).unwrap();
    cluster.within(of, &["rollout", "restart", what]).unwrap();
    cluster.rolled_out(of, what).unwrap();
}

pub fn the_daemon_is_replaced_under_load(cluster: &Cluster, system: &Space, shop: &Space) {
    for (first_sender, name, strategy) in [(300, "maxSurge", SURGE), (310, "maxUnavailable", UNAVAILABLE)] {
        under_load(cluster, shop, sender(first_sender), &format!("the daemon rolled by its DaemonSet, {name}"), || {
            rolled(cluster, system, "daemonset/podshmd", strategy);
        });
    }
    under_load(cluster, shop, sender(400), "the daemon's pods deleted by force", || {
        cluster.within(system, &["delete", "pod", "-l", "app=podshmd", "--grace-period=0", "--force"]).unwrap();
        cluster.rolled_out(system, "daemonset/podshmd").unwrap();
        // What a DaemonSet says of itself may be from before.
        let _there = NODES.map(|node| pod_on(cluster, system, "app=podshmd", node));
    });
}

pub fn the_daemon_s_processes_are_killed_under_load(cluster: &Cluster, system: &Space, shop: &Space) {
    // How often podshmd and its helper have been started anew after each.
    for (first_sender, what, verb, restarted) in
        [(410, "the mount helpers killed", "mount-helper", "0 1"), (420, "the daemons killed", "run", "1 1")]
    {
        under_load(cluster, shop, sender(first_sender), what, || {
            let daemons = NODES.map(|node| pod_on(cluster, system, "app=podshmd", node));
            for node in NODES {
                kill(cluster, node, verb);
            }
            for (node, pod) in NODES.iter().zip(daemons) {
                let name = format!("after-{verb}-{node}");
                cluster.start(shop, &with_volume(&name, node, json!({"domain": "routing"}))).unwrap();
                cluster.within(shop, &["delete", "pod", &name, "--grace-period=1"]).unwrap();
                let of = "jsonpath={.status.containerStatuses[0].restartCount} {.status.initContainerStatuses[0].restartCount}";
                // The kubelet may say so a moment after it has started it.
                until(&format!("{what}: {pod} on node {node} to say {restarted:?}"), || {
                    let found = cluster.within(system, &["get", "pod", &pod, "-o", of])?;
                    ensure!(found == restarted, "podshmd and helper were started anew {found:?} times");
                    Ok(Some(()))
                })
                .unwrap();
            }
        });
    }
}

/// Kills the one process of a node that is podshmd's with this verb: no signal that it could act upon.
fn kill(cluster: &Cluster, node: &str, verb: &str) {
    let begins = format!("/podshmd\0{verb}\0");
    let killed = signal(cluster, node, "KILL", |process| {
        fs::read(process.join("cmdline")).unwrap_or_default().starts_with(begins.as_bytes())
    });
    assert_eq!(killed, 1, "podshmd {verb} on node {node}");
}

/// To another image, as a release is: with other content, under another tag.
pub fn the_daemon_is_upgraded_under_load(cluster: &Cluster, system: &Space, shop: &Space) {
    cluster.provide_next_podshmd().unwrap();
    // Of both containers of both pods.
    let images = || {
        let found = cluster.within(system, &["get", "pods", "-l", "app=podshmd", "-o", "json"]).unwrap();
        let found: Value = serde_json::from_str(&found).unwrap();
        let pods = found["items"].as_array().cloned().unwrap_or_default();
        let of = |pod: &Value| {
            ["containerStatuses", "initContainerStatuses"].map(|list| pod["status"][list][0]["imageID"].to_string())
        };
        pods.iter().flat_map(of).collect::<Vec<String>>()
    };
    let upgraded = |strategy: &str, image: &str| {
        let both = [format!("podshmd={image}"), format!("mount-helper={image}")];
        cluster.within(system, &["patch", "daemonset/podshmd", "--type=merge", "-p", strategy]).unwrap();
        cluster.within(system, &["set", "image", "daemonset/podshmd", &both[0], &both[1]]).unwrap();
        cluster.rolled_out(system, "daemonset/podshmd").unwrap();
        let _there = NODES.map(|node| pod_on(cluster, system, "app=podshmd", node));
    };
    for (first_sender, what, strategy, image) in [
        (430, "the daemon upgraded, maxSurge", SURGE, PODSHMD_NEXT),
        (440, "the daemon downgraded, maxUnavailable", UNAVAILABLE, PODSHMD),
    ] {
        let before = images();
        under_load(cluster, shop, sender(first_sender), what, || upgraded(strategy, image));
        let after = images();
        assert_eq!((before.len(), after.len()), (2 * NODES.len(), 2 * NODES.len()), "{before:?} {after:?}");
        assert!(!after.iter().any(|id| before.contains(id)), "{what}: {before:?}, then {after:?}");
    }
}

pub fn the_node_s_own_programs_restart_under_load(cluster: &Cluster, shop: &Space) {
    for (first_sender, program) in [(500, "kubelet"), (600, "containerd")] {
        under_load(cluster, shop, sender(first_sender), &format!("{program} killed on both nodes"), || {
            for node in NODES {
                ask(&cluster.place, node, &format!("restart {program}")).unwrap();
            }
            for node in NODES {
                // Both are there again when a new pod with a volume is ready.
                let name = format!("after-{program}-{node}");
                cluster.start(shop, &with_volume(&name, node, json!({"domain": "routing"}))).unwrap();
                cluster.within(shop, &["delete", "pod", &name, "--grace-period=1"]).unwrap();
            }
        });
    }
}

/// A volume of a pod that ended is taken away so soon after the daemon's return.
const RETURN: Duration = Duration::from_secs(10);
/// The kubelet's longest wait between two attempts, and as much again as a slow machine may take.
const KUBELET: Duration = Duration::from_secs(122 + 45);

pub fn the_daemon_is_away_when_pods_go(cluster: &Cluster, system: &Space, shop: &Space) {
    for (name, node) in [("late", "a"), ("late-by-force", "b")] {
        cluster.start(shop, &with_volume(name, node, json!({"domain": "routing"}))).unwrap();
    }
    let before = NODES.map(|node| left_on(cluster, node).len());
    // No daemon anywhere: none matches.
    let patch = |selector: &str| {
        let patch = format!(r#"{{"spec":{{"template":{{"spec":{{"nodeSelector":{selector}}}}}}}}}"#);
        cluster.within(system, &["patch", "daemonset", "podshmd", "--type=merge", "-p", &patch]).unwrap();
    };
    patch(r#"{"absent":"yes"}"#);
    until("the daemons to end", || {
        let left = cluster.within(system, &["get", "pods", "-l", "app=podshmd", "-o", "name"])?;
        Ok(left.trim().is_empty().then_some(()))
    })
    .unwrap();
    cluster.within(shop, &["delete", "pod", "late", "--wait=false", "--grace-period=1"]).unwrap();
    cluster.within(shop, &["delete", "pod", "late-by-force", "--grace-period=0", "--force"]).unwrap();
    // So long that the kubelet, which tries ever more seldom, would not ask again for a minute.
    std::thread::sleep(Duration::from_secs(64));
    for (node, before) in NODES.iter().zip(before) {
        assert_eq!(left_on(cluster, node).len(), before, "nobody is there to take the volume away from node {node}");
    }
    patch(r#"{"absent":null}"#);
    // Ready is after it has begun to look, if not much.
    cluster.rolled_out(system, "daemonset/podshmd").unwrap();
    let back = Instant::now();
    let less = |node: usize| Ok((left_on(cluster, NODES[node]).len() < before[node]).then_some(()));
    until("the volume to be taken away", || less(0)).unwrap();
    let took = back.elapsed();
    println!("taken away {:.1} s after the daemon's return", took.as_secs_f64());
    assert!(took < RETURN, "{took:?}: not before the kubelet asked, which waits for up to two minutes");
    let log = pod_on(cluster, system, "app=podshmd", "a");
    let log = cluster.within(system, &["logs", &log, "-c", "podshmd"]).unwrap();
    assert!(log.lines().any(|line| line.contains("its pod ended while no daemon was here")), "{log}");
    cluster.gone(shop, "late").unwrap();
    println!("and the pod gone {:.1} s after it", back.elapsed().as_secs_f64());
    // Of a pod that was deleted by force nobody but the kubelet knows whether its containers have ended.
    until("the other volume to be taken away", || less(1)).unwrap();
    let took = back.elapsed();
    println!("of a pod deleted by force, taken away {:.1} s after it", took.as_secs_f64());
    assert!(took < KUBELET, "{took:?}: the kubelet asks every two minutes at least");
}
