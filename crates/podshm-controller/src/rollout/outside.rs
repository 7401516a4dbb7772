//! What a rollout goes by and the API server does not say: node daemons, queries, Jobs.

mod job;
mod query;

use crate::daemons::{DAEMONS, Daemon, Daemons};
use job::job;
use k8s_openapi::api::core::v1::Pod;
use kube::{Client, ResourceExt};
use podshm_api::rollout::{AgentRollout, NodeMark, Phase, QueryGate};
use podshm_rollout::{BadQuery, World};
use query::Asker;
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// How often node daemons and queries are asked.
const ASK: Duration = Duration::from_secs(5);

/// Asks them, and keeps what they have said for a while.
pub(super) struct Outside {
    client: Client,
    asker: Asker,
    daemons: Daemons,
    /// podshmd's.
    namespace: String,
    /// By uid: what was said, and when.
    asked: HashMap<String, (Instant, World)>,
}

impl Outside {
    /// Node daemons are those of this namespace.
    pub fn of(client: Client, namespace: &str) -> Self {
        let (asker, daemons) = (Asker::new(), Daemons::default());
        Outside { client, asker, daemons, namespace: namespace.to_owned(), asked: HashMap::new() }
    }

    /// Forgets rollouts that are none of these.
    pub fn keep(&mut self, is_due: impl Fn(&str) -> bool) {
        self.asked.retain(|uid, _| is_due(uid));
    }

    /// What is wrong with query gates before anything is touched.
    pub async fn look_at(&self, gates: &[QueryGate]) -> Vec<BadQuery> {
        self.asker.look_at(gates).await
    }

    /// Asks node daemons, queries and Jobs, each not too often; a rollout that waits for a person asks nobody.
    pub async fn ask(&mut self, rollout: &AgentRollout, world: &mut World) {
        let status = rollout.status.clone().unwrap_or_default();
        if status.phase != Phase::Running {
            return;
        }
        let uid = rollout.uid().unwrap_or_default();
        if self.asked.get(&uid).is_none_or(|(at, _)| at.elapsed() >= ASK) {
            let mut said = World { asked: world.now, ..World::default() };
            if rollout.spec.domain.is_some() {
                said.reports = self.daemons.round(daemons(rollout, world, &self.namespace)).await.reports;
            }
            said.outside = self.asker.queries(&rollout.spec.gates.prometheus).await;
            for gate in &rollout.spec.gates.jobs {
                said.outside.push(job(&self.client, rollout, gate).await);
            }
            self.asked.insert(uid.clone(), (Instant::now(), said));
        }
        if let Some((_, said)) = self.asked.get(&uid) {
            (world.reports, world.outside, world.asked) = (said.reports.clone(), said.outside.clone(), said.asked);
        }
    }
}

/// The daemons that a rollout asks: those of nodes it has touched.
fn daemons(rollout: &AgentRollout, world: &World, namespace: &str) -> Vec<Daemon> {
    let uid = rollout.uid().unwrap_or_default();
    let is_touched = |node: &str| {
        let mark = world.nodes.get(node).and_then(|node| node.annotations().get(podshm_api::rollout::NODE_MARK));
        mark.and_then(|mark| serde_json::from_str::<NodeMark>(mark).ok()).is_some_and(|mark| mark.uid == uid)
    };
    let is_daemon = |pod: &&Pod| {
        let labels = pod.labels().iter().map(|(key, value)| format!("{key}={value}"));
        pod.namespace().as_deref() == Some(namespace) && labels.into_iter().any(|label| label == DAEMONS)
    };
    world.pods.iter().filter(is_daemon).filter_map(Daemon::of).filter(|daemon| is_touched(&daemon.node)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::sync::Arc;

    #[test]
    fn only_podshmds_own_pods_on_nodes_that_are_touched_are_asked() {
        let object = json!({
            "apiVersion": "podshm.dev/v1alpha1", "kind": "AgentRollout", "metadata": {"name": "r", "uid": "u-1"},
            "spec": {"agents": [], "batches": []},
        });
        let rollout: AgentRollout = serde_json::from_value(object).unwrap();
        let node = |name: &str, uid: &str| {
            let mark = json!(NodeMark { uid: uid.into(), ..NodeMark::default() }).to_string();
            let node = json!({"metadata": {"name": name, "annotations": {podshm_api::rollout::NODE_MARK: mark}}});
            (name.to_owned(), Arc::new(serde_json::from_value(node).unwrap()))
        };
        let pod = |namespace: &str, app: &str, node: &str| {
            let pod = serde_json::from_value::<Pod>(json!({
                "metadata": {"namespace": namespace, "name": format!("{app}-{node}"), "labels": {"app": app}},
                "spec": {"nodeName": node, "containers": []},
                "status": {"phase": "Running", "podIP": "10.0.0.1"},
            }));
            Arc::new(pod.unwrap())
        };
        let world = World {
            nodes: [node("a", "u-1"), node("b", "u-0")].into_iter().collect(),
            pods: [
                pod("podshm-system", "podshmd", "a"),
                pod("podshm-system", "podshmd", "b"),
                pod("podshm-system", "route-agent", "a"),
                pod("shop", "podshmd", "a"),
            ]
            .into_iter()
            .collect(),
            ..World::default()
        };
        let url = format!("http://10.0.0.1:{}/domains", podshm_api::report::PORT);
        assert_eq!(daemons(&rollout, &world, "podshm-system"), [Daemon { node: "a".into(), url }]);
    }
}
