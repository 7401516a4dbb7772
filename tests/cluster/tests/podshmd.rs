//! The node daemon on a real cluster: `deploy/manifests/podshm.yaml` and `deploy/examples/routing.yaml` as they are, with images of ours.
//!
//! One test after the other, in one: they share the daemon.

use podshm_cluster::place::NODES;
use podshm_cluster::scene::{
    all_of, exchange, install, left_on, pod_on, port, remove, report, sender, space, under_load, with_volume,
};
use podshm_cluster::supervise::{alive, ask};
use podshm_cluster::testing::{Cluster, Said, Space, probe, until};
use serde_json::{Value, json};
use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

const KEY: &str = "/routes";
const TEXT: &str = "10.0.0.1:80";
/// Records of an exchange that nothing happens to.
const FEW: u32 = 20_000;

#[test]
fn pods_under_restricted_share_memory_with_the_agent_of_their_node() {
    let cluster = Cluster::connect().unwrap();
    let (system, routing, shop) = (space("podshm-system"), space("routing"), space("shop"));
    install(&cluster).unwrap();

    the_daemon_says_how_it_is(&cluster);
    volumes_are_read_only_and_nothing_in_them_is_executed(&cluster);
    records_go_to_the_agent_of_the_same_node(&cluster, &shop);
    the_domains_dev_shm_is_shared_on_a_node_and_nowhere_else(&cluster, &routing, &shop);
    who_may_not_is_told_which_rule(&cluster, &routing, &shop);
    the_agent_is_rolled_under_load(&cluster, &routing, &shop);
    the_daemon_is_replaced_under_load(&cluster, &system, &shop);
    the_node_s_own_programs_restart_under_load(&cluster, &shop);
    the_daemon_is_away_when_pods_go(&cluster, &system, &shop);
    pods_come_and_go_and_leave_nothing(&cluster, &shop);

    remove(&cluster).unwrap();
}

fn the_daemon_says_how_it_is(cluster: &Cluster) {
    for node in NODES {
        assert_eq!(port(cluster, node, "/readyz").unwrap(), "ok\n");
        let found = until("the example to be in the report", || {
            let found = report(cluster, node)?;
            let is_there = found["domains"][0]["volumes"].as_u64() >= Some(2);
            Ok(is_there.then_some(found))
        });
        let found = found.unwrap();
        let domain = &found["domains"][0];
        assert_eq!((&found["node"], &found["registered"]), (&json!(node), &json!(true)), "{found}");
        assert_eq!((&domain["name"], &domain["served"]), (&json!("routing"), &json!(true)), "{found}");
        assert_eq!((&domain["conditions"], &domain["budgetBytes"]), (&json!([]), &json!(64 << 20)), "{found}");
        assert!(found["limitBytes"].as_u64() > domain["budgetBytes"].as_u64(), "its container's own limit: {found}");
        let metrics = port(cluster, node, "/metrics").unwrap();
        for line in ["podshm_registered 1", "podshm_domain_served{domain=\"routing\"} 1"] {
            assert!(metrics.lines().any(|found| found == line), "{line}: {metrics}");
        }
    }
}

/// As pods get them: what the daemon's own mounts say is not enough.
fn volumes_are_read_only_and_nothing_in_them_is_executed(cluster: &Cluster) {
    for node in NODES {
        let pid = alive(&cluster.place, node).expect("the node runs");
        let mounts = fs::read_to_string(format!("/proc/{pid}/mountinfo")).expect("the node's mounts");
        let of = |end: &str| {
            let of = mounts.lines().filter(move |line| line.split(' ').nth(4).is_some_and(|at| at.ends_with(end)));
            of.filter(|line| line.contains("kubernetes.io~csi")).map(str::to_owned).collect::<Vec<_>>()
        };
        let (volumes, shm) = (of("/podshm/mount"), of("/podshm/mount/shm"));
        assert!(volumes.len() >= 2 && shm.len() >= 2, "{mounts}");
        assert!(volumes.iter().all(|line| line.contains(" ro,nosuid,nodev,noexec")), "{volumes:?}");
        assert!(shm.iter().all(|line| line.contains(" rw,nosuid,nodev,noexec")), "{shm:?}");
    }
}

