//! What podshm costs on a cluster: figures, printed, none of them judged. On demand: `ONLY=measure make cluster-test`.

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::runtime::conditions::is_deleted;
use kube::runtime::wait::{Condition, await_condition};
use kube::{Api, Client, Config, ResourceExt};
use podshm_cluster::images::{POD, ROUTE_AGENT};
use podshm_cluster::scene::report;
use podshm_cluster::supervise::alive;
use podshm_cluster::testing::{Cluster, PATIENCE, Space, until};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant};

/// Pods of each kind that are started one after the other: so many that the 99th of a hundred is not the slowest.
const STARTS: usize = 100;
/// Pods on one node.
const CROWDS: [usize; 3] = [0, 50, 200];
/// How long the daemon's idle CPU is looked at.
const IDLE: Duration = Duration::from_secs(30);
/// Pods that have an agent of their own.
const OWN: usize = 20;
/// Changes of a slice that the API server tells each watch.
const CHANGES: usize = 100;

#[test]
fn what_podshm_costs() {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(measure());
}

async fn measure() {
    let cluster = Cluster::connect().unwrap();
    let system = Space { name: "podshm-system".into() };
    cluster.provide_podshm().unwrap();
    cluster.provide_route_agent().unwrap();
    // Room for clients in 200 pods.
    cluster.install(&["routeAgent.enabled=true", r#"podshmd.memory="384Mi""#]).unwrap();
    let domain = json!({
        "modes": ["channel"], "budget": "160Mi", "perPod": "16Mi",
        "serve": [{"namespace": "podshm-system", "serviceAccounts": ["route-agent"]}],
        "join": [{"namespace": "shop"}],
    });
    cluster.domain("routing", &domain).unwrap();
    cluster.rolled_out(&system, "daemonset/podshmd").unwrap();
    cluster.rolled_out(&system, "daemonset/route-agent").unwrap();
    let shop = cluster.space("shop", "restricted").unwrap();
    let kubeconfig = Kubeconfig::read_from(cluster.place.kubeconfig()).unwrap();
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
    let client = Client::try_from(config).unwrap();

    pod_starts(&client, &shop).await;
    publish_times(&cluster, &client, &system).await;
    watches(&cluster, &client, &system).await;
    crowds(&cluster, &client, &shop).await;

    cluster.leave(&shop).unwrap();
    cluster.uninstall().unwrap();
}

/// A pod as `restricted` wants it, on node a; with a volume of the domain, or without.
fn pod(name: &str, arguments: &[&str], has_volume: bool) -> Pod {
    let mut pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {
            "nodeName": "a", "restartPolicy": "Never", "terminationGracePeriodSeconds": 1, "automountServiceAccountToken": false,
            "securityContext": {"runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [{
                "name": "pod", "image": POD, "imagePullPolicy": "Never", "args": arguments,
                "securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}},
            }],
        },
    });
    if has_volume {
        pod["spec"]["containers"][0]["volumeMounts"] =
            json!([{"name": "podshm", "mountPath": "/run/podshm", "readOnly": true}]);
        pod["spec"]["volumes"] =
            json!([{"name": "podshm", "csi": {"driver": "podshm.dev", "volumeAttributes": {"domain": "routing"}}}]);
    }
    serde_json::from_value(pod).expect("a pod")
}

fn is_ready() -> impl Condition<Pod> {
    |pod: Option<&Pod>| {
        let conditions = pod.and_then(|pod| pod.status.as_ref()).and_then(|status| status.conditions.as_ref());
        conditions.into_iter().flatten().any(|condition| condition.type_ == "Ready" && condition.status == "True")
    }
}

async fn within<T, E: std::fmt::Debug>(what: &str, work: impl Future<Output = Result<T, E>>) -> T {
    tokio::time::timeout(PATIENCE, work).await.unwrap_or_else(|_| panic!("{what}: not so after {PATIENCE:?}")).unwrap()
}

/// The smallest time that so many of a hundred are not above.
fn percentile(sorted: &[Duration], part: usize) -> f64 {
    sorted[(sorted.len() * part).div_ceil(100) - 1].as_secs_f64() * 1e3
}

/// From the request to the condition Ready, one after the other, with and without a volume by turns.
async fn pod_starts(client: &Client, shop: &Space) {
    let pods: Api<Pod> = Api::namespaced(client.clone(), &shop.name);
    let mut times = BTreeMap::from([(false, Vec::new()), (true, Vec::new())]);
    for round in 0..STARTS {
        for has_volume in if round % 2 == 0 { [false, true] } else { [true, false] } {
            let name = format!("start-{round}-{has_volume}");
            let begin = Instant::now();
            let made = pods.create(&PostParams::default(), &pod(&name, &["hold"], has_volume)).await.unwrap();
            within("a pod to be ready", await_condition(pods.clone(), &name, is_ready())).await;
            times.entry(has_volume).or_default().push(begin.elapsed());
            pods.delete(&name, &DeleteParams::default()).await.unwrap();
            within("it to be gone", await_condition(pods.clone(), &name, is_deleted(&made.uid().unwrap()))).await;
        }
    }
    for (has_volume, mut times) in times {
        times.sort();
        let what = if has_volume { "with a volume of podshm" } else { "without" };
        let (p50, p99) = (percentile(&times, 50), percentile(&times, 99));
        let slowest = percentile(&times, 100);
        println!("pod start {what}: p50 {p50:.0} ms, p99 {p99:.0} ms, slowest {slowest:.0} ms, of {STARTS}");
    }
}

