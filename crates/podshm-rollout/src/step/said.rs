//! What somebody should know beside where the rollout is: conditions, each there while it is so.

use super::{Run, shortened};
use k8s_openapi::jiff::Timestamp;
use podshm_api::{Condition, ConditionStatus};

impl Run<'_> {
    /// Conditions of what was found in this step; one that was there before keeps its time.
    pub(super) fn say(&mut self) {
        let before = std::mem::take(&mut self.status.conditions);
        let now = Timestamp::from_second(self.world.now).unwrap_or_default().to_string();
        for (kind, reason, message) in std::mem::take(&mut self.said) {
            let since = before.iter().find(|one| one.kind == kind).map(|one| one.last_transition_time.clone());
            self.status.conditions.push(Condition {
                kind: kind.into(),
                status: ConditionStatus::True,
                observed_generation: self.status.observed_generation,
                last_transition_time: since.unwrap_or_else(|| now.clone()),
                reason: reason.into(),
                message: shortened(&message),
            });
        }
    }
}
