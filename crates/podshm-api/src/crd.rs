//! The custom resource's definition, as the chart has it.

use crate::domain::ShmDomain;
use kube::CustomResourceExt;
use serde_json::Value;

/// The definition of `shmdomains.podshm.dev`.
pub fn crd() -> Value {
    let mut crd = serde_json::to_value(ShmDomain::crd()).expect("a definition is JSON");
    unwrap(&mut crd);
    crd
}

/// As it is written into the chart.
pub fn text() -> String {
    format!("{:#}\n", crd())
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
        let chart = concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy/chart/files/shmdomains.json");
        let found = std::fs::read_to_string(chart).unwrap_or_default();
        assert!(found == text(), "{chart} is not what the type says; run scripts/manifests");
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
        let schema = &crd()["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
        for part in ["spec", "status"] {
            check(part, &schema["properties"][part]);
        }
    }
}
