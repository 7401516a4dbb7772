//! The route agent of the chart on a real cluster: it watches EndpointSlices, and business pods look up its routes.
//!
//! One test: the agent is the same throughout, and what is measured is printed.

use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{Patch, PatchParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};
use podshm_cluster::control;
use podshm_cluster::images::POD;
use podshm_cluster::loads;
use podshm_cluster::place::{NODES, nodes};
use podshm_cluster::supervise::{alive, ask};
use podshm_cluster::testing::{Cluster, Space, until};
use route_agent::delivered::{self, Delivered};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

const KEY: &str = "shop/web:http";
/// Where the agents write down what they delivered, on each node.
const DELIVERED: &str = "/run/podshm-delivered";
/// Changes that are measured.
const CHANGES: usize = 200;

#[test]
fn business_pods_look_up_services_of_the_cluster() {
    let cluster = Cluster::connect().unwrap();
    let system = Space { name: "podshm-system".into() };
    cluster.provide_podshm().unwrap();
    cluster.provide_route_agent().unwrap();
    cluster.install(&["routeAgent.enabled=true"]).unwrap();
    let domain = json!({
        "modes": ["channel"], "budget": "64Mi", "perPod": "16Mi",
        "serve": [{"namespace": "podshm-system", "serviceAccounts": ["route-agent"]}],
        "join": [{"namespace": "shop"}, {"namespace": "till"}],
    });
    cluster.domain("routing", &domain).unwrap();
    cluster.rolled_out(&system, "daemonset/podshmd").unwrap();
    cluster.rolled_out(&system, "daemonset/route-agent").unwrap();
    let (shop, till) = (cluster.space("shop", "restricted").unwrap(), cluster.space("till", "restricted").unwrap());

    let nodes = cluster.nodes().unwrap();
    pods_see_the_endpoints_that_the_api_server_has(&cluster, &nodes, &shop, &till);
    change_to_visible(&cluster, &nodes, &shop, &till);
    if cluster.is_ours() {
        the_agent_is_rolled_under_load(&cluster, &system, &shop, &till);
        lookups_go_on_while_the_api_server_is_away(&cluster, &shop, &till);
    } else {
        println!(
            "SKIPPED: the agent rolled under load, the API server away: they look into nodes, and this cluster is not ours"
        );
    }

    for space in [&shop, &till] {
        cluster.leave(space).unwrap();
    }
    cluster.uninstall().unwrap();
}

/// A pod of a domain's member, as `restricted` wants it.
fn business(name: &str, node: &str, user: u32, arguments: &[&str]) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {
            "nodeName": node, "restartPolicy": "Never", "terminationGracePeriodSeconds": 5, "automountServiceAccountToken": false,
            "securityContext": {"runAsNonRoot": true, "runAsUser": user, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [{
                "name": "pod", "image": POD, "imagePullPolicy": "Never", "args": arguments,
                "securityContext": {
                    "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "capabilities": {"drop": ["ALL"]},
                },
                "volumeMounts": [{"name": "podshm", "mountPath": "/run/podshm", "readOnly": true}],
            }],
            "volumes": [{"name": "podshm", "csi": {"driver": "podshm.dev", "volumeAttributes": {"domain": "routing"}}}],
        },
    })
}

/// Pods of the service, which do nothing; and one that is ready when a test says so.
fn service() -> Vec<Value> {
    let restricted = json!({
        "automountServiceAccountToken": false, "terminationGracePeriodSeconds": 1,
        "securityContext": {"runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [{
            "name": "web", "image": POD, "imagePullPolicy": "Never", "args": ["hold"],
            "securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}},
        }],
    });
    let mut gated = restricted.clone();
    gated["readinessGates"] = json!([{"conditionType": "podshm.dev/test"}]);
    let labels = json!({"app": "web"});
    vec![
        json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": "web", "namespace": "shop"},
            "spec": {"selector": labels, "ports": [{"name": "http", "port": 80, "targetPort": 8080}]},
        }),
        json!({
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web", "namespace": "shop"},
            "spec": {
                "replicas": 2, "selector": {"matchLabels": {"app": "web", "kind": "scaled"}},
                "template": {"metadata": {"labels": {"app": "web", "kind": "scaled"}}, "spec": restricted},
            },
        }),
        json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "gated", "namespace": "shop", "labels": labels}, "spec": gated,
        }),
    ]
}

