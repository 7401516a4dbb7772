//! The services that the kubelet calls: Identity and Node of CSI, Registration of the kubelet.

use crate::DRIVER;
use crate::messages::{
    NodeCapabilities, NodeInfo, Nothing, PluginCapabilities, PluginInfo, ProbeResponse, PublishRequest,
    RegistrationInfo, RegistrationStatus, UnpublishRequest,
};
use crate::metrics::{Metrics, Outcome};
use crate::request::{BadRequest, unwanted, wanted};
use crate::volumes::{VolumeError, Volumes};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;
use tonic::{Request, Response, Status};

/// What build.rs makes of the services' names.
#[allow(missing_docs)]
pub mod made {
    include!(concat!(env!("OUT_DIR"), "/csi.v1.Identity.rs"));
    include!(concat!(env!("OUT_DIR"), "/csi.v1.Node.rs"));
    include!(concat!(env!("OUT_DIR"), "/pluginregistration.Registration.rs"));
}

/// Identity and Node.
#[derive(Clone, Debug)]
pub struct Driver {
    volumes: Arc<Mutex<Volumes>>,
    kubelet_dir: Arc<PathBuf>,
    node: Arc<str>,
    metrics: Metrics,
}

/// Why a call fails.
enum Failure {
    Bad(BadRequest),
    Volume(VolumeError),
    /// The work could not be carried out.
    Panicked(String),
}

impl Driver {
    /// Of a node.
    pub fn new(volumes: Arc<Mutex<Volumes>>, kubelet_dir: PathBuf, node: &str, metrics: Metrics) -> Self {
        Driver { volumes, kubelet_dir: Arc::new(kubelet_dir), node: node.into(), metrics }
    }

    /// Counts a call that has ended.
    fn ended<R>(&self, call: &'static str, began: Instant, result: Result<R, Failure>) -> Result<R, Status> {
        let outcome = result.as_ref().map_or_else(Failure::outcome, |_| Outcome::Done);
        self.metrics.called(call, outcome, began.elapsed());
        result.map_err(Failure::status)
    }

    /// Does something with the volumes, off the threads that answer: mounting may take its time.
    async fn with<R: Send + 'static>(
        &self,
        act: impl FnOnce(&mut Volumes) -> Result<R, VolumeError> + Send + 'static,
    ) -> Result<R, Failure> {
        let volumes = Arc::clone(&self.volumes);
        // One at a time, and a call that the kubelet has given up is carried out all the same: its next try finds it done.
        let done =
            tokio::task::spawn_blocking(move || act(&mut volumes.lock().unwrap_or_else(PoisonError::into_inner)));
        done.await.map_err(|error| Failure::Panicked(error.to_string()))?.map_err(Failure::Volume)
    }
}

impl Failure {
    fn outcome(&self) -> Outcome {
        match self {
            Failure::Bad(error) => Outcome::Refused(error.rule()),
            Failure::Volume(error) => error.rule().map_or(Outcome::Failed, Outcome::Refused),
            Failure::Panicked(_) => Outcome::Failed,
        }
    }

    /// As the kubelet will write it into the pod's events.
    fn status(self) -> Status {
        match self {
            Failure::Bad(error @ BadRequest::NoPodInfo { .. }) => Status::failed_precondition(error.to_string()),
            Failure::Bad(error) => Status::invalid_argument(error.to_string()),
            Failure::Volume(error) => match &error {
                VolumeError::Domain(_) => Status::not_found(error.to_string()),
                VolumeError::NotAllowed { .. } => Status::permission_denied(error.to_string()),
                VolumeError::Otherwise { .. } => Status::already_exists(error.to_string()),
                VolumeError::OverLimit { .. } | VolumeError::SysvOverLimit { .. } => {
                    Status::resource_exhausted(error.to_string())
                }
                VolumeError::NoRuntime { .. } => Status::unavailable(error.to_string()),
                // Not `internal`: that is final for the kubelet, which would never ask to take away what there may be.
                _ => {
                    tracing::error!(%error, "a volume");
                    Status::unavailable(error.to_string())
                }
            },
            Failure::Panicked(error) => Status::unavailable(error),
        }
    }
}

#[tonic::async_trait]
impl made::identity_server::Identity for Driver {
    async fn get_plugin_info(&self, _: Request<Nothing>) -> Result<Response<PluginInfo>, Status> {
        let vendor_version = env!("CARGO_PKG_VERSION").to_owned();
        Ok(Response::new(PluginInfo { name: DRIVER.to_owned(), vendor_version }))
    }

