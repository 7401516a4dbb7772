//! Node daemons, and what bad agents do to a node.

use super::{Bad, Cluster, is_ready, object};
use k8s_openapi::api::core::v1::Pod;
use podshm_api::report::{DomainReport, NodeReport};
use podshm_api::rollout::{Verdict, VerdictResult};
use serde_json::json;

fn revision(pod: &Pod) -> Option<&String> {
    pod.metadata.labels.as_ref()?.get("controller-revision-hash")
}

fn node(pod: &Pod) -> Option<String> {
    pod.spec.as_ref()?.node_name.clone()
}

impl Cluster {
    /// Nodes with a Ready agent that is bad in this way. Wrong answers are there at once; the others come while the batch is watched.
    pub(super) fn nodes_with(&self, bad: Bad) -> Vec<String> {
        let age =
            |pod: &Pod| self.world.now - pod.metadata.creation_timestamp.as_ref().map_or(0, |at| at.0.as_second());
        let is_bad = |pod: &&Pod| {
            let is_due = bad == Bad::AnswersWrongly || age(pod) >= 7 * super::SECONDS_A_TICK;
            is_due && is_ready(pod) && revision(pod).is_some_and(|hash| self.bad.get(hash) == Some(&bad))
        };
        self.world.pods.iter().filter(is_bad).filter_map(node).collect()
    }

    /// What a node's daemon says of the domain, to be changed by a test.
    pub fn domain(&mut self, node: &str) -> &mut DomainReport {
        &mut self.world.reports.get_mut(node).expect("a daemon that answers").domains[0]
    }

    /// What daemons and Prometheus say in a moment.
    pub(super) fn daemons(&mut self) {
        let agents: Vec<(String, String)> = self
            .world
            .pods
            .iter()
            .filter(|pod| is_ready(pod) && revision(pod).is_some())
            .filter_map(|pod| Some((node(pod)?, pod.metadata.uid.clone()?)))
            .collect();
        for name in self.world.nodes.keys().cloned().collect::<Vec<_>>() {
            let report = self.world.reports.entry(name.clone()).or_insert_with(|| NodeReport {
                node: name.clone(),
                registered: true,
                domains: vec![DomainReport { name: "routing".into(), shm_size: 1000, ..DomainReport::default() }],
                ..NodeReport::default()
            });
            let serves = agents.iter().find(|(node, _)| *node == name).map(|(_, uid)| uid);
            let Some(domain) = report.domains.first_mut() else { continue };
            // Whose uid was seen last is in the version, of which a rollout knows nothing.
            if let Some(uid) = serves.filter(|uid| **uid != report.version) {
                report.version.clone_from(uid);
                domain.epoch += 1;
            }
            domain.served = serves.is_some();
        }
        let (nodes, silent) = (&self.world.nodes, self.silent.as_ref());
        self.world.reports.retain(|name, _| nodes.contains_key(name) && silent != Some(name));
        for name in self.nodes_with(Bad::Leaks) {
            let domain = self.domain(&name);
            domain.shm_bytes = (domain.shm_bytes + 500).min(domain.shm_size);
        }
        self.crash();
        let slow = self.nodes_with(Bad::GetsSlow).len();
        let result = if slow == 0 { VerdictResult::Passed } else { VerdictResult::Failed };
        self.world.outside = vec![Verdict { gate: "latency".into(), result, message: format!("{slow} nodes") }];
    }

    /// Every second moment, and Ready again at once.
    fn crash(&mut self) {
        let at = self.world.now / super::SECONDS_A_TICK;
        let bad: Vec<String> = self.nodes_with(Bad::Crashes);
        for pod in self.world.pods.iter_mut().filter(|pod| revision(pod).is_some()) {
            if at % 2 != 0 || !node(pod).is_some_and(|node| bad.contains(&node)) {
                continue;
            }
            let status = pod.status.as_mut().expect("a pod that runs");
            let times = status.container_statuses.iter().flatten().map(|one| one.restart_count).sum::<i32>() + 1;
            status.container_statuses = Some(object(json!([{
                "name": "agent", "ready": true, "restartCount": times, "image": "agent", "imageID": "agent",
                "lastState": {"terminated": {"exitCode": 139, "reason": "Error"}},
            }])));
        }
    }
}