/// The lines of a program's metrics whose name, and all of whose labels, are these: labels and value.
fn lines<'a>(text: &'a str, name: &'a str, labels: &'a [&str]) -> impl Iterator<Item = (&'a str, f64)> {
    text.lines().filter_map(move |line| {
        let (head, value) = line.rsplit_once(' ')?;
        let rest = head.strip_prefix(name)?;
        let is_it = (rest.is_empty() || rest.starts_with('{')) && labels.iter().all(|label| rest.contains(label));
        Some((rest, value.parse().ok()?)).filter(|_| is_it)
    })
}

/// A histogram's count and mean, and between which bounds a part of its values is.
fn histogram(what: &str, text: &str, name: &str, labels: &[&str]) {
    let one = |suffix: &str| lines(text, &format!("{name}{suffix}"), labels).map(|(_, value)| value).sum::<f64>();
    let (count, sum) = (one("_count"), one("_sum"));
    assert!(count > 0.0, "{what}: no {name} with {labels:?} in\n{text}");
    let bucket = format!("{name}_bucket");
    let bound = |head: &str| head.split("le=\"").nth(1).and_then(|rest| rest.split('"').next()).map(str::to_owned);
    let mut buckets: Vec<(f64, f64)> =
        lines(text, &bucket, labels).filter_map(|(head, value)| Some((bound(head)?.parse().ok()?, value))).collect();
    buckets.sort_by(|a, b| a.0.total_cmp(&b.0));
    let within = |part: f64| {
        buckets.iter().find(|(_, below)| *below >= count * part).map_or(f64::INFINITY, |(bound, _)| bound * 1e3)
    };
    println!(
        "{what}: {count} calls, mean {:.2} ms, p50 within {:.1} ms, p99 within {:.1} ms",
        sum / count * 1e3,
        within(0.5),
        within(0.99)
    );
}

async fn fetched(client: &Client, uri: &str) -> String {
    client.request_text(http::Request::get(uri).body(Vec::new()).unwrap()).await.unwrap()
}

/// As podshmd counts them, and as the kubelet does, who waits for them.
async fn publish_times(cluster: &Cluster, client: &Client, system: &Space) {
    let daemon = cluster.pod_of(system, "app=podshmd", Some("a")).unwrap();
    let text = fetched(client, &format!("/api/v1/namespaces/{}/pods/{daemon}:9478/proxy/metrics", system.name)).await;
    histogram("podshmd's publish", &text, "podshm_csi_call_duration_seconds", &["call=\"publish\"", "result=\"done\""]);
    let text = fetched(client, "/api/v1/nodes/a/proxy/metrics").await;
    histogram("the kubelet's NodePublishVolume", &text, "csi_operations_seconds", &["podshm.dev", "NodePublishVolume"]);
}

/// What the API server counts of EndpointSlices: watches now, watch events and their bytes since its start.
async fn told(client: &Client) -> (f64, f64, f64) {
    let text = fetched(client, "/metrics").await;
    let sum = |name: &str, labels: &[&str]| lines(&text, name, labels).map(|(_, value)| value).sum::<f64>();
    (
        sum("apiserver_longrunning_requests", &["resource=\"endpointslices\"", "verb=\"WATCH\""]),
        sum("apiserver_watch_events_sizes_count", &["kind=\"EndpointSlice\""])
            + sum("apiserver_watch_events_sizes_count", &["resource=\"endpointslices\""]),
        sum("apiserver_watch_events_sizes_sum", &["kind=\"EndpointSlice\""])
            + sum("apiserver_watch_events_sizes_sum", &["resource=\"endpointslices\""]),
    )
}

