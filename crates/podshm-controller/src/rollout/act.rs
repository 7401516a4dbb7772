//! Does what a step says. What is gone, or is there already, is no error: the next step sees it.

mod verify;

use self::verify::{label_value, verification_pod};
use k8s_openapi::api::apps::v1::{ControllerRevision, DaemonSet, Deployment};
use k8s_openapi::api::core::v1::{Node, Pod, Taint};
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Client, ResourceExt};
use podshm_api::rollout::{ASKED, AgentRollout, FIELD_MANAGER, FINALIZER, MADE_BY, NODE_MARK, NodeMark, VERIFIES};
use podshm_rollout::{Action, Change, World, slim_form};
use serde_json::{Map, Value, json};

/// A ReplicaSet takes pods with a lower one away first.
const COST: &str = "controller.kubernetes.io/pod-deletion-cost";

/// Does a step's actions, each while it `may`. What one object does not allow is no reason to leave the others half way: the first such
/// error is given back once all were tried. People are told of nodes as the API server has taken them.
pub(super) async fn one_by_one(
    actions: &[Action],
    may: impl Fn() -> anyhow::Result<()>,
    does: impl AsyncFn(&Action) -> anyhow::Result<bool>,
    tells: impl AsyncFn(&str, &NodeMark),
) -> anyhow::Result<()> {
    let mut first = None;
    for action in actions {
        may()?;
        match (does(action).await, action) {
            (Ok(true), Action::Node { name, mark: Some(mark), .. }) => tells(name, mark).await,
            (Ok(_), _) => {}
            (Err(error), _) => {
                tracing::warn!(?action, %error, "not done");
                first.get_or_insert(error);
            }
        }
    }
    first.map_or(Ok(()), Err)
}

/// Does one thing. False where the API server has not taken it, since its object has changed or is gone.
pub(super) async fn act(
    client: &Client,
    rollout: &AgentRollout,
    world: &World,
    action: &Action,
) -> anyhow::Result<bool> {
    match action {
        Action::Hold | Action::LetGo => {
            let patch = finalizer_patch(rollout, *action == Action::Hold);
            merge(&Api::<AgentRollout>::all(client.clone()), &rollout.name_any(), &patch).await
        }
        Action::Node { name, mark, label, taint } => {
            let Some(node) = world.nodes.get(name) else { return Ok(false) };
            let patch = node_patch(rollout, node, mark.as_ref(), *label, *taint)?;
            merge(&Api::<Node>::all(client.clone()), name, &patch).await
        }
        Action::Verify { node } => {
            let Some(gate) = &rollout.spec.gates.verification else { return Ok(false) };
            let pods = Api::<Pod>::namespaced(client.clone(), &gate.namespace);
            created(pods.create(&PostParams::default(), &verification_pod(rollout, gate, node)?).await)
        }
        Action::CleanUp { node } => {
            let Some(gate) = &rollout.spec.gates.verification else { return Ok(false) };
            let pods = Api::<Pod>::namespaced(client.clone(), &gate.namespace);
            let of = format!("{VERIFIES}={},{MADE_BY}={}", label_value(node), label_value(&rollout.name_any()));
            pods.delete_collection(&DeleteParams::default(), &ListParams::default().labels(&of)).await?;
            Ok(true)
        }
        Action::Slim { workload } => {
            let Some(one) = rollout.spec.workloads.get(*workload) else { return Ok(false) };
            let deployments = Api::<Deployment>::namespaced(client.clone(), &one.namespace);
            let slim = slim_form(one, &deployments.get(&one.name).await?, rollout)?;
            match deployments.create(&PostParams::default(), &slim).await {
                Err(kube::Error::Api(status)) if status.code == 409 => {}
                other => return Ok(other.map(|_| true)?),
            }
            // Its template as a whole: what is gone from the fat one goes here, too.
            let Some(found) = world.deployment(&one.namespace, &slim.name_any()) else { return Ok(false) };
            let mut annotations = found.annotations().clone();
            annotations.extend(slim.annotations().clone());
            let patch = serde_json::from_value(json!([
                {"op": "replace", "path": "/metadata/resourceVersion", "value": found.resource_version()},
                {"op": "add", "path": "/metadata/annotations", "value": annotations},
                {"op": "replace", "path": "/spec/template", "value": slim.spec.as_ref().map(|spec| &spec.template)},
            ]))?;
            gone(deployments.patch(&slim.name_any(), &manager(), &Patch::<()>::Json(patch)).await)
        }
        Action::Scale { namespace, name, replicas, asked } => {
            let mut patch = json!({"spec": {"replicas": replicas}});
            if let Some(asked) = asked {
                patch["metadata"] = json!({"annotations": {ASKED: serde_json::to_string(asked)?}});
            }
            // Whoever has changed it since we looked is to be seen first.
            if let Some(version) = world.deployment(namespace, name).and_then(ResourceExt::resource_version) {
                patch["metadata"]["resourceVersion"] = json!(version);
            }
            merge(&Api::<Deployment>::namespaced(client.clone(), namespace), name, &patch).await
        }
        Action::Remove { namespace, name } => {
            let deployments = Api::<Deployment>::namespaced(client.clone(), namespace);
            gone(deployments.delete(name, &DeleteParams::background()).await)
        }
        Action::GoesFirst { namespace, name, first } => {
            let cost = if *first { json!("-100") } else { Value::Null };
            let patch = json!({"metadata": {"annotations": {COST: cost}}});
            merge(&Api::<Pod>::namespaced(client.clone(), namespace), name, &patch).await
        }
        Action::Replace { namespace, name } => {
            gone(Api::<Pod>::namespaced(client.clone(), namespace).delete(name, &DeleteParams::default()).await)
        }
        Action::Restore { agent, revision } => {
            let Some(agent) = rollout.spec.agents.get(*agent) else { return Ok(false) };
            let revisions = Api::<ControllerRevision>::namespaced(client.clone(), &agent.namespace);
            // What `kubectl rollout undo` sends: the revision's data is a strategic merge patch.
            let Some(data) = revisions.get(revision).await?.data else { return Ok(false) };
            let sets = Api::<DaemonSet>::namespaced(client.clone(), &agent.namespace);
            sets.patch(&agent.name, &manager(), &Patch::Strategic(data.0)).await?;
            Ok(true)
        }
    }
}

