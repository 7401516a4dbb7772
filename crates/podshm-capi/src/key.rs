//! A key that is looked up again and again.

use crate::border::{Bound, Data, Len, Mut, Out, Own, Ref, Room};
use crate::last::entry;
use crate::result::podshm_result;
use crate::table::{found, podshm_table};
use podshm::Key;

/// A key of a table, which skips the hash on every further lookup. For the thread that looks it up first; make one for each.
pub struct podshm_key(Bound<Key>);

/// A handle to a key, which need not be there now. On failure `*handle` is null.
#[unsafe(no_mangle)]
pub extern "C" fn podshm_key_new(
    table: Ref<podshm_table>,
    key: Data,
    key_len: Len,
    handle: Out<*mut podshm_key>,
) -> podshm_result {
    entry(|| handle.give(|| Ok(podshm_key(Bound::new(table.here()?.0.key(key.slice(key_len)?))))))
}

/// Frees it. Null is nothing to do. In any thread, once its own doesn't use it any more.
#[unsafe(no_mangle)]
pub extern "C" fn podshm_key_free(key: Own<podshm_key>) -> podshm_result {
    entry(|| key.free())
}

/// podshm_table_get() for this key, cheaper.
#[unsafe(no_mangle)]
pub extern "C" fn podshm_key_get(key: Mut<podshm_key>, mut buffer: Room, size: Len, len: Out<usize>) -> podshm_result {
    // The same value as last time, into room for it. Of a lookup's time a good part would go into what is needed where something is wrong, or
    // changed, or long: a place for the error, landing pads, saved registers. Here nothing panics, and whatever is not as usual has
    // another way.
    if key.at_once(&mut buffer, size, SHORT, &len, |key, buffer| key.0.get_unchanged(buffer)) {
        return podshm_result::PODSHM_OK;
    }
    longer(key, buffer, size, len)
}

/// Up to so many bytes are copied without a loop, in a few registers.
const SHORT: usize = 256;

/// The same, of any length.
#[inline(never)]
extern "C" fn longer(key: Mut<podshm_key>, mut buffer: Room, size: Len, len: Out<usize>) -> podshm_result {
    if key.at_once(&mut buffer, size, usize::MAX, &len, |key, buffer| key.0.get_unchanged(buffer)) {
        return podshm_result::PODSHM_OK;
    }
    in_full(key, buffer, size, len)
}

#[inline(never)]
extern "C" fn in_full(key: Mut<podshm_key>, mut buffer: Room, size: Len, len: Out<usize>) -> podshm_result {
    entry(|| {
        len.check_if_wanted()?;
        let buffer = buffer.slice(size)?;
        key.here()?.0.with("key", |key| found(key.get(buffer), &len))
    })
}
