//! What happens to gray rollouts of three nodes from outside: another rollout, a person who edits nodes, an API server that is started anew,
//! a budget that blocks, a node that dies.
//!
//! As in `rollout.rs`, agents and business are programs that hold still. Business under load is in `migration.rs`.

use podshm_cluster::place::nodes;
use podshm_cluster::rollouts::{
    ASKED, Lowest, business_as_before, get, has_label, has_taint, leave, message, node_that_is, nodes_json, ready,
    rollout, rollout_says, scene, start, states, text, wait_for, with_file,
};
use podshm_cluster::supervise::ask;
use podshm_cluster::testing::{Cluster, Space, until};
use podshm_cluster::{cgroups, control};
use serde_json::{Value, json};
use std::time::Duration;

#[test]
fn rollouts_survive_what_happens_around_them() {
    let cluster = Cluster::connect().unwrap();
    let (routing, shop, mut controller) = scene(&cluster);

    label_and_taint_that_are_there_already_are_refused(&cluster);
    one_that_is_deleted_midway_goes_back_first(&cluster, &shop);
    one_at_a_time_whatever_the_api_server_and_people_do(&cluster, &shop);
    business_as_before(&cluster, &shop);
    a_budget_that_blocks_is_told_of_waited_for_and_kept(&cluster, &shop);
    business_as_before(&cluster, &shop);
    a_node_that_dies_stops_the_rollout_and_its_removal_lets_it_go_on(&cluster, &shop);
    assert!(controller.is_alive(), "one controller has been there all the time");
    drop(controller);

    leave(&cluster, [&shop, &routing]);
}

fn begin(cluster: &Cluster, object: &Value) {
    let said = start(cluster, object);
    assert!(said.status.success(), "{}", text(&said));
}

fn all_are_slim(cluster: &Cluster, shop: &Space) {
    for (name, asked) in ASKED {
        assert_eq!(ready(cluster, shop, &format!("app={name},form=slim")), asked);
        assert_eq!(ready(cluster, shop, &format!("app={name},form=fat")), 0);
    }
}

fn node_name(node: &Value) -> String {
    node["metadata"]["name"].as_str().unwrap_or_default().to_owned()
}

fn labelled(cluster: &Cluster) -> Vec<String> {
    nodes_json(cluster).iter().filter(|node| has_label(node)).map(node_name).collect()
}

/// Somebody else's node with such a label and taint: nothing is begun, and what is there stays as it is.
fn label_and_taint_that_are_there_already_are_refused(cluster: &Cluster) {
    let other = nodes()[1];
    cluster.kubectl(&["taint", "node", other, "AgentsDaemonSet=YES:NoSchedule"]).unwrap();
    let expected = format!("node {other}: it has the taint AgentsDaemonSet=YES:NoSchedule already");
    let object = rollout("foreign", &["/probe", "size"]);
    let said = start(cluster, &object);
    assert!(!said.status.success() && text(&said).contains(&expected), "{}", text(&said));
    cluster.given(&["create", "-f", "-"], &object.to_string()).unwrap();
    let found = wait_for(cluster, "foreign", "Refused");
    assert!(message(&found).contains(&expected), "{found}");
    assert_eq!(labelled(cluster), [""; 0]);
    let node = nodes_json(cluster).into_iter().find(|node| node_name(node) == other).unwrap();
    assert!(has_taint(&node), "{node}");
    cluster.kubectl(&["taint", "node", other, "AgentsDaemonSet-"]).unwrap();
    cluster.kubectl(&["delete", "agentrollout", "foreign"]).unwrap();
}

fn one_that_is_deleted_midway_goes_back_first(cluster: &Cluster, shop: &Space) {
    let lowest = Lowest::watch(cluster);
    begin(cluster, &rollout("deleted", &["/probe", "size"]));
    let at = node_that_is(cluster, "Migrating");
    assert_eq!(get(cluster, "deleted")["metadata"]["finalizers"], json!(["podshm.dev/rollout"]));
    until("a slim pod of it", || Ok((ready(cluster, shop, "form=slim") > 0).then_some(()))).unwrap();
    println!("deleted while {at} was on its way: {:?}", states(cluster));
    cluster.kubectl(&["delete", "agentrollout", "deleted", "--wait=false"]).unwrap();
    // The status says so as long as it is there, and events once it is not.
    until("it to be gone", || {
        let found = cluster.kubectl(&["get", "agentrollout", "deleted", "--ignore-not-found", "-o", "json"])?;
        if found.trim().is_empty() {
            return Ok(Some(()));
        }
        let found: Value = serde_json::from_str(&found)?;
        anyhow::ensure!(found["status"]["phase"] != "Completed", "it went on: {}", found["status"]);
        Ok(None)
    })
    .unwrap();
    assert!(nodes_json(cluster).iter().all(|node| !has_label(node) && !has_taint(node)), "label and taint are off");
    for (name, asked) in ASKED {
        assert_eq!(ready(cluster, shop, &format!("app={name},form=fat")), asked);
        let slim = format!("{name}-slim");
        let left = cluster.within(shop, &["get", "deployment", &slim, "--ignore-not-found", "-o", "name"]).unwrap();
        assert_eq!(left.trim(), "");
    }
    assert!(states(cluster).iter().any(|(node, state)| *node == at && state == "RolledBack"), "{:?}", states(cluster));
    let events = cluster.kubectl(&["-n", "default", "get", "events.events.k8s.io", "-o", "json"]).unwrap();
    assert!(events.contains("rolled back: it was deleted"), "{events}");
    assert_eq!(lowest.seen(), ASKED.map(|(_, asked)| asked), "Ready replicas, the lowest seen");
}