/// The ready endpoints of the service as the API server has them; `none` where it has no port for any.
fn in_the_api(cluster: &Cluster, shop: &Space) -> anyhow::Result<String> {
    let found =
        cluster.within(shop, &["get", "endpointslices", "-l", "kubernetes.io/service-name=web", "-o", "json"])?;
    let found: Value = serde_json::from_str(&found)?;
    let mut ready = BTreeSet::new();
    let mut has_port = false;
    for slice in found["items"].as_array().into_iter().flatten() {
        for port in slice["ports"].as_array().into_iter().flatten().filter_map(|port| port["port"].as_u64()) {
            has_port = true;
            for endpoint in slice["endpoints"].as_array().into_iter().flatten() {
                if endpoint["conditions"]["ready"].as_bool().unwrap_or(true) {
                    ready.insert(format!("{}:{port}", endpoint["addresses"][0].as_str().unwrap_or_default()));
                }
            }
        }
    }
    Ok(if has_port { ready.into_iter().collect::<Vec<_>>().join(",") } else { "none".into() })
}

fn pods_see_the_endpoints_that_the_api_server_has(cluster: &Cluster, nodes: &[String; 2], shop: &Space, till: &Space) {
    let places = [(shop, 0, 30002), (shop, 1, 30002), (till, 0, 40003), (till, 1, 40003)];
    for (space, node, user) in places {
        cluster.start(space, &business(&format!("client-{node}"), &nodes[node], user, &["hold"])).unwrap();
    }
    let all_see = |what: &str, number: usize| {
        until(&format!("{what}: all pods to see {number} endpoints"), || {
            let expected = in_the_api(cluster, shop)?;
            if expected.split(',').filter(|address| address.contains(':')).count() != number {
                return Ok(None);
            }
            for (space, node, _) in places {
                let command = ["/podshm-cluster-pod", "routes", "lookup", KEY];
                let said = cluster.run(space, &format!("client-{node}"), &command)?;
                anyhow::ensure!(said.is_fine, "{}/client-{node}: {}", space.name, said.text);
                if said.text != expected {
                    return Ok(None);
                }
            }
            Ok(Some(()))
        })
        .unwrap_or_else(|error| panic!("{error:#}"));
    };
    let gate = |status: &str| {
        let patch = json!({"status": {"conditions": [{"type": "podshm.dev/test", "status": status}]}}).to_string();
        cluster.within(shop, &["patch", "pod", "gated", "--subresource=status", "-p", &patch]).unwrap();
    };
    let scale = |number: &str| {
        cluster.within(shop, &["scale", "deployment/web", &format!("--replicas={number}")]).unwrap();
    };
    cluster.put(&service()).unwrap();
    all_see("the Deployment", 2);
    scale("4");
    all_see("scaled up", 4);
    scale("1");
    all_see("scaled down", 1);
    gate("True");
    all_see("a pod became ready", 2);
    gate("False");
    all_see("a pod is not ready any more", 1);
    gate("True");
    all_see("it is again", 2);
    cluster.within(shop, &["delete", "pod", "gated", "--grace-period=1"]).unwrap();
    all_see("a pod was deleted", 1);
    for (space, node, _) in places {
        cluster
            .within(space, &["delete", "pod", &format!("client-{node}"), "--wait=false", "--grace-period=1"])
            .unwrap();
    }
}

fn since_1970() -> u128 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970").as_nanos()
}

