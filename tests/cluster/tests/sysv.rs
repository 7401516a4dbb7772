//! Mode `sysv` on a real cluster: the rows of docs/schemes.md that a volume makes, and what happens to those who have it. All pods pass
//! `restricted`; agent and members are in different namespaces and run as different users.

use podshm_cluster::images::DYNAMIC;
use podshm_cluster::scene::provide_label;
use podshm_cluster::testing::{Cluster, Said, Space, probe, until};
use serde_json::{Value, json};

const OBJECT: &str = "/routes";
const KEY: &str = "0x706f6421";
const TEXT: &str = "10.0.0.1:80";
const LIBRARY: &str = "/run/podshm/lib/libpodshm-preload.so";

fn yes() -> Said {
    Said { text: TEXT.into(), is_fine: true }
}

fn no(verb: &str) -> Said {
    Said { text: format!("{verb}: No such file or directory"), is_fine: false }
}

/// A pod of dynamic programs.
fn dynamic(name: &str, node: &str, user: u32) -> Value {
    let mut pod = probe(name, node);
    pod["spec"]["securityContext"]["runAsUser"] = user.into();
    pod["spec"]["containers"][0]["image"] = DYNAMIC.into();
    pod
}

/// The volume, with mode posix's mount.
fn with_volume(mut pod: Value, attributes: Value) -> Value {
    pod["spec"]["volumes"] =
        json!([{"name": "podshm", "csi": {"driver": "podshm.dev", "volumeAttributes": attributes}}]);
    pod["spec"]["containers"][0]["volumeMounts"] = json!([
        {"name": "podshm", "mountPath": "/run/podshm"},
        {"name": "podshm", "mountPath": "/dev/shm", "subPath": "shm"},
    ]);
    pod
}

/// The one variable.
fn with_variable(mut pod: Value) -> Value {
    pod["spec"]["containers"][0]["env"] = json!([{"name": "LD_PRELOAD", "value": LIBRARY}]);
    pod
}

fn member(name: &str, node: &str, user: u32) -> Value {
    with_volume(dynamic(name, node, user), json!({"domain": "legacy"}))
}

#[test]
fn unmodified_programs_share_both_kinds_through_a_volume_and_one_variable() {
    let cluster = Cluster::connect().unwrap();
    let system = Space { name: "podshm-system".into() };
    cluster.provide_podshm().unwrap();
    cluster.provide_dynamic().unwrap();
    cluster.apply("manifests/podshm.yaml").unwrap();
    domain(&cluster);
    cluster.rolled_out(&system, "daemonset/podshmd").unwrap();
    let agents = cluster.space("legacy-agents", "restricted").unwrap();
    let shop = cluster.space("legacy-shop", "restricted").unwrap();
    let agent = with_volume(dynamic("agent", "a", 20_001), json!({"domain": "legacy", "role": "agent"}));
    cluster.start(&agents, &with_variable(agent)).unwrap();
    for put in [["posix-put", OBJECT, TEXT], ["sysv-put", KEY, TEXT]] {
        let said = cluster.run(&agents, "agent", &[&["/probe"], &put[..]].concat()).unwrap();
        assert!(said.is_fine, "{said:?}");
    }

    who_sees_what(&cluster, &shop);
    memory_is_the_daemons_and_bounded(&cluster, &shop);
    the_daemon_is_replaced(&cluster, &system, &agents, &shop);

    for space in [&shop, &agents] {
        cluster.leave(space).unwrap();
    }
    cluster.kubectl(&["delete", "shmdomain", "legacy"]).unwrap();
    cluster.kubectl(&["delete", "csidriver", "podshm.dev"]).unwrap();
    cluster.leave(&system).unwrap();
}

/// One volume has all three modes.
fn domain(cluster: &Cluster) {
    let spec = json!({
        "modes": ["channel", "posix", "sysv"], "budget": "16Mi", "perPod": "8Mi", "shmSize": "8Mi",
        "sysv": {"shmmax": "32Mi", "shmall": "40Mi", "shmmni": 16},
        "serve": [{"namespace": "legacy-agents"}], "join": [{"namespace": "legacy-shop"}],
    });
    cluster.domain("legacy", &spec).unwrap();
}

