//! Lookups.

use crate::border::{Data, Len, Out, Own, Ref, Room, Text};
use crate::client::podshm_client;
use crate::last::{Fault, entry};
use crate::result::podshm_result;
use podshm::Table;

/// A table of the agent's, to be read. For any number of threads. Lookups make no system call and wait for nobody.
pub struct podshm_table(pub(crate) Table);

/// Says how long a value is, or how long it would have been where the room is too small.
#[inline(always)]
pub(crate) fn found(got: Result<Option<usize>, podshm::Error>, len: &Out<usize>) -> Result<(), Fault> {
    match got {
        Ok(Some(found)) => len.set_if_wanted(found),
        Ok(None) => Err(Fault::NotFound),
        Err(error) => {
            if let Some(needed) = needed(&error) {
                len.set_if_wanted(needed)?;
            }
            Err(error.into())
        }
    }
}

/// What a buffer would have to hold.
#[cold]
pub(crate) fn needed(error: &podshm::Error) -> Option<usize> {
    error.needed()
}

/// The table `name`. On failure `*table` is null.
#[unsafe(no_mangle)]
pub extern "C" fn podshm_table_new(
    client: Ref<podshm_client>,
    name: Text,
    table: Out<*mut podshm_table>,
) -> podshm_result {
    entry(|| table.give(|| Ok(podshm_table(client.here()?.client.table(name.name()?)?))))
}

/// Frees it. Null is nothing to do.
#[unsafe(no_mangle)]
pub extern "C" fn podshm_table_free(table: Own<podshm_table>) -> podshm_result {
    entry(|| table.free())
}

/// Copies the value of the key into `buffer` and its length into `*len` (which may be null). Without such a key: PODSHM_NOT_FOUND.
/// Where the buffer is too small `*len` says what the value takes.
#[unsafe(no_mangle)]
pub extern "C" fn podshm_table_get(
    table: Ref<podshm_table>,
    key: Data,
    key_len: Len,
    mut buffer: Room,
    size: Len,
    len: Out<usize>,
) -> podshm_result {
    entry(|| {
        len.check_if_wanted()?;
        let table = &table.get()?.0;
        found(table.get(key.slice(key_len)?, buffer.slice(size)?), &len)
    })
}

/// Keys in the table.
#[unsafe(no_mangle)]
pub extern "C" fn podshm_table_keys(table: Ref<podshm_table>, keys: Out<u64>) -> podshm_result {
    entry(|| keys.set(table.here()?.0.len()?))
}

/// The table's number in its line of successors: it changes when the agent is replaced or the table grows.
#[unsafe(no_mangle)]
pub extern "C" fn podshm_table_generation(table: Ref<podshm_table>, generation: Out<u64>) -> podshm_result {
    entry(|| generation.set(table.here()?.0.generation_number()?))
}

/// Publications in this generation.
#[unsafe(no_mangle)]
pub extern "C" fn podshm_table_version(table: Ref<podshm_table>, version: Out<u64>) -> podshm_result {
    entry(|| version.set(table.here()?.0.version()?))
}

/// How long ago the agent published, or said that all is still true.
#[unsafe(no_mangle)]
pub extern "C" fn podshm_table_age(table: Ref<podshm_table>, age_ns: Out<u64>) -> podshm_result {
    entry(|| age_ns.set(u64::try_from(table.here()?.0.age()?.as_nanos()).unwrap_or(u64::MAX)))
}
