//! Admission policies of the chart on a real API server: what a label adds and what it leaves alone; what is warned of and what is denied.
//! Most rows are dry runs at the server, which goes through all of admission; no node daemon is there.

use anyhow::ensure;
use podshm_cluster::programs::{CLUSTER, HELM, Programs};
use podshm_cluster::testing::{Cluster, Space, probe, until};
use serde_json::{Value, json};
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

const LIBRARY: &str = "/run/podshm/lib/libpodshm-preload.so";

/// Runs kubectl; whether it succeeded, what it printed, and what it warned of.
fn kubectl(cluster: &Cluster, arguments: &[&str], input: &str) -> (bool, String, String) {
    let mut command = Command::new(Programs::built(CLUSTER).unwrap().path("kubectl").unwrap());
    command.args(arguments).env("KUBECONFIG", cluster.place.kubeconfig());
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("kubectl");
    let _ = child.stdin.take().expect("piped").write_all(input.as_bytes());
    let output = child.wait_with_output().expect("kubectl ends");
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    (output.status.success(), text(output.stdout), text(output.stderr))
}

/// Installs, or takes away, one of the chart's admission policies, with these values.
fn policies(cluster: &Cluster, verb: &str, part: &str, values: &[&str]) {
    let mut helm = Command::new(Programs::built(HELM).unwrap().path("helm").unwrap());
    helm.args(["template", "podshm", "deploy/chart", "--set", "admission.label=always"]);
    helm.args(values.iter().flat_map(|value| ["--set", value]));
    helm.args(["--show-only", &format!("templates/admission-{part}.yaml")]);
    let output = helm.current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let (is_fine, _, why) = kubectl(cluster, &[verb, "-f", "-"], &String::from_utf8_lossy(&output.stdout));
    assert!(is_fine, "{why}");
}

/// The object as the server would store it, and what it warns of.
fn dry(cluster: &Cluster, space: &Space, object: &Value) -> Result<(Value, String), String> {
    let arguments = ["-n", &space.name, "create", "--dry-run=server", "-o", "json", "-f", "-"];
    match kubectl(cluster, &arguments, &object.to_string()) {
        (true, stored, warned) => Ok((serde_json::from_str(&stored).unwrap(), warned)),
        (false, _, why) => Err(why),
    }
}

fn labelled(name: &str, labels: &Value) -> Value {
    let mut pod = probe(name, "a");
    pod["metadata"]["labels"] = labels.clone();
    let second = pod["spec"]["containers"][0].clone();
    pod["spec"]["initContainers"] = json!([second]);
    pod["spec"]["initContainers"][0]["name"] = "first".into();
    pod["spec"]["containers"].as_array_mut().unwrap().push(second);
    pod["spec"]["containers"][1]["name"] = "second".into();
    pod
}

/// A container's mounts, `path=volume/subPath`, and its variables.
fn of_container(container: &Value) -> (Vec<String>, Vec<String>) {
    let list = |name: &str| container[name].as_array().cloned().unwrap_or_default();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let mount = |m: &Value| format!("{}={}/{}", text(&m["mountPath"]), text(&m["name"]), text(&m["subPath"]));
    let mut mounts: Vec<String> = list("volumeMounts").iter().map(mount).collect();
    mounts.sort();
    (mounts, list("env").iter().map(|e| format!("{}={}", text(&e["name"]), text(&e["value"]))).collect())
}

fn all_containers(pod: &Value) -> Vec<(Vec<String>, Vec<String>)> {
    let lists = ["initContainers", "containers"].map(|name| pod["spec"][name].as_array().cloned().unwrap_or_default());
    lists.iter().flatten().map(of_container).collect()
}

fn volumes(pod: &Value) -> Vec<Value> {
    pod["spec"]["volumes"].as_array().cloned().unwrap_or_default()
}

fn csi(name: &str, attributes: &Value) -> Value {
    json!({"name": name, "csi": {"driver": "podshm.dev", "volumeAttributes": attributes}})
}

