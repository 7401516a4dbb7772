//! Gates that Jobs answer.

use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Toleration;
use kube::api::{Api, PostParams};
use kube::{Client, Resource, ResourceExt};
use podshm_api::rollout::{AgentRollout, JobGate, MADE_BY, Verdict, VerdictResult};
use serde_json::json;

/// What a Job's name may have: its pods have it as a label's value.
const NAME: usize = 63;

/// After a failure that somebody has looked at there is another one. One that would be too long is its beginning and a hash.
fn job_name(rollout: &str, batch: u32, failures: u32, gate: &str) -> String {
    let name = format!("{rollout}-{batch}-{failures}-{gate}");
    if name.len() <= NAME {
        return name;
    }
    let hash = xxhash_rust::xxh3::xxh3_64(name.as_bytes());
    let beginning: String = name.chars().take(NAME - 17).collect();
    format!("{}-{hash:016x}", beginning.trim_end_matches(['-', '.']))
}

/// The Job, whose pods may run on nodes that have the rollout's taint: those are what it is to try.
fn job_object(rollout: &AgentRollout, gate: &JobGate, name: &str) -> serde_json::Result<Job> {
    let mut job: Job = serde_json::from_value(json!({
        "metadata": {
            "name": name, "namespace": gate.namespace, "labels": {MADE_BY: rollout.name_any()},
            "ownerReferences": rollout.owner_ref(&()).map(|owner| vec![owner]).unwrap_or_default(),
        },
        "spec": gate.spec,
    }))?;
    if let Some(pod) = job.spec.as_mut().and_then(|spec| spec.template.spec.as_mut()) {
        let mark = &rollout.spec.mark;
        pod.tolerations.get_or_insert_default().push(Toleration {
            key: Some(mark.key.clone()),
            operator: Some("Equal".into()),
            value: Some(mark.value.clone()),
            effect: Some("NoSchedule".into()),
            toleration_seconds: None,
        });
    }
    Ok(job)
}

/// What a Job gate says; the Job is made once a batch's nodes are all converted.
pub(super) async fn job(client: &Client, rollout: &AgentRollout, gate: &JobGate) -> Verdict {
    let status = rollout.status.clone().unwrap_or_default();
    let verdict = |result, message: String| Verdict { gate: gate.name.clone(), result, message };
    if status.soaking_since == 0 {
        return verdict(VerdictResult::Waiting, "runs once the batch is converted".into());
    }
    let name = job_name(&rollout.name_any(), status.batch, status.failures, &gate.name);
    let jobs = Api::<Job>::namespaced(client.clone(), &gate.namespace);
    let found = match jobs.get_opt(&name).await {
        Ok(Some(found)) => found,
        Ok(None) => {
            let made = match job_object(rollout, gate, &name) {
                Ok(job) => jobs.create(&PostParams::default(), &job).await.map(drop).map_err(|error| error.to_string()),
                Err(error) => Err(format!("its spec is no Job's: {error}")),
            };
            return match made {
                Ok(()) => verdict(VerdictResult::Waiting, format!("Job {}/{name} begins", gate.namespace)),
                Err(error) => {
                    verdict(VerdictResult::Failed, format!("Job {}/{name} can't be created: {error}", gate.namespace))
                }
            };
        }
        Err(error) => return verdict(VerdictResult::Waiting, error.to_string()),
    };
    let conditions = found.status.and_then(|status| status.conditions).unwrap_or_default();
    let is = |what: &str| conditions.iter().find(|one| one.type_ == what && one.status == "True");
    match (is("Complete"), is("Failed")) {
        (Some(_), _) => verdict(VerdictResult::Passed, format!("Job {}/{name} succeeded", gate.namespace)),
        (_, Some(why)) => {
            let why = why.message.clone().unwrap_or_default();
            verdict(VerdictResult::Failed, format!("Job {}/{name} failed: {why}", gate.namespace))
        }
        _ => verdict(VerdictResult::Waiting, format!("Job {}/{name} runs", gate.namespace)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    #[test]
    fn a_jobs_name_fits_whatever_it_is_made_of_and_no_two_are_the_same() {
        assert_eq!(job_name("routing", 2, 0, "smoke"), "routing-2-0-smoke");
        let long = |failures| job_name(&"r".repeat(63), 12, failures, &"g".repeat(40));
        assert!(long(0).len() <= NAME && long(0) != long(1), "{}", long(0));
        let dots = job_name(&format!("{}.{}", "r".repeat(45), "x".repeat(17)), 1, 0, "g");
        assert!(dots.len() <= NAME && !dots.contains(".-") && !dots.contains("--"), "{dots}");
    }

    #[test]
    fn a_jobs_pods_may_run_on_the_nodes_that_they_are_to_try() {
        let object = json!({
            "apiVersion": "podshm.dev/v1alpha1", "kind": "AgentRollout", "metadata": {"name": "r", "uid": "u"},
            "spec": {"agents": [], "batches": []},
        });
        let rollout: AgentRollout = serde_json::from_value(object).unwrap();
        let container = json!({"name": "try", "image": "try", "command": ["/try"]});
        let gate = |spec: Value| JobGate { name: "smoke".into(), namespace: "shop".into(), spec };
        let fine = gate(json!({"template": {"spec": {"containers": [container], "tolerations": [{"key": "gpu"}]}}}));
        let job = job_object(&rollout, &fine, "r-1-0-smoke").unwrap();
        let all = job.spec.unwrap().template.spec.unwrap().tolerations.unwrap();
        let keys: Vec<_> = all.iter().map(|one| one.key.as_deref().unwrap()).collect();
        assert_eq!(keys, ["gpu", "AgentsDaemonSet"]);
        assert_eq!((all[1].value.as_deref(), all[1].effect.as_deref()), (Some("YES"), Some("NoSchedule")));
        assert!(job_object(&rollout, &gate(json!({"template": 3})), "r-1-0-smoke").is_err());
    }
}