    async fn get_plugin_capabilities(&self, _: Request<Nothing>) -> Result<Response<PluginCapabilities>, Status> {
        Ok(Response::new(PluginCapabilities {}))
    }

    async fn probe(&self, _: Request<Nothing>) -> Result<Response<ProbeResponse>, Status> {
        let ready = self.with(|volumes| Ok(!volumes.has_given_way())).await.map_err(Failure::status)?;
        Ok(Response::new(ProbeResponse { ready: Some(ready) }))
    }
}

#[tonic::async_trait]
impl made::node_server::Node for Driver {
    async fn node_publish_volume(&self, request: Request<PublishRequest>) -> Result<Response<Nothing>, Status> {
        let began = Instant::now();
        let published = match wanted(request.get_ref(), &self.kubelet_dir) {
            Ok(wanted) => {
                let (pod, domain) = (wanted.who.name(), wanted.domain.clone());
                self.with(move |volumes| volumes.publish(&wanted)).await.map(|()| (pod, domain))
            }
            Err(error) => Err(Failure::Bad(error)),
        };
        let published = self.ended(crate::metrics::PUBLISH, began, published);
        match &published {
            Ok((pod, domain)) => tracing::info!(pod, domain, "published"),
            Err(status) => tracing::warn!(why = status.message(), "not published"),
        }
        published.map(|_| Response::new(Nothing {}))
    }

    async fn node_unpublish_volume(&self, request: Request<UnpublishRequest>) -> Result<Response<Nothing>, Status> {
        let began = Instant::now();
        let unpublished = match unwanted(request.get_ref(), &self.kubelet_dir) {
            Ok((volume, target)) => self.with(move |volumes| volumes.unpublish(&volume, &target)).await,
            Err(error) => Err(Failure::Bad(error)),
        };
        self.ended("unpublish", began, unpublished).map(|()| Response::new(Nothing {}))
    }

    async fn node_get_capabilities(&self, _: Request<Nothing>) -> Result<Response<NodeCapabilities>, Status> {
        Ok(Response::new(NodeCapabilities {}))
    }

    async fn node_get_info(&self, _: Request<Nothing>) -> Result<Response<NodeInfo>, Status> {
        Ok(Response::new(NodeInfo { node_id: self.node.to_string() }))
    }
}

/// What the kubelet asks before it calls the driver, and tells once it has registered it.
#[derive(Clone, Debug)]
pub struct Registration {
    endpoint: Arc<str>,
    acknowledged: tokio::sync::watch::Sender<bool>,
}

impl Registration {
    /// Of a driver at a socket; `acknowledged` becomes what the kubelet last said.
    pub fn new(endpoint: &str, acknowledged: tokio::sync::watch::Sender<bool>) -> Self {
        Registration { endpoint: endpoint.into(), acknowledged }
    }
}

#[tonic::async_trait]
impl made::registration_server::Registration for Registration {
    async fn get_info(&self, _: Request<Nothing>) -> Result<Response<RegistrationInfo>, Status> {
        Ok(Response::new(RegistrationInfo {
            kind: "CSIPlugin".into(),
            name: DRIVER.into(),
            endpoint: self.endpoint.to_string(),
            supported_versions: vec!["1.0.0".into()],
        }))
    }

    async fn notify_registration_status(
        &self,
        request: Request<RegistrationStatus>,
    ) -> Result<Response<Nothing>, Status> {
        let RegistrationStatus { plugin_registered, error } = request.into_inner();
        match plugin_registered {
            true => tracing::info!("the kubelet has registered the driver"),
            false => tracing::error!(error, "the kubelet has not registered the driver; it will ask again"),
        }
        self.acknowledged.send_replace(plugin_registered);
        Ok(Response::new(Nothing {}))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mounts::MountError;
    use std::io;
    use tonic::Code;

    /// Codes that the kubelet does not take for the end of it: it will ask to unpublish (`isFinalError` of its CSI client).
    #[test]
    fn what_the_node_could_not_do_is_not_final() {
        let source = || io::Error::from(io::ErrorKind::NotConnected);
        let mount = MountError::Unreachable { path: "/run/podshmd/mount.sock".into(), source: source() };
        let helper = MountError::Helper { said: "no".into() };
        let system = VolumeError::System { what: "making a directory".into(), source: source() };
        for failure in [
            Failure::Volume(mount.into()),
            Failure::Volume(helper.into()),
            Failure::Volume(system),
            Failure::Panicked("a thread".into()),
        ] {
            let status = failure.status();
            assert_eq!(status.code(), Code::Unavailable, "{status}");
        }
    }
}