/// One agent for a node beside one in each of its pods.
async fn watches(cluster: &Cluster, client: &Client, system: &Space) {
    let slice = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": "measured", "namespace": "shop", "labels": {"kubernetes.io/service-name": "measured"}},
        "ports": [{"name": "http", "port": 80, "protocol": "TCP"}],
        "endpoints": (1..=50).map(|n| json!({"addresses": [format!("10.8.0.{n}")], "conditions": {"ready": true}})).collect::<Vec<_>>(),
    });
    cluster.put(&[slice]).unwrap();
    let slices: Api<EndpointSlice> = Api::namespaced(client.clone(), "shop");
    let change = async |what: &str| {
        let before = told(client).await;
        for number in 0..CHANGES {
            let patch = json!({"metadata": {"annotations": {"podshm.dev/number": number.to_string()}}});
            slices.patch("measured", &PatchParams::default(), &Patch::Merge(patch)).await.unwrap();
        }
        tokio::time::sleep(Duration::from_secs(2)).await;
        let after = told(client).await;
        println!(
            "{what}: {} watches of EndpointSlices; {CHANGES} changes of a slice with 50 endpoints: {} events, {:.0} KiB",
            after.0,
            after.1 - before.1,
            (after.2 - before.2) / 1024.0
        );
    };
    // The controller manager watches them too, for itself.
    change("an agent for each of two nodes").await;
    let own = |number: usize| {
        let mut own = serde_json::to_value(pod(&format!("own-{number}"), &["broker"], false)).expect("a pod");
        own["spec"]["serviceAccountName"] = "route-agent".into();
        own["spec"]["automountServiceAccountToken"] = true.into();
        let mut agent = own["spec"]["containers"][0].clone();
        agent["name"] = "agent".into();
        agent["image"] = ROUTE_AGENT.into();
        agent["args"] = json!(["--kubernetes", "--socket-dir=/run/podshm"]);
        let mount = json!([{"name": "sockets", "mountPath": "/run/podshm"}]);
        own["spec"]["containers"][0]["volumeMounts"] = mount.clone();
        agent["volumeMounts"] = mount;
        own["spec"]["containers"].as_array_mut().expect("containers").push(agent);
        own["spec"]["volumes"] = json!([{"name": "sockets", "emptyDir": {}}]);
        own
    };
    cluster
        .put(
            &(0..OWN)
                .map(|number| {
                    let mut own = own(number);
                    own["metadata"]["namespace"] = system.name.clone().into();
                    own
                })
                .collect::<Vec<Value>>(),
        )
        .unwrap();
    for number in 0..OWN {
        cluster.ready(system, &format!("own-{number}")).unwrap();
        let name = format!("own-{number}");
        until("its agent to serve", || {
            Ok(cluster.within(system, &["logs", &name, "-c", "agent"])?.contains("epoch=1 ").then_some(()))
        })
        .unwrap();
    }
    change(&format!("and one in each of {OWN} pods of node a")).await;
    for number in 0..OWN {
        cluster
            .within(system, &["delete", "pod", &format!("own-{number}"), "--wait=false", "--grace-period=1"])
            .unwrap();
    }
    for number in 0..OWN {
        cluster.gone(system, &format!("own-{number}")).unwrap();
    }
}

/// Processes of podshmd on node a.
fn daemons(cluster: &Cluster) -> Vec<u32> {
    let first = alive(&cluster.place, "a").expect("the node runs");
    let parent = |pid: u32| -> Option<u32> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
    };
    let is_below = |pid: u32| std::iter::successors(Some(pid), |pid| parent(*pid)).take(20).any(|pid| pid == first);
    let all =
        fs::read_dir("/proc").expect("/proc").flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let is_daemon =
        |pid: &u32| fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.starts_with("podshmd"));
    all.filter(is_daemon).filter(|pid| is_below(*pid)).collect()
}

/// KiB of memory of its own, and clock ticks that it has run.
fn used(cluster: &Cluster) -> (u64, u64) {
    let (mut own, mut ticks) = (0, 0);
    for pid in daemons(cluster) {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let kib = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            line.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or_default()
        };
        own += kib("RssAnon:");
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let words: Vec<&str> =
            stat.rsplit_once(')').map(|(_, rest)| rest.split_whitespace().collect()).unwrap_or_default();
        ticks += [11, 12].iter().filter_map(|at| words.get(*at)?.parse::<u64>().ok()).sum::<u64>();
    }
    (own, ticks)
}

/// The daemon with so many pods on its node that have a volume and a client in it, all idle.
async fn crowds(cluster: &Cluster, client: &Client, shop: &Space) {
    let pods: Api<Pod> = Api::namespaced(client.clone(), &shop.name);
    let mut there = 0;
    for crowd in CROWDS {
        let begin = Instant::now();
        for number in there..crowd {
            pods.create(&PostParams::default(), &pod(&format!("crowd-{number}"), &["routes", "join"], true))
                .await
                .unwrap();
        }
        for number in there..crowd {
            within("a pod to be ready", await_condition(pods.clone(), &format!("crowd-{number}"), is_ready())).await;
        }
        let (new, started) = (crowd - there, begin.elapsed());
        there = crowd;
        // What their start brought has passed.
        tokio::time::sleep(Duration::from_secs(10)).await;
        let (_, before) = used(cluster);
        tokio::time::sleep(IDLE).await;
        let (own, after) = used(cluster);
        let regions = report(cluster, "a").unwrap()["domains"][0]["regionBytes"].as_u64().unwrap();
        println!(
            "podshmd with {crowd} pods: {:.1} MiB of its own, {:.1} MiB of regions, {:.2} % of a core idle ({new} pods started in {:.0} s)",
            own as f64 / 1024.0,
            regions as f64 / f64::from(1 << 20),
            (after - before) as f64 / IDLE.as_secs_f64(),
            started.as_secs_f64()
        );
    }
}