fn records_go_to_the_agent_of_the_same_node(cluster: &Cluster, shop: &Space) {
    for (index, node) in NODES.iter().enumerate() {
        let pod = pod_on(cluster, shop, "app=cart", node);
        let said = exchange(cluster, shop, &pod, sender(index as u32), FEW);
        assert_eq!(said, all_of(FEW), "node {node}");
    }
}

fn the_domains_dev_shm_is_shared_on_a_node_and_nowhere_else(cluster: &Cluster, routing: &Space, shop: &Space) {
    let agent = pod_on(cluster, routing, "app=agent", "a");
    let said = cluster.run(routing, &agent, &["/probe", "posix-put", KEY, TEXT]).unwrap();
    assert!(said.is_fine, "{said:?}");
    cluster.start(shop, &probe("plain", "a")).unwrap();
    let (here, there) = (pod_on(cluster, shop, "app=cart", "a"), pod_on(cluster, shop, "app=cart", "b"));
    for (pod, sees) in [(here.as_str(), true), (there.as_str(), false), ("plain", false)] {
        let expected = match sees {
            true => Said { text: TEXT.into(), is_fine: true },
            false => Said { text: "posix-get: No such file or directory".into(), is_fine: false },
        };
        assert_eq!(cluster.run(shop, pod, &["/probe", "posix-get", KEY]).unwrap(), expected, "pod {pod}");
    }
    // System V memory is a namespace's: this mode doesn't touch it.
    let key = "0x706f6403";
    cluster.run(routing, &agent, &["/probe", "sysv-put", key, TEXT]).unwrap();
    let said = cluster.run(shop, &here, &["/probe", "sysv-get", key]).unwrap();
    assert_eq!(said.text, "sysv-get: No such file or directory");
    let said = cluster.run(shop, &here, &["/probe", "size"]).unwrap();
    assert_eq!(said.text, "32", "MiB, as the domain says");
}

fn who_may_not_is_told_which_rule(cluster: &Cluster, routing: &Space, shop: &Space) {
    let stranger = cluster.space("stranger", "restricted").unwrap();
    let routing_domain = |more: Value| {
        let mut all = json!({"domain": "routing"});
        all.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        all
    };
    let huge = "9".repeat(1000);
    let rows = [
        (&stranger, "foreign", routing_domain(json!({})), "no entry of its `join` has namespace stranger"),
        (shop, "would-serve", routing_domain(json!({"role": "agent"})), "no entry of its `serve` has namespace shop"),
        (
            routing,
            "wrong-account",
            routing_domain(json!({"role": "agent"})),
            "(service account default) may not be agent",
        ),
        (shop, "unknown", json!({"domain": "payments"}), "no domain \\\"payments\\\" here"),
        (shop, "no-domain", json!({}), "volumeAttributes.domain"),
        (shop, "traversal", json!({"domain": "../routing"}), "volumeAttributes.domain"),
        (shop, "absolute", json!({"domain": "/run/podshm/domains/routing"}), "volumeAttributes.domain"),
        (shop, "huge", json!({"domain": huge}), "volumeAttributes.domain"),
        (shop, "budget", routing_domain(json!({"budget": "1Ti"})), "volumeAttributes has \\\"budget\\\""),
        // The kubelet overrides what a pod says of itself here.
        (
            &stranger,
            "forged",
            routing_domain(
                json!({"csi.storage.k8s.io/pod.namespace": "shop", "csi.storage.k8s.io/serviceAccount.name": "web"}),
            ),
            "no entry of its `join` has namespace stranger",
        ),
    ];
    for (space, name, attributes, _) in &rows {
        let pod = with_volume(name, "a", attributes.clone());
        cluster.create(space, &pod).unwrap_or_else(|error| panic!("{name}: {error}"));
    }
    for (space, name, _, says) in &rows {
        let says = says.replace("\\\"", "\"");
        cluster.event(space, name, &says).unwrap_or_else(|error| panic!("{name}: {error:#}"));
        cluster
            .kubectl(&["-n", &space.name, "delete", "pod", name, "--wait=false", "--grace-period=0", "--force"])
            .unwrap();
    }
    cluster.leave(&stranger).unwrap();
}

