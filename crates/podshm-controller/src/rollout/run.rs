//! The loop.

use super::act::act;
use super::outside::{Asker, job};
use super::rights::missing;
use super::view::{Rollouts, Stores};
use crate::daemons::{DAEMONS, Daemon, Daemons};
use crate::lease::Lead;
use crate::probes::Pulse;
use anyhow::Context;
use k8s_openapi::api::core::v1::{ObjectReference, Pod};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, Patch, PatchParams};
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::{Client, Resource, ResourceExt};
use podshm_api::Condition;
use podshm_api::rollout::{AgentRollout, AgentRolloutStatus, FIELD_MANAGER, FINALIZER, NodeMark, NodeState, Phase};
use podshm_rollout::{Action, Step, World, step};
use serde_json::json;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Soaks and deadlines end without anything that changes.
const TICK: Duration = Duration::from_secs(2);
/// Changes that come together are looked at together.
const CALM: Duration = Duration::from_millis(200);
/// How long a watch may take to show what was written before it is written again.
const LAG: Duration = Duration::from_secs(5);
/// How often people are told that the same thing does not work.
const TELL: Duration = Duration::from_secs(60);
/// How often node daemons and queries are asked.
const ASK: Duration = Duration::from_secs(5);

/// Carries out every rollout there is, for good, while this process leads: who waits watches nothing. Node daemons are those of this
/// namespace.
pub async fn run(client: Client, namespace: &str, lead: Lead, pulse: Pulse) -> anyhow::Result<()> {
    loop {
        // There is nothing that it would go by.
        pulse.synced(true);
        pulse.waiting(lead.held()).await;
        if let Some(ended) = lead.while_held(carry_out(client.clone(), namespace, &lead, &pulse)).await {
            return ended;
        }
        tracing::warn!("another controller may lead now; what was under way is dropped");
    }
}

/// Where no rollout is due nothing but rollouts is watched.
async fn carry_out(client: Client, namespace: &str, lead: &Lead, pulse: &Pulse) -> anyhow::Result<()> {
    let (changed, mut changes) = tokio::sync::mpsc::unbounded_channel();
    pulse.synced(false);
    let rollouts = Rollouts::watch(&client, &changed);
    pulse.waiting(rollouts.ready()).await?;
    pulse.synced(true);
    tracing::info!("carrying out AgentRollouts");
    let reporter = Reporter { controller: FIELD_MANAGER.into(), instance: Some(lead.me().to_owned()) };
    let mut controller = Controller {
        lead: lead.clone(),
        pulse: pulse.clone(),
        led_since: Timestamp::now().as_second(),
        recorder: Recorder::new(client.clone(), reporter),
        client: client.clone(),
        asker: Asker::new(),
        daemons: Daemons::default(),
        namespace: namespace.to_owned(),
        written: HashMap::new(),
        asked: HashMap::new(),
        told: HashMap::new(),
    };
    let mut stores = None;
    loop {
        pulse.turn();
        let all = rollouts.all();
        let due: Vec<AgentRollout> = all.iter().filter(|one| is_due(one)).cloned().collect();
        if due.is_empty() {
            stores = None;
        } else {
            pulse.synced(stores.is_some());
            let stores = stores.get_or_insert_with(|| Stores::watch(&client, &changed));
            pulse.waiting(stores.ready()).await?;
            pulse.synced(true);
            let held = stores.held();
            let mut world = aside(move || held.world(all, Timestamp::now().as_second())).await?;
            for rollout in &due {
                pulse.turn();
                let ended;
                (ended, world) = controller.carry_on(rollout, world).await;
                controller.note(rollout, ended.err()).await;
            }
        }
        controller.written.retain(|uid, _| due.iter().any(|one| one.metadata.uid.as_ref() == Some(uid)));
        controller.asked.retain(|uid, _| due.iter().any(|one| one.metadata.uid.as_ref() == Some(uid)));
        controller.told.retain(|uid, _| due.iter().any(|one| one.metadata.uid.as_ref() == Some(uid)));
        let _ = tokio::time::timeout(TICK, changes.recv()).await;
        tokio::time::sleep(CALM).await;
        while changes.try_recv().is_ok() {}
    }
}

/// Work that waits for nothing, in a thread of its own: what keeps the lease goes on meanwhile, however long it takes.
async fn aside<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> anyhow::Result<T> {
    tokio::task::spawn_blocking(work).await.context("work over the whole cluster broke off")
}

