//! A whole migration under load, with real agents: two workloads go over from agents in their pods to agents of their nodes, by podshmd, the
//! chart and its controllers; four bad versions of the route agent are each stopped at the canary by the gate meant for it. Meanwhile
//! requests come, 333 a second. None fails, and every record that business reported for one is delivered.
//!
//! One test: the load is the same throughout. That a fleet of programs that hold still survives what else happens is in `rollout.rs` and
//! `rollout_faults.rs`.

#[path = "migration/fleet.rs"]
mod fleet;
#[path = "migration/load.rs"]
mod load;

use fleet::{ASKED, DELIVERED, POLICY, careful_conversion, conversion, objects, upgrade, with_fault, with_log};
use load::{Done, Load, SERVICES};
use podshm_cluster::place::nodes;
use podshm_cluster::rollouts::{
    has_label, has_taint, message, nodes_as_before, nodes_json, ready, rollout_says, start, text, wait_for,
};
use podshm_cluster::supervise::alive;
use podshm_cluster::testing::{Cluster, Space, until};
use route_agent::delivered::{self, Delivered};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::Duration;

/// Requests of each second, in each window of the whole time; of 250 that are sent.
const AT_LEAST: u64 = 200;
/// A window: long enough that a kubelet's or a scheduler's burst on a machine of two cores is not all of it.
const SECONDS: u64 = 5;

#[test]
fn two_workloads_go_over_under_load_and_bad_agents_are_stopped_at_the_canary() {
    assert!(nodes().len() >= 3, "expected three nodes: PODSHM_CLUSTER_NODES=3");
    let cluster = Cluster::connect().unwrap();
    let system = Space { name: "podshm-system".into() };
    let shop = cluster.space("shop", "restricted").unwrap();
    install(&cluster, &system);
    cluster.put(&objects()).unwrap();
    for (name, _) in ASKED {
        cluster.rolled_out(&shop, &format!("deployment/{name}")).unwrap();
    }
    for what in ["daemonset/podshmd", "deployment/podshm-rollouts"] {
        cluster.rolled_out(&system, what).unwrap();
    }
    let load = Load::start(&cluster);
    load.is_unhurt("fat business takes requests");

    wrong_answers_are_stopped_before_any_business_moves(&cluster, &system, &shop);
    load.is_unhurt("an agent that answers wrongly was stopped");
    the_fleet_goes_over(&cluster, &shop);
    load.is_unhurt("all are slim");
    for (fault, gate) in [("crashes", "agents"), ("gets-slow", "latency"), ("leaks", "podshm")] {
        load.calm();
        a_bad_version_is_stopped_at_the_canary(&cluster, &system, &shop, fault, gate);
        load.is_unhurt(&format!("an agent that {fault} was stopped"));
    }

    let (done, failed, took) = load.end();
    judge(&cluster, &shop, &done, &failed, took);
    cluster.leave(&shop).unwrap();
    cluster.kubectl(&["delete", "persistentvolume/delivered", "clusterrolebinding/test-fat-agents"]).unwrap();
    cluster.kubectl(&["-n", "default", "delete", "role,rolebinding", "-l", "app=podshm-rollouts"]).unwrap();
    cluster.uninstall().unwrap();
    nodes_as_before(&cluster, nodes());
}

