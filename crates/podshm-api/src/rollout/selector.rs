//! Label selectors, with the meaning that Kubernetes gives them.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Labels that are wanted, all of them. Nothing said is everything.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct Selector {
    /// Labels with these values.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub match_labels: BTreeMap<String, String>,
    /// More than a value can say.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub match_expressions: Vec<Requirement>,
}

/// One label.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Requirement {
    /// Key of the label.
    pub key: String,
    /// What it should be.
    pub operator: Operator,
    /// For In and NotIn.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub values: Vec<String>,
}

/// As in Kubernetes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Operator {
    /// There, with one of the values.
    In,
    /// Not there, or with none of the values.
    NotIn,
    /// There.
    Exists,
    /// Not there.
    DoesNotExist,
}

impl Selector {
    /// Whether labels are as wanted.
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        self.match_labels.iter().all(|(key, value)| labels.get(key) == Some(value))
            && self.match_expressions.iter().all(|one| {
                let found = labels.get(&one.key);
                match one.operator {
                    Operator::In => found.is_some_and(|found| one.values.contains(found)),
                    Operator::NotIn => found.is_none_or(|found| !one.values.contains(found)),
                    Operator::Exists => found.is_some(),
                    Operator::DoesNotExist => found.is_none(),
                }
            })
    }

    /// Whether it says anything about a label.
    pub fn names(&self, key: &str) -> bool {
        self.match_labels.contains_key(key) || self.match_expressions.iter().any(|one| one.key == key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selectors_mean_what_they_mean_in_kubernetes() {
        let labels = BTreeMap::from([("zone".to_owned(), "a".to_owned()), ("gpu".to_owned(), String::new())]);
        let with = |key: &str, operator, values: &[&str]| Selector {
            match_expressions: vec![Requirement {
                key: key.into(),
                operator,
                values: values.iter().map(|value| (*value).to_owned()).collect(),
            }],
            ..Selector::default()
        };
        for (selector, expected) in [
            (Selector::default(), true),
            (Selector { match_labels: labels.clone(), ..Selector::default() }, true),
            (Selector { match_labels: BTreeMap::from([("zone".into(), "b".into())]), ..Selector::default() }, false),
            (with("zone", Operator::In, &["a", "b"]), true),
            (with("zone", Operator::In, &["b"]), false),
            (with("disk", Operator::In, &["b"]), false),
            (with("zone", Operator::NotIn, &["a"]), false),
            (with("disk", Operator::NotIn, &["a"]), true),
            (with("gpu", Operator::Exists, &[]), true),
            (with("disk", Operator::Exists, &[]), false),
            (with("disk", Operator::DoesNotExist, &[]), true),
        ] {
            assert_eq!(selector.matches(&labels), expected, "{selector:?}");
        }
    }
}
