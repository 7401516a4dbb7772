//! The schemes that need no podshm daemon: who sees an agent's shared memory, what Pod Security says to it, what bounds it. The
//! manifests are those of `deploy/schemes`.

use podshm_cluster::images::POD;
use podshm_cluster::testing::{Cluster, Said, Space, probe, until};
use serde_json::{Value, json};

const OBJECT: &str = "/routes";
const TEXT: &str = "10.0.0.1:80";

fn yes() -> Said {
    Said { text: TEXT.into(), is_fine: true }
}

/// What a program that finds nothing is told.
fn no(verb: &str) -> Said {
    Said { text: format!("{verb}: No such file or directory"), is_fine: false }
}

/// The classic recipe's two halves, as a pod may have them.
fn with(mut pod: Value, has_host_ipc: bool, has_host_path: bool) -> Value {
    let spec = &mut pod["spec"];
    // It is pinned to the node; its taint is for the scheduler.
    spec["tolerations"] = json!([{"operator": "Exists"}]);
    spec["hostIPC"] = has_host_ipc.into();
    if has_host_path {
        spec["volumes"] = json!([{"name": "shm", "hostPath": {"path": "/dev/shm", "type": "Directory"}}]);
        spec["containers"][0]["volumeMounts"] = json!([{"name": "shm", "mountPath": "/dev/shm"}]);
    }
    pod
}

#[test]
fn who_sees_the_agents_memory_under_the_classic_recipe() {
    let cluster = Cluster::connect().unwrap();
    let key = "0x706f6401";
    cluster.kubectl(&["label", "--overwrite", "node", "a", "AgentsDaemonSet=YES"]).unwrap();
    cluster.kubectl(&["taint", "--overwrite", "node", "a", "AgentsDaemonSet=YES:NoSchedule"]).unwrap();
    let space = Space { name: "agents-host".into() };
    cluster.leave(&space).unwrap();
    cluster.apply("schemes/host.yaml").unwrap();
    let agent = cluster.pod_of(&space, "app=agent", None).unwrap();
    let business = cluster.pod_of(&space, "app=business", None).unwrap();
    for put in [["posix-put", OBJECT, TEXT], ["sysv-put", key, TEXT]] {
        let said = cluster.run(&space, &agent, &[&["/probe"], &put[..]].concat()).unwrap();
        assert!(said.is_fine, "{said:?}");
    }
    let elsewhere = probe("elsewhere", "b");
    let rows = [
        ("both", with(probe("both", "a"), true, true), true, true),
        // containerd gives the node's /dev/shm to whoever has the node's IPC namespace.
        ("ipc-only", with(probe("ipc-only", "a"), true, false), true, true),
        ("path-only", with(probe("path-only", "a"), false, true), true, false),
        ("plain", with(probe("plain", "a"), false, false), false, false),
        ("elsewhere", with(elsewhere, true, true), false, false),
    ];
    for (name, pod, ..) in &rows {
        cluster.create(&space, pod).unwrap_or_else(|error| panic!("{name}: {error}"));
    }
    let mut found = vec![(business.as_str(), true, true)];
    for (name, _, posix, sysv) in &rows {
        cluster.ready(&space, name).unwrap();
        found.push((name, *posix, *sysv));
    }
    for (pod, sees_posix, sees_sysv) in found {
        for (sees, verb, name) in [(sees_posix, "posix-get", OBJECT), (sees_sysv, "sysv-get", key)] {
            let expected = if sees { yes() } else { no(verb) };
            let said = cluster.run(&space, pod, &["/probe", verb, name]).unwrap();
            assert_eq!(said, expected, "{verb} in pod {pod}");
        }
    }

    // Host-wide memory outlives the agent's pod: its successor finds it.
    cluster.kubectl(&["-n", "agents-host", "rollout", "restart", "daemonset/agent"]).unwrap();
    cluster.kubectl(&["-n", "agents-host", "rollout", "status", "daemonset/agent", "--timeout=180s"]).unwrap();
    let successor = until("the agent's successor alone", || {
        let pod = cluster.pod_of(&space, "app=agent", None)?;
        Ok((pod != agent).then_some(pod))
    })
    .unwrap();
    for get in [["posix-get", OBJECT], ["sysv-get", key]] {
        let said = cluster.run(&space, &successor, &[&["/probe"], &get[..]].concat()).unwrap();
        assert_eq!(said, yes(), "{get:?} in the agent's next pod");
    }
    // It outlives the whole scheme too, so this test removes it itself.
    let said = cluster.run(&space, &successor, &["/probe", "remove", OBJECT, key]).unwrap();
    assert!(said.is_fine, "{said:?}");
    cluster.leave(&space).unwrap();
    cluster.kubectl(&["taint", "node", "a", "AgentsDaemonSet-"]).unwrap();
    cluster.kubectl(&["label", "node", "a", "AgentsDaemonSet-"]).unwrap();
}

