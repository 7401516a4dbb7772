//! The node daemon on a real cluster: `deploy/manifests/podshm.yaml` and `deploy/examples/routing.yaml` as they are, with images of ours.
//!
//! One test after the other, in one: they share the daemon.

use podshm_cluster::images::POD;
use podshm_cluster::place::NODES;
use podshm_cluster::supervise::{alive, ask};
use podshm_cluster::testing::{Cluster, PATIENCE, Said, Space, probe, until};
use serde_json::{Value, json};
use std::fs;
use std::time::{Duration, Instant};

const KEY: &str = "/routes";
const TEXT: &str = "10.0.0.1:80";
/// Records of an exchange that nothing happens to.
const FEW: u32 = 20_000;
/// Records of one that something happens to.
const MANY: u32 = 100_000;

/// Senders of this run. An agent leaves what it has counted to its successors, so another run on the same cluster needs others.
fn sender(number: u32) -> u32 {
    std::process::id() % 4_000_000 * 1000 + number
}

/// Namespaces of the example.
fn space(name: &str) -> Space {
    Space { name: name.to_owned() }
}

/// A pod with a volume of the driver, as `restricted` wants it.
fn with_volume(name: &str, node: &str, attributes: Value) -> Value {
    let mut pod = probe(name, node);
    pod["spec"]["volumes"] =
        json!([{"name": "podshm", "csi": {"driver": "podshm.dev", "volumeAttributes": attributes}}]);
    pod["spec"]["containers"][0]["volumeMounts"] = json!([
        {"name": "podshm", "mountPath": "/run/podshm"},
        {"name": "podshm", "mountPath": "/dev/shm", "subPath": "shm"},
    ]);
    pod
}

/// What is left of volumes on a node, on the file system and among its mounts.
fn left_on(cluster: &Cluster, node: &str) -> Vec<String> {
    let pid = alive(&cluster.place, node).expect("the node runs");
    let volumes = fs::read_dir(format!("/proc/{pid}/root/run/podshm/volumes")).expect("podshmd's directory").flatten();
    let mut left: Vec<String> = volumes.map(|volume| volume.path().display().to_string()).collect();
    let mounts = fs::read_to_string(format!("/proc/{pid}/mountinfo")).expect("the node's mounts");
    left.extend(mounts.lines().filter(|line| line.contains("kubernetes.io~csi")).map(str::to_owned));
    left
}

fn exchange(cluster: &Cluster, space: &Space, pod: &str, sender: u32, count: u32) -> Said {
    let (sender, count) = (sender.to_string(), count.to_string());
    let command = ["/podshm-cluster-pod", "exchange", &sender, &count];
    cluster.run(space, pod, &command).expect("a command in the pod")
}

fn all_of(count: u32) -> Said {
    Said { text: format!("{count} records, 0 lost, 0 repeated, 0 corrupt"), is_fine: true }
}

/// The pod of a DaemonSet on a node.
fn pod_on(cluster: &Cluster, space: &Space, labels: &str, node: &str) -> String {
    cluster.pod_of(space, labels, Some(node)).expect("a pod of the DaemonSet on each node")
}

