//! What people hear of a rollout: events of it and of its nodes.

use crate::lease::Lead;
use k8s_openapi::api::core::v1::ObjectReference;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::{Client, Resource, ResourceExt};
use podshm_api::Condition;
use podshm_api::rollout::{AgentRollout, AgentRolloutStatus, FIELD_MANAGER, NodeMark, NodeState, Phase};
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// How often people are told that the same thing does not work.
const TELL: Duration = Duration::from_secs(60);

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
        self.publish(&rollout.object_ref(&()), true, "TriedAgain", error.clone()).await;
        self.told.insert(uid, (error, Instant::now()));
    }

    pub async fn tell(&self, rollout: &AgentRollout, before: &AgentRolloutStatus, now: &AgentRolloutStatus) {
        // Each once, as it comes: what it says in full is in the status, and changes.
        let is_new = |one: &&Condition| !before.conditions.iter().any(|two| two.kind == one.kind);
        for one in now.conditions.iter().filter(is_new) {
            self.publish(&rollout.object_ref(&()), true, &one.kind, one.message.clone()).await;
        }
        if now.phase == before.phase && now.batch == before.batch {
            return;
        }
        let is_bad = matches!(now.phase, Phase::Refused | Phase::Paused | Phase::RollingBack);
        let note = format!("batch {}: {}", now.progress, now.message);
        self.publish(&rollout.object_ref(&()), is_bad, &format!("{:?}", now.phase), note).await;
    }

    pub async fn tell_node(&self, rollout: &AgentRollout, node: &str, mark: &NodeMark) {
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
        self.publish(&about, is_bad, &format!("{:?}", mark.state), note).await;
    }

    async fn publish(&self, about: &ObjectReference, is_bad: bool, reason: &str, note: String) {
        let event = Event {
            type_: if is_bad { EventType::Warning } else { EventType::Normal },
            reason: reason.into(),
            note: Some(note.chars().take(1000).collect()),
            action: "Rollout".into(),
            secondary: None,
        };
        // An event is for people; a rollout does not wait for it.
        if let Err(error) = self.recorder.publish(&event, about).await {
            tracing::warn!(%error, reason, "an event was not published");
        }
    }
}
