//! A pod on each of podshmd's nodes takes away what only somebody on the node can: `podshmd sweep`.

use crate::daemons::DAEMONS;
use anyhow::{Context, ensure};
use futures::StreamExt;
use futures::stream;
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{DeleteParams, ListParams, PostParams};
use kube::{Api, Client, ResourceExt};
use serde_json::json;
use std::collections::BTreeSet;
use std::fmt::Write;
use std::time::{Duration, Instant};
use xxhash_rust::xxh3::xxh3_64;

/// Nodes that are swept at the same time.
const AT_ONCE: usize = 100;
/// How long podshmd's pods may take to end, and a node to be swept: its image is there already.
const PATIENCE: Duration = Duration::from_secs(90);
const TICK: Duration = Duration::from_millis(500);
/// Nodes that are named.
const NAMED: usize = 20;

/// What the pods are made of.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// podshmd's image.
    #[arg(long)]
    image: String,
    /// When it is pulled.
    #[arg(long, default_value = "IfNotPresent")]
    pull_policy: String,
    /// Secrets that it is pulled with, in podshmd's namespace.
    #[arg(long = "pull-secret")]
    pull_secrets: Vec<String>,
    /// The kubelet's --root-dir.
    #[arg(long, default_value = "/var/lib/kubelet")]
    kubelet_dir: String,
}

/// Ends podshmd and sweeps its nodes. Fails where pods have come by a volume meanwhile, and where something may be left, and names pods or
/// nodes; may be run again.
pub async fn sweep(client: &Client, namespace: &str, options: &Options) -> anyhow::Result<()> {
    let nodes = nodes(client, namespace).await?;
    end(client, namespace).await?;
    // It served until it had ended. A sweep would take away under a pod what it shares.
    super::check(client.clone()).await.context(
        "these came while podshmd was ended; nothing is swept. They can't end without it: helm upgrade brings it back for them",
    )?;
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let each = nodes.into_iter().map(|node| {
        let pods = pods.clone();
        async move {
            let swept = one(&pods, &node, options).await;
            (node, swept)
        }
    });
    let mut swept = 0;
    let mut left: Vec<String> = Vec::new();
    let mut answers = stream::iter(each).buffer_unordered(AT_ONCE);
    while let Some((node, answer)) = answers.next().await {
        match answer {
            Ok(()) => swept += 1,
            Err(error) => left.push(format!("{node}: {error:#}")),
        }
    }
    println!("nothing of podshm is left on {swept} nodes");
    ensure!(left.is_empty(), "{}", says(&left));
    Ok(())
}

fn says(left: &[String]) -> String {
    let mut text =
        format!("something of podshm may be left on {} nodes; try again, or go on with --no-hooks:", left.len());
    for node in left.iter().take(NAMED) {
        let _ = write!(text, "\n  {node}");
    }
    if left.len() > NAMED {
        let _ = write!(text, "\n  and {} more", left.len() - NAMED);
    }
    text
}

/// Those that podshmd runs on; where it is gone already, all that are there.
async fn nodes(client: &Client, namespace: &str) -> anyhow::Result<BTreeSet<String>> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let daemons = pods.list(&ListParams::default().labels(DAEMONS)).await.context("listing podshmd's pods")?;
    let found: BTreeSet<String> = daemons.items.into_iter().filter_map(|pod| pod.spec?.node_name).collect();
    if !found.is_empty() {
        return Ok(found);
    }
    let mut all = BTreeSet::new();
    crate::pages::each(&Api::<Node>::all(client.clone()), |node| all.extend(is_ready(&node).then(|| node.name_any())))
        .await?;
    Ok(all)
}

