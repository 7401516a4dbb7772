//! The cluster as a rollout sees it, by watches (the controller) or by lists (`podshm rollout plan`).

use crate::pages::{self, PAGE};
use futures::StreamExt;
use k8s_openapi::api::apps::v1::{ControllerRevision, DaemonSet, Deployment, ReplicaSet};
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use k8s_openapi::api::core::v1::{Container, ContainerStatus, Node, Pod, Service};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ManagedFieldsEntry;
use kube::runtime::reflector::{self, Store};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, Resource, ResourceExt};
use podshm_api::domain::ShmDomain;
use podshm_api::rollout::AgentRollout;
use podshm_rollout::World;
use std::fmt::Debug;
use std::mem::take;
use std::sync::Arc;
use tokio::sync::mpsc::UnboundedSender;
use tokio::task::JoinSet;

/// What a store has no use for, and most of its bytes.
trait Trim {
    /// Whether it is looked at who writes its fields.
    const HAS_MANAGERS: bool = false;

    fn trim(&mut self);
}

macro_rules! trims_nothing { ($($kind:ty),*) => { $(impl Trim for $kind { fn trim(&mut self) {} })* } }
trims_nothing!(ControllerRevision, HorizontalPodAutoscaler, Service, PodDisruptionBudget, AgentRollout, ShmDomain);

macro_rules! keeps_managers { ($($kind:ty),*) => { $(impl Trim for $kind {
    const HAS_MANAGERS: bool = true;

    fn trim(&mut self) {}
})* } }
keeps_managers!(DaemonSet, Deployment);

/// There are the most of them by far. Of a container there stays what it takes of a node and how it fares.
impl Trim for Pod {
    fn trim(&mut self) {
        if let Some(spec) = self.spec.as_mut() {
            (spec.volumes, spec.security_context, spec.image_pull_secrets) = (None, None, None);
            for container in spec.containers.iter_mut().chain(spec.init_containers.iter_mut().flatten()) {
                let all = take(container);
                let (name, resources, restart_policy) = (all.name, all.resources, all.restart_policy);
                *container = Container { name, resources, restart_policy, ..Container::default() };
            }
        }
        if let Some(status) = self.status.as_mut() {
            (status.host_ip, status.host_ips, status.pod_ips, status.qos_class) = (None, None, None, None);
            let (init, others) = (status.init_container_statuses.iter_mut(), status.container_statuses.iter_mut());
            for container in init.chain(others).flatten() {
                let all = take(container);
                let (name, state, last_state) = (all.name, all.state, all.last_state);
                let (ready, restart_count) = (all.ready, all.restart_count);
                *container =
                    ContainerStatus { name, state, last_state, ready, restart_count, ..ContainerStatus::default() };
            }
        }
    }
}

impl Trim for Node {
    fn trim(&mut self) {
        if let Some(status) = self.status.as_mut() {
            (status.images, status.volumes_attached, status.volumes_in_use) = (None, None, None);
        }
    }
}

impl Trim for ReplicaSet {
    fn trim(&mut self) {
        if let Some(spec) = self.spec.as_mut() {
            spec.template = None;
        }
    }
}

fn trimmed<K: Trim + Resource>(object: &mut K) {
    let managers = object.meta_mut().managed_fields.take().filter(|_| K::HAS_MANAGERS);
    object.meta_mut().managed_fields = managers.map(|all| {
        let brief = |one: ManagedFieldsEntry| ManagedFieldsEntry { fields_v1: None, ..one };
        all.into_iter().map(brief).collect()
    });
    if let Some(annotations) = object.meta_mut().annotations.as_mut() {
        annotations.remove("kubectl.kubernetes.io/last-applied-configuration");
    }
    object.trim();
}

/// The rollouts there are.
pub struct Rollouts {
    store: Store<AgentRollout>,
    _watch: JoinSet<()>,
}

impl Rollouts {
    /// Begins to watch. `changed` hears of every change.
    pub fn watch(client: &Client, changed: &UnboundedSender<()>) -> Self {
        let mut watches = JoinSet::new();
        Rollouts { store: watch(client, changed, &mut watches), _watch: watches }
    }

    /// Waits until they are there.
    pub async fn ready(&self) -> anyhow::Result<()> {
        Ok(self.store.wait_until_ready().await?)
    }

