//! Whether pods that nobody listed would find a place if they had to start again.

use crate::quantity::milli;
use crate::world::{World, is_cordoned, is_going, labels, name, namespace, node_of, owner, phase, unhealthy};
use k8s_openapi::api::core::v1::{
    Container, Node, NodeSelectorRequirement, NodeSelectorTerm, Pod, PodSpec, Taint, Toleration,
};
use podshm_api::clipped;
use podshm_api::rollout::{AgentRollout, Mark};
use std::collections::{BTreeMap, BTreeSet};

/// Thousandths of cores, bytes, pods.
type Room = [i128; 3];

/// Pods without a place that are named, and how many bytes their names may have together.
const NAMED: (usize, usize) = (5, 300);

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
    homeless: Vec<String>,
    /// What those ask for together.
    wanted: Room,
}

impl Remaining {
    /// Which pods have no place and what they ask for, if there are any.
    pub fn short(&self) -> Option<String> {
        let (named, bytes) = NAMED;
        let list = self.homeless.iter().take(named).cloned().collect::<Vec<_>>().join(", ");
        let more = if self.homeless.len() > named || list.len() > bytes { ", …" } else { "" };
        let text = format!(
            "{} pods that are not listed would have nowhere to go if they started again ({}{more}): together they ask for {}m of CPU and {} MiB \
             of memory; {} nodes without the taint remain, with {}m and {} MiB free",
            self.homeless.len(),
            clipped(&list, bytes),
            self.wanted[0],
            self.wanted[1] >> 20,
            self.nodes,
            self.cpu_milli,
            self.memory >> 20
        );
        (!self.homeless.is_empty()).then_some(text)
    }
}

/// ReplicaSets of the workloads that a rollout moves, by uid: their pods need no place.
pub(crate) fn listed<'w>(rollout: &AgentRollout, world: &'w World) -> BTreeSet<&'w str> {
    let fat = rollout.spec.workloads.iter().filter_map(|one| world.deployment(&one.namespace, &one.name));
    fat.flat_map(|fat| world.sets_of(fat)).collect()
}

/// A pod of one of these ReplicaSets, by uid.
pub(crate) fn is_owned(pod: &Pod, by: &BTreeSet<&str>) -> bool {
    owner(&pod.metadata).is_some_and(|owner| by.contains(owner.uid.as_str()))
}

/// Looks at the cluster with some nodes tainted. Pods that are [`listed`] are moved by the rollout; of those that are about to go it is
/// what comes after them that needs a place.
pub(crate) fn remaining(world: &World, mark: &Mark, tainted: &BTreeSet<&str>, listed: &BTreeSet<&str>) -> Remaining {
    let stays = |pod: &Pod, spec| is_bound(pod) || tolerates(spec, mark) || is_owned(pod, listed) || is_going(pod);
    let mut free: BTreeMap<&str, Room> = BTreeMap::new();
    let is_open =
        |node: &&Node| !is_cordoned(node) && unhealthy(node).is_none() && !tainted.contains(name(&node.metadata));
    for node in world.nodes.values().filter(is_open) {
        free.insert(name(&node.metadata), allocatable(node));
    }
    let mut moving = Vec::new();
    for pod in world.pods.iter().filter(|pod| !matches!(phase(pod), "Succeeded" | "Failed")) {
        let (Some(spec), Some(on)) = (pod.spec.as_ref(), node_of(pod)) else { continue };
        if let Some(room) = free.get_mut(on) {
            let needs = requests(spec);
            (0..3).for_each(|index| room[index] -= needs[index]);
        } else if tainted.contains(on) && !stays(pod, spec) {
            moving.push(pod);
        }
    }
    // The largest first, each where it fits first.
    moving.sort_by_key(|pod| std::cmp::Reverse(pod.spec.as_ref().map(requests).unwrap_or_default()));
    let (mut homeless, mut wanted) = (Vec::new(), Room::default());
    for pod in moving {
        let Some(spec) = pod.spec.as_ref() else { continue };
        let needs = requests(spec);
        let may = |node: &str| world.nodes.get(node).is_some_and(|node| is_wanted(spec, node) && is_let_in(spec, node));
        let fits = free.iter_mut().find(|(node, room)| (0..3).all(|index| room[index] >= needs[index]) && may(node));
        match fits {
            Some((_, room)) => (0..3).for_each(|index| room[index] -= needs[index]),
            None => {
                homeless.push(format!("{}/{}", namespace(&pod.metadata), name(&pod.metadata)));
                (0..3).for_each(|index| wanted[index] += needs[index]);
            }
        }
    }
    homeless.sort();
    // What has taints of its own takes some pods, and is no room for any.
    free.retain(|node, _| world.nodes.get(node).is_some_and(|node| repelling(node).next().is_none()));
    Remaining {
        nodes: free.len() as u32,
        cpu_milli: free.values().map(|room| room[0].max(0)).sum(),
        memory: free.values().map(|room| room[1].max(0)).sum(),
        homeless,
        wanted,
    }
}

