//! Facts to findings.

use super::remedy;
use super::{Admission, CsiDriver, Daemon, Domain, Facts, Node, Sharing, Workload};
use crate::doctor::finding::{Finding, Level};
use crate::doctor::support::{self, Support};
use podshm_api::report::{DomainReport, NodeReport};
use std::collections::{BTreeMap, BTreeSet};

/// Judges what was seen.
pub fn findings(facts: &Facts, support: &Support) -> Vec<Finding> {
    let mut all = vec![server(facts, support)];
    all.extend(facts.unknown.iter().map(|what| {
        Finding::ok("access", what, "an answer").judged(
            false,
            Level::Warning,
            "ask with more rights, or look at what is missing here by hand",
        )
    }));
    all.extend(driver(facts));
    all.push(own_namespace(facts));
    for node in &facts.nodes {
        if node.not_for_it.is_none() {
            all.extend(node_is_fit(node, support));
        }
        all.push(daemon(node, facts));
    }
    all.extend(facts.workloads.iter().filter_map(refused));
    all.extend(facts.workloads.iter().filter_map(|workload| foreign(workload, facts, support)));
    all.extend(domains(facts));
    all.extend(admission(facts));
    all
}

fn server(facts: &Facts, support: &Support) -> Finding {
    Finding::ok("kubernetes", &facts.server_version, format!("{} or newer", support.floors.kubernetes)).judged(
        support::reaches(&facts.server_version, &support.floors.kubernetes) == Some(true),
        Level::Problem,
        format!("upgrade the cluster: {}", support.says("Kubernetes before 1.30")),
    )
}

fn driver(facts: &Facts) -> Vec<Finding> {
    let install =
        "install the chart, or apply deploy/manifests/podshm.yaml: pods with a volume of it hang in ContainerCreating";
    let Some(CsiDriver { pod_info, attach_required, is_ephemeral, profile }) = &facts.csi_driver else {
        return vec![Finding::ok("csi-driver", "no CSIDriver podshm.dev", "one").judged(
            false,
            Level::Problem,
            install,
        )];
    };
    let found = format!(
        "podInfoOnMount {pod_info}, attachRequired {attach_required}, {}",
        if *is_ephemeral { "Ephemeral" } else { "not Ephemeral" }
    );
    let expected = "podInfoOnMount true, attachRequired false, Ephemeral";
    let is_good = *pod_info && !*attach_required && *is_ephemeral;
    let openshift = profile.as_deref().unwrap_or("none");
    vec![
        Finding::ok("csi-driver", found, expected).judged(
            is_good,
            Level::Problem,
            "somebody has changed it: apply it again; podshmd refuses pods that it is told nothing of",
        ),
        Finding::ok("csi-driver-profile", openshift, "restricted").judged(
            openshift == "restricted",
            Level::Warning,
            "on OpenShift pods under `restricted` may not use the driver: label it security.openshift.io/csi-ephemeral-volume-profile=restricted",
        ),
    ]
}

fn own_namespace(facts: &Facts) -> Finding {
    let name = &facts.namespace;
    let level = facts.own_level.as_deref();
    let found = match (level, facts.has_daemon_set) {
        (None, _) => format!("no namespace {name}"),
        (Some(level), false) => format!("{name} enforces {}, and has no DaemonSet podshmd", shown(level)),
        (Some(level), true) => format!("{name} enforces {}", shown(level)),
    };
    let finding = Finding::ok("installation", found, format!("DaemonSet podshmd in {name}, which enforces privileged"));
    let is_refused = level.is_some_and(|level| refuses(level, Sharing::Host));
    if level.is_none() || !facts.has_daemon_set {
        return finding.judged(
            false,
            Level::Problem,
            "install the chart; say --namespace NAME where it is installed elsewhere",
        );
    }
    let remedy = format!(
        "podshmd's pods are refused there: kubectl label namespace {name} --overwrite pod-security.kubernetes.io/enforce=privileged"
    );
    finding.judged(!is_refused, Level::Problem, remedy)
}

fn node_is_fit(node: &Node, support: &Support) -> Vec<Finding> {
    let Node { name, kernel, architecture, runtime, .. } = node;
    let floors = &support.floors;
    let found = format!("kernel {kernel}, {architecture}, {runtime}");
    let finding = Finding::ok(
        format!("node/{name}"),
        found,
        format!("kernel {} or newer, {}, containerd", floors.kernel, floors.architectures.join(" or ")),
    );
    let is_new = support::reaches(kernel, &floors.kernel) == Some(true);
    let is_tested = floors.architectures.contains(architecture) && runtime.starts_with("containerd:");
    let row = match (architecture.as_str(), runtime.split(':').next()) {
        (_, Some("cri-o")) => support.says("CRI-O"),
        ("arm64", _) => support.says("arm64"),
        _ => "it is not in the table of docs/support.md".into(),
    };
    let finding =
        finding.judged(is_tested, Level::Warning, format!("run the tests there before you rely on it: {row}"));
    vec![finding.judged(
        is_new,
        Level::Problem,
        format!(
            "keep podshmd, and pods that need it, off this node (nodeSelector), or update its kernel: {}",
            support.says("Linux before 6.1")
        ),
    )]
}

