//! A cluster in memory, as far as a rollout sees it: nodes, a scheduler, ReplicaSets, DaemonSets, budgets. Time goes on by ticks.
//!
//! It stands in for nothing that can run here: `tests/cluster` has the real one. This one can be stopped between any two actions.

// Each test file uses a part of it.
#![allow(dead_code)]

mod acts;
mod daemons;
pub mod fleet;

use k8s_openapi::api::apps::v1::{ControllerRevision, DaemonSet, Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::jiff::Timestamp;
use podshm_api::rollout::{AgentRollout, NODE_MARK, NodeMark, VERIFIES};
use podshm_rollout::World;
use serde_json::{Value, json};
use std::collections::BTreeMap;

pub const SECONDS_A_TICK: i64 = 5;

/// Parses an object; a test's own JSON is well-formed.
pub fn object<T: serde::de::DeserializeOwned>(json: Value) -> T {
    serde_json::from_value(json).expect("an object of the API")
}

/// What is wrong with a version of the agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bad {
    Crashes,
    Leaks,
    AnswersWrongly,
    GetsSlow,
}

pub struct Cluster {
    pub rollout: AgentRollout,
    pub world: World,
    next: u32,
    /// Nodes whose agents never become Ready.
    pub broken_agents: Vec<String>,
    /// Nodes where verification fails.
    pub failing: Vec<String>,
    /// Agents of these revisions are bad.
    pub bad: BTreeMap<String, Bad>,
    /// A node whose daemon does not answer.
    pub silent: Option<String>,
    /// No budget allows a disruption.
    pub is_blocked: bool,
    /// The lowest number of Ready replicas seen, by workload.
    pub lowest: BTreeMap<String, u32>,
    /// The order of what was done, in short.
    pub done: Vec<String>,
}

impl Cluster {
    pub fn new(nodes: u32, rollout: Value) -> Self {
        let mut cluster = Cluster {
            rollout: object(rollout),
            world: World { now: 1_000_000, ..World::default() },
            next: 0,
            broken_agents: Vec::new(),
            failing: Vec::new(),
            bad: BTreeMap::new(),
            silent: None,
            is_blocked: false,
            lowest: BTreeMap::new(),
            done: Vec::new(),
        };
        for number in 0..nodes {
            cluster.add_node(&format!("n{number:02}"), &format!("z{}", number % 2));
        }
        cluster
    }

    pub fn add_node(&mut self, name: &str, zone: &str) {
        let node: Node = object(json!({
            "metadata": {"name": name, "labels": {"topology.kubernetes.io/zone": zone}},
            "status": {
                "allocatable": {"cpu": "4", "memory": "8Gi", "pods": "20"},
                "conditions": [{"type": "Ready", "status": "True"}],
            },
        }));
        self.world.nodes.insert(name.into(), node);
    }

    pub fn set_ready(&mut self, node: &str, is_ready: bool) {
        let status = self.world.nodes.get_mut(node).unwrap().status.as_mut().unwrap();
        status.conditions = Some(object(json!([{"type": "Ready", "status": if is_ready { "True" } else { "False" }}])));
    }

    /// With what ran there, as whoever removes a dead node has it.
    pub fn remove_node(&mut self, node: &str) {
        self.world.nodes.remove(node);
        self.evict(node);
    }

    /// Its pods go; they come back where they may.
    pub fn evict(&mut self, node: &str) {
        self.world.pods.retain(|pod| pod.spec.as_ref().unwrap().node_name.as_deref() != Some(node));
    }

    /// As a person does it.
    pub fn take_off(&mut self, node: &str, label: bool, taint: bool) {
        let node = self.world.nodes.get_mut(node).unwrap();
        if label {
            node.metadata.labels.as_mut().unwrap().remove("AgentsDaemonSet");
        }
        if taint {
            node.spec.as_mut().unwrap().taints = None;
        }
    }

