//! What a plan warns of, and what it does not: what is said of no use is not read.

use crate::refusals::{Change, a_deployment, a_pod, cart, fleet, managed_by, said, warnings};
use crate::simulated::{Cluster, daemon_set, object};
use podshm_api::rollout::{MADE_BY, NODE_MARK};
use podshm_rollout::plan;
use serde_json::{Value, json};

#[test]
fn what_a_verification_lacks_of_what_the_domain_has_is_warned_of_by_name() {
    let mut cluster = fleet();
    cluster.rollout.spec.domain = Some("routing".into());
    let warned = |cluster: &Cluster| -> Vec<String> {
        let plan = plan(&cluster.rollout, &cluster.world);
        assert_eq!(said(&plan), [""; 0]);
        let about = |of: &str| of == "gates.verification" || of == "domain";
        plan.warnings.into_iter().filter(|one| about(&one.about)).map(|one| one.message).collect()
    };
    let only = |found: Vec<String>, expected: &[&str]| {
        assert_eq!(found.len(), expected.len(), "{expected:?}: {found:#?}");
        for expected in expected {
            assert!(found.iter().any(|one| one.contains(expected)), "{expected}: {found:#?}");
        }
    };
    only(warned(&cluster), &["there is none"]);
    let with = |cluster: &mut Cluster, dev_shm: bool, command: &[&str]| {
        let gate = json!({"namespace": "verify", "image": "podshm", "command": command, "devShm": dev_shm});
        cluster.rollout.spec.gates.verification = Some(object(gate));
    };
    with(&mut cluster, false, &[]);
    only(warned(&cluster), &["its command is empty"]);
    with(&mut cluster, false, &["/podshm", "verify"]);
    only(warned(&cluster), &[]);
    // From here on it is known which domains there are.
    cluster.world.domains = Some(Vec::new());
    only(warned(&cluster), &["there is no ShmDomain routing"]);
    let domain = json!({
        "apiVersion": "podshm.dev/v1alpha1", "kind": "ShmDomain", "metadata": {"name": "routing"},
        "spec": {"modes": ["channel", "posix", "sysv"], "shmSize": "1Mi"},
    });
    cluster.world.domains = Some(vec![object(domain)]);
    only(
        warned(&cluster),
        &[
            "devShm is not set",
            "no --lookup:",
            "no --report:",
            "no --call:",
            "no --posix or --posix-write:",
            "no --sysv or --sysv-write:",
        ],
    );
    let some = ["/podshm", "verify", "--lookup", "a:b", "--report=a:b", "--posix-write", "x"];
    with(&mut cluster, true, &some);
    only(warned(&cluster), &["no --call: calls of domain routing", "no --sysv or --sysv-write:"]);
    // Of a program of somebody's own nothing is known.
    with(&mut cluster, true, &["/try-it"]);
    only(warned(&cluster), &[]);
}

#[test]
fn what_is_no_proof_of_a_gitops_tool_or_of_somebody_elses_taint_is_not_refused() {
    let rows: [(&str, Change, Option<&str>); 5] = [
        (
            "Helm sets the label that Argo CD may track by",
            |c| {
                drop(
                    cart(c)
                        .metadata
                        .labels
                        .get_or_insert_default()
                        .insert("app.kubernetes.io/instance".into(), "shop".into()),
                )
            },
            None,
        ),
        (
            "agents in Git, which a conversion leaves alone",
            |c| daemon_set(c).metadata.managed_fields = Some(object(managed_by("kustomize-controller"))),
            None,
        ),
        (
            "a slim form of a rollout before",
            |c| {
                let mut slim =
                    a_deployment("till-slim", &json!({"containers": [], "nodeSelector": {"AgentsDaemonSet": "YES"}}));
                slim.metadata.labels = Some([(MADE_BY.to_owned(), "before".to_owned())].into());
                c.world.deployments.push(slim);
            },
            None,
        ),
        (
            "podshm's own",
            |c| {
                let mut own = a_deployment(
                    "rollouts",
                    &json!({"containers": [], "tolerations": [{"key": "AgentsDaemonSet", "operator": "Exists"}]}),
                );
                own.metadata.labels = Some([("app.kubernetes.io/name".to_owned(), "podshm".to_owned())].into());
                c.world.deployments.push(own);
            },
            None,
        ),
        (
            "what has settled on nodes that a rollout before has converted",
            |c| {
                let node = &mut c.world.nodes.get_mut("n03").unwrap().metadata;
                node.labels.as_mut().unwrap().insert("AgentsDaemonSet".into(), "YES".into());
                let mark =
                    json!({"rollout": "before", "uid": "r-0", "batch": 1, "state": "Done", "reason": "", "since": 1});
                node.annotations = Some([(NODE_MARK.to_owned(), mark.to_string())].into());
                let slim = a_deployment("till", &json!({"containers": [], "nodeSelector": {"AgentsDaemonSet": "YES"}}));
                c.world.deployments.push(slim);
            },
            Some("Deployment other/till: it is not listed and selects nodes by the label"),
        ),
    ];
    for (what, change, warned) in rows {
        let mut cluster = fleet();
        let before = warnings(&cluster);
        change(&mut cluster);
        let mut found = warnings(&cluster);
        found.retain(|one| !before.contains(one));
        let is_so = match warned {
            None => found.is_empty(),
            Some(says) => found.iter().any(|one| one.contains(says)),
        };
        assert!(is_so, "{what}: {found:#?}");
    }
}

