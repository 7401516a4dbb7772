//! What the container runtime and an NRI plugin say to each other: the parts of ttrpc's and of NRI's messages (package
//! nri.pkg.api.v1alpha1) that we read or write. Protobuf skips the others.

/// ttrpc: a call.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Request {
    /// Package and service.
    #[prost(string, tag = "1")]
    pub service: String,
    /// Its method.
    #[prost(string, tag = "2")]
    pub method: String,
    /// What it is given.
    #[prost(bytes = "vec", tag = "3")]
    pub payload: Vec<u8>,
}

/// ttrpc: an answer.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Response {
    /// Absent, or of code 0, where it succeeded.
    #[prost(message, optional, tag = "1")]
    pub status: Option<Status>,
    /// What it returns.
    #[prost(bytes = "vec", tag = "2")]
    pub payload: Vec<u8>,
}

/// gRPC's status.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Status {
    /// gRPC's code.
    #[prost(int32, tag = "1")]
    pub code: i32,
    /// For people.
    #[prost(string, tag = "2")]
    pub message: String,
}

/// Runtime.RegisterPlugin.
#[derive(Clone, PartialEq, prost::Message)]
pub struct RegisterPlugin {
    /// Ours.
    #[prost(string, tag = "1")]
    pub plugin_name: String,
    /// Two digits: when we are asked, among others.
    #[prost(string, tag = "2")]
    pub plugin_idx: String,
}

/// Plugin.Configure; who the runtime is.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ConfigureRequest {
    /// `containerd`, say.
    #[prost(string, tag = "2")]
    pub runtime_name: String,
    /// Its version.
    #[prost(string, tag = "3")]
    pub runtime_version: String,
}

/// Its answer: what we want to be asked.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ConfigureResponse {
    /// A bit for each kind of event.
    #[prost(int32, tag = "2")]
    pub events: i32,
}

/// Plugin.Synchronize: what runs already.
#[derive(Clone, PartialEq, prost::Message)]
pub struct SynchronizeRequest {
    /// Pods.
    #[prost(message, repeated, tag = "1")]
    pub pods: Vec<PodSandbox>,
    /// Their containers.
    #[prost(message, repeated, tag = "2")]
    pub containers: Vec<Container>,
    /// There is more to come, in a call of its own.
    #[prost(bool, tag = "3")]
    pub more: bool,
}

/// Its answer.
#[derive(Clone, PartialEq, prost::Message)]
pub struct SynchronizeResponse {
    /// As in the request.
    #[prost(bool, tag = "2")]
    pub more: bool,
}

/// Plugin.CreateContainer: one is about to be made.
#[derive(Clone, PartialEq, prost::Message)]
pub struct CreateContainerRequest {
    /// In a pod.
    #[prost(message, optional, tag = "1")]
    pub pod: Option<PodSandbox>,
    /// As it would be.
    #[prost(message, optional, tag = "2")]
    pub container: Option<Container>,
}

/// Its answer: as it shall be.
#[derive(Clone, PartialEq, prost::Message)]
pub struct CreateContainerResponse {
    /// The difference; none where nothing is to be changed.
    #[prost(message, optional, tag = "1")]
    pub adjust: Option<Adjustment>,
}

/// A pod.
#[derive(Clone, PartialEq, prost::Message)]
pub struct PodSandbox {
    /// The runtime's name for it.
    #[prost(string, tag = "1")]
    pub id: String,
    /// Its name.
    #[prost(string, tag = "2")]
    pub name: String,
    /// Its UID, as the API server has it.
    #[prost(string, tag = "3")]
    pub uid: String,
    /// Its namespace.
    #[prost(string, tag = "4")]
    pub namespace: String,
}

/// A container.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Container {
    /// Its pod, by the runtime's name.
    #[prost(string, tag = "2")]
    pub pod_sandbox_id: String,
    /// Its name.
    #[prost(string, tag = "3")]
    pub name: String,
    /// 4 is stopped.
    #[prost(int32, tag = "4")]
    pub state: i32,
    /// What is Linux's.
    #[prost(message, optional, tag = "11")]
    pub linux: Option<LinuxContainer>,
}

/// A container's Linux part.
#[derive(Clone, PartialEq, prost::Message)]
pub struct LinuxContainer {
    /// The namespaces that it is in.
    #[prost(message, repeated, tag = "1")]
    pub namespaces: Vec<Namespace>,
}

/// A namespace.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Namespace {
    /// `ipc`, say.
    #[prost(string, tag = "1")]
    pub kind: String,
    /// One that is there; a new one where it is empty.
    #[prost(string, tag = "2")]
    pub path: String,
}

/// What is to be changed in a container.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Adjustment {
    /// Mounts, each in place of what is at its destination.
    #[prost(message, repeated, tag = "3")]
    pub mounts: Vec<Mount>,
    /// What is Linux's.
    #[prost(message, optional, tag = "6")]
    pub linux: Option<LinuxAdjustment>,
}

/// A mount.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Mount {
    /// Where.
    #[prost(string, tag = "1")]
    pub destination: String,
    /// `bind`.
    #[prost(string, tag = "2")]
    pub kind: String,
    /// What.
    #[prost(string, tag = "3")]
    pub source: String,
    /// How.
    #[prost(string, repeated, tag = "4")]
    pub options: Vec<String>,
}

/// What is to be changed in a container's Linux part.
#[derive(Clone, PartialEq, prost::Message)]
pub struct LinuxAdjustment {
    /// Each in place of that of its kind.
    #[prost(message, repeated, tag = "7")]
    pub namespaces: Vec<Namespace>,
}
