//! Gray rollouts on a real cluster of three nodes: `podshm-controller rollouts` and `podshm rollout`, as they run elsewhere too.
//!
//! Agents and business are the probe, which holds still: what is tried here is what the API server, the scheduler and kubelets make of a
//! rollout's steps. That nobody is hurt at any moment, and that a controller may die between any two actions, is in `podshm-rollout`.

use podshm_cluster::images::CONTROLLER;
use podshm_cluster::rollouts::{
    ASKED, Controller, Lowest, business_as_before, get, has_label, has_taint, job_gate, kubectl_podshm, leave,
    nodes_json, ready, rollout, rollout_says, scene, start, states, text, wait_for,
};
use podshm_cluster::testing::{Cluster, Space, until};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

#[test]
fn a_fleet_goes_over_and_back_by_the_controller_and_the_command() {
    let cluster = Cluster::connect().unwrap();
    let (routing, shop, mut controller) = scene(&cluster);

    what_the_schema_refuses_and_in_which_words(&cluster);
    what_cannot_be_is_refused_before_anything_is_touched(&cluster);
    a_canary_that_fails_its_verification_stops_there_and_goes_back(&cluster, &shop, &mut controller);
    a_job_that_fails_stops_the_canary_and_the_command_steers(&cluster, &shop);
    the_fleet_goes_over_while_its_controller_is_killed(&cluster, &shop, &mut controller);
    controller.kill();
    business_as_before(&cluster, &shop);
    the_charts_controllers_do_it_too_and_one_follows_the_other(&cluster, &shop);

    leave(&cluster, [&shop, &routing]);
}

/// What the API server says of a rollout, without taking it.
fn refusal(cluster: &Cluster, object: &Value) -> Option<String> {
    let asked = ["create", "--dry-run=server", "--validate=strict", "-f", "-"];
    cluster.given(&asked, &object.to_string()).err().map(|error| error.to_string())
}

