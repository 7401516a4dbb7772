//! What a plan refuses or warns of, row by row, each with what to change.

use crate::simulated::{Cluster, daemon_set, object};
use k8s_openapi::api::apps::v1::Deployment;
use podshm_api::rollout::{OnFailure, Purpose};
use podshm_rollout::{BadQuery, Plan, plan};
use serde_json::{Value, json};

/// A fleet of four nodes that may go over as it is.
pub fn fleet() -> Cluster {
    let mut cluster = Cluster::new(
        4,
        json!({
            "apiVersion": "podshm.dev/v1alpha1", "kind": "AgentRollout",
            "metadata": {"name": "routing", "uid": "r-1", "generation": 1, "creationTimestamp": "2026-01-02T00:00:00Z"},
            "spec": {
                "agents": [{"namespace": "routing", "name": "agent"}],
                "batches": [{"count": 1}, {"percent": 100}],
                "workloads": [{"namespace": "shop", "name": "cart", "slim": {"labels": {"form": "slim"}, "removeContainers": ["agent"]}}],
            },
        }),
    );
    cluster.add_agent("RollingUpdate");
    cluster.add_workload("cart", 4);
    (0..5).for_each(|_| cluster.tick());
    cluster
}

pub fn said(plan: &Plan) -> Vec<String> {
    plan.refusals.iter().map(|one| format!("{}: {}", one.about, one.message)).collect()
}

pub fn cart(cluster: &mut Cluster) -> &mut Deployment {
    cluster.deployment("cart").unwrap()
}

pub fn a_pod(name: &str, node: &str, spec: Value) -> k8s_openapi::api::core::v1::Pod {
    let mut spec = spec;
    spec["nodeName"] = json!(node);
    object(
        json!({"metadata": {"name": name, "namespace": "other", "uid": name}, "spec": spec, "status": {"phase": "Running"}}),
    )
}

pub fn a_deployment(name: &str, pod: &Value) -> Deployment {
    object(json!({
        "metadata": {"name": name, "namespace": "other", "uid": name},
        "spec": {"selector": {}, "template": {"metadata": {"labels": {"app": name}}, "spec": pod}},
    }))
}

pub fn managed_by(manager: &str) -> Value {
    json!([{"manager": "kubectl", "operation": "Update"}, {"manager": manager, "operation": "Apply"}])
}

fn bad_query() -> BadQuery {
    BadQuery { gate: "errors".into(), message: "the query has 0 results; expected one number".into() }
}

pub fn warnings(cluster: &Cluster) -> Vec<String> {
    let plan = plan(&cluster.rollout, &cluster.world);
    assert_eq!(said(&plan), [""; 0]);
    plan.warnings.iter().map(|one| format!("{}: {}", one.about, one.message)).collect()
}

pub type Change = fn(&mut Cluster);

