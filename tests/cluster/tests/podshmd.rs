//! The node daemon on a real cluster: `deploy/manifests/podshm.yaml` and `deploy/examples/routing.yaml` as they are, with images of ours.
//!
//! One test after the other, in one: they share the daemon.

#[path = "podshmd/crowd.rs"]
mod crowd;
#[path = "podshmd/ends.rs"]
mod ends;

use ends::{SURGE, UNAVAILABLE, rolled};
use podshm_cluster::images::POD;
use podshm_cluster::place::NODES;
use podshm_cluster::scene::{
    all_of, exchange, install, is_guaranteed, pod_on, port, processes, provide_label, remove, report, sender, space,
    under_load, with_volume,
};
use podshm_cluster::supervise::alive;
use podshm_cluster::testing::{Cluster, Said, Space, probe, until};
use serde_json::{Value, json};
use std::fs;

const KEY: &str = "/routes";
const TEXT: &str = "10.0.0.1:80";
/// Records of an exchange that nothing happens to.
const FEW: u32 = 20_000;

#[test]
fn pods_under_restricted_share_memory_with_the_agent_of_their_node() {
    let cluster = Cluster::connect().unwrap();
    let (system, routing, shop) = (space("podshm-system"), space("routing"), space("shop"));
    install(&cluster).unwrap();

    the_daemon_says_how_it_is(&cluster);
    the_daemon_can_do_little_and_has_one_port(&cluster);
    volumes_are_read_only_and_nothing_in_them_is_executed(&cluster);
    records_go_to_the_agent_of_the_same_node(&cluster, &shop);
    the_domains_dev_shm_is_shared_on_a_node_and_nowhere_else(&cluster, &routing, &shop);
    a_label_alone_makes_a_member(&cluster, &shop);
    a_pod_of_another_domain_shares_nothing(&cluster, &routing, &shop);
    who_may_not_is_told_which_rule(&cluster, &routing, &shop);
    the_agent_is_rolled_under_load(&cluster, &routing, &shop);
    ends::the_daemon_is_replaced_under_load(&cluster, &system, &shop);
    ends::the_daemon_s_processes_are_killed_under_load(&cluster, &system, &shop);
    ends::the_daemon_is_upgraded_under_load(&cluster, &system, &shop);
    ends::the_node_s_own_programs_restart_under_load(&cluster, &shop);
    ends::the_daemon_is_away_when_pods_go(&cluster, &system, &shop);
    crowd::pods_come_and_go_and_leave_nothing(&cluster, &shop);

    remove(&cluster).unwrap();
}

fn the_daemon_says_how_it_is(cluster: &Cluster) {
    is_guaranteed(cluster);
    for node in NODES {
        assert_eq!(port(cluster, node, "/readyz").unwrap(), "ok\n");
        let found = until("the example to be in the report", || {
            let found = report(cluster, node)?;
            let is_there = found["domains"][0]["volumes"].as_u64() >= Some(2);
            Ok(is_there.then_some(found))
        });
        let found = found.unwrap();
        let domain = &found["domains"][0];
        assert_eq!((&found["node"], &found["registered"]), (&json!(node), &json!(true)), "{found}");
        assert_eq!((&domain["name"], &domain["served"]), (&json!("routing"), &json!(true)), "{found}");
        assert_eq!((&domain["conditions"], &domain["budgetBytes"]), (&json!([]), &json!(64 << 20)), "{found}");
        assert!(found["limitBytes"].as_u64() > domain["budgetBytes"].as_u64(), "its container's own limit: {found}");
        let metrics = port(cluster, node, "/metrics").unwrap();
        for line in ["podshm_registered 1", "podshm_domain_served{domain=\"routing\"} 1"] {
            assert!(metrics.lines().any(|found| found == line), "{line}: {metrics}");
        }
    }
}

