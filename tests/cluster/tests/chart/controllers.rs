//! The controllers' probes as the kubelet goes by them: what is not Ready, what is started anew, and who leads meanwhile.

use anyhow::{Context, ensure};
use podshm_cluster::scene::signal;
use podshm_cluster::testing::{Cluster, Space, until};
use serde_json::{Value, json};
use std::fs;

/// A Deployment each, a Lease of its name, and a ClusterRole of its name without which it learns nothing.
const BOTH: [&str; 2] = ["podshm-controller", "podshm-rollouts"];
/// Failed so often a probe is none of those that came before the process had looked around.
const OFTEN: u64 = 3;

pub fn they_say_how_they_are(cluster: &Cluster, system: &Space) {
    for controller in BOTH {
        cluster.rolled_out(system, &format!("deployment/{controller}")).unwrap();
        let leads = one_leads(cluster, system, controller);
        for pod in pods(cluster, system, controller).unwrap() {
            let name = name(&pod);
            for path in ["/healthz", "/readyz"] {
                assert_eq!(asked(cluster, system, name, path).unwrap(), "ok\n", "{name}: {path}");
            }
            assert_eq!(metric(cluster, system, name, "ready").unwrap(), 1, "{name}");
            assert!(metric(cluster, system, name, "turns_total").unwrap() > 0, "{name}");
            println!("{name}: Ready; leads: {}", name == leads);
        }
    }
}

/// Without its rights it learns nothing of what it goes by: it says so, is not Ready, and is not started anew for it.
pub fn one_that_knows_nothing_is_not_ready(cluster: &Cluster, system: &Space) {
    let before: Vec<Value> = BOTH.iter().flat_map(|controller| pods(cluster, system, controller).unwrap()).collect();
    let bound = |controller: &str, to: Value| {
        let patch = json!({"subjects": to}).to_string();
        cluster.kubectl(&["patch", "clusterrolebinding", controller, "--type=merge", "-p", &patch]).unwrap();
    };
    for controller in BOTH {
        bound(controller, json!([]));
        // Who has looked around already goes by what it has seen. Of rollouts' pods the one that leads looks alone.
        cluster.within(system, &["delete", "pod", &one_leads(cluster, system, controller)]).unwrap();
    }
    for controller in BOTH {
        let pod = until(&format!("a pod of {controller} whose readiness probe fails"), || {
            let not_ready = pods(cluster, system, controller)?.into_iter().filter(|pod| !is_ready(pod));
            for pod in not_ready {
                if unhealthy(cluster, system, name(&pod), "Readiness probe failed", "statuscode: 503")? >= OFTEN {
                    return Ok(Some(name(&pod).to_owned()));
                }
            }
            Ok(None)
        })
        .unwrap();
        println!("{pod}: not Ready without its rights");
    }
    for controller in BOTH {
        let account = json!([{"kind": "ServiceAccount", "name": controller, "namespace": system.name}]);
        bound(controller, account);
        cluster.rolled_out(system, &format!("deployment/{controller}")).unwrap();
        for pod in pods(cluster, system, controller).unwrap() {
            let was = before.iter().find(|was| name(was) == name(&pod)).map_or(0, restarts);
            assert_eq!(restarts(&pod), was, "{}: started anew, which helps nobody", name(&pod));
        }
    }
}

/// All of the process stands still, as in a hang of its node's disk: the other leads, and does what there is to do.
pub fn one_that_hangs_is_started_anew_while_the_other_leads(cluster: &Cluster, system: &Space) {
    if !cluster.is_ours() {
        println!("nothing is stopped on nodes that are not ours");
        return;
    }
    let hung = BOTH.map(|controller| {
        let leads = one_leads(cluster, system, controller);
        let all = pods(cluster, system, controller).unwrap();
        assert_eq!(all.len(), 2, "{all:?}");
        let (hung, other): (Vec<Value>, Vec<Value>) = all.into_iter().partition(|pod| name(pod) == leads);
        stop(cluster, &hung[0]);
        println!("{leads}: stopped");
        (controller, hung[0].clone(), other[0].clone())
    });
    // Nobody has seen it yet.
    cluster.domain("meanwhile", &json!({"modes": ["channel"], "budget": "4Mi", "perPod": "4Mi"})).unwrap();
    for (controller, _, other) in &hung {
        let next = name(other);
        until(&format!("{next} to lead"), || Ok((holder(cluster, system, controller)? == next).then_some(()))).unwrap();
        let turns = metric(cluster, system, next, "turns_total").unwrap();
        until(&format!("{next} to go on"), || {
            let goes_on = metric(cluster, system, next, "turns_total")? > turns;
            Ok((goes_on && metric(cluster, system, next, "leads")? == 1).then_some(()))
        })
        .unwrap();
    }
    until("the status of a domain that is new", || {
        let of = ["get", "shmdomain", "meanwhile", "-o", "jsonpath={.status.observedGeneration}"];
        Ok((cluster.kubectl(&of)? == "1").then_some(()))
    })
    .unwrap();
    for (controller, hung, other) in &hung {
        let (was, next) = (name(hung), name(other));
        until(&format!("{was} to be started anew"), || {
            let all = pods(cluster, system, controller)?;
            let found = all.iter().find(|pod| name(pod) == was).context("its pod stays")?;
            let times = restarts(found) - restarts(hung);
            ensure!(times == 1 && is_ready(found), "it was started {times} times, and is ready: {}", is_ready(found));
            // It could not be asked to end.
            let code = &found["status"]["containerStatuses"][0]["lastState"]["terminated"]["exitCode"];
            ensure!(*code == 137, "it ended with {code}");
            Ok(Some(()))
        })
        .unwrap();
        assert!(unhealthy(cluster, system, was, "Liveness probe failed", "").unwrap() >= OFTEN, "{was}");
        let all = pods(cluster, system, controller).unwrap();
        let after = all.iter().find(|pod| name(pod) == next).expect("the other stays");
        assert_eq!(restarts(after), restarts(other), "{next} is well");
        assert_eq!(one_leads(cluster, system, controller), next, "it is not given back");
        println!("{was}: started anew by its kubelet, Ready, stands by; {next} leads");
    }
    cluster.kubectl(&["delete", "shmdomain", "meanwhile"]).unwrap();
}

