//! `ShmDomain` on a real cluster: what it refuses and in which words, what `kubectl` says of it, what its status says, and what becomes of
//! pods when it changes.

use k8s_openapi::jiff::Timestamp;
use podshm_cluster::images::POD;
use podshm_cluster::testing::{Cluster, Space, probe, until};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Tests share the definition.
static ONE: Mutex<()> = Mutex::new(());

/// A domain that is as it should be.
fn domain(name: &str, spec: Value) -> Value {
    let mut fine = json!({
        "modes": ["channel", "posix"], "budget": "64Mi", "perPod": "16Mi", "shmSize": "32Mi",
        "serve": [{"namespace": "routing", "serviceAccounts": ["agent"]}], "join": [{"namespace": "shop"}],
    });
    for (field, value) in spec.as_object().expect("fields of a spec") {
        match value {
            Value::Null => drop(fine.as_object_mut().expect("fields").remove(field)),
            value => fine[field] = value.clone(),
        }
    }
    json!({"apiVersion": "podshm.dev/v1alpha1", "kind": "ShmDomain", "metadata": {"name": name}, "spec": fine})
}

/// What the API server says of an object that it refuses; nothing where it takes it. Nothing is kept either way.
fn refusal(cluster: &Cluster, object: &Value) -> Option<String> {
    let asked = cluster.given(&["create", "--dry-run=server", "--validate=strict", "-f", "-"], &object.to_string());
    asked.err().map(|error| format!("{error:#}"))
}

