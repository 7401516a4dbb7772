//! What comes midway, or a second time: rollouts of the same name, releases, resumptions.

use crate::simulated::fleet::{cluster, is_converted, message, nobody_was_hurt, spec, until, until_batch};
use crate::simulated::{Cluster, object};
use podshm_api::rollout::{NodeState, Phase, VerdictResult};
use podshm_rollout::{plan, step};
use serde_json::json;

/// Another rollout of the same name, once the one before is gone.
fn anew(cluster: &mut Cluster) {
    let mut second = spec();
    second["metadata"]["uid"] = json!("r-2");
    cluster.rollout = object(second);
}

fn replicas(cluster: &Cluster, of: &str) -> i32 {
    cluster.world.deployment("shop", of).unwrap().spec.as_ref().unwrap().replicas.unwrap()
}

pub fn steps(cluster: &mut Cluster, times: usize) {
    for _ in 0..times {
        let next = step(&cluster.rollout, &cluster.world);
        cluster.apply(next, usize::MAX, true);
        cluster.tick();
    }
}

#[test]
fn a_second_rollout_of_the_same_name_takes_slim_pods_over_and_scales_none_away() {
    let mut cluster = cluster(4);
    until(&mut cluster, &[Phase::Completed]);
    cluster.add_node("n98", "z0");
    cluster.add_node("n99", "z1");
    anew(&mut cluster);
    cluster.rollout.spec.batches = vec![object(json!({"percent": 100}))];
    until(&mut cluster, &[Phase::Completed]);
    assert_eq!((replicas(&cluster, "cart-slim"), replicas(&cluster, "till-slim")), (7, 3));
    nobody_was_hurt(&cluster);
}

#[test]
fn a_rollout_of_the_same_name_goes_on_where_one_was_aborted_and_knows_what_was_asked_for() {
    let mut cluster = cluster(5);
    until_batch(&mut cluster, 3);
    steps(&mut cluster, 6);
    cluster.rollout.spec.stop = Some(podshm_api::rollout::Stop::Abort);
    until(&mut cluster, &[Phase::Aborted]);
    assert!(replicas(&cluster, "cart-slim") > 0 && replicas(&cluster, "cart") > 0);
    // What was converted stays; its taint is not another rollout's business.
    for node in cluster.world.nodes.values_mut() {
        node.spec.get_or_insert_default().taints = None;
    }
    cluster.add_node("n99", "z1");
    anew(&mut cluster);
    cluster.rollout.spec.batches = vec![object(json!({"percent": 100}))];
    until(&mut cluster, &[Phase::Completed]);
    let forms = ["cart", "cart-slim", "till", "till-slim"].map(|of| replicas(&cluster, of));
    assert_eq!((forms[0] + forms[1], forms[2] + forms[3]), (7, 3), "{forms:?}");
    nobody_was_hurt(&cluster);
}

#[test]
fn a_slim_form_that_is_not_the_rollouts_is_refused_before_and_nobody_is_told_to_remove_it() {
    let mut cluster = cluster(4);
    until(&mut cluster, &[Phase::Completed]);
    cluster.add_node("n99", "z1");
    anew(&mut cluster);
    cluster.rollout.metadata.name = Some("other".into());
    let found = plan(&cluster.rollout, &cluster.world).refusals;
    let said = found.iter().find(|one| one.message.contains("Deployment shop/cart-slim is rollout routing's")).unwrap();
    assert!(said.message.contains("its pods may serve") && !said.message.contains("remove"), "{said:?}");
    let slim = cluster.deployment("till-slim").unwrap();
    slim.metadata.labels = None;
    let found = plan(&cluster.rollout, &cluster.world).refusals;
    assert!(found.iter().any(|one| one.message.contains("shop/till-slim is nobody's rollout's")), "{found:?}");
}

