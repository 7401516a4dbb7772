//! Rollouts that are deleted: what they have begun goes back before they are gone.

use crate::again::steps;
use crate::simulated::fleet::{
    cluster, is_as_before, is_converted, message, nobody_was_hurt, phase, until, until_batch,
};
use crate::simulated::{Cluster, object};
use podshm_api::rollout::{FINALIZER, NodeState, Phase, Stop};
use podshm_rollout::{Action, step};
use proptest::prelude::*;
use serde_json::json;

fn delete(cluster: &mut Cluster) {
    cluster.rollout.metadata.deletion_timestamp = Some(object(json!("2026-01-02T00:00:00Z")));
    // As the API server does.
    *cluster.rollout.metadata.generation.as_mut().unwrap() += 1;
}

fn is_held(cluster: &Cluster) -> bool {
    cluster.rollout.metadata.finalizers.iter().flatten().any(|one| one == FINALIZER)
}

/// Steps until nothing holds it, as the API server removes it then.
fn until_gone(cluster: &mut Cluster) {
    for _ in 0..2000 {
        if !is_held(cluster) {
            return;
        }
        steps(cluster, 1);
    }
    panic!("still {:?}: {}", phase(cluster), message(cluster));
}

#[test]
fn it_is_held_before_anything_is_touched_and_let_go_once_it_is_over() {
    let mut cluster = cluster(4);
    let first = step(&cluster.rollout, &cluster.world);
    assert_eq!(first.actions, [Action::Hold]);
    // Not seen to be there yet: nothing else is done.
    assert_eq!(step(&cluster.rollout, &cluster.world).actions, [Action::Hold]);
    until_batch(&mut cluster, 2);
    assert!(is_held(&cluster));
    until(&mut cluster, &[Phase::Completed]);
    assert!(!is_held(&cluster), "nobody has to be there for it to be deleted");
    // Whoever completed it may have died before it let it go.
    cluster.rollout.metadata.finalizers = Some(vec![FINALIZER.into()]);
    let next = step(&cluster.rollout, &cluster.world);
    assert_eq!((next.status.phase, next.actions), (Phase::Completed, vec![Action::LetGo]));
}

#[test]
fn one_that_is_deleted_midway_goes_back_first_whatever_it_was_doing() {
    for (batch, at) in [(1, "running"), (2, "running"), (2, "paused"), (3, "failed")] {
        let mut cluster = cluster(4);
        until_batch(&mut cluster, batch);
        steps(&mut cluster, 7);
        match at {
            "paused" => cluster.rollout.spec.paused = true,
            "failed" => cluster.take_off("n00", true, true),
            _ => {}
        }
        steps(&mut cluster, 3);
        assert_eq!(phase(&cluster) == Phase::Paused, at != "running", "{}", message(&cluster));
        delete(&mut cluster);
        until_gone(&mut cluster);
        assert_eq!(phase(&cluster), Phase::RolledBack, "{at} in batch {batch}");
        assert!(message(&cluster).contains("rolled back: it was deleted"), "{}", message(&cluster));
        is_as_before(&cluster);
        nobody_was_hurt(&cluster);
    }
}

#[test]
fn one_that_is_over_or_has_not_begun_is_gone_at_once_and_nothing_changes() {
    let mut done = cluster(4);
    until(&mut done, &[Phase::Completed]);
    delete(&mut done);
    steps(&mut done, 5);
    is_converted(&done);
    assert_eq!(phase(&done), Phase::Completed);

    let mut aborted = cluster(4);
    until_batch(&mut aborted, 2);
    aborted.rollout.spec.stop = Some(Stop::Abort);
    until(&mut aborted, &[Phase::Aborted]);
    let before = aborted.world.nodes.clone();
    delete(&mut aborted);
    assert!(!is_held(&aborted));
    assert_eq!(step(&aborted.rollout, &aborted.world).actions, []);
    assert_eq!(aborted.world.nodes, before);

    // Held, and its status not written.
    let mut new = cluster(4);
    new.rollout.metadata.finalizers = Some(vec![FINALIZER.into()]);
    delete(&mut new);
    let next = step(&new.rollout, &new.world);
    assert_eq!((next.status.phase, next.actions), (Phase::Pending, vec![Action::LetGo]), "nothing has gone back");

    let mut refused = cluster(4);
    refused.rollout.spec.agents[0].name = "nobody".into();
    until(&mut refused, &[Phase::Refused]);
    assert!(!is_held(&refused));
    delete(&mut refused);
    let next = step(&refused.rollout, &refused.world);
    assert_eq!((next.status.phase, next.actions), (Phase::Refused, vec![]), "it is not looked at again");
}

