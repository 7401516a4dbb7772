//! Before the chart is uninstalled.
//!
//! ```text
//!  is_meant  podshmd is Helm's: applied by somebody else, the Job that calls this is no hook and runs at once
//!  held      no rollout is under way: its controller goes with the chart, and nobody would be left to bring it back or to let it go
//!  check     no pod has a volume: nobody would be left to take it away, and the pod could not end
//!  sweep     podshmd is ended, and nothing of it is left on its nodes
//! ```

pub mod sweep;

use crate::pages;
use anyhow::Context;
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::Pod;
use kube::core::{ApiResource, DynamicObject};
use kube::{Api, Client, ResourceExt};
use podshm_api::DRIVER;
use podshm_api::rollout::{AgentRollout, FINALIZER};
use std::fmt::Write;

/// Pods that are named.
const NAMED: usize = 50;
/// What Helm writes on everything of a release, and nobody else.
const RELEASE: &str = "meta.helm.sh/release-name";

/// Fails where podshmd is there and was not installed by Helm: what runs then is no hook of a release that goes.
pub async fn is_meant(client: &Client, namespace: &str) -> anyhow::Result<()> {
    let daemon = Api::<DaemonSet>::namespaced(client.clone(), namespace).get_opt("podshmd").await;
    meant(daemon.context("looking at the DaemonSet podshmd")?.as_ref())
}

/// Gone, it was taken away by an attempt before this one.
fn meant(daemon: Option<&DaemonSet>) -> anyhow::Result<()> {
    let is_helms = daemon.is_none_or(|daemon| daemon.annotations().contains_key(RELEASE));
    anyhow::ensure!(
        is_helms,
        "podshm is not uninstalled: its DaemonSet podshmd is of no release of Helm, so this Job is not the hook of one that goes. It came by \
         applying what `helm template` prints: leave it out by --no-hooks, or uninstallCheck: never, and delete it"
    );
    Ok(())
}

/// Fails where rollouts are under way, and names them: whoever removes their definition would wait for good, with nobody left to let them go.
pub async fn held(client: &Client) -> anyhow::Result<()> {
    // As they come: one that this program can't parse is held all the same.
    let kind = ApiResource::erase::<AgentRollout>(&());
    let rollouts = Api::<DynamicObject>::all_with(client.clone(), &kind);
    let mut found = Vec::new();
    let listed = pages::each(&rollouts, |one| found.extend(under_way(&one))).await;
    let_go(&found, listed)?;
    println!("no AgentRollout is under way");
    Ok(())
}

/// A rollout's name, if it is held: whatever its status says, and whatever else holds it.
fn under_way(one: &DynamicObject) -> Option<String> {
    one.finalizers().iter().any(|one| one == FINALIZER).then(|| one.name_any())
}

/// Fails where some are held, and where nobody knows.
fn let_go(found: &[String], listed: kube::Result<()>) -> anyhow::Result<()> {
    match listed {
        // Without their definition there are none.
        Err(kube::Error::Api(status)) if status.code == 404 => return Ok(()),
        listed => listed.context("listing AgentRollouts")?,
    }
    anyhow::ensure!(found.is_empty(), "{}", refusal_of_held(found));
    Ok(())
}

fn refusal_of_held(found: &[String]) -> String {
    let mut named = found.iter().take(NAMED).cloned().collect::<Vec<_>>().join(", ");
    if found.len() > NAMED {
        let _ = write!(named, " and {} more", found.len() - NAMED);
    }
    format!(
        "podshm is not uninstalled: {} AgentRollouts are under way ({named}), and nobody would be left to bring back what they have begun. \
         `podshm rollout rollback NAME` brings it back, `podshm rollout abort NAME` leaves it as it is. Where their controller is gone already: \
         kubectl patch agentrollout NAME --type=merge -p '{{\"metadata\":{{\"finalizers\":null}}}}'",
        found.len()
    )
}

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
    fn a_job_that_somebody_has_applied_uninstalls_nothing() {
        let daemon = |annotations: serde_json::Value| -> DaemonSet {
            let metadata = json!({"name": "podshmd", "annotations": annotations});
            serde_json::from_value(json!({"metadata": metadata})).expect("a DaemonSet")
        };
        meant(Some(&daemon(json!({"meta.helm.sh/release-name": "podshm"})))).expect("Helm's");
        meant(None).expect("an attempt before has taken it away");
        for applied in [json!({}), json!({"kubectl.kubernetes.io/last-applied-configuration": "{}"})] {
            let refused = meant(Some(&daemon(applied))).expect_err("applied").to_string();
            assert!(refused.contains("--no-hooks"), "{refused}");
        }
    }

    fn rollout(name: &str, finalizers: &[&str], status: serde_json::Value) -> DynamicObject {
        let metadata = json!({"name": name, "finalizers": finalizers});
        let spec = json!({"agents": "of a version that this program does not know"});
        let object = json!({"apiVersion": "podshm.dev/v1alpha1", "kind": "AgentRollout", "metadata": metadata, "spec": spec, "status": status});
        serde_json::from_value(object).expect("an object")
    }

    fn refused(code: u16) -> kube::Result<()> {
        Err(kube::Error::Api(Box::new(kube::core::Status { code, message: "as it says".into(), ..Default::default() })))
    }

    #[test]
    fn rollouts_that_are_held_are_named_with_the_way_out_and_others_are_not() {
        let held = [
            rollout("runs", &[FINALIZER], json!({"phase": "Running"})),
            rollout("goes", &["foregroundDeletion", FINALIZER], json!({"phase": "RollingBack"})),
            rollout("new", &[FINALIZER], json!(null)),
            // Whoever completed it is about to let it go.
            rollout("done", &[FINALIZER], json!({"phase": "Completed"})),
        ];
        let others = [
            rollout("over", &[], json!({"phase": "Completed"})),
            rollout("waits", &[], json!({"phase": "Pending"})),
            rollout("somebodys", &["foregroundDeletion", "shop.example/hold"], json!({"phase": "Aborted"})),
        ];
        let found: Vec<String> = others.iter().chain(&held).filter_map(under_way).collect();
        let text = let_go(&found, Ok(())).expect_err("four are held").to_string();
        for said in [
            "4 AgentRollouts",
            "(runs, goes, new, done)",
            "rollout abort NAME",
            r#"-p '{"metadata":{"finalizers":null}}'"#,
        ] {
            assert!(text.contains(said), "{said}: {text}");
        }
        let found: Vec<String> = others.iter().filter_map(under_way).collect();
        let_go(&found, Ok(())).expect("nothing is held");
        let text = refusal_of_held(&vec!["a".repeat(63); 1000]);
        assert!(text.contains("and 950 more") && text.len() < 5000, "{text}");
    }

    #[test]
    fn where_rollouts_have_no_definition_there_are_none_and_where_nobody_knows_nothing_is_uninstalled() {
        let_go(&[], refused(404)).expect("no definition");
        for code in [403, 410, 500] {
            let text = format!("{:#}", let_go(&[], refused(code)).expect_err("nobody knows"));
            assert!(text.contains("listing AgentRollouts") && text.contains("as it says"), "{code}: {text}");
        }
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