#[test]
fn a_label_is_enough() {
    let cluster = Cluster::connect().unwrap();
    let known = cluster.kubectl(&["get", "--raw=/apis/admissionregistration.k8s.io/v1"]).unwrap();
    if !known.contains("mutatingadmissionpolicies") {
        assert!(!cluster.is_ours(), "MutatingAdmissionPolicy is v1 in Kubernetes 1.36: {known}");
        println!("SKIPPED: a label is enough: this cluster, which is not ours, has no MutatingAdmissionPolicy v1");
        return;
    }
    cluster.apply("chart/files/shmdomains.json").unwrap();
    for (name, spec) in [
        ("adm-all", json!({"modes": ["channel", "posix", "sysv"], "shmSize": "8Mi"})),
        ("adm-channel", json!({"modes": ["channel"]})),
        ("adm-native", json!({"modes": ["sysv"], "sysv": {"mechanism": "native"}})),
    ] {
        cluster.domain(name, &spec).unwrap();
    }
    policies(&cluster, "apply", "label", &[]);
    let space = cluster.space("admission-label", "restricted").unwrap();
    let asked = |domain: &str| labelled("asks", &json!({"podshm.dev/domain": domain}));
    let stored = |pod: &Value| dry(&cluster, &space, pod).unwrap_or_else(|why| panic!("{why}\n{pod}")).0;
    // The server takes policies up a moment later.
    until(
        "the policies to be there",
        || Ok((all_containers(&stored(&asked("adm-all")))[0].1.len() == 1).then_some(())),
    )
    .unwrap();

    let mounts = |name: &str| vec![format!("/dev/shm={name}/shm"), format!("/run/podshm={name}/")];
    let all = stored(&asked("adm-all"));
    assert_eq!(volumes(&all), [csi("podshm", &json!({"domain": "adm-all"}))]);
    let expected = (mounts("podshm"), vec![format!("LD_PRELOAD={LIBRARY}")]);
    assert_eq!(all_containers(&all), vec![expected; 3], "all containers, init containers too");
    let mut again = asked("adm-all");
    again["spec"] = all["spec"].clone();
    assert_eq!(stored(&again)["spec"], all["spec"], "done before is done");

    let plain = stored(&labelled("plain", &json!({"app": "plain", "podshm.dev/role": "agent"})));
    assert_eq!((volumes(&plain), all_containers(&plain)), (vec![], vec![(vec![], vec![]); 3]), "it did not ask");
    let agent = stored(&labelled("agent", &json!({"podshm.dev/domain": "adm-all", "podshm.dev/role": "agent"})));
    assert_eq!(volumes(&agent), [csi("podshm", &json!({"domain": "adm-all", "role": "agent"}))]);
    for (domain, what) in [
        ("adm-channel", "no /dev/shm and no library"),
        ("adm-native", "the kernel's own, through the container runtime"),
        ("adm-nobody", "its node will say that there is no such domain"),
    ] {
        let found = stored(&asked(domain));
        assert_eq!(volumes(&found), [csi("podshm", &json!({"domain": domain}))], "{what}");
        assert_eq!(all_containers(&found), vec![(vec!["/run/podshm=podshm/".to_owned()], vec![]); 3], "{what}");
    }

    // Written by hand, wholly or in part, under a name of its own.
    let mut by_hand = asked("adm-all");
    by_hand["spec"]["volumes"] = json!([csi("mine", &json!({"domain": "adm-all"}))]);
    let container = &mut by_hand["spec"]["containers"][0];
    container["volumeMounts"] = json!([
        {"name": "mine", "mountPath": "/run/podshm"}, {"name": "mine", "mountPath": "/dev/shm", "subPath": "shm"},
    ]);
    container["env"] = json!([{"name": "LD_PRELOAD", "value": format!("/other.so:{LIBRARY}")}]);
    by_hand["spec"]["containers"][1]["env"] =
        json!([{"name": "A", "value": "1"}, {"name": "LD_PRELOAD", "value": "/other.so"}]);
    let found = stored(&by_hand);
    assert_eq!(volumes(&found), [csi("mine", &json!({"domain": "adm-all"}))]);
    let variables: Vec<_> = all_containers(&found)
        .into_iter()
        .map(|(found, variables)| {
            assert_eq!(found, mounts("mine"));
            variables
        })
        .collect();
    let ours = format!("LD_PRELOAD={LIBRARY}");
    assert_eq!(variables[0].as_slice(), std::slice::from_ref(&ours));
    assert_eq!(variables[1], [format!("LD_PRELOAD=/other.so:{LIBRARY}")], "as it was written");
    assert_eq!(variables[2], ["A=1".to_owned(), format!("{ours}:/other.so")], "beside another library");

    // By hand for one domain, and a label that names another: what is written stays, and there is no second volume.
    let mut two = asked("adm-all");
    two["spec"]["volumes"] = json!([csi("mine", &json!({"domain": "adm-channel"}))]);
    let found = stored(&two);
    assert_eq!(volumes(&found), [csi("mine", &json!({"domain": "adm-channel"}))]);
    let expected = (vec!["/run/podshm=mine/".to_owned()], vec![]);
    assert_eq!(all_containers(&found), vec![expected; 3], "the modes of the volume's domain, not of the label's");

    a_deployments_pods(&cluster, &space);
    policies(&cluster, "delete", "label", &[]);
    cluster.leave(&space).unwrap();
    // Each would keep its budget from others.
    cluster.kubectl(&["delete", "shmdomain", "adm-all", "adm-channel", "adm-native"]).unwrap();
    cluster.kubectl(&["delete", "crd", "shmdomains.podshm.dev"]).unwrap();
}

