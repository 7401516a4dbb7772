//! What a rollout would do, and why it would not, before anything is touched.

mod apart;
mod gates;
mod owners;
mod taint;
mod workloads;

use crate::batches::{assign, eligible, shared};
use crate::capacity::{listed, remaining, tolerates};
use crate::nodes::newest;
use crate::world::{World, is_cordoned, name, node_of, unhealthy};
use k8s_openapi::api::core::v1::Pod;
use podshm_api::rollout::{AgentRef, AgentRollout, Mark, Purpose};
use serde::Serialize;
use std::collections::BTreeSet;

/// What would be done.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Plan {
    /// In order.
    pub batches: Vec<PlannedBatch>,
    /// Nodes that are in no batch.
    pub in_no_batch: Vec<String>,
    /// Why it can't be done as it is written. Where there is one, nothing is touched.
    pub refusals: Vec<Finding>,
    /// What somebody should know before.
    pub warnings: Vec<Finding>,
}

/// A batch.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PlannedBatch {
    /// From 1.
    pub batch: u32,
    /// Its nodes.
    pub nodes: Vec<String>,
    /// Nodes that would be skipped as they are now, with the reason.
    pub skipped: Vec<String>,
    /// Fat pods that give way to slim ones.
    pub moves: Vec<Move>,
    /// Nodes that take any pod once this batch is tainted.
    pub untainted_nodes: u32,
    /// Thousandths of cores that are free there.
    pub free_cpu_milli: i128,
    /// Bytes of memory that are free there.
    pub free_memory: i128,
}

/// A pod that goes; one of the slim form comes before.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Move {
    /// `namespace/name` of its workload.
    pub workload: String,
    /// The pod.
    pub pod: String,
    /// Where it is.
    pub node: String,
}

/// Something that is wrong, and what to change.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Finding {
    /// What it is about.
    pub about: String,
    /// What is wrong, and what to do.
    pub message: String,
}

/// Looks at a rollout that has not begun.
pub fn plan(rollout: &AgentRollout, world: &World) -> Plan {
    let mut plan = Plan::default();
    let spec = &rollout.spec;
    for agent in &spec.agents {
        look_at_agent(rollout, world, agent, &mut plan);
    }
    if spec.purpose == Purpose::Convert {
        taint::look_at_taint(rollout, world, &mut plan);
    }
    for workload in &spec.workloads {
        workloads::look_at_workload(rollout, world, workload, &mut plan);
    }
    gates::look_at_gates(rollout, world, &mut plan);
    for what in &world.denied {
        refuse(&mut plan, "the rollouts' controller", what.clone());
    }
    look_at_others(rollout, world, &mut plan);
    look_at_batches(rollout, world, &mut plan);
    plan.refusals.sort();
    plan.warnings.sort();
    plan
}

fn refuse(plan: &mut Plan, about: &str, message: String) {
    plan.refusals.push(Finding { about: about.into(), message });
}

fn warn(plan: &mut Plan, about: &str, message: String) {
    plan.warnings.push(Finding { about: about.into(), message });
}

fn look_at_agent(rollout: &AgentRollout, world: &World, agent: &AgentRef, plan: &mut Plan) {
    let (of, mark) = (format!("DaemonSet {}/{}", agent.namespace, agent.name), &rollout.spec.mark);
    let Some(set) = world.daemon_set(agent) else {
        return refuse(plan, &of, "there is none; create it first (its pods appear as nodes get the label)".into());
    };
    let Some(spec) = set.spec.as_ref() else { return refuse(plan, &of, "it has no spec".into()) };
    owners::look_at_agent(rollout, &set.metadata, &of, plan);
    let pod = spec.template.spec.clone().unwrap_or_default();
    if !tolerates(&pod, mark) {
        let what = format!(
            "its pods do not tolerate the taint {0}={1}:NoSchedule, so none would come; add {{key: {0}, operator: Equal, value: \"{1}\", effect: NoSchedule}} to its tolerations",
            mark.key, mark.value
        );
        refuse(plan, &of, what);
    }
    match rollout.spec.purpose {
        Purpose::Convert => {
            if pod.node_selector.as_ref().and_then(|all| all.get(&mark.key)) != Some(&mark.value) {
                let what = format!(
                    "its nodeSelector does not name {}={}: its pods are not kept to converted nodes",
                    mark.key, mark.value
                );
                warn(plan, &of, what);
            }
        }
        Purpose::UpgradeAgents => {
            let strategy = spec.update_strategy.as_ref().and_then(|strategy| strategy.type_.as_deref());
            if strategy != Some("OnDelete") {
                let what = format!(
                    "its updateStrategy is {}; expected OnDelete, so that a new version waits for the rollout's batches",
                    strategy.unwrap_or("RollingUpdate")
                );
                refuse(plan, &of, what);
            }
            if world.revisions_of(set).len() < 2 {
                refuse(
                    plan,
                    &of,
                    "it has one revision; change its template first, the rollout then replaces its pods batch by batch"
                        .into(),
                );
            } else if newest(world, set).is_none() {
                refuse(plan, &of, "its newest revision has no hash".into());
            }
        }
    }
}

