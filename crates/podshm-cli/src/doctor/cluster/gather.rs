//! Asks the API server.

use super::at_once::{self, PATIENCE};
use super::placed;
use super::{Admission, CsiDriver, Daemon, Domain, Facts, Node, Sharing, Workload};
use anyhow::Context;
use k8s_openapi::api::admissionregistration::v1::ValidatingAdmissionPolicy;
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment, StatefulSet};
use k8s_openapi::api::batch::v1::{CronJob, Job};
use k8s_openapi::api::core::v1::{self as core, Namespace, Pod, PodSpec};
use k8s_openapi::api::node::v1::RuntimeClass;
use k8s_openapi::api::storage::v1::{CSIDriver, CSINode};
use kube::api::ListParams;
use kube::{Api, Client, Config, Resource, ResourceExt};
use podshm_api::DRIVER;
use podshm_api::domain::{Mechanism, Mode, ShmDomain};
use podshm_api::report::{NodeReport, PORT};
use podshm_api::status::ConditionStatus;
use podshm_controller::pages;
use serde::de::DeserializeOwned;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::path::{Path, PathBuf};

const ENFORCE: &str = "pod-security.kubernetes.io/enforce";
const PROFILE: &str = "security.openshift.io/csi-ephemeral-volume-profile";
/// Handlers of runtimes that give pods a kernel of their own.
const FOREIGN: [&str; 3] = ["runsc", "gvisor", "kata"];

/// Asks for all that [`super::findings`] judges. What can't be had is noted; it fails where there is no API server.
pub fn gather(namespace: &str) -> anyhow::Result<Facts> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let config = Config::infer()
            .await
            .context("how to reach the API server: expected KUBECONFIG, or a pod's service account")?;
        let client = Client::try_from(config).context("a client of the API server")?;
        let version = client.apiserver_version().await.context("asking the API server for its version")?;
        let mut asked = Asked { client, unknown: Vec::new() };
        let mut facts = asked.facts(namespace).await;
        facts.server_version = version.git_version;
        facts.unknown = asked.unknown;
        Ok(facts)
    })
}

struct Asked {
    client: Client,
    unknown: Vec<String>,
}

impl Asked {
    async fn facts(&mut self, namespace: &str) -> Facts {
        let levels: BTreeMap<String, String> =
            self.all::<Namespace>("namespaces").await.into_iter().map(level_of).collect();
        let daemon_sets = self.all::<DaemonSet>("daemonsets").await;
        let mut workloads: Vec<Workload> = Vec::new();
        let mut note = |kind: &str,
                        found: &dyn Fn() -> (String, String),
                        spec: Option<&PodSpec>,
                        labels: Option<&BTreeMap<String, String>>| {
            let (space, name) = found();
            // podshmd has what it is there for.
            if space != namespace || name != "podshmd" {
                let level = levels.get(&space).cloned().unwrap_or_default();
                workloads.extend(spec.and_then(|spec| workload(format!("{kind} {space}/{name}"), level, spec, labels)));
            }
        };
        for found in &daemon_sets {
            let template = found.spec.as_ref().map(|spec| &spec.template);
            note("DaemonSet", &|| named(found), template.and_then(|t| t.spec.as_ref()), template.and_then(labels_of));
        }
        for found in self.all::<Deployment>("deployments").await {
            let template = found.spec.as_ref().map(|spec| &spec.template);
            note("Deployment", &|| named(&found), template.and_then(|t| t.spec.as_ref()), template.and_then(labels_of));
        }
        for found in self.all::<StatefulSet>("statefulsets").await {
            let template = found.spec.as_ref().map(|spec| &spec.template);
            note(
                "StatefulSet",
                &|| named(&found),
                template.and_then(|t| t.spec.as_ref()),
                template.and_then(labels_of),
            );
        }
        for found in self.all::<Job>("jobs").await.iter().filter(|found| is_own(*found)) {
            let template = found.spec.as_ref().map(|spec| &spec.template);
            note("Job", &|| named(found), template.and_then(|t| t.spec.as_ref()), template.and_then(labels_of));
        }
        for found in self.all::<CronJob>("cronjobs").await {
            let template = found.spec.job_template.spec.as_ref().map(|spec| &spec.template);
            note("CronJob", &|| named(&found), template.and_then(|t| t.spec.as_ref()), template.and_then(labels_of));
        }
        // What makes the others is what to change. Static pods are of their node.
        let pods = self.all::<Pod>("pods").await;
        for found in pods.iter().filter(|found| is_own(*found)) {
            note("Pod", &|| named(found), found.spec.as_ref(), found.metadata.labels.as_ref());
        }
        let podshmd = daemon_sets.iter().find(|found| named(*found) == (namespace.to_owned(), "podshmd".to_owned()));
        let classes = self.all::<RuntimeClass>("runtimeclasses").await;
        let is_foreign = |handler: &str| FOREIGN.iter().any(|foreign| handler.starts_with(foreign));
        Facts {
            namespace: namespace.to_owned(),
            csi_driver: self
                .all::<CSIDriver>("csidrivers")
                .await
                .iter()
                .find(|driver| driver.name_any() == DRIVER)
                .map(driver_of),
            own_level: levels.get(namespace).cloned(),
            has_daemon_set: podshmd.is_some(),
            nodes: self.nodes(namespace, podshmd.and_then(|found| found.spec.as_ref()?.template.spec.as_ref())).await,
            workloads,
            domains: self.domains().await,
            admission: self.admission().await,
            foreign_runtimes: classes
                .iter()
                .map(|class| (class.name_any(), class.handler.clone()))
                .filter(|(_, handler)| is_foreign(handler))
                .collect(),
            ..Facts::default()
        }
    }