fn allocatable(node: &Node) -> Room {
    let all = node.status.as_ref().and_then(|status| status.allocatable.as_ref());
    let of = |what: &str| all.and_then(|all| all.get(what)).map_or(0, milli);
    [of("cpu"), of("memory") / 1000, of("pods") / 1000]
}

/// As the scheduler counts: containers run together, with the sidecars among the init containers; the others begin one after the other,
/// beside the sidecars that were there before.
fn requests(spec: &PodSpec) -> Room {
    let of = |what: &str| {
        let one = |container: &Container| {
            let asked = container.resources.as_ref().and_then(|resources| resources.requests.as_ref());
            asked.and_then(|asked| asked.get(what)).map_or(0, milli)
        };
        let (mut sidecars, mut beginning) = (0, 0);
        for container in spec.init_containers.iter().flatten() {
            if container.restart_policy.as_deref() == Some("Always") {
                sidecars += one(container);
                beginning = beginning.max(sidecars);
            } else {
                beginning = beginning.max(sidecars + one(container));
            }
        }
        let running: i128 = spec.containers.iter().map(one).sum::<i128>() + sidecars;
        let overhead = spec.overhead.as_ref().and_then(|all| all.get(what)).map_or(0, milli);
        running.max(beginning) + overhead
    };
    [of("cpu"), of("memory") / 1000, 1]
}

/// Taints that keep pods away.
fn repelling(node: &Node) -> impl Iterator<Item = &Taint> {
    let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_ref());
    taints.into_iter().flatten().filter(|taint| taint.effect != "PreferNoSchedule")
}

/// A pod tolerates all that a node has.
fn is_let_in(spec: &PodSpec, node: &Node) -> bool {
    let tolerated = |taint: &Taint| {
        let value = taint.value.as_deref().unwrap_or_default();
        spec.tolerations.iter().flatten().any(|one| tolerates_taint(one, &taint.key, value, &taint.effect))
    };
    repelling(node).all(tolerated)
}

/// A node is one that a pod asks for, by its selector and by what its affinity requires; taints and the node's state apart.
pub fn is_wanted(spec: &PodSpec, node: &Node) -> bool {
    let has = labels(&node.metadata);
    let selected = spec.node_selector.iter().flatten().all(|(key, value)| has.get(key) == Some(value));
    let affinity = spec.affinity.as_ref().and_then(|affinity| affinity.node_affinity.as_ref());
    let required = affinity.and_then(|affinity| affinity.required_during_scheduling_ignored_during_execution.as_ref());
    let fields = BTreeMap::from([("metadata.name".to_owned(), name(&node.metadata).to_owned())]);
    let is_so = |all: &Option<Vec<NodeSelectorRequirement>>, found: &BTreeMap<String, String>| {
        all.iter().flatten().all(|one| is_met(one, found.get(&one.key)))
    };
    // One term is enough; one that says nothing selects nothing.
    let is_any = |term: &NodeSelectorTerm| {
        let says = term.match_expressions.iter().flatten().count() + term.match_fields.iter().flatten().count();
        says > 0 && is_so(&term.match_expressions, has) && is_so(&term.match_fields, &fields)
    };
    selected && required.is_none_or(|required| required.node_selector_terms.iter().any(is_any))
}

fn is_met(one: &NodeSelectorRequirement, found: Option<&String>) -> bool {
    let values = one.values.as_deref().unwrap_or_default();
    let number = |text: Option<&String>| text.and_then(|text| text.parse::<i64>().ok());
    let compared = number(found).zip(number(values.first()));
    match one.operator.as_str() {
        "In" => found.is_some_and(|found| values.contains(found)),
        "NotIn" => found.is_none_or(|found| !values.contains(found)),
        "Exists" => found.is_some(),
        "DoesNotExist" => found.is_none(),
        "Gt" => compared.is_some_and(|(found, than)| found > than),
        "Lt" => compared.is_some_and(|(found, than)| found < than),
        _ => false,
    }
}

/// A pod that belongs to its node: a DaemonSet's, or the kubelet's own.
fn is_bound(pod: &Pod) -> bool {
    owner(&pod.metadata).is_some_and(|owner| matches!(owner.kind.as_str(), "DaemonSet" | "Node"))
}

pub(crate) fn tolerates(spec: &PodSpec, mark: &Mark) -> bool {
    spec.tolerations.iter().flatten().any(|one| tolerates_mark(one, mark))
}

pub(crate) fn tolerates_mark(one: &Toleration, mark: &Mark) -> bool {
    tolerates_taint(one, &mark.key, &mark.value, "NoSchedule")
}

fn tolerates_taint(one: &Toleration, key: &str, value: &str, effect: &str) -> bool {
    let wanted = one.key.as_deref().unwrap_or_default();
    let of = one.effect.as_deref().unwrap_or_default();
    let any_value = one.operator.as_deref() == Some("Exists");
    (of.is_empty() || of == effect)
        && ((wanted.is_empty() && any_value)
            || (wanted == key && (any_value || one.value.as_deref().unwrap_or_default() == value)))
}