fn version_of(rollout: &AgentRollout) -> (String, String) {
    (rollout.uid().unwrap_or_default(), rollout.resource_version().unwrap_or_default())
}

/// Whether there is something to do. One that is over is let go, whoever ended it may have died before that; one that is deleted is due as
/// long as it is held.
fn is_due(rollout: &AgentRollout) -> bool {
    let status = rollout.status.clone().unwrap_or_default();
    let is_new = status.phase == Phase::Refused && Some(status.observed_generation) != rollout.metadata.generation;
    let is_held = rollout.finalizers().iter().any(|one| one == FINALIZER);
    is_held || (rollout.metadata.deletion_timestamp.is_none() && (!status.phase.is_over() || is_new))
}

struct Controller {
    lead: Lead,
    pulse: Pulse,
    /// In seconds since 1970.
    led_since: i64,
    client: Client,
    recorder: Recorder,
    asker: Asker,
    daemons: Daemons,
    /// podshmd's.
    namespace: String,
    /// By uid: the version of a rollout that was acted upon, and when. Until there is another one, the status that was written is not seen.
    written: HashMap<String, (String, Instant)>,
    /// By uid: what was said outside, and when.
    asked: HashMap<String, (Instant, World)>,
    /// By uid: what did not work, and when people were told of it.
    told: HashMap<String, (String, Instant)>,
}

impl Controller {
    /// Looks, decides and acts; gives the world back, for the next one.
    async fn carry_on(&mut self, rollout: &AgentRollout, mut world: World) -> (anyhow::Result<()>, World) {
        match self.look(rollout, &mut world).await {
            Ok(true) => {}
            other => return (other.map(drop), world),
        }
        // A step over a large cluster takes its time, and waits for nothing.
        let (theirs, world) = (rollout.clone(), Arc::new(world));
        let seen = Arc::clone(&world);
        let ended = match aside(move || step(&theirs, &seen)).await {
            Ok(next) => self.take(rollout, &world, next).await,
            Err(error) => Err(error),
        };
        // Whoever decided is done with it.
        (ended, Arc::unwrap_or_clone(world))
    }

    /// What is not in the stores. False where what was done last is not seen yet.
    async fn look(&mut self, rollout: &AgentRollout, world: &mut World) -> anyhow::Result<bool> {
        let (uid, version) = version_of(rollout);
        if self.written.get(&uid).is_some_and(|(seen, at)| *seen == version && at.elapsed() < LAG) {
            return Ok(false);
        }
        let is_new = rollout.metadata.deletion_timestamp.is_none()
            && rollout.status.as_ref().is_none_or(|status| matches!(status.phase, Phase::Pending | Phase::Refused));
        world.led_since = self.led_since;
        world.denied = if is_new { self.pulse.waiting(missing(&self.client, rollout)).await? } else { Vec::new() };
        let queries = &rollout.spec.gates.prometheus;
        world.queries = if is_new { self.pulse.waiting(self.asker.look_at(queries)).await } else { Vec::new() };
        // Each of whom has so long.
        self.pulse.clone().waiting(self.ask(rollout, world)).await;
        Ok(true)
    }

    /// Writes down and does what was decided, while this process leads.
    async fn take(&mut self, rollout: &AgentRollout, world: &World, next: Step) -> anyhow::Result<()> {
        self.lead_on()?;
        let before = rollout.status.clone().unwrap_or_default();
        // As it is once its status is written: a finalizer is for the version that was seen.
        let mut written = rollout.clone();
        if next.status != before {
            written = self.write(rollout, &next.status).await?;
            let (uid, version) = version_of(rollout);
            self.written.insert(uid, (version, Instant::now()));
            self.tell(rollout, &before, &next.status).await;
        }
        let mut first = None;
        for action in &next.actions {
            self.lead_on()?;
            self.pulse.turn();
            tracing::info!(rollout = rollout.name_any(), ?action, "to be done");
            let of = if matches!(action, Action::Hold | Action::LetGo) { &written } else { rollout };
            match (act(&self.client, of, world, action).await, action) {
                (Ok(true), Action::Node { name, mark: Some(mark), .. }) => self.tell_node(rollout, name, mark).await,
                (Ok(_), _) => {}
                // What one object does not allow is no reason to leave the others half way.
                (Err(error), _) => {
                    tracing::warn!(rollout = rollout.name_any(), ?action, %error, "not done");
                    first.get_or_insert(error);
                }
            }
        }
        first.map_or(Ok(()), Err)
    }

