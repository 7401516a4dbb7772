//! Faults that are about memory, on a real cluster: a domain at its full budget while the daemon is replaced, an agent that leaks; and
//! pods of user namespaces.

use podshm_cluster::images::POD;
use podshm_cluster::place::NODES;
use podshm_cluster::scene::{install, pod_on, remove, report, restarts, space, with_volume};
use podshm_cluster::testing::{Cluster, Space, until};
use serde_json::{Value, json};

#[test]
fn memory_is_bounded_and_whoever_takes_too_much_ends_alone() {
    let cluster = Cluster::connect().unwrap();
    let (system, routing, shop) = (space("podshm-system"), space("routing"), space("shop"));
    install(&cluster).unwrap();
    an_agent_leaks_until_its_own_limit_kills_it(&cluster, &routing, &shop);
    the_daemon_is_replaced_with_a_domain_at_its_full_budget(&cluster, &system, &routing, &shop);
    a_pod_of_a_user_namespace_works_or_is_told_why_not(&cluster, &shop);
    remove(&cluster).unwrap();
}

/// A pod of ours that runs a command and is not started anew.
fn command(name: &str, node: &str, words: &[&str]) -> Value {
    let mut pod = with_volume(name, node, json!({"domain": "routing"}));
    pod["spec"]["restartPolicy"] = "Never".into();
    pod["spec"]["containers"][0]["image"] = POD.into();
    pod["spec"]["containers"][0]["args"] = json!(words);
    pod
}

fn logged(cluster: &Cluster, of: &Space, pod: &str, what: &str) -> String {
    let found = until(&format!("{pod} to say {what:?}"), || {
        let said = cluster.within(of, &["logs", pod])?;
        Ok(said.contains(what).then_some(said))
    });
    found.unwrap_or_else(|error| panic!("{error:#}: {:?}", cluster.within(of, &["describe", "pod", pod])))
}

fn an_agent_leaks_until_its_own_limit_kills_it(cluster: &Cluster, routing: &Space, shop: &Space) {
    cluster.create(shop, &command("looks", "a", &["look"])).unwrap();
    logged(cluster, shop, "looks", "begun");
    let agent = pod_on(cluster, routing, "app=agent", "a");
    cluster.run(routing, &agent, &["/podshm-cluster-pod", "leak"]).unwrap();
    until("the agent to be killed by its own limit", || {
        let of = "jsonpath={.status.containerStatuses[0].lastState.terminated.reason}";
        Ok((cluster.within(routing, &["get", "pod", &agent, "-o", of])? == "OOMKilled").then_some(()))
    })
    .unwrap();
    cluster.ready(routing, &agent).unwrap();
    cluster.run(shop, "looks", &["/podshm-cluster-pod", "stop"]).unwrap();
    let said = logged(cluster, shop, "looks", "all found");
    println!("an agent killed by its own memory limit: {}", said.lines().last().unwrap_or_default());
    assert_eq!(restarts(cluster, shop, "app=cart").unwrap(), 0, "no business pod has noticed");
    cluster.within(shop, &["delete", "pod", "looks", "--grace-period=1"]).unwrap();
}

fn the_daemon_is_replaced_with_a_domain_at_its_full_budget(
    cluster: &Cluster,
    system: &Space,
    routing: &Space,
    shop: &Space,
) {
    // Each of them as many processes as a pod may have joined, all together more than the budget has room for.
    let names: Vec<String> = (0..12).map(|number| format!("fill-{number}")).collect();
    for name in &names {
        cluster.create(shop, &command(name, "a", &["fill"])).unwrap();
    }
    let said: Vec<String> = names.iter().map(|name| logged(cluster, shop, name, "clients, then:")).collect();
    assert!(said.iter().any(|said| said.contains("budget")), "{said:?}");
    let before = (restarts(cluster, routing, "app=agent").unwrap(), restarts(cluster, shop, "app=cart").unwrap());
    for replacement in 1..=3 {
        cluster.within(system, &["rollout", "restart", "daemonset/podshmd"]).unwrap();
        cluster.rolled_out(system, "daemonset/podshmd").unwrap();
        // Everybody is back when the domain is served again with as many clients as before; only then it is known to be full.
        let found = until("everybody to be back", || {
            let found = report(cluster, "a")?;
            let domain = &found["domains"][0];
            let is_back = domain["served"] == json!(true) && domain["clients"].as_u64() > Some(names.len() as u64);
            Ok(is_back.then_some(found))
        });
        let found = found.unwrap();
        let domain = &found["domains"][0];
        let (regions, budget) = (domain["regionBytes"].as_u64().unwrap(), domain["budgetBytes"].as_u64().unwrap());
        assert!(regions <= budget, "after {replacement}: {found}");
        assert!(found["chargedBytes"].as_u64() < found["limitBytes"].as_u64(), "after {replacement}: {found}");
        let late = format!("late-{replacement}");
        cluster.create(shop, &command(&late, "a", &["fill"])).unwrap();
        let refused = logged(cluster, shop, &late, "clients, then:");
        assert!(refused.contains("budget"), "after {replacement}: {refused}");
        println!("daemon {replacement} after the first: {regions} of {budget} bytes; a late pod: {}", refused.trim());
        cluster.within(shop, &["delete", "pod", &late, "--grace-period=1"]).unwrap();
    }
    let after = (restarts(cluster, routing, "app=agent").unwrap(), restarts(cluster, shop, "app=cart").unwrap());
    assert_eq!(before, after, "nobody was killed");
    assert_eq!(restarts(cluster, system, "app=podshmd").unwrap(), 0, "the daemon itself neither");
    for name in &names {
        let phase = cluster.within(shop, &["get", "pod", name, "-o", "jsonpath={.status.phase}"]).unwrap();
        assert_eq!(phase, "Running", "{name}");
    }
    let all: Vec<&str> = names.iter().map(String::as_str).collect();
    cluster.within(shop, &[&["delete", "pod", "--grace-period=1"], &all[..]].concat()).unwrap();
}

/// Kernel, runtime and the file systems of its volumes have to know user namespaces; podshm has nothing to do with it but to be mounted.
fn a_pod_of_a_user_namespace_works_or_is_told_why_not(cluster: &Cluster, shop: &Space) {
    let mut pod = with_volume("own-users", NODES[0], json!({"domain": "routing"}));
    pod["spec"]["hostUsers"] = false.into();
    pod["spec"]["containers"][0]["image"] = POD.into();
    pod["spec"]["containers"][0]["args"] = json!(["hold"]);
    cluster.create(shop, &pod).unwrap();
    let outcome = until("a pod of a user namespace to run or to be refused", || {
        let phase = cluster.within(shop, &["get", "pod", "own-users", "-o", "jsonpath={.status.phase}"])?;
        if phase == "Running" {
            return Ok(Some(None));
        }
        let of =
            ["get", "events", "--field-selector=involvedObject.name=own-users", "-o", "jsonpath={.items[*].message}"];
        let said = cluster.within(shop, &of)?;
        let names_it =
            ["user namespace", "userns", "idmap", "ID-mapped", "UserNS"].iter().any(|word| said.contains(word));
        Ok(names_it.then_some(Some(said)))
    });
    match outcome.unwrap() {
        None => {
            let said = cluster.run(shop, "own-users", &["/podshm-cluster-pod", "ready"]).unwrap();
            assert!(said.is_fine, "{said:?}");
            println!("a pod with hostUsers: false has joined");
        }
        Some(why) => println!("a pod with hostUsers: false is refused: {why}"),
    }
    cluster.within(shop, &["delete", "pod", "own-users", "--grace-period=1"]).unwrap();
}