    /// All objects of a kind, page by page; none where they can't be had, which is noted.
    async fn all<K>(&mut self, what: &str) -> Vec<K>
    where
        K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned,
    {
        match listed(&Api::all(self.client.clone())).await {
            Ok(all) => all,
            Err(error) => {
                self.unknown.push(format!("{what}: {error}"));
                Vec::new()
            }
        }
    }

    /// `spec` is that of podshmd's pods.
    async fn nodes(&mut self, namespace: &str, spec: Option<&PodSpec>) -> Vec<Node> {
        let registered: BTreeSet<String> = self
            .all::<CSINode>("csinodes")
            .await
            .into_iter()
            .filter(|node| node.spec.drivers.iter().any(|driver| driver.name == DRIVER))
            .map(|node| node.name_any())
            .collect();
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), namespace);
        let daemons = match pods.list(&ListParams::default().labels("app=podshmd")).await {
            Ok(found) => found.items,
            Err(error) => {
                self.unknown.push(format!("pods in {namespace}: {error}"));
                Vec::new()
            }
        };
        let mut nodes = Vec::new();
        let mut questions = Vec::new();
        for node in self.all::<core::Node>("nodes").await {
            let name = node.name_any();
            // While it is rolled a node has two: the one that is ready counts.
            let here = || {
                daemons
                    .iter()
                    .filter(|pod| pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()) == Some(name.as_str()))
            };
            let daemon = match here().find(|pod| is_true(pod, "Ready")).or_else(|| here().next()) {
                None => Daemon::Missing,
                Some(pod) if !is_true(pod, "Ready") => Daemon::NotReady(why_not(pod)),
                Some(pod) => {
                    questions.push(report(self.client.clone(), namespace.to_owned(), pod.name_any()));
                    Daemon::Silent(format!("no answer in {} s", PATIENCE.as_secs()))
                }
            };
            let not_for_it = spec.and_then(|spec| placed::why_not(spec, &node));
            let status = node.status.unwrap_or_default();
            let info = status.node_info.unwrap_or_default();
            nodes.push(Node {
                is_ready: status.conditions.iter().flatten().any(|c| c.type_ == "Ready" && c.status == "True"),
                kernel: info.kernel_version,
                architecture: info.architecture,
                runtime: info.container_runtime_version,
                is_registered: registered.contains(&name),
                not_for_it,
                name,
                daemon,
            });
        }
        let asked = nodes.iter_mut().filter(|node| matches!(node.daemon, Daemon::Silent(_)));
        for (node, answer) in asked.zip(at_once::all(questions, PATIENCE).await) {
            if let Some(answer) = answer {
                node.daemon = answer;
            }
        }
        nodes
    }

    async fn domains(&mut self) -> Option<Vec<Domain>> {
        match listed::<ShmDomain>(&Api::all(self.client.clone())).await {
            Ok(all) => Some(all.iter().map(domain_of).collect()),
            Err(kube::Error::Api(status)) if status.code == 404 => None,
            Err(error) => {
                self.unknown.push(format!("shmdomains: {error}"));
                None
            }
        }
    }

    async fn admission(&mut self) -> Admission {
        let resources = self.client.list_api_group_resources("admissionregistration.k8s.io/v1").await;
        let can_mutate =
            resources.is_ok_and(|found| found.resources.iter().any(|r| r.name == "mutatingadmissionpolicies"));
        let ours = |name: &String| name.contains("podshm");
        let mut policies: Vec<String> = self
            .all::<ValidatingAdmissionPolicy>("validatingadmissionpolicies")
            .await
            .iter()
            .map(ResourceExt::name_any)
            .filter(ours)
            .collect();
        if can_mutate {
            let found = self
                .all::<k8s_openapi::api::admissionregistration::v1::MutatingAdmissionPolicy>(
                    "mutatingadmissionpolicies",
                )
                .await;
            policies.extend(found.iter().map(ResourceExt::name_any).filter(ours));
        }
        Admission { can_mutate, policies }
    }
}

/// What podshmd says of its node: through the API server, since the doctor may be anywhere.
async fn report(client: Client, namespace: String, pod: String) -> Daemon {
    let uri = format!("/api/v1/namespaces/{namespace}/pods/{pod}:{PORT}/proxy/domains");
    let Ok(request) = http::Request::get(uri).body(Vec::new()) else {
        return Daemon::Silent(format!("{pod} is no name of a pod"));
    };
    match client.request::<NodeReport>(request).await {
        Ok(report) => Daemon::Reports(Box::new(report)),
        Err(error) => Daemon::Silent(error.to_string()),
    }
}

