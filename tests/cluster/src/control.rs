//! The control plane: its programs and how they are started.

use crate::place::{BRIDGE, Place, REGISTRY_PORT, SERVICES, nodes};
use crate::programs::{CLUSTER, CRANE, Programs};
use crate::supervise::{self, Program};
use anyhow::Context;
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
use serde_json::json;
use std::fs;
use std::path::PathBuf;

/// The set's name.
pub const SET: &str = "control";

/// Pid 1 of the control plane.
pub fn first(place: &Place) -> anyhow::Result<()> {
    supervise::wait_for_network(place, SET)?;
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).context("making mounts private")?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount("proc", "/proc", "proc", flags, c"").context("mounting /proc")?;
    rustix::system::sethostname(b"control").context("setting the host name")?;
    let programs = Programs::built(CLUSTER)?;
    let all = [("etcd", etcd(place)), ("kube-apiserver", api_server(place)?)];
    let later = [("kube-controller-manager", controller_manager(place)), ("kube-scheduler", scheduler(place))];
    let program = |(name, arguments): (&str, Vec<String>)| {
        Ok(Program {
            name: name.to_owned(),
            path: programs.path(name)?,
            arguments,
            search_path: programs.search_path(),
        })
    };
    let mut set: Vec<Program> = all.into_iter().chain(later).map(program).collect::<anyhow::Result<_>>()?;
    if std::env::var_os(REGISTRY_ENV).is_some_and(|wanted| wanted == "1") {
        set.push(registry(place)?);
    }
    supervise::run(place, SET, set)
}

/// Set to 1, the control plane has a registry too: this cluster is then one like any other, with images to be pulled.
pub const REGISTRY_ENV: &str = "PODSHM_CLUSTER_REGISTRY";

/// For simulated nodes (PODSHM_CLUSTER_NODES=0): who asks how often is written down for this account, and nobody waits for the heartbeats
/// of a thousand kubelets.
pub const COUNTED: &str = "system:serviceaccount:podshm-system:podshm-rollouts";

/// Where the API server writes that down.
pub fn audit(place: &Place) -> PathBuf {
    place.path("audit.log")
}

fn is_simulated() -> bool {
    nodes().is_empty()
}

fn registry(place: &Place) -> anyhow::Result<Program> {
    let programs = Programs::built(CRANE)?;
    let disk = place.path("registry");
    std::fs::create_dir_all(&disk)?;
    Ok(Program {
        name: "registry".into(),
        path: programs.path("crane")?,
        arguments: [
            "registry",
            "serve",
            &format!("--address=0.0.0.0:{REGISTRY_PORT}"),
            "--disk",
            &disk.display().to_string(),
        ]
        .map(str::to_owned)
        .to_vec(),
        search_path: programs.search_path(),
    })
}

fn etcd(place: &Place) -> Vec<String> {
    vec![
        format!("--data-dir={}", place.path("etcd").display()),
        "--listen-client-urls=http://127.0.0.1:2379".into(),
        "--advertise-client-urls=http://127.0.0.1:2379".into(),
        "--listen-peer-urls=http://127.0.0.1:2380".into(),
        // Nothing here is to outlive the machine.
        "--unsafe-no-fsync".into(),
        "--log-level=warn".into(),
    ]
}

fn api_server(place: &Place) -> anyhow::Result<Vec<String>> {
    let mut more = Vec::new();
    if is_simulated() {
        let policy = place.path("audit.json");
        let rules = json!([
            {"level": "Metadata", "users": [COUNTED], "omitStages": ["RequestReceived", "ResponseStarted"]},
            {"level": "None"},
        ]);
        fs::write(&policy, json!({"apiVersion": "audit.k8s.io/v1", "kind": "Policy", "rules": rules}).to_string())?;
        more.push(format!("--audit-policy-file={}", policy.display()));
        more.push(format!("--audit-log-path={}", audit(place).display()));
        more.push("--audit-log-mode=blocking".into());
    }
    let pki = |file: &str| place.path("pki").join(file).display().to_string();
    let arguments = vec![
        "--etcd-servers=http://127.0.0.1:2379".into(),
        format!("--advertise-address={BRIDGE}"),
        // The port that its Service has: pods reach it by the Service's address without a proxy.
        "--secure-port=443".into(),
        format!("--service-cluster-ip-range={SERVICES}"),
        format!("--client-ca-file={}", pki("ca.pem")),
        format!("--tls-cert-file={}", pki("apiserver.pem")),
        format!("--tls-private-key-file={}", pki("apiserver.key")),
        format!("--kubelet-client-certificate={}", pki("kubelet-client.pem")),
        format!("--kubelet-client-key={}", pki("kubelet-client.key")),
        "--kubelet-preferred-address-types=InternalIP".into(),
        "--service-account-issuer=https://kubernetes.default.svc".into(),
        format!("--service-account-key-file={}", pki("accounts.pub")),
        format!("--service-account-signing-key-file={}", pki("accounts.key")),
        "--authorization-mode=Node,RBAC".into(),
        "--enable-admission-plugins=NodeRestriction".into(),
        "--allow-privileged=true".into(),
        "--profiling=false".into(),
    ];
    Ok([arguments, more].concat())
}

/// What a thousand nodes need of the other programs.
fn for_many() -> Vec<String> {
    let flags = ["--kube-api-qps=500", "--kube-api-burst=1000"];
    if is_simulated() { flags.map(str::to_owned).to_vec() } else { Vec::new() }
}

fn controller_manager(place: &Place) -> Vec<String> {
    let pki = |file: &str| place.path("pki").join(file).display().to_string();
    let mut arguments = vec![
        format!("--kubeconfig={}", pki("controller-manager.kubeconfig")),
        format!("--authentication-kubeconfig={}", pki("controller-manager.kubeconfig")),
        format!("--authorization-kubeconfig={}", pki("controller-manager.kubeconfig")),
        format!("--service-account-private-key-file={}", pki("accounts.key")),
        format!("--root-ca-file={}", pki("ca.pem")),
        "--use-service-account-credentials=true".into(),
        "--leader-elect=false".into(),
        "--bind-address=127.0.0.1".into(),
        "--profiling=false".into(),
    ];
    if is_simulated() {
        arguments.push("--controllers=*,-node-lifecycle-controller".into());
    }
    [arguments, for_many()].concat()
}

fn scheduler(place: &Place) -> Vec<String> {
    let kubeconfig = place.path("pki/scheduler.kubeconfig").display().to_string();
    let arguments = vec![
        format!("--kubeconfig={kubeconfig}"),
        format!("--authentication-kubeconfig={kubeconfig}"),
        format!("--authorization-kubeconfig={kubeconfig}"),
        "--leader-elect=false".into(),
        "--bind-address=127.0.0.1".into(),
        "--profiling=false".into(),
    ];
    [arguments, for_many()].concat()
}
