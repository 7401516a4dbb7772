//! The chart: what it renders, what its schema refuses, and on a real cluster: installed, upgraded, uninstalled.

#[path = "chart/controllers.rs"]
mod controllers;

use podshm_cluster::images::{CONTROLLER, GUARD_AGENT, PODSHMD, ROUTE_AGENT};
use podshm_cluster::programs::{HELM, Programs};
use podshm_cluster::supervise::alive;
use podshm_cluster::testing::{Cluster, Space, until};
use serde_json::json;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn checkout() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn render(arguments: &[&str]) -> Output {
    let mut helm = Command::new(Programs::built(HELM).unwrap().path("helm").unwrap());
    helm.args(["template", "podshm", "deploy/chart"]).args(arguments).current_dir(checkout()).output().unwrap()
}

#[test]
fn the_manifests_are_what_the_chart_renders() {
    let mut script = Command::new("scripts/manifests");
    script.arg("--check").env("PODSHM_CLUSTER_PROGRAM", env!("CARGO_BIN_EXE_podshm-cluster"));
    let output = script.current_dir(checkout()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&[output.stdout, output.stderr].concat()));
}

#[test]
fn a_value_that_nobody_knows_is_refused_by_name() {
    for (value, says) in [
        ("podshmd.memroy=1Gi", "memroy"),
        ("podshmd.memory=lots", "/podshmd/memory"),
        ("kubeletDir=var/lib/kubelet", "/kubeletDir"),
        ("namespace.name=Podshm", "/namespace/name"),
        ("rollouts.enabled=true", "/rollouts/namespaces"),
        ("rollouts.namespaces={Shop}", "/rollouts/namespaces/0"),
        ("rollouts.replicas=0", "/rollouts/replicas"),
        ("podshmd.updateStrategy.typ=OnDelete", "typ"),
        (
            "podshmd.updateStrategy.rollingUpdate.maxUnavailable=some",
            "/podshmd/updateStrategy/rollingUpdate/maxUnavailable",
        ),
        // The value that is there by default stays beside it.
        ("podshmd.updateStrategy.rollingUpdate.maxSurge=1", "/podshmd/updateStrategy/rollingUpdate/maxUnavailable"),
        ("routeAgent.resources.limit.memory=1Gi", "limit"),
        ("controller.resources.limits.memory=lots", "/controller/resources/limits/memory"),
        ("namespace.criticalPods=-1", "/namespace/criticalPods"),
        // Who has no capability can't listen there.
        ("controller.port=80", "/controller/port"),
        ("rollouts.port=web", "/rollouts/port"),
    ] {
        let output = render(&["--set", value]);
        let why = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && why.contains(says), "{value}: {why}");
    }
}

#[test]
fn what_is_printed_for_somebody_else_to_apply_does_not_uninstall() {
    let of = |arguments: &[&str]| String::from_utf8_lossy(&render(arguments).stdout).into_owned();
    let text = of(&[]);
    assert!(text.contains("kind: DaemonSet") && !text.contains("podshm-uninstall"), "{text}");
    let text = of(&["--set", "uninstallCheck=always"]);
    let objects: Vec<&str> =
        text.split("\n---\n").filter(|object| object.contains("name: podshm-uninstall\n")).collect();
    assert_eq!(objects.len(), 6, "{text}");
    assert!(objects.iter().all(|object| object.contains("helm.sh/hook: pre-delete")), "{text}");
}