#[test]
fn what_can_not_be_is_refused_and_the_refusal_says_what_to_write() {
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    let cluster = Cluster::connect().unwrap();
    cluster.apply("chart/files/shmdomains.json").unwrap();
    cluster.kubectl(&["wait", "--for=condition=Established", "crd/shmdomains.podshm.dev"]).unwrap();
    let long = "a".repeat(64);
    let (size, party) = ("expected a whole number of bytes that is not 0, or of Ki, Mi, Gi or Ti, as in 256Mi", "shop");
    let rows = [
        ("no-modes", json!({"modes": null}), "spec.modes: Required value"),
        ("empty", json!({"modes": []}), "spec.modes: Invalid value: expected at least one of channel, posix, sysv"),
        ("odd-mode", json!({"modes": ["channels"]}), r#"supported values: "channel", "posix", "sysv""#),
        ("twice", json!({"modes": ["channel", "channel"]}), r#"spec.modes[1]: Duplicate value: "channel""#),
        ("share", json!({"perPod": "65Mi"}), "spec.perPod: Invalid value: perPod is more than budget"),
        ("share-of-default", json!({"budget": null, "perPod": "1Gi"}), "lower perPod or raise budget"),
        ("no-shm", json!({"shmSize": null}), "spec.modes: Invalid value: mode posix needs shmSize"),
        ("no-bound", json!({"shmSize": "0"}), size),
        ("half", json!({"budget": "1.5Gi"}), size),
        ("unit", json!({"perPod": "16MB"}), size),
        (
            "number",
            json!({"budget": 1_048_576}),
            "spec.budget: Invalid value: \"integer\": spec.budget in body must be of type string",
        ),
        ("huge", json!({"budget": "99999999Ti"}), size),
        (
            "namespace",
            json!({"join": [{"namespace": "Shop"}]}),
            "spec.join[0].namespace: Invalid value: \"Shop\": expected the name of a namespace, or * for any",
        ),
        ("nowhere", json!({"serve": [{"serviceAccounts": ["agent"]}]}), "spec.serve[0].namespace: Required value"),
        (
            "account",
            json!({"join": [{"namespace": party, "serviceAccounts": [""]}]}),
            "spec.join[0].serviceAccounts[0]",
        ),
        (
            "many",
            json!({"join": vec![json!({"namespace": party}); 257]}),
            "spec.join: Too many: 257: must have at most 256 items",
        ),
        (
            "sysv",
            json!({"sysv": {"shmmni": 8}}),
            "spec.sysv: Invalid value: sysv bounds mode sysv, which modes does not have",
        ),
        (
            "segment",
            json!({"modes": ["sysv"], "sysv": {"shmmax": "2Gi", "shmall": "1Gi"}}),
            "spec.sysv.shmmax: Invalid value: shmmax is more than shmall",
        ),
        ("segments", json!({"modes": ["sysv"], "sysv": {"shmmni": 40000}}), "spec.sysv.shmmni"),
        ("scheme", json!({"olderSchemes": ["hostipc"]}), r#"supported values: "host", "sidecar""#),
        ("typo", json!({"bugdet": "64Mi"}), r#"unknown field "spec.bugdet""#),
        ("with.dot", json!({}), "metadata.name: expected 1 to 63 lower-case letters, digits or '-'"),
        (long.as_str(), json!({}), "metadata.name: expected 1 to 63 lower-case letters, digits or '-'"),
    ];
    for (name, spec, says) in rows {
        let said = refusal(&cluster, &domain(name, spec)).unwrap_or_else(|| panic!("{name} is taken"));
        println!("{name}: {said}");
        assert!(said.contains(says), "{name}: expected {says:?}, found {said}");
    }
    for (name, spec) in [
        ("fine", json!({})),
        (
            "least",
            json!({"modes": ["channel"], "budget": null, "perPod": null, "shmSize": null, "serve": null, "join": null}),
        ),
        ("equal", json!({"budget": "1Gi", "perPod": "1024Mi"})),
        ("bytes", json!({"budget": "67108864"})),
        ("anybody", json!({"join": [{"namespace": "*", "serviceAccounts": ["web"]}]})),
        ("unmodified", json!({"modes": ["sysv"], "sysv": {"shmmax": "64Mi"}, "olderSchemes": ["host", "sidecar"]})),
    ] {
        let said = refusal(&cluster, &domain(name, spec));
        assert_eq!(said, None, "{name}");
    }
    forget(&cluster);
}

/// A cluster that is not ours is as it was.
fn forget(cluster: &Cluster) {
    cluster.kubectl(&["delete", "crd", "shmdomains.podshm.dev"]).unwrap();
}

#[test]
fn kubectl_explains_every_field() {
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    let cluster = Cluster::connect().unwrap();
    cluster.apply("chart/files/shmdomains.json").unwrap();
    for (field, says) in [
        ("spec.modes", "each pod kept apart from the others by the kernel"),
        ("spec.join.namespace", "`*` is any"),
        ("spec.olderSchemes", "while a fleet moves over"),
        ("status.worstNodes", "The 20 nodes where most is wrong"),
    ] {
        // The API server may have taken the definition only just now.
        let said =
            until("the field to be known", || cluster.kubectl(&["explain", &format!("shmdomains.{field}")]).map(Some));
        let said = said.unwrap();
        let said = said.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(said.contains(says), "{field}: {said}");
    }
    forget(&cluster);
}

/// A pod with a domain's volume.
fn member(name: &str, node: &str, domain: &str) -> Value {
    let mut pod = probe(name, node);
    // Of an image that a cluster that is not ours is given, too.
    pod["spec"]["containers"][0]["image"] = POD.into();
    pod["spec"]["containers"][0]["args"] = json!(["hold"]);
    pod["spec"]["volumes"] =
        json!([{"name": "podshm", "csi": {"driver": "podshm.dev", "volumeAttributes": {"domain": domain}}}]);
    pod["spec"]["containers"][0]["volumeMounts"] = json!([{"name": "podshm", "mountPath": "/run/podshm"}]);
    pod
}

fn apply(cluster: &Cluster, object: &Value) {
    cluster.given(&["apply", "-f", "-"], &object.to_string()).unwrap();
}

fn status(cluster: &Cluster, name: &str) -> Value {
    let found = cluster.kubectl(&["get", "shmdomain", name, "-o", "json"]).unwrap();
    serde_json::from_str::<Value>(&found).unwrap()["status"].clone()
}

/// Waits until a status is so.
fn status_is(cluster: &Cluster, name: &str, what: &str, is_so: impl Fn(&Value) -> bool) -> Value {
    until(what, || {
        let found = status(cluster, name);
        anyhow::ensure!(is_so(&found), "its status is {found}");
        Ok(Some(found))
    })
    .unwrap()
}

fn condition<'a>(status: &'a Value, kind: &str) -> &'a Value {
    let conditions = status["conditions"].as_array().map_or(&[][..], Vec::as_slice);
    conditions.iter().find(|condition| condition["type"] == kind).unwrap_or(&Value::Null)
}

fn refused(cluster: &Cluster, space: &Space, name: &str, domain: &str, says: &str) {
    let node = &cluster.nodes().unwrap()[0];
    cluster.create(space, &member(name, node, domain)).unwrap();
    cluster.event(space, name, says).unwrap();
    let forget = ["delete", "pod", name, "--wait=false", "--grace-period=0", "--force"];
    cluster.within(space, &forget).unwrap();
}

/// When the controller last wrote a status, in seconds of the API server's clock.
fn written(cluster: &Cluster, name: &str) -> Option<i64> {
    let found = cluster.kubectl(&["get", "shmdomain", name, "-o", "json", "--show-managed-fields"]).unwrap();
    let found: Value = serde_json::from_str(&found).unwrap();
    let managers = found["metadata"]["managedFields"].as_array().map_or(&[][..], Vec::as_slice);
    let status = managers.iter().find(|manager| manager["subresource"] == "status")?;
    Some(status["time"].as_str()?.parse::<Timestamp>().expect("a time").as_second())
}

/// However often the domain changes: here at each second, for two periods and a half.
fn a_status_is_written_every_30_s_at_most(cluster: &Cluster) {
    let (begin, mut seen, mut changes) = (Instant::now(), BTreeSet::new(), 0);
    while begin.elapsed() < Duration::from_secs(75) {
        let join = json!([{"namespace": "bank"}, {"namespace": format!("branch-{changes}")}]);
        apply(cluster, &domain("routing", json!({"modes": ["channel"], "join": join})));
        changes += 1;
        for _ in 0..4 {
            seen.extend(written(cluster, "routing"));
            std::thread::sleep(Duration::from_millis(250));
        }
    }
    let seen: Vec<i64> = seen.into_iter().collect();
    let gaps: Vec<i64> = seen.windows(2).map(|pair| pair[1] - pair[0]).collect();
    println!("{changes} changes of a domain: its status was written {} times, {gaps:?} s apart", seen.len());
    assert!(gaps.len() >= 2, "expected two more at least in 75 s: {seen:?}");
    // A round asks all daemons before it writes, one time longer than another.
    assert!(gaps.iter().all(|gap| *gap >= 25), "{gaps:?}");
    let last = cluster.kubectl(&["get", "shmdomain", "routing", "-o", "jsonpath={.metadata.generation}"]).unwrap();
    let last: u64 = last.parse().unwrap();
    status_is(cluster, "routing", "the status to be about the last change", |status| {
        status["observedGeneration"] == last && condition(status, "Ready")["status"] == "True"
    });
}

#[test]
fn a_domain_changes_while_pods_run_and_its_status_says_how_it_is() {
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    let cluster = Cluster::connect().unwrap();
    let system = Space { name: "podshm-system".into() };
    cluster.provide_podshm().unwrap();
    cluster.install(&[]).unwrap();
    cluster.rolled_out(&system, "daemonset/podshmd").unwrap();
    cluster.rolled_out(&system, "deployment/podshm-controller").unwrap();
    let node = cluster.nodes().unwrap()[0].clone();
    let daemons = ["get", "daemonset", "podshmd", "-o", "jsonpath={.status.numberReady}"];
    let all = cluster.within(&system, &daemons).unwrap();
    let nodes: u64 = all.parse().unwrap();
    let shop = cluster.space("shop", "restricted").unwrap();
    apply(&cluster, &domain("routing", json!({"modes": ["channel"]})));
    until("the node to have heard of it", || {
        cluster.start(&shop, &member("cart", &node, "routing"))?;
        Ok(Some(()))
    })
    .unwrap();

    // No agent serves it, and that is said of the node with a pod that waits for one.
    let found = status_is(&cluster, "routing", "a status with the pod's node", |status| {
        status["nodes"] == nodes && status["volumes"] == 1 && condition(status, "Degraded")["reason"] == "NoAgent"
    });
    assert_eq!(condition(&found, "Ready")["status"], "True", "{found}");
    assert_eq!(condition(&found, "OverLimit")["status"], "False", "{found}");
    assert_eq!((&found["servedNodes"], &found["worstNodes"][0]["node"]), (&json!(0), &json!(node)), "{found}");
    let said = cluster.kubectl(&["get", "shmd"]).unwrap();
    let header: Vec<&str> = said.lines().next().unwrap_or_default().split_whitespace().collect();
    assert_eq!(header, ["NAME", "MODES", "BUDGET", "NODES", "SERVED", "CLIENTS", "READY", "AGE"]);
    let row: Vec<&str> = said.lines().nth(1).unwrap_or_default().split_whitespace().collect();
    assert_eq!(row[..7], ["routing", r#"["channel"]"#, "64Mi", &all, "0", "0", "True"], "{said}");

    // Who may join is asked for each new volume; who has one keeps it.
    apply(&cluster, &domain("routing", json!({"modes": ["channel"], "join": [{"namespace": "bank"}]})));
    refused(&cluster, &shop, "late", "routing", "no entry of its `join` has namespace shop");
    a_status_is_written_every_30_s_at_most(&cluster);
    // More than the daemons have memory for: refused, with what to change, and a condition.
    apply(&cluster, &domain("vast", json!({"modes": ["channel"], "budget": "8Gi"})));
    refused(&cluster, &shop, "greedy", "vast", "memory");
    status_is(&cluster, "vast", "the excess to be a condition", |status| {
        condition(status, "OverLimit")["status"] == "True" && status["worstNodes"][0]["reasons"][0] == "OverLimit"
    });
    cluster.kubectl(&["delete", "shmdomain", "vast", "routing"]).unwrap();
    refused(&cluster, &shop, "later", "routing", "no domain \"routing\" here");
    cluster.ready(&shop, "cart").unwrap();

    // Whichever controller leads is killed, and another one goes on.
    apply(&cluster, &domain("audit", json!({"modes": ["channel"]})));
    let holder = ["get", "lease", "podshm-controller", "-o", "jsonpath={.spec.holderIdentity}"];
    let leader = cluster.within(&system, &holder).unwrap();
    cluster.within(&system, &["delete", "pod", &leader, "--grace-period=0", "--force"]).unwrap();
    status_is(&cluster, "audit", "another controller to go on", |status| status["nodes"] == nodes);
    assert_ne!(cluster.within(&system, &holder).unwrap(), leader);
    let written = cluster.kubectl(&["get", "shmdomain", "audit", "-o", "json", "--show-managed-fields"]).unwrap();
    assert!(written.len() < 8 << 10, "{} bytes", written.len());

    cluster.leave(&shop).unwrap();
    cluster.kubectl(&["delete", "shmdomain", "audit"]).unwrap();
    cluster.uninstall().unwrap();
}
