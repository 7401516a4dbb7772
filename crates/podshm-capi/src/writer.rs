//! Publishing tables.

use crate::agent::{Place, podshm_agent};
use crate::border::{Data, Len, Mut, Out, Own, Ref, Text};
use crate::last::{Fault, entry, in_use};
use crate::result::podshm_result;
use podshm::TableWriter;
use std::sync::{Arc, Mutex, PoisonError};

/// The writer of one table. For one thread at a time, together with its agent. Every publication is atomic: readers see the old value or the
/// new one, at every instant, wherever this process dies.
pub struct podshm_writer {
    agent: Arc<Place>,
    table: String,
    /// What podshm_writer_publish() will do.
    changes: Mutex<Vec<Change>>,
}

/// A key and its new value, or none.
type Change = (Vec<u8>, Option<Vec<u8>>);

impl podshm_writer {
    fn with<R>(&self, work: impl FnOnce(TableWriter<'_>) -> Result<R, podshm::Error>) -> Result<R, Fault> {
        self.agent.with(|agent| Ok(work(agent.table(&self.table)?)?))
    }

    fn later(&self, key: &[u8], value: Option<&[u8]>) {
        let change = (key.to_vec(), value.map(<[u8]>::to_vec));
        self.changes.lock().unwrap_or_else(PoisonError::into_inner).push(change);
    }
}

/// The writer of the agent's table `name`. It may outlive the agent, and then says PODSHM_ENDED. On failure `*writer` is null.
#[unsafe(no_mangle)]
pub extern "C" fn podshm_writer_new(
    agent: Mut<podshm_agent>,
    name: Text,
    writer: Out<*mut podshm_writer>,
) -> podshm_result {
    entry(|| {
        writer.give(|| {
            let place = &agent.here()?.0;
            let table = name.name()?.to_owned();
            place.with(|agent| Ok(agent.table(&table).map(drop)?))?;
            Ok(podshm_writer { agent: Arc::clone(place), table, changes: Mutex::default() })
        })
    })
}

/// Frees it. Null is nothing to do.
#[unsafe(no_mangle)]
pub extern "C" fn podshm_writer_free(writer: Own<podshm_writer>) -> podshm_result {
    entry(|| writer.free_unless(|writer| in_use(&writer.changes, "writer")))
}

/// Publishes the value (at most 64 KiB) under the key (1 to 255 bytes). A table that is full goes over to a larger generation; if the broker is
/// away or the budget too small, that fails and the table stands as it was.
#[unsafe(no_mangle)]
pub extern "C" fn podshm_writer_put(
    writer: Mut<podshm_writer>,
    key: Data,
    key_len: Len,
    value: Data,
    value_len: Len,
) -> podshm_result {
    entry(|| {
        let (key, value) = (key.slice(key_len)?, value.slice(value_len)?);
        writer.here()?.with(|mut table| table.put(key, value))
    })
}

/// Removes the key: PODSHM_NOT_FOUND where it was not there.
#[unsafe(no_mangle)]
pub extern "C" fn podshm_writer_remove(writer: Mut<podshm_writer>, key: Data, key_len: Len) -> podshm_result {
    entry(|| {
        let key = key.slice(key_len)?;
        if writer.here()?.with(|mut table| Ok(table.remove(key)))? { Ok(()) } else { Err(Fault::NotFound) }
    })
}

/// Notes a change for podshm_writer_publish().
#[unsafe(no_mangle)]
pub extern "C" fn podshm_writer_put_later(
    writer: Mut<podshm_writer>,
    key: Data,
    key_len: Len,
    value: Data,
    value_len: Len,
) -> podshm_result {
    entry(|| {
        writer.here()?.later(key.slice(key_len)?, Some(value.slice(value_len)?));
        Ok(())
    })
}

/// Notes a removal for podshm_writer_publish().
#[unsafe(no_mangle)]
pub extern "C" fn podshm_writer_remove_later(writer: Mut<podshm_writer>, key: Data, key_len: Len) -> podshm_result {
    entry(|| {
        writer.here()?.later(key.slice(key_len)?, None);
        Ok(())
    })
}

/// Publishes what was noted, so that a snapshot sees all of it or none, and forgets the notes, whatever comes of it. Grows the table first if
/// need be.
#[unsafe(no_mangle)]
pub extern "C" fn podshm_writer_publish(writer: Mut<podshm_writer>) -> podshm_result {
    entry(|| {
        let writer = writer.here()?;
        let changes = std::mem::take(&mut *writer.changes.lock().unwrap_or_else(PoisonError::into_inner));
        writer.with(|mut table| table.publish(&changes))
    })
}

/// Says that the content is still true, so that readers see a young age.
#[unsafe(no_mangle)]
pub extern "C" fn podshm_writer_touch(writer: Mut<podshm_writer>) -> podshm_result {
    entry(|| {
        writer.here()?.with(|mut table| {
            table.touch();
            Ok(())
        })
    })
}

/// Keys in the table.
#[unsafe(no_mangle)]
pub extern "C" fn podshm_writer_keys(writer: Ref<podshm_writer>, keys: Out<u64>) -> podshm_result {
    entry(|| keys.set(writer.here()?.with(|mut table| Ok(table.keys()))?))
}
