//! What tests of the node daemon share: `deploy/manifests/podshm.yaml` and `deploy/examples/routing.yaml` as they are, with images of
//! ours, and pods that push records while something is done.

use crate::images::POD;
use crate::loads;
use crate::place::NODES;
use crate::supervise::alive;
use crate::testing::{Cluster, Said, Space, probe, until};
use anyhow::{Context, ensure};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde_json::{Value, json};
use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// Installs podshm, and the example: an agent and a business pod on each node.
pub fn install(cluster: &Cluster) -> anyhow::Result<()> {
    cluster.provide_podshm()?;
    cluster.apply("manifests/podshm.yaml")?;
    cluster.rolled_out(&space("podshm-system"), "daemonset/podshmd")?;
    cluster.apply("examples/routing.yaml")?;
    cluster.rolled_out(&space("routing"), "daemonset/agent")?;
    cluster.rolled_out(&space("shop"), "daemonset/cart")
}

/// Removes both, and makes sure that nothing of the volumes is left on any node.
pub fn remove(cluster: &Cluster) -> anyhow::Result<()> {
    for name in ["shop", "routing"] {
        cluster.leave(&space(name))?;
    }
    for node in NODES {
        let gone = until(&format!("nothing of the volumes to be left on node {node}"), || {
            Ok(left_on(cluster, node).is_empty().then_some(()))
        });
        gone.with_context(|| format!("{:?}", left_on(cluster, node)))?;
    }
    cluster.kubectl(&["delete", "shmdomain", "routing", "--ignore-not-found"])?;
    cluster.sweep()?;
    cluster.remove("manifests/podshm.yaml")
}

/// What the daemon of a node answers at its port, as somebody on that node asks it.
pub fn port(cluster: &Cluster, node: &str, path: &str) -> anyhow::Result<String> {
    let system = space("podshm-system");
    let pod = cluster.pod_of(&system, "app=podshmd", Some(node))?;
    let address = cluster.within(&system, &["get", "pod", &pod, "-o", "jsonpath={.status.podIP}"])?;
    let pid = alive(&cluster.place, node).with_context(|| format!("node {node} does not run"))?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: podshmd\r\n\r\n");
    // A thread, since its network becomes the node's.
    let asked = std::thread::spawn(move || -> anyhow::Result<String> {
        let network = File::open(format!("/proc/{pid}/ns/net"))?;
        move_into_link_name_space(network.as_fd(), Some(LinkNameSpaceType::Network))?;
        let mut stream = TcpStream::connect((address.trim(), 9478))?;
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        stream.write_all(request.as_bytes())?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    });
    let answer = asked.join().map_err(|_| anyhow::anyhow!("asking node {node}"))??;
    let (head, body) = answer.split_once("\r\n\r\n").context("an answer")?;
    ensure!(head.starts_with("HTTP/1.1 200"), "{path} of node {node}: {head}");
    Ok(body.to_owned())
}

/// Processes of a node of which this is true, as directories of its /proc.
pub fn processes(cluster: &Cluster, node: &str, is_meant: impl Fn(&Path) -> bool) -> Vec<PathBuf> {
    let pid = alive(&cluster.place, node).expect("the node runs");
    let all = fs::read_dir(format!("/proc/{pid}/root/proc")).expect("the node's processes").flatten();
    all.map(|entry| entry.path()).filter(|path| is_meant(path)).collect()
}

/// Sends a signal, as kill(1) names it, to such processes; says how many there were.
pub fn signal(cluster: &Cluster, node: &str, name: &str, is_meant: impl Fn(&Path) -> bool) -> usize {
    let pid = alive(&cluster.place, node).expect("the node runs").to_string();
    let meant = processes(cluster, node, is_meant);
    for process in &meant {
        let own = process.file_name().expect("its number");
        let sent = Command::new("nsenter").args(["-t", &pid, "-p", "-m", "kill", "-s", name]).arg(own).status();
        assert!(sent.expect("nsenter (util-linux)").success(), "signal {name} to process {own:?} of node {node}");
    }
    meant.len()
}

/// `/domains` of a node: its whole report.
pub fn report(cluster: &Cluster, node: &str) -> anyhow::Result<Value> {
    Ok(serde_json::from_str(&port(cluster, node, "/domains")?)?)
}

/// How often containers of a namespace were started anew, and pods were evicted.
pub fn restarts(cluster: &Cluster, space: &Space, labels: &str) -> anyhow::Result<u64> {
    let found = cluster.within(space, &["get", "pods", "-l", labels, "-o", "json"])?;
    let found: Value = serde_json::from_str(&found)?;
    let pods = found["items"].as_array().map_or(&[][..], Vec::as_slice);
    for pod in pods {
        let (name, reason) = (&pod["metadata"]["name"], &pod["status"]["reason"]);
        ensure!(reason.as_str() != Some("Evicted"), "pod {name} was evicted");
    }
    let statuses = pods.iter().filter_map(|pod| pod["status"]["containerStatuses"].as_array()).flatten();
    Ok(statuses.filter_map(|status| status["restartCount"].as_u64()).sum())
}