#[test]
fn where_the_way_back_is_blocked_it_stays_says_why_and_an_abort_lets_it_go() {
    let mut cluster = cluster(4);
    until_batch(&mut cluster, 3);
    // What a person has done away with. The simulated ReplicaSets of a Deployment go with it.
    let gone = cluster.world.deployment("shop", "cart").unwrap().clone();
    cluster.world.deployments.retain(|one| one.metadata.name != gone.metadata.name);
    delete(&mut cluster);
    for _ in 0..60 {
        let next = step(&cluster.rollout, &cluster.world);
        cluster.apply(next, usize::MAX, true);
    }
    assert_eq!(phase(&cluster), Phase::RollingBack);
    assert!(is_held(&cluster));
    assert!(message(&cluster).contains("waits for: Deployment shop/cart is gone"), "{}", message(&cluster));
    let said = cluster.rollout.status.as_ref().unwrap().conditions.clone();
    assert_eq!((said.len(), said[0].kind.as_str()), (1, "WayBackBlocked"), "{said:?}");
    let expected = "leave all as it is and have it gone: podshm rollout abort routing";
    assert!(said[0].message.contains("Deployment shop/cart is gone") && said[0].message.contains(expected), "{said:?}");
    let labelled = |cluster: &Cluster| cluster.world.nodes.keys().filter(|node| cluster.has_label(node)).count();
    let before = labelled(&cluster);
    assert!(before > 0, "agents stay under its slim pods");
    cluster.rollout.spec.stop = Some(Stop::Abort);
    let next = step(&cluster.rollout, &cluster.world);
    cluster.apply(next, usize::MAX, true);
    assert_eq!((phase(&cluster), is_held(&cluster), labelled(&cluster)), (Phase::Aborted, false, before));
    assert_eq!(cluster.rollout.status.as_ref().unwrap().conditions, []);
}

#[test]
fn one_that_goes_back_already_keeps_its_reason_when_it_is_deleted() {
    let mut cluster = cluster(4);
    until_batch(&mut cluster, 2);
    steps(&mut cluster, 7);
    cluster.rollout.spec.stop = Some(Stop::RollBack);
    steps(&mut cluster, 1);
    assert_eq!(phase(&cluster), Phase::RollingBack, "{}", message(&cluster));
    delete(&mut cluster);
    until_gone(&mut cluster);
    assert!(message(&cluster).contains("rolled back: as spec.stop says"), "{}", message(&cluster));
    is_as_before(&cluster);
}

#[test]
fn it_is_let_go_after_all_else_is_done_for_it() {
    let mut cluster = cluster(4);
    let verified = |cluster: &Cluster| cluster.mark("n00").is_some_and(|mark| mark.state == NodeState::Verifying);
    for _ in 0..100 {
        if verified(&cluster) {
            break;
        }
        steps(&mut cluster, 1);
    }
    assert!(verified(&cluster), "{}", message(&cluster));
    cluster.rollout.spec.stop = Some(Stop::Abort);
    // Once it is let go it may be gone, and its verification pods would be nobody's.
    let next = step(&cluster.rollout, &cluster.world);
    assert_eq!(next.actions, [Action::CleanUp { node: "n00".into() }, Action::LetGo]);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// Deleted at any moment, with controllers that die between any two actions, it is gone only once nothing of it is left.
    #[test]
    fn whenever_it_is_deleted_nothing_of_it_is_left_once_it_is_gone(
        cuts in prop::collection::vec((0_usize..6, any::<bool>(), 0_usize..3), 1..300),
    ) {
        let mut cluster = cluster(5);
        let at = cuts.len() / 2;
        for (index, (parts, with_status, ticks)) in cuts.iter().enumerate() {
            // One that is not held has not begun, or is over: a controller writes that down before it lets go.
            if index == at && is_held(&cluster) && !phase(&cluster).is_over() {
                delete(&mut cluster);
            }
            if index >= at && !is_held(&cluster) {
                break;
            }
            let next = step(&cluster.rollout, &cluster.world);
            cluster.apply(next, *parts, *with_status);
            (0..*ticks).for_each(|_| cluster.tick());
        }
        until_gone(&mut cluster);
        if cluster.rollout.metadata.deletion_timestamp.is_some() {
            (0..3).for_each(|_| cluster.tick());
            is_as_before(&cluster);
            nobody_was_hurt(&cluster);
        }
    }
}