    /// As they are now.
    pub fn all(&self) -> Vec<AgentRollout> {
        all(&self.store)
    }
}

/// Everything else that a rollout looks at, kept up to date: one watch a kind, whatever the number of nodes and rollouts.
pub struct Stores {
    held: Held,
    /// What keeps it up to date; it ends with them.
    _watches: JoinSet<()>,
}

/// What is held of it. Clones share it.
#[derive(Clone)]
pub struct Held {
    nodes: Store<Node>,
    pods: Store<Pod>,
    daemon_sets: Store<DaemonSet>,
    revisions: Store<ControllerRevision>,
    deployments: Store<Deployment>,
    replica_sets: Store<ReplicaSet>,
    budgets: Store<PodDisruptionBudget>,
    services: Store<Service>,
    autoscalers: Store<HorizontalPodAutoscaler>,
}

impl Stores {
    /// Begins to watch. `changed` hears of every change.
    pub fn watch(client: &Client, changed: &UnboundedSender<()>) -> Self {
        let mut watches = JoinSet::new();
        let all = &mut watches;
        let held = Held {
            nodes: watch(client, changed, all),
            pods: watch(client, changed, all),
            daemon_sets: watch(client, changed, all),
            revisions: watch(client, changed, all),
            deployments: watch(client, changed, all),
            replica_sets: watch(client, changed, all),
            budgets: watch(client, changed, all),
            services: watch(client, changed, all),
            autoscalers: watch(client, changed, all),
        };
        Stores { held, _watches: watches }
    }

    /// Waits until all of it is there.
    pub async fn ready(&self) -> anyhow::Result<()> {
        self.held.nodes.wait_until_ready().await?;
        self.held.pods.wait_until_ready().await?;
        self.held.daemon_sets.wait_until_ready().await?;
        self.held.revisions.wait_until_ready().await?;
        self.held.deployments.wait_until_ready().await?;
        self.held.replica_sets.wait_until_ready().await?;
        self.held.budgets.wait_until_ready().await?;
        self.held.services.wait_until_ready().await?;
        self.held.autoscalers.wait_until_ready().await?;
        Ok(())
    }

    /// What is held now, and goes on being kept up to date as long as this is.
    pub fn held(&self) -> Held {
        self.held.clone()
    }
}

impl Held {
    /// As it is now. Of what there is much of it has no copies. What node daemons and queries say is not in it.
    pub fn world(&self, rollouts: Vec<AgentRollout>, now: i64) -> World {
        World {
            now,
            rollouts,
            nodes: self.nodes.state().into_iter().map(|node| (node.name_any(), node)).collect(),
            pods: self.pods.state().into_iter().collect(),
            daemon_sets: all(&self.daemon_sets),
            revisions: all(&self.revisions),
            deployments: all(&self.deployments),
            replica_sets: self.replica_sets.state().into_iter().collect(),
            budgets: all(&self.budgets),
            services: all(&self.services),
            autoscalers: all(&self.autoscalers),
            ..World::default()
        }
    }
}

fn all<K>(store: &Store<K>) -> Vec<K>
where
    K: Resource + Clone + 'static,
    K::DynamicType: Eq + std::hash::Hash + Clone,
{
    store.state().iter().map(|object| K::clone(object)).collect()
}

fn watch<K>(client: &Client, changed: &UnboundedSender<()>, watches: &mut JoinSet<()>) -> Store<K>
where
    K: Resource<DynamicType = ()> + Trim + Clone + Debug + serde::de::DeserializeOwned + Send + Sync + 'static,
{
    let (store, writer) = reflector::store();
    let changed = changed.clone();
    let stream = watcher(Api::<K>::all(client.clone()), watcher::Config::default().page_size(PAGE))
        .default_backoff()
        .modify(trimmed)
        .reflect(writer)
        .touched_objects();
    watches.spawn(async move {
        let mut stream = std::pin::pin!(stream);
        while let Some(event) = stream.next().await {
            match event {
                Ok(_) if changed.send(()).is_err() => return,
                Ok(_) => {}
                Err(error) => tracing::warn!(kind = %K::kind(&()), %error, "the watch is begun anew"),
            }
        }
    });
    store
}