/// Whether podshmd's pods are the last that a node in need ends: all memory of all domains is theirs.
pub fn is_guaranteed(cluster: &Cluster) {
    let found = cluster.within(&space("podshm-system"), &["get", "pods", "-l", "app=podshmd", "-o", "json"]).unwrap();
    let found: Value = serde_json::from_str(&found).unwrap();
    let pods = found["items"].as_array().map_or(&[][..], Vec::as_slice);
    assert!(!pods.is_empty(), "podshmd has no pods");
    for pod in pods {
        let classes = (&pod["status"]["qosClass"], &pod["spec"]["priorityClassName"]);
        assert_eq!(classes, (&json!("Guaranteed"), &json!("system-node-critical")), "{}", pod["metadata"]["name"]);
    }
}

/// Senders of this run. An agent leaves what it has counted to its successors, so another run on the same cluster needs others.
pub fn sender(number: u32) -> u32 {
    std::process::id() % 4_000_000 * 1000 + number
}

/// Namespaces of the example.
pub fn space(name: &str) -> Space {
    Space { name: name.to_owned() }
}

/// A pod with a volume of the driver, as `restricted` wants it.
pub fn with_volume(name: &str, node: &str, attributes: Value) -> Value {
    let mut pod = probe(name, node);
    pod["spec"]["volumes"] =
        json!([{"name": "podshm", "csi": {"driver": "podshm.dev", "volumeAttributes": attributes}}]);
    pod["spec"]["containers"][0]["volumeMounts"] = json!([
        {"name": "podshm", "mountPath": "/run/podshm"},
        {"name": "podshm", "mountPath": "/dev/shm", "subPath": "shm"},
    ]);
    pod
}

/// Installs what makes a label enough, and waits until the server does all of it for such a pod, of a domain with a /dev/shm.
pub fn provide_label(cluster: &Cluster, space: &Space, pod: &Value) -> anyhow::Result<()> {
    cluster.apply("manifests/admission-label.yaml")?;
    until("the label to be enough", || {
        let dry = ["-n", &space.name, "create", "--dry-run=server", "-o", "json", "-f", "-"];
        let stored: Value = serde_json::from_str(&cluster.given(&dry, &pod.to_string())?)?;
        let mounts = stored["spec"]["containers"][0]["volumeMounts"].as_array().map_or(0, Vec::len);
        Ok((mounts == 2).then_some(()))
    })
}

/// What is left of volumes on a node, on the file system and among its mounts.
pub fn left_on(cluster: &Cluster, node: &str) -> Vec<String> {
    let pid = alive(&cluster.place, node).expect("the node runs");
    let volumes = fs::read_dir(format!("/proc/{pid}/root/run/podshm/volumes")).expect("podshmd's directory").flatten();
    let mut left: Vec<String> = volumes.map(|volume| volume.path().display().to_string()).collect();
    let mounts = fs::read_to_string(format!("/proc/{pid}/mountinfo")).expect("the node's mounts");
    left.extend(mounts.lines().filter(|line| line.contains("kubernetes.io~csi")).map(str::to_owned));
    left
}

/// Pushes records from a pod, and has the agent say what it has counted.
pub fn exchange(cluster: &Cluster, space: &Space, pod: &str, sender: u32, count: u32) -> Said {
    let (sender, count) = (sender.to_string(), count.to_string());
    let command = ["/podshm-cluster-pod", "exchange", &sender, &count];
    cluster.run(space, pod, &command).expect("a command in the pod")
}

/// What it says when nothing is lost.
pub fn all_of(count: u32) -> Said {
    Said { text: format!("{count} records, 0 lost, 0 repeated, 0 corrupt"), is_fine: true }
}

/// The pod of a DaemonSet on a node.
pub fn pod_on(cluster: &Cluster, space: &Space, labels: &str, node: &str) -> String {
    cluster.pod_of(space, labels, Some(node)).expect("a pod of the DaemonSet on each node")
}

/// Pods of both nodes push while something is done, and until there are enough; each record of each must have been counted once.
pub fn under_load(cluster: &Cluster, shop: &Space, first_sender: u32, what: &str, act: impl FnOnce()) {
    let pods = NODES.map(|node| (shop, format!("load-{node}")));
    for (((_, pod), node), sender) in pods.iter().zip(NODES).zip(first_sender..) {
        let mut load = with_volume(pod, node, json!({"domain": "routing"}));
        load["spec"]["restartPolicy"] = "Never".into();
        load["spec"]["containers"][0]["image"] = POD.into();
        load["spec"]["containers"][0]["args"] = json!(["load", sender.to_string()]);
        cluster.create(shop, &load).unwrap();
    }
    loads::meanwhile(cluster, &pods, (what, loads::During::RECORDS), act);
    for (_, pod) in &pods {
        let last = loads::ended(cluster, shop, pod, what);
        let (count, rest) = last.split_once(' ').unwrap_or_default();
        assert_eq!(rest, "records, 0 lost, 0 repeated, 0 corrupt", "{what}: {pod}: {last}");
        println!("{what}: {pod}: {count} in all, none lost, none repeated");
    }
}
