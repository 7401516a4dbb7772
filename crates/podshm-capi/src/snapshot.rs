//! Several values at one version; one value without copying all of it.

use crate::border::{Data, Len, Out, Own, Ref, Room};
use crate::last::{Fault, entry};
use crate::result::podshm_result;
use crate::table::{found, podshm_table};
use podshm::client::{Guard, TableSnapshot};

/// A read of several keys at one version. For any number of threads.
pub struct podshm_snapshot(TableSnapshot);

/// Begins one. On failure `*snapshot` is null.
#[unsafe(no_mangle)]
pub extern "C" fn podshm_snapshot_new(table: Ref<podshm_table>, snapshot: Out<*mut podshm_snapshot>) -> podshm_result {
    entry(|| snapshot.give(|| Ok(podshm_snapshot(table.here()?.0.snapshot()?))))
}

/// Frees it. Null is nothing to do.
#[unsafe(no_mangle)]
pub extern "C" fn podshm_snapshot_free(snapshot: Own<podshm_snapshot>) -> podshm_result {
    entry(|| snapshot.free())
}

/// As podshm_table_get(). What it gives is of one version only if podshm_snapshot_check() says so afterwards.
#[unsafe(no_mangle)]
pub extern "C" fn podshm_snapshot_get(
    snapshot: Ref<podshm_snapshot>,
    key: Data,
    key_len: Len,
    mut buffer: Room,
    size: Len,
    len: Out<usize>,
) -> podshm_result {
    entry(|| {
        len.check_if_wanted()?;
        let snapshot = &snapshot.get()?.0;
        found(snapshot.get(key.slice(key_len)?, buffer.slice(size)?), &len)
    })
}

/// Whether everything so far was read at one version, which then is `*version` (may be null). PODSHM_CONTENDED where the table has changed
/// meanwhile: begin another one, and read again.
#[unsafe(no_mangle)]
pub extern "C" fn podshm_snapshot_check(snapshot: Ref<podshm_snapshot>, version: Out<u64>) -> podshm_result {
    entry(|| version.set_if_wanted(snapshot.here()?.0.check()?))
}

/// One value, at one moment. For any number of threads.
pub struct podshm_value(Guard);

/// The value of a key as it is now, without copying it. PODSHM_NOT_FOUND without such a key. On failure `*value` is null.
#[unsafe(no_mangle)]
pub extern "C" fn podshm_value_new(
    table: Ref<podshm_table>,
    key: Data,
    key_len: Len,
    value: Out<*mut podshm_value>,
) -> podshm_result {
    entry(|| {
        value.give(|| {
            let guard = table.here()?.0.guard(key.slice(key_len)?)?;
            guard.map(podshm_value).ok_or(Fault::NotFound)
        })
    })
}

/// Frees it. Null is nothing to do.
#[unsafe(no_mangle)]
pub extern "C" fn podshm_value_free(value: Own<podshm_value>) -> podshm_result {
    entry(|| value.free())
}

/// Its length.
#[unsafe(no_mangle)]
pub extern "C" fn podshm_value_len(value: Ref<podshm_value>, len: Out<usize>) -> podshm_result {
    entry(|| len.set(value.here()?.0.value_len()))
}

/// Copies `len` bytes from `offset` on. PODSHM_CONTENDED once the agent has replaced the value; PODSHM_BUFFER_TOO_SMALL where the value
/// has not so many.
#[unsafe(no_mangle)]
pub extern "C" fn podshm_value_read(
    value: Ref<podshm_value>,
    offset: usize,
    mut buffer: Room,
    len: Len,
) -> podshm_result {
    entry(|| Ok(value.get()?.0.read(offset, buffer.slice(len)?)?))
}