    pub fn add_agent(&mut self, strategy: &str) {
        self.world.daemon_sets.push(object(json!({
            "metadata": {"name": "agent", "namespace": "routing", "uid": "ds-agent"},
            "spec": {
                "selector": {"matchLabels": {"app": "agent"}},
                "updateStrategy": {"type": strategy},
                "template": {
                    "metadata": {"labels": {"app": "agent"}},
                    "spec": {
                        "containers": [{"name": "agent"}],
                        "nodeSelector": {"AgentsDaemonSet": "YES"},
                        "tolerations": [{"key": "AgentsDaemonSet", "operator": "Equal", "value": "YES", "effect": "NoSchedule"}],
                    },
                },
            },
        })));
        self.add_revision("v1", 1);
    }

    pub fn add_revision(&mut self, hash: &str, number: i64) {
        let revision: ControllerRevision = object(json!({
            "metadata": {
                "name": format!("agent-{hash}"), "namespace": "routing", "labels": {"controller-revision-hash": hash},
                "ownerReferences": [{"apiVersion": "apps/v1", "kind": "DaemonSet", "name": "agent", "uid": "ds-agent", "controller": true}],
            },
            "revision": number,
        }));
        self.world.revisions.push(revision);
    }

    pub fn add_workload(&mut self, name: &str, replicas: u32) {
        let fat: Deployment = object(json!({
            "metadata": {"name": name, "namespace": "shop", "uid": format!("fat-{name}"), "labels": {"app": name}},
            "spec": {
                "replicas": replicas,
                "selector": {"matchLabels": {"app": name, "form": "fat"}},
                "template": {
                    "metadata": {"labels": {"app": name, "form": "fat"}},
                    "spec": {"containers": [
                        {"name": "business", "image": "business:1", "resources": {"requests": {"cpu": "100m", "memory": "64Mi"}}},
                        {"name": "agent", "image": "agent:1"},
                    ]},
                },
            },
        }));
        self.add_deployment(fat);
        self.world.services.push(object(json!({
            "metadata": {"name": name, "namespace": "shop"}, "spec": {"selector": {"app": name}},
        })));
    }

    pub fn add_budget(&mut self, of: &str, max_unavailable: i32) {
        self.world.budgets.push(object(json!({
            "metadata": {"name": of, "namespace": "shop"},
            "spec": {"selector": {"matchLabels": {"app": of}}, "maxUnavailable": max_unavailable},
            "status": {"disruptionsAllowed": 0, "currentHealthy": 0, "desiredHealthy": 0, "expectedPods": 0},
        })));
    }

    fn add_deployment(&mut self, mut deployment: Deployment) {
        let (name, space) = (deployment.metadata.name.clone().unwrap(), deployment.metadata.namespace.clone().unwrap());
        let uid = deployment.metadata.uid.get_or_insert_with(|| format!("made-{name}")).clone();
        let set: ReplicaSet = object(json!({
            "metadata": {
                "name": format!("{name}-1"), "namespace": space, "uid": format!("set-{uid}"),
                "ownerReferences": [{"apiVersion": "apps/v1", "kind": "Deployment", "name": name, "uid": uid, "controller": true}],
            },
            "spec": {"selector": deployment.spec.as_ref().unwrap().selector},
        }));
        self.world.deployments.push(deployment);
        self.world.replica_sets.push(set);
    }

    pub fn deployment(&mut self, name: &str) -> Option<&mut Deployment> {
        self.world.deployments.iter_mut().find(|one| one.metadata.name.as_deref() == Some(name))
    }

    pub fn mark(&self, node: &str) -> Option<NodeMark> {
        let annotations = self.world.nodes[node].metadata.annotations.as_ref()?;
        Some(serde_json::from_str(annotations.get(NODE_MARK)?).unwrap())
    }

    pub fn has_taint(&self, node: &str) -> bool {
        self.world.nodes[node]
            .spec
            .iter()
            .flat_map(|spec| spec.taints.iter().flatten())
            .any(|one| one.key == "AgentsDaemonSet")
    }

    pub fn has_label(&self, node: &str) -> bool {
        self.world.nodes[node].metadata.labels.iter().flatten().any(|(key, _)| key == "AgentsDaemonSet")
    }

