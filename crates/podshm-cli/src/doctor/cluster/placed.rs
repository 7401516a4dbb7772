//! Which nodes a DaemonSet goes to, as its controller decides by the node's labels.

use k8s_openapi::api::core::v1::{Node, PodSpec};
use kube::ResourceExt;
use podshm_rollout::is_wanted;

/// Kubelets that are no machine of their own.
const VIRTUAL: &str = "virtual-kubelet";

/// Why its pods don't go to a node; taints and the node's state apart.
pub fn why_not(spec: &PodSpec, node: &Node) -> Option<String> {
    let label = |key: &str| node.labels().get(key).map(String::as_str);
    if let Some(os) = label("kubernetes.io/os").filter(|os| *os != "linux") {
        return Some(format!("its kubernetes.io/os is {os}"));
    }
    if label("type") == Some(VIRTUAL) {
        return Some("it is a virtual node".into());
    }
    let selector = spec.node_selector.iter().flatten();
    if let Some((key, value)) = selector.into_iter().find(|(key, value)| label(key) != Some(value.as_str())) {
        return Some(format!("nodeSelector of the DaemonSet podshmd has {key}: {value}"));
    }
    (!is_wanted(spec, node)).then(|| "nodeAffinity of the DaemonSet podshmd leaves it out".into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn selector_affinity_and_what_kind_of_node_it_is_decide() {
        let node = |labels: Value| -> Node {
            serde_json::from_value(json!({"metadata": {"name": "a", "labels": labels}})).expect("a node")
        };
        let spec = |more: Value| -> PodSpec {
            let mut spec = json!({"containers": []});
            spec.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
            serde_json::from_value(spec).expect("a pod's spec")
        };
        let linux = node(json!({"kubernetes.io/os": "linux", "pool": "shared", "size": "8"}));
        let selector = |key: &str, value: &str| spec(json!({"nodeSelector": {key: value}}));
        let affinity = |what: &str, key: &str, operator: &str, values: Value| {
            let term = json!({what: [{"key": key, "operator": operator, "values": values}]});
            spec(
                json!({"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [term]}}}}),
            )
        };
        let labels = |key: &str, operator: &str, values: Value| affinity("matchExpressions", key, operator, values);
        for (spec, expected) in [
            (spec(json!({})), true),
            (selector("pool", "shared"), true),
            (selector("pool", "other"), false),
            (selector("none", ""), false),
            (labels("pool", "In", json!(["x", "shared"])), true),
            (labels("pool", "NotIn", json!(["shared"])), false),
            (labels("none", "NotIn", json!(["shared"])), true),
            (labels("none", "Exists", Value::Null), false),
            (labels("none", "DoesNotExist", Value::Null), true),
            (labels("size", "Gt", json!(["4"])), true),
            (labels("size", "Lt", json!(["4"])), false),
            (affinity("matchFields", "metadata.name", "In", json!(["a"])), true),
            (affinity("matchFields", "metadata.name", "NotIn", json!(["a"])), false),
        ] {
            assert_eq!(why_not(&spec, &linux).is_none(), expected, "{spec:?}");
        }
        let says = |labels: Value| why_not(&spec(json!({})), &node(labels)).unwrap_or_default();
        assert!(says(json!({"kubernetes.io/os": "windows"})).contains("windows"));
        assert!(says(json!({"kubernetes.io/os": "linux", "type": "virtual-kubelet"})).contains("virtual"));
    }
}
