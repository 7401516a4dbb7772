//! Nodes that are API objects alone, and what kubelets would say of their pods: bound pods of workloads become Ready, verification pods
//! succeed, what is deleted goes. Nothing runs.

use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, ResourceExt};
use serde_json::{Value, json};

/// Requests at once.
const AT_ONCE: usize = 24;

/// A node's name.
pub fn node(number: usize) -> String {
    format!("node-{number:04}")
}

/// Nodes in three zones, Ready, each with room for 110 pods.
pub async fn make_nodes(client: &Client, count: usize) -> kube::Result<()> {
    let nodes = Api::<Node>::all(client.clone());
    let make = |number: usize| {
        let nodes = nodes.clone();
        async move {
            let (name, zone) = (node(number), format!("z{}", number % 3));
            let labels = json!({"kubernetes.io/hostname": name, "topology.kubernetes.io/zone": zone});
            let object = json!({"metadata": {"name": name, "labels": labels}});
            nodes.create(&PostParams::default(), &of(object)).await?;
            let room = json!({"cpu": "16", "memory": "64Gi", "pods": "110"});
            let ready = json!([{"type": "Ready", "status": "True", "reason": "Simulated"}]);
            let status = json!({"status": {"capacity": room, "allocatable": room, "conditions": ready}});
            nodes.patch_status(&name, &PatchParams::default(), &Patch::Merge(&status)).await?;
            // New nodes are tainted until their lifecycle controller has seen them Ready; that one does not run.
            let untainted = json!({"spec": {"taints": null}});
            nodes.patch(&name, &PatchParams::default(), &Patch::Merge(&untainted)).await.map(drop)
        }
    };
    futures::stream::iter((0..count).map(make)).buffer_unordered(AT_ONCE).try_collect().await
}

/// Pods that no rollout lists, on all nodes alike.
pub async fn make_pods(client: &Client, nodes: usize, count: usize) -> kube::Result<()> {
    let pods = Api::<Pod>::namespaced(client.clone(), "other");
    let make = |number: usize| {
        let pods = pods.clone();
        async move {
            let pod = json!({
                "metadata": {"name": format!("pod-{number:05}"), "labels": {"app": "other"}},
                "spec": {
                    "nodeName": node(number % nodes), "automountServiceAccountToken": false,
                    // They would find a place if they started again while all nodes have the rollout's taint.
                    "tolerations": [{"operator": "Exists"}],
                    "containers": [{
                        "name": "pod", "image": "registry.example/other:1",
                        "resources": {"requests": {"cpu": "50m", "memory": "64Mi"}},
                        "env": (0..20).map(|n| json!({"name": format!("VARIABLE_{n}"), "value": "v".repeat(40)})).collect::<Vec<_>>(),
                    }],
                },
            });
            pods.create(&PostParams::default(), &of(pod)).await.map(drop)
        }
    };
    futures::stream::iter((0..count).map(make)).buffer_unordered(AT_ONCE).try_collect().await
}

fn of<K: serde::de::DeserializeOwned>(object: Value) -> K {
    serde_json::from_value(object).unwrap()
}

/// What kubelets do, until it is dropped.
pub async fn kubelets(client: Client) {
    let changes =
        watcher(Api::<Pod>::all(client.clone()), watcher::Config::default()).default_backoff().applied_objects();
    let act = |pod: Result<Pod, watcher::Error>| {
        let client = client.clone();
        async move {
            let Ok(pod) = pod else { return };
            if let Err(error) = kubelet(&client, &pod).await {
                eprintln!("pod {}: {error}", pod.name_any());
            }
        }
    };
    changes.for_each_concurrent(AT_ONCE, act).await;
}

async fn kubelet(client: &Client, pod: &Pod) -> kube::Result<()> {
    let pods = Api::<Pod>::namespaced(client.clone(), &pod.namespace().unwrap_or_default());
    let name = pod.name_any();
    if pod.spec.as_ref().and_then(|spec| spec.node_name.as_ref()).is_none() {
        return Ok(());
    }
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default();
    let done = if pod.metadata.deletion_timestamp.is_some() {
        pods.delete(&name, &DeleteParams::default().grace_period(0)).await.map(drop)
    } else if phase != "Pending" || pod.labels().get("app").is_some_and(|app| app == "other") {
        return Ok(());
    } else {
        let status = if pod.labels().contains_key("rollout.podshm.dev/verifies") {
            json!({"phase": "Succeeded"})
        } else {
            json!({"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]})
        };
        let patch = json!({"status": status});
        pods.patch_status(&name, &PatchParams::default(), &Patch::Merge(&patch)).await.map(drop)
    };
    match done {
        // Gone meanwhile, or looked at again soon.
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(()),
        other => other,
    }
}
