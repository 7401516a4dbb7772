//! The pod that tries a node's domain before business comes.

use k8s_openapi::api::core::v1::Pod;
use kube::{Resource, ResourceExt};
use podshm_api::rollout::{AgentRollout, MADE_BY, VERIFIES, Verification};
use podshm_rollout::join;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// A value that fits a label: itself, or its beginning and a hash.
pub(super) fn label_value(text: &str) -> String {
    if text.len() <= 63 {
        return text.into();
    }
    let hash = xxhash_rust::xxh3::xxh3_64(text.as_bytes());
    format!("{}-{hash:016x}", text.chars().take(40).collect::<String>())
}

/// A pod as `restricted` wants it, kept to a node, with the domain's volume.
pub(super) fn verification_pod(rollout: &AgentRollout, gate: &Verification, node: &str) -> anyhow::Result<Pod> {
    let name = rollout.name_any();
    let env: Vec<Value> = gate.env.iter().map(|(name, value)| json!({"name": name, "value": value})).collect();
    let mark = &rollout.spec.mark;
    let mut pod = json!({
        "metadata": {
            "name": label_value(&format!("podshm-verify-{name}-{node}")),
            "namespace": gate.namespace,
            "annotations": {VERIFIES: node},
            "labels": BTreeMap::from([(MADE_BY, label_value(&name)), (VERIFIES, label_value(node))]),
        },
        "spec": {
            "restartPolicy": "Never",
            "activeDeadlineSeconds": gate.timeout_seconds.max(1),
            "automountServiceAccountToken": false,
            "enableServiceLinks": false,
            "serviceAccountName": gate.service_account,
            "terminationGracePeriodSeconds": 1,
            "tolerations": [{"key": mark.key, "operator": "Equal", "value": mark.value, "effect": "NoSchedule"}],
            "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
                {"matchFields": [{"key": "metadata.name", "operator": "In", "values": [node]}]},
            ]}}},
            "securityContext": {"runAsNonRoot": true, "runAsUser": 65532, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [{
                "name": "verify",
                "image": gate.image,
                "command": gate.command,
                "env": env,
                "terminationMessagePolicy": "FallbackToLogsOnError",
                "resources": {"requests": {"cpu": "10m", "memory": "16Mi"}, "limits": {"memory": "64Mi"}},
                "securityContext": {"allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "capabilities": {"drop": ["ALL"]}},
            }],
        },
    });
    if let Some(domain) = &rollout.spec.domain {
        join(&mut pod["spec"], domain, gate.dev_shm);
    }
    let owner = rollout.owner_ref(&()).map(|owner| json!([owner]));
    pod["metadata"]["ownerReferences"] = owner.unwrap_or(json!([]));
    Ok(serde_json::from_value(pod)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rollout() -> AgentRollout {
        let object = json!({
            "apiVersion": "podshm.dev/v1alpha1", "kind": "AgentRollout", "metadata": {"name": "r", "uid": "u"},
            "spec": {"agents": [], "batches": [], "domain": "routing"},
        });
        serde_json::from_value(object).unwrap()
    }

    #[test]
    fn a_verification_pod_has_the_domains_volume_and_names_that_fit() {
        let gate = Verification { namespace: "shop".into(), image: "podshm:1".into(), ..Verification::default() };
        let long = "n".repeat(200);
        let pod = verification_pod(&rollout(), &gate, &long).unwrap();
        assert!(pod.name_any().len() <= 63 && pod.labels()[VERIFIES].len() <= 63);
        assert_ne!(pod.name_any(), verification_pod(&rollout(), &gate, &format!("{long}x")).unwrap().name_any());
        let spec = pod.spec.unwrap();
        assert_eq!(
            spec.volumes.unwrap()[0].csi.as_ref().unwrap().volume_attributes.as_ref().unwrap()["domain"],
            "routing"
        );
        assert_eq!(pod.metadata.owner_references.unwrap()[0].uid, "u");
    }
}
