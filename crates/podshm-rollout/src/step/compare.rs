//! What node daemons had counted when a batch began, or when a person had looked at what failed.

use super::Run;
use crate::action::Action;
use crate::health::counted;
use crate::nodes::is_touched;
use podshm_api::rollout::{Counted, NodeState};

impl Run<'_> {
    /// What nodes that were touched before are compared with is what is counted now, once for each batch and each resumption. True if some
    /// were written: they are to be seen as they are then first.
    pub(super) fn count_anew(&mut self) -> bool {
        let began = self.status.history.last().map_or(0, |record| record.began);
        let since = began.max(self.status.resumed_at);
        if self.rollout.spec.domain.is_none() || self.status.compared_since >= since {
            return false;
        }
        let (mut is_heard, mut written) = (true, false);
        for (who, mark) in &mut self.marks {
            let Some(before) = mark.before.filter(|_| is_touched(mark.state) && mark.state != NodeState::Failed) else {
                continue;
            };
            let Some(now) = counted(self.rollout, self.world, who) else {
                is_heard = false;
                continue;
            };
            let is_same = Counted { at: before.at, ..now } == before;
            if before.at < since && !is_same {
                mark.before = Some(now);
                self.actions.push(Action::mark(who, mark.clone()));
                written = true;
            }
        }
        if is_heard && !written {
            self.status.compared_since = since;
        }
        written
    }
}
