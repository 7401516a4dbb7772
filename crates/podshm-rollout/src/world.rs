//! The cluster as it is seen, and what there is to find out about it.

use crate::action::Asked;
use crate::shared::{All, ByName};
use k8s_openapi::api::apps::v1::{ControllerRevision, DaemonSet, Deployment, ReplicaSet};
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use k8s_openapi::api::core::v1::{Node, Pod, Service};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta, OwnerReference};
use podshm_api::domain::ShmDomain;
use podshm_api::report::NodeReport;
use podshm_api::rollout::{
    ASKED, AgentRef, AgentRollout, Mark, NODE_MARK, NodeMark, Operator, Requirement, Selector, Verdict,
};
use std::collections::BTreeMap;

/// Everything that a step looks at.
#[derive(Clone, Debug, Default)]
pub struct World {
    /// Seconds since 1970.
    pub now: i64,
    /// Since when whoever looks has been at work, in seconds since 1970: nobody looked before.
    pub led_since: i64,
    /// By name.
    pub nodes: ByName<Node>,
    /// All of them.
    pub pods: All<Pod>,
    /// All of them.
    pub daemon_sets: Vec<DaemonSet>,
    /// Those of DaemonSets.
    pub revisions: Vec<ControllerRevision>,
    /// All of them.
    pub deployments: Vec<Deployment>,
    /// All of them.
    pub replica_sets: All<ReplicaSet>,
    /// All of them.
    pub budgets: Vec<PodDisruptionBudget>,
    /// All of them.
    pub services: Vec<Service>,
    /// All of them.
    pub autoscalers: Vec<HorizontalPodAutoscaler>,
    /// All of them.
    pub rollouts: Vec<AgentRollout>,
    /// All of them, where whoever looks may see them.
    pub domains: Option<Vec<ShmDomain>>,
    /// What node daemons say, by node.
    pub reports: BTreeMap<String, NodeReport>,
    /// When they were asked, in seconds since 1970. What else is here may be newer, or older: a watch takes its time.
    pub asked: i64,
    /// What queries and Jobs say.
    pub outside: Vec<Verdict>,
    /// Queries that are no gates as they are now; asked before anything is touched.
    pub queries: Vec<BadQuery>,
    /// What the API server will not let whoever carries it out do, in words.
    pub denied: Vec<String>,
}

/// A query that has no number as its result, or one that is over its limit already.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadQuery {
    /// Its gate.
    pub gate: String,
    /// What is wrong.
    pub message: String,
}

/// Pods of one form of a workload.
#[derive(Clone, Debug, Default)]
pub struct FormPods<'w> {
    /// That are not about to go.
    pub all: Vec<&'w Pod>,
}

impl FormPods<'_> {
    /// How many are Ready.
    pub fn ready(&self) -> u32 {
        self.all.iter().filter(|pod| is_ready(pod)).count() as u32
    }

    /// How often their containers were started again.
    pub fn restarts(&self) -> u32 {
        self.all.iter().map(|pod| restarts(pod)).sum()
    }
}

static NOTHING: BTreeMap<String, String> = BTreeMap::new();

/// An object's labels.
pub(crate) fn labels(meta: &ObjectMeta) -> &BTreeMap<String, String> {
    meta.labels.as_ref().unwrap_or(&NOTHING)
}

/// An object's annotation.
pub(crate) fn annotation<'o>(meta: &'o ObjectMeta, key: &str) -> Option<&'o str> {
    meta.annotations.as_ref()?.get(key).map(String::as_str)
}

/// An object's name; the API server has none without.
pub(crate) fn name(meta: &ObjectMeta) -> &str {
    meta.name.as_deref().unwrap_or_default()
}

/// An object's namespace.
pub(crate) fn namespace(meta: &ObjectMeta) -> &str {
    meta.namespace.as_deref().unwrap_or_default()
}

/// The object that made this one.
pub(crate) fn owner(meta: &ObjectMeta) -> Option<&OwnerReference> {
    meta.owner_references.as_ref()?.iter().find(|owner| owner.controller == Some(true))
}

/// Whether a pod is about to go.
pub(crate) fn is_going(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_some()
}

/// Whether a pod is Ready, and stays.
pub(crate) fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    pod.metadata.deletion_timestamp.is_none()
        && conditions.is_some_and(|all| all.iter().any(|one| one.type_ == "Ready" && one.status == "True"))
}

/// How often a pod's containers were started again.
pub(crate) fn restarts(pod: &Pod) -> u32 {
    let containers = pod.status.as_ref().and_then(|status| status.container_statuses.as_ref());
    containers.into_iter().flatten().map(|one| one.restart_count.max(0) as u32).sum()
}

/// Where a pod runs.
pub(crate) fn node_of(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref()?.node_name.as_deref()
}

/// A pod's phase.
pub(crate) fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default()
}

/// A selector of the API as ours; what it says is the same.
pub(crate) fn selector(from: &LabelSelector) -> Selector {
    let expressions = from.match_expressions.iter().flatten().map(|one| Requirement {
        key: one.key.clone(),
        operator: match one.operator.as_str() {
            "In" => Operator::In,
            "NotIn" => Operator::NotIn,
            "Exists" => Operator::Exists,
            _ => Operator::DoesNotExist,
        },
        values: one.values.clone().unwrap_or_default(),
    });
    Selector { match_labels: from.match_labels.clone().unwrap_or_default(), match_expressions: expressions.collect() }
}

/// What a node's annotation says, if it is this rollout's.
pub(crate) fn mark_of(node: &Node, rollout: &AgentRollout) -> Option<NodeMark> {
    let mark: NodeMark = serde_json::from_str(annotation(&node.metadata, NODE_MARK)?).ok()?;
    (Some(mark.uid.as_str()) == rollout.metadata.uid.as_deref()).then_some(mark)
}

