//! What people hear of a rollout: events of it and of its nodes.

use crate::lease::Lead;
use k8s_openapi::api::core::v1::ObjectReference;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::{Client, Resource, ResourceExt};
use podshm_api::rollout::{AgentRollout, AgentRolloutStatus, FIELD_MANAGER, NodeMark, NodeState, Phase};
use podshm_api::{Condition, clipped};
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// How often people are told that the same thing does not work.
const TELL: Duration = Duration::from_secs(60);
/// What a note may have, in bytes; the API server takes 1024.
const NOTE: usize = 1000;

/// Publishes events.
pub(super) struct Teller {
    lead: Lead,
    recorder: Recorder,
    /// By uid: what did not work, and when people were told of it.
    told: HashMap<String, (String, Instant)>,
}

impl Teller {
    /// In this process's name.
    pub fn of(client: Client, lead: &Lead) -> Self {
        let reporter = Reporter { controller: FIELD_MANAGER.into(), instance: Some(lead.me().to_owned()) };
        Teller { lead: lead.clone(), recorder: Recorder::new(client, reporter), told: HashMap::new() }
    }

    /// Forgets rollouts that are none of these.
    pub fn keep(&mut self, is_due: impl Fn(&str) -> bool) {
        self.told.retain(|uid, _| is_due(uid));
    }

    /// What did not work is tried again; people hear of it by an event, in the API server's words.
    pub async fn note(&mut self, rollout: &AgentRollout, error: Option<anyhow::Error>) {
        let uid = rollout.uid().unwrap_or_default();
        let Some(error) = error.map(|error| format!("{error:#}")) else {
            self.told.remove(&uid);
            return;
        };
        tracing::warn!(rollout = rollout.name_any(), error, "tried again soon");
        if self.told.get(&uid).is_some_and(|(said, at)| *said == error && at.elapsed() < TELL) || !self.lead.is_held() {
            return;
        }
        self.publish(&rollout.object_ref(&()), event(true, "TriedAgain", &error)).await;
        self.told.insert(uid, (error, Instant::now()));
    }

    /// What is new in a rollout's status.
    pub async fn tell(&self, rollout: &AgentRollout, before: &AgentRolloutStatus, now: &AgentRolloutStatus) {
        for one in news(before, now) {
            self.publish(&rollout.object_ref(&()), one).await;
        }
    }

    /// A node's new state.
    pub async fn tell_node(&self, rollout: &AgentRollout, node: &str, mark: &NodeMark) {
        let (about, event) = of_node(rollout, node, mark);
        self.publish(&about, event).await;
    }

    async fn publish(&self, about: &ObjectReference, event: Event) {
        // An event is for people; a rollout does not wait for it.
        if let Err(error) = self.recorder.publish(&event, about).await {
            tracing::warn!(%error, event.reason, "an event was not published");
        }
    }
}

fn event(is_bad: bool, reason: &str, note: &str) -> Event {
    Event {
        type_: if is_bad { EventType::Warning } else { EventType::Normal },
        reason: reason.into(),
        note: Some(clipped(note, NOTE)),
        action: "Rollout".into(),
        secondary: None,
    }
}

fn news(before: &AgentRolloutStatus, now: &AgentRolloutStatus) -> Vec<Event> {
    // Each once, as it comes: what it says in full is in the status, and changes.
    let is_new = |one: &&Condition| !before.conditions.iter().any(|two| two.kind == one.kind);
    let mut all: Vec<Event> =
        now.conditions.iter().filter(is_new).map(|one| event(true, &one.kind, &one.message)).collect();
    if now.phase != before.phase || now.batch != before.batch {
        let is_bad = matches!(now.phase, Phase::Refused | Phase::Paused | Phase::RollingBack);
        let note = format!("batch {}: {}", now.progress, now.message);
        all.push(event(is_bad, &format!("{:?}", now.phase), &note));
    }
    all
}