/// podshmd, both agents for converted nodes, the rollouts' controllers; and where agents write down what they are given.
fn install(cluster: &Cluster, system: &Space) {
    cluster.provide_podshm().unwrap();
    cluster.provide_route_agent().unwrap();
    cluster.provide_guard_agent().unwrap();
    cluster.provide_command().unwrap();
    for node in nodes() {
        let directory = delivered_on(cluster, node);
        // Of a run that failed.
        let _ = fs::remove_dir_all(&directory);
        fs::create_dir_all(&directory).unwrap();
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o777)).unwrap();
    }
    let mut values = vec![
        r#"podshmd.memory="320Mi""#.to_owned(),
        "rollouts.enabled=true".into(),
        r#"rollouts.namespaces=["shop","podshm-system"]"#.into(),
        format!("guardAgent.policies={}", json!({"main.cedar": POLICY})),
    ];
    for agent in ["routeAgent", "guardAgent"] {
        values.push(format!("{agent}.enabled=true"));
        values.push(format!(r#"{agent}.nodeSelector={{"AgentsDaemonSet":"YES"}}"#));
        values.push(format!(r#"{agent}.updateStrategy={{"type":"OnDelete","rollingUpdate":null}}"#));
    }
    cluster.install(&values.iter().map(String::as_str).collect::<Vec<_>>()).unwrap();
    patch_agent(cluster, system, &with_log());
    let domain = |agent: &str, modes: Value| {
        json!({
            "modes": modes, "budget": "64Mi", "perPod": "16Mi",
            "serve": [{"namespace": "podshm-system", "serviceAccounts": [agent]}], "join": [{"namespace": "shop"}],
        })
    };
    let mut routing = domain("route-agent", json!(["channel", "posix"]));
    routing["shmSize"] = json!("32Mi");
    cluster.domain("routing", &routing).unwrap();
    cluster.domain("guard", &domain("guard-agent", json!(["channel"]))).unwrap();
}

fn patch_agent(cluster: &Cluster, system: &Space, patch: &Value) {
    cluster.within(system, &["patch", "daemonset", "route-agent", "--type=json", "-p", &patch.to_string()]).unwrap();
}

fn delivered_on(cluster: &Cluster, node: &str) -> PathBuf {
    let pid = alive(&cluster.place, node).expect("the node runs");
    PathBuf::from(format!("/proc/{pid}/root{DELIVERED}"))
}

fn begin(cluster: &Cluster, object: &Value) {
    let said = start(cluster, object);
    assert!(said.status.success(), "{}", text(&said));
}

/// Where nothing has been converted yet the verification is what stands before business.
fn wrong_answers_are_stopped_before_any_business_moves(cluster: &Cluster, system: &Space, shop: &Space) {
    patch_agent(cluster, system, &with_fault("answers-wrongly"));
    begin(cluster, &careful_conversion("wrong"));
    let found = wait_for(cluster, "wrong", "RolledBack");
    // The canary is Failed by then, and no other node has agents to look at.
    stopped_by(&found, "verification", "lookup: shop/ledger:http has 192.0.2.", &["agents"]);
    assert!(nodes_json(cluster).iter().all(|node| !has_label(node) && !has_taint(node)));
    let slim = cluster.within(shop, &["get", "pods,deployments", "-l", "form=slim", "-o", "name"]).unwrap();
    assert_eq!(slim, "", "no slim business has been made");
    cluster.within(system, &["rollout", "undo", "daemonset/route-agent"]).unwrap();
    cluster.kubectl(&["delete", "agentrollout", "wrong"]).unwrap();
}

/// A rollout was stopped in its first batch by this gate, in these words, and each other gate has passed, but for `waits`: what has no
/// verdict yet where the batch did not come as far.
fn stopped_by(found: &Value, gate: &str, says: &str, waits: &[&str]) {
    let record = &found["status"]["history"][0];
    println!("stopped: {}", record["outcome"]);
    for one in record["gates"].as_array().unwrap() {
        println!("  gate {}: {}: {}", one["gate"], one["result"], one["message"]);
        let name = one["gate"].as_str().unwrap();
        let may_wait = waits.contains(&name) && one["result"] == "Waiting";
        let expected = if name == gate { "Failed" } else { "Passed" };
        assert!(one["result"] == expected || may_wait, "expected gate {name} to be {expected}: {record:#}");
    }
    assert!(record["outcome"].as_str().unwrap().contains(says), "expected {says:?}: {record:#}");
    assert!(message(found).contains("rolled back") && found["status"]["history"].as_array().unwrap().len() == 1);
}

fn the_fleet_goes_over(cluster: &Cluster, shop: &Space) {
    let plan = conversion("migration");
    begin(cluster, &plan);
    let found = wait_for(cluster, "migration", "Completed");
    println!("{}", text(&rollout_says(cluster, &["status", "migration"])));
    for (name, asked) in ASKED {
        assert_eq!(ready(cluster, shop, &format!("app={name},form=slim")), asked);
        assert_eq!(ready(cluster, shop, &format!("app={name},form=fat")), 0);
    }
    assert!(nodes_json(cluster).iter().all(|node| has_label(node) && !has_taint(node)));
    assert!(found["status"]["history"].as_array().unwrap().iter().all(|record| record["outcome"] == "passed"));
    cluster.kubectl(&["delete", "agentrollout", "migration"]).unwrap();
}

/// Its business uses the bad version all the time, and goes on with the one before.
fn a_bad_version_is_stopped_at_the_canary(cluster: &Cluster, system: &Space, shop: &Space, fault: &str, gate: &str) {
    let mut carts: BTreeMap<String, u32> = BTreeMap::new();
    let on = ["get", "pods", "-l", "app=cart", "-o", "jsonpath={.items[*].spec.nodeName}"];
    for node in cluster.within(shop, &on).unwrap().split_whitespace() {
        *carts.entry(node.to_owned()).or_default() += 1;
    }
    let canary = carts.into_iter().max_by_key(|(_, count)| *count).expect("carts run").0;
    let agents_of_others = || {
        let on = format!("spec.nodeName!={canary}");
        let which = ["get", "pods", "-l", "app=route-agent", "--field-selector", &on];
        let uids = ["-o", "jsonpath={.items[*].metadata.uid}"];
        cluster.within(system, &[&which[..], &uids[..]].concat()).unwrap()
    };
    let others = agents_of_others();
    patch_agent(cluster, system, &with_fault(fault));
    begin(cluster, &upgrade(fault, &canary));
    let found = wait_for(cluster, fault, "RolledBack");
    // Who stops at once does so while the verification may still run; an agent that has just crashed serves no domain.
    let waits: &[&str] = if fault == "crashes" { &["verification", "podshm"] } else { &["verification"] };
    stopped_by(&found, gate, &format!("gate {gate}:"), waits);
    assert_eq!(agents_of_others(), others, "agents of other nodes were not touched");
    // The version before, there too.
    let images = ["get", "pods", "-l", "app=route-agent", "-o", "jsonpath={.items[*].spec.containers[*].image}"];
    until("the agents to be of the version before", || {
        let found = cluster.within(system, &images)?;
        Ok(found.split_whitespace().all(|image| image.contains("route-agent")).then_some(()))
    })
    .unwrap();
    cluster.kubectl(&["delete", "agentrollout", fault]).unwrap();
}

/// Nothing failed, and what the agents wrote down, those in pods and those of nodes, is what business reported, each record of it.
fn judge(cluster: &Cluster, shop: &Space, done: &[Done], failed: &[String], took: Duration) {
    let restarts = podshm_cluster::scene::restarts(cluster, shop, "app in (cart,till)").unwrap();
    let mut counts: BTreeMap<(usize, &str), u64> = BTreeMap::new();
    for one in done {
        *counts.entry((one.service, one.form.as_str())).or_default() += 1;
    }
    let rate = done.len() as f64 / took.as_secs_f64();
    println!("{} requests in {:.0} s, {rate:.0} a second, {} failed", done.len(), took.as_secs_f64(), failed.len());
    for ((service, form), count) in &counts {
        println!("  {} {form}: {count}", SERVICES[*service]);
    }
    let windows = windows(done);
    // Of all but the last, which ends before its time is over.
    let whole = &windows[..windows.len().saturating_sub(1)];
    let fewest = whole.iter().map(|window| window.values().sum::<u64>() / SECONDS).min().unwrap_or_default();
    for (at, window) in whole.iter().enumerate() {
        let all = window.values().sum::<u64>() / SECONDS;
        if all < AT_LEAST + 20 {
            println!("  from {} s on: {all} a second, {window:?}", at as u64 * SECONDS);
        }
    }
    let mut times: Vec<Duration> = done.iter().map(|one| one.took).collect();
    times.sort_unstable();
    let at = |part: usize| times[(times.len() * part / 1000).min(times.len() - 1)];
    println!(
        "  answered in a second, of any five: {fewest} at least; p50 {:.1?}, p99 {:.1?}, longest {:.1?}",
        at(500),
        at(990),
        at(1000)
    );

    let expected: BTreeSet<(u32, u64)> = done.iter().map(|one| one.record).collect();
    assert_eq!(expected.len(), done.len(), "each request has a record of its own");
    let senders: BTreeSet<u32> = expected.iter().map(|(sender, _)| *sender).collect();
    let delivered = until("all records to be delivered", || {
        let found = read_delivered(cluster)?;
        let lost = expected.iter().filter(|record| !found.records.contains_key(record)).count();
        anyhow::ensure!(lost == 0, "{lost} of {} records are in no agent's log", expected.len());
        Ok(Some(found))
    })
    .unwrap();
    // The first of each is of a request of its own, before it takes any.
    let of_nobody = delivered.records.keys().filter(|record| record.1 != 0 && !expected.contains(record)).count();
    let again: u64 = delivered.records.values().map(|times| u64::from(times - 1)).sum();
    println!(
        "  {} records of {} processes delivered to {} agents of pods and {} of nodes, 0 lost, {again} again (all marked), {of_nobody} of no request",
        delivered.records.len(),
        senders.len(),
        delivered.in_pods,
        delivered.on_nodes
    );
    assert_eq!(delivered.unmarked, 0, "records came again without being marked");
    assert_eq!(failed, &[] as &[String]);
    assert_eq!(
        (of_nobody, restarts),
        (0, 0),
        "records of requests that were never answered; business that was started again"
    );
    assert!(
        fewest >= AT_LEAST,
        "{fewest} requests a second in one window of {SECONDS} s: business was slowed down; see above"
    );
    let forms = ["fat", "slim"].map(|form| (0..SERVICES.len()).all(|service| counts.contains_key(&(service, form))));
    assert_eq!(forms, [true; 2], "both forms of both have answered: {counts:?}");
}

/// What was answered in each window, by form; one in which nothing was is there, too.
fn windows(done: &[Done]) -> Vec<BTreeMap<&str, u64>> {
    let first = done.iter().map(|one| one.at).min().unwrap();
    let mut all: Vec<BTreeMap<&str, u64>> = Vec::new();
    for one in done {
        let at = (one.at.duration_since(first).as_secs() / SECONDS) as usize;
        if all.len() <= at {
            all.resize(at + 1, BTreeMap::new());
        }
        *all[at].entry(one.form.as_str()).or_default() += 1;
    }
    all
}

#[derive(Default)]
struct Found {
    /// How often each came.
    records: BTreeMap<(u32, u64), u32>,
    unmarked: u64,
    in_pods: usize,
    on_nodes: usize,
}

fn read_delivered(cluster: &Cluster) -> anyhow::Result<Found> {
    let mut found = Found::default();
    for node in nodes() {
        for file in fs::read_dir(delivered_on(cluster, node))? {
            let file = file?;
            let of = if file.file_name() == "node" { &mut found.on_nodes } else { &mut found.in_pods };
            *of += 1;
            for entry in delivered::read(fs::File::open(file.path())?) {
                let Delivered { trailer: Some(trailer), maybe_seen, .. } = entry? else { continue };
                let times = found.records.entry((trailer.sender, trailer.seq)).or_default();
                *times += 1;
                found.unmarked += u64::from(*times > 1 && !maybe_seen);
            }
        }
    }
    Ok(found)
}
