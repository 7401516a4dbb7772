//! Workloads that are to be moved: their form, and what selects, scales and guards their pods.

use super::{Plan, apart, owners, refuse, warn};
use crate::forms::{slim_form, slim_name};
use crate::moves::{COST, others};
use crate::world::{World, annotation, name, namespace, owner, replicas, selector};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use podshm_api::rollout::{AgentRollout, Workload};
use std::collections::BTreeMap;

/// Whether it can be moved, and what keeps watch over its pods while it is.
pub(super) fn look_at_workload(rollout: &AgentRollout, world: &World, workload: &Workload, plan: &mut Plan) {
    let of = format!("{} {}/{}", workload.kind, workload.namespace, workload.name);
    if workload.kind != "Deployment" {
        let what =
            "a rollout moves Deployments; leave it out and change its template by hand once its nodes are converted"
                .to_owned();
        return refuse(plan, &of, what);
    }
    let Some(fat) = world.deployment(&workload.namespace, &workload.name) else {
        return refuse(plan, &of, "there is none of that name; correct it".into());
    };
    for scaler in &world.autoscalers {
        let target = &scaler.spec.scale_target_ref;
        let is_its = target.kind == "Deployment" && target.name == workload.name;
        if is_its && namespace(&scaler.metadata) == workload.namespace {
            let what = format!(
                "HorizontalPodAutoscaler {} scales it, and would undo each move; delete it for the time of the rollout, and give the slim form one afterwards",
                name(&scaler.metadata)
            );
            refuse(plan, &of, what);
        }
    }
    owners::look_at_workload(&fat.metadata, &of, plan);
    if let Some(owner) = owner(&fat.metadata) {
        refuse(plan, &of, format!("{} {} owns it and would undo each move; move it there", owner.kind, owner.name));
    }
    let slim = match slim_form(workload, fat, rollout) {
        Ok(slim) => slim,
        Err(error) => return refuse(plan, &of, error.to_string()),
    };
    let there = world.deployment(&workload.namespace, &slim_name(workload));
    if let Some(found) = there.and_then(|there| others(there, rollout)) {
        refuse(plan, &of, found);
    }
    look_at_services(world, workload, fat, &slim, &of, plan);
    look_at_budgets(world, workload, fat, &slim, &of, plan);
    apart::look_at_forms(fat, &slim, &of, plan);
    let by_hand = world.pods_of(fat).all.iter().filter(|pod| annotation(&pod.metadata, COST).is_some()).count();
    if by_hand > 0 {
        warn(plan, &of, format!("{by_hand} of its pods have {COST} already; the rollout sets it"));
    }
    if replicas(fat) == 0 {
        warn(plan, &of, "it has no replicas; there is nothing to move".into());
    }
}

pub(super) fn template_labels(of: &Deployment) -> BTreeMap<String, String> {
    let meta = of.spec.as_ref().and_then(|spec| spec.template.metadata.as_ref());
    meta.and_then(|meta| meta.labels.clone()).unwrap_or_default()
}

fn look_at_services(
    world: &World,
    workload: &Workload,
    fat: &Deployment,
    slim: &Deployment,
    of: &str,
    plan: &mut Plan,
) {
    let (fat, slim) = (template_labels(fat), template_labels(slim));
    for service in world.services.iter().filter(|service| namespace(&service.metadata) == workload.namespace) {
        let Some(wanted) = service.spec.as_ref().and_then(|spec| spec.selector.as_ref()).filter(|all| !all.is_empty())
        else {
            continue;
        };
        let covers =
            |labels: &BTreeMap<String, String>| wanted.iter().all(|(key, value)| labels.get(key) == Some(value));
        if covers(&fat) && !covers(&slim) {
            let what = format!(
                "Service {} selects its fat pods and would not select the slim ones; have slim.labels leave {} alone",
                name(&service.metadata),
                wanted.keys().filter(|key| slim.get(*key) != wanted.get(*key)).cloned().collect::<Vec<_>>().join(", ")
            );
            refuse(plan, of, what);
        }
    }
}

fn look_at_budgets(world: &World, workload: &Workload, fat: &Deployment, slim: &Deployment, of: &str, plan: &mut Plan) {
    let (fat_labels, slim_labels) = (template_labels(fat), template_labels(slim));
    for budget in world.budgets_of(&workload.namespace, &fat_labels) {
        let who = name(&budget.metadata);
        let spec = budget.spec.clone().unwrap_or_default();
        let covers_slim = spec.selector.as_ref().is_some_and(|wanted| selector(wanted).matches(&slim_labels));
        if !covers_slim {
            let what = format!(
                "PodDisruptionBudget {who} covers the fat form only: slim pods don't count for it, so it may allow nothing"
            );
            warn(plan, of, what);
        }
        let allowed = budget.status.as_ref().and_then(|status| status.disruptions_allowed).unwrap_or(0);
        if allowed <= 0 {
            let what = format!(
                "PodDisruptionBudget {who} allows no disruption now; the rollout will wait until a slim replica more makes it allow one"
            );
            warn(plan, of, what);
        }
        let is = |found: &Option<IntOrString>, number: i32, text: &str| match found {
            Some(IntOrString::Int(found)) => *found == number,
            Some(IntOrString::String(found)) => found == text,
            None => false,
        };
        let all = replicas(fat) as i32;
        if is(&spec.max_unavailable, 0, "0%") || is(&spec.min_available, all, "100%") {
            let what = format!(
                "PodDisruptionBudget {who} never allows a disruption; no pod of it would ever be moved: allow one"
            );
            refuse(plan, of, what);
        }
    }
}
