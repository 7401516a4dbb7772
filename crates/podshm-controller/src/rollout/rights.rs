//! Whether the API server will let us do what a rollout needs: asked before anything is touched, since half a rollout is worse than none.

use k8s_openapi::api::authorization::v1::{ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec};
use kube::api::{Api, PostParams};
use kube::{Client, ResourceExt};
use podshm_api::rollout::{AgentRollout, Purpose};
use std::collections::{BTreeMap, BTreeSet};

/// Something that is done to a kind in a namespace; everywhere where that is empty.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Right {
    namespace: String,
    group: &'static str,
    resource: &'static str,
    verb: &'static str,
}

/// What a rollout does.
fn needed(rollout: &AgentRollout) -> BTreeSet<Right> {
    let spec = &rollout.spec;
    let mut all = BTreeSet::new();
    let mut need = |namespace: &str, group, resource, verbs: &[&'static str]| {
        let right = |verb: &&'static str| Right { namespace: namespace.to_owned(), group, resource, verb };
        all.extend(verbs.iter().map(right));
    };
    need("", "podshm.dev", "agentrollouts", &["patch"]);
    need("", "", "nodes", &["patch"]);
    for agent in spec.agents.iter().filter(|_| spec.purpose == Purpose::UpgradeAgents) {
        need(&agent.namespace, "", "pods", &["delete"]);
        need(&agent.namespace, "apps", "daemonsets", &["patch"]);
        need(&agent.namespace, "apps", "controllerrevisions", &["get"]);
    }
    for workload in &spec.workloads {
        need(&workload.namespace, "apps", "deployments", &["get", "create", "patch", "delete"]);
        need(&workload.namespace, "", "pods", &["patch"]);
    }
    if let Some(gate) = &spec.gates.verification {
        need(&gate.namespace, "", "pods", &["create", "deletecollection"]);
    }
    for gate in &spec.gates.jobs {
        need(&gate.namespace, "batch", "jobs", &["get", "create"]);
    }
    all
}

/// What of that is not allowed, in words, with what to change.
pub(super) async fn missing(client: &Client, rollout: &AgentRollout) -> anyhow::Result<Vec<String>> {
    let reviews = Api::<SelfSubjectAccessReview>::all(client.clone());
    let mut denied = Vec::new();
    for right in needed(rollout) {
        let attributes = ResourceAttributes {
            namespace: Some(right.namespace.clone()).filter(|namespace| !namespace.is_empty()),
            group: Some(right.group.into()),
            resource: Some(right.resource.into()),
            verb: Some(right.verb.into()),
            ..ResourceAttributes::default()
        };
        let spec = SelfSubjectAccessReviewSpec { resource_attributes: Some(attributes), ..Default::default() };
        let review = SelfSubjectAccessReview { spec, ..SelfSubjectAccessReview::default() };
        let said = reviews.create(&PostParams::default(), &review).await?;
        if !said.status.is_some_and(|status| status.allowed) {
            denied.push(right);
        }
    }
    tracing::debug!(rollout = rollout.name_any(), denied = denied.len(), "rights");
    Ok(in_words(&denied))
}

fn in_words(denied: &[Right]) -> Vec<String> {
    let mut by_place: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for right in denied {
        by_place.entry(&right.namespace).or_default().push(format!("{} {}", right.verb, right.resource));
    }
    let in_words = |(place, what): (&str, Vec<String>)| match place {
        "" => format!("it may not {}; see its ClusterRole", what.join(", ")),
        _ => {
            let what = what.join(", ");
            format!("it may not {what} in namespace {place}; add {place} to rollouts.namespaces of the chart")
        }
    };
    by_place.into_iter().map(in_words).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn only_what_a_rollout_does_is_needed_and_what_is_not_allowed_is_said_by_namespace() {
        let object = json!({
            "apiVersion": "podshm.dev/v1alpha1", "kind": "AgentRollout", "metadata": {"name": "r"},
            "spec": {
                "agents": [{"namespace": "routing", "name": "agent"}], "batches": [{"count": 1}],
                "gates": {"verification": {"namespace": "verify", "image": "podshm"}},
                "workloads": [{"namespace": "shop", "name": "cart", "slim": {"labels": {"form": "slim"}}}],
            },
        });
        let mut rollout: AgentRollout = serde_json::from_value(object).unwrap();
        let places = |rollout: &AgentRollout| {
            needed(rollout).into_iter().map(|right| right.namespace).collect::<BTreeSet<_>>().into_iter().collect()
        };
        let found: Vec<String> = places(&rollout);
        assert_eq!(found, ["", "shop", "verify"], "agents come by themselves");
        rollout.spec.purpose = Purpose::UpgradeAgents;
        let found: Vec<String> = places(&rollout);
        assert_eq!(found, ["", "routing", "shop", "verify"]);
        let denied: Vec<Right> = needed(&rollout).into_iter().filter(|right| right.namespace == "verify").collect();
        assert_eq!(
            in_words(&denied),
            [
                "it may not create pods, deletecollection pods in namespace verify; add verify to rollouts.namespaces of the chart"
            ]
        );
    }
}
