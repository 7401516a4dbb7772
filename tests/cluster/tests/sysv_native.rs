//! Mode `sysv` by the kernel on a real cluster: containerd asks podshmd about containers (NRI). One test after the other: they share the
//! daemon, and one of them turns the runtime's NRI off on node a.

use podshm_cluster::scene::is_guaranteed;
use podshm_cluster::supervise::ask;
use podshm_cluster::testing::{Cluster, Said, Space, probe, until};
use serde_json::{Value, json};
use std::fs;

const OBJECT: &str = "/routes";
const KEY: &str = "0x706f6431";
const TEXT: &str = "10.0.0.1:80";

/// A pod of static programs that has the volume, and nothing at /dev/shm.
fn member(name: &str, node: &str, user: u32, role: &str) -> Value {
    let mut pod = probe(name, node);
    pod["spec"]["securityContext"]["runAsUser"] = user.into();
    pod["spec"]["volumes"] = json!([{"name": "podshm", "csi": {
        "driver": "podshm.dev", "volumeAttributes": {"domain": "kernel", "role": role},
    }}]);
    pod["spec"]["containers"][0]["volumeMounts"] = json!([{"name": "podshm", "mountPath": "/run/podshm"}]);
    pod
}

fn install(cluster: &Cluster) {
    let spec = json!({
        "modes": ["posix", "sysv"], "shmSize": "8Mi",
        "sysv": {"mechanism": "native", "shmmax": "4Mi", "shmall": "8Mi", "shmmni": 16},
        "serve": [{"namespace": "kernel-agents"}], "join": [{"namespace": "kernel-shop"}],
    });
    cluster.install(&["podshmd.nri=true", "controller.replicas=0"]).unwrap();
    cluster.domain("kernel", &spec).unwrap();
}

fn get(cluster: &Cluster, space: &Space, pod: &str, verb: &str, name: &str) -> Said {
    cluster.run(space, pod, &["/probe", verb, name]).unwrap()
}

fn yes() -> Said {
    Said { text: TEXT.into(), is_fine: true }
}

#[test]
fn containers_join_their_domain_through_the_runtime() {
    let cluster = Cluster::connect().unwrap();
    let system = Space { name: "podshm-system".into() };
    cluster.provide_podshm().unwrap();
    install(&cluster);
    cluster.rolled_out(&system, "daemonset/podshmd").unwrap();
    // With a third container in each pod.
    is_guaranteed(&cluster);
    let agents = cluster.space("kernel-agents", "restricted").unwrap();
    let shop = cluster.space("kernel-shop", "restricted").unwrap();
    cluster.start(&agents, &member("agent", "a", 20_001, "agent")).unwrap();
    for put in [["posix-put", OBJECT, TEXT], ["sysv-put", KEY, TEXT]] {
        let said = cluster.run(&agents, "agent", &[&["/probe"], &put[..]].concat()).unwrap();
        assert!(said.is_fine, "{said:?}");
    }

    who_sees_what(&cluster, &shop);
    the_daemon_is_killed(&cluster, &system, &shop);
    the_runtime_does_not_ask(&cluster, &shop);

    for space in [&shop, &agents] {
        cluster.leave(space).unwrap();
    }
    cluster.kubectl(&["delete", "shmdomain", "kernel"]).unwrap();
    cluster.kubectl(&["delete", "csidriver", "podshm.dev"]).unwrap();
    cluster.leave(&system).unwrap();
}

fn who_sees_what(cluster: &Cluster, shop: &Space) {
    let mut two = member("joined", "a", 30_002, "member");
    // Containers of the pod that do not mount the volume are in the domain, too.
    let mut first = two["spec"]["containers"][0].clone();
    first["volumeMounts"] = json!([]);
    two["spec"]["initContainers"] = json!([first]);
    two["spec"]["initContainers"][0]["name"] = "first".into();
    two["spec"]["initContainers"][0]["command"] = json!(["/probe", "sysv-get", KEY]);
    let rows = [
        ("joined", two, true),
        ("plain", probe("plain", "a"), false),
        ("elsewhere", member("elsewhere", "b", 30_003, "member"), false),
    ];
    for (name, pod, sees) in rows {
        cluster.start(shop, &pod).unwrap_or_else(|error| panic!("{name}: {error:#}"));
        for (verb, object) in [("posix-get", OBJECT), ("sysv-get", KEY)] {
            let no = Said { text: format!("{verb}: No such file or directory"), is_fine: false };
            let said = get(cluster, shop, name, verb, object);
            assert_eq!(said, if sees { yes() } else { no }, "{verb} in pod {name}");
        }
    }
    assert_eq!(cluster.run(shop, "joined", &["/probe", "size"]).unwrap().text, "8", "MiB of the domain's /dev/shm");
    assert_eq!(get(cluster, shop, "joined", "sem-get", KEY).text, "made", "the kernel's own");
    let over = cluster.run(shop, "joined", &["/probe", "sysv-fill", "0x706f6432", "5"]).unwrap();
    assert_eq!(over.text, "sysv-fill: Invalid argument", "the namespace's shmmax");
}

fn the_daemon_is_killed(cluster: &Cluster, system: &Space, shop: &Space) {
    cluster.within(system, &["delete", "pod", "-l", "app=podshmd", "--grace-period=0", "--force"]).unwrap();
    cluster.start(shop, &member("after", "a", 30_004, "member")).unwrap();
    assert_eq!(get(cluster, shop, "after", "sysv-get", KEY), yes());
    cluster.rolled_out(system, "daemonset/podshmd").unwrap();
}

/// NRI is turned off in containerd's configuration, and on again; containerd restarts each time.
fn the_runtime_does_not_ask(cluster: &Cluster, shop: &Space) {
    let file = cluster.place.node("a").join("containerd.toml");
    let text = fs::read_to_string(&file).unwrap();
    fs::write(&file, format!("{text}\n[plugins.'io.containerd.nri.v1.nri']\n  disable = true\n")).unwrap();
    let restarted = ask(&cluster.place, "a", "restart containerd");
    let waits = cluster
        .create(shop, &member("waits", "a", 30_005, "member"))
        .and_then(|()| cluster.event(shop, "waits", "sysv.mechanism is native, and the container runtime"));
    let phase = cluster.within(shop, &["get", "pod", "waits", "-o", "jsonpath={.status.phase}"]);
    // Whatever has come of it, the node is left as it was.
    fs::write(&file, text).unwrap();
    let back = ask(&cluster.place, "a", "restart containerd");
    restarted.unwrap();
    waits.unwrap();
    assert_eq!(phase.unwrap(), "Pending", "no container was made");
    back.unwrap();
    cluster.ready(shop, "waits").unwrap();
    until("the pod that has waited to see the segment", || {
        Ok((get(cluster, shop, "waits", "sysv-get", KEY) == yes()).then_some(()))
    })
    .unwrap();
    assert_eq!(get(cluster, shop, "joined", "sysv-get", KEY), yes(), "through two restarts of containerd");
}
