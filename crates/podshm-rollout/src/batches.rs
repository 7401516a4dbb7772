//! Which node is in which batch.

use crate::world::{World, has_label, labels, mark_of, name};
use k8s_openapi::api::core::v1::Node;
use podshm_api::rollout::{AgentRollout, Purpose};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

const CONTROL_PLANE: &str = "node-role.kubernetes.io/control-plane";

/// Nodes that the rollout is about: those that its spec says, and that are not as it would make them already.
pub fn eligible<'w>(rollout: &AgentRollout, world: &'w World) -> Vec<&'w Node> {
    let spec = &rollout.spec;
    let is_wanted = |node: &&Node| {
        let labels = labels(&node.metadata);
        let is_control = labels.contains_key(CONTROL_PLANE) && !spec.nodes.selector.names(CONTROL_PLANE);
        spec.nodes.selector.matches(labels)
            && !is_control
            && !spec.nodes.exclude.iter().any(|not| not.matches(labels))
            && !spec.nodes.exclude_names.iter().any(|not| not == name(&node.metadata))
    };
    let is_due = |node: &&Node| {
        mark_of(node, rollout).is_some() || has_label(node, &spec.mark) == (spec.purpose == Purpose::UpgradeAgents)
    };
    world.nodes.values().filter(is_wanted).filter(is_due).collect()
}

/// Nodes by batch, from 1. What has a mark of the rollout stays where it is; the others go to batches from `first` on, in an order
/// that takes a node of the zone with the fewest so far. Batch by batch, so that it comes to the same whether they are dealt at once, as a
/// plan does, or one after the other, as they are carried out. What is in no batch is under 0.
pub fn assign(rollout: &AgentRollout, world: &World, first: u32) -> BTreeMap<u32, Vec<String>> {
    let nodes = eligible(rollout, world);
    let mut all: BTreeMap<u32, Vec<String>> = BTreeMap::new();
    let mut left = Vec::new();
    let mut zones = Zones { by: &rollout.spec.spread_over, taken: BTreeMap::new() };
    for node in &nodes {
        match mark_of(node, rollout) {
            Some(mark) => {
                zones.count(node);
                all.entry(mark.batch).or_default().push(name(&node.metadata).into());
            }
            None => left.push(*node),
        }
    }
    // A node that a later batch asks for by its labels is not taken by one that only counts.
    let asked_for = |node: &Node, from: usize| {
        let later = rollout.spec.batches.iter().skip(from).filter_map(|batch| batch.selector.as_ref());
        later.into_iter().any(|wanted| wanted.matches(labels(&node.metadata)))
    };
    for (index, batch) in rollout.spec.batches.iter().enumerate() {
        let number = index as u32 + 1;
        let before: usize = all.range(1..=number).map(|(_, nodes)| nodes.len()).sum();
        let here = all.get(&number).map_or(0, Vec::len);
        let wanted = match (batch.count, batch.percent) {
            (Some(count), _) => (count as usize).saturating_sub(here),
            (None, Some(percent)) => (nodes.len() * percent as usize).div_ceil(100).saturating_sub(before),
            (None, None) => usize::MAX,
        };
        if number < first {
            continue;
        }
        let (fits, kept) = left.into_iter().partition(|node| match &batch.selector {
            Some(selector) => selector.matches(labels(&node.metadata)),
            None => !asked_for(node, index + 1),
        });
        let mut fits = zones.spread(fits);
        left = kept;
        left.extend(fits.split_off(wanted.min(fits.len())));
        fits.iter().for_each(|node| zones.count(node));
        if !fits.is_empty() {
            all.entry(number).or_default().extend(fits.iter().map(|node| name(&node.metadata).to_owned()));
        }
    }
    if !left.is_empty() {
        all.insert(0, zones.spread(left).iter().map(|node| name(&node.metadata).into()).collect());
    }
    all
}

/// How many nodes of each zone are in batches.
struct Zones<'r> {
    /// The label whose values they are.
    by: &'r str,
    taken: BTreeMap<&'r str, usize>,
}

impl<'w> Zones<'w> {
    fn of(&self, node: &'w Node) -> &'w str {
        labels(&node.metadata).get(self.by).map_or("", String::as_str)
    }

    fn count(&mut self, node: &'w Node) {
        *self.taken.entry(self.of(node)).or_default() += 1;
    }

    /// Always a node of the zone with the fewest, those that are in batches among them; within a zone by name.
    fn spread(&self, nodes: Vec<&'w Node>) -> Vec<&'w Node> {
        let mut by_zone: BTreeMap<&str, VecDeque<&Node>> = BTreeMap::new();
        let sorted: BTreeMap<&str, &Node> = nodes.iter().map(|node| (name(&node.metadata), *node)).collect();
        for node in sorted.into_values() {
            by_zone.entry(self.of(node)).or_default().push_back(node);
        }
        let taken = |zone: &str| self.taken.get(zone).copied().unwrap_or(0);
        let mut fewest: BTreeSet<(usize, &str)> = by_zone.keys().map(|zone| (taken(zone), *zone)).collect();
        let mut all = Vec::with_capacity(nodes.len());
        while let Some((count, zone)) = fewest.pop_first() {
            if let Some(node) = by_zone.get_mut(zone).and_then(VecDeque::pop_front) {
                all.push(node);
                fewest.insert((count + 1, zone));
            }
        }
        all
    }
}

/// Names that occur in both.
pub(crate) fn shared(one: &AgentRollout, other: &AgentRollout, world: &World) -> BTreeSet<String> {
    let names = |rollout: &AgentRollout| -> BTreeSet<String> {
        eligible(rollout, world).iter().map(|node| name(&node.metadata).to_owned()).collect()
    };
    names(one).intersection(&names(other)).cloned().collect()
}