#[test]
fn a_release_midway_comes_to_the_slim_form_too_and_one_that_makes_none_is_named() {
    let mut cluster = cluster(4);
    until_batch(&mut cluster, 2);
    let image = |cluster: &mut Cluster, of: &str, to: Option<&str>| {
        let pod = cluster.deployment(of).unwrap().spec.as_mut().unwrap().template.spec.as_mut().unwrap();
        if let Some(to) = to {
            pod.containers[0].image = Some(to.into());
        }
        pod.containers[0].image.clone().unwrap()
    };
    assert_eq!(image(&mut cluster, "cart-slim", None), "business:1");
    image(&mut cluster, "cart", Some("business:2"));
    steps(&mut cluster, 2);
    assert_eq!(image(&mut cluster, "cart-slim", None), "business:2");
    let pod = cluster.deployment("cart").unwrap().spec.as_mut().unwrap().template.spec.as_mut().unwrap();
    pod.containers[1].name = "router".into();
    until(&mut cluster, &[Phase::Paused]);
    assert!(message(&cluster).contains("slim.removeContainers names container \"agent\""), "{}", message(&cluster));
    let pod = cluster.deployment("cart").unwrap().spec.as_mut().unwrap().template.spec.as_mut().unwrap();
    pod.containers[1].name = "agent".into();
    cluster.rollout.spec.resumed_failures = 1;
    until(&mut cluster, &[Phase::Completed]);
    is_converted(&cluster);
    nobody_was_hurt(&cluster);
}

/// Steps until a node is in this state, and says which.
fn until_state(cluster: &mut Cluster, state: NodeState) -> String {
    for _ in 0..500 {
        let is_so = |node: &&String| cluster.mark(node).is_some_and(|mark| mark.state == state);
        if let Some(node) = cluster.world.nodes.keys().find(is_so) {
            return node.clone();
        }
        steps(cluster, 1);
    }
    panic!("no node is {state:?}: {}", message(cluster));
}

#[test]
fn nobody_is_late_because_of_a_pause_or_of_a_time_without_a_controller() {
    for is_paused in [true, false] {
        let mut cluster = cluster(4);
        cluster.broken_agents = vec!["n00".into()];
        assert_eq!(until_state(&mut cluster, NodeState::Preparing), "n00");
        cluster.rollout.spec.paused = is_paused;
        if is_paused {
            until(&mut cluster, &[Phase::Paused]);
        }
        cluster.world.now += 5000;
        cluster.rollout.spec.paused = false;
        cluster.world.led_since = if is_paused { 0 } else { cluster.world.now };
        steps(&mut cluster, 10);
        cluster.broken_agents.clear();
        until(&mut cluster, &[Phase::Completed, Phase::Paused]);
        is_converted(&cluster);
    }
}

#[test]
fn a_step_that_fails_touches_nothing() {
    let mut cluster = cluster(6);
    until_batch(&mut cluster, 2);
    let labelled = |cluster: &Cluster| cluster.world.nodes.keys().filter(|node| cluster.has_label(node)).count();
    while cluster.rollout.status.as_ref().unwrap().phase == Phase::Running {
        let mut said = cluster.rollout.clone();
        cluster.world.outside[0].result = VerdictResult::Failed;
        let next = step(&said, &cluster.world);
        said.status = Some(next.status.clone());
        assert!(next.status.phase == Phase::Paused && next.actions.is_empty(), "{:?}", next.actions);
        cluster.world.outside[0].result = VerdictResult::Passed;
        if labelled(&cluster) > 2 {
            return;
        }
        steps(&mut cluster, 1);
    }
}

#[test]
fn no_more_nodes_are_tried_again_at_once_than_may_be_worked_on() {
    let mut cluster = cluster(6);
    until_batch(&mut cluster, 3);
    let done: Vec<String> = ["n00", "n01", "n02"].map(str::to_owned).to_vec();
    done.iter().for_each(|node| cluster.set_ready(node, false));
    until(&mut cluster, &[Phase::Paused]);
    done.iter().for_each(|node| cluster.set_ready(node, true));
    cluster.tick();
    cluster.rollout.spec.max_unavailable = 1;
    cluster.rollout.spec.resumed_failures = 1;
    let states = [NodeState::Preparing, NodeState::AgentReady, NodeState::Verifying, NodeState::Migrating];
    for _ in 0..600 {
        steps(&mut cluster, 1);
        let busy = |node: &&String| cluster.mark(node).is_some_and(|mark| states.contains(&mark.state));
        assert!(cluster.world.nodes.keys().filter(busy).count() <= 1);
        if cluster.rollout.status.as_ref().unwrap().phase != Phase::Running {
            break;
        }
    }
    is_converted(&cluster);
}