    /// What did not work is tried again; people hear of it by an event, in the API server's words.
    async fn note(&mut self, rollout: &AgentRollout, error: Option<anyhow::Error>) {
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

    fn lead_on(&self) -> anyhow::Result<()> {
        anyhow::ensure!(self.lead.is_held(), "the lease was not renewed in time; another controller may lead now");
        Ok(())
    }

    async fn write(&self, rollout: &AgentRollout, status: &AgentRolloutStatus) -> anyhow::Result<AgentRollout> {
        let object = json!({
            "apiVersion": AgentRollout::api_version(&()), "kind": AgentRollout::kind(&()),
            "metadata": {"name": rollout.name_any(), "uid": rollout.uid()},
            "status": status,
        });
        let api = Api::<AgentRollout>::all(self.client.clone());
        let apply = PatchParams::apply(FIELD_MANAGER).force();
        Ok(api.patch_status(&rollout.name_any(), &apply, &Patch::Apply(&object)).await?)
    }

    /// Asks node daemons, queries and Jobs, each not too often; a rollout that waits for a person asks nobody.
    async fn ask(&mut self, rollout: &AgentRollout, world: &mut World) {
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

    async fn tell(&self, rollout: &AgentRollout, before: &AgentRolloutStatus, now: &AgentRolloutStatus) {
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

    async fn tell_node(&self, rollout: &AgentRollout, node: &str, mark: &NodeMark) {
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

    #[test]
    fn what_keeps_the_lease_goes_on_while_a_step_is_computed() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            // A step that ends no sooner than the lease was renewed: on this one thread both would wait for good.
            let (renewed, is_renewed) = std::sync::mpsc::channel();
            let keep = async {
                let _ = renewed.send(());
                std::future::pending::<anyhow::Result<bool>>().await
            };
            let work = aside(move || is_renewed.recv_timeout(Duration::from_secs(60)).is_ok());
            tokio::select! {
                biased;
                done = work => assert!(done.unwrap(), "the lease was not renewed meanwhile"),
                _ = keep => unreachable!("it waits for good"),
            }
        });
    }

    #[test]
    fn one_that_is_held_is_due_until_it_is_let_go_and_one_that_is_deleted_only_then() {
        let due = |phase: &str, finalizers: &[&str], is_deleted: bool| {
            let mut object = json!({
                "apiVersion": "podshm.dev/v1alpha1", "kind": "AgentRollout",
                "metadata": {"name": "r", "generation": 1, "finalizers": finalizers},
                "spec": {"agents": [], "batches": []}, "status": {"phase": phase, "observedGeneration": 1},
            });
            if is_deleted {
                object["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
            }
            is_due(&serde_json::from_value(object).unwrap())
        };
        assert!(due("Running", &[FINALIZER], true) && due("Paused", &[FINALIZER], true));
        assert!(due("Completed", &[FINALIZER], false) && due("Aborted", &[FINALIZER], true));
        assert!(!due("Completed", &[], false) && !due("Running", &["foregroundDeletion"], true));
        assert!(due("Pending", &[], false) && !due("Pending", &[], true));
    }

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
            (name.to_owned(), serde_json::from_value(node).unwrap())
        };
        let pod = |namespace: &str, app: &str, node: &str| {
            serde_json::from_value::<Pod>(json!({
                "metadata": {"namespace": namespace, "name": format!("{app}-{node}"), "labels": {"app": app}},
                "spec": {"nodeName": node, "containers": []},
                "status": {"phase": "Running", "podIP": "10.0.0.1"},
            }))
            .unwrap()
        };
        let world = World {
            nodes: [node("a", "u-1"), node("b", "u-0")].into(),
            pods: vec![
                pod("podshm-system", "podshmd", "a"),
                pod("podshm-system", "podshmd", "b"),
                pod("podshm-system", "route-agent", "a"),
                pod("shop", "podshmd", "a"),
            ],
            ..World::default()
        };
        let url = format!("http://10.0.0.1:{}/domains", podshm_api::report::PORT);
        assert_eq!(daemons(&rollout, &world, "podshm-system"), [Daemon { node: "a".into(), url }]);
    }
}
