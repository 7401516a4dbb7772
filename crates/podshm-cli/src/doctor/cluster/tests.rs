//! Planted faults, each found by its own check.

use super::*;
use crate::doctor::finding::{Finding, Level};
use crate::doctor::support;
use podshm_api::report::{DomainReport, NodeCondition};

fn report() -> NodeReport {
    NodeReport {
        node: "a".into(),
        registered: true,
        charged_bytes: 10 << 20,
        limit_bytes: Some(192 << 20),
        domains: vec![DomainReport { name: "routing".into(), served: true, volumes: 3, ..DomainReport::default() }],
        ..NodeReport::default()
    }
}

fn healthy() -> Facts {
    Facts {
        namespace: "podshm-system".into(),
        server_version: "v1.36.0".into(),
        csi_driver: Some(CsiDriver {
            pod_info: true,
            attach_required: false,
            is_ephemeral: true,
            profile: Some("restricted".into()),
        }),
        own_level: Some("privileged".into()),
        has_daemon_set: true,
        nodes: vec![Node {
            name: "a".into(),
            is_ready: true,
            kernel: "6.12.0".into(),
            architecture: "amd64".into(),
            runtime: "containerd://2.3.0".into(),
            is_registered: true,
            not_for_it: None,
            daemon: Daemon::Reports(Box::new(report())),
        }],
        workloads: vec![Workload {
            name: "Deployment shop/cart".into(),
            level: "restricted".into(),
            domain: Some("routing".into()),
            ..Workload::default()
        }],
        domains: Some(vec![Domain { name: "routing".into(), ..Domain::default() }]),
        admission: Admission { can_mutate: true, policies: Vec::new() },
        ..Facts::default()
    }
}

fn judged(facts: &Facts) -> Vec<Finding> {
    findings(facts, &support::table())
}

fn with_report(facts: &mut Facts, change: impl FnOnce(&mut NodeReport)) {
    let mut report = report();
    change(&mut report);
    facts.nodes[0].daemon = Daemon::Reports(Box::new(report));
}

#[test]
fn a_healthy_cluster_has_nothing_to_be_said_of() {
    for finding in judged(&healthy()) {
        assert_eq!((finding.level, finding.remedy.as_str()), (Level::Ok, ""), "{finding:?}");
    }
}

#[test]
fn each_fault_is_found_by_its_own_check_alone_and_has_a_remedy() {
    type Fault = fn(&mut Facts);
    let faults: Vec<(&str, Level, Fault)> = vec![
        ("kubernetes", Level::Problem, |f| f.server_version = "v1.29.3".into()),
        ("access", Level::Warning, |f| f.unknown = vec!["pods: forbidden".into()]),
        ("csi-driver", Level::Problem, |f| f.csi_driver = None),
        ("csi-driver", Level::Problem, |f| f.csi_driver.as_mut().unwrap().pod_info = false),
        ("csi-driver-profile", Level::Warning, |f| f.csi_driver.as_mut().unwrap().profile = None),
        ("installation", Level::Problem, |f| f.own_level = None),
        ("installation", Level::Problem, |f| f.has_daemon_set = false),
        ("installation", Level::Problem, |f| f.own_level = Some("restricted".into())),
        ("node/a", Level::Problem, |f| f.nodes[0].kernel = "5.10.0".into()),
        ("node/a", Level::Warning, |f| f.nodes[0].runtime = "cri-o://1.33".into()),
        ("podshmd/a", Level::Problem, |f| f.nodes[0].daemon = Daemon::Missing),
        ("podshmd/a", Level::Problem, |f| f.nodes[0].daemon = Daemon::NotReady("ImagePullBackOff".into())),
        ("podshmd/a", Level::Problem, |f| f.nodes[0].is_registered = false),
        ("podshmd/a", Level::Warning, |f| f.nodes[0].daemon = Daemon::Silent("connection refused".into())),
        ("podshmd/a", Level::Problem, |f| with_report(f, |r| r.charged_bytes = 192 << 20)),
        ("podshmd/a", Level::Problem, |f| with_report(f, |r| r.registered = false)),
        ("domain/routing", Level::Problem, |f| with_report(f, |r| r.domains[0].served = false)),
        ("domain/routing", Level::Warning, |f| {
            with_report(f, |r| {
                r.domains[0].conditions =
                    vec![NodeCondition { reason: "OverLimit".into(), message: "raise the limit".into() }];
            });
        }),
        ("domain/routing", Level::Warning, |f| {
            f.domains.as_mut().unwrap()[0].complaints = vec![("Degraded".into(), "NoAgent".into(), "start it".into())];
        }),
        ("domain/routing", Level::Problem, |f| f.domains.as_mut().unwrap()[0].is_native = true),
        ("domain/routing", Level::Problem, |f| {
            f.domains.as_mut().unwrap()[0].is_native = true;
            with_report(f, |r| r.nri = Some(false));
        }),
        // What the nodes say themselves, the status repeats a while later.
        ("domain/routing", Level::Problem, |f| {
            with_report(f, |r| r.domains[0].served = false);
            f.domains.as_mut().unwrap()[0].complaints = vec![("Degraded".into(), "NoAgent".into(), "start it".into())];
        }),
        ("domain/payments", Level::Problem, |f| f.workloads[0].domain = Some("payments".into())),
        ("pod-security/Deployment shop/cart", Level::Problem, |f| f.workloads[0].sharing = Sharing::Host),
        ("runtime/Deployment shop/cart", Level::Problem, |f| {
            f.workloads[0].runtime_class = Some("sandboxed".into());
            f.foreign_runtimes = vec![("sandboxed".into(), "runsc".into())];
        }),
    ];
    for (check, level, plant) in faults {
        let mut facts = healthy();
        plant(&mut facts);
        let bad: Vec<Finding> = judged(&facts).into_iter().filter(|finding| finding.level != Level::Ok).collect();
        assert_eq!(bad.len(), 1, "{check}: {bad:?}");
        assert_eq!((bad[0].check.as_str(), bad[0].level), (check, level));
        assert!(!bad[0].remedy.is_empty() && !bad[0].found.contains(&bad[0].remedy), "{:?}", bad[0]);
    }
}

#[test]
fn what_is_chosen_is_no_fault() {
    let mut facts = healthy();
    facts.domains.as_mut().unwrap()[0].is_native = true;
    with_report(&mut facts, |r| r.nri = Some(true));
    assert!(judged(&facts).iter().all(|finding| finding.level == Level::Ok), "{:?}", judged(&facts));
    // A node that podshmd's DaemonSet leaves out, whatever that is.
    let (kernel, runtime) = ("10.0.20348".to_owned(), "containerd://1.7".to_owned());
    let not_for_it = Some("its kubernetes.io/os is windows".to_owned());
    facts.nodes.push(Node { name: "w".into(), is_ready: true, kernel, runtime, not_for_it, ..Node::default() });
    // Older schemes where a namespace lets them through, no ShmDomains at all, no admission policies.
    facts.workloads[0] = Workload { sharing: Sharing::Host, level: "privileged".into(), ..facts.workloads[0].clone() };
    facts.domains = None;
    facts.admission = Admission::default();
    assert!(judged(&facts).iter().all(|finding| finding.level == Level::Ok), "{:?}", judged(&facts));
}