/// And an ephemeral container, which gets nothing: its pod's volumes are as they are, and it can't have a subPath.
fn a_deployments_pods(cluster: &Cluster, space: &Space) {
    let mut template = labelled("unused", &json!({"app": "web", "podshm.dev/domain": "adm-all"}));
    template["metadata"].as_object_mut().unwrap().remove("name");
    template["spec"].as_object_mut().unwrap().remove("nodeName");
    let web = json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"},
        "spec": {"selector": {"matchLabels": {"app": "web"}}, "template": {"metadata": template["metadata"], "spec": template["spec"]}},
    });
    cluster.create(space, &web).unwrap();
    let pods = until("the deployment's pod", || {
        let found = cluster.within(space, &["get", "pods", "-l", "app=web", "-o", "json"])?;
        let found: Value = serde_json::from_str(&found)?;
        Ok(found["items"].as_array().and_then(|items| items.first().cloned()))
    });
    let pod = pods.unwrap();
    assert_eq!(volumes(&pod), [csi("podshm", &json!({"domain": "adm-all"}))]);
    assert_eq!(of_container(&pod["spec"]["containers"][0]).1, [format!("LD_PRELOAD={LIBRARY}")]);
    let name = pod["metadata"]["name"].as_str().unwrap();
    let debug = json!({"spec": {"ephemeralContainers": [{
        "name": "debug", "image": "podshm.dev/test/probe:1",
        "securityContext": {"runAsNonRoot": true, "allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}},
    }]}});
    let patch = ["patch", "pod", name, "--subresource=ephemeralcontainers", "--type=strategic", "-o", "json", "-p"];
    let patched = cluster.within(space, &[&patch[..], &[&debug.to_string()]].concat()).unwrap();
    let patched: Value = serde_json::from_str(&patched).unwrap();
    assert_eq!(of_container(&patched["spec"]["ephemeralContainers"][0]), (vec![], vec![]));
}

fn host_path(path: &str) -> Value {
    let mut pod = probe("path", "a");
    pod["spec"]["volumes"] = json!([{"name": "shm", "hostPath": {"path": path}}]);
    pod
}

fn host_ipc() -> Value {
    let mut pod = probe("ipc", "a");
    pod["spec"]["hostIPC"] = true.into();
    pod
}