#[test]
fn what_cannot_be_done_is_refused_with_what_to_change() {
    assert_eq!(said(&plan(&fleet().rollout, &fleet().world)), [""; 0]);
    let rows: [(&str, Change, &str); 29] = [
        ("no DaemonSet", |c| c.world.daemon_sets.clear(), "DaemonSet routing/agent: there is none; create it first"),
        (
            "no toleration",
            |c| {
                let template = &mut daemon_set(c).spec.as_mut().unwrap().template;
                template.spec.as_mut().unwrap().tolerations = None;
            },
            "add {key: AgentsDaemonSet, operator: Equal, value: \"YES\", effect: NoSchedule} to its tolerations",
        ),
        ("no workload", |c| c.rollout.spec.workloads[0].name = "till".into(), "shop/till: there is none of that name"),
        (
            "StatefulSet",
            |c| c.rollout.spec.workloads[0].kind = "StatefulSet".into(),
            "StatefulSet shop/cart: a rollout moves Deployments",
        ),
        (
            "HorizontalPodAutoscaler",
            |c| {
                c.world.autoscalers.push(object(json!({
                    "metadata": {"name": "cart-scaler", "namespace": "shop"},
                    "spec": {"maxReplicas": 9, "scaleTargetRef": {"kind": "Deployment", "name": "cart"}},
                })));
            },
            "HorizontalPodAutoscaler cart-scaler scales it",
        ),
        (
            "Argo CD",
            |c| {
                let labels = cart(c).metadata.labels.get_or_insert_default();
                labels.insert("argocd.argoproj.io/instance".into(), "shop".into());
            },
            "Argo CD owns it",
        ),
        (
            "Flux",
            |c| {
                let labels = cart(c).metadata.labels.get_or_insert_default();
                labels.insert("kustomize.toolkit.fluxcd.io/name".into(), "shop".into());
            },
            "Flux owns it",
        ),
        (
            "Argo CD, which says so as the one who writes fields alone",
            |c| cart(c).metadata.managed_fields = Some(object(managed_by("argocd-controller"))),
            "Argo CD owns it (field manager argocd-controller)",
        ),
        (
            "Fleet",
            |c| cart(c).metadata.managed_fields = Some(object(managed_by("fleetagent"))),
            "Fleet owns it (field manager fleetagent)",
        ),
        (
            "an upgrade of agents that Argo CD owns, which is to go back by itself",
            |c| {
                (c.rollout.spec.purpose, c.rollout.spec.on_failure) = (Purpose::UpgradeAgents, OnFailure::RollBack);
                daemon_set(c).metadata.managed_fields = Some(object(managed_by("argocd-controller")));
            },
            "DaemonSet routing/agent: Argo CD owns it (field manager argocd-controller): going back",
        ),
        (
            "a DaemonSet that is not listed and would come, too",
            |c| {
                let mut other = daemon_set(c).clone();
                (other.metadata.name, other.metadata.uid) = (Some("other".into()), Some("ds-other".into()));
                c.world.daemon_sets.push(other);
            },
            "DaemonSet routing/other: it is not listed and selects nodes by the label AgentsDaemonSet",
        ),
        (
            "a Deployment that tolerates the taint by name",
            |c| {
                let toleration = json!([{"key": "AgentsDaemonSet", "operator": "Exists"}]);
                c.world.deployments.push(a_deployment("batch", &json!({"containers": [], "tolerations": toleration})));
            },
            "Deployment other/batch: it is not listed and tolerates the taint AgentsDaemonSet",
        ),
        (
            "a query that is no gate for the controller",
            |c| c.world.queries = vec![bad_query()],
            "gate errors: the query has 0 results; expected one number; no batch would pass",
        ),
        (
            "pods that only nodes which are to be tainted let in",
            |c| {
                c.rollout.spec.nodes.exclude_names = vec!["n03".into()];
                let zone = json!([{"key": "topology.kubernetes.io/zone", "operator": "In", "values": ["z0"]}]);
                let required = json!({"nodeSelectorTerms": [{"matchExpressions": zone}]});
                let affinity = json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": required}});
                c.world.pods.push(a_pod("db-0", "n00", json!({"containers": [{"name": "db"}], "affinity": affinity})));
            },
            "1 pods that are not listed would have nowhere to go if they started again (other/db-0)",
        ),
        (
            "an owner",
            |c| {
                let owner =
                    json!([{"apiVersion": "x/v1", "kind": "Shop", "name": "all", "uid": "o", "controller": true}]);
                cart(c).metadata.owner_references = Some(object(owner));
            },
            "Shop all owns it",
        ),
        (
            "selectors that overlap",
            |c| drop(cart(c).spec.as_mut().unwrap().selector.match_labels.as_mut().unwrap().remove("form")),
            "the fat form's selector",
        ),
        (
            "a Service that would lose the slim pods",
            |c| {
                let selector = c.world.services[0].spec.as_mut().unwrap().selector.as_mut().unwrap();
                selector.insert("form".into(), "fat".into());
            },
            "Service cart selects its fat pods and would not select the slim ones",
        ),
        (
            "a container that is not there",
            |c| c.rollout.spec.workloads[0].slim.remove_containers = vec!["agnet".into()],
            "slim.removeContainers names container \"agnet\"; its pods have business, agent",
        ),
        (
            "nothing left",
            |c| c.rollout.spec.workloads[0].slim.remove_containers = vec!["agent".into(), "business".into()],
            "leaves no container",
        ),
        (
            "a patch that makes no template",
            |c| c.rollout.spec.workloads[0].slim.patch = Some(json!({"spec": {"containers": 3}})),
            "slim.patch makes no pod template",
        ),
        (
            "a budget that never allows",
            |c| {
                c.add_budget("cart", 0);
            },
            "PodDisruptionBudget cart never allows a disruption",
        ),
        (
            "a taint of somebody else",
            |c| {
                let node = c.world.nodes.get_mut("n01").unwrap();
                node.spec.get_or_insert_default().taints =
                    Some(object(json!([{"key": "AgentsDaemonSet", "value": "NO", "effect": "NoExecute"}])));
            },
            "node n01: it has the taint AgentsDaemonSet=NO:NoExecute already",
        ),
        (
            "a label of somebody else",
            |c| {
                let labels = c.world.nodes.get_mut("n01").unwrap().metadata.labels.as_mut().unwrap();
                labels.insert("AgentsDaemonSet".into(), "blue".into());
            },
            "node n01: its label AgentsDaemonSet is",
        ),
        (
            "a selector that matches nothing",
            |c| c.rollout.spec.nodes.selector.match_labels = [("disk".to_owned(), "fast".to_owned())].into(),
            "no node is selected",
        ),
        (
            "a batch of no nodes",
            |c| c.rollout.spec.batches = vec![object(json!({"percent": 100})), object(json!({"count": 1}))],
            "batch 2: it would have no nodes",
        ),
        (
            "percentages that go back",
            |c| c.rollout.spec.batches = vec![object(json!({"percent": 50})), object(json!({"percent": 20}))],
            "percent is 20 after 50",
        ),
        (
            "a query to nowhere",
            |c| {
                let gate = json!({"name": "errors", "url": "prometheus:9090", "query": "up", "max": 1.0});
                c.rollout.spec.gates.prometheus = vec![object(gate)];
            },
            "gate errors: url is \"prometheus:9090\"; expected http://",
        ),
        (
            "rights that the controller has not been given",
            |c| c.world.denied = vec!["it may not patch deployments in namespace shop; add shop".into()],
            "the rollouts' controller: it may not patch deployments in namespace shop; add shop",
        ),
        (
            "pods that would have nowhere to go",
            |c| c.world.pods.push(a_pod("db-0", "n00", json!({"containers": [{"name": "db"}]}))),
            "batch 2: 1 pods that are not listed would have nowhere to go if they started again (other/db-0)",
        ),
    ];
    for (what, change, expected) in rows {
        let mut cluster = fleet();
        change(&mut cluster);
        let found = said(&plan(&cluster.rollout, &cluster.world));
        assert!(found.iter().any(|one| one.contains(expected)), "{what}: expected {expected:?}, found {found:#?}");
    }
}

