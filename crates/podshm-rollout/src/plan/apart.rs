//! What keeps a slim replica from coming while the fat one whose place it takes is still there.

use super::workloads::template_labels;
use super::{Plan, warn};
use crate::world::selector;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::PodSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use std::collections::BTreeMap;

const HOSTNAME: &str = "kubernetes.io/hostname";

fn pod(of: &Deployment) -> Option<&PodSpec> {
    of.spec.as_ref()?.template.spec.as_ref()
}

pub(super) fn look_at_forms(fat: &Deployment, slim: &Deployment, of: &str, plan: &mut Plan) {
    let Some(spec) = pod(slim) else { return };
    let both = [template_labels(fat), template_labels(slim)];
    let selects_both = |wanted: Option<&LabelSelector>| {
        wanted.is_some_and(|wanted| both.iter().all(|labels: &BTreeMap<_, _>| selector(wanted).matches(labels)))
    };
    let apart = spec.affinity.as_ref().and_then(|affinity| affinity.pod_anti_affinity.as_ref());
    let required = apart.and_then(|apart| apart.required_during_scheduling_ignored_during_execution.as_ref());
    if required
        .into_iter()
        .flatten()
        .any(|term| term.topology_key == HOSTNAME && selects_both(term.label_selector.as_ref()))
    {
        let what = "its required podAntiAffinity counts pods of both forms on a node: a slim replica comes only to a converted node without a fat one, so a single node's replica may never move; have it select the form's label, or prefer instead of require";
        warn(plan, of, what.into());
    }
    let spreads = spec.topology_spread_constraints.iter().flatten();
    let is_strict = |one: &&k8s_openapi::api::core::v1::TopologySpreadConstraint| {
        one.when_unsatisfiable == "DoNotSchedule" && one.topology_key == HOSTNAME
    };
    if spreads.filter(is_strict).any(|one| selects_both(one.label_selector.as_ref())) {
        let what = "its topologySpreadConstraints count pods of both forms on a node and do not schedule what is uneven: slim replicas go to few nodes first, and may find no place; have them select the form's label, or say ScheduleAnyway";
        warn(plan, of, what.into());
    }
    let containers = || spec.containers.iter().chain(spec.init_containers.iter().flatten());
    let mut ports: Vec<i32> =
        containers().flat_map(|one| one.ports.iter().flatten()).filter_map(|one| one.host_port).collect();
    ports.sort_unstable();
    ports.dedup();
    if !ports.is_empty() {
        let ports = ports.iter().map(i32::to_string).collect::<Vec<_>>().join(", ");
        let what = format!(
            "its pods have hostPort {ports}: a slim replica and a fat one can't be on the same node, so one that is to take the other's place there never comes; do without hostPort for the time of the rollout"
        );
        warn(plan, of, what);
    }
    let claims = spec.volumes.iter().flatten().filter_map(|one| one.persistent_volume_claim.as_ref());
    for claim in claims.filter(|claim| claim.read_only != Some(true)) {
        let what = format!(
            "both forms would have PersistentVolumeClaim {} at once: where it is ReadWriteOnce a slim replica on another node never comes, and with ReadWriteOncePod none does; both write it, too",
            claim.claim_name
        );
        warn(plan, of, what);
    }
}
