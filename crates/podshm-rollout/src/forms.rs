//! A workload's slim form, made of its fat one.

use crate::world::{name, selector};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Toleration;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use podshm_api::DRIVER;
use podshm_api::rollout::{AgentRollout, MADE_BY, MADE_BY_UID, TEMPLATE, Workload};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use xxhash_rust::xxh3::xxh3_64;

/// Why there is no slim form.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FormError {
    /// It names a container that is not there.
    #[error("{workload}: slim.{field} names container {container:?}; its pods have {found}")]
    NoContainer {
        /// `namespace/name`
        workload: String,
        /// Field of the spec.
        field: &'static str,
        /// What it names.
        container: String,
        /// What there is.
        found: String,
    },
    /// Nothing would be left.
    #[error("{workload}: slim.removeContainers leaves no container; leave the business's own")]
    Empty {
        /// `namespace/name`
        workload: String,
    },
    /// One form's selector would select the other's pods.
    #[error(
        "{workload}: the {selects} form's selector {selector} selects pods of the other form too; give slim.labels a value of its own for a label \
         that the fat form's selector has and no Service selects by (a Deployment's selector can't be changed: make the Deployment anew with one \
         more label, say form: fat, beforehand)"
    )]
    Overlap {
        /// `namespace/name`
        workload: String,
        /// fat or slim
        selects: &'static str,
        /// As labels.
        selector: String,
    },
    /// It has no selector, no template, or the patch makes nonsense of it.
    #[error("{workload}: {what}")]
    Malformed {
        /// `namespace/name`
        workload: String,
        /// What.
        what: String,
    },
}

/// What the slim form of a workload is called.
pub fn slim_name(workload: &Workload) -> String {
    format!("{}-slim", workload.name)
}

/// The slim form, with no replicas.
pub fn slim_form(workload: &Workload, fat: &Deployment, rollout: &AgentRollout) -> Result<Deployment, FormError> {
    let (of, mark) = (workload.full_name(), &rollout.spec.mark);
    let malformed = |what: String| FormError::Malformed { workload: of.clone(), what };
    let slim = &workload.slim;
    let mut spec = fat.spec.clone().ok_or_else(|| malformed("the Deployment has no spec".into()))?;
    let fat_selector = selector(&spec.selector);
    let fat_labels = spec.template.metadata.as_ref().and_then(|meta| meta.labels.clone()).unwrap_or_default();

    spec.replicas = Some(0);
    spec.selector.match_labels.get_or_insert_default().extend(slim.labels.clone());
    let meta = spec.template.metadata.get_or_insert_default();
    meta.labels.get_or_insert_default().extend(slim.labels.clone());
    let pod = spec.template.spec.get_or_insert_default();
    let names: Vec<String> =
        pod.containers.iter().chain(pod.init_containers.iter().flatten()).map(|one| one.name.clone()).collect();
    let lists = [
        ("removeContainers", slim.remove_containers.iter().collect::<Vec<_>>()),
        ("images", slim.images.keys().collect()),
    ];
    for (field, wanted) in lists {
        if let Some(missing) = wanted.into_iter().find(|wanted| !names.contains(*wanted)) {
            let (workload, found) = (of.clone(), names.join(", "));
            return Err(FormError::NoContainer { workload, field, container: missing.clone(), found });
        }
    }
    let stays = |name: &String| !slim.remove_containers.contains(name);
    pod.containers.retain(|one| stays(&one.name));
    if let Some(init) = &mut pod.init_containers {
        init.retain(|one| stays(&one.name));
    }
    if pod.containers.is_empty() {
        return Err(FormError::Empty { workload: of });
    }
    for container in pod.containers.iter_mut().chain(pod.init_containers.iter_mut().flatten()) {
        if let Some(image) = slim.images.get(&container.name) {
            container.image = Some(image.clone());
        }
    }
    pod.node_selector.get_or_insert_default().insert(mark.key.clone(), mark.value.clone());
    let toleration = Toleration {
        key: Some(mark.key.clone()),
        operator: Some("Equal".into()),
        value: Some(mark.value.clone()),
        effect: Some("NoSchedule".into()),
        ..Toleration::default()
    };
    if !pod.tolerations.iter().flatten().any(|one| one == &toleration) {
        pod.tolerations.get_or_insert_default().push(toleration);
    }
    let mut template = serde_json::to_value(&spec.template).map_err(|error| malformed(error.to_string()))?;
    if let Some(domain) = &slim.domain {
        join(&mut template["spec"], domain, slim.dev_shm);
    }
    if let Some(patch) = &slim.patch {
        merge(&mut template, patch);
    }
    let made_with = format!("{:016x}", xxh3_64(template.to_string().as_bytes()));
    spec.template = serde_json::from_value(template)
        .map_err(|error| malformed(format!("slim.patch makes no pod template: {error}")))?;

    let slim_labels = spec.template.metadata.as_ref().and_then(|meta| meta.labels.clone()).unwrap_or_default();
    let slim_selector = selector(&spec.selector);
    let overlap = |selects, selector: &podshm_api::rollout::Selector| FormError::Overlap {
        workload: of.clone(),
        selects,
        selector: serde_json::to_string(&selector.match_labels).unwrap_or_default(),
    };
    if fat_selector.matches(&slim_labels) {
        return Err(overlap("fat", &fat_selector));
    }
    if slim_selector.matches(&fat_labels) {
        return Err(overlap("slim", &slim_selector));
    }
    if !slim_selector.matches(&slim_labels) {
        return Err(malformed("slim.patch takes labels away that the slim form's selector wants".into()));
    }
    let labels = BTreeMap::from([(MADE_BY.to_owned(), name(&rollout.metadata).to_owned())]);
    let uid = rollout.metadata.uid.clone().unwrap_or_default();
    let meta = ObjectMeta {
        name: Some(slim_name(workload)),
        namespace: fat.metadata.namespace.clone(),
        labels: Some(
            fat.metadata
                .labels
                .clone()
                .unwrap_or_default()
                .into_iter()
                .chain(slim.labels.clone())
                .chain(labels)
                .collect(),
        ),
        annotations: Some([(MADE_BY_UID.to_owned(), uid), (TEMPLATE.to_owned(), made_with)].into()),
        ..ObjectMeta::default()
    };
    debug_assert_eq!(name(&fat.metadata), workload.name);
    Ok(Deployment { metadata: meta, spec: Some(spec), status: None })
}