#[test]
fn pods_that_are_not_listed_are_counted_on_only_where_they_have_room() {
    let mut cluster = fleet();
    cluster.rollout.spec.nodes.exclude_names = vec!["n03".into()];
    let large = json!({"containers": [{"name": "db", "resources": {"requests": {"cpu": "3"}}}]});
    cluster.world.pods.push(a_pod("db-0", "n00", large.clone()));
    assert_eq!(said(&plan(&cluster.rollout, &cluster.world)), [""; 0], "node n03 has four cores");
    // Tolerating pods, those of DaemonSets and those that have ended need no other place.
    let tolerant = json!({"containers": [{"name": "db", "resources": {"requests": {"cpu": "3"}}}], "tolerations": [{"operator": "Exists"}]});
    cluster.world.pods.push(a_pod("everywhere", "n01", tolerant));
    assert_eq!(said(&plan(&cluster.rollout, &cluster.world)), [""; 0]);
    cluster.world.pods.push(a_pod("db-1", "n01", large));
    let found = said(&plan(&cluster.rollout, &cluster.world));
    assert!(found.iter().any(|one| one.contains("1 pods that are not listed")), "two of three cores each: {found:?}");
}

#[test]
fn of_two_rollouts_with_something_in_common_the_first_goes_on() {
    let cluster = fleet();
    let with = |name: &str, uid: &str, created: &str, phase: &str| {
        let mut other = cluster.rollout.clone();
        (other.metadata.name, other.metadata.uid) = (Some(name.into()), Some(uid.into()));
        other.metadata.creation_timestamp = Some(object(json!(created)));
        other.status = Some(object(json!({"phase": phase})));
        let mut world = cluster.world.clone();
        world.rollouts = vec![other];
        said(&plan(&cluster.rollout, &world))
    };
    let (before, after) = ("2026-01-01T00:00:00Z", "2026-01-03T00:00:00Z");
    let refused = |found: Vec<String>| {
        found.iter().any(|one| one.contains("it is under way and has DaemonSet routing/agent, too"))
    };
    assert!(refused(with("other", "r-0", before, "Pending")), "older, and about to begin");
    assert!(refused(with("other", "r-0", after, "Running")), "younger, but under way");
    assert!(!refused(with("other", "r-0", after, "Pending")), "it waits for this one");
    assert!(!refused(with("other", "r-0", before, "Completed")), "it is over");
    assert!(!refused(with("routing", "r-1", before, "Running")), "it is this one");
}

#[test]
fn a_plan_counts_nodes_and_pods_and_warns() {
    let mut cluster = fleet();
    cluster.add_budget("cart", 1);
    cluster.rollout.spec.batches = vec![object(json!({"count": 1})), object(json!({"percent": 50}))];
    let plan = plan(&cluster.rollout, &cluster.world);
    assert_eq!(said(&plan), [""; 0]);
    let sizes: Vec<usize> = plan.batches.iter().map(|batch| batch.nodes.len()).collect();
    assert_eq!((sizes, plan.in_no_batch.len()), (vec![1, 1], 2));
    assert_eq!(plan.batches.iter().map(|batch| batch.untainted_nodes).collect::<Vec<_>>(), [3, 2]);
    assert_eq!(plan.batches[0].moves.len(), 1, "a replica on each of four nodes: {:?}", plan.batches);
    let warned = |what: &str| plan.warnings.iter().any(|one| one.message.contains(what));
    assert!(warned("2 of 4 nodes are in no batch") && warned("allows no disruption now"), "{:?}", plan.warnings);
    // A node of each zone comes in turn.
    let zone = |batch: usize| {
        let node = &cluster.world.nodes[&plan.batches[batch].nodes[0]];
        node.metadata.labels.as_ref().unwrap()["topology.kubernetes.io/zone"].clone()
    };
    assert_ne!(zone(0), zone(1));
}
