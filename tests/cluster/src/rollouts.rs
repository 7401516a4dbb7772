//! What tests of gray rollouts share: the controller and the command as they run elsewhere, a fleet of programs that hold still, and how a
//! rollout, its nodes and its pods are looked at.

use crate::images::{PROBE, built_statically};
use crate::place::nodes;
use crate::programs::{CLUSTER, Programs};
use crate::testing::{Cluster, Space, until};
use serde_json::{Value, json};
use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long a rollout may take; it bounds a hang on a slow machine.
const PATIENCE: Duration = Duration::from_secs(900);
/// Phases that nothing follows; a refused one is looked at again once it is changed.
const OVER: [&str; 3] = ["RolledBack", "Aborted", "Completed"];

/// Replicas that the owners of business ask for.
pub const ASKED: [(&str, u64); 2] = [("cart", 4), ("till", 2)];

/// A program of this workspace, as it goes into its image.
fn program(name: &str) -> PathBuf {
    built_statically(name).unwrap()
}

/// A controller, which ends with the test.
pub struct Controller(Child);

impl Controller {
    /// Under the same name as one that was killed it has that one's lease.
    pub fn start(cluster: &Cluster) -> Self {
        let log =
            fs::OpenOptions::new().create(true).append(true).open(cluster.place.log("podshm-controller")).unwrap();
        let child = Command::new(program("podshm-controller"))
            .args(["rollouts", "--namespace", "routing", "--name", "here"])
            .env("KUBECONFIG", cluster.place.kubeconfig())
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn();
        Controller(child.unwrap())
    }

    /// As a crash would.
    pub fn kill(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }

    /// Whether it runs, and has all the time.
    pub fn is_alive(&mut self) -> bool {
        self.0.try_wait().unwrap().is_none()
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// `podshm rollout …`
pub fn rollout_says(cluster: &Cluster, arguments: &[&str]) -> Output {
    let command = Command::new(program("podshm"))
        .arg("rollout")
        .args(arguments)
        .env("KUBECONFIG", cluster.place.kubeconfig())
        .stdin(Stdio::null())
        .output();
    command.unwrap()
}

/// `kubectl podshm …`: the same program, by the name under which kubectl looks for it.
pub fn kubectl_podshm(cluster: &Cluster, arguments: &[&str]) -> Output {
    let directory = cluster.place.path("plugins");
    fs::create_dir_all(&directory).unwrap();
    let plugin = directory.join("kubectl-podshm");
    let _ = fs::remove_file(&plugin);
    std::os::unix::fs::symlink(program("podshm"), &plugin).unwrap();
    let others = std::env::var("PATH").unwrap_or_default();
    let kubectl = Programs::built(CLUSTER).unwrap().path("kubectl").unwrap();
    let command = Command::new(kubectl)
        .arg("podshm")
        .args(arguments)
        .env("PATH", format!("{}:{others}", directory.display()))
        .env("KUBECONFIG", cluster.place.kubeconfig())
        .stdin(Stdio::null())
        .output();
    command.unwrap()
}

/// All that it has said.
pub fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// A container of the probe, as `restricted` wants it.
fn container(name: &str, command: &[&str]) -> Value {
    json!({
        "name": name, "image": PROBE, "imagePullPolicy": "Never", "command": command,
        "securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}},
    })
}

/// A pod's spec with such containers.
fn pod_of(containers: &[Value]) -> Value {
    json!({
        "automountServiceAccountToken": false, "terminationGracePeriodSeconds": 1,
        "securityContext": {"runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": containers,
    })
}

/// A pod's spec, on nodes with a rollout's label alone, whether or not they have its taint.
pub fn for_converted_nodes(mut pod: Value) -> Value {
    pod["nodeSelector"] = json!({"AgentsDaemonSet": "YES"});
    pod["tolerations"] =
        json!([{"key": "AgentsDaemonSet", "operator": "Equal", "value": "YES", "effect": "NoSchedule"}]);
    pod
}

/// An agent for each converted node; fat business with an agent of its own, and a budget.
fn fleet() -> Vec<Value> {
    let agent = for_converted_nodes(pod_of(&[container("agent", &["/probe", "hold"])]));
    let mut all = vec![json!({
        "apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": {"name": "agent", "namespace": "routing"},
        "spec": {
            "selector": {"matchLabels": {"app": "agent"}},
            "template": {"metadata": {"labels": {"app": "agent"}}, "spec": agent},
        },
    })];
    for (name, replicas) in ASKED {
        let pod = pod_of(&[container("business", &["/probe", "hold"]), container("agent", &["/probe", "hold"])]);
        all.push(json!({
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name, "namespace": "shop"},
            "spec": {
                "replicas": replicas,
                "selector": {"matchLabels": {"app": name, "form": "fat"}},
                "template": {"metadata": {"labels": {"app": name, "form": "fat"}}, "spec": pod},
            },
        }));
        all.push(json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "shop"},
            "spec": {"selector": {"app": name}, "ports": [{"port": 80}]},
        }));
    }
    all.push(json!({
        "apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": {"name": "cart", "namespace": "shop"},
        "spec": {"selector": {"matchLabels": {"app": "cart"}}, "maxUnavailable": 1},
    }));
    all
}

