//! Whether label and taint are the rollout's own.

use super::{Plan, refuse, warn};
use crate::capacity::is_owned;
use crate::capacity::tolerates_mark;
use crate::forms::slim_name;
use crate::world::{World, has_label, labels, mark_of, name, namespace};
use k8s_openapi::api::core::v1::{Pod, PodSpec, Toleration};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use podshm_api::rollout::{AgentRollout, MADE_BY, Mark, NODE_MARK};
use std::collections::BTreeSet;

pub(super) fn look_at_taint(rollout: &AgentRollout, world: &World, plan: &mut Plan) {
    look_at_nodes(rollout, world, plan);
    look_at_templates(rollout, world, plan);
    look_at_pods(rollout, world, plan);
}

fn look_at_nodes(rollout: &AgentRollout, world: &World, plan: &mut Plan) {
    let mark = &rollout.spec.mark;
    for node in world.nodes.values().filter(|node| mark_of(node, rollout).is_none()) {
        let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_ref());
        let (about, has_label) = (format!("node {}", name(&node.metadata)), labels(&node.metadata).get(&mark.key));
        for taint in taints.into_iter().flatten().filter(|taint| taint.key == mark.key) {
            let found = format!("{}={}:{}", taint.key, taint.value.as_deref().unwrap_or_default(), taint.effect);
            let what = format!(
                "it has the taint {found} already, which is not this rollout's; take it off, or choose another mark.key"
            );
            refuse(plan, &about, what);
        }
        if has_label.is_some_and(|value| *value != mark.value) {
            let what = format!(
                "its label {} is {:?}; expected none, or {:?}: something else uses it; choose another mark.key",
                mark.key, has_label, mark.value
            );
            refuse(plan, &about, what);
        }
    }
}

/// podshm's own controllers find a place everywhere; see the chart.
fn is_podshm(meta: Option<&ObjectMeta>) -> bool {
    meta.is_some_and(|meta| labels(meta).get("app.kubernetes.io/name").is_some_and(|of| of == "podshm"))
}

fn tolerates_by_name(spec: &PodSpec, mark: &Mark) -> bool {
    let by_name = |one: &Toleration| one.key.as_deref() == Some(mark.key.as_str()) && tolerates_mark(one, mark);
    spec.tolerations.iter().flatten().any(by_name)
}

/// What a pod's spec says of the mark by its name, in words.
fn names(spec: &PodSpec, mark: &Mark) -> Option<&'static str> {
    if spec.node_selector.as_ref().is_some_and(|all| all.get(&mark.key) == Some(&mark.value)) {
        return Some("selects nodes by the label");
    }
    tolerates_by_name(spec, mark).then_some("tolerates the taint")
}

/// DaemonSets and Deployments that are not listed and would come to nodes as they get the label, or stay there.
fn look_at_templates(rollout: &AgentRollout, world: &World, plan: &mut Plan) {
    let (spec, mark) = (&rollout.spec, &rollout.spec.mark);
    // Where a rollout before this one has left its label what it has brought there goes by that.
    let is_in_use = world.nodes.values().any(|node| {
        has_label(node, mark) && node.metadata.annotations.iter().flatten().any(|(key, _)| key == NODE_MARK)
    });
    let sets = world.daemon_sets.iter().filter(|set| {
        let is = |agent: &podshm_api::rollout::AgentRef| {
            agent.name == name(&set.metadata) && agent.namespace == namespace(&set.metadata)
        };
        !spec.agents.iter().any(is)
    });
    let sets = sets.filter_map(|set| Some(("DaemonSet", &set.metadata, &set.spec.as_ref()?.template)));
    let is_listed = |meta: &ObjectMeta| {
        let is = |one: &podshm_api::rollout::Workload| {
            one.namespace == namespace(meta) && (one.name == name(meta) || slim_name(one) == name(meta))
        };
        spec.workloads.iter().any(is) || labels(meta).contains_key(MADE_BY)
    };
    let deployments = world.deployments.iter().filter(|one| !is_listed(&one.metadata));
    let deployments = deployments.filter_map(|one| Some(("Deployment", &one.metadata, &one.spec.as_ref()?.template)));
    for (kind, meta, template) in sets.chain(deployments) {
        if is_podshm(Some(meta)) || is_podshm(template.metadata.as_ref()) {
            continue;
        }
        let Some(how) = template.spec.as_ref().and_then(|spec| names(spec, mark)) else { continue };
        let (about, key) = (format!("{kind} {}/{}", namespace(meta), name(meta)), &mark.key);
        let list = if kind == "DaemonSet" { "agents" } else { "workloads" };
        let what = format!(
            "it is not listed and {how} {key}: something else uses it; list it in {list}, or choose another mark.key"
        );
        if is_in_use { warn(plan, &about, what) } else { refuse(plan, &about, what) }
    }
}

/// Pods of other kinds, and those that were moved by hand.
fn look_at_pods(rollout: &AgentRollout, world: &World, plan: &mut Plan) {
    let mark = &rollout.spec.mark;
    let agents = rollout.spec.agents.iter().filter_map(|agent| world.daemon_set(agent)?.metadata.uid.as_deref());
    let slim = rollout.spec.workloads.iter().filter_map(|one| world.deployment(&one.namespace, &slim_name(one)));
    let ours: BTreeSet<&str> = agents.chain(slim.flat_map(|slim| world.sets_of(slim))).collect();
    let mut others = BTreeSet::new();
    let is_other = |pod: &&Pod| !is_owned(pod, &ours) && !is_podshm(Some(&pod.metadata));
    for pod in world.pods.iter().filter(is_other) {
        if pod.spec.as_ref().is_some_and(|spec| tolerates_by_name(spec, mark)) {
            others.insert(format!("{}/{}", namespace(&pod.metadata), name(&pod.metadata)));
        }
    }
    if !others.is_empty() {
        let list = others.iter().take(5).cloned().collect::<Vec<_>>().join(", ");
        let what = format!(
            "{} pods that are not listed tolerate the taint {} by name ({list}): something else uses it, or they were moved by hand; choose another mark.key, or list their workloads",
            others.len(),
            mark.key
        );
        warn(plan, "pods", what);
    }
}
