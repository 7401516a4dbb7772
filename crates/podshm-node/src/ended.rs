//! Pods that ended while no daemon was here.
//!
//! The kubelet asks for their volumes to be taken away, but after an absence it asks ever more seldom: up to two minutes later. Until
//! then the node would pay for memory that nobody can use, so the daemon finds out by itself, once, when it begins.

use crate::volumes::Volumes;
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, Client};
use podshm_domain::Identity;
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Between attempts, while the API server is away.
const AGAIN: Duration = Duration::from_secs(2);
/// An answer that has not come by then is asked for anew: by itself the client would wait for good.
const PATIENCE: Duration = Duration::from_secs(3);

/// Asks for each pod that has a volume whether it has ended. Ends when all have been answered for.
pub async fn look(client: Client, volumes: Arc<Mutex<Volumes>>) {
    let mut left = volumes.lock().map(|volumes| volumes.pods()).unwrap_or_default();
    while !left.is_empty() {
        let mut unanswered = BTreeSet::new();
        for who in left {
            let pods = Api::<Pod>::namespaced(client.clone(), &who.namespace);
            let error = match tokio::time::timeout(PATIENCE, pods.get_opt(&who.pod)).await {
                Ok(Ok(found)) => {
                    if has_ended(&who, found.as_ref()) {
                        take_away(&volumes, &who).await;
                    }
                    continue;
                }
                Ok(Err(error)) => error.to_string(),
                Err(_) => format!("no answer within {} s", PATIENCE.as_secs()),
            };
            tracing::warn!(pod = who.name(), error, "asking whether a pod has ended; its volumes stay meanwhile");
            unanswered.insert(who);
        }
        left = unanswered;
        if !left.is_empty() {
            tokio::time::sleep(AGAIN).await;
        }
    }
}

/// Only what is said of this very pod counts. Of one that the API server knows nothing of, containers may still run.
fn has_ended(who: &Identity, found: Option<&Pod>) -> bool {
    found.is_some_and(|pod| {
        let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
        pod.metadata.uid.as_deref() == Some(who.uid.as_str()) && matches!(phase, Some("Succeeded" | "Failed"))
    })
}

async fn take_away(volumes: &Arc<Mutex<Volumes>>, who: &Identity) {
    let (volumes, uid) = (Arc::clone(volumes), who.uid.clone());
    let taken =
        tokio::task::spawn_blocking(move || Some(volumes.lock().ok()?.pod_has_ended(&uid))).await.unwrap_or_default();
    match taken {
        Some(Ok(count)) => tracing::info!(pod = who.name(), count, "its pod ended while no daemon was here"),
        // The kubelet will ask for it.
        Some(Err(error)) => {
            tracing::error!(pod = who.name(), %error, "taking away the volumes of a pod that has ended")
        }
        None => tracing::error!(pod = who.name(), "a thread that had the volumes has panicked"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn a_pod_has_ended_when_all_its_containers_have_and_it_is_the_same() {
        let who = Identity {
            namespace: "shop".into(),
            pod: "cart-0".into(),
            uid: "one".into(),
            service_account: "cart".into(),
        };
        let pod = |uid: &str, status: Value| -> Pod {
            let pod = json!({"metadata": {"name": "cart-0", "namespace": "shop", "uid": uid}, "status": status});
            serde_json::from_value(pod).expect("a pod")
        };
        let phase = |phase: &str| json!({"phase": phase});
        for ended in ["Succeeded", "Failed"] {
            assert!(has_ended(&who, Some(&pod("one", phase(ended)))), "{ended}");
            // A StatefulSet gives the next one the same name.
            assert!(!has_ended(&who, Some(&pod("two", phase(ended)))), "{ended}");
        }
        for runs in ["Pending", "Running", "Unknown"] {
            assert!(!has_ended(&who, Some(&pod("one", phase(runs)))), "{runs}");
        }
        assert!(!has_ended(&who, Some(&pod("one", json!({})))));
        assert!(!has_ended(&who, None));
    }
}
