//! Before the chart is uninstalled.
//!
//! ```text
//!  check   no pod has a volume: nobody would be left to take it away, and the pod could not end
//!  sweep   podshmd is ended, and nothing of it is left on its nodes
//! ```

pub mod sweep;

use crate::pages;
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, Client, ResourceExt};
use podshm_api::DRIVER;
use std::fmt::Write;

/// Pods that are named.
const NAMED: usize = 50;

/// Fails where pods have volumes of the driver, and names them.
pub async fn check(client: Client) -> anyhow::Result<()> {
    let mut found = Vec::new();
    pages::each(&Api::<Pod>::all(client), |pod| found.extend(has_volume(&pod).then(|| named(&pod)))).await?;
    anyhow::ensure!(found.is_empty(), "{}", refusal(&found));
    println!("no pod has a volume of {DRIVER}");
    Ok(())
}

/// One that has ended has none any more; one that is about to go has.
fn has_volume(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    !matches!(phase, Some("Succeeded" | "Failed"))
        && volumes.into_iter().any(|volume| volume.csi.as_ref().is_some_and(|csi| csi.driver == DRIVER))
}

fn named(pod: &Pod) -> String {
    let node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()).unwrap_or("no node");
    format!("{}/{} on {node}", pod.namespace().unwrap_or_default(), pod.name_any())
}

fn refusal(found: &[String]) -> String {
    let mut text = format!(
        "podshm is not uninstalled: {} pods have its volumes, and could not end without it. Remove them, or what makes them, first (the chart's own \
         agents by their values, as in routeAgent.enabled=false):",
        found.len()
    );
    for pod in found.iter().take(NAMED) {
        let _ = write!(text, "\n  {pod}");
    }
    if found.len() > NAMED {
        let _ =
            write!(text, "\n  and {} more: kubectl get pods -A -o yaml | grep 'driver: {DRIVER}'", found.len() - NAMED);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(name: &str, driver: &str, phase: &str) -> Pod {
        let volumes = json!([{"name": "shm", "csi": {"driver": driver}}, {"name": "tmp", "emptyDir": {}}]);
        let spec = json!({"nodeName": "a", "containers": [], "volumes": volumes});
        let pod = json!({"metadata": {"name": name, "namespace": "shop"}, "spec": spec, "status": {"phase": phase}});
        serde_json::from_value(pod).expect("a pod")
    }

    #[test]
    fn pods_with_a_volume_are_named_and_others_are_not() {
        let pods = [
            pod("cart", DRIVER, "Running"),
            pod("waits", DRIVER, "Pending"),
            pod("done", DRIVER, "Succeeded"),
            pod("other", "secrets.example", "Running"),
        ];
        let found: Vec<String> = pods.iter().filter(|pod| has_volume(pod)).map(named).collect();
        assert_eq!(found, ["shop/cart on a", "shop/waits on a"]);
        let text = refusal(&found);
        assert!(text.contains("2 pods") && text.contains("\n  shop/cart on a\n"), "{text}");
        let text = refusal(&vec!["shop/x on a".to_owned(); 1000]);
        assert!(text.contains("and 950 more") && text.len() < 2000, "{text}");
    }
}