#[test]
fn what_uninstalls_is_pulled_and_placed_as_the_rest_and_goes_whether_it_succeeds_or_not() {
    let set = [
        "uninstallCheck=always",
        "images.pullSecrets[0].name=mirror",
        "controller.nodeSelector.pool=system",
        "podshmd.nodeSelector.pool=shared",
    ];
    let output = render(&set.iter().flat_map(|value| ["--set", value]).collect::<Vec<_>>());
    let text = String::from_utf8_lossy(&output.stdout);
    let object = |kind: &str, name: &str| {
        let found = text.split("\n---\n").find(|o| o.contains(&format!("\nkind: {kind}\nmetadata:\n  name: {name}\n")));
        found.unwrap_or_else(|| panic!("no {kind} {name}: {text}"))
    };
    for kind in ["ServiceAccount", "ClusterRole", "Role", "RoleBinding", "ClusterRoleBinding", "Job"] {
        let failed = object(kind, "podshm-uninstall").contains("hook-succeeded,hook-failed");
        assert_eq!(failed, kind != "Job", "{kind}: its log says which pods");
    }
    let job = object("Job", "podshm-uninstall");
    assert!(job.contains("--pull-secret=mirror") && job.contains("imagePullSecrets:"), "{job}");
    let os = "nodeSelector:\n        kubernetes.io/os: linux\n        pool:";
    for (found, pool) in [
        (job, "system"),
        (object("Deployment", "podshm-controller"), "system"),
        (object("DaemonSet", "podshmd"), "shared"),
    ] {
        assert!(found.contains(&format!("{os} {pool}\n")), "{found}");
    }
}

#[test]
fn values_go_where_they_belong() {
    let set = ["kubeletDir=/data/kubelet", "podshmd.memory=1Gi", "images.registry=example.org/mirror", "images.tag=v2"];
    let output = render(&set.iter().flat_map(|value| ["--set", value]).collect::<Vec<_>>());
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(!text.contains("/var/lib/kubelet"), "{text}");
    assert_eq!(text.matches("memory: 1Gi").count(), 2, "request and limit: {text}");
    assert!(text.contains("image: example.org/mirror/podshmd:v2\n"), "{text}");
    assert!(!text.contains("kind: ResourceQuota"), "{text}");
    let surge =
        ["podshmd.updateStrategy.rollingUpdate.maxSurge=1", "podshmd.updateStrategy.rollingUpdate.maxUnavailable=0"];
    let set = [surge[0], surge[1], "namespace.criticalPods=5000000", "routeAgent.resources.limits.cpu=0.5"];
    let output = render(&set.iter().flat_map(|value| ["--set", value]).collect::<Vec<_>>());
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("hard: {pods: \"5000000\"}"), "{text}{}", String::from_utf8_lossy(&output.stderr));
    for (template, set) in
        [("controller", vec![]), ("rollouts", vec!["rollouts.enabled=true", "rollouts.namespaces={*}"])]
    {
        let (port, file) = (format!("{template}.port=9500"), format!("templates/{template}.yaml"));
        let set = set.into_iter().chain([port.as_str()]).flat_map(|value| ["--set", value]).collect::<Vec<_>>();
        let output = render(&[&set[..], &["--show-only", &file]].concat());
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(text.contains("--port=9500]") && text.contains("containerPort: 9500}"), "{text}");
        assert_eq!(text.matches("port: metrics}").count(), 2, "both probes: {text}");
    }
    // Where the release is recorded in it, the namespace is there already.
    let output = render(&["--namespace", "podshm-system"]);
    assert!(!String::from_utf8_lossy(&output.stdout).contains("kind: Namespace"));
}