fn one_at_a_time_whatever_the_api_server_and_people_do(cluster: &Cluster, shop: &Space) {
    let lowest = Lowest::watch(cluster);
    begin(cluster, &rollout("routing", &["/probe", "size"]));
    until("it to have begun", || Ok((get(cluster, "routing")["status"]["phase"] == "Running").then_some(()))).unwrap();

    // Another one with the same agents, by the command and past it.
    let other = rollout("other", &["/probe", "size"]);
    let expected = "AgentRollout routing: it is under way and has DaemonSet routing/agent, too";
    let said = start(cluster, &other);
    assert!(!said.status.success() && text(&said).contains(expected), "{}", text(&said));
    cluster.given(&["create", "-f", "-"], &other.to_string()).unwrap();
    let found = wait_for(cluster, "other", "Refused");
    assert!(message(&found).contains(expected), "{found}");
    cluster.kubectl(&["delete", "agentrollout", "other"]).unwrap();

    let at = node_that_is(cluster, "Migrating");
    ask(&cluster.place, control::SET, "restart kube-apiserver").unwrap();
    println!("the API server was started anew while {at} was Migrating");
    until("the API server to be back", || Ok((cluster.kubectl(&["get", "--raw=/readyz"])? == "ok").then_some(())))
        .unwrap();

    // Somebody takes the label off a node of the second batch, and sees what comes of it.
    until("the second batch", || Ok((get(cluster, "routing")["status"]["batch"] == 2).then_some(()))).unwrap();
    let edited = until("a node of the second batch to be touched", || {
        let done = |state: &str| ["Pending", "Done"].contains(&state);
        Ok(states(cluster).into_iter().find(|(_, state)| !done(state)).map(|(node, _)| node))
    })
    .unwrap();
    cluster.kubectl(&["label", "node", &edited, "AgentsDaemonSet-"]).unwrap();
    let found = wait_for(cluster, "routing", "Paused");
    let expected = format!("node {edited}: the label AgentsDaemonSet=YES was taken off by somebody else");
    assert!(message(&found).contains(&expected), "{found}");
    std::thread::sleep(Duration::from_secs(5));
    assert!(!labelled(cluster).contains(&edited), "it is not fought over");
    cluster.kubectl(&["label", "node", &edited, "AgentsDaemonSet=YES"]).unwrap();
    let resumed = rollout_says(cluster, &["resume", "routing"]);
    assert!(resumed.status.success(), "{}", text(&resumed));

    // And the taint off, as somebody does who wants pods there; on one with some way to go, so that the batch is not over before it is seen.
    let edited = until("a node of the second batch to be touched again", || {
        let on = |node: &Value| has_label(node) && has_taint(node);
        let touched: Vec<String> = nodes_json(cluster).iter().filter(|node| on(node)).map(node_name).collect();
        let is_touched = |state: &str| ["Preparing", "AgentReady", "Verifying"].contains(&state);
        let mut all = states(cluster).into_iter();
        Ok(all.find(|(node, state)| is_touched(state) && touched.contains(node)).map(|(node, _)| node))
    })
    .unwrap();
    cluster.kubectl(&["taint", "node", &edited, "AgentsDaemonSet-"]).unwrap();
    let found = wait_for(cluster, "routing", "Paused");
    let expected = format!("node {edited}: the taint AgentsDaemonSet=YES was taken off by somebody else");
    assert!(message(&found).contains(&expected), "{found}");
    std::thread::sleep(Duration::from_secs(5));
    let node = nodes_json(cluster).into_iter().find(|node| node_name(node) == edited).unwrap();
    assert!(has_label(&node) && !has_taint(&node), "it is not fought over: {node}");
    // Put back by hand, or by `resume`, which does so for what it tries again.
    let resumed = rollout_says(cluster, &["resume", "routing"]);
    assert!(resumed.status.success(), "{}", text(&resumed));
    wait_for(cluster, "routing", "Completed");

    all_are_slim(cluster, shop);
    assert!(nodes_json(cluster).iter().all(|node| has_label(node) && !has_taint(node)));
    assert_eq!(lowest.seen(), ASKED.map(|(_, asked)| asked), "Ready replicas, the lowest seen");
}

