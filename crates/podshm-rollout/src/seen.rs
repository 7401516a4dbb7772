//! The cluster with its pods sorted by node and by owner: a step asks for them for each node, and there may be very many of both.

use crate::world::{FormPods, World, annotation, is_going, labels, namespace, node_of, owner, phase};
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use podshm_api::rollout::VERIFIES;
use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::ops::Deref;

type Sorted<'w, T> = HashMap<&'w str, Vec<T>>;

/// A world, sorted.
pub(crate) struct Seen<'w> {
    world: &'w World,
    by_node: Sorted<'w, &'w Pod>,
    by_owner: Sorted<'w, &'w Pod>,
    /// Verification pods, by the node that they are about.
    verifying: Sorted<'w, &'w Pod>,
    /// Disruptions of budgets, by namespace and name, that this step has used: several workloads may fall under one.
    pub spent: RefCell<HashMap<(&'w str, &'w str), u32>>,
    /// Uids of ReplicaSets, by that of their Deployment.
    sets: Sorted<'w, &'w str>,
}

impl Deref for Seen<'_> {
    type Target = World;

    fn deref(&self) -> &World {
        self.world
    }
}

impl<'w> Seen<'w> {
    /// One pass over all pods.
    pub fn of(world: &'w World) -> Self {
        let mut seen = Seen {
            world,
            by_node: HashMap::new(),
            by_owner: HashMap::new(),
            verifying: HashMap::new(),
            spent: RefCell::default(),
            sets: HashMap::new(),
        };
        for pod in world.pods.iter() {
            if let Some(node) = node_of(pod) {
                seen.by_node.entry(node).or_default().push(pod);
            }
            if let Some(owner) = owner(&pod.metadata) {
                seen.by_owner.entry(&owner.uid).or_default().push(pod);
            }
            // A label has no room for every name of a node.
            let about = annotation(&pod.metadata, VERIFIES).or(labels(&pod.metadata).get(VERIFIES).map(String::as_str));
            if let Some(about) = about {
                seen.verifying.entry(about).or_default().push(pod);
            }
        }
        for set in world.replica_sets.iter() {
            if let (Some(owner), Some(uid)) = (owner(&set.metadata), set.metadata.uid.as_deref()) {
                seen.sets.entry(&owner.uid).or_default().push(uid);
            }
        }
        seen
    }

    /// As [`World::deployment`].
    pub fn deployment(&self, namespace: &str, name: &str) -> Option<&'w Deployment> {
        self.world.deployment(namespace, name)
    }

    fn sets_of(&self, workload: &Deployment) -> &[&'w str] {
        let uid = workload.metadata.uid.as_deref();
        uid.and_then(|uid| self.sets.get(uid)).map_or(&[], Vec::as_slice)
    }

    /// As [`World::budgets_of`].
    pub fn budgets_of(
        &self,
        space: &str,
        labels: &BTreeMap<String, String>,
    ) -> impl Iterator<Item = &'w PodDisruptionBudget> + use<'w> {
        self.world.budgets_of(space, labels)
    }

    /// As [`World::pods_of`].
    pub fn pods_of(&self, workload: &Deployment) -> FormPods<'w> {
        let space = namespace(&workload.metadata);
        let all = self.sets_of(workload).iter().filter_map(|set| self.by_owner.get(set)).flatten().copied();
        FormPods { all: all.filter(|pod| namespace(&pod.metadata) == space && is_there(pod)).collect() }
    }

    /// How many pods of a Deployment are on a node, those that are about to go left out.
    pub fn count_on(&self, workload: &Deployment, node: &str) -> usize {
        let (space, sets) = (namespace(&workload.metadata), self.sets_of(workload));
        let is_its = |pod: &&&Pod| {
            namespace(&pod.metadata) == space
                && owner(&pod.metadata).is_some_and(|owner| sets.contains(&owner.uid.as_str()))
                && is_there(pod)
        };
        self.by_node.get(node).into_iter().flatten().filter(is_its).count()
    }

    /// An agent's pods on a node, those that are about to go left out.
    pub fn agents_on(&self, set: &DaemonSet, node: &str) -> Vec<&'w Pod> {
        let uid = set.metadata.uid.as_ref();
        let is_its =
            |pod: &&Pod| owner(&pod.metadata).map(|owner| &owner.uid) == uid && uid.is_some() && !is_going(pod);
        self.by_node.get(node).into_iter().flatten().copied().filter(is_its).collect()
    }

    /// Verification pods of a node, whosever they are.
    pub fn verifying(&self, node: &str) -> &[&'w Pod] {
        self.verifying.get(node).map_or(&[], Vec::as_slice)
    }
}

fn is_there(pod: &Pod) -> bool {
    !is_going(pod) && !matches!(phase(pod), "Succeeded" | "Failed")
}