/// Changes a slice of a service that has no pods, and has pods on both nodes write down when they see it.
fn change_to_visible(cluster: &Cluster, nodes: &[String; 2], shop: &Space, till: &Space) {
    let slice = |address: &str| {
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {"name": "measured", "namespace": "shop", "labels": {"kubernetes.io/service-name": "measured"}},
            "ports": [{"name": "http", "port": 80, "protocol": "TCP"}],
            "endpoints": [{"addresses": [address], "conditions": {"ready": true}}],
        })
    };
    cluster.put(&[slice("10.8.0.1")]).unwrap();
    let watchers = [(shop, 0, 30002), (till, 1, 40003)];
    let name = |node: usize| format!("follow-{node}");
    for (space, node, user) in watchers {
        cluster
            .start(space, &business(&name(node), &nodes[node], user, &["routes", "follow", "shop/measured:http"]))
            .unwrap();
    }
    let seen = |space: &Space, node: usize| cluster.within(space, &["logs", &name(node)]);
    for (space, node, _) in watchers {
        until("the first value to be seen", || Ok(seen(space, node)?.contains("10.8.0.1:80").then_some(()))).unwrap();
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let changes: Vec<(String, u128, u128)> = runtime.block_on(async {
        let kubeconfig = Kubeconfig::read_from(cluster.place.kubeconfig()).unwrap();
        let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
        let api: Api<EndpointSlice> = Api::namespaced(Client::try_from(config).unwrap(), "shop");
        let mut changes = Vec::new();
        for number in 0..CHANGES {
            let address = format!("10.9.{}.{}", number / 200, number % 200 + 1);
            let patch = json!({"endpoints": [{"addresses": [address], "conditions": {"ready": true}}]});
            let sent = since_1970();
            api.patch("measured", &PatchParams::default(), &Patch::Merge(patch)).await.unwrap();
            changes.push((address, sent, since_1970()));
            tokio::time::sleep(Duration::from_millis(30)).await;
        }
        changes
    });
    let last = format!("{}:80", changes.last().expect("there are some").0);
    for (space, node, _) in watchers {
        let text =
            until("the last value to be seen", || Ok(Some(seen(space, node)?).filter(|text| text.contains(&last))))
                .unwrap();
        let when: BTreeMap<&str, u128> = text
            .lines()
            .filter_map(|line| line.split_once(' '))
            .filter_map(|(at, what)| Some((what, at.parse().ok()?)))
            .collect();
        let (mut from_request, mut from_answer) = (Vec::new(), Vec::new());
        for (address, sent, answered) in &changes {
            if let Some(at) = when.get(format!("{address}:80").as_str()) {
                from_request.push(at.saturating_sub(*sent));
                from_answer.push(at.saturating_sub(*answered));
            }
        }
        println!("node {node}: {} of {CHANGES} changes seen one by one", from_request.len());
        for (what, mut all) in [("its request", from_request), ("the API server's answer", from_answer)] {
            all.sort_unstable();
            let at = |part: usize| all[(all.len() * part / 100).min(all.len() - 1)] as f64 / 1e6;
            println!(
                "node {node}: visible in the pod after {what}: p50 {:.2} ms, p99 {:.2} ms, max {:.2} ms",
                at(50),
                at(99),
                at(100)
            );
        }
        cluster.within(space, &["delete", "pod", &name(node), "--wait=false", "--grace-period=1"]).unwrap();
    }
}

/// What a pod that picked and reported says at its end.
struct Load {
    count: u64,
    /// How long nobody had vouched for the routes, at most, in ms.
    oldest: u64,
}

/// Pods of both nodes pick and report while something is done; what they say at the end, by sender.
fn under_load(
    cluster: &Cluster,
    spaces: [&Space; 2],
    first_sender: u32,
    what: &str,
    act: impl FnOnce(),
) -> BTreeMap<u32, Load> {
    let pods: Vec<(&Space, String)> =
        spaces.iter().zip(NODES).map(|(space, node)| (*space, format!("load-{node}"))).collect();
    for (((space, pod), node), sender) in pods.iter().zip(NODES).zip(first_sender..) {
        cluster.create(space, &business(pod, node, 30002, &["routes", "load", &sender.to_string(), KEY])).unwrap();
    }
    loads::meanwhile(cluster, &pods, (what, loads::During::RECORDS), act);
    let mut counts = BTreeMap::new();
    for ((space, pod), sender) in pods.iter().zip(first_sender..) {
        let last = loads::ended(cluster, space, pod, what);
        println!("{what}: {}/{pod}: {last}", space.name);
        let words: Vec<&str> = last.split(' ').collect();
        let number = |at: usize| words.get(at).and_then(|word| word.parse().ok()).expect("a number");
        counts.insert(sender, Load { count: number(0), oldest: number(words.len().saturating_sub(2)) });
    }
    counts
}

fn delivered_on(cluster: &Cluster, node: &str) -> PathBuf {
    let pid = alive(&cluster.place, node).expect("the node runs");
    PathBuf::from(format!("/proc/{pid}/root{DELIVERED}"))
}