/// What the one process that all pods talk to could do to its node, and who could talk to it from afar.
fn the_daemon_can_do_little_and_has_one_port(cluster: &Cluster) {
    for node in NODES {
        let of = |verb: &str| {
            let begins = format!("/podshmd\0{verb}\0");
            let all = processes(cluster, node, |process| {
                fs::read(process.join("cmdline")).unwrap_or_default().starts_with(begins.as_bytes())
            });
            assert_eq!(all.len(), 1, "podshmd {verb} on node {node}: {all:?}");
            let read = |file: &str| fs::read_to_string(all[0].join(file)).expect("what /proc says of it");
            let state = read("status");
            let is = |name: &str| {
                let line = state.lines().find_map(|line| line.strip_prefix(&format!("{name}:")));
                line.unwrap_or_else(|| panic!("no {name}: {state}")).split_whitespace().collect::<Vec<_>>().join(" ")
            };
            let can = ["CapPrm", "CapEff", "CapInh", "CapAmb", "CapBnd"]
                .map(|set| u64::from_str_radix(&is(set), 16).unwrap());
            let mounts = read("mountinfo");
            let root = mounts.lines().find(|line| line.split(' ').nth(4) == Some("/")).expect("a root").to_owned();
            let mut ports = Vec::new();
            for file in ["tcp", "tcp6", "udp", "udp6"] {
                let sockets = read(&format!("net/{file}"));
                // 0A listens; of UDP every socket does.
                let rows = sockets.lines().skip(1).map(|row| row.split_whitespace().collect::<Vec<_>>());
                let heard = rows.filter(|row| row[3] == "0A" || file.starts_with("udp"));
                ports.extend(heard.map(|row| {
                    let (_, port) = row[1].rsplit_once(':').expect("address:port");
                    (file, u16::from_str_radix(port, 16).expect("a port"))
                }));
            }
            let ours = (is("Uid"), is("NoNewPrivs"), is("Seccomp"), can);
            (ours, root.split(' ').nth(5).unwrap_or_default().to_owned(), ports)
        };
        let (ours, root, ports) = of("run");
        let nobody = ("65532 65532 65532 65532".to_owned(), "1".to_owned(), "2".to_owned(), [0; 5]);
        let is_read_only = |options: &str| options.split(',').any(|option| option == "ro");
        assert!(ours == nobody && is_read_only(&root), "node {node}: {ours:?}, its root {root}");
        assert!(ports.iter().all(|(file, port)| file.starts_with("tcp") && *port == 9478), "node {node}: {ports:?}");
        assert!(!ports.is_empty(), "node {node}: it is asked at a port");
        // To mount, and to look into what others own.
        let ((_, _, _, [permitted, effective, inheritable, ambient, _]), root, _) = of("mount-helper");
        let two = permitted.count_ones() == 2 && effective & !permitted == 0 && inheritable | ambient == 0;
        assert!(
            two && is_read_only(&root),
            "node {node}: {permitted:x} {effective:x} {inheritable:x}, its root {root}"
        );
    }
}

/// As pods get them: what the daemon's own mounts say is not enough.
fn volumes_are_read_only_and_nothing_in_them_is_executed(cluster: &Cluster) {
    for node in NODES {
        let pid = alive(&cluster.place, node).expect("the node runs");
        let mounts = fs::read_to_string(format!("/proc/{pid}/mountinfo")).expect("the node's mounts");
        let of = |end: &str| {
            let of = mounts.lines().filter(move |line| line.split(' ').nth(4).is_some_and(|at| at.ends_with(end)));
            of.filter(|line| line.contains("kubernetes.io~csi")).map(str::to_owned).collect::<Vec<_>>()
        };
        let (volumes, shm) = (of("/podshm/mount"), of("/podshm/mount/shm"));
        assert!(volumes.len() >= 2 && shm.len() >= 2, "{mounts}");
        assert!(volumes.iter().all(|line| line.contains(" ro,nosuid,nodev,noexec")), "{volumes:?}");
        assert!(shm.iter().all(|line| line.contains(" rw,nosuid,nodev,noexec")), "{shm:?}");
    }
}

fn records_go_to_the_agent_of_the_same_node(cluster: &Cluster, shop: &Space) {
    for (index, node) in NODES.iter().enumerate() {
        let pod = pod_on(cluster, shop, "app=cart", node);
        let said = exchange(cluster, shop, &pod, sender(index as u32), FEW);
        assert_eq!(said, all_of(FEW), "node {node}");
    }
}