#[test]
fn pods_under_restricted_share_memory_with_the_agent_of_their_node() {
    let cluster = Cluster::connect().unwrap();
    let (system, routing, shop) = (space("podshm-system"), space("routing"), space("shop"));
    cluster.provide_podshm().unwrap();
    cluster.apply("manifests/podshm.yaml").unwrap();
    cluster.rolled_out(&system, "daemonset/podshmd").unwrap();
    cluster.kubectl(&["wait", "--for=condition=Established", "crd/shmdomains.podshm.dev"]).unwrap();
    cluster.apply("examples/routing.yaml").unwrap();
    cluster.rolled_out(&routing, "daemonset/agent").unwrap();
    cluster.rolled_out(&shop, "daemonset/cart").unwrap();

    records_go_to_the_agent_of_the_same_node(&cluster, &shop);
    the_domains_dev_shm_is_shared_on_a_node_and_nowhere_else(&cluster, &routing, &shop);
    who_may_not_is_told_which_rule(&cluster, &routing, &shop);
    the_agent_is_rolled_under_load(&cluster, &routing, &shop);
    the_daemon_is_replaced_under_load(&cluster, &system, &shop);
    the_node_s_own_programs_restart_under_load(&cluster, &shop);
    the_daemon_is_away_when_pods_go(&cluster, &system, &shop);
    pods_come_and_go_and_leave_nothing(&cluster, &shop);

    for space in [&shop, &routing] {
        cluster.leave(space).unwrap();
    }
    for node in NODES {
        until(&format!("nothing of the volumes to be left on node {node}"), || {
            Ok(left_on(&cluster, node).is_empty().then_some(()))
        })
        .unwrap_or_else(|error| panic!("{error}: {:?}", left_on(&cluster, node)));
    }
    cluster.remove("manifests/podshm.yaml").unwrap();
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

/// Pods of both nodes push while something is done, and until it is done; each record of each must have been counted once.
fn under_load(cluster: &Cluster, shop: &Space, first_sender: u32, what: &str, act: impl FnOnce()) {
    let begin = Instant::now();
    let pods = NODES.map(|node| format!("load-{node}"));
    for ((pod, node), sender) in pods.iter().zip(NODES).zip(first_sender..) {
        let mut load = with_volume(pod, node, json!({"domain": "routing"}));
        load["spec"]["restartPolicy"] = "Never".into();
        load["spec"]["containers"][0]["image"] = POD.into();
        load["spec"]["containers"][0]["args"] = json!(["load", sender.to_string(), MANY.to_string()]);
        cluster.create(shop, &load).unwrap();
    }
    let said = |pod: &str| cluster.within(shop, &["logs", pod]);
    for pod in &pods {
        until("records to flow", || Ok(said(pod)?.contains("begun").then_some(()))).unwrap();
    }
    act();
    let mut all = 0;
    for pod in &pods {
        cluster.run(shop, pod, &["/podshm-cluster-pod", "stop"]).unwrap();
        let phase = until("the load to end", || {
            let phase = cluster.within(shop, &["get", "pod", pod, "-o", "jsonpath={.status.phase}"])?;
            Ok(["Succeeded", "Failed"].contains(&phase.as_str()).then_some(phase))
        });
        let (phase, said) = (phase.unwrap(), said(pod).unwrap());
        let last = said.lines().last().unwrap_or_default();
        let (count, rest) = last.split_once(' ').unwrap_or_default();
        assert_eq!(
            (phase.as_str(), rest),
            ("Succeeded", "records, 0 lost, 0 repeated, 0 corrupt"),
            "{what}: {pod}: {said}"
        );
        let count: u32 = count.parse().expect("a number of records");
        assert!(count >= MANY, "{what}: {count} records during the fault are too few");
        all += count;
        cluster.within(shop, &["delete", "pod", pod, "--grace-period=1"]).unwrap();
    }
    let seconds = begin.elapsed().as_secs_f64();
    println!("{what}: {all} records from {} pods, none lost, none repeated, in {seconds:.1} s", NODES.len());
}

fn the_agent_is_rolled_under_load(cluster: &Cluster, routing: &Space, shop: &Space) {
    under_load(cluster, shop, sender(200), "the agent rolled by its DaemonSet", || {
        cluster.within(routing, &["rollout", "restart", "daemonset/agent"]).unwrap();
        cluster.rolled_out(routing, "daemonset/agent").unwrap();
    });
}

fn the_daemon_is_replaced_under_load(cluster: &Cluster, system: &Space, shop: &Space) {
    let by_force = ["delete", "pod", "-l", "app=podshmd", "--grace-period=0", "--force"];
    for (first_sender, what, how) in [
        (300, "the daemon rolled by its DaemonSet", &["rollout", "restart", "daemonset/podshmd"][..]),
        (400, "the daemon's pods deleted by force", &by_force),
    ] {
        under_load(cluster, shop, sender(first_sender), what, || {
            cluster.within(system, how).unwrap();
            cluster.rolled_out(system, "daemonset/podshmd").unwrap();
        });
    }
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
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(left_on(cluster, "a").len(), before, "nobody is there to take the volume away");
    patch(r#"{"absent":null}"#);
    cluster.rolled_out(system, "daemonset/podshmd").unwrap();
    let back = Instant::now();
    until("the volume to be taken away", || Ok((left_on(cluster, "a").len() < before).then_some(()))).unwrap();
    println!("unpublished {:.1} s after the daemon's return", back.elapsed().as_secs_f64());
    cluster.gone(shop, "late").unwrap();
}

fn pods_come_and_go_and_leave_nothing(cluster: &Cluster, shop: &Space) {
    let before: Vec<usize> = NODES.iter().map(|node| left_on(cluster, node).len()).collect();
    let names: Vec<String> = (0..20).map(|number| format!("crowd-{number}")).collect();
    let begin = Instant::now();
    for (number, name) in names.iter().enumerate() {
        let pod = with_volume(name, NODES[number % 2], json!({"domain": "routing"}));
        cluster.create(shop, &pod).unwrap();
    }
    for name in &names {
        cluster.ready(shop, name).unwrap();
    }
    println!("{} pods with a volume ready in {:.1} s", names.len(), begin.elapsed().as_secs_f64());
    for name in &names {
        cluster.kubectl(&["-n", &shop.name, "delete", "pod", name, "--wait=false", "--grace-period=1"]).unwrap();
    }
    for name in &names {
        cluster.gone(shop, name).unwrap();
    }
    assert!(begin.elapsed() < PATIENCE * 4, "it bounds a hang");
    for (node, before) in NODES.iter().zip(before) {
        until("what came to be gone", || Ok((left_on(cluster, node).len() == before).then_some(()))).unwrap();
    }
}