fn the_agent_is_rolled_under_load(cluster: &Cluster, system: &Space, shop: &Space, till: &Space) {
    for node in nodes() {
        let directory = delivered_on(cluster, node);
        // Of a run that failed.
        let _ = fs::remove_dir_all(&directory);
        fs::create_dir_all(&directory).unwrap();
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o777)).unwrap();
    }
    let patch = |patch: Value| {
        let kind = if patch.is_array() { "--type=json" } else { "--type=merge" };
        cluster.within(system, &["patch", "daemonset", "route-agent", kind, "-p", &patch.to_string()]).unwrap();
        cluster.rolled_out(system, "daemonset/route-agent").unwrap();
    };
    let container = "/spec/template/spec/containers/0";
    patch(json!([
        {"op": "add", "path": format!("{container}/args/-"), "value": format!("--log-delivered={DELIVERED}/log")},
        {"op": "add", "path": format!("{container}/volumeMounts/-"), "value": {"name": "delivered", "mountPath": DELIVERED}},
        {"op": "add", "path": "/spec/template/spec/volumes/-", "value": {"name": "delivered", "hostPath": {"path": DELIVERED}}},
    ]));
    let restart = || {
        cluster.within(system, &["rollout", "restart", "daemonset/route-agent"]).unwrap();
        cluster.rolled_out(system, "daemonset/route-agent").unwrap();
    };
    let counts = under_load(cluster, [shop, till], 100, "rolled by maxSurge", restart);
    all_delivered(cluster, &counts, "rolled by maxSurge", false);
    patch(json!({"spec": {"updateStrategy": {"rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1}}}}));
    let counts = under_load(cluster, [shop, till], 200, "rolled by maxUnavailable", restart);
    all_delivered(cluster, &counts, "rolled by maxUnavailable", false);
    let counts = under_load(cluster, [shop, till], 300, "deleted by force", || {
        cluster.within(system, &["delete", "pod", "-l", "app=route-agent", "--grace-period=0", "--force"]).unwrap();
        cluster.rolled_out(system, "daemonset/route-agent").unwrap();
        for node in NODES {
            // What a DaemonSet says of itself may be from before.
            cluster.pod_of(system, "app=route-agent", Some(node)).unwrap();
        }
    });
    all_delivered(cluster, &counts, "deleted by force", true);
    for node in nodes() {
        fs::remove_dir_all(delivered_on(cluster, node)).unwrap();
    }
}

/// Whether each record of each sender was delivered, in order; more than once only where it is marked, and an agent may have died.
fn all_delivered(cluster: &Cluster, counts: &BTreeMap<u32, Load>, what: &str, may_repeat: bool) {
    let mut all = Vec::new();
    for node in NODES {
        let file = fs::File::open(delivered_on(cluster, node).join("log")).unwrap();
        all.extend(delivered::read(file).map(Result::unwrap));
    }
    for (&sender, &Load { count, .. }) in counts {
        let of_it =
            all.iter().filter(|Delivered { trailer, .. }| trailer.is_some_and(|trailer| trailer.sender == sender));
        let (mut next, mut repeated) = (0, 0);
        for Delivered { trailer, maybe_seen, .. } in of_it {
            let found = trailer.expect("only those").seq;
            if found < next {
                assert!(may_repeat && *maybe_seen, "{what}: sender {sender}: {found} again, marked: {maybe_seen}");
                repeated += 1;
            } else {
                assert_eq!(found, next, "{what}: sender {sender}: lost before {found}");
                next += 1;
            }
        }
        assert_eq!(next, count, "{what}: sender {sender}");
        println!("{what}: sender {sender}: {count} records delivered, 0 lost, {repeated} repeated and marked so");
    }
}

fn lookups_go_on_while_the_api_server_is_away(cluster: &Cluster, shop: &Space, till: &Space) {
    let away = Duration::from_secs(8);
    let loads = under_load(cluster, [shop, till], 400, "API server away", || {
        ask(&cluster.place, control::SET, "stop kube-apiserver").unwrap();
        std::thread::sleep(away);
        ask(&cluster.place, control::SET, "start kube-apiserver").unwrap();
        until("the API server to be back", || Ok((cluster.kubectl(&["get", "--raw=/readyz"])? == "ok").then_some(())))
            .unwrap();
        // Changes are seen again.
        cluster.within(shop, &["scale", "deployment/web", "--replicas=3"]).unwrap();
        until("the change to be seen", || {
            let expected = in_the_api(cluster, shop)?;
            let said = cluster.run(shop, "load-a", &["/podshm-cluster-pod", "routes", "lookup", KEY])?.text;
            Ok((said == expected && expected.split(',').count() == 3).then_some(()))
        })
        .unwrap();
    });
    for Load { oldest, .. } in loads.into_values() {
        let least = away.as_millis() as u64 - 3000;
        assert!(oldest >= least, "nobody vouched for the routes for {away:?}, but the oldest were {oldest} ms old");
    }
}
