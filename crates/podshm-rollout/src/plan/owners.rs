//! Whether somebody else would undo what a rollout does.

use super::{Plan, refuse, warn};
use crate::world::{annotation, labels};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use podshm_api::rollout::{AgentRollout, OnFailure, Purpose};

/// By which a GitOps tool says that an object is its own. Argo CD's label `app.kubernetes.io/instance` is none: Helm sets it, too.
const KEYS: [(&str, &str); 5] = [
    ("argocd.argoproj.io/instance", "Argo CD"),
    ("argocd.argoproj.io/tracking-id", "Argo CD"),
    ("kustomize.toolkit.fluxcd.io/name", "Flux"),
    ("helm.toolkit.fluxcd.io/name", "Flux"),
    ("fleet.cattle.io/bundle-id", "Fleet"),
];

/// What they are called where they write fields, whatever they set on the object.
const MANAGERS: [(&str, &str); 6] = [
    ("argocd-controller", "Argo CD"),
    ("argocd-application-controller", "Argo CD"),
    ("kustomize-controller", "Flux"),
    ("helm-controller", "Flux"),
    ("fleetagent", "Fleet"),
    ("fleet-agent", "Fleet"),
];

/// The GitOps tool that an object belongs to, and by what it is told.
fn gitops(meta: &ObjectMeta) -> Option<(&'static str, String)> {
    let has = |key: &str| labels(meta).contains_key(key) || annotation(meta, key).is_some();
    if let Some((key, tool)) = KEYS.iter().find(|(key, _)| has(key)) {
        return Some((*tool, (*key).to_owned()));
    }
    let managers = meta.managed_fields.iter().flatten().filter(|one| one.subresource.is_none());
    managers.filter_map(|one| one.manager.as_deref()).find_map(|found| {
        let (name, tool) = MANAGERS.iter().find(|(name, _)| *name == found)?;
        Some((*tool, format!("field manager {name}")))
    })
}

/// Of a workload that is to be moved.
pub(super) fn look_at_workload(meta: &ObjectMeta, of: &str, plan: &mut Plan) {
    if let Some((tool, by)) = gitops(meta) {
        let what =
            format!("{tool} owns it ({by}) and would undo each move; suspend it there, or move the workload in Git");
        refuse(plan, of, what);
    }
}

/// Of agents' DaemonSets: a conversion leaves them alone, and the way back from an upgrade changes their template.
pub(super) fn look_at_agent(rollout: &AgentRollout, meta: &ObjectMeta, of: &str, plan: &mut Plan) {
    let Some((tool, by)) = gitops(meta).filter(|_| rollout.spec.purpose == Purpose::UpgradeAgents) else { return };
    let what = format!(
        "{tool} owns it ({by}): going back puts the revision before into it, and {tool} would undo that; suspend it there until the rollout is over"
    );
    match rollout.spec.on_failure {
        OnFailure::RollBack => refuse(plan, of, format!("{what}, or have onFailure: Pause and go back in Git")),
        OnFailure::Pause => warn(plan, of, what),
    }
}
