//! Answering.

use crate::border::{Data, Fill, Len, Mut, Offered, Out, Own, User, podshm_fill, podshm_release};
use crate::last::{Fault, entry, in_use};
use crate::result::podshm_result;
use podshm::Deferred;
use std::sync::{Mutex, PoisonError};

/// Where a handler puts its answer. The first one counts. It lives until the handler returns, for the handler's thread.
pub struct podshm_answer(pub(crate) Offered);

/// The right and the duty to answer a request later. For any number of threads, one of which answers. Freeing it without an answer tells the
/// caller that the call failed.
pub struct podshm_deferred(Mutex<Option<Deferred>>);

/// Answers.
#[unsafe(no_mangle)]
pub extern "C" fn podshm_answer_reply(answer: Mut<podshm_answer>, response: Data, len: Len) -> podshm_result {
    entry(|| {
        let response = response.slice(len)?;
        answer.here()?.0.with(|answer| answer.reply(response))
    })
}

/// Answers with `len` bytes that `fill` writes in place, part by part, as the client makes room: now or later, in whichever thread uses the
/// agent then. `release` (may be null) is called once when `user` is not needed any more, whatever came of it; but not where `fill` is null.
#[unsafe(no_mangle)]
pub extern "C" fn podshm_answer_reply_with(
    answer: Mut<podshm_answer>,
    len: usize,
    fill: podshm_fill,
    user: User,
    release: podshm_release,
) -> podshm_result {
    entry(|| {
        let mut fill = Fill::new(fill, user, release)?;
        let fill = move |offset: usize, part: &mut [u8]| fill.part(offset, part);
        answer.here()?.0.with(|answer| answer.reply_with(len, fill))
    })
}

/// Says that the call failed, with a status of the agent's own from PODSHM_FIRST_STATUS on; 1 for no more than that.
#[unsafe(no_mangle)]
pub extern "C" fn podshm_answer_fail(answer: Mut<podshm_answer>, status: u32) -> podshm_result {
    entry(|| answer.here()?.0.with(|answer| answer.fail(status)))
}

/// Answers later, from any thread, by `*deferred`. On failure that is null.
#[unsafe(no_mangle)]
pub extern "C" fn podshm_answer_defer(
    answer: Mut<podshm_answer>,
    deferred: Out<*mut podshm_deferred>,
) -> podshm_result {
    entry(|| {
        deferred.give(|| {
            let later = answer.here()?.0.with(|answer| answer.defer())?;
            Ok(podshm_deferred(Mutex::new(Some(later))))
        })
    })
}

impl podshm_deferred {
    fn take(&self) -> Result<Deferred, Fault> {
        let later = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        later.ok_or(Fault::Ended { what: "deferred answer", why: "it was given" })
    }
}

/// Answers. Once: then PODSHM_ENDED. Free it after that.
#[unsafe(no_mangle)]
pub extern "C" fn podshm_deferred_reply(deferred: Mut<podshm_deferred>, response: Data, len: Len) -> podshm_result {
    entry(|| {
        let response = response.slice(len)?.to_vec();
        deferred.here()?.take()?.reply(response);
        Ok(())
    })
}

/// Says that the call failed, with a status as podshm_answer_fail() has it. Once: then PODSHM_ENDED. Free it after that.
#[unsafe(no_mangle)]
pub extern "C" fn podshm_deferred_fail(deferred: Mut<podshm_deferred>, status: u32) -> podshm_result {
    entry(|| {
        deferred.here()?.take()?.fail(status);
        Ok(())
    })
}

/// Frees it. Null is nothing to do.
#[unsafe(no_mangle)]
pub extern "C" fn podshm_deferred_free(deferred: Own<podshm_deferred>) -> podshm_result {
    entry(|| deferred.free_unless(|deferred| in_use(&deferred.0, "deferred answer")))
}