fn what_the_schema_refuses_and_in_which_words(cluster: &Cluster) {
    let long = "n".repeat(64);
    let agent = json!({"namespace": "routing", "name": "agent"});
    let query = json!({"name": "errors", "url": "http://prometheus:9090", "query": "up", "max": 1});
    let with = |field: &str, value: Value| {
        let mut query = query.clone();
        query[field] = value;
        json!([query])
    };
    let slim = |labels: Value| json!([{"namespace": "shop", "name": "cart", "slim": {"labels": labels}}]);
    let rows: [(&str, Value, &str); 38] = [
        ("/agents", json!([]), "agents: expected 1 to 8 DaemonSets"),
        ("/agents", json!([agent, agent]), "agents: a DaemonSet is named twice; name it once"),
        ("/agents", json!(vec![agent; 9]), "spec.agents: Too many: 9: must have at most 8 items"),
        ("/agents/0/name", json!(""), "name: expected the name of a DaemonSet"),
        ("/agents/0/namespace", json!("Routing"), "namespace: expected the name of a namespace"),
        ("/batches", json!([]), "batches: expected 1 to 50; [{count: 1}, {percent: 100}] is a canary and the rest"),
        ("/batches", json!(vec![json!({"count": 1}); 51]), "spec.batches: Too many: 51: must have at most 50 items"),
        ("/batches", json!([{}]), "a batch has one of count, percent, selector; give it one"),
        ("/batches", json!([{"percent": 50, "count": 1}]), "a batch has one of count, percent, selector; give it one"),
        ("/batches", json!([{"count": 0}]), "count: expected 1 or more: a batch of no nodes is none; leave it out"),
        ("/batches", json!([{"count": -1}]), "spec.batches[0].count"),
        ("/batches", json!([{"percent": 0}]), "percent: expected 1 to 100, of all nodes"),
        ("/batches", json!([{"percent": 101}]), "percent: expected 1 to 100, of all nodes"),
        (
            "/batches",
            json!([{"percent": 50}, {"percent": 20}]),
            "percent counts the batches before, too; expected each to be more",
        ),
        ("/batches", json!([{"selector": {}}]), "selector: expected at least one label; all nodes are {percent: 100}"),
        ("/maxUnavailable", json!(0), "maxUnavailable: expected 1 or more: with 0 no node could ever be worked on"),
        ("/soakSeconds", json!(604_801), "soakSeconds: expected at most 604800, a week"),
        ("/progressDeadlineSeconds", json!(0), "progressDeadlineSeconds: expected 10 to 86400"),
        ("/domain", json!(""), "domain: expected the name of a ShmDomain; leave it out where agents serve none"),
        ("/mark", json!({"key": "", "value": "YES"}), "mark.key: expected a label's key, as in AgentsDaemonSet"),
        (
            "/mark",
            json!({"key": "node-role.kubernetes.io/agent", "value": "YES"}),
            "are Kubernetes' own; choose another",
        ),
        ("/mark", json!({"key": "AgentsDaemonSet", "value": ""}), "mark.value: expected a label's value"),
        ("/workloads", json!([{"namespace": "shop", "name": "cart"}]), "spec.workloads[0].slim: Required value"),
        ("/workloads", slim(json!({})), "slim.labels: expected at least one that differs from the fat form's selector"),
        ("/workloads", slim(json!({"form": ""})), "spec.workloads[0].slim.labels.form"),
        ("/workloads/0/kind", json!("StatefulSet"), "kind: a rollout moves Deployments"),
        ("/workloads/1/name", json!("cart"), "spec.workloads[1]: Duplicate value"),
        ("/purpose", json!("UpgradeAgents"), "workloads: an upgrade of agents moves none; leave them out"),
        ("/purpose", json!("Convertt"), r#"supported values: "Convert", "UpgradeAgents""#),
        ("/onFailure", json!("Ignore"), r#"supported values: "Pause", "RollBack""#),
        ("/gates/verification/image", json!(""), "gates.verification.image: expected an image"),
        ("/gates/verification/namespace", json!(""), "gates.verification.namespace: expected a namespace"),
        ("/gates/verification/timeoutSeconds", json!(0), "gates.verification.timeoutSeconds: expected 1 to 3600"),
        ("/gates/prometheus", with("max", Value::Null), "a query has max, or min, or both; say what is well"),
        ("/gates/prometheus", with("min", json!(2)), "min is more than max: no number would be well; swap them"),
        (
            "/gates/prometheus",
            with("url", json!("prometheus:9090")),
            "url: expected http://HOST:PORT or https://HOST:PORT",
        ),
        ("/gates/podshm", json!({"maxShmPercent": 101}), "maxShmPercent: expected 0 to 100"),
        ("/batchs", json!([{"count": 1}]), r#"unknown field "spec.batchs""#),
    ];
    let fine = rollout("fine", &["/probe", "size"]);
    for (path, value, says) in rows {
        let mut object = fine.clone();
        let (parent, name) = path.rsplit_once('/').unwrap();
        object["spec"].pointer_mut(parent).unwrap()[name] = value.clone();
        let said = refusal(cluster, &object).unwrap_or_else(|| panic!("{path}: {value} is taken"));
        assert!(said.contains(says), "{path}: {value}: expected {says:?}, found {said}");
    }
    let said = refusal(cluster, &rollout(&long, &["/probe", "size"])).expect("a name of 64 characters");
    assert!(said.contains("metadata.name: expected at most 63 characters"), "{said}");
    let mut domain = fine.clone();
    domain["spec"]["gates"]["podshm"] = json!({"maxDrops": 3});
    domain["spec"]["domain"] = json!("routing");
    domain["spec"]["gates"]["prometheus"] = with("min", json!(0));
    for object in [&fine, &domain] {
        assert_eq!(refusal(cluster, object), None);
    }
}

fn what_cannot_be_is_refused_before_anything_is_touched(cluster: &Cluster) {
    let mut bad = rollout("bad", &["/probe", "size"]);
    bad["spec"]["agents"][0]["name"] = json!("nobody");
    bad["spec"]["workloads"][0]["name"] = json!("nothing");
    bad["spec"]["batches"] = json!([{"percent": 100}, {"count": 1}]);
    let said = start(cluster, &bad);
    assert!(!said.status.success());
    for expected in [
        "DaemonSet routing/nobody: there is none",
        "Deployment shop/nothing: there is none",
        "batch 2: it would have no nodes",
        "not started",
    ] {
        assert!(text(&said).contains(expected), "{expected}: {}", text(&said));
    }
    // The controller refuses it, too, whoever has created it.
    cluster.given(&["create", "-f", "-"], &bad.to_string()).unwrap();
    let found = wait_for(cluster, "bad", "Refused");
    assert!(found["status"]["message"].as_str().unwrap().contains("there is none"), "{found}");
    cluster.kubectl(&["delete", "agentrollout", "bad"]).unwrap();
    assert!(nodes_json(cluster).iter().all(|node| !has_label(node) && !has_taint(node)));
}

fn phase(cluster: &Cluster, name: &str) -> String {
    get(cluster, name)["status"]["phase"].as_str().unwrap_or_default().to_owned()
}

fn a_canary_that_fails_its_verification_stops_there_and_goes_back(
    cluster: &Cluster,
    shop: &Space,
    controller: &mut Controller,
) {
    let said = start(cluster, &rollout("canary", &["/probe", "posix-get", "/nothing-there"]));
    assert!(said.status.success(), "{}", text(&said));
    let found = wait_for(cluster, "canary", "Paused");
    let message = found["status"]["message"].as_str().unwrap();
    assert!(message.contains("verification failed"), "{message}");
    assert_eq!(nodes_json(cluster).iter().filter(|node| has_label(node) && has_taint(node)).count(), 1);
    let shown = rollout_says(cluster, &["status", "canary"]);
    assert!(!shown.status.success() && text(&shown).contains("verification failed"), "{}", text(&shown));
    assert!(rollout_says(cluster, &["rollback", "canary"]).status.success());
    until("it to go back", || {
        Ok(["RollingBack", "RolledBack"].contains(&phase(cluster, "canary").as_str()).then_some(()))
    })
    .unwrap();
    // Killed on its way back, too, as far as that is seen.
    println!("killed as it was {}", phase(cluster, "canary"));
    controller.kill();
    *controller = Controller::start(cluster);
    wait_for(cluster, "canary", "RolledBack");
    assert!(nodes_json(cluster).iter().all(|node| !has_label(node) && !has_taint(node)));
    for (name, asked) in ASKED {
        assert_eq!(ready(cluster, shop, &format!("app={name},form=fat")), asked);
    }
    cluster.kubectl(&["delete", "agentrollout", "canary"]).unwrap();
}

/// A gate of a person's own; what `podshm rollout` and `kubectl podshm rollout` do meanwhile, and how they say it to programs.
fn a_job_that_fails_stops_the_canary_and_the_command_steers(cluster: &Cluster, shop: &Space) {
    let mut object = rollout("jobs", &["/probe", "size"]);
    // What it is named for would be too long for a Job's pods.
    let name = format!("smoke-{}", "x".repeat(34));
    object["metadata"]["name"] = json!(format!("jobs-{}", "y".repeat(58)));
    let of = object["metadata"]["name"].as_str().unwrap().to_owned();
    object["spec"]["gates"]["jobs"] = json!([job_gate(&name, &["/probe", "posix-get", "/nothing-there"])]);
    object["spec"]["gates"]["approval"] = json!(true);
    assert!(start(cluster, &object).status.success());

    // It waits for a person; meanwhile it is paused, and goes on.
    wait_for(cluster, &of, "AwaitingApproval");
    let paused = rollout_says(cluster, &["pause", &of, "-o", "json"]);
    let said: Value =
        serde_json::from_slice(&paused.stdout).unwrap_or_else(|error| panic!("{error}: {}", text(&paused)));
    assert_eq!(said["spec"]["paused"], true);
    wait_for(cluster, &of, "Paused");
    assert!(rollout_says(cluster, &["resume", &of]).status.success());
    wait_for(cluster, &of, "AwaitingApproval");
    assert!(nodes_json(cluster).iter().all(|node| !has_label(node)), "nothing is touched before it is approved");
    assert!(rollout_says(cluster, &["approve", &of]).status.success());

    let found = wait_for(cluster, &of, "Paused");
    let message = found["status"]["message"].as_str().unwrap();
    assert!(message.contains(&format!("gate {name}: Job shop/jobs-")) && message.contains("failed"), "{message}");
    let yaml = text(&kubectl_podshm(cluster, &["rollout", "status", &of, "--nodes", "-o", "yaml"]));
    assert!(yaml.contains("phase: Paused") && yaml.contains("state: Soaking"), "{yaml}");
    let one = nodes_json(cluster).iter().filter(|node| has_label(node)).count();
    assert_eq!(one, 1, "the canary alone");

    assert!(rollout_says(cluster, &["rollback", &of]).status.success());
    wait_for(cluster, &of, "RolledBack");
    for (name, asked) in ASKED {
        assert_eq!(ready(cluster, shop, &format!("app={name},form=fat")), asked);
    }
    let late = rollout_says(cluster, &["pause", &of]);
    assert!(!late.status.success() && text(&late).contains("is over"), "{}", text(&late));
    cluster.kubectl(&["delete", "agentrollout", &of]).unwrap();

    // One that is ended where it is, before anything was touched.
    let mut aborted = rollout("aborted", &["/probe", "size"]);
    aborted["spec"]["gates"]["approval"] = json!(true);
    assert!(start(cluster, &aborted).status.success());
    wait_for(cluster, "aborted", "AwaitingApproval");
    assert!(rollout_says(cluster, &["abort", "aborted"]).status.success());
    wait_for(cluster, "aborted", "Aborted");
    cluster.kubectl(&["delete", "agentrollout", "aborted"]).unwrap();
}

fn the_fleet_goes_over_while_its_controller_is_killed(cluster: &Cluster, shop: &Space, controller: &mut Controller) {
    let mut object = rollout("routing", &["/probe", "size"]);
    // In the last batch all nodes have the taint: the Job's pod runs where it is to try something.
    object["spec"]["gates"]["jobs"] = json!([job_gate("smoke", &["/probe", "size"])]);
    let said = start(cluster, &object);
    assert!(said.status.success() && text(&said).contains("batch 1: 1 nodes"), "{}", text(&said));
    until("it to have begun", || Ok((get(cluster, "routing")["status"]["phase"] == "Running").then_some(()))).unwrap();
    let other = ["patch", "agentrollout", "routing", "--type=merge", "-p", r#"{"spec":{"mark":{"value":"NO"}}}"#];
    let refused = cluster.kubectl(&other).unwrap_err().to_string();
    assert!(refused.contains("purpose, agents and mark stay as they are once a rollout has begun"), "{refused}");
    let others = ["patch", "agentrollout", "routing", "--type=merge", "-p", r#"{"spec":{"workloads":[]}}"#];
    let refused = cluster.kubectl(&others).unwrap_err().to_string();
    assert!(refused.contains("which ones stays as it is once a rollout has begun"), "{refused}");
    let (lowest, begin) = (Lowest::watch(cluster), Instant::now());
    // At every state that its nodes go through, as far as they are seen.
    let (mut seen, mut killed_at) = (Vec::new(), BTreeSet::new());
    while get(cluster, "routing")["status"]["phase"] != "Completed" {
        let states = states(cluster);
        if !seen.contains(&states) {
            killed_at.extend(states.iter().map(|(_, state)| state.clone()));
            seen.push(states);
            controller.kill();
            *controller = Controller::start(cluster);
        }
        assert!(begin.elapsed() < Duration::from_secs(900), "not over: {}", get(cluster, "routing")["status"]);
        std::thread::sleep(Duration::from_millis(200));
    }
    // Killed since it was Completed, it is let go by the next one.
    wait_for(cluster, "routing", "Completed");
    println!("states of the nodes as the controller was killed: {seen:?}");
    // AgentReady is over with the next step: it is seen, or not.
    for state in ["Preparing", "Verifying", "Migrating", "Soaking", "Done"] {
        assert!(killed_at.contains(state), "not killed at {state}: {killed_at:?}");
    }
    assert_eq!(lowest.seen(), ASKED.map(|(_, asked)| asked), "Ready replicas, the lowest seen");
    for (name, asked) in ASKED {
        assert_eq!(ready(cluster, shop, &format!("app={name},form=slim")), asked);
        assert_eq!(ready(cluster, shop, &format!("app={name},form=fat")), 0);
    }
    assert!(
        nodes_json(cluster).iter().all(|node| has_label(node) && !has_taint(node)),
        "the taint goes, the label stays"
    );
    let history = get(cluster, "routing")["status"]["history"].clone();
    for record in history.as_array().unwrap() {
        let smoke = record["gates"].as_array().unwrap().iter().find(|gate| gate["gate"] == "smoke").unwrap();
        assert_eq!(smoke["result"], "Passed", "{record}");
    }
    let page = text(&rollout_says(cluster, &["report", "routing"]));
    assert!(page.contains("<h1>Rollout routing: Completed</h1>") && page.contains("Batch 2: passed"), "{page}");
    for node in podshm_cluster::place::nodes() {
        assert!(page.contains(&format!("<td>{node}<td>Done<td>")), "{node}: {page}");
    }
    assert!(page.contains(" Migrating<br>") && page.contains("<td>shop/cart<td>cart-slim-"), "{page}");
    println!("{}", text(&rollout_says(cluster, &["status", "routing"])));
    let events =
        cluster.kubectl(&["get", "events", "-A", "--field-selector=involvedObject.kind=Node", "-o", "json"]).unwrap();
    for state in ["Preparing", "Migrating", "Done"] {
        assert!(events.contains(&format!("\"reason\": \"{state}\"")), "{state}");
    }
}

/// With the rights that the chart gives, as pods that keep to `restricted`; two of them, of which the one that leads is killed.
fn the_charts_controllers_do_it_too_and_one_follows_the_other(cluster: &Cluster, shop: &Space) {
    let system = cluster.space("podshm-system", "restricted").unwrap();
    cluster.provide_podshm().unwrap();
    let with = |namespaces: &str| {
        let (namespaces, image) =
            (format!("rollouts.namespaces={namespaces}"), format!("images.controller={CONTROLLER}"));
        let set = ["--set", "rollouts.enabled=true", "--set", &namespaces, "--set", &image];
        let only = ["--show-only", "templates/rollouts.yaml"];
        let text = cluster.helm(&[&["template", "podshm", "deploy/chart"], &set[..], &only[..]].concat()).unwrap();
        assert!(text.is_fine, "{}", text.text);
        cluster.given(&["apply", "-f", "-"], &text.text).unwrap();
        cluster.rolled_out(&system, "deployment/podshm-rollouts").unwrap();
    };
    // Not let into the workloads' namespace, it says so, and touches nothing.
    with("{routing}");
    let object = rollout("charted", &["/probe", "size"]);
    cluster.given(&["create", "-f", "-"], &object.to_string()).unwrap();
    let found = wait_for(cluster, "charted", "Refused");
    let message = found["status"]["message"].as_str().unwrap();
    assert!(message.contains("in namespace shop; add shop to rollouts.namespaces of the chart"), "{message}");
    assert!(nodes_json(cluster).iter().all(|node| !has_label(node)));
    with("{routing,shop}");
    // The same again: the chart is what has changed.
    let said = start(cluster, &object);
    assert!(said.status.success(), "{}", text(&said));
    until("the canary to have been touched", || Ok(nodes_json(cluster).iter().any(has_label).then_some(()))).unwrap();
    let holder = ["get", "lease", "podshm-rollouts", "-o", "jsonpath={.spec.holderIdentity}"];
    let leader = cluster.within(&system, &holder).unwrap();
    cluster.within(&system, &["delete", "pod", &leader, "--grace-period=0", "--force"]).unwrap();
    wait_for(cluster, "charted", "Completed");
    assert_ne!(cluster.within(&system, &holder).unwrap(), leader);
    for (name, asked) in ASKED {
        assert_eq!(ready(cluster, shop, &format!("app={name},form=slim")), asked);
    }
    // Each has done its part, as one: whoever acts says so in an event, and from when the second did the first was silent.
    let events = ["-n", "default", "get", "events.events.k8s.io", "-o", "json"];
    let events: Value = serde_json::from_str(&cluster.kubectl(&events).unwrap()).unwrap();
    let mut acts: Vec<(&str, &str)> = events["items"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|event| event["note"].as_str().is_some_and(|note| note.contains("rollout charted")))
        .filter_map(|event| Some((event["eventTime"].as_str()?, event["reportingInstance"].as_str()?)))
        .collect();
    acts.sort_unstable();
    let mut order: Vec<&str> = acts.iter().map(|(_, who)| *who).collect();
    order.dedup();
    println!("who acted: {order:?}, {} times", acts.len());
    assert!(order.len() == 2 && order[0] == leader, "{acts:?}");
    cluster.kubectl(&["delete", "clusterrole,clusterrolebinding", "-l", "app=podshm-rollouts"]).unwrap();
    cluster.kubectl(&["-n", "default", "delete", "role,rolebinding", "-l", "app=podshm-rollouts"]).unwrap();
    cluster.leave(&system).unwrap();
}
