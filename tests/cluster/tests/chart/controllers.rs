//! Both controllers' Deployments on a cluster: Ready by what their pods answer, and started anew by it.

use anyhow::{Context, ensure};
use podshm_cluster::place::NODES;
use podshm_cluster::supervise::alive;
use podshm_cluster::testing::{Cluster, Space, until};
use serde_json::Value;
use std::fs;
use std::process::Command;

const BOTH: [&str; 2] = ["podshm-controller", "podshm-rollouts"];

fn pods(cluster: &Cluster, system: &Space, app: &str) -> anyhow::Result<Vec<Value>> {
    let label = format!("app={app}");
    let found = cluster.within(system, &["get", "pods", "-l", &label, "-o", "json"])?;
    let found: Value = serde_json::from_str(&found)?;
    let pods = found["items"].as_array().cloned().unwrap_or_default();
    Ok(pods.into_iter().filter(|pod| pod["metadata"]["deletionTimestamp"].is_null()).collect())
}

fn is_ready(pod: &Value) -> bool {
    pod["status"]["containerStatuses"][0]["ready"] == true
}

/// What a pod answers to the API server.
fn answer(cluster: &Cluster, system: &Space, pod: &Value, path: &str) -> anyhow::Result<String> {
    let name = pod["metadata"]["name"].as_str().context("a pod's name")?;
    let port = &pod["spec"]["containers"][0]["ports"][0]["containerPort"];
    cluster.kubectl(&["get", "--raw", &format!("/api/v1/namespaces/{}/pods/{name}:{port}/proxy{path}", system.name)])
}

/// The one that leads and the one that stands by.
pub fn are_ready_by_their_probes(cluster: &Cluster, system: &Space) {
    for app in BOTH {
        cluster.rolled_out(system, &format!("deployment/{app}")).unwrap();
        until("one of two to lead", || {
            let pods = pods(cluster, system, app)?;
            let mut leads = Vec::new();
            for pod in &pods {
                let container = &pod["spec"]["containers"][0];
                for (probe, path) in [("readinessProbe", "/readyz"), ("livenessProbe", "/healthz")] {
                    ensure!(container[probe]["httpGet"]["path"] == path, "{app}: {container}");
                    ensure!(answer(cluster, system, pod, path)? == "ok", "{app} {path}");
                }
                let metrics = answer(cluster, system, pod, "/metrics")?;
                let leading = |line: &str| line.strip_prefix("podshm_controller_leads ").map(str::to_owned);
                leads.extend(metrics.lines().find_map(leading));
                ensure!(is_ready(pod), "{app}: {}", pod["status"]);
            }
            leads.sort();
            ensure!(leads == ["0", "1"], "{app}: leads, by their own word: {leads:?}");
            Ok(Some(()))
        })
        .unwrap();
    }
}

/// A process that hangs: the kubelet ends it, and it is Ready again. Of a cluster that is not ours nothing is seen of the insides.
pub fn one_that_hangs_is_started_anew(cluster: &Cluster, system: &Space) {
    if !cluster.is_ours() {
        return;
    }
    let restarts = || -> anyhow::Result<i64> {
        let found = pods(cluster, system, BOTH[0])?;
        Ok(found.iter().filter_map(|pod| pod["status"]["containerStatuses"][0]["restartCount"].as_i64()).sum())
    };
    let (before, stopped) = (restarts().unwrap(), NODES.map(|node| stop(cluster, node, "domains")));
    assert_eq!(stopped.iter().sum::<u32>(), 2, "both of them, wherever they are: {stopped:?}");
    until("both controllers to be started anew", || {
        let found = restarts()?;
        ensure!(found >= before + 2, "{found} restarts, {before} before");
        Ok(Some(()))
    })
    .unwrap();
    cluster.rolled_out(system, &format!("deployment/{}", BOTH[0])).unwrap();
}

/// Stops the controllers of a node that have this verb; how many there were.
fn stop(cluster: &Cluster, node: &str, verb: &str) -> u32 {
    let pid = alive(&cluster.place, node).expect("the node runs");
    let begins = format!("/podshm-controller\0{verb}\0");
    let mut stopped = 0;
    for entry in fs::read_dir(format!("/proc/{pid}/root/proc")).expect("the node's processes").flatten() {
        let words = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        if words.starts_with(begins.as_bytes()) {
            let own = entry.file_name().to_string_lossy().into_owned();
            let status =
                Command::new("nsenter").args(["-t", &pid.to_string(), "-p", "-m", "kill", "-STOP", &own]).status();
            assert!(status.expect("nsenter (util-linux)").success());
            stopped += 1;
        }
    }
    stopped
}

/// Without its rights it can't see what it goes by: it runs, and is not Ready, and nothing ends it. Gives the rights to whoever calls to give back.
pub fn one_that_sees_nothing_is_not_ready(cluster: &Cluster, system: &Space) {
    cluster.kubectl(&["delete", "clusterrolebinding", BOTH[0]]).unwrap();
    let old: Vec<String> =
        pods(cluster, system, BOTH[0]).unwrap().iter().map(|pod| pod["metadata"]["name"].to_string()).collect();
    cluster.within(system, &["rollout", "restart", &format!("deployment/{}", BOTH[0])]).unwrap();
    until("a new controller to run and to be found not Ready", || {
        let found = pods(cluster, system, BOTH[0])?;
        let new = found.iter().find(|pod| !old.contains(&pod["metadata"]["name"].to_string()));
        let Some(new) = new.filter(|pod| !pod["status"]["containerStatuses"][0]["state"]["running"].is_null()) else {
            return Ok(None);
        };
        // The kubelet says so once it has asked.
        let name = new["metadata"]["name"].as_str().unwrap_or_default();
        let of = [
            "get",
            "events",
            "--field-selector",
            &format!("involvedObject.name={name}"),
            "-o",
            "jsonpath={.items[*].message}",
        ];
        let said = cluster.within(system, &of)?;
        assert!(!is_ready(new), "{}", new["status"]);
        ensure!(said.contains("Readiness probe failed: HTTP probe failed with statuscode: 503"), "{said}");
        ensure!(answer(cluster, system, new, "/healthz")? == "ok", "it is no reason to end it");
        Ok(Some(()))
    })
    .unwrap();
}