/// Gives all containers of a pod's spec a domain's volume, in place of what the pod has of its own there: an agent in the pod has its sockets, and
/// its /dev/shm, in volumes that nobody outside sees.
pub fn join(pod: &mut Value, domain: &str, dev_shm: bool) {
    let volume = json!({"name": VOLUME, "csi": {"driver": DRIVER, "volumeAttributes": {"domain": domain}}});
    let is_same = |found: &Value| {
        found["csi"]["driver"] == DRIVER && found["csi"]["volumeAttributes"]["domain"].as_str() == Some(domain)
    };
    put(&mut pod["volumes"], "name", volume, is_same);
    for list in ["containers", "initContainers"] {
        for container in pod.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
            let mounts = &mut container["volumeMounts"];
            let sockets = json!({"name": VOLUME, "mountPath": "/run/podshm"});
            put(mounts, "mountPath", sockets, |found| found["name"] == VOLUME && found.get("subPath").is_none());
            if dev_shm {
                let memory = json!({"name": VOLUME, "mountPath": "/dev/shm", "subPath": "shm"});
                put(mounts, "mountPath", memory, |found| found["name"] == VOLUME && found["subPath"] == "shm");
            }
        }
    }
}

/// What a domain's volume is called in a pod.
const VOLUME: &str = "podshm";

/// Puts one into a list, in place of another with its key that does not do.
fn put(list: &mut Value, key: &str, one: Value, does: impl Fn(&Value) -> bool) {
    let Some(list) = list.as_array_mut() else {
        *list = json!([one]);
        return;
    };
    match list.iter_mut().find(|found| found[key] == one[key]) {
        Some(found) if does(found) => {}
        Some(found) => *found = one,
        None => list.push(one),
    }
}

/// RFC 7386.
fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    let Some(target) = target.as_object_mut() else { return };
    for (key, value) in patch {
        match value {
            Value::Null => drop(target.remove(key)),
            _ => merge(target.entry(key.clone()).or_insert(Value::Null), value),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_is_added_once_and_to_init_containers_too() {
        let mut pod = json!({
            "containers": [{"name": "business", "volumeMounts": [{"name": "own", "mountPath": "/var/lib/own"}]}],
            "initContainers": [{"name": "helper"}],
        });
        join(&mut pod, "routing", true);
        let once = pod.clone();
        join(&mut pod, "routing", true);
        assert_eq!(pod, once);
        assert_eq!(pod["volumes"][0]["csi"]["volumeAttributes"]["domain"], "routing");
        let paths = |list: &str| {
            let mounts = pod[list][0]["volumeMounts"].as_array().unwrap();
            mounts.iter().map(|one| one["mountPath"].clone()).collect::<Vec<_>>()
        };
        assert_eq!(paths("containers"), ["/var/lib/own", "/run/podshm", "/dev/shm"], "what is elsewhere stays");
        assert_eq!(paths("initContainers"), ["/run/podshm", "/dev/shm"]);
    }

    /// With the names of `deploy/schemes/sidecar.yaml`: its sockets and its /dev/shm were between the agent in the pod and the business.
    #[test]
    fn the_pods_own_sockets_and_memory_give_way_to_the_domains() {
        let mounts = json!([
            {"name": "shm", "mountPath": "/dev/shm"}, {"name": "podshm", "mountPath": "/run/podshm", "readOnly": true},
        ]);
        let volumes = json!([{"name": "shm", "emptyDir": {}}, {"name": "podshm", "emptyDir": {}}]);
        let fat = json!({"containers": [{"name": "business", "volumeMounts": mounts}], "volumes": volumes});
        let mut pod = fat.clone();
        join(&mut pod, "routing", true);
        let csi = json!({"driver": DRIVER, "volumeAttributes": {"domain": "routing"}});
        assert_eq!(pod["volumes"], json!([{"name": "shm", "emptyDir": {}}, {"name": "podshm", "csi": csi}]));
        let memory = json!({"name": "podshm", "mountPath": "/dev/shm", "subPath": "shm"});
        assert_eq!(pod["containers"][0]["volumeMounts"], json!([memory, mounts[1]]));
        // A pod whose own sockets are in a volume of another name.
        let mut pod = fat;
        pod["containers"][0]["volumeMounts"] = json!([{"name": "sockets", "mountPath": "/run/podshm"}]);
        join(&mut pod, "routing", false);
        assert_eq!(pod["containers"][0]["volumeMounts"], json!([{"name": "podshm", "mountPath": "/run/podshm"}]));
    }
}
