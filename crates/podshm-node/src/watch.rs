//! What the API server says of ShmDomains: one watch for each node, for as long as the daemon runs.

use crate::domains::{AllTold, Known, Told};
use kube::api::{Api, ApiResource, DynamicObject};
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{Config, Event, watcher};
use podshm_api::ShmDomain;
use serde_json::Value;
use std::pin::pin;
use std::sync::Arc;
use tokio_stream::StreamExt;

/// Follows the cluster's domains until it is dropped; while the API server is away it goes on asking.
pub async fn follow(client: kube::Client, known: Arc<Known>) {
    // As it comes: an object that this daemon can't parse is no reason not to hear of the others.
    let domains: Api<DynamicObject> = Api::all_with(client, &ApiResource::erase::<ShmDomain>(&()));
    let mut events = pin!(watcher(domains, Config::default()).default_backoff());
    let mut all = AllTold::new();
    while let Some(event) = events.next().await {
        match event {
            Ok(Event::Init) => all.clear(),
            Ok(Event::InitApply(object)) => all.extend(told(object)),
            Ok(Event::InitDone) => {
                tracing::info!(domains = all.len(), "heard from the API server which domains there are");
                known.replace(std::mem::take(&mut all));
            }
            Ok(Event::Apply(object)) => {
                if let Some((name, told)) = told(object) {
                    known.change(&name, Some(told));
                }
            }
            Ok(Event::Delete(object)) => known.change(object.metadata.name.as_deref().unwrap_or_default(), None),
            Err(error) => tracing::warn!(%error, "watching ShmDomains; what is known of them holds meanwhile"),
        }
    }
}

fn told(mut object: DynamicObject) -> Option<(String, Told)> {
    let spec = object.data.get_mut("spec").map_or(Value::Null, Value::take);
    Some((object.metadata.name?, Told { generation: object.metadata.generation.unwrap_or_default(), spec }))
}