fn look_at_others(rollout: &AgentRollout, world: &World, plan: &mut Plan) {
    for other in world.rollouts.iter().filter(|other| other.metadata.uid != rollout.metadata.uid) {
        // One that has not been looked at yet comes later than this one, unless it is older.
        let other_phase = other.status.as_ref().map(|status| status.phase).unwrap_or_default();
        let is_first = (&other.metadata.creation_timestamp, &other.metadata.name)
            < (&rollout.metadata.creation_timestamp, &rollout.metadata.name);
        let is_under_way = !other_phase.is_over() && (other_phase != Default::default() || is_first);
        if !is_under_way {
            continue;
        }
        let about = format!("AgentRollout {}", name(&other.metadata));
        let agents: BTreeSet<_> =
            rollout.spec.agents.iter().filter(|agent| other.spec.agents.contains(agent)).collect();
        let workloads: Vec<_> = rollout
            .spec
            .workloads
            .iter()
            .filter(|one| {
                other.spec.workloads.iter().any(|two| (&one.namespace, &one.name) == (&two.namespace, &two.name))
            })
            .collect();
        let nodes = shared(rollout, other, world);
        let shares = if let Some(agent) = agents.first() {
            format!("DaemonSet {}/{}", agent.namespace, agent.name)
        } else if let Some(workload) = workloads.first() {
            format!("workload {}/{}", workload.namespace, workload.name)
        } else if let Some(node) = nodes.first() {
            format!("node {node} and {} others", nodes.len() - 1)
        } else {
            continue;
        };
        refuse(plan, &about, format!("it is under way and has {shares}, too; wait until it is over, or abort it"));
    }
}

fn look_at_batches(rollout: &AgentRollout, world: &World, plan: &mut Plan) {
    let nodes = eligible(rollout, world);
    let mark: &Mark = &rollout.spec.mark;
    if nodes.is_empty() {
        let what = match rollout.spec.purpose {
            Purpose::Convert => format!(
                "no node is selected that does not have {}={} already; correct spec.nodes",
                mark.key, mark.value
            ),
            Purpose::UpgradeAgents => {
                format!("no node that is selected has {}={}; convert some first", mark.key, mark.value)
            }
        };
        return refuse(plan, "nodes", what);
    }
    let mut percent = 0;
    for (index, batch) in rollout.spec.batches.iter().enumerate() {
        if let Some(next) = batch.percent {
            if next <= percent || next > 100 {
                let what = format!(
                    "percent is {next} after {percent}; expected more than before, 100 at most: it counts the batches before, too"
                );
                refuse(plan, &format!("batch {}", index + 1), what);
            }
            percent = next;
        }
    }
    let mut assigned = assign(rollout, world, 1);
    plan.in_no_batch = assigned.remove(&0).unwrap_or_default();
    if !plan.in_no_batch.is_empty() {
        warn(plan, "batches", format!("{} of {} nodes are in no batch", plan.in_no_batch.len(), nodes.len()));
    }
    if rollout.spec.batches.last().is_some_and(|last| last.percent != Some(100)) {
        let what = "the last one is not {percent: 100}: nodes that join while the rollout runs are in no batch, and stay as they are";
        warn(plan, "batches", what.into());
    }
    let listed = listed(rollout, world);
    let mut tainted: BTreeSet<&str> = BTreeSet::new();
    for number in 1..=rollout.spec.batches.len() as u32 {
        let about = format!("batch {number}");
        let Some(names) = assigned.get(&number) else {
            refuse(plan, &about, "it would have no nodes; correct its count, percent or selector".into());
            continue;
        };
        let mut batch = PlannedBatch { batch: number, nodes: names.clone(), ..PlannedBatch::default() };
        for node in names.iter().filter_map(|name| world.nodes.get(name)) {
            let why = unhealthy(node).or_else(|| is_cordoned(node).then(|| "the node is cordoned".to_owned()));
            batch.skipped.extend(why.map(|why| format!("{}: {why}", name(&node.metadata))));
        }
        for workload in &rollout.spec.workloads {
            let Some(fat) = world.deployment(&workload.namespace, &workload.name) else { continue };
            let on = |pod: &Pod| node_of(pod).filter(|node| names.iter().any(|name| name == node)).map(str::to_owned);
            batch.moves.extend(world.pods_of(fat).all.iter().filter_map(|pod| {
                let workload = workload.full_name();
                Some(Move { workload, pod: name(&pod.metadata).into(), node: on(pod)? })
            }));
        }
        if rollout.spec.purpose == Purpose::Convert {
            tainted.extend(names.iter().map(String::as_str));
            let left = remaining(world, mark, &tainted, &listed);
            (batch.untainted_nodes, batch.free_cpu_milli, batch.free_memory) =
                (left.nodes, left.cpu_milli, left.memory);
            if let Some(short) = left.short() {
                let what = "list their workloads, let them tolerate the taint, or leave nodes out (spec.nodes.exclude)";
                refuse(plan, &about, format!("{short}; {what}"));
            }
        }
        plan.batches.push(batch);
    }
}