fn daemon(node: &Node, facts: &Facts) -> Finding {
    let (name, namespace) = (&node.name, &facts.namespace);
    let registered = if node.is_registered { "registered" } else { "not registered" };
    let finding = |found: String| {
        Finding::ok(format!("podshmd/{name}"), found, "ready, registered with the kubelet, within its memory limit")
    };
    let problem = |found: String, remedy: String| finding(found).judged(false, Level::Problem, remedy);
    // Somebody's choice.
    if let (Daemon::Missing, Some(why)) = (&node.daemon, &node.not_for_it) {
        return finding(format!("no pod, and none is meant to be there: {why}"));
    }
    match &node.daemon {
        Daemon::Missing if !node.is_ready => finding("no pod; the node is not Ready".into()).judged(
            false,
            Level::Warning,
            "see why: kubectl describe node; podshmd follows",
        ),
        Daemon::Missing => problem(
            format!("no pod of it on the node; {registered}"),
            format!(
                "pods with a volume of podshm can't start there: kubectl -n {namespace} describe daemonset podshmd (nodeSelector, taints, quotas)"
            ),
        ),
        Daemon::NotReady(why) => problem(
            format!("not ready: {why}; {registered}"),
            format!("kubectl -n {namespace} describe pods -l app=podshmd; its log says what it waits for"),
        ),
        _ if !node.is_registered => problem(
            "ready, and not registered with the kubelet".into(),
            "is kubeletDir of the chart the kubelet's --root-dir? kubectl get csinode -o yaml; the kubelet's log"
                .into(),
        ),
        Daemon::Silent(why) => finding(format!("ready, registered; its report could not be had: {why}")).judged(
            false,
            Level::Warning,
            "is its port 9478 reachable from the API server, and may you get pods/proxy?",
        ),
        Daemon::Reports(report) => reported(finding, report),
    }
}

fn reported(finding: impl Fn(String) -> Finding, report: &NodeReport) -> Finding {
    let NodeReport { charged_bytes, limit_bytes, registered, .. } = report;
    let limit = limit_bytes.map_or("no limit".into(), |limit| format!("a limit of {} MiB", limit >> 20));
    let found = format!("ready, registered, {} MiB charged to {limit}", charged_bytes >> 20);
    let is_within = limit_bytes.is_none_or(|limit| *charged_bytes < limit);
    finding(found)
        .judged(
            is_within,
            Level::Problem,
            "it is about to be killed: raise podshmd.memory of the chart, or lower budgets",
        )
        .judged(*registered, Level::Problem, "it says that the kubelet has not registered it: see the kubelet's log")
}

/// Whether a Pod Security level refuses pods that share memory so.
fn refuses(level: &str, sharing: Sharing) -> bool {
    sharing == Sharing::Host && matches!(level, "baseline" | "restricted")
}

fn refused(workload: &Workload) -> Option<Finding> {
    let Workload { name, level, sharing, .. } = workload;
    let how = match sharing {
        Sharing::Volume => "a volume of podshm.dev",
        Sharing::Host => "hostIPC or the node's /dev/shm",
    };
    if *sharing == Sharing::Volume {
        return None;
    }
    let finding = Finding::ok(
        format!("pod-security/{name}"),
        format!("{how}; its namespace enforces {}", shown(level)),
        "a level that lets it through",
    );
    Some(finding.judged(
        !refuses(level, *sharing),
        Level::Problem,
        "new pods of it are refused: go over to a volume of podshm.dev, which `restricted` lets through, or label the namespace privileged",
    ))
}

fn shown(level: &str) -> &str {
    if level.is_empty() { "nothing" } else { level }
}

fn foreign(workload: &Workload, facts: &Facts, support: &Support) -> Option<Finding> {
    let class = workload.runtime_class.as_ref()?;
    let (_, handler) = facts.foreign_runtimes.iter().find(|(name, _)| name == class)?;
    let row = support.says(if handler.starts_with("kata") { "Kata Containers" } else { "gVisor (runsc)" });
    let finding =
        Finding::ok(format!("runtime/{}", workload.name), format!("RuntimeClass {class} ({handler})"), "runc");
    Some(finding.judged(false, Level::Problem, format!("leave the class away, or use scheme `sidecar`: {row}")))
}