/// Whether a node has the label.
pub(crate) fn has_label(node: &Node, mark: &Mark) -> bool {
    labels(&node.metadata).get(&mark.key) == Some(&mark.value)
}

/// Whether a node has the taint.
pub(crate) fn has_taint(node: &Node, mark: &Mark) -> bool {
    let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_ref());
    taints.into_iter().flatten().any(|taint| {
        taint.key == mark.key && taint.effect == "NoSchedule" && taint.value.as_deref() == Some(&mark.value)
    })
}

/// Why nothing should be begun on a node.
pub(crate) fn unhealthy(node: &Node) -> Option<String> {
    let status = node.status.as_ref().and_then(|status| status.conditions.as_ref());
    let ready = status.into_iter().flatten().find(|one| one.type_ == "Ready");
    match ready {
        Some(ready) if ready.status == "True" => None,
        Some(ready) => {
            Some(format!("the node is not Ready ({})", ready.reason.as_deref().unwrap_or("no reason given")))
        }
        None => Some("the node has no Ready condition".into()),
    }
}

/// Whether somebody has cordoned it.
pub(crate) fn is_cordoned(node: &Node) -> bool {
    node.spec.as_ref().is_some_and(|spec| spec.unschedulable == Some(true))
}

/// What a fat workload's annotation says, if it is this rollout's.
pub(crate) fn asked_of(workload: &Deployment, rollout: &AgentRollout) -> Option<Asked> {
    let asked: Asked = serde_json::from_str(annotation(&workload.metadata, ASKED)?).ok()?;
    (Some(asked.rollout.as_str()) == rollout.metadata.uid.as_deref()).then_some(asked)
}

/// What a workload's owner has asked for, where this rollout has not written it down yet. A rollout of the same name may have moved it before.
pub(crate) fn adopted(fat: &Deployment, slim: Option<&Deployment>, rollout: &AgentRollout) -> Asked {
    let (fat_now, slim_now) = (replicas(fat), slim.map_or(0, replicas));
    let before: Option<Asked> =
        annotation(&fat.metadata, ASKED).and_then(|text| serde_json::from_str(text).ok()).filter(|_| slim_now > 0);
    // Somebody may have scaled it since, and one that was ended midway may have had a few too many.
    let asked = before.filter(|before| before.fat == fat_now && before.replicas <= fat_now + slim_now);
    Asked {
        rollout: rollout.metadata.uid.clone().unwrap_or_default(),
        replicas: asked.map_or(fat_now + slim_now, |asked| asked.replicas),
        fat: fat_now,
    }
}

/// Replicas that a Deployment's spec has; 1 where it has none.
pub(crate) fn replicas(workload: &Deployment) -> u32 {
    workload.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1).max(0) as u32
}

impl World {
    /// A Deployment.
    pub fn deployment(&self, namespace_: &str, name_: &str) -> Option<&Deployment> {
        self.deployments.iter().find(|one| name(&one.metadata) == name_ && namespace(&one.metadata) == namespace_)
    }

    /// A DaemonSet.
    pub fn daemon_set(&self, agent: &AgentRef) -> Option<&DaemonSet> {
        self.daemon_sets
            .iter()
            .find(|one| name(&one.metadata) == agent.name && namespace(&one.metadata) == agent.namespace)
    }

    /// Uids of a Deployment's ReplicaSets.
    pub(crate) fn sets_of<'w>(&'w self, workload: &Deployment) -> Vec<&'w str> {
        let uid = workload.metadata.uid.as_deref();
        let is_its = |set: &&ReplicaSet| uid.is_some() && owner(&set.metadata).map(|owner| owner.uid.as_str()) == uid;
        self.replica_sets.iter().filter(is_its).filter_map(|set| set.metadata.uid.as_deref()).collect()
    }

    /// Pods of a Deployment, those that are about to go left out.
    pub fn pods_of(&self, workload: &Deployment) -> FormPods<'_> {
        let (space, sets) = (namespace(&workload.metadata), self.sets_of(workload));
        let is_of = |pod: &&Pod| {
            namespace(&pod.metadata) == space
                && owner(&pod.metadata).is_some_and(|owner| sets.contains(&owner.uid.as_str()))
                && pod.metadata.deletion_timestamp.is_none()
                && !matches!(phase(pod), "Succeeded" | "Failed")
        };
        FormPods { all: self.pods.iter().filter(is_of).collect() }
    }

    /// A DaemonSet's revisions, oldest first.
    pub(crate) fn revisions_of(&self, set: &DaemonSet) -> Vec<&ControllerRevision> {
        let uid = set.metadata.uid.as_ref();
        let mut all: Vec<_> = self
            .revisions
            .iter()
            .filter(|one| uid.is_some() && owner(&one.metadata).map(|owner| &owner.uid) == uid)
            .collect();
        all.sort_by_key(|one| one.revision);
        all
    }

    /// Budgets that a pod with these labels falls under.
    pub(crate) fn budgets_of<'w>(
        &'w self,
        space: &str,
        labels: &BTreeMap<String, String>,
    ) -> impl Iterator<Item = &'w PodDisruptionBudget> + use<'w> {
        let (space, labels) = (space.to_owned(), labels.clone());
        self.budgets.iter().filter(move |budget| {
            namespace(&budget.metadata) == space
                && budget
                    .spec
                    .as_ref()
                    .and_then(|spec| spec.selector.as_ref())
                    .is_some_and(|wanted| selector(wanted).matches(&labels))
        })
    }
}