#[test]
fn containers_of_one_pod_share_both_kinds_under_restricted() {
    let cluster = Cluster::connect().unwrap();
    let space = Space { name: "agents-sidecar".into() };
    cluster.leave(&space).unwrap();
    cluster.provide_podshm().unwrap();
    cluster.apply("schemes/sidecar.yaml").unwrap();
    // Programs of ours in place of the example's: an agent that embeds the broker.
    let runs = |name: &str, verb: &str| json!([{"name": name, "image": POD, "args": [verb]}]);
    let patch = json!({"spec": {"template": {"spec":
        {"initContainers": runs("agent", "sidecar"), "containers": runs("business", "hold")}}}});
    cluster.within(&space, &["patch", "deployment", "business", "-p", &patch.to_string()]).unwrap();
    cluster.rolled_out(&space, "deployment/business").unwrap();
    let pod = cluster.pod_of(&space, "app=business", None).unwrap();
    let key = "0x706f6402";
    for put in [["posix-put", OBJECT, TEXT], ["sysv-put", key, TEXT]] {
        let said = cluster.run_in(&space, &pod, "agent", &[&["/probe"], &put[..]].concat()).unwrap();
        assert!(said.is_fine, "{said:?}");
    }
    for get in [["posix-get", OBJECT], ["sysv-get", key]] {
        let said = cluster.run_in(&space, &pod, "business", &[&["/probe"], &get[..]].concat()).unwrap();
        assert_eq!(said, yes(), "{get:?}");
    }
    let said = cluster.run_in(&space, &pod, "business", &["/probe", "size"]).unwrap();
    assert_eq!(said.text, "128", "sizeLimit is the tmpfs's size");
    let exchange = ["/podshm-cluster-pod", "exchange", "1", "20000"];
    let said = cluster.run_in(&space, &pod, "business", &exchange).unwrap();
    assert_eq!(said.text, "20000 records, 0 lost, 0 repeated, 0 corrupt", "channels, by the broker in the agent");
    cluster.leave(&space).unwrap();
}

#[test]
fn pod_security_refuses_the_classic_recipe_and_takes_inline_csi_volumes() {
    let cluster = Cluster::connect().unwrap();
    for (level, host_path) in [
        ("baseline", "hostPath volumes (volume \"shm\")"),
        ("restricted", "restricted volume types (volume \"shm\" uses restricted volume type \"hostPath\")"),
    ] {
        let space = cluster.space(&format!("levels-{level}"), level).unwrap();
        let refused = cluster.create(&space, &with(probe("ipc", "a"), true, false)).unwrap_err().to_string();
        assert!(refused.contains("host namespaces (hostIPC=true)"), "{level}: {refused}");
        let refused = cluster.create(&space, &with(probe("path", "a"), false, true)).unwrap_err().to_string();
        assert!(refused.contains(host_path), "{level}: {refused}");
        for (name, volume) in [
            ("csi", json!({"csi": {"driver": "absent.podshm.dev", "volumeAttributes": {"domain": "routing"}}})),
            ("memory", json!({"emptyDir": {"medium": "Memory", "sizeLimit": "8Mi"}})),
        ] {
            let mut pod = probe(name, "a");
            pod["spec"]["volumes"] = json!([volume]);
            pod["spec"]["volumes"][0]["name"] = "shm".into();
            pod["spec"]["containers"][0]["volumeMounts"] = json!([{"name": "shm", "mountPath": "/dev/shm"}]);
            cluster.create(&space, &pod).unwrap_or_else(|error| panic!("{level}, {name}: {error}"));
        }
        cluster.ready(&space, "memory").unwrap();
        // People will meet this message: the pod is admitted, and then waits for a driver that nobody installed.
        let message = "driver name absent.podshm.dev not found in the list of registered CSI drivers";
        cluster.event(&space, "csi", message).unwrap();
        cluster.leave(&space).unwrap();
    }
}

#[test]
fn what_bounds_a_pods_shared_memory() {
    let cluster = Cluster::connect().unwrap();
    let space = cluster.space("bounds", "restricted").unwrap();
    cluster.start(&space, &probe("plain", "a")).unwrap();
    let said = cluster.run(&space, "plain", &["/probe", "size"]).unwrap();
    assert_eq!(said.text, "64", "MiB of /dev/shm, unless somebody mounts another");

    // tmpfs is memory: past the container's limit its toucher is killed, wherever the tmpfs came from.
    let mut pod = probe("greedy", "a");
    pod["spec"]["restartPolicy"] = "Never".into();
    let container = &mut pod["spec"]["containers"][0];
    container["args"] = json!(["fill", "/much", "48"]);
    container["command"] = json!(["/probe"]);
    container["resources"] = json!({"limits": {"memory": "16Mi"}});
    cluster.create(&space, &pod).unwrap();
    let reason = until("the greedy pod to end", || {
        let reason = "jsonpath={.status.containerStatuses[0].state.terminated.reason}";
        let reason = cluster.within(&space, &["get", "pod", "greedy", "-o", reason])?;
        Ok((!reason.is_empty()).then_some(reason))
    })
    .unwrap();
    assert_eq!(reason, "OOMKilled");
    cluster.leave(&space).unwrap();
}
