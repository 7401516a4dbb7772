//! A rollout that is deleted: what it has begun goes back before it is gone.
//!
//! ```text
//!  admitted ─► Hold ─► … ─► Completed, RolledBack, Aborted ─► LetGo        deleted: gone at once
//!                └─ deleted: everything goes back ─► RolledBack ─► LetGo   aborted meanwhile: LetGo, all stays as it is
//! ```

use super::Run;
use crate::action::Action;
use podshm_api::rollout::{FINALIZER, Phase, Stop};

impl Run<'_> {
    pub(super) fn is_deleted(&self) -> bool {
        self.rollout.metadata.deletion_timestamp.is_some()
    }

    pub(super) fn is_held(&self) -> bool {
        self.rollout.metadata.finalizers.iter().flatten().any(|one| one == FINALIZER)
    }

    fn is_untouched(&self) -> bool {
        self.status.phase == Phase::Pending && self.marks.is_empty()
    }

    /// Everything back, whatever it was doing or waiting for; nothing where it is over or has not begun.
    pub(super) fn leave(&mut self) {
        if self.status.phase.is_over() || self.is_untouched() {
            return;
        }
        // Who wants it gone and all left as it is aborts it; before, or while it goes back.
        if self.rollout.spec.stop == Some(Stop::Abort) {
            return self.abort();
        }
        if self.status.phase != Phase::RollingBack {
            self.turn_back("it was deleted");
        }
        self.roll_back();
    }

    /// The finalizer goes once nothing is left to be done; last, since then nobody may be left to do it.
    pub(super) fn let_go(&mut self) {
        let is_free = self.status.phase.is_over() || (self.is_deleted() && self.is_untouched());
        if is_free && self.is_held() {
            self.actions.push(Action::LetGo);
        }
    }
}