/// The cluster, once.
pub async fn look(client: &Client, now: i64) -> kube::Result<World> {
    Ok(World {
        now,
        nodes: list::<Node>(client).await?.into_iter().map(|node| (node.name_any(), Arc::new(node))).collect(),
        pods: list(client).await?.into_iter().map(Arc::new).collect(),
        daemon_sets: list(client).await?,
        revisions: list(client).await?,
        deployments: list(client).await?,
        replica_sets: list(client).await?.into_iter().map(Arc::new).collect(),
        budgets: list(client).await?,
        services: list(client).await?,
        autoscalers: list(client).await?,
        rollouts: list(client).await?,
        // Not everybody who may plan a rollout may see them, and they are for warnings alone.
        domains: list(client).await.ok(),
        ..World::default()
    })
}

async fn list<K>(client: &Client) -> kube::Result<Vec<K>>
where
    K: Resource<DynamicType = ()> + Trim + Clone + Debug + serde::de::DeserializeOwned,
{
    let mut all = Vec::new();
    pages::each(&Api::<K>::all(client.clone()), |mut object| {
        trimmed(&mut object);
        all.push(object);
    })
    .await?;
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn of_who_writes_a_deployment_the_names_are_kept_and_nothing_else() {
        let fields = json!([{"manager": "argocd-controller", "operation": "Apply", "fieldsType": "FieldsV1", "fieldsV1": {"f:spec": {}}}]);
        let object = json!({"metadata": {"name": "cart", "managedFields": fields}});
        let mut deployment: Deployment = serde_json::from_value(object.clone()).unwrap();
        trimmed(&mut deployment);
        let kept: Value = serde_json::to_value(&deployment).unwrap();
        assert_eq!(kept["metadata"]["managedFields"][0]["manager"], "argocd-controller");
        assert!(kept["metadata"]["managedFields"][0].get("fieldsV1").is_none(), "{kept}");
        let mut pod: Pod = serde_json::from_value(object).unwrap();
        trimmed(&mut pod);
        assert_eq!(pod.metadata.managed_fields, None);
    }

    /// What a step goes by is there, and what most of its bytes are is not.
    #[test]
    fn of_a_pods_containers_there_stays_what_they_take_and_how_they_fare() {
        let object = json!({
            "metadata": {"name": "cart-1", "labels": {"app": "cart"}},
            "spec": {
                "nodeName": "a", "nodeSelector": {"disk": "fast"}, "tolerations": [{"key": "k", "operator": "Exists"}],
                "initContainers": [{"name": "side", "restartPolicy": "Always", "image": "side", "resources": {"requests": {"cpu": "1"}}}],
                "containers": [{"name": "cart", "image": "cart", "args": ["x"], "resources": {"requests": {"cpu": "2"}}}],
            },
            "status": {
                "phase": "Running", "podIP": "10.0.0.1", "hostIP": "192.0.2.1",
                "conditions": [{"type": "Ready", "status": "False", "lastTransitionTime": "2026-01-01T00:00:00Z"}],
                "containerStatuses": [{
                    "name": "cart", "image": "cart", "imageID": "sha256:1", "containerID": "containerd://1", "ready": false, "restartCount": 3,
                    "state": {"waiting": {"reason": "CrashLoopBackOff"}}, "lastState": {"terminated": {"exitCode": 139}},
                }],
            },
        });
        let mut pod: Pod = serde_json::from_value(object).unwrap();
        trimmed(&mut pod);
        let kept: Value = serde_json::to_value(&pod).unwrap();
        let expected = json!({
            "nodeName": "a", "nodeSelector": {"disk": "fast"}, "tolerations": [{"key": "k", "operator": "Exists"}],
            "initContainers": [{"name": "side", "restartPolicy": "Always", "resources": {"requests": {"cpu": "1"}}}],
            "containers": [{"name": "cart", "resources": {"requests": {"cpu": "2"}}}],
        });
        assert_eq!(kept["spec"], expected);
        let status = &kept["status"];
        assert_eq!((&status["phase"], &status["podIP"]), (&json!("Running"), &json!("10.0.0.1")));
        assert_eq!(status["conditions"][0]["lastTransitionTime"], "2026-01-01T00:00:00Z");
        let container = &status["containerStatuses"][0];
        assert_eq!((&container["restartCount"], &container["imageID"]), (&json!(3), &json!("")));
        assert_eq!(container["state"]["waiting"]["reason"], "CrashLoopBackOff");
        assert_eq!(container["lastState"]["terminated"]["exitCode"], 139);
    }
}