async fn listed<K: Clone + Debug + DeserializeOwned>(api: &Api<K>) -> kube::Result<Vec<K>> {
    let mut all = Vec::new();
    pages::each(api, |object| all.push(object)).await?;
    Ok(all)
}

fn named(object: &impl ResourceExt) -> (String, String) {
    (object.namespace().unwrap_or_default(), object.name_any())
}

fn level_of(namespace: Namespace) -> (String, String) {
    let level = namespace.labels().get(ENFORCE).cloned().unwrap_or_default();
    (namespace.name_any(), level)
}

fn labels_of(template: &core::PodTemplateSpec) -> Option<&BTreeMap<String, String>> {
    template.metadata.as_ref()?.labels.as_ref()
}

fn driver_of(driver: &CSIDriver) -> CsiDriver {
    CsiDriver {
        pod_info: driver.spec.pod_info_on_mount == Some(true),
        attach_required: driver.spec.attach_required != Some(false),
        is_ephemeral: driver.spec.volume_lifecycle_modes.iter().flatten().any(|mode| mode == "Ephemeral"),
        profile: driver.labels().get(PROFILE).cloned(),
    }
}

/// What a workload shares, if anything.
fn workload(
    name: String,
    level: String,
    spec: &PodSpec,
    labels: Option<&BTreeMap<String, String>>,
) -> Option<Workload> {
    let volumes = || spec.volumes.iter().flatten();
    let csi = volumes().filter_map(|volume| volume.csi.as_ref()).find(|csi| csi.driver == DRIVER);
    let has_host_path = volumes().filter_map(|volume| volume.host_path.as_ref()).any(|host| leads_to_shm(&host.path));
    let label = labels.and_then(|labels| labels.get("podshm.dev/domain"));
    let sharing = if spec.host_ipc == Some(true) || has_host_path {
        Sharing::Host
    } else if csi.is_some() || label.is_some() {
        Sharing::Volume
    } else {
        return None;
    };
    let attributes = csi.and_then(|csi| csi.volume_attributes.as_ref());
    let domain = attributes.and_then(|attributes| attributes.get("domain")).or(label).cloned();
    Some(Workload { name, level, sharing, domain, runtime_class: spec.runtime_class_name.clone() })
}

/// Whether a hostPath shows the node's /dev/shm, as the chart's admission policy sees it.
fn leads_to_shm(path: &str) -> bool {
    // Components are without `.` and doubled or trailing slashes.
    let path: PathBuf = Path::new(path).components().collect();
    let whole = ["/", "/dev", "/run/shm", "/var/run/shm"];
    whole.iter().any(|whole| path == Path::new(whole)) || path.starts_with("/dev/shm")
}

/// Whether nothing else makes it.
fn is_own(object: &impl ResourceExt) -> bool {
    object.owner_references().is_empty()
}

fn is_true(pod: &Pod, kind: &str) -> bool {
    let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.into_iter().any(|condition| condition.type_ == kind && condition.status == "True")
}

/// What Kubernetes says of a pod that is not ready.
fn why_not(pod: &Pod) -> String {
    let Some(status) = &pod.status else { return "it has no status yet".into() };
    let waiting = status
        .container_statuses
        .iter()
        .flatten()
        .filter_map(|container| container.state.as_ref()?.waiting.as_ref())
        .find_map(|waiting| waiting.reason.clone());
    let said = status
        .conditions
        .iter()
        .flatten()
        .filter(|condition| condition.status != "True")
        .find_map(|c| c.message.clone().or(c.reason.clone()));
    waiting.or(said).or(status.phase.clone()).unwrap_or_else(|| "it does not say why".into())
}

fn domain_of(domain: &ShmDomain) -> Domain {
    let conditions = domain.status.iter().flat_map(|status| &status.conditions);
    // Ready is good, the others are not.
    let is_bad = |kind: &str, status: ConditionStatus| {
        if kind == "Ready" { status != ConditionStatus::True } else { status == ConditionStatus::True }
    };
    Domain {
        name: domain.name_any(),
        is_native: domain.spec.modes.contains(&Mode::Sysv)
            && domain.spec.sysv.as_ref().is_some_and(|sysv| sysv.mechanism == Mechanism::Native),
        complaints: conditions
            .filter(|condition| is_bad(&condition.kind, condition.status))
            .map(|condition| (condition.kind.clone(), condition.reason.clone(), condition.message.clone()))
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::leads_to_shm;

    #[test]
    fn paths_to_the_nodes_shared_memory_however_they_are_written() {
        for path in
            ["/", "//", "/dev", "/dev/", "/dev/shm", "//dev/./shm/", "/dev/shm/app", "/run/shm", "/var/run/shm/"]
        {
            assert!(leads_to_shm(path), "{path}");
        }
        for path in ["/dev/shmem", "/dev/null", "/run", "/var/log"] {
            assert!(!leads_to_shm(path), "{path}");
        }
    }
}