fn manager() -> PatchParams {
    PatchParams { field_manager: Some(FIELD_MANAGER.into()), ..PatchParams::default() }
}

async fn merge<K>(api: &Api<K>, name: &str, patch: &Value) -> anyhow::Result<bool>
where
    K: Clone + std::fmt::Debug + serde::de::DeserializeOwned,
{
    gone(api.patch(name, &manager(), &Patch::Merge(patch)).await.map(drop))
}

/// Already there is there.
fn created<T>(result: kube::Result<T>) -> anyhow::Result<bool> {
    match result {
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(true),
        other => Ok(other.map(|_| true)?),
    }
}

/// Gone is gone, and what has changed since is looked at anew.
fn gone<T>(result: kube::Result<T>) -> anyhow::Result<bool> {
    match result {
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(false),
        other => Ok(other.map(|_| true)?),
    }
}

/// The list as a whole, as a merge patch has it: so it holds only for the rollout as it was seen, with others' finalizers.
fn finalizer_patch(rollout: &AgentRollout, is_held: bool) -> Value {
    let mut all = rollout.finalizers().to_vec();
    all.retain(|one| one != FINALIZER);
    all.extend(is_held.then(|| FINALIZER.to_owned()));
    json!({"metadata": {"resourceVersion": rollout.resource_version(), "finalizers": all}})
}