/// How a DaemonSet is rolled: both ways that there are.
const SURGE: &str = r#"{"spec":{"updateStrategy":{"rollingUpdate":{"maxSurge":1,"maxUnavailable":0}}}}"#;
const UNAVAILABLE: &str = r#"{"spec":{"updateStrategy":{"rollingUpdate":{"maxSurge":0,"maxUnavailable":1}}}}"#;

fn rolled(cluster: &Cluster, of: &Space, what: &str, strategy: &str) {
    cluster.within(of, &["patch", what, "--type=merge", "-p", strategy]).unwrap();
    cluster.within(of, &["rollout", "restart", what]).unwrap();
    cluster.rolled_out(of, what).unwrap();
}

fn the_agent_is_rolled_under_load(cluster: &Cluster, routing: &Space, shop: &Space) {
    for (first_sender, name, strategy) in [(200, "maxUnavailable", UNAVAILABLE), (210, "maxSurge", SURGE)] {
        under_load(cluster, shop, sender(first_sender), &format!("the agent rolled by its DaemonSet, {name}"), || {
            rolled(cluster, routing, "daemonset/agent", strategy);
        });
    }
}

fn the_daemon_is_replaced_under_load(cluster: &Cluster, system: &Space, shop: &Space) {
    for (first_sender, name, strategy) in [(300, "maxSurge", SURGE), (310, "maxUnavailable", UNAVAILABLE)] {
        under_load(cluster, shop, sender(first_sender), &format!("the daemon rolled by its DaemonSet, {name}"), || {
            rolled(cluster, system, "daemonset/podshmd", strategy);
        });
    }
    under_load(cluster, shop, sender(400), "the daemon's pods deleted by force", || {
        cluster.within(system, &["delete", "pod", "-l", "app=podshmd", "--grace-period=0", "--force"]).unwrap();
        cluster.rolled_out(system, "daemonset/podshmd").unwrap();
    });
    under_load(cluster, shop, sender(410), "the mount helpers killed", || {
        let helpers = NODES.map(|node| pod_on(cluster, system, "app=podshmd", node));
        for node in NODES {
            kill_helper(cluster, node);
        }
        for (node, pod) in NODES.iter().zip(helpers) {
            let name = format!("after-helper-{node}");
            cluster.start(shop, &with_volume(&name, node, json!({"domain": "routing"}))).unwrap();
            cluster.within(shop, &["delete", "pod", &name, "--grace-period=1"]).unwrap();
            let of =
                "jsonpath={.status.containerStatuses[0].restartCount} {.status.initContainerStatuses[0].restartCount}";
            let restarts = cluster.within(system, &["get", "pod", &pod, "-o", of]).unwrap();
            assert_eq!(restarts, "0 1", "the helper was started anew, and podshmd has not noticed");
        }
    });
}

/// Kills the one process of a node that is a mount helper.
fn kill_helper(cluster: &Cluster, node: &str) {
    let pid = alive(&cluster.place, node).expect("the node runs");
    let mut killed = 0;
    for entry in fs::read_dir(format!("/proc/{pid}/root/proc")).expect("the node's processes").flatten() {
        let words = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        if words.starts_with(b"/podshmd\0mount-helper\0") {
            let own = entry.file_name().to_string_lossy().into_owned();
            let status =
                Command::new("nsenter").args(["-t", &pid.to_string(), "-p", "-m", "kill", "-9", &own]).status();
            assert!(status.expect("nsenter (util-linux)").success());
            killed += 1;
        }
    }
    assert_eq!(killed, 1, "on node {node}");
}