fn of_node(rollout: &AgentRollout, node: &str, mark: &NodeMark) -> (ObjectReference, Event) {
    let about = ObjectReference {
        kind: Some("Node".into()),
        api_version: Some("v1".into()),
        name: Some(node.into()),
        // Events of nodes have the name for a uid, as the kubelet's have.
        uid: Some(node.into()),
        ..ObjectReference::default()
    };
    let is_bad = matches!(mark.state, NodeState::Failed | NodeState::Skipped);
    let note = format!("rollout {}, batch {}: {}", rollout.name_any(), mark.batch, mark.reason);
    (about, event(is_bad, &format!("{:?}", mark.state), &note))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn brief(event: &Event) -> (EventType, &str, &str) {
        (event.type_, &event.reason, event.note.as_deref().unwrap_or_default())
    }

    #[test]
    fn a_node_is_told_of_by_its_state_and_batch_and_what_is_wrong_is_a_warning() {
        let object = json!({
            "apiVersion": "podshm.dev/v1alpha1", "kind": "AgentRollout", "metadata": {"name": "routing"},
            "spec": {"agents": [], "batches": []},
        });
        let rollout: AgentRollout = serde_json::from_value(object).unwrap();
        for (state, kind) in [
            (NodeState::Preparing, EventType::Normal),
            (NodeState::Done, EventType::Normal),
            (NodeState::RolledBack, EventType::Normal),
            (NodeState::Skipped, EventType::Warning),
            (NodeState::Failed, EventType::Warning),
        ] {
            let mark = NodeMark { batch: 2, state, reason: "as it is".into(), ..NodeMark::default() };
            let (about, event) = of_node(&rollout, "n7", &mark);
            let name = format!("{state:?}");
            assert_eq!(brief(&event), (kind, name.as_str(), "rollout routing, batch 2: as it is"));
            assert_eq!((about.kind.as_deref(), about.name.as_deref()), (Some("Node"), Some("n7")));
            assert_eq!((about.uid.as_deref(), about.api_version.as_deref()), (Some("n7"), Some("v1")));
        }
    }

    #[test]
    fn of_a_rollout_each_phase_batch_and_condition_is_news_once() {
        let status = |object: serde_json::Value| serde_json::from_value::<AgentRolloutStatus>(object).unwrap();
        let condition = |message: &str| {
            json!({"type": "NoRoom", "status": "True", "reason": "NowhereToGo", "message": message,
                   "observedGeneration": 1, "lastTransitionTime": "2026-01-01T00:00:00Z"})
        };
        let running =
            status(json!({"phase": "Running", "batch": 1, "progress": "1/3", "message": "batch 1 is watched"}));
        let next = AgentRolloutStatus { batch: 2, progress: "2/3".into(), message: "m".into(), ..running.clone() };
        let paused = status(json!({
            "phase": "Paused", "batch": 2, "progress": "2/3", "message": "why", "conditions": [condition("one")],
        }));
        let mut later = paused.clone();
        (later.conditions[0].message, later.message) = ("two".into(), "another".into());
        let (normal, warning) = (EventType::Normal, EventType::Warning);
        let rows = [
            (&running, &running, vec![]),
            (&running, &next, vec![(normal, "Running", "batch 2/3: m")]),
            (&next, &paused, vec![(warning, "NoRoom", "one"), (warning, "Paused", "batch 2/3: why")]),
            (&paused, &later, vec![]),
            (&paused, &next, vec![(normal, "Running", "batch 2/3: m")]),
        ];
        for (before, now, expected) in rows {
            assert_eq!(news(before, now).iter().map(brief).collect::<Vec<_>>(), expected);
        }
    }

    /// The API server refuses an event whose note has more than 1024 bytes.
    #[test]
    fn a_note_has_the_bytes_that_the_api_server_takes_whatever_it_says() {
        let long = event(true, "Paused", &"µ".repeat(1000));
        assert_eq!(long.note.unwrap(), "µ".repeat(NOTE / 2));
    }
}
