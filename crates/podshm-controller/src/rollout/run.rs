//! The loop.

use super::act::{act, one_by_one};
use super::outside::Outside;
use super::rights::missing;
use super::tell::Teller;
use super::view::{Rollouts, Stores};
use crate::lease::Lead;
use crate::probes::Pulse;
use anyhow::Context;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, Patch, PatchParams};
use kube::{Client, Resource, ResourceExt};
use podshm_api::rollout::{AgentRollout, AgentRolloutStatus, FIELD_MANAGER, FINALIZER, NodeMark, Phase};
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
    let mut controller = Controller {
        lead: lead.clone(),
        pulse: pulse.clone(),
        led_since: Timestamp::now().as_second(),
        client: client.clone(),
        teller: Teller::of(client.clone(), lead),
        outside: Outside::of(client.clone(), namespace),
        written: HashMap::new(),
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
                controller.teller.note(rollout, ended.err()).await;
            }
        }
        let is_due = |uid: &str| due.iter().any(|one| one.metadata.uid.as_deref() == Some(uid));
        controller.written.retain(|uid, _| is_due(uid));
        controller.outside.keep(is_due);
        controller.teller.keep(is_due);
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
    teller: Teller,
    outside: Outside,
    /// By uid: the version of a rollout that was acted upon, and when. Until there is another one, the status that was written is not seen.
    written: HashMap<String, (String, Instant)>,
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
        world.queries = if is_new { self.pulse.waiting(self.outside.look_at(queries)).await } else { Vec::new() };
        // Each of whom has so long.
        self.pulse.waiting(self.outside.ask(rollout, world)).await;
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
            self.teller.tell(rollout, &before, &next.status).await;
        }
        let may = || {
            self.pulse.turn();
            self.lead_on()
        };
        let does = async |action: &Action| {
            tracing::info!(rollout = rollout.name_any(), ?action, "to be done");
            let of = if matches!(action, Action::Hold | Action::LetGo) { &written } else { rollout };
            act(&self.client, of, world, action).await
        };
        let tells = async |node: &str, mark: &NodeMark| self.teller.tell_node(rollout, node, mark).await;
        one_by_one(&next.actions, may, does, tells).await
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
}
