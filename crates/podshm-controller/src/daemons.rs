//! Which daemons there are, and what they say.

use anyhow::Context;
use futures::StreamExt;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use hyper_util::client::legacy::Client as Http;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use k8s_openapi::api::core::v1::Pod;
use podshm_api::report::{NodeReport, PORT};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// The label by which daemons' pods are found, in our namespace alone: elsewhere anybody may have it.
pub const DAEMONS: &str = "app=podshmd";
/// How long one may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// How many are asked at once.
const AT_ONCE: usize = 64;
/// What one may say, in bytes.
const MOST: usize = 1 << 20;

/// A node's daemon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Daemon {
    /// The node: what the API says, whatever the daemon says of itself.
    pub node: String,
    /// Where it answers.
    pub url: String,
}

impl Daemon {
    /// Of its pod; none while it has no address, or has ended.
    pub fn of(pod: &Pod) -> Option<Self> {
        let (spec, status) = (pod.spec.as_ref()?, pod.status.as_ref()?);
        let (node, address) = (spec.node_name.clone()?, status.pod_ip.as_ref()?);
        if status.phase.as_deref() != Some("Running") {
            return None;
        }
        let ports = spec.containers.iter().flat_map(|container| container.ports.iter().flatten());
        let port = ports
            .into_iter()
            .find(|port| port.name.as_deref() == Some("metrics"))
            .map_or(i32::from(PORT), |port| port.container_port);
        let host = if address.contains(':') { format!("[{address}]") } else { address.clone() };
        Some(Daemon { node, url: format!("http://{host}:{port}/domains") })
    }
}

/// What daemons have said, once round.
#[derive(Clone, Debug, Default)]
pub struct Answers {
    /// By node.
    pub reports: BTreeMap<String, NodeReport>,
    /// Nodes whose daemon does not answer.
    pub silent: BTreeSet<String>,
}

/// Asks them.
#[derive(Clone, Debug)]
pub struct Daemons(Http<HttpConnector, Empty<Bytes>>);

impl Default for Daemons {
    fn default() -> Self {
        Daemons(Http::builder(TokioExecutor::new()).pool_max_idle_per_host(0).build_http())
    }
}

impl Daemons {
    /// Once round: of two daemons of a node, one of which follows the other, the one that serves.
    pub async fn round(&self, daemons: Vec<Daemon>) -> Answers {
        let asked = daemons.into_iter().map(|daemon| async move { (self.report(&daemon).await, daemon) });
        let mut answers = futures::stream::iter(asked).buffer_unordered(AT_ONCE);
        let Answers { mut reports, mut silent } = Answers::default();
        while let Some((answer, daemon)) = answers.next().await {
            match answer {
                Ok(report) if report.registered || !reports.contains_key(&daemon.node) => {
                    reports.insert(daemon.node, report);
                }
                Ok(_) => {}
                Err(error) => {
                    tracing::debug!(node = daemon.node, error = format!("{error:#}"), "a daemon does not answer");
                    silent.insert(daemon.node);
                }
            }
        }
        silent.retain(|node| !reports.contains_key(node));
        Answers { reports, silent }
    }

    async fn report(&self, daemon: &Daemon) -> anyhow::Result<NodeReport> {
        let ask = async {
            let response = self.0.request(hyper::Request::get(&daemon.url).body(Empty::new())?).await?;
            anyhow::ensure!(response.status().is_success(), "{}", response.status());
            let body = Limited::new(response.into_body(), MOST).collect().await;
            let body = body.map_err(|error| anyhow::anyhow!("{error}"))?.to_bytes();
            Ok(serde_json::from_slice(&body)?)
        };
        tokio::time::timeout(PATIENCE, ask).await.with_context(|| format!("no answer in {} s", PATIENCE.as_secs()))?
    }
}
