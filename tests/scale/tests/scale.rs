//! A rollout over 1,000 nodes and 10,000 pods: a real API server, etcd, scheduler and controller manager, simulated nodes, and
//! `podshm-controller` and `podshm` as they are, with the rights that the chart gives. `make scale-test`.
//!
//! What is asserted does not depend on how fast the machine is: requests by the API server's own audit log, memory by the kernel. Times
//! are printed.

mod simulator;

use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use podshm_cluster::control::audit;
use podshm_cluster::place::nodes;
use podshm_cluster::rollouts::for_converted_nodes;
use podshm_cluster::testing::Cluster;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const NODES: usize = 1000;
const PODS: usize = 10_000;
/// Replicas of workloads that move, of those pods.
const WORKLOADS: [(&str, usize); 2] = [("cart", 200), ("till", 100)];

/// Requests of the controller for each node, all of them over the whole rollout: seven states, their events, a verification pod.
const MOST_REQUESTS_A_NODE: usize = 30;
/// The controller's memory, at most: half of what the chart gives it.
const MOST_MEMORY: u64 = 256 << 20;
const MOST_STATUS: usize = 100_000;
/// How long a plan shall take: a goal that is measured and printed, as the benches do. A test does not fail for a slow machine.
const PLAN: Duration = Duration::from_secs(5);
/// It bounds a rollout that stands still.
const PATIENCE: Duration = Duration::from_secs(3600);

fn program(name: &str) -> PathBuf {
    let own = std::env::current_exe().unwrap();
    let target = own.ancestors().find(|path| path.ends_with("debug")).unwrap();
    let program = target.join(name);
    assert!(program.exists(), "{} is not there; scripts/cluster.sh builds it", program.display());
    program
}

struct Controller(Child);

impl Drop for Controller {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Controller {
    fn start(cluster: &Cluster, kubeconfig: &Path) -> Self {
        let log = fs::File::create(cluster.place.log("podshm-rollouts")).unwrap();
        let child = Command::new(program("podshm-controller"))
            .args(["rollouts", "--namespace", "podshm-system", "--name", "counted"])
            .env("KUBECONFIG", kubeconfig)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn();
        Controller(child.unwrap())
    }

    /// The most that it has ever had.
    fn memory(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.0.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        line.trim().trim_end_matches(" kB").trim().parse::<u64>().unwrap() << 10
    }
}

/// The chart's account and rights, and a kubeconfig of it.
fn account(cluster: &Cluster) -> PathBuf {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy/manifests/rollouts.yaml");
    let rights = fs::read_to_string(file).unwrap();
    // Its pods would find no kubelet.
    let rights: Vec<&str> = rights.split("\n---").filter(|part| !part.contains("kind: Deployment")).collect();
    cluster.given(&["apply", "-f", "-"], &rights.join("\n---")).unwrap();
    let token =
        cluster.kubectl(&["-n", "podshm-system", "create", "token", "podshm-rollouts", "--duration=4h"]).unwrap();
    let mut config: Value = serde_json::from_str(&fs::read_to_string(cluster.place.kubeconfig()).unwrap()).unwrap();
    config["users"][0]["user"] = json!({"token": token.trim()});
    let file = cluster.place.path("rollouts.kubeconfig");
    fs::write(&file, config.to_string()).unwrap();
    file
}

fn fleet() -> Vec<Value> {
    let pod = |containers: &[&str]| {
        let of = |name: &&str| json!({"name": name, "image": "registry.example/it:1", "resources": {"requests": {"cpu": "50m"}}});
        json!({"automountServiceAccountToken": false, "containers": containers.iter().map(of).collect::<Vec<_>>()})
    };
    let agent = for_converted_nodes(pod(&["agent"]));
    let mut all = vec![json!({
        "apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": {"name": "agent", "namespace": "routing"},
        "spec": {
            "selector": {"matchLabels": {"app": "agent"}},
            "template": {"metadata": {"labels": {"app": "agent"}}, "spec": agent},
        },
    })];
    all.extend(WORKLOADS.iter().map(|(name, replicas)| {
        let labels = json!({"app": name, "form": "fat"});
        json!({
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name, "namespace": "shop"},
            "spec": {
                "replicas": replicas, "selector": {"matchLabels": labels},
                "template": {"metadata": {"labels": labels}, "spec": pod(&["business", "agent"])},
            },
        })
    }));
    all
}