fn the_node_s_own_programs_restart_under_load(cluster: &Cluster, shop: &Space) {
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

fn the_daemon_is_away_when_pods_go(cluster: &Cluster, system: &Space, shop: &Space) {
    let pod = with_volume("late", "a", json!({"domain": "routing"}));
    cluster.start(shop, &pod).unwrap();
    let before = left_on(cluster, "a").len();
    // No daemon anywhere: none matches.
    let patch = |selector: &str| {
        let patch = format!(r#"{{"spec":{{"template":{{"spec":{{"nodeSelector":{selector}}}}}}}}}"#);
        cluster.kubectl(&["-n", &system.name, "patch", "daemonset", "podshmd", "--type=merge", "-p", &patch]).unwrap();
    };
    patch(r#"{"absent":"yes"}"#);
    until("the daemons to end", || {
        let left = cluster.kubectl(&["-n", &system.name, "get", "pods", "-l", "app=podshmd", "-o", "name"])?;
        Ok(left.trim().is_empty().then_some(()))
    })
    .unwrap();
    cluster.kubectl(&["-n", &shop.name, "delete", "pod", "late", "--wait=false", "--grace-period=1"]).unwrap();
    // So long that the kubelet, which tries ever more seldom, would not ask again for a minute.
    std::thread::sleep(Duration::from_secs(64));
    assert_eq!(left_on(cluster, "a").len(), before, "nobody is there to take the volume away");
    patch(r#"{"absent":null}"#);
    cluster.rolled_out(system, "daemonset/podshmd").unwrap();
    let back = Instant::now();
    until("the volume to be taken away", || Ok((left_on(cluster, "a").len() < before).then_some(()))).unwrap();
    println!("taken away {:.1} s after the daemon's return", back.elapsed().as_secs_f64());
    let log = pod_on(cluster, system, "app=podshmd", "a");
    let log = cluster.within(system, &["logs", &log, "-c", "podshmd"]).unwrap();
    assert!(log.lines().any(|line| line.contains("its pod ended while no daemon was here")), "{log}");
    cluster.gone(shop, "late").unwrap();
    println!("and the pod gone {:.1} s after it", back.elapsed().as_secs_f64());
}

/// Waves of pods, a number on each node: 50 of them, and two waves, unless PODSHM_CHURN says how many waves.
fn pods_come_and_go_and_leave_nothing(cluster: &Cluster, shop: &Space) {
    const OF_A_NODE: usize = 50;
    let waves: usize = std::env::var("PODSHM_CHURN").map_or(2, |waves| waves.parse().expect("a number of waves"));
    let state = |node: &str| {
        let found = report(cluster, node).expect("a report");
        (left_on(cluster, node).len(), found["chargedBytes"].as_u64(), pods_cgroups(node))
    };
    let before = NODES.map(state);
    let begin = Instant::now();
    for wave in 0..waves {
        let names: Vec<String> = (0..OF_A_NODE * NODES.len()).map(|number| format!("crowd-{wave}-{number}")).collect();
        for (name, node) in names.iter().zip(NODES.iter().cycle()) {
            cluster.create(shop, &with_volume(name, node, json!({"domain": "routing"}))).unwrap();
        }
        for name in &names {
            cluster.ready(shop, name).unwrap();
        }
        println!(
            "wave {wave}: {} pods with a volume ready, {:.1} s after the first",
            names.len(),
            begin.elapsed().as_secs_f64()
        );
        let all: Vec<&str> = names.iter().map(String::as_str).collect();
        cluster.within(shop, &[&["delete", "pod", "--wait=false", "--grace-period=1"], &all[..]].concat()).unwrap();
        for name in &names {
            cluster.gone(shop, name).unwrap();
        }
    }
    for (node, before) in NODES.iter().zip(before) {
        let gone = until("what came to be gone", || {
            let now = state(node);
            // Less: what was there before may have been about to go itself.
            Ok((now.0 <= before.0 && now.1 <= before.1 && now.2 <= before.2).then_some(()))
        });
        gone.unwrap_or_else(|error| panic!("{error}: node {node} had {before:?}, has {:?}", state(node)));
    }
}

/// Memory cgroups of pods on a node.
fn pods_cgroups(node: &str) -> usize {
    fn below(directory: &std::path::Path) -> usize {
        let entries = fs::read_dir(directory).into_iter().flatten().flatten().filter(|entry| entry.path().is_dir());
        entries
            .map(|entry| usize::from(entry.file_name().to_string_lossy().starts_with("pod")) + below(&entry.path()))
            .sum()
    }
    let root = podshm_cluster::cgroups::root_of(node);
    let found =
        ["/sys/fs/cgroup/memory", "/sys/fs/cgroup"].map(|point| below(&std::path::Path::new(point).join(&root[1..])));
    found.into_iter().max().unwrap_or_default()
}