/// A rollout of that fleet; `verify` is what its verification pods run.
pub fn rollout(name: &str, verify: &[&str]) -> Value {
    let slim = json!({"labels": {"form": "slim"}, "removeContainers": ["agent"]});
    let workloads: Vec<Value> =
        ASKED.iter().map(|(name, _)| json!({"namespace": "shop", "name": name, "slim": slim})).collect();
    json!({
        "apiVersion": "podshm.dev/v1alpha1", "kind": "AgentRollout", "metadata": {"name": name},
        "spec": {
            "agents": [{"namespace": "routing", "name": "agent"}],
            "batches": [{"count": 1}, {"percent": 100}],
            "soakSeconds": 3,
            "progressDeadlineSeconds": 240,
            "gates": {"verification": {"namespace": "shop", "image": PROBE, "command": verify, "timeoutSeconds": 240}},
            "workloads": workloads,
        },
    })
}

/// A gate's Job, which runs such a command once.
pub fn job_gate(name: &str, command: &[&str]) -> Value {
    let mut pod = pod_of(&[container("try", command)]);
    pod["restartPolicy"] = json!("Never");
    json!({"name": name, "namespace": "shop", "spec": {"backoffLimit": 0, "template": {"spec": pod}}})
}

/// The definition of AgentRollouts, where the chart is not installed.
fn define(cluster: &Cluster) {
    let crds = concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy/chart/files/agentrollouts.json");
    cluster.kubectl(&["apply", "-f", crds]).unwrap();
    cluster
        .kubectl(&["wait", "--for=condition=Established", "crd/agentrollouts.podshm.dev", "--timeout=120s"])
        .unwrap();
}

/// The fleet in its namespaces `routing` and `shop`, and a controller that carries rollouts of it out. Needs three nodes.
pub fn scene(cluster: &Cluster) -> (Space, Space, Controller) {
    assert!(nodes().len() >= 3, "expected three nodes: PODSHM_CLUSTER_NODES=3");
    define(cluster);
    let (routing, shop) =
        (cluster.space("routing", "restricted").unwrap(), cluster.space("shop", "restricted").unwrap());
    cluster.put(&fleet()).unwrap();
    for (name, _) in ASKED {
        cluster.rolled_out(&shop, &format!("deployment/{name}")).unwrap();
    }
    (routing, shop, Controller::start(cluster))
}

/// Takes all of that away, and what rollouts have left on nodes. None of them is under way: with nobody to let it go it would stay.
pub fn leave(cluster: &Cluster, spaces: [&Space; 2]) {
    cluster.kubectl(&["delete", "crd", "agentrollouts.podshm.dev"]).unwrap();
    nodes_as_before(cluster, nodes());
    for space in spaces {
        cluster.leave(space).unwrap();
    }
}

/// `podshm rollout start`
pub fn start(cluster: &Cluster, object: &Value) -> Output {
    with_file(cluster, "start", object)
}

/// `podshm rollout start` or `plan`, of an object.
pub fn with_file(cluster: &Cluster, verb: &str, object: &Value) -> Output {
    let file = cluster.place.path("rollout.json");
    fs::write(&file, object.to_string()).unwrap();
    rollout_says(cluster, &[verb, "--file", file.to_str().unwrap()])
}

/// A rollout as the API server has it.
pub fn get(cluster: &Cluster, name: &str) -> Value {
    found(cluster, name).unwrap()
}

fn found(cluster: &Cluster, name: &str) -> anyhow::Result<Value> {
    Ok(serde_json::from_str(&cluster.kubectl(&["get", "agentrollout", name, "-o", "json"])?)?)
}

/// Waits until it is in this phase; what it says. An API server that is away for a while is waited for.
pub fn wait_for(cluster: &Cluster, name: &str, phase: &str) -> Value {
    let begin = Instant::now();
    loop {
        let found = found(cluster, name);
        if let Ok(found) = &found {
            let is = found["status"]["phase"].as_str().unwrap_or_default();
            // One that is over is let go with the next thing that the controller does.
            let is_let_go = !OVER.contains(&is) || found["metadata"]["finalizers"].as_array().is_none_or(Vec::is_empty);
            if is == phase && is_let_go {
                return found.clone();
            }
            assert!(is == phase || !OVER.contains(&is), "rollout {name}: expected {phase}, it is {}", found["status"]);
        }
        assert!(begin.elapsed() < PATIENCE, "rollout {name} is not {phase} after {PATIENCE:?}: {found:?}");
        std::thread::sleep(Duration::from_millis(500));
    }
}

