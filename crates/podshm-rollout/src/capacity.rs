//! Whether pods that nobody listed would find a place if they had to start again.

use crate::quantity::milli;
use crate::world::{World, is_cordoned, labels, name, namespace, node_of, owner, phase, unhealthy};
use k8s_openapi::api::core::v1::{Node, Pod, PodSpec, Toleration};
use podshm_api::rollout::Mark;
use std::collections::{BTreeMap, BTreeSet};

/// Thousandths of cores, bytes, pods.
type Room = [i128; 3];

/// What is left of untainted nodes once some are tainted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Remaining {
    /// Nodes that take any pod.
    pub nodes: u32,
    /// Free thousandths of cores.
    pub cpu_milli: i128,
    /// Free bytes of memory.
    pub memory: i128,
    /// Pods without a place: `namespace/name`.
    pub homeless: Vec<String>,
}

/// Looks at the cluster with some nodes tainted. Pods that `is_listed` are moved by the rollout and need no place here.
pub(crate) fn remaining(
    world: &World,
    mark: &Mark,
    tainted: &BTreeSet<&str>,
    is_listed: &dyn Fn(&Pod) -> bool,
) -> Remaining {
    let takes_any = |node: &Node| {
        let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_ref());
        !taints.into_iter().flatten().any(|taint| taint.effect != "PreferNoSchedule")
            && !is_cordoned(node)
            && unhealthy(node).is_none()
    };
    let mut free: BTreeMap<&str, Room> = BTreeMap::new();
    for node in world.nodes.values().filter(|node| takes_any(node) && !tainted.contains(name(&node.metadata))) {
        free.insert(name(&node.metadata), allocatable(node));
    }
    let mut moving = Vec::new();
    for pod in world.pods.iter().filter(|pod| !matches!(phase(pod), "Succeeded" | "Failed")) {
        let (Some(spec), Some(on)) = (pod.spec.as_ref(), node_of(pod)) else { continue };
        if let Some(room) = free.get_mut(on) {
            let needs = requests(spec);
            (0..3).for_each(|index| room[index] -= needs[index]);
        } else if tainted.contains(on) && !is_bound(pod) && !tolerates(spec, mark) && !is_listed(pod) {
            moving.push(pod);
        }
    }
    // The largest first, each where it fits first.
    moving.sort_by_key(|pod| std::cmp::Reverse(pod.spec.as_ref().map(requests).unwrap_or_default()));
    let mut homeless = Vec::new();
    for pod in moving {
        let Some(spec) = pod.spec.as_ref() else { continue };
        let needs = requests(spec);
        let may = |node: &str| {
            let labels = world.nodes.get(node).map(|node| labels(&node.metadata));
            spec.node_selector
                .iter()
                .flatten()
                .all(|(key, value)| labels.is_some_and(|all| all.get(key) == Some(value)))
        };
        let fits = free.iter_mut().find(|(node, room)| (0..3).all(|index| room[index] >= needs[index]) && may(node));
        match fits {
            Some((_, room)) => (0..3).for_each(|index| room[index] -= needs[index]),
            None => homeless.push(format!("{}/{}", namespace(&pod.metadata), name(&pod.metadata))),
        }
    }
    homeless.sort();
    Remaining {
        nodes: free.len() as u32,
        cpu_milli: free.values().map(|room| room[0].max(0)).sum(),
        memory: free.values().map(|room| room[1].max(0)).sum(),
        homeless,
    }
}

fn allocatable(node: &Node) -> Room {
    let all = node.status.as_ref().and_then(|status| status.allocatable.as_ref());
    let of = |what: &str| all.and_then(|all| all.get(what)).map_or(0, milli);
    [of("cpu"), of("memory") / 1000, of("pods") / 1000]
}

fn requests(spec: &PodSpec) -> Room {
    let of = |what: &str| {
        let one = |container: &k8s_openapi::api::core::v1::Container| {
            let asked = container.resources.as_ref().and_then(|resources| resources.requests.as_ref());
            asked.and_then(|asked| asked.get(what)).map_or(0, milli)
        };
        let running: i128 = spec.containers.iter().map(one).sum();
        let beginning = spec.init_containers.iter().flatten().map(one).max().unwrap_or(0);
        running.max(beginning)
    };
    [of("cpu"), of("memory") / 1000, 1]
}

/// A pod that belongs to its node: a DaemonSet's, or the kubelet's own.
fn is_bound(pod: &Pod) -> bool {
    owner(&pod.metadata).is_some_and(|owner| matches!(owner.kind.as_str(), "DaemonSet" | "Node"))
}

pub(crate) fn tolerates(spec: &PodSpec, mark: &Mark) -> bool {
    spec.tolerations.iter().flatten().any(|one| tolerates_mark(one, mark))
}

pub(crate) fn tolerates_mark(one: &Toleration, mark: &Mark) -> bool {
    let key = one.key.as_deref().unwrap_or_default();
    let effect = one.effect.as_deref().unwrap_or_default();
    let any_value = one.operator.as_deref() == Some("Exists");
    (effect.is_empty() || effect == "NoSchedule")
        && ((key.is_empty() && any_value)
            || (key == mark.key && (any_value || one.value.as_deref().unwrap_or_default() == mark.value)))
}