    /// What the controllers of Kubernetes do in a moment.
    pub fn tick(&mut self) {
        self.world.now += SECONDS_A_TICK;
        self.world.pods.retain(|pod| pod.metadata.deletion_timestamp.is_none());
        self.daemon_pods();
        self.replicas();
        self.schedule();
        self.become_ready();
        self.budgets();
        self.daemons();
        let uid = |of: &str| Some(format!("fat-{of}"));
        let fat: Vec<String> = self
            .world
            .deployments
            .iter()
            .filter_map(|one| one.metadata.name.clone())
            .filter(|name| !name.ends_with("-slim"))
            .collect();
        for name in fat {
            let forms = [name.clone(), format!("{name}-slim")];
            let ready: u32 = forms
                .iter()
                .filter_map(|form| self.world.deployment("shop", form))
                .map(|form| self.world.pods_of(form).ready())
                .sum();
            let lowest = self.lowest.entry(name.clone()).or_insert(ready);
            *lowest = (*lowest).min(ready);
            assert!(self.world.deployment("shop", &name).is_some_and(|one| one.metadata.uid == uid(&name)));
        }
    }

    fn new_pod(&mut self, owner: Value, labels: &BTreeMap<String, String>, spec: Value, space: &str) {
        self.next += 1;
        let name = format!("p{:04}", self.next);
        self.world.pods.push(object(json!({
            "metadata": {
                "name": name, "namespace": space, "uid": name, "labels": labels, "ownerReferences": [owner],
                "creationTimestamp": Timestamp::from_second(self.world.now).unwrap().to_string(),
            },
            "spec": spec,
            "status": {"phase": "Pending"},
        })));
    }

    fn daemon_pods(&mut self) {
        for set in self.world.daemon_sets.clone() {
            let newest =
                self.world.revisions.iter().max_by_key(|one| one.revision).unwrap().metadata.labels.clone().unwrap();
            for name in self.world.nodes.keys().cloned().collect::<Vec<_>>() {
                let wanted = self.has_label(&name);
                let is_its = |pod: &Pod| {
                    pod.spec.as_ref().unwrap().node_name.as_deref() == Some(&name)
                        && pod.metadata.owner_references.iter().flatten().any(|owner| owner.uid == "ds-agent")
                };
                let there = self.world.pods.iter().any(is_its);
                if wanted && !there {
                    let mut spec = serde_json::to_value(set.spec.as_ref().unwrap().template.spec.clone()).unwrap();
                    spec["nodeName"] = json!(name);
                    let owner = json!({"apiVersion": "apps/v1", "kind": "DaemonSet", "name": "agent", "uid": "ds-agent", "controller": true});
                    self.new_pod(owner, &newest, spec, "routing");
                } else if !wanted {
                    self.world.pods.retain(|pod| !is_its(pod));
                }
            }
        }
    }