fn is_ready(node: &Node) -> bool {
    let conditions = node.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.into_iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

/// Deletes podshmd and waits until its pods are gone.
async fn end(client: &Client, namespace: &str) -> anyhow::Result<()> {
    let daemon: Api<DaemonSet> = Api::namespaced(client.clone(), namespace);
    match daemon.delete("podshmd", &DeleteParams::foreground()).await {
        Err(kube::Error::Api(status)) if status.code == 404 => {}
        deleted => drop(deleted.context("deleting the DaemonSet podshmd")?),
    }
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let since = Instant::now();
    loop {
        let left = pods.list(&ListParams::default().labels(DAEMONS)).await.context("listing podshmd's pods")?;
        if left.items.is_empty() {
            return Ok(());
        }
        let named: Vec<String> = left.iter().map(ResourceExt::name_any).take(NAMED).collect();
        ensure!(since.elapsed() < PATIENCE, "these pods do not end: {}", named.join(", "));
        tokio::time::sleep(TICK).await;
    }
}

async fn one(pods: &Api<Pod>, node: &str, options: &Options) -> anyhow::Result<()> {
    let pod = pod(node, options)?;
    let name = pod.name_any();
    match pods.create(&PostParams::default(), &pod).await {
        // Of an attempt before this one.
        Err(kube::Error::Api(status)) if status.code == 409 => {}
        created => drop(created.context("making the pod that sweeps")?),
    }
    let since = Instant::now();
    let ended = loop {
        let found = pods.get_status(&name).await.context("looking at the pod that sweeps")?;
        let phase = found.status.as_ref().and_then(|status| status.phase.as_deref());
        match phase {
            Some("Succeeded") => break Ok(()),
            Some("Failed") => {
                let containers = found.status.and_then(|status| status.container_statuses).unwrap_or_default();
                let said = containers.into_iter().find_map(|c| c.state?.terminated?.message).unwrap_or_default();
                break Err(anyhow::anyhow!("{}", said.trim()));
            }
            _ if since.elapsed() > PATIENCE => {
                break Err(anyhow::anyhow!("{name} has not ended within {} s", PATIENCE.as_secs()));
            }
            _ => tokio::time::sleep(TICK).await,
        }
    };
    pods.delete(&name, &DeleteParams::default().grace_period(0)).await.context("removing the pod that has swept")?;
    ended
}

/// Sees the node's /run, since a directory can be removed only from the one that it lies in.
fn pod(node: &str, options: &Options) -> anyhow::Result<Pod> {
    let Options { image, pull_policy, pull_secrets, kubelet_dir } = options;
    let pull_secrets: Vec<_> = pull_secrets.iter().map(|name| json!({"name": name})).collect();
    let pod = json!({
        "metadata": {
            // A node's name may be longer than a pod's may be.
            "name": format!("podshm-sweep-{:016x}", xxh3_64(node.as_bytes())),
            "labels": {"app": "podshm-sweep", "app.kubernetes.io/name": "podshm"},
        },
        "spec": {
            "nodeName": node,
            "restartPolicy": "Never",
            "automountServiceAccountToken": false,
            "enableServiceLinks": false,
            "imagePullSecrets": pull_secrets,
            "tolerations": [{"operator": "Exists"}],
            "containers": [{
                "name": "sweep",
                "image": image,
                "imagePullPolicy": pull_policy,
                "args": ["sweep", "--root", "/node/run/podshm", "--kubelet-dir", "/node/kubelet"],
                "resources": {"requests": {"cpu": "10m", "memory": "16Mi"}, "limits": {"memory": "64Mi"}},
                "terminationMessagePolicy": "FallbackToLogsOnError",
                // Unmounts on the node: mountPropagation Bidirectional is for privileged containers alone.
                "securityContext": {"privileged": true, "readOnlyRootFilesystem": true, "runAsUser": 0},
                "volumeMounts": [
                    {"name": "run", "mountPath": "/node/run", "mountPropagation": "Bidirectional"},
                    {"name": "plugins", "mountPath": "/node/kubelet/plugins"},
                    {"name": "registry", "mountPath": "/node/kubelet/plugins_registry"},
                ],
            }],
            "volumes": [
                {"name": "run", "hostPath": {"path": "/run", "type": "Directory"}},
                {"name": "plugins", "hostPath": {"path": format!("{kubelet_dir}/plugins"), "type": "Directory"}},
                {"name": "registry", "hostPath": {"path": format!("{kubelet_dir}/plugins_registry"), "type": "Directory"}},
            ],
        },
    });
    serde_json::from_value(pod).context("the pod that sweeps")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nodes_pod_has_a_name_that_fits_and_is_its_own() {
        let options = Options {
            image: "podshmd:1".into(),
            pull_policy: "Never".into(),
            pull_secrets: vec!["mirror".into()],
            kubelet_dir: "/data/kubelet".into(),
        };
        let long = "n".repeat(253);
        let names: BTreeSet<String> =
            ["a", "b", &long].iter().map(|node| pod(node, &options).expect("a pod").name_any()).collect();
        assert!(names.len() == 3 && names.iter().all(|name| name.len() <= 63), "{names:?}");
        let text = serde_json::to_string(&pod("a", &options).expect("a pod")).expect("JSON");
        assert!(text.contains("/data/kubelet/plugins_registry") && !text.contains("/var/lib"), "{text}");
        assert!(text.contains(r#""imagePullSecrets":[{"name":"mirror"}]"#), "{text}");
    }

    #[test]
    fn many_nodes_are_few_lines() {
        let text = says(&vec!["node: it was not there".to_owned(); 1000]);
        assert!(text.starts_with("something of podshm may be left on 1000 nodes") && text.contains("and 980 more"));
        assert!(text.len() < 1000, "{text}");
    }
}