#[test]
fn the_nodes_memory_is_for_podshm_itself_whoever_else_is_listed() {
    let of = |set: &[&str]| {
        let set = set.iter().flat_map(|value| ["--set", value]).collect::<Vec<_>>();
        let output = render(&[&set[..], &["--show-only", "templates/admission-host.yaml"]].concat());
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let denied =
        ["admission.hostMemory.actions={Deny}", "admission.hostMemory.allow={a,podshm}", "namespace.name=podshm"];
    let (warns, denies) = (of(&[]), of(&denied));
    assert!(warns.contains("['kube-system','podshm-system']"), "{warns}");
    assert!(denies.contains("['a','podshm']"), "{denies}");
    // A pod that its controller makes anew is refused, too, and told so.
    assert!(denies.contains("ownerReferences") && !warns.contains("ownerReferences"), "{warns}");
}

#[test]
fn the_rollouts_controller_may_change_what_is_in_the_namespaces_that_it_is_given() {
    let template = ["--show-only", "templates/rollouts.yaml"];
    let of = |set: &[&str]| {
        let output = render(&[set, &template[..]].concat());
        (output.status.success(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
    };
    let (is_there, _) = of(&[]);
    assert!(!is_there, "off until somebody wants it");
    let cluster_wide = "kind: ClusterRoleBinding\nmetadata:\n  name: podshm-rollouts-moves\n";
    let (_, text) = of(&["--set", "rollouts.enabled=true", "--set", "rollouts.namespaces={shop,routing}"]);
    for namespace in ["shop", "routing"] {
        let bound = format!("kind: RoleBinding\nmetadata:\n  name: podshm-rollouts-moves\n  namespace: {namespace}\n");
        assert!(text.contains(&bound), "{text}");
    }
    assert!(!text.contains(cluster_wide), "{text}");
    // What is bound in the whole cluster changes nodes and rollouts, and nothing else.
    let (_, role) = text.split_once("kind: ClusterRole\nmetadata:\n  name: podshm-rollouts\n").unwrap();
    let role = role.split("---").next().unwrap();
    for rule in role.split("- apiGroups:").skip(1) {
        let changes = ["create", "update", "patch", "delete", "escalate", "*"].iter().any(|verb| rule.contains(verb));
        assert!(!changes || rule.contains("[nodes]") || rule.contains("[agentrollouts"), "{rule}");
    }
    let (_, text) = of(&["--set", "rollouts.enabled=true", "--set", "rollouts.namespaces={*}"]);
    assert!(text.contains(cluster_wide), "{text}");
    for said in
        ["runAsNonRoot: true", "readOnlyRootFilesystem: true", "drop: [ALL]", "type: RuntimeDefault", "replicas: 2"]
    {
        assert!(text.contains(said), "{said}: {text}");
    }
}

#[test]
fn who_may_change_what_is_these_rights_and_no_other() {
    let mut set = vec!["--set", "uninstallCheck=always", "--set", "rollouts.namespaces={*}"];
    set.extend(["--set-json", r#"guardAgent.policies={"main.cedar": "permit (principal, action, resource);"}"#]);
    for part in ["podshmd.nri=true", "rollouts.enabled=true", "routeAgent.enabled=true", "guardAgent.enabled=true"] {
        set.extend(["--set", part]);
    }
    let output = render(&set);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8_lossy(&output.stdout);
    let list = |rule: &str, of: &str| {
        let found = rule.split_once(&format!("\n    {of}: [")).and_then(|(_, rest)| rest.split_once(']'));
        found.map_or(String::new(), |(list, _)| list.to_owned())
    };
    let (mut roles, mut may, mut accounts) = (0, Vec::new(), Vec::new());
    for object in text.split("\n---\n") {
        accounts.extend(object.lines().filter_map(|line| line.trim().strip_prefix("serviceAccountName: ")));
        if !object.contains("\nkind: Role\n") && !object.contains("\nkind: ClusterRole\n") {
            continue;
        }
        roles += 1;
        let (_, rest) = object.split_once("\n  name: ").expect("a role has a name");
        for rule in object.split("- apiGroups:").skip(1) {
            let (verbs, what) = (list(rule, "verbs"), list(rule, "resources"));
            assert!(!what.is_empty() && !verbs.is_empty() && !what.contains("secrets"), "{object}");
            let changes = verbs.split(", ").filter(|verb| !["get", "list", "watch"].contains(verb)).collect::<Vec<_>>();
            if !changes.is_empty() {
                let one = format!(
                    "{}: {} {what} {}",
                    rest.lines().next().unwrap_or_default(),
                    changes.join(" "),
                    list(rule, "resourceNames")
                );
                may.push(one.trim_end().to_owned());
            }
        }
    }
    may.sort();
    let expected = [
        "podshm-controller: create leases",
        "podshm-controller: patch shmdomains/status",
        "podshm-controller: update leases podshm-controller",
        "podshm-rollouts-moves: create jobs",
        "podshm-rollouts-moves: create patch delete deletecollection pods",
        "podshm-rollouts-moves: create patch delete deployments",
        "podshm-rollouts-moves: patch daemonsets",
        "podshm-rollouts: create leases",
        "podshm-rollouts: create patch events",
        "podshm-rollouts: patch agentrollouts",
        "podshm-rollouts: patch agentrollouts/status",
        "podshm-rollouts: patch nodes",
        "podshm-rollouts: update leases podshm-rollouts",
        "podshm-uninstall: create delete pods",
        "podshm-uninstall: delete daemonsets podshmd",
    ];
    assert_eq!(may, expected, "podshmd and the agents may change nothing");
    assert_eq!(roles, 10, "some role was not looked at: {text}");
    accounts.sort_unstable();
    let own = ["guard-agent", "podshm-controller", "podshm-rollouts", "podshm-uninstall", "podshmd", "route-agent"];
    assert_eq!(accounts, own, "an account each");
}

fn manifest(name: &str) -> String {
    std::fs::read_to_string(checkout().join("deploy").join(name)).unwrap()
}

/// What a server that takes every field seriously says of manifests.
fn strictly(cluster: &Cluster, text: &str) -> anyhow::Result<String> {
    cluster.given(&["apply", "--dry-run=server", "--validate=strict", "-f", "-"], text)
}

/// All of deploy that is applied as it is, and what the chart renders where everything in it is on.
fn every_manifest_is_as_the_server_knows_it(cluster: &Cluster) {
    // A dry run makes no namespace for what is in it.
    let schemes = ["agents-host", "agents-sidecar"].map(|name| cluster.space(name, "privileged").unwrap());
    let mut files = Vec::new();
    for directory in ["manifests", "examples", "schemes"] {
        let found = std::fs::read_dir(checkout().join("deploy").join(directory)).unwrap().flatten();
        let yaml = found.filter(|entry| entry.path().extension().is_some_and(|end| end == "yaml"));
        files.extend(yaml.map(|entry| format!("{directory}/{}", entry.file_name().to_string_lossy())));
    }
    let has = |name: &str| files.iter().any(|file| file == name);
    assert!(has("manifests/route-agent.yaml") && has("manifests/admission-label.yaml") && has("schemes/host.yaml"));
    for name in &files {
        strictly(cluster, &manifest(name)).unwrap_or_else(|error| panic!("{name}: {error:#}"));
        println!("{name}: taken by the server, every field");
    }
    let policies = r#"guardAgent.policies={"main.cedar": "permit (principal, action, resource);"}"#;
    let mut arguments = vec!["--no-hooks", "--set-json", policies];
    for value in [
        "podshmd.nri=true",
        "guardAgent.enabled=true",
        "routeAgent.enabled=true",
        "rollouts.enabled=true",
        "rollouts.namespaces={agents-host}",
        "admission.label=always",
    ] {
        arguments.extend(["--set", value]);
    }
    let output = render(&arguments);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8_lossy(&output.stdout);
    for part in ["name: nri", "name: guard-agent", "name: route-agent", "name: podshm-modes", "name: podshm-rollouts"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    strictly(cluster, &text).unwrap_or_else(|error| panic!("the chart with everything on: {error:#}"));
    for space in &schemes {
        cluster.leave(space).unwrap();
    }
}

/// Everything of podshm's that there is in the cluster, of whatever kind and in whatever namespace: by its label, and drivers of nodes.
fn all_of_podshm(cluster: &Cluster) -> anyhow::Result<Vec<String>> {
    let kinds = cluster.kubectl(&["api-resources", "--verbs=list", "-o", "name"])?;
    // Neither has anything of ours, and servers answer oddly for them.
    let is_asked = |kind: &&str| *kind != "componentstatuses" && !kind.ends_with(".metrics.k8s.io");
    let kinds = kinds.lines().filter(is_asked).collect::<Vec<_>>().join(",");
    let ask =
        ["get", &kinds, "--all-namespaces", "-l", "app.kubernetes.io/name=podshm", "--ignore-not-found", "-o", "name"];
    let mut found: Vec<String> = cluster.kubectl(&ask)?.lines().map(str::to_owned).collect();
    let drivers = cluster.kubectl(&["get", "csinodes", "-o", "jsonpath={.items[*].spec.drivers[*].name}"])?;
    found.extend(drivers.split(' ').filter(|driver| *driver == "podshm.dev").map(|_| "csinode: podshm.dev".to_owned()));
    Ok(found)
}

#[test]
fn it_is_installed_upgraded_and_uninstalled_and_nothing_is_left() {
    let cluster = Cluster::connect().unwrap();
    let [system, routing, shop] = ["podshm-system", "routing", "shop"].map(|name| Space { name: name.into() });
    // What a group before this one has left, Helm would not take over.
    cluster.uninstall().unwrap();
    cluster.provide_podshm().unwrap();
    cluster.provide_route_agent().unwrap();
    cluster.provide_guard_agent().unwrap();
    // With everything that leaves something somewhere: roles in a namespace that stays, policies, agents.
    let elsewhere = cluster.space("elsewhere", "restricted").unwrap();
    let images = [
        format!("images.podshmd={PODSHMD}"),
        format!("images.controller={CONTROLLER}"),
        format!("images.routeAgent={ROUTE_AGENT}"),
        format!("images.guardAgent={GUARD_AGENT}"),
    ];
    let policies = r#"guardAgent.policies={"main.cedar": "permit (principal, action, resource);"}"#;
    let mut set = vec!["--set-json", policies, "--set", "routeAgent.domain=routes"];
    set.extend(["--set", "rollouts.enabled=true", "--set", "rollouts.namespaces={elsewhere}"]);
    set.extend(images.iter().flat_map(|image| ["--set", image.as_str()]));
    let on = ["--set", "routeAgent.enabled=true", "--set", "guardAgent.enabled=true"];
    let with_agents = [&set[..], &on[..], &["--set", "podshmd.memory=320Mi"]].concat();
    let said = cluster.helm(&[&["install", "podshm", "deploy/chart"], &with_agents[..]].concat()).unwrap();
    assert!(said.is_fine && said.text.contains("rollout status daemonset/podshmd"), "{}", said.text);
    cluster.rolled_out(&system, "daemonset/podshmd").unwrap();
    controllers::they_say_how_they_are(&cluster, &system);
    for (domain, account) in [("routes", "route-agent"), ("guard", "guard-agent")] {
        let serve = json!([{"namespace": "podshm-system", "serviceAccounts": [account]}]);
        let spec = json!({"modes": ["channel"], "budget": "32Mi", "perPod": "16Mi", "serve": serve});
        cluster.domain(domain, &spec).unwrap();
        cluster.rolled_out(&system, &format!("daemonset/{account}")).unwrap();
    }
    cluster.apply("examples/routing.yaml").unwrap();
    cluster.rolled_out(&routing, "daemonset/agent").unwrap();
    cluster.rolled_out(&shop, "daemonset/cart").unwrap();

    controllers::one_that_hangs_is_started_anew_while_the_other_leads(&cluster, &system);
    controllers::one_that_knows_nothing_is_not_ready(&cluster, &system);
    every_manifest_is_as_the_server_knows_it(&cluster);
    let typo = manifest("manifests/podshm.yaml").replace("priorityClassName:", "priorityClass:");
    let refused = strictly(&cluster, &typo).expect_err("there is no such field").to_string();
    assert!(refused.contains("unknown field \"spec.template.spec.priorityClass\""), "{refused}");

    let pods =
        |space: &Space| cluster.within(space, &["get", "pods", "-o", "jsonpath={.items[*].metadata.uid}"]).unwrap();
    let before = (pods(&routing), pods(&shop));
    let said = cluster
        .helm(&[&["upgrade", "podshm", "deploy/chart"], &with_agents[..], &["--set", "podshmd.memory=384Mi"]].concat());
    assert!(said.as_ref().is_ok_and(|said| said.is_fine), "{said:?}");
    cluster.rolled_out(&system, "daemonset/podshmd").unwrap();
    let path = "jsonpath={.spec.template.spec.containers[0].resources.limits.memory}";
    assert_eq!(cluster.within(&system, &["get", "daemonset", "podshmd", "-o", path]).unwrap(), "384Mi");
    assert_eq!((pods(&routing), pods(&shop)), before, "who has a volume keeps running");

    let said = cluster.helm(&["uninstall", "podshm", "--timeout", "240s"]).unwrap();
    println!("{}", said.text);
    assert!(!said.is_fine, "pods have volumes");
    for pod in before.1.split_whitespace() {
        let named = format!("jsonpath={{.items[?(@.metadata.uid=='{pod}')].metadata.name}}");
        let name = cluster.within(&shop, &["get", "pods", "-o", &named]).unwrap();
        assert!(said.text.contains(&format!("shop/{name} on ")), "{name}: {}", said.text);
    }
    cluster.rolled_out(&system, "daemonset/podshmd").unwrap();

    for space in [&shop, &routing] {
        cluster.leave(space).unwrap();
    }
    // The chart's own agents have volumes, too; after an uninstallation that was refused Helm takes no upgrade that would turn them off.
    cluster.within(&system, &["delete", "daemonset", "route-agent", "guard-agent"]).unwrap();
    until("the agents to be gone", || {
        let left = cluster.within(&system, &["get", "pods", "-l", "app in (route-agent,guard-agent)", "-o", "name"])?;
        Ok(left.is_empty().then_some(()))
    })
    .unwrap();
    // What is looked for below is found as long as it is there.
    let found = all_of_podshm(&cluster).unwrap();
    for kind in [
        "clusterrole.",
        "role.",
        "rolebinding.",
        "validatingadmissionpolicy.",
        "csidriver.",
        "customresourcedefinition.",
        "csinode:",
    ] {
        assert!(found.iter().any(|name| name.starts_with(kind)), "{kind}: {found:?}");
    }
    let roles =
        cluster.within(&elsewhere, &["get", "rolebindings", "-l", "app.kubernetes.io/name=podshm", "-o", "name"]);
    assert!(roles.unwrap().contains("podshm-rollouts"), "in a namespace that stays");
    let said = cluster.helm(&["uninstall", "podshm", "--wait", "--timeout", "240s"]).unwrap();
    assert!(said.is_fine, "{}", said.text);
    until("nothing to be left in the cluster", || {
        let named = [
            "crd/shmdomains.podshm.dev",
            "crd/agentrollouts.podshm.dev",
            "csidriver/podshm.dev",
            "namespace/podshm-system",
        ];
        let named = cluster.kubectl(&[&["get", "--ignore-not-found", "-o", "name"], &named[..]].concat())?;
        let releases = cluster.helm(&["list", "--all-namespaces", "--short"])?.text;
        let left = [all_of_podshm(&cluster)?.join("\n"), named, releases].concat();
        anyhow::ensure!(left.trim().is_empty(), "there is {left}");
        Ok(Some(()))
    })
    .unwrap();
    cluster.leave(&elsewhere).unwrap();
    for node in cluster.nodes().unwrap() {
        // Of a cluster that is not ours nothing is seen of the insides.
        let Some(pid) = alive(&cluster.place, &node) else { continue };
        for left in ["run/podshm", "var/lib/kubelet/plugins/podshm.dev", "var/lib/kubelet/plugins_registry/podshm.dev"]
        {
            assert!(!Path::new(&format!("/proc/{pid}/root/{left}")).exists(), "node {node} has /{left}");
        }
        let mounts = std::fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap();
        assert!(!mounts.contains("/run/podshm"), "node {node}: {mounts}");
    }
}
