//! What comes midway, or a second time: rollouts of the same name, releases, resumptions.

use crate::simulated::fleet::{cluster, is_converted, message, nobody_was_hurt, spec, until, until_batch};
use crate::simulated::{Cluster, object};
use podshm_api::rollout::Phase;
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