fn rollout() -> Value {
    let slim = json!({"labels": {"form": "slim"}, "removeContainers": ["agent"]});
    let workloads: Vec<Value> =
        WORKLOADS.iter().map(|(name, _)| json!({"namespace": "shop", "name": name, "slim": slim})).collect();
    json!({
        "apiVersion": "podshm.dev/v1alpha1", "kind": "AgentRollout", "metadata": {"name": "scale"},
        "spec": {
            "agents": [{"namespace": "routing", "name": "agent"}],
            "batches": [{"count": 1}, {"percent": 10}, {"percent": 100}],
            "maxUnavailable": 100,
            "soakSeconds": 1,
            "progressDeadlineSeconds": 1800,
            "gates": {"verification": {"namespace": "verify", "image": "registry.example/podshm:1", "timeoutSeconds": 1800}},
            "workloads": workloads,
        },
    })
}

#[test]
fn a_thousand_nodes_and_ten_thousand_pods() {
    assert!(nodes().is_empty(), "expected a control plane alone: PODSHM_CLUSTER_NODES=0 (make scale-test)");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let cluster = Cluster::connect().unwrap();
        let kubeconfig = Kubeconfig::read_from(cluster.place.kubeconfig()).unwrap();
        let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
        let client = Client::try_from(config).unwrap();
        tokio::select! {
            () = simulator::kubelets(client.clone()) => panic!("the watch of pods has ended"),
            () = scale(cluster, client) => {}
        }
    });
}