#[test]
fn what_keeps_both_forms_of_a_workload_apart_is_warned_of() {
    let app = json!({"matchLabels": {"app": "cart"}});
    let fat = json!({"matchLabels": {"app": "cart", "form": "fat"}});
    let apart = |by: &Value| {
        let term = json!({"topologyKey": "kubernetes.io/hostname", "labelSelector": by});
        json!({"affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [term]}}})
    };
    let spread = |by: &Value, otherwise: &str| {
        json!({"topologySpreadConstraints": [
            {"topologyKey": "kubernetes.io/hostname", "maxSkew": 1, "whenUnsatisfiable": otherwise, "labelSelector": by},
        ]})
    };
    let port = json!({"containers": [{"name": "business", "ports": [{"containerPort": 80, "hostPort": 8080}]}, {"name": "agent"}]});
    let volume = json!({"volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": "cart-data"}}]});
    let read_only =
        json!({"volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": "c", "readOnly": true}}]});
    let rows = [
        (apart(&app), Some("its required podAntiAffinity counts pods of both forms")),
        (apart(&fat), None),
        (spread(&app, "DoNotSchedule"), Some("its topologySpreadConstraints count pods of both forms")),
        (spread(&app, "ScheduleAnyway"), None),
        (port, Some("its pods have hostPort 8080")),
        (volume, Some("both forms would have PersistentVolumeClaim cart-data")),
        (read_only, None),
    ];
    let words = ["podAntiAffinity", "topologySpread", "hostPort", "PersistentVolumeClaim"];
    for (part, expected) in rows {
        let mut cluster = fleet();
        let template = &mut cart(&mut cluster).spec.as_mut().unwrap().template;
        let mut pod = serde_json::to_value(&template.spec).unwrap();
        pod.as_object_mut().unwrap().extend(part.as_object().unwrap().clone());
        template.spec = Some(object(pod));
        let mut found = warnings(&cluster);
        found.retain(|one| words.iter().any(|word| one.contains(word)));
        assert_eq!(found.len(), usize::from(expected.is_some()), "{part}: {found:?}");
        assert!(found.iter().all(|one| one.contains(expected.unwrap())), "{part}: {found:?}");
    }
}

#[test]
fn room_is_counted_as_the_scheduler_does() {
    let mut cluster = fleet();
    // Of four cores each; a control plane that lets in those who tolerate it.
    cluster.add_node("master", "z0");
    let master = cluster.world.nodes.get_mut("master").unwrap();
    master.metadata.labels.as_mut().unwrap().insert("node-role.kubernetes.io/control-plane".into(), String::new());
    let taint = json!([{"key": "node-role.kubernetes.io/control-plane", "effect": "NoSchedule"}]);
    master.spec = Some(object(json!({"taints": taint})));
    let tolerations = json!([{"key": "node-role.kubernetes.io/control-plane", "effect": "NoSchedule"}]);
    let dns = |name: &str, spec: Value| {
        let mut spec = spec;
        spec["tolerations"] = tolerations.clone();
        a_pod(name, "n00", spec)
    };
    let core = |n: u32| json!({"requests": {"cpu": n.to_string()}});
    let two = json!({"containers": [{"name": "dns", "resources": core(2)}]});
    cluster.world.pods.push(dns("dns-0", two.clone()));
    assert_eq!(said(&plan(&cluster.rollout, &cluster.world)), [""; 0], "it may go to the control plane");
    // One core, and a sidecar that has two for good: no room beside the first.
    let with_sidecar = json!({
        "initContainers": [{"name": "proxy", "restartPolicy": "Always", "resources": core(2)}],
        "containers": [{"name": "dns", "resources": core(1)}],
    });
    cluster.world.pods.push(dns("dns-1", with_sidecar.clone()));
    let found = said(&plan(&cluster.rollout, &cluster.world));
    assert!(found.iter().any(|one| one.contains("1 pods that are not listed")), "{found:?}");
    // The same once it begins and is over: two at the beginning, one later.
    cluster.world.pods.pop();
    let mut beginning = with_sidecar;
    beginning["initContainers"][0].as_object_mut().unwrap().remove("restartPolicy");
    cluster.world.pods.push(dns("dns-1", beginning));
    assert_eq!(said(&plan(&cluster.rollout, &cluster.world)), [""; 0]);
    // Without the toleration there is nobody to take it.
    cluster.world.pods.push(a_pod("other", "n00", two));
    let found = said(&plan(&cluster.rollout, &cluster.world));
    assert!(found.iter().any(|one| one.contains("(other/other)")), "{found:?}");
}
