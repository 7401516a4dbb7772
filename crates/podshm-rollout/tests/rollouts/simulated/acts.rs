//! What a step says is done to the cluster, or a part of it.

use super::{Cluster, object};
use podshm_api::rollout::{ASKED, FINALIZER, MADE_BY, NODE_MARK, VERIFIES};
use podshm_rollout::{Action, Asked, Change, Step, slim_form};
use serde_json::json;
use std::collections::BTreeMap;

impl Cluster {
    /// Does those of a step's actions that the API server takes: the others were about an object that somebody has changed since.
    pub fn apply_some(&mut self, step: Step, is_taken: impl Fn(usize) -> bool) {
        self.rollout.status = Some(step.status);
        for (_, action) in step.actions.into_iter().enumerate().filter(|(index, _)| is_taken(*index)) {
            self.act(action);
        }
    }

    /// Does a part of what a step says: `parts` of its actions, and the status if `with_status` is so.
    pub fn apply(&mut self, step: Step, parts: usize, with_status: bool) {
        if with_status {
            self.rollout.status = Some(step.status);
        }
        for action in step.actions.into_iter().take(parts) {
            self.act(action);
        }
    }

    fn act(&mut self, action: Action) {
        // Of the rollout itself, and nothing else.
        if let Action::Hold | Action::LetGo = action {
            let all = self.rollout.metadata.finalizers.get_or_insert_default();
            all.retain(|one| one != FINALIZER);
            return all.extend((action == Action::Hold).then(|| FINALIZER.to_owned()));
        }
        self.done.push(format!("{action:?}").split([' ', '{']).next().unwrap().to_owned());
        match action {
            Action::Hold | Action::LetGo => unreachable!("done above"),
            Action::Node { name, mark, label, taint } => {
                let key = self.rollout.spec.mark.clone();
                let node = self.world.nodes.get_mut(&name).expect("a node that is there");
                if let Some(mark) = mark {
                    let text = serde_json::to_string(&mark).unwrap();
                    node.metadata.annotations.get_or_insert_default().insert(NODE_MARK.into(), text);
                }
                let labels = node.metadata.labels.get_or_insert_default();
                match label {
                    Change::On => drop(labels.insert(key.key.clone(), key.value.clone())),
                    Change::Off => drop(labels.remove(&key.key)),
                    Change::Keep => {}
                }
                let taints = node.spec.get_or_insert_default().taints.get_or_insert_default();
                if taint != Change::Keep {
                    taints.retain(|one| one.key != key.key);
                }
                if taint == Change::On {
                    taints.push(object(json!({"key": key.key, "value": key.value, "effect": "NoSchedule"})));
                }
            }
            Action::Verify { node } => {
                let (uid, name) =
                    (self.rollout.metadata.uid.clone().unwrap(), self.rollout.metadata.name.clone().unwrap());
                let labels = BTreeMap::from([(VERIFIES.to_owned(), node.clone()), (MADE_BY.to_owned(), name.clone())]);
                let is_there = self
                    .world
                    .pods
                    .iter()
                    .any(|pod| pod.metadata.labels.as_ref().is_some_and(|all| all.get(VERIFIES) == Some(&node)));
                if !is_there {
                    let owner =
                        json!({"apiVersion": "podshm.dev/v1alpha1", "kind": "AgentRollout", "name": name, "uid": uid});
                    self.new_pod(
                        owner,
                        &labels,
                        json!({"nodeName": node, "containers": [{"name": "verify"}]}),
                        "verify",
                    );
                }
            }
            Action::CleanUp { node } => self
                .world
                .pods
                .retain(|pod| pod.metadata.labels.as_ref().is_none_or(|all| all.get(VERIFIES) != Some(&node))),
            Action::Slim { workload } => {
                let one = self.rollout.spec.workloads[workload].clone();
                let fat = self.deployment(&one.name).unwrap().clone();
                let slim = slim_form(&one, &fat, &self.rollout).unwrap();
                match self.deployment(&format!("{}-slim", one.name)) {
                    Some(found) => {
                        found.metadata.annotations.get_or_insert_default().extend(slim.metadata.annotations.unwrap());
                        found.spec.as_mut().unwrap().template = slim.spec.unwrap().template;
                    }
                    None => self.add_deployment(slim),
                }
            }
            Action::Scale { name, replicas, asked, .. } => {
                let deployment = self.deployment(&name).expect("a Deployment that is there");
                deployment.spec.as_mut().unwrap().replicas = Some(replicas as i32);
                if let Some(asked) = asked {
                    assert_eq!(asked, Asked { fat: replicas, ..asked.clone() });
                    let text = serde_json::to_string(&asked).unwrap();
                    deployment.metadata.annotations.get_or_insert_default().insert(ASKED.into(), text);
                }
            }
            Action::Remove { name, .. } => {
                self.world.deployments.retain(|one| one.metadata.name.as_deref() != Some(&name));
                self.world.replica_sets.retain(|one| one.metadata.name.as_deref() != Some(&format!("{name}-1")));
            }
            Action::GoesFirst { name, first, .. } => {
                let pod = self.world.pods.iter_mut().find(|pod| pod.metadata.name.as_deref() == Some(&name)).unwrap();
                let annotations = pod.metadata.annotations.get_or_insert_default();
                match first {
                    true => {
                        drop(annotations.insert("controller.kubernetes.io/pod-deletion-cost".into(), "-100".into()))
                    }
                    false => drop(annotations.remove("controller.kubernetes.io/pod-deletion-cost")),
                }
            }
            Action::Replace { name, .. } => self.world.pods.retain(|pod| pod.metadata.name.as_deref() != Some(&name)),
            Action::Restore { revision, .. } => {
                let most = self.world.revisions.iter().map(|one| one.revision).max().unwrap();
                let one = self
                    .world
                    .revisions
                    .iter_mut()
                    .find(|one| one.metadata.name.as_deref() == Some(&revision))
                    .unwrap();
                one.revision = most + 1;
            }
        }
    }
}
