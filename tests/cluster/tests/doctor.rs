//! `podshm doctor --cluster` on a real cluster: nothing to be said of a healthy one, and each planted fault found by its own check.

use podshm_cluster::images::built_statically;
use podshm_cluster::testing::{Cluster, Space, until};
use serde_json::{Value, json};
use std::process::Command;

/// Says findings that are not ok, as `check: level`, and the exit status.
fn doctor(cluster: &Cluster) -> anyhow::Result<(Vec<String>, i32, Value)> {
    let mut doctor = Command::new(built_statically("podshm")?);
    let output =
        doctor.args(["doctor", "--cluster", "-o", "json"]).env("KUBECONFIG", cluster.place.kubeconfig()).output()?;
    let findings: Value = serde_json::from_slice(&output.stdout)?;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let mut bad = Vec::new();
    for finding in findings.as_array().into_iter().flatten().filter(|finding| finding["level"] != "ok") {
        anyhow::ensure!(!text(&finding["remedy"]).is_empty(), "no remedy: {finding}");
        bad.push(format!("{}: {}", text(&finding["check"]), text(&finding["level"])));
    }
    Ok((bad, output.status.code().unwrap_or(-1), findings))
}

/// Waits until exactly this is found, and the status goes with it.
fn finds(cluster: &Cluster, what: &str, expected: &[String]) {
    let status = match expected {
        [] => 0,
        all if all.iter().any(|finding| finding.ends_with("problem")) => 3,
        _ => 2,
    };
    let found = until(what, || {
        let (bad, found, _) = doctor(cluster)?;
        Ok((bad == expected && found == status).then_some(()))
    });
    if let Err(error) = found {
        panic!("{error:#}: expected {expected:?} and {status}, found {:?}", doctor(cluster));
    }
    println!("{what}: {expected:?}, status {status}");
}

#[test]
fn planted_faults_are_found_by_their_checks() {
    let cluster = Cluster::connect().unwrap();
    let system = Space { name: "podshm-system".into() };
    let nodes = cluster.nodes().unwrap();
    let (first, second) = (&nodes[0], &nodes[1]);
    let problem = |check: &str| vec![format!("{check}: problem")];
    cluster.uninstall().unwrap();
    // Nothing of it is there: no driver, no installation, no daemon on any node.
    let every = cluster.kubectl(&["get", "nodes", "-o", "jsonpath={.items[*].metadata.name}"]).unwrap();
    let daemons = every.split_whitespace().map(|node| format!("podshmd/{node}: problem"));
    let none: Vec<String> =
        ["csi-driver: problem", "installation: problem"].into_iter().map(str::to_owned).chain(daemons).collect();
    finds(&cluster, "not installed", &none);

    cluster.provide_podshm().unwrap();
    cluster.install(&[]).unwrap();
    cluster.rolled_out(&system, "daemonset/podshmd").unwrap();
    finds(&cluster, "healthy", &[]);

    cluster.kubectl(&["delete", "csidriver", "podshm.dev"]).unwrap();
    finds(&cluster, "CSIDriver deleted", &problem("csi-driver"));
    cluster.install(&[]).unwrap();
    finds(&cluster, "installed again", &[]);

    let level = |level: &str| {
        let label = format!("pod-security.kubernetes.io/enforce={level}");
        cluster.kubectl(&["label", "namespace", &system.name, "--overwrite", &label]).unwrap();
    };
    level("restricted");
    finds(&cluster, "labels that refuse podshmd", &problem("installation"));
    level("privileged");

    // No daemon on the second node, as somebody has chosen: no fault.
    let hostname = "kubernetes.io/hostname";
    let not_there = json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
        {"matchExpressions": [{"key": hostname, "operator": "NotIn", "values": [second]}]},
    ]}}});
    let affinity = |affinity: Value| {
        let patch = json!({"spec": {"template": {"spec": {"affinity": affinity}}}}).to_string();
        cluster.within(&system, &["patch", "daemonset", "podshmd", "--type=merge", "-p", &patch]).unwrap();
        cluster.rolled_out(&system, "daemonset/podshmd").unwrap();
    };
    affinity(not_there);
    finds(&cluster, "no podshmd on a node that its DaemonSet leaves out", &[]);
    affinity(Value::Null);
    finds(&cluster, "podshmd on all nodes", &[]);

    let domain = json!({"modes": ["channel"], "budget": "64Mi", "perPod": "16Mi", "join": [{"namespace": "shop"}]});
    cluster.domain("routing", &domain).unwrap();
    finds(&cluster, "a domain that nobody uses", &[]);

    // A domain whose pods wait for an agent, and a workload that its namespace's level refuses.
    let shop = cluster.space("shop", "restricted").unwrap();
    let restricted = |spec: Value| {
        let mut all = json!({
            "automountServiceAccountToken": false, "nodeName": first,
            "securityContext": {"runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [{
                "name": "pod", "image": podshm_cluster::images::POD, "imagePullPolicy": "Never", "args": ["hold"],
                "securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}},
            }],
        });
        all.as_object_mut().expect("an object").extend(spec.as_object().expect("an object").clone());
        all
    };
    let deployment = |name: &str, spec: Value| {
        json!({
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name, "namespace": shop.name},
            "spec": {
                "selector": {"matchLabels": {"app": name}},
                "template": {"metadata": {"labels": {"app": name}}, "spec": restricted(spec)},
            },
        })
    };
    let mut volume = restricted(
        json!({"volumes": [{"name": "podshm", "csi": {"driver": "podshm.dev", "volumeAttributes": {"domain": "routing"}}}]}),
    );
    // What no container mounts the kubelet does not ask for.
    volume["containers"][0]["volumeMounts"] = json!([{"name": "podshm", "mountPath": "/run/podshm", "readOnly": true}]);
    cluster.put(&[deployment("cart", volume)]).unwrap();
    cluster.rolled_out(&shop, "deployment/cart").unwrap();
    finds(&cluster, "pods without an agent", &problem("domain/routing"));
    cluster.within(&shop, &["delete", "deployment", "cart"]).unwrap();
    finds(&cluster, "they are gone", &[]);
    cluster.put(&[deployment("old", json!({"hostIPC": true}))]).unwrap();
    finds(&cluster, "a workload that its namespace refuses", &problem("pod-security/Deployment shop/old"));

    cluster.leave(&shop).unwrap();
    cluster.uninstall().unwrap();
}

#[test]
fn a_node_is_looked_at_where_the_doctor_runs() {
    let doctor = Command::new(built_statically("podshm").unwrap()).args(["doctor", "-o", "json"]).output().unwrap();
    let findings: Value = serde_json::from_slice(&doctor.stdout).unwrap();
    let checks: Vec<&str> =
        findings.as_array().unwrap().iter().filter_map(|finding| finding["check"].as_str()).collect();
    for check in ["kernel", "memfd-seals", "dev-shm", "cgroup"] {
        assert!(checks.contains(&check), "{checks:?}");
    }
    let text = Command::new(built_statically("podshm").unwrap()).arg("doctor").output().unwrap();
    print!("{}", String::from_utf8_lossy(&text.stdout));
    assert_eq!(text.status.code(), doctor.status.code());
}
