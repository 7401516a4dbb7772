//! The custom resources' definitions, as the chart has them.

use crate::domain::ShmDomain;
use crate::rollout::AgentRollout;
use kube::CustomResourceExt;
use serde_json::Value;
use std::collections::BTreeMap;

/// Plural names: each has a file of that name in `deploy/chart/files`.
pub const KINDS: [&str; 2] = ["shmdomains", "agentrollouts"];

/// The definition of a kind; none of those that are not ours.
pub fn crd(plural: &str) -> Option<Value> {
    let crd = match plural {
        "shmdomains" => ShmDomain::crd(),
        "agentrollouts" => AgentRollout::crd(),
        _ => return None,
    };
    let mut crd = serde_json::to_value(crd).expect("a definition is JSON");
    unwrap(&mut crd);
    Some(sorted(crd))
}

/// As it is written into the chart.
pub fn text(plural: &str) -> Option<String> {
    crd(plural).map(|crd| format!("{crd:#}\n"))
}

/// Whether serde_json keeps fields as they were put in, or sorts them, is up to whatever else is built along.
fn sorted(value: Value) -> Value {
    match value {
        Value::Object(fields) => {
            let fields: BTreeMap<String, Value> = fields.into_iter().collect();
            fields.into_iter().map(|(name, value)| (name, sorted(value))).collect()
        }
        Value::Array(values) => values.into_iter().map(sorted).collect(),
        value => value,
    }
}

/// `kubectl explain` wraps a description itself: lines of the source are none of it.
fn unwrap(value: &mut Value) {
    match value {
        Value::Object(fields) => fields.iter_mut().for_each(|(name, value)| match value {
            Value::String(text) if name == "description" => *text = text.replace('\n', " "),
            value => unwrap(value),
        }),
        Value::Array(values) => values.iter_mut().for_each(unwrap),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_chart_has_the_type_as_it_is() {
        for kind in KINDS {
            let chart = format!("{}/../../deploy/chart/files/{kind}.json", env!("CARGO_MANIFEST_DIR"));
            let found = std::fs::read_to_string(&chart).unwrap_or_default();
            assert!(Some(found) == text(kind), "{chart} is not what the type says; run scripts/manifests");
        }
    }

    #[test]
    fn every_field_is_explained() {
        fn check(path: &str, schema: &Value) {
            let is_explained = schema["description"].as_str().is_some_and(|text| text.len() > 10);
            assert!(is_explained, "{path} has no text for kubectl explain");
            let properties = schema["properties"].as_object().or_else(|| schema["items"]["properties"].as_object());
            for (name, schema) in properties.into_iter().flatten() {
                check(&format!("{path}.{name}"), schema);
            }
        }
        for kind in KINDS {
            let crd = crd(kind).unwrap();
            let schema = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
            for part in ["spec", "status"] {
                check(&format!("{kind}.{part}"), &schema["properties"][part]);
            }
        }
    }
}