/// Annotation, label and taint in one write. Taints are one list to the API server, so it holds only for the node as it was seen.
fn node_patch(
    rollout: &AgentRollout,
    node: &Node,
    mark: Option<&NodeMark>,
    label: Change,
    taint: Change,
) -> anyhow::Result<Value> {
    let key = &rollout.spec.mark;
    let mut metadata = Map::new();
    metadata.insert("resourceVersion".into(), json!(node.resource_version()));
    if let Some(mark) = mark {
        metadata.insert("annotations".into(), json!({NODE_MARK: serde_json::to_string(mark)?}));
    }
    match label {
        Change::On => drop(metadata.insert("labels".into(), json!({&key.key: key.value}))),
        Change::Off => drop(metadata.insert("labels".into(), json!({&key.key: null}))),
        Change::Keep => {}
    }
    let mut patch = json!({"metadata": metadata});
    if taint != Change::Keep {
        let taints = node.spec.as_ref().and_then(|spec| spec.taints.clone()).unwrap_or_default();
        let mut taints: Vec<Taint> = taints.into_iter().filter(|one| one.key != key.key).collect();
        if taint == Change::On {
            let (key, value) = (key.key.clone(), Some(key.value.clone()));
            taints.push(Taint { key, value, effect: "NoSchedule".into(), time_added: None });
        }
        patch["spec"] = json!({"taints": taints});
    }
    Ok(patch)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;
    use std::time::Duration;

    fn rollout(name: &str) -> AgentRollout {
        let object = json!({
            "apiVersion": "podshm.dev/v1alpha1", "kind": "AgentRollout", "metadata": {"name": name, "uid": "u"},
            "spec": {"agents": [], "batches": [], "domain": "routing"},
        });
        serde_json::from_value(object).unwrap()
    }

    fn node(name: &str) -> Action {
        let mark = NodeMark { reason: format!("of {name}"), ..NodeMark::default() };
        Action::Node { name: name.into(), mark: Some(mark), label: Change::On, taint: Change::On }
    }

    /// A step's actions with an API server that takes `a` and `d`, knows nothing of `c`, and refuses the others; and the lease for so many:
    /// what was tried, who was told of, and how it ended.
    fn carried_out(actions: &[Action], leads_for: usize) -> (Vec<String>, Vec<String>, Result<(), String>) {
        let (tried, told) = (RefCell::new(Vec::new()), RefCell::new(Vec::new()));
        let may = || match tried.borrow().len() < leads_for {
            true => Ok(()),
            false => Err(anyhow::anyhow!("another may lead now")),
        };
        let does = async |action: &Action| {
            let name = match action {
                Action::Node { name, .. } | Action::Scale { name, .. } | Action::CleanUp { node: name } => name.clone(),
                other => panic!("{other:?}"),
            };
            tried.borrow_mut().push(name.clone());
            tokio::task::yield_now().await;
            match name.as_str() {
                "a" | "d" => Ok(true),
                "c" => Ok(false),
                _ => Err(anyhow::anyhow!("{name} is refused")),
            }
        };
        let tells = async |node: &str, mark: &NodeMark| told.borrow_mut().push(format!("{node} {}", mark.reason));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let ended = runtime.block_on(async {
            let work = one_by_one(actions, may, does, tells);
            tokio::time::timeout(Duration::from_secs(60), work).await.expect("nothing here waits for anybody")
        });
        (tried.into_inner(), told.into_inner(), ended.map_err(|error| error.to_string()))
    }

    #[test]
    fn what_one_object_does_not_allow_keeps_nobody_from_the_others_and_is_said_at_the_end() {
        let scale =
            |name: &str| Action::Scale { namespace: "shop".into(), name: name.into(), replicas: 1, asked: None };
        let actions = [node("a"), node("b"), scale("cart"), node("c"), node("d"), Action::CleanUp { node: "a".into() }];
        let (tried, told, ended) = carried_out(&actions, usize::MAX);
        assert_eq!(tried, ["a", "b", "cart", "c", "d", "a"], "each, in its order");
        assert_eq!(told, ["a of a", "d of d"], "what the API server has taken, with its mark, and nothing else");
        assert_eq!(ended, Err("b is refused".into()), "the first");
        assert_eq!(carried_out(&actions[3..], usize::MAX).2, Ok(()));
    }

    #[test]
    fn without_the_lease_nothing_more_is_done() {
        let (tried, told, ended) = carried_out(&["a", "b", "d", "d"].map(node), 2);
        assert_eq!((tried.len(), told.len()), (2, 1), "{tried:?}");
        assert_eq!(ended, Err("another may lead now".into()));
    }

    #[test]
    fn a_nodes_other_taints_stay_and_the_write_holds_for_the_node_that_was_seen() {
        let node: Node = serde_json::from_value(json!({
            "metadata": {"name": "a", "resourceVersion": "7"},
            "spec": {"taints": [{"key": "gpu", "effect": "NoExecute"}, {"key": "AgentsDaemonSet", "value": "OLD", "effect": "NoSchedule"}]},
        }))
        .unwrap();
        let on = node_patch(&rollout("r"), &node, None, Change::On, Change::On).unwrap();
        assert_eq!(on["metadata"], json!({"resourceVersion": "7", "labels": {"AgentsDaemonSet": "YES"}}));
        let keys = |patch: &Value| {
            patch["spec"]["taints"].as_array().unwrap().iter().map(|one| one["key"].clone()).collect::<Vec<_>>()
        };
        assert_eq!(keys(&on), ["gpu", "AgentsDaemonSet"]);
        let off = node_patch(&rollout("r"), &node, None, Change::Off, Change::Off).unwrap();
        assert_eq!(off["metadata"]["labels"], json!({"AgentsDaemonSet": null}));
        assert_eq!(keys(&off), ["gpu"]);
        let kept = node_patch(&rollout("r"), &node, None, Change::Keep, Change::Keep).unwrap();
        assert!(kept.get("spec").is_none());
    }

    #[test]
    fn others_finalizers_stay_and_the_write_holds_for_the_rollout_that_was_seen() {
        let mut seen = rollout("r");
        seen.metadata.resource_version = Some("7".into());
        seen.metadata.finalizers = Some(vec!["foregroundDeletion".into()]);
        let on = finalizer_patch(&seen, true)["metadata"].clone();
        assert_eq!(on, json!({"resourceVersion": "7", "finalizers": ["foregroundDeletion", FINALIZER]}));
        seen.metadata.finalizers = Some(vec![FINALIZER.into(), "foregroundDeletion".into()]);
        assert_eq!(finalizer_patch(&seen, true)["metadata"]["finalizers"], on["finalizers"], "once");
        assert_eq!(finalizer_patch(&seen, false)["metadata"]["finalizers"], json!(["foregroundDeletion"]));
    }
}