fn who_sees_what(cluster: &Cluster, shop: &Space) {
    let mut labelled = dynamic("labelled", "a", 30_010);
    labelled["metadata"]["labels"] = json!({"podshm.dev/domain": "legacy"});
    provide_label(cluster, shop, &labelled).unwrap();
    let rows = [
        ("preload", "/probe", with_variable(member("preload", "a", 30_002)), true, true),
        // Volume, mounts and variable by admission.
        ("labelled", "/probe", labelled, true, true),
        // The library links to nothing, whatever a program's libc.
        ("musl", "/probe-musl", with_variable(member("musl", "a", 30_003)), true, true),
        ("no-variable", "/probe", member("no-variable", "a", 30_004), true, false),
        // A preload library can't reach it: its segments are its pod's own.
        ("static", "/probe-static", with_variable(member("static", "a", 30_005)), true, false),
        // Without the volume the variable names a file that is not there.
        ("no-volume", "/probe", with_variable(dynamic("no-volume", "a", 30_006)), false, false),
        ("plain", "/probe", dynamic("plain", "a", 30_007), false, false),
        ("elsewhere", "/probe", with_variable(member("elsewhere", "b", 30_008)), false, false),
    ];
    for (name, _, pod, ..) in &rows {
        cluster.create(shop, pod).unwrap_or_else(|error| panic!("{name}: {error}"));
    }
    for (name, program, _, sees_posix, sees_sysv) in rows {
        cluster.ready(shop, name).unwrap();
        for (sees, verb, object) in [(sees_posix, "posix-get", OBJECT), (sees_sysv, "sysv-get", KEY)] {
            let expected = if sees { yes() } else { no(verb) };
            let said = cluster.run(shop, name, &[program, verb, object]).unwrap();
            assert_eq!(said, expected, "{verb} in pod {name}");
        }
    }
    cluster.remove("manifests/admission-label.yaml").unwrap();
    let sockets = cluster.run(shop, "preload", &["/probe", "sem-get", KEY]).unwrap();
    assert_eq!(sockets.text, "sem-get: Function not implemented", "never private");
}

/// A segment larger than the memory limit of the pod that fills it, and one larger than the domain allows.
fn memory_is_the_daemons_and_bounded(cluster: &Cluster, shop: &Space) {
    let mut pod = with_variable(member("small", "a", 30_009));
    pod["spec"]["containers"][0]["resources"] = json!({"limits": {"memory": "16Mi"}});
    cluster.start(shop, &pod).unwrap();
    let fill = |mib: &str| cluster.run(shop, "small", &["/probe", "sysv-fill", "0x706f6422", mib]).unwrap();
    assert_eq!(fill("32"), Said { text: "32".into(), is_fine: true }, "the daemon pays, before anybody has it");
    assert_eq!(fill("33").text, "sysv-fill: Invalid argument", "shmmax");
    let restarts = "jsonpath={.status.containerStatuses[0].restartCount}";
    assert_eq!(cluster.within(shop, &["get", "pod", "small", "-o", restarts]).unwrap(), "0");
}

fn the_daemon_is_replaced(cluster: &Cluster, system: &Space, agents: &Space, shop: &Space) {
    for how in [
        &["rollout", "restart", "daemonset/podshmd"][..],
        &["delete", "pod", "-l", "app=podshmd", "--grace-period=0", "--force"],
    ] {
        cluster.within(system, how).unwrap();
        cluster.rolled_out(system, "daemonset/podshmd").unwrap();
        // Calls that find no daemon for 2 s are ENOMEM; the memory and the sockets' directories stay.
        until("the next daemon to answer", || {
            let said = cluster.run(agents, "agent", &["/probe", "sysv-put", KEY, "10.0.0.2:80"])?;
            Ok(said.is_fine.then_some(()))
        })
        .unwrap();
        let said = cluster.run(shop, "preload", &["/probe", "sysv-get", KEY]).unwrap();
        assert_eq!(said, Said { text: "10.0.0.2:80".into(), is_fine: true }, "{how:?}");
    }
}