/// What a rollout says is wrong, or waited for.
pub fn message(found: &Value) -> &str {
    found["status"]["message"].as_str().unwrap_or_default()
}

/// All nodes.
pub fn nodes_json(cluster: &Cluster) -> Vec<Value> {
    let all: Value = serde_json::from_str(&cluster.kubectl(&["get", "nodes", "-o", "json"]).unwrap()).unwrap();
    all["items"].as_array().unwrap().clone()
}

/// Where a node is on its way, and by name.
pub fn states(cluster: &Cluster) -> Vec<(String, String)> {
    let state = |node: Value| {
        let mark: Value =
            serde_json::from_str(node["metadata"]["annotations"]["rollout.podshm.dev/node"].as_str()?).ok()?;
        Some((node["metadata"]["name"].as_str()?.to_owned(), mark["state"].as_str()?.to_owned()))
    };
    nodes_json(cluster).into_iter().filter_map(state).collect()
}

/// Waits until some node is in this state; its name.
pub fn node_that_is(cluster: &Cluster, wanted: &str) -> String {
    until(&format!("a node to be {wanted}"), || {
        Ok(states(cluster).into_iter().find(|(_, state)| state == wanted).map(|(node, _)| node))
    })
    .unwrap_or_else(|error| panic!("{error:#}: {:?}", states(cluster)))
}

/// Whether a node has the rollout's label.
pub fn has_label(node: &Value) -> bool {
    node["metadata"]["labels"]["AgentsDaemonSet"] == "YES"
}

/// Whether a node has the rollout's taint.
pub fn has_taint(node: &Value) -> bool {
    node["spec"]["taints"].as_array().is_some_and(|all| all.iter().any(|one| one["key"] == "AgentsDaemonSet"))
}

/// How many pods with these labels are Ready.
pub fn ready(cluster: &Cluster, space: &Space, labels: &str) -> u64 {
    try_ready(cluster, space, labels).unwrap()
}

fn try_ready(cluster: &Cluster, space: &Space, labels: &str) -> anyhow::Result<u64> {
    let found: Value = serde_json::from_str(&cluster.within(space, &["get", "pods", "-l", labels, "-o", "json"])?)?;
    let is_ready = |pod: &&Value| {
        pod["metadata"]["deletionTimestamp"].is_null()
            && pod["status"]["conditions"]
                .as_array()
                .is_some_and(|all| all.iter().any(|one| one["type"] == "Ready" && one["status"] == "True"))
    };
    Ok(found["items"].as_array().into_iter().flatten().filter(is_ready).count() as u64)
}

/// Somebody who watches, all the time, whether business has what was asked for.
pub struct Lowest {
    is_over: Arc<AtomicBool>,
    thread: JoinHandle<[u64; ASKED.len()]>,
}

impl Lowest {
    /// Begins to watch. While the API server is away nothing is seen.
    pub fn watch(cluster: &Cluster) -> Self {
        let is_over = Arc::new(AtomicBool::new(false));
        let (theirs, cluster) = (Arc::clone(&is_over), cluster.clone());
        let thread = std::thread::spawn(move || {
            let mut lowest = ASKED.map(|(_, asked)| asked);
            while !theirs.load(Ordering::Relaxed) {
                for (lowest, (name, _)) in lowest.iter_mut().zip(ASKED) {
                    let shop = Space { name: "shop".into() };
                    if let Ok(found) = try_ready(&cluster, &shop, &format!("app={name}")) {
                        *lowest = (*lowest).min(found);
                    }
                }
                std::thread::sleep(Duration::from_millis(300));
            }
            lowest
        });
        Lowest { is_over, thread }
    }

    /// Ready replicas of each workload, the lowest that was seen.
    pub fn seen(self) -> [u64; ASKED.len()] {
        self.is_over.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

/// The fleet as it was before it was moved.
pub fn business_as_before(cluster: &Cluster, shop: &Space) {
    cluster.kubectl(&["delete", "agentrollout", "--all"]).unwrap();
    for (name, asked) in ASKED {
        cluster.within(shop, &["delete", "deployment", &format!("{name}-slim")]).unwrap();
        cluster.within(shop, &["scale", "deployment", name, &format!("--replicas={asked}")]).unwrap();
        cluster.within(shop, &["annotate", "deployment", name, "rollout.podshm.dev/asked-"]).unwrap();
        cluster.rolled_out(shop, &format!("deployment/{name}")).unwrap();
    }
    nodes_as_before(cluster, nodes());
}

/// Nodes without a trace of any rollout.
pub fn nodes_as_before(cluster: &Cluster, nodes: &[&str]) {
    for node in nodes {
        cluster.kubectl(&["label", "node", node, "AgentsDaemonSet-"]).unwrap();
        cluster.kubectl(&["annotate", "node", node, "rollout.podshm.dev/node-"]).unwrap();
    }
}
