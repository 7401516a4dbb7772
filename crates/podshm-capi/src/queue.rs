//! Pushing records.

use crate::border::{Data, Fill, Len, Mut, Out, Own, OwnedBatch, Ref, Runs, Text, User, podshm_fill};
use crate::client::podshm_client;
use crate::last::entry;
use crate::result::podshm_result;
use podshm::QueueSender;
use podshm::client::QueueBatch;
use std::time::Duration;

/// The way to a queue of the agent's. For any number of threads; the first one that pushes has it cheapest.
pub struct podshm_queue(QueueSender);

/// Several records that are accepted together. It holds its queue: other threads wait meanwhile, and this one gets PODSHM_REENTERED for
/// other ways to push. For the thread that made it.
pub struct podshm_batch(OwnedBatch);

/// The queue `name`. On failure `*queue` is null.
#[unsafe(no_mangle)]
pub extern "C" fn podshm_queue_new(
    client: Ref<podshm_client>,
    name: Text,
    queue: Out<*mut podshm_queue>,
) -> podshm_result {
    entry(|| queue.give(|| Ok(podshm_queue(client.get()?.client.queue(name.name()?)?))))
}

/// Frees it. Null is nothing to do. A batch that is open lives on.
#[unsafe(no_mangle)]
pub extern "C" fn podshm_queue_free(queue: Own<podshm_queue>) -> podshm_result {
    entry(|| queue.free())
}

/// Accepts the record now or says PODSHM_FULL. `*position` (may be null) is its position in this client's ring: its sequence number.
#[unsafe(no_mangle)]
pub extern "C" fn podshm_queue_try_push(
    queue: Mut<podshm_queue>,
    record: Data,
    len: Len,
    position: Out<u64>,
) -> podshm_result {
    entry(|| {
        position.check_if_wanted()?;
        position.set_if_wanted(queue.get()?.0.try_push(record.slice(len)?)?)
    })
}

/// Accepts the record, waiting for room until `timeout_ns`.
#[unsafe(no_mangle)]
pub extern "C" fn podshm_queue_push(
    queue: Mut<podshm_queue>,
    record: Data,
    len: Len,
    timeout_ns: u64,
    position: Out<u64>,
) -> podshm_result {
    entry(|| {
        position.check_if_wanted()?;
        let at = queue.get()?.0.push(record.slice(len)?, Duration::from_nanos(timeout_ns))?;
        position.set_if_wanted(at)
    })
}

/// Writes `len` bytes in place by `fill`, which is called once, and accepts the record, or says PODSHM_FULL.
#[unsafe(no_mangle)]
pub extern "C" fn podshm_queue_try_push_with(
    queue: Mut<podshm_queue>,
    len: usize,
    fill: podshm_fill,
    user: User,
    position: Out<u64>,
) -> podshm_result {
    entry(|| {
        position.check_if_wanted()?;
        let mut fill = Fill::new(fill, user, None)?;
        position.set_if_wanted(queue.get()?.0.try_push_with(len, |part| fill.part(0, part))?)
    })
}

/// Accepts `count` records together, in one go, or as many of them as there is room for: then PODSHM_FULL. `*accepted` (may be null) says how many,
/// also where it fails otherwise: from the first on. The cheapest way to push several.
#[unsafe(no_mangle)]
pub extern "C" fn podshm_queue_try_push_all(
    queue: Mut<podshm_queue>,
    records: Runs,
    count: Len,
    accepted: Out<usize>,
) -> podshm_result {
    entry(|| {
        accepted.set_if_wanted(0)?;
        let records = records.each(count)?;
        let mut batch = queue.get()?.0.batch()?;
        let (mut done, mut result) = (0, Ok(()));
        for record in records {
            if let Err(fault) = record.and_then(|record| Ok(batch.try_push(record)?)) {
                result = Err(fault);
                break;
            }
            done += 1;
        }
        batch.publish();
        accepted.set_if_wanted(done)?;
        result
    })
}

/// Accepts the record, or drops it where the ring is full and counts that; `*accepted` says which.
#[unsafe(no_mangle)]
pub extern "C" fn podshm_queue_push_or_drop(
    queue: Mut<podshm_queue>,
    record: Data,
    len: Len,
    accepted: Out<bool>,
) -> podshm_result {
    entry(|| {
        accepted.check_if_wanted()?;
        accepted.set_if_wanted(queue.get()?.0.push_or_drop(record.slice(len)?)?)
    })
}

/// Records that podshm_queue_push_or_drop() has dropped through this handle.
#[unsafe(no_mangle)]
pub extern "C" fn podshm_queue_dropped(queue: Ref<podshm_queue>, dropped: Out<u64>) -> podshm_result {
    entry(|| dropped.set(queue.here()?.0.dropped()))
}

/// Opens a batch. On failure `*batch` is null.
#[unsafe(no_mangle)]
pub extern "C" fn podshm_batch_new(queue: Mut<podshm_queue>, batch: Out<*mut podshm_batch>) -> podshm_result {
    entry(|| batch.give(|| Ok(podshm_batch(OwnedBatch::open(&queue.here()?.0)?))))
}

/// Adds a record, or says PODSHM_FULL. It is accepted once the batch is published or freed.
#[unsafe(no_mangle)]
pub extern "C" fn podshm_batch_try_push(
    batch: Mut<podshm_batch>,
    record: Data,
    len: Len,
    position: Out<u64>,
) -> podshm_result {
    entry(|| {
        position.check_if_wanted()?;
        let record = record.slice(len)?;
        position.set_if_wanted(batch.here()?.0.with(|batch| batch.try_push(record))??)
    })
}

/// Adds a record of `len` bytes that `fill` writes in place, or says PODSHM_FULL. `fill` is called once, and may not use the batch:
/// PODSHM_BUSY.
#[unsafe(no_mangle)]
pub extern "C" fn podshm_batch_try_push_with(
    batch: Mut<podshm_batch>,
    len: usize,
    fill: podshm_fill,
    user: User,
    position: Out<u64>,
) -> podshm_result {
    entry(|| {
        position.check_if_wanted()?;
        let mut fill = Fill::new(fill, user, None)?;
        let push = |batch: &mut QueueBatch<'_>| batch.try_push_with(len, |part| fill.part(0, part));
        position.set_if_wanted(batch.here()?.0.with(push)??)
    })
}

/// Accepts everything so far and wakes the agent if it sleeps.
#[unsafe(no_mangle)]
pub extern "C" fn podshm_batch_publish(batch: Mut<podshm_batch>) -> podshm_result {
    entry(|| batch.here()?.0.with(|batch| batch.publish()))
}

/// Accepts what is not published yet, and frees the batch. Null is nothing to do. In another thread than its own: PODSHM_WRONG_THREAD, and
/// nothing is freed.
#[unsafe(no_mangle)]
pub extern "C" fn podshm_batch_free(batch: Own<podshm_batch>) -> podshm_result {
    entry(|| batch.free_unless(|batch| batch.0.is_free()))
}
