//! The loop.

use super::summary::Round;
use crate::daemons::{Answers, DAEMONS, Daemon, Daemons};
use crate::lease::Lead;
use crate::probes::Pulse;
use futures::StreamExt;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, ApiResource, DynamicObject, Patch, PatchParams};
use kube::runtime::reflector::{self, Store};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Client, Resource};
use podshm_api::{DomainStatus, ShmDomain};
use serde_json::json;
use std::time::Duration;

/// How often a status is written, at most.
pub const PERIOD: Duration = Duration::from_secs(30);
/// Whose fields a status is.
const FIELD_MANAGER: &str = "podshm-controller";

/// Writes the status of every ShmDomain for as long as this process leads. Ends with an error where a watch ends.
pub async fn run(client: Client, namespace: &str, lead: Lead, pulse: Pulse) -> anyhow::Result<()> {
    let pods = Api::<Pod>::namespaced(client.clone(), namespace);
    let (daemons, watched) = reflector::store();
    let pods =
        watcher(pods, watcher::Config::default().labels(DAEMONS)).default_backoff().modify(slim).reflect(watched);
    // As they come: one that this controller can't parse is no reason to be silent about the others.
    let kind = ApiResource::erase::<ShmDomain>(&());
    let objects: Api<DynamicObject> = Api::all_with(client.clone(), &kind);
    let watched = reflector::store::Writer::new(kind.clone());
    let domains = watched.as_reader();
    let watch = watcher(objects.clone(), watcher::Config::default()).default_backoff().reflect(watched);
    let told = |error: &watcher::Error| tracing::warn!(%error, "a watch; it is begun anew");
    let follow = |daemons: Store<Pod>, domains: Store<DynamicObject>| async move {
        pulse.waiting(daemons.wait_until_ready()).await?;
        pulse.waiting(domains.wait_until_ready()).await?;
        pulse.synced(true);
        let asker = Daemons::default();
        let mut tick = tokio::time::interval(PERIOD);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            pulse.waiting(tick.tick()).await;
            pulse.waiting(lead.held()).await;
            let due = daemons.state().iter().filter_map(|pod| Daemon::of(pod)).collect();
            let Answers { reports, silent } = pulse.waiting(asker.round(due)).await;
            let round = Round::new(reports, silent.len());
            for domain in domains.state() {
                pulse.turn();
                // A round may have taken its time.
                if lead.is_held()
                    && let Err(error) = write(&objects, &domain, &round).await
                {
                    tracing::warn!(
                        domain = domain.metadata.name,
                        error = format!("{error:#}"),
                        "its status is not written"
                    );
                }
            }
        }
    };
    tokio::select! {
        () = pods.for_each(|event| { let _ = event.inspect_err(told); std::future::ready(()) }) => {}
        () = watch.for_each(|event| { let _ = event.inspect_err(told); std::future::ready(()) }) => {}
        ended = follow(daemons, domains) => return ended,
    }
    anyhow::bail!("a watch has ended")
}

/// What is kept of a daemon's pod: there is one for each node.
fn slim(pod: &mut Pod) {
    (pod.metadata.managed_fields, pod.metadata.annotations) = (None, None);
    if let Some(spec) = &mut pod.spec {
        (spec.volumes, spec.init_containers, spec.tolerations, spec.affinity) = (None, None, None, None);
        for container in &mut spec.containers {
            (container.env, container.volume_mounts) = (None, None);
        }
    }
    if let Some(status) = &mut pod.status {
        (status.conditions, status.container_statuses, status.init_container_statuses) = (None, None, None);
    }
}

/// Where something has changed.
async fn write(objects: &Api<DynamicObject>, domain: &DynamicObject, round: &Round) -> anyhow::Result<()> {
    let (Some(name), Some(generation)) = (&domain.metadata.name, domain.metadata.generation) else { return Ok(()) };
    let before: DomainStatus = serde_json::from_value(domain.data["status"].clone()).unwrap_or_default();
    let now = format!("{:.0}", Timestamp::now());
    let status = round.status(name, generation, &before, &now);
    if status == before {
        return Ok(());
    }
    let object = json!({
        "apiVersion": ShmDomain::api_version(&()), "kind": ShmDomain::kind(&()),
        // Of this object, not of one that came under its name meanwhile.
        "metadata": {"name": name, "uid": domain.metadata.uid},
        "status": status,
    });
    objects.patch_status(name, &PatchParams::apply(FIELD_MANAGER).force(), &Patch::Apply(&object)).await?;
    tracing::debug!(name, "status written");
    Ok(())
}