fn the_domains_dev_shm_is_shared_on_a_node_and_nowhere_else(cluster: &Cluster, routing: &Space, shop: &Space) {
    let agent = pod_on(cluster, routing, "app=agent", "a");
    let said = cluster.run(routing, &agent, &["/probe", "posix-put", KEY, TEXT]).unwrap();
    assert!(said.is_fine, "{said:?}");
    cluster.start(shop, &probe("plain", "a")).unwrap();
    let (here, there) = (pod_on(cluster, shop, "app=cart", "a"), pod_on(cluster, shop, "app=cart", "b"));
    for (pod, sees) in [(here.as_str(), true), (there.as_str(), false), ("plain", false)] {
        let expected = match sees {
            true => Said { text: TEXT.into(), is_fine: true },
            false => Said { text: "posix-get: No such file or directory".into(), is_fine: false },
        };
        assert_eq!(cluster.run(shop, pod, &["/probe", "posix-get", KEY]).unwrap(), expected, "pod {pod}");
    }
    // System V memory is a namespace's: this mode doesn't touch it.
    let key = "0x706f6403";
    cluster.run(routing, &agent, &["/probe", "sysv-put", key, TEXT]).unwrap();
    let said = cluster.run(shop, &here, &["/probe", "sysv-get", key]).unwrap();
    assert_eq!(said.text, "sysv-get: No such file or directory");
    let said = cluster.run(shop, &here, &["/probe", "size"]).unwrap();
    assert_eq!(said.text, "32", "MiB, as the domain says");
}

/// It runs, with the domain's /dev/shm and an agent that the library finds: nothing of its manifest speaks of a volume.
fn a_label_alone_makes_a_member(cluster: &Cluster, shop: &Space) {
    let mut pod = probe("labelled", "a");
    pod["metadata"]["labels"] = json!({"podshm.dev/domain": "routing"});
    pod["spec"]["containers"][0]["image"] = POD.into();
    pod["spec"]["containers"][0]["args"] = json!(["hold"]);
    provide_label(cluster, shop, &pod).unwrap();
    cluster.start(shop, &pod).unwrap();
    let said = cluster.run(shop, "labelled", &["/probe", "posix-get", KEY]).unwrap();
    assert_eq!(said, Said { text: TEXT.into(), is_fine: true });
    assert_eq!(exchange(cluster, shop, "labelled", sender(40), FEW), all_of(FEW));
    // What the label gives is no right: of a namespace that may not join it is refused as if it were written by hand.
    let stranger = cluster.space("stranger", "restricted").unwrap();
    cluster.create(&stranger, &pod).unwrap();
    cluster.event(&stranger, "labelled", "no entry of its `join` has namespace stranger").unwrap();
    cluster.leave(&stranger).unwrap();
    cluster.within(shop, &["delete", "pod", "labelled", "--grace-period=1"]).unwrap();
    cluster.remove("manifests/admission-label.yaml").unwrap();
}