    fn replicas(&mut self) {
        for deployment in self.world.deployments.clone() {
            let spec = deployment.spec.clone().unwrap();
            let wanted = spec.replicas.unwrap_or(1) as usize;
            let mut pods: Vec<Pod> = self.world.pods_of(&deployment).all.into_iter().cloned().collect();
            let set = format!("set-{}", deployment.metadata.uid.clone().unwrap());
            for _ in pods.len()..wanted {
                let labels = spec.template.metadata.as_ref().unwrap().labels.clone().unwrap();
                let owner = json!({"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "set", "uid": set, "controller": true});
                self.new_pod(owner, &labels, serde_json::to_value(spec.template.spec.clone()).unwrap(), "shop");
            }
            // Not Ready first, then by deletion cost, then the youngest.
            pods.sort_by_key(|pod| {
                let cost =
                    pod.metadata.annotations.iter().flatten().find(|(key, _)| key.ends_with("pod-deletion-cost"));
                (
                    is_ready(pod),
                    cost.map_or(0, |(_, cost)| cost.parse::<i32>().unwrap()),
                    std::cmp::Reverse(pod.metadata.name.clone()),
                )
            });
            for gone in pods.iter().take(pods.len().saturating_sub(wanted)) {
                let at = Timestamp::from_second(self.world.now).unwrap();
                let pod = self.world.pods.iter_mut().find(|pod| pod.metadata.uid == gone.metadata.uid).unwrap();
                pod.metadata.deletion_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(at));
            }
        }
    }

    fn schedule(&mut self) {
        let mut load: BTreeMap<String, usize> = self.world.nodes.keys().map(|name| (name.clone(), 0)).collect();
        for pod in self.world.pods.iter() {
            if let Some(load) = pod.spec.as_ref().unwrap().node_name.as_ref().and_then(|node| load.get_mut(node)) {
                *load += 1;
            }
        }
        let nodes = self.world.nodes.clone();
        for pod in self.world.pods.iter_mut().filter(|pod| pod.spec.as_ref().unwrap().node_name.is_none()) {
            let spec = pod.spec.as_mut().unwrap();
            let may = |node: &Node| {
                let labels = node.metadata.labels.clone().unwrap_or_default();
                let taints = node.spec.iter().flat_map(|spec| spec.taints.iter().flatten());
                spec.node_selector.iter().flatten().all(|(key, value)| labels.get(key) == Some(value))
                    && taints.into_iter().all(|taint| {
                        spec.tolerations.iter().flatten().any(|one| one.key.as_deref() == Some(&taint.key))
                    })
                    && node
                        .status
                        .as_ref()
                        .unwrap()
                        .conditions
                        .iter()
                        .flatten()
                        .any(|one| one.type_ == "Ready" && one.status == "True")
            };
            let best =
                nodes.iter().filter(|(name, node)| may(node) && load[*name] < 12).min_by_key(|(name, _)| load[*name]);
            match best {
                Some((name, _)) => {
                    spec.node_name = Some(name.clone());
                    *load.get_mut(name).unwrap() += 1;
                }
                None => {
                    let status = pod.status.as_mut().unwrap();
                    status.conditions =
                        Some(object(json!([{"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}])));
                }
            }
        }
    }

    fn become_ready(&mut self) {
        let (now, nodes) = (self.world.now, self.world.nodes.clone());
        let wrong = self.nodes_with(Bad::AnswersWrongly);
        for pod in self.world.pods.iter_mut() {
            let Some(node) = pod.spec.as_ref().unwrap().node_name.clone() else { continue };
            let labels = pod.metadata.labels.clone().unwrap_or_default();
            let born = pod.metadata.creation_timestamp.as_ref().unwrap().0.as_second();
            let up = nodes.get(&node).is_some_and(|node| {
                node.status
                    .as_ref()
                    .unwrap()
                    .conditions
                    .iter()
                    .flatten()
                    .any(|one| one.type_ == "Ready" && one.status == "True")
            });
            let is_agent = labels.contains_key("controller-revision-hash");
            let status = pod.status.as_mut().unwrap();
            if labels.contains_key(VERIFIES) {
                let fails = self.failing.contains(&node) || wrong.contains(&node);
                status.phase = Some(if fails { "Failed" } else { "Succeeded" }.into());
            } else if up && now - born >= SECONDS_A_TICK && !(is_agent && self.broken_agents.contains(&node)) {
                status.phase = Some("Running".into());
                status.conditions = Some(object(json!([{"type": "Ready", "status": "True"}])));
            } else if !up {
                status.conditions = Some(object(json!([{"type": "Ready", "status": "False"}])));
            }
        }
    }

    fn budgets(&mut self) {
        let pods = self.world.pods.clone();
        for budget in &mut self.world.budgets {
            let spec = budget.spec.clone().unwrap();
            let labels = spec.selector.unwrap().match_labels.unwrap();
            let of: Vec<&Pod> = pods
                .iter()
                .filter(|pod| {
                    let has = pod.metadata.labels.clone().unwrap_or_default();
                    labels.iter().all(|(key, value)| has.get(key) == Some(value))
                        && pod.metadata.deletion_timestamp.is_none()
                })
                .collect();
            let ready = of.iter().filter(|pod| is_ready(pod)).count() as i32;
            let most: i32 = serde_json::to_value(spec.max_unavailable.unwrap()).unwrap().as_i64().unwrap() as i32;
            set_allowed(budget, if self.is_blocked { 0 } else { most - (of.len() as i32 - ready) });
        }
    }
}

fn set_allowed(budget: &mut PodDisruptionBudget, allowed: i32) {
    budget.status.as_mut().unwrap().disruptions_allowed = Some(allowed.max(0));
}

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().unwrap().conditions.iter().flatten();
    conditions.into_iter().any(|one| one.type_ == "Ready" && one.status == "True")
}

pub fn daemon_set(cluster: &mut Cluster) -> &mut DaemonSet {
    &mut cluster.world.daemon_sets[0]
}