fn domains(facts: &Facts) -> Vec<Finding> {
    let mut all = Vec::new();
    let reports = || {
        facts.nodes.iter().filter_map(|node| match &node.daemon {
            Daemon::Reports(report) => Some((&node.name, report)),
            _ => None,
        })
    };
    let mut unserved: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    let mut said: BTreeMap<(&str, &str, &str), BTreeSet<&str>> = BTreeMap::new();
    let mut known: BTreeSet<&str> = BTreeSet::new();
    for (node, report) in reports() {
        for DomainReport { name, served, volumes, conditions, .. } in &report.domains {
            known.insert(name);
            if !served && *volumes > 0 {
                unserved.entry(name).or_default().insert(node);
            }
            for condition in conditions.iter().filter(|condition| condition.reason != "NoAgent") {
                said.entry((name.as_str(), condition.reason.as_str(), condition.message.as_str()))
                    .or_default()
                    .insert(node);
            }
        }
    }
    let declared = facts.domains.as_deref().unwrap_or_default();
    known.extend(declared.iter().map(|domain| domain.name.as_str()));
    for name in known {
        let without: Vec<&str> = unserved.get(name).into_iter().flatten().copied().collect();
        let found = match without.as_slice() {
            [] => "nobody waits for its agent".to_owned(),
            nodes => format!("pods, and no agent that serves them, on {}", some(nodes)),
        };
        all.push(Finding::ok(format!("domain/{name}"), found, "an agent wherever its pods are").judged(
            without.is_empty(),
            Level::Problem,
            "is its agent's DaemonSet on those nodes, does it name the domain with role: agent, and does the domain's `serve` let it?",
        ));
    }
    // A status is older than what the nodes say, and says no more.
    let is_said = |domain: &str, reason: &str| {
        (reason == "NoAgent" && unserved.contains_key(domain))
            || said.keys().any(|(of, found, _)| (*of, *found) == (domain, reason))
    };
    for Domain { name, complaints, .. } in declared {
        for (kind, reason, message) in complaints.iter().filter(|(_, reason, _)| !is_said(name, reason)) {
            all.push(
                Finding::ok(
                    format!("domain/{name}"),
                    format!("condition {kind}: {reason}: {message}"),
                    "no such condition",
                )
                .judged(false, Level::Warning, remedy::of(reason)),
            );
        }
    }
    for ((name, reason, message), nodes) in said {
        let nodes: Vec<&str> = nodes.into_iter().collect();
        all.push(
            Finding::ok(
                format!("domain/{name}"),
                format!("{reason} on {}: {message}", some(&nodes)),
                "nothing to be said",
            )
            .judged(false, Level::Warning, remedy::of(reason)),
        );
    }
    all.extend(declared.iter().filter(|domain| domain.is_native).filter_map(|domain| {
        let without = reports().filter(|(_, report)| report.nri != Some(true)).map(|(node, _)| node.as_str());
        let without: Vec<&str> = without.collect();
        let finding = Finding::ok(
            format!("domain/{}", domain.name),
            format!("sysv.mechanism is native, and the container runtime does not ask podshmd on {}", some(&without)),
            "NRI on, and podshmd connected to it",
        );
        (!without.is_empty()).then(|| finding.judged(false, Level::Problem, remedy::of("NoRuntime")))
    }));
    for workload in &facts.workloads {
        let Some(domain) = &workload.domain else { continue };
        if facts.domains.is_some() && !declared.iter().any(|known| known.name == *domain) {
            all.push(
                Finding::ok(
                    format!("domain/{domain}"),
                    format!("{} names it, and there is none", workload.name),
                    "a ShmDomain of that name",
                )
                .judged(
                    false,
                    Level::Problem,
                    "its pods hang in ContainerCreating: make the domain, or correct the name",
                ),
            );
        }
    }
    all
}

/// The first few of many.
fn some(nodes: &[&str]) -> String {
    match nodes {
        [first, second, third, rest @ ..] if !rest.is_empty() => {
            format!("{first}, {second}, {third} and {} more nodes", rest.len())
        }
        nodes => format!("node {}", nodes.join(", ")),
    }
}

fn admission(facts: &Facts) -> Vec<Finding> {
    let Admission { can_mutate, policies } = &facts.admission;
    let found = if policies.is_empty() { "no policies of podshm".into() } else { policies.join(", ") };
    let mutating = if *can_mutate { "there (v1)" } else { "not there" };
    vec![
        // Both are a choice; it is only said.
        Finding::ok(
            "admission-policies",
            found,
            "as you chose: hostIPC and hostPath /dev/shm are refused by them or by Pod Security alone",
        ),
        Finding::ok(
            "mutating-admission-policy",
            mutating,
            "v1 (Kubernetes 1.36): then a label on a pod is enough; elsewhere the volume is written by hand",
        ),
    ]
}
