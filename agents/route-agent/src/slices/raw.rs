//! The JSON as it comes: every field may be missing, null or foreign.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer};

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Slice {
    pub api_version: Option<String>,
    pub kind: Option<String>,
    #[serde(default, deserialize_with = "or_default")]
    pub metadata: Metadata,
    #[serde(default, deserialize_with = "or_default")]
    pub address_type: String,
    #[serde(default, deserialize_with = "or_default")]
    pub endpoints: Vec<Endpoint>,
    #[serde(default, deserialize_with = "or_default")]
    pub ports: Vec<Port>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Metadata {
    #[serde(default, deserialize_with = "or_default")]
    pub namespace: String,
    #[serde(default, deserialize_with = "or_default")]
    pub name: String,
    pub resource_version: Option<String>,
    #[serde(default, deserialize_with = "or_default")]
    pub labels: BTreeMap<String, Option<String>>,
}

#[derive(Deserialize)]
pub(crate) struct Port {
    pub name: Option<String>,
    pub port: Option<i64>,
    pub protocol: Option<String>,
}

#[derive(Deserialize)]
pub(crate) struct Endpoint {
    #[serde(default, deserialize_with = "or_default")]
    pub addresses: Vec<String>,
    #[serde(default, deserialize_with = "or_default")]
    pub conditions: Conditions,
    pub zone: Option<String>,
    #[serde(default, deserialize_with = "or_default")]
    pub hints: Hints,
}

#[derive(Default, Deserialize)]
pub(crate) struct Conditions {
    pub ready: Option<bool>,
    pub serving: Option<bool>,
    pub terminating: Option<bool>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Hints {
    #[serde(default, deserialize_with = "or_default")]
    pub for_zones: Vec<ForZone>,
}

#[derive(Deserialize)]
pub(crate) struct ForZone {
    #[serde(default, deserialize_with = "or_default")]
    pub name: String,
}

/// Only what names an object: what can still be made out of one whose rest is wrong.
#[derive(Deserialize)]
pub(crate) struct Named {
    pub metadata: NamedMetadata,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct NamedMetadata {
    pub namespace: Option<String>,
    pub name: Option<String>,
    pub resource_version: Option<String>,
}

/// What the API server says in an ERROR event.
#[derive(Deserialize)]
pub(crate) struct Status {
    pub code: Option<u16>,
    pub message: Option<String>,
}

/// Null is the same as missing.
fn or_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(from: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or_default())
}