async fn scale(cluster: Cluster, client: Client) {
    let crds = concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy/chart/files/agentrollouts.json");
    cluster.kubectl(&["apply", "--server-side", "-f", crds]).unwrap();
    cluster
        .kubectl(&["wait", "--for=condition=Established", "crd/agentrollouts.podshm.dev", "--timeout=120s"])
        .unwrap();
    for space in ["podshm-system", "routing", "shop", "verify", "other"] {
        cluster.space(space, "privileged").unwrap();
    }
    let begin = Instant::now();
    simulator::make_nodes(&client, NODES).await.unwrap();
    let business: usize = WORKLOADS.iter().map(|(_, replicas)| replicas).sum();
    simulator::make_pods(&client, NODES, PODS - business).await.unwrap();
    println!("{NODES} nodes and {} pods made in {:.0} s", PODS - business, begin.elapsed().as_secs_f64());
    cluster.put(&fleet()).unwrap();
    for (name, replicas) in WORKLOADS {
        let ready = ["-n", "shop", "get", "deployment", name, "-o", "jsonpath={.status.readyReplicas}"];
        wait(&format!("{name} to be Ready"), || cluster.kubectl(&ready).unwrap() == replicas.to_string()).await;
    }
    let account = account(&cluster);

    let file = cluster.place.path("scale.json");
    fs::write(&file, rollout().to_string()).unwrap();
    let mut planned = Vec::new();
    for turn in 0..3 {
        let begin = Instant::now();
        let mut plan = Command::new(program("podshm"));
        plan.args(["rollout", "plan", "-o", "json", "--file"]).arg(&file).env("KUBECONFIG", cluster.place.kubeconfig());
        let plan = output(&mut plan).await;
        planned.push(begin.elapsed());
        println!("plan, turn {turn}: {:.2} s, {} bytes", begin.elapsed().as_secs_f64(), plan.len());
        let plan: Value = serde_json::from_str(&plan).unwrap();
        assert_eq!(plan["refusals"], json!([]));
        let sizes: Vec<usize> =
            plan["batches"].as_array().unwrap().iter().map(|batch| batch["nodes"].as_array().unwrap().len()).collect();
        assert_eq!(sizes, [1, 99, 900]);
    }

    let slowest = planned.into_iter().max().unwrap_or_default();
    let verdict = if slowest < PLAN { "met   " } else { "MISSED" };
    println!(
        "{verdict} plan: {:.2} s for the slowest of three, goal below {} s",
        slowest.as_secs_f64(),
        PLAN.as_secs()
    );

    let controller = Controller::start(&cluster, &account);
    cluster.kubectl(&["create", "-f", file.to_str().unwrap()]).unwrap();
    let (begin, mut status, mut said) = (Instant::now(), Value::Null, String::new());
    let mut largest = 0;
    while status["phase"] != "Completed" {
        assert!(begin.elapsed() < PATIENCE, "not over: {status}");
        tokio::time::sleep(Duration::from_secs(2)).await;
        let found = cluster.kubectl(&["get", "agentrollout", "scale", "-o", "json"]).unwrap();
        let found: Value = serde_json::from_str(&found).unwrap();
        status = found["status"].clone();
        largest = largest.max(status.to_string().len());
        assert!(!["Paused", "Refused", "RollingBack"].iter().any(|phase| status["phase"] == *phase), "{status}");
        let now = format!("{} {}", status["progress"], status["nodesDone"]);
        if now != said {
            println!("{:6.0} s  {now} {}", begin.elapsed().as_secs_f64(), status["nodes"]);
            said = now;
        }
    }
    let (memory, took) = (controller.memory(), begin.elapsed());
    drop(controller);
    println!(
        "{NODES} nodes in {:.0} s; status {largest} bytes at most; the controller's memory {} MiB",
        took.as_secs_f64(),
        memory >> 20
    );
    let requests = requests(&audit(&cluster.place));
    let all: usize = requests.values().sum();
    for (what, count) in &requests {
        println!("{count:8}  {what}");
    }
    println!("{all:8}  requests, {:.1} for each node", all as f64 / NODES as f64);
    assert!(all > NODES, "the audit log has {all} requests of {NODES} nodes");
    assert!(all / NODES <= MOST_REQUESTS_A_NODE, "{all} requests");
    assert!(memory <= MOST_MEMORY, "{memory} bytes");
    assert!(largest < MOST_STATUS, "{largest} bytes");
    let labelled = cluster.kubectl(&["get", "nodes", "-l", "AgentsDaemonSet=YES", "-o", "name"]).unwrap();
    assert_eq!(labelled.lines().count(), NODES);
}

async fn wait(what: &str, is_so: impl Fn() -> bool) {
    let begin = Instant::now();
    while !is_so() {
        assert!(begin.elapsed() < PATIENCE, "{what}: not so");
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// What a command prints, while the simulated kubelets go on.
async fn output(command: &mut Command) -> String {
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
    let mut pipe = child.stdout.take().unwrap();
    let text = std::thread::spawn(move || std::io::read_to_string(&mut pipe).unwrap());
    while child.try_wait().unwrap().is_none() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    text.join().unwrap()
}

/// What the API server has been asked, by verb and kind.
fn requests(audit: &Path) -> BTreeMap<String, usize> {
    let mut all = BTreeMap::new();
    for line in fs::read_to_string(audit).unwrap().lines() {
        let event: Value = serde_json::from_str(line).unwrap();
        let (verb, of) = (event["verb"].as_str().unwrap_or("?"), &event["objectRef"]);
        let kind = of["resource"].as_str().unwrap_or("?");
        let part = of["subresource"].as_str().map_or(String::new(), |part| format!("/{part}"));
        *all.entry(format!("{verb} {kind}{part}")).or_default() += 1;
    }
    all
}