fn a_budget_that_blocks_is_told_of_waited_for_and_kept(cluster: &Cluster, shop: &Space) {
    let lowest = Lowest::watch(cluster);
    let budget = |least: u64| {
        json!({
            "apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": {"name": "till", "namespace": "shop"},
            "spec": {"selector": {"matchLabels": {"app": "till"}}, "minAvailable": least},
        })
    };
    // One more than there are: a slim one that comes first is not enough either.
    let (_, asked) = ASKED[1];
    cluster.put(&[budget(asked + 1)]).unwrap();
    until("the budget to be looked at", || {
        let seen = ["get", "pdb", "till", "-o", "jsonpath={.status.desiredHealthy}"];
        Ok((cluster.within(shop, &seen)? == (asked + 1).to_string()).then_some(()))
    })
    .unwrap();
    let object = rollout("blocked", &["/probe", "size"]);
    let said = with_file(cluster, "plan", &object);
    let expected = "PodDisruptionBudget till allows no disruption now";
    assert!(text(&said).contains(expected), "{}", text(&said));
    begin(cluster, &object);
    until("it to wait for the budget", || {
        let expected = "PodDisruptionBudget till allows no disruption of shop/till now";
        let found = get(cluster, "blocked");
        anyhow::ensure!(found["status"]["phase"] == "Running", "{}", found["status"]);
        Ok(message(&found).contains(expected).then_some(()))
    })
    .unwrap();
    let fat = || cluster.within(shop, &["get", "deployment", "till", "-o", "jsonpath={.spec.replicas}"]).unwrap();
    let before = fat();
    std::thread::sleep(Duration::from_secs(8));
    assert_eq!(fat(), before, "no pod of it went");
    cluster.put(&[budget(asked)]).unwrap();
    wait_for(cluster, "blocked", "Completed");
    all_are_slim(cluster, shop);
    assert_eq!(lowest.seen(), ASKED.map(|(_, asked)| asked), "Ready replicas, the lowest seen");
    cluster.within(shop, &["delete", "pdb", "till"]).unwrap();
}

fn a_node_that_dies_stops_the_rollout_and_its_removal_lets_it_go_on(cluster: &Cluster, shop: &Space) {
    begin(cluster, &rollout("dies", &["/probe", "size"]));
    let lowest = Lowest::watch(cluster);
    let dead = node_that_is(cluster, "Migrating");
    assert_eq!(lowest.seen(), ASKED.map(|(_, asked)| asked), "Ready replicas before it died, the lowest seen");
    // What runs on it dies with it; no more than that may be missing from now on, and the rollout takes none away.
    let there = |name: &str| {
        let on = format!("spec.nodeName={dead}");
        let which = ["get", "pods", "-l", &format!("app={name}"), "--field-selector", &on, "-o", "name"];
        cluster.within(shop, &which).unwrap().lines().count() as u64
    };
    let with_it = ASKED.map(|(name, _)| there(name));
    let lowest = Lowest::watch(cluster);
    for program in ["kubelet", "containerd"] {
        ask(&cluster.place, &dead, &format!("stop {program}")).unwrap();
    }
    let killed = cgroups::kill_pods(&dead).unwrap();
    println!("node {dead} is dead, {killed} processes of its pods with it");
    let found = wait_for(cluster, "dies", "Paused");
    assert!(message(&found).contains(&format!("node {dead}: the node is not Ready")), "{found}");
    let touched = labelled(cluster);
    std::thread::sleep(Duration::from_secs(5));
    assert_eq!(labelled(cluster), touched, "no other node is touched");

    cluster.kubectl(&["delete", "node", &dead]).unwrap();
    let resumed = rollout_says(cluster, &["resume", "dies"]);
    assert!(resumed.status.success(), "{}", text(&resumed));
    wait_for(cluster, "dies", "Completed");
    all_are_slim(cluster, shop);
    let lowest = lowest.seen();
    println!("Ready replicas while a node was dead: {lowest:?} at least, of {ASKED:?}; {with_it:?} pods were on it");
    for (((_, asked), lowest), with_it) in ASKED.into_iter().zip(lowest).zip(with_it) {
        assert!(lowest + with_it >= asked, "{lowest} of {asked} Ready, and {with_it} died with the node");
    }
    let left: Vec<String> = labelled(cluster);
    assert!(left.len() == nodes().len() - 1 && !left.contains(&dead), "{left:?}");

    // It comes back as a new one that no rollout has touched.
    for program in ["containerd", "kubelet"] {
        ask(&cluster.place, &dead, &format!("start {program}")).unwrap();
    }
    until("the node to be back", || {
        let ready = "jsonpath={.status.conditions[?(@.type=='Ready')].status}";
        Ok((cluster.kubectl(&["get", "node", &dead, "-o", ready])? == "True").then_some(()))
    })
    .unwrap();
    assert!(!labelled(cluster).contains(&dead));
}
