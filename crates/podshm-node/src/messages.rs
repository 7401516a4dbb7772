//! What the kubelet sends and expects: the parts of CSI 1.x (package csi.v1) and of the kubelet's plugin registration that a driver
//! of inline ephemeral volumes needs. Fields that we don't read are left out; protobuf skips them.

use std::collections::HashMap;

/// A message without fields, or none that we read.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct Nothing {}

/// Identity: who we are.
#[derive(Clone, PartialEq, prost::Message)]
pub struct PluginInfo {
    /// As in the CSIDriver object.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Ours.
    #[prost(string, tag = "2")]
    pub vendor_version: String,
}

/// Identity: none of them, since there is no controller.
#[derive(Clone, PartialEq, prost::Message)]
pub struct PluginCapabilities {}

/// Identity: whether we can serve.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ProbeResponse {
    /// google.protobuf.BoolValue.
    #[prost(message, optional, tag = "1")]
    pub ready: Option<bool>,
}

/// Node: a volume for a pod.
#[derive(Clone, PartialEq, prost::Message)]
pub struct PublishRequest {
    /// The kubelet's name for it: `csi-` and a hash of pod and volume.
    #[prost(string, tag = "1")]
    pub volume_id: String,
    /// Where it is to be mounted.
    #[prost(string, tag = "4")]
    pub target_path: String,
    /// How it is to be used.
    #[prost(message, optional, tag = "5")]
    pub volume_capability: Option<VolumeCapability>,
    /// What the pod asks for, and what the kubelet says of the pod.
    #[prost(map = "string, string", tag = "8")]
    pub volume_context: HashMap<String, String>,
}

/// How a volume is to be used.
#[derive(Clone, PartialEq, prost::Message)]
pub struct VolumeCapability {
    /// As a block device.
    #[prost(message, optional, tag = "1")]
    pub block: Option<Nothing>,
    /// As a file system.
    #[prost(message, optional, tag = "2")]
    pub mount: Option<Nothing>,
}

/// Node: a volume's end.
#[derive(Clone, PartialEq, prost::Message)]
pub struct UnpublishRequest {
    /// The volume.
    #[prost(string, tag = "1")]
    pub volume_id: String,
    /// Where it is mounted.
    #[prost(string, tag = "2")]
    pub target_path: String,
}

/// Node: none, since volumes are neither staged nor grown.
#[derive(Clone, PartialEq, prost::Message)]
pub struct NodeCapabilities {}

/// Node: which one this is.
#[derive(Clone, PartialEq, prost::Message)]
pub struct NodeInfo {
    /// Its name.
    #[prost(string, tag = "1")]
    pub node_id: String,
}

/// Registration: what the kubelet is to register.
#[derive(Clone, PartialEq, prost::Message)]
pub struct RegistrationInfo {
    /// `CSIPlugin`.
    #[prost(string, tag = "1")]
    pub kind: String,
    /// The driver's name.
    #[prost(string, tag = "2")]
    pub name: String,
    /// The driver's socket, as the kubelet finds it.
    #[prost(string, tag = "3")]
    pub endpoint: String,
    /// CSI versions.
    #[prost(string, repeated, tag = "4")]
    pub supported_versions: Vec<String>,
}

/// Registration: whether the kubelet has.
#[derive(Clone, PartialEq, prost::Message)]
pub struct RegistrationStatus {
    /// It has.
    #[prost(bool, tag = "1")]
    pub plugin_registered: bool,
    /// Why not.
    #[prost(string, tag = "2")]
    pub error: String,
}