/// A controller's pods, but those that are about to go.
fn pods(cluster: &Cluster, system: &Space, controller: &str) -> anyhow::Result<Vec<Value>> {
    let found = cluster.within(system, &["get", "pods", "-l", &format!("app={controller}"), "-o", "json"])?;
    let mut found: Value = serde_json::from_str(&found)?;
    let mut all = found["items"].as_array_mut().map(std::mem::take).context("a list of pods")?;
    all.retain(|pod| pod["metadata"]["deletionTimestamp"].is_null());
    Ok(all)
}

fn name(pod: &Value) -> &str {
    pod["metadata"]["name"].as_str().expect("a pod has a name")
}

fn is_ready(pod: &Value) -> bool {
    let conditions = pod["status"]["conditions"].as_array();
    conditions.into_iter().flatten().any(|one| one["type"] == "Ready" && one["status"] == "True")
}

fn restarts(pod: &Value) -> u64 {
    pod["status"]["containerStatuses"][0]["restartCount"].as_u64().unwrap_or(0)
}

/// What a pod answers at its port, asked from the network of pods by the API server, as a person may.
fn asked(cluster: &Cluster, system: &Space, pod: &str, path: &str) -> anyhow::Result<String> {
    cluster.kubectl(&["get", &format!("--raw=/api/v1/namespaces/{}/pods/{pod}:9480/proxy{path}", system.name)])
}

fn metric(cluster: &Cluster, system: &Space, pod: &str, name: &str) -> anyhow::Result<u64> {
    let (text, begin) = (asked(cluster, system, pod, "/metrics")?, format!("podshm_controller_{name} "));
    let value = text.lines().find_map(|line| line.strip_prefix(&begin));
    value.with_context(|| format!("expected {begin:?} of {pod}, found {text}"))?.parse().context("a number")
}

/// Whose the Lease is.
fn holder(cluster: &Cluster, system: &Space, controller: &str) -> anyhow::Result<String> {
    cluster.within(system, &["get", "lease", controller, "-o", "jsonpath={.spec.holderIdentity}"])
}

/// The pod that leads, by its own account and by the Lease; no other may say so.
fn one_leads(cluster: &Cluster, system: &Space, controller: &str) -> String {
    until(&format!("one pod of {controller} to lead"), || {
        let mut leads = Vec::new();
        for pod in pods(cluster, system, controller)? {
            if metric(cluster, system, name(&pod), "leads")? == 1 {
                leads.push(name(&pod).to_owned());
            }
        }
        let holder = holder(cluster, system, controller)?;
        ensure!(leads == [holder.as_str()], "{leads:?} say that they lead; the Lease is {holder:?}'s");
        Ok(Some(holder))
    })
    .unwrap()
}

/// How often the kubelet has said this of a pod's probes.
fn unhealthy(cluster: &Cluster, system: &Space, pod: &str, what: &str, why: &str) -> anyhow::Result<u64> {
    let of = format!("--field-selector=reason=Unhealthy,involvedObject.name={pod}");
    let found: Value = serde_json::from_str(&cluster.within(system, &["get", "events", &of, "-o", "json"])?)?;
    let events = found["items"].as_array().into_iter().flatten();
    let says =
        |event: &&Value| event["message"].as_str().is_some_and(|text| text.starts_with(what) && text.contains(why));
    Ok(events.filter(says).map(|event| event["count"].as_u64().unwrap_or(1)).sum())
}

/// Stops the process of a pod, which is not asked.
fn stop(cluster: &Cluster, pod: &Value) {
    let node = pod["spec"]["nodeName"].as_str().expect("it runs on a node");
    let named = format!("POD_NAME={}", name(pod));
    let stopped = signal(cluster, node, "STOP", |process| {
        let read = |file: &str| fs::read(process.join(file)).unwrap_or_default();
        read("cmdline").starts_with(b"/podshm-controller\0")
            && read("environ").split(|byte| *byte == 0).any(|word| word == named.as_bytes())
    });
    assert_eq!(stopped, 1, "processes of {named} on node {node}");
}