/// On the same node, of the same namespace: what keeps them apart is the domain that their volumes name.
fn a_pod_of_another_domain_shares_nothing(cluster: &Cluster, routing: &Space, shop: &Space) {
    let spec = json!({
        "modes": ["channel", "posix"], "budget": "16Mi", "perPod": "8Mi", "shmSize": "8Mi",
        "serve": [{"namespace": "routing"}], "join": [{"namespace": "shop"}],
    });
    cluster.domain("other", &spec).unwrap();
    let of_ours = |name: &str, role: &str| {
        let mut pod = with_volume(name, "a", json!({"domain": "other", "role": role}));
        pod["spec"]["containers"][0]["image"] = POD.into();
        pod["spec"]["containers"][0]["args"] = json!([if role == "agent" { "agent" } else { "hold" }]);
        pod
    };
    cluster.start(shop, &of_ours("apart", "member")).unwrap();
    let get = |pod: &str, name: &str| cluster.run(shop, pod, &["/probe", "posix-get", name]).unwrap();
    let nothing = Said { text: "posix-get: No such file or directory".into(), is_fine: false };
    let cart = pod_on(cluster, shop, "app=cart", "a");
    assert_eq!(
        (get("apart", KEY), get(&cart, KEY).text.as_str()),
        (nothing.clone(), TEXT),
        "what routing's agent wrote"
    );
    let put = cluster.run(shop, "apart", &["/probe", "posix-put", "/apart", "x"]).unwrap();
    assert!(put.is_fine, "{put:?}");
    assert_eq!((get("apart", "/apart").text.as_str(), get(&cart, "/apart")), ("x", nothing), "what it wrote itself");
    // There is an agent on this node, and it is not of its domain.
    let joined = cluster.run(shop, "apart", &["/podshm-cluster-pod", "ready"]).unwrap();
    assert!(!joined.is_fine, "{joined:?}");
    // With one of its own: each of them counts one sender's records, and not the other's, which has the same number.
    cluster.start(routing, &of_ours("agent-apart", "agent")).unwrap();
    for pod in ["apart", cart.as_str()] {
        assert_eq!(exchange(cluster, shop, pod, sender(50), 1000), all_of(1000), "{pod}");
    }
    for (space, pod) in [(shop, "apart"), (routing, "agent-apart")] {
        cluster.within(space, &["delete", "pod", pod, "--grace-period=1"]).unwrap();
    }
    cluster.kubectl(&["delete", "shmdomain", "other"]).unwrap();
}

fn who_may_not_is_told_which_rule(cluster: &Cluster, routing: &Space, shop: &Space) {
    let stranger = cluster.space("stranger", "restricted").unwrap();
    let routing_domain = |more: Value| {
        let mut all = json!({"domain": "routing"});
        all.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        all
    };
    let huge = "9".repeat(1000);
    let rows = [
        (&stranger, "foreign", routing_domain(json!({})), "no entry of its `join` has namespace stranger"),
        (shop, "would-serve", routing_domain(json!({"role": "agent"})), "no entry of its `serve` has namespace shop"),
        (
            routing,
            "wrong-account",
            routing_domain(json!({"role": "agent"})),
            "(service account default) may not be agent",
        ),
        (shop, "unknown", json!({"domain": "payments"}), "no domain \\\"payments\\\" here"),
        (shop, "no-domain", json!({}), "volumeAttributes.domain"),
        (shop, "traversal", json!({"domain": "../routing"}), "volumeAttributes.domain"),
        (shop, "absolute", json!({"domain": "/run/podshm/domains/routing"}), "volumeAttributes.domain"),
        (shop, "huge", json!({"domain": huge}), "volumeAttributes.domain"),
        (shop, "budget", routing_domain(json!({"budget": "1Ti"})), "volumeAttributes has \\\"budget\\\""),
        // The kubelet overrides what a pod says of itself here.
        (
            &stranger,
            "forged",
            routing_domain(
                json!({"csi.storage.k8s.io/pod.namespace": "shop", "csi.storage.k8s.io/serviceAccount.name": "web"}),
            ),
            "no entry of its `join` has namespace stranger",
        ),
    ];
    for (space, name, attributes, _) in &rows {
        let pod = with_volume(name, "a", attributes.clone());
        cluster.create(space, &pod).unwrap_or_else(|error| panic!("{name}: {error}"));
    }
    for (space, name, _, says) in &rows {
        let says = says.replace("\\\"", "\"");
        cluster.event(space, name, &says).unwrap_or_else(|error| panic!("{name}: {error:#}"));
        cluster
            .kubectl(&["-n", &space.name, "delete", "pod", name, "--wait=false", "--grace-period=0", "--force"])
            .unwrap();
    }
    cluster.leave(&stranger).unwrap();
}

fn the_agent_is_rolled_under_load(cluster: &Cluster, routing: &Space, shop: &Space) {
    for (first_sender, name, strategy) in [(200, "maxUnavailable", UNAVAILABLE), (210, "maxSurge", SURGE)] {
        under_load(cluster, shop, sender(first_sender), &format!("the agent rolled by its DaemonSet, {name}"), || {
            rolled(cluster, routing, "daemonset/agent", strategy);
        });
    }
}