#[test]
fn the_nodes_own_shared_memory_is_for_those_who_are_listed() {
    let cluster = Cluster::connect().unwrap();
    let (space, listed) = (
        cluster.space("admission-host", "privileged").unwrap(),
        cluster.space("admission-listed", "privileged").unwrap(),
    );
    let before = json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "before"},
        "spec": {"replicas": 0, "selector": {"matchLabels": {"app": "b"}},
            "template": {"metadata": {"labels": {"app": "b"}}, "spec": host_ipc()["spec"]}},
    });
    cluster.create(&space, &before).unwrap();
    let remedy = "have admission-host/default added to admission.hostMemory.allow of the chart podshm";
    let shm = |path: &str| format!("hostPath {path} leads to the /dev/shm of the node");
    let mut rows = vec![
        (host_ipc(), Some("hostIPC: true shares System V memory, and /dev/shm, with the node".to_owned())),
        (probe("plain", "a"), None),
        (host_path("/var/log"), None),
        (host_path("/dev/shmem"), None),
        (host_path("/dev/null"), None),
        (host_path("/dev/shm/app/"), Some(shm("/dev/shm/app"))),
    ];
    for (path, canonical) in [
        ("/dev/shm", "/dev/shm"),
        ("/dev/shm/", "/dev/shm"),
        ("//dev//shm", "/dev/shm"),
        ("/dev/./shm/.", "/dev/shm"),
        ("/dev", "/dev"),
        ("/dev/", "/dev"),
        ("/", "/"),
        ("//", "/"),
        ("/run/shm", "/run/shm"),
    ] {
        rows.push((host_path(path), Some(shm(canonical))));
    }
    // Where every domain's memory is.
    for (path, canonical) in [
        ("/run/podshm", "/run/podshm"),
        ("/run//podshm/domains/routing/", "/run/podshm/domains/routing"),
        ("/var/run/podshm/.", "/var/run/podshm"),
        ("/run/", "/run"),
        ("/var/run", "/var/run"),
    ] {
        let says = format!("hostPath {canonical} leads to /run/podshm, the memory of every domain of the node");
        rows.push((host_path(path), Some(says)));
    }
    rows.push((host_path("/run/podshmem"), None));
    // In a workload it is whoever writes that who is told, not a controller.
    rows.push((before.clone(), Some("hostIPC: true".into())));
    rows.last_mut().unwrap().0["metadata"]["name"] = "after".into();
    let mut cron = json!({"apiVersion": "batch/v1", "kind": "CronJob", "metadata": {"name": "cron"},
        "spec": {"schedule": "0 0 * * *", "jobTemplate": {"spec": {"template": {"spec": host_path("/dev/shm")["spec"]}}}}});
    cron["spec"]["jobTemplate"]["spec"]["template"]["spec"]["restartPolicy"] = "Never".into();
    rows.push((cron, Some(shm("/dev/shm"))));

    policies(&cluster, "apply", "host", &[]);
    until("the policy to warn", || {
        Ok(dry(&cluster, &space, &host_ipc()).is_ok_and(|(_, warned)| warned.contains("hostIPC: true")).then_some(()))
    })
    .unwrap();
    for (object, says) in &rows {
        let (_, warned) = dry(&cluster, &space, object).unwrap_or_else(|why| panic!("only a warning: {why}"));
        match says {
            Some(says) => assert!(warned.contains(says.as_str()) && warned.contains(remedy), "{object}: {warned}"),
            None => assert!(!warned.contains("podshm"), "{object}: {warned}"),
        }
    }
    // No path of these gets as far as the policy.
    let refused = dry(&cluster, &space, &host_path("/run/../dev/shm")).unwrap_err();
    assert!(refused.contains("must not contain '..'") || refused.contains("leads to"), "{refused}");

    policies(
        &cluster,
        "apply",
        "host",
        &["admission.hostMemory.actions={Audit,Deny}", "admission.hostMemory.allow={admission-listed}"],
    );
    until("the policy to deny", || Ok(dry(&cluster, &space, &host_ipc()).is_err().then_some(()))).unwrap();
    for (object, says) in &rows {
        match (dry(&cluster, &space, object), says) {
            (Err(why), Some(says)) => {
                let is_told = why.contains("podshm-host-memory") && why.contains(says.as_str()) && why.contains(remedy);
                assert!(is_told && why.contains("forbidden"), "{object}: {why}");
            }
            (Ok(_), None) => {}
            (other, _) => panic!("{object}: {other:?}"),
        }
        if says.is_some() {
            dry(&cluster, &listed, object).unwrap_or_else(|why| panic!("its namespace is listed: {why}"));
        }
    }
    // One service account of a namespace.
    policies(
        &cluster,
        "apply",
        "host",
        &["admission.hostMemory.actions={Audit,Deny}", "admission.hostMemory.allow={admission-listed/agent}"],
    );
    cluster.within(&listed, &["create", "serviceaccount", "agent"]).unwrap();
    until("the other account to be denied", || Ok(dry(&cluster, &listed, &host_ipc()).is_err().then_some(()))).unwrap();
    let mut agent = host_ipc();
    agent["spec"]["serviceAccountName"] = "agent".into();
    dry(&cluster, &listed, &agent).unwrap();

    // What was there before can be written as it is, and is not widened.
    cluster.within(&space, &["annotate", "deployment", "before", "a=b"]).unwrap();
    cluster.within(&space, &["scale", "deployment", "before", "--replicas=1"]).unwrap();
    // The number is its own affair; the pod that comes of it is a new one.
    until("the new pod to be refused", || {
        let of = ["get", "events", "--field-selector=reason=FailedCreate", "-o", "jsonpath={.items[*].message}"];
        let said = cluster.within(&space, &of)?;
        ensure!(
            said.contains("podshm-host-memory") && said.contains("hostIPC: true") && said.contains(remedy),
            "{said}"
        );
        Ok(Some(()))
    })
    .unwrap();
    assert_eq!(cluster.within(&space, &["get", "pods", "-o", "name"]).unwrap(), "", "none came through");
    let image = ["set", "image", "deployment/before", "probe=podshm.dev/test/probe:2"];
    let refused = cluster.within(&space, &image).unwrap_err().to_string();
    assert!(refused.contains("hostIPC: true"), "{refused}");
    policies(&cluster, "delete", "host", &[]);
    for space in [space, listed] {
        cluster.leave(&space).unwrap();
    }
}