#[test]
fn an_agent_that_was_started_again_and_looked_at_stops_nothing_any_more() {
    let mut cluster = cluster(4);
    until_batch(&mut cluster, 2);
    let crash = |cluster: &mut Cluster, times: i32| {
        let is_agent = |pod: &&mut k8s_openapi::api::core::v1::Pod| {
            pod.metadata.labels.as_ref().is_some_and(|all| all.contains_key("controller-revision-hash"))
        };
        let pod = cluster.world.pods.iter_mut().find(is_agent).unwrap();
        pod.status.as_mut().unwrap().container_statuses = Some(object(json!([
            {"name": "agent", "ready": true, "restartCount": times, "image": "agent", "imageID": "agent"},
        ])));
    };
    crash(&mut cluster, 1);
    until(&mut cluster, &[Phase::Paused]);
    assert!(message(&cluster).contains("was started again 1 times"), "{}", message(&cluster));
    cluster.rollout.spec.resumed_failures = 1;
    until_batch(&mut cluster, 3);
    crash(&mut cluster, 3);
    until(&mut cluster, &[Phase::Paused]);
    assert!(message(&cluster).contains("was started again 2 times"), "{}", message(&cluster));
}

#[test]
fn restarts_of_slim_pods_are_not_made_up_for_by_fat_pods_that_leave() {
    let mut cluster = cluster(4);
    let crash = |cluster: &mut Cluster, of_slim: bool, times: i32| {
        for pod in cluster.world.pods.iter_mut() {
            let form = pod.metadata.labels.iter().flatten().find(|(key, _)| *key == "form");
            if form.is_some_and(|(_, form)| (form == "slim") == of_slim) {
                pod.status.as_mut().unwrap().container_statuses = Some(object(json!([
                    {"name": "main", "ready": true, "restartCount": times, "image": "a", "imageID": "a"},
                ])));
            }
        }
    };
    crash(&mut cluster, false, 10);
    until_batch(&mut cluster, 2);
    crash(&mut cluster, true, 3);
    until(&mut cluster, &[Phase::Paused]);
    assert!(message(&cluster).contains("were started again"), "{}", message(&cluster));
}

#[test]
fn a_canary_that_is_unhealthy_has_another_in_its_place_and_an_unhealthy_batch_is_looked_at_again() {
    let mut first = cluster(6);
    first.world.nodes.get_mut("n00").unwrap().spec.get_or_insert_default().unschedulable = Some(true);
    until_batch(&mut first, 2);
    let states = ["n00", "n01"].map(|node| first.mark(node).map(|mark| (mark.batch, mark.state)));
    let healthy = first.world.nodes.keys().filter(|node| first.mark(node).is_some_and(|mark| mark.batch == 1)).count();
    assert!(states[0] == Some((1, NodeState::Skipped)) && healthy == 2, "{states:?}");

    let mut all = cluster(2);
    all.rollout.spec.batches = vec![object(json!({"percent": 50})), object(json!({"percent": 100}))];
    let cordon = |cluster: &mut Cluster, is_so: bool| {
        cluster.world.nodes.get_mut("n00").unwrap().spec.get_or_insert_default().unschedulable = Some(is_so);
    };
    cordon(&mut all, true);
    until(&mut all, &[Phase::Paused]);
    assert!(message(&all).contains("nothing was tried"), "{}", message(&all));
    cordon(&mut all, false);
    all.rollout.spec.resumed_failures = 1;
    until(&mut all, &[Phase::Completed]);
    is_converted(&all);
}

#[test]
fn nodes_are_watched_while_somebody_is_waited_for_and_no_batch_begins_on_a_sick_one() {
    let mut cluster = cluster(4);
    cluster.rollout.spec.gates.approval = true;
    cluster.rollout.spec.approved = 1;
    until_batch(&mut cluster, 1);
    until(&mut cluster, &[Phase::AwaitingApproval]);
    cluster.set_ready("n00", false);
    cluster.rollout.spec.approved = 2;
    steps(&mut cluster, 1);
    let status = cluster.rollout.status.as_ref().unwrap();
    assert_eq!((status.phase, status.batch), (Phase::Paused, 1), "{}", status.message);
    assert!(status.message.contains("node n00: the node is not Ready"), "{}", status.message);
}

#[test]
fn a_budget_over_two_workloads_is_spent_once() {
    let mut cluster = cluster(4);
    cluster.world.budgets.clear();
    cluster.add_budget("all", 1);
    cluster.world.budgets[0].spec.as_mut().unwrap().selector = Some(object(json!({"matchLabels": {"form": "fat"}})));
    cluster.tick();
    let fat = |cluster: &Cluster| replicas(cluster, "cart") + replicas(cluster, "till");
    for _ in 0..400 {
        let before = fat(&cluster);
        steps(&mut cluster, 1);
        assert!(before - fat(&cluster) <= 1, "{} fat replicas went at once", before - fat(&cluster));
    }
}
