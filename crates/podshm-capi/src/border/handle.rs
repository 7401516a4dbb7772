//! What C holds by a pointer: a value with a magic word before it, which says what it is and whether it still is that.

use super::pointers::{self, Len, Out, Room};
use crate::last::Fault;
use podshm::process;
use std::sync::atomic::{AtomicU64, Ordering};

/// Something that C holds.
pub trait Kind {
    /// Its name in the header.
    const NAME: &'static str;
    /// What a live one starts with.
    const MAGIC: u64 = magic(Self::NAME);
}

/// FNV-1a: a word that stray memory doesn't hold.
const fn magic(name: &str) -> u64 {
    let (bytes, mut hash, mut at) = (name.as_bytes(), 0xcbf2_9ce4_8422_2325_u64, 0);
    while at < bytes.len() {
        hash = (hash ^ bytes[at] as u64).wrapping_mul(0x0100_0000_01b3);
        at += 1;
    }
    hash
}

/// In place of the magic word once it is freed: that word, turned over.
const fn freed(magic: u64) -> u64 {
    !magic
}

/// Every kind there is, so that a handle of another one can be named.
macro_rules! kinds {
    ($($kind:path = $name:literal),* $(,)?) => {
        $(impl Kind for $kind { const NAME: &'static str = $name; })*
        const KINDS: &[(&str, u64)] = &[$(($name, magic($name))),*];
    };
}
kinds! {
    crate::client::podshm_client = "podshm_client",
    crate::table::podshm_table = "podshm_table",
    crate::key::podshm_key = "podshm_key",
    crate::snapshot::podshm_snapshot = "podshm_snapshot",
    crate::snapshot::podshm_value = "podshm_value",
    crate::queue::podshm_queue = "podshm_queue",
    crate::queue::podshm_batch = "podshm_batch",
    crate::call::podshm_caller = "podshm_caller",
    crate::pending::podshm_pending = "podshm_pending",
    crate::builder::podshm_builder = "podshm_builder",
    crate::agent::podshm_agent = "podshm_agent",
    crate::waker::podshm_waker = "podshm_waker",
    crate::writer::podshm_writer = "podshm_writer",
    crate::answer::podshm_answer = "podshm_answer",
    crate::answer::podshm_deferred = "podshm_deferred",
}

#[repr(C)]
pub(super) struct Handle<T> {
    /// An allocator writes its own notes at the start of what was given back; the magic word is to outlive that.
    notes: [u64; 2],
    magic: AtomicU64,
    /// The process that it is of: see [`process::epoch`].
    process: u32,
    value: T,
}

impl<T: Kind> Handle<T> {
    pub(super) fn new(value: T) -> Self {
        let process = match process::epoch() {
            0 => process::install(),
            known => known,
        };
        Handle { notes: [0; 2], magic: AtomicU64::new(T::MAGIC), process, value }
    }

    /// What C holds it by.
    pub(super) fn pointer(&mut self) -> *mut T {
        (&raw mut *self).cast()
    }

    /// Whether no fork lies between whoever made it and this process. Two loads.
    #[inline(always)]
    fn is_of_this_process(&self) -> bool {
        self.process == process::epoch()
    }

    /// From now on it counts as freed. Acquire and release: whoever finds it alive comes before whoever frees it. Says whether it was alive.
    pub(super) fn end(&self) -> bool {
        self.magic.compare_exchange(T::MAGIC, freed(T::MAGIC), Ordering::AcqRel, Ordering::Acquire).is_ok()
    }
}

impl<T: Kind> Handle<T> {
    /// [`Handle::end`] for one that was never C's to free.
    pub(super) fn end_here(&mut self) {
        self.magic.store(freed(T::MAGIC), Ordering::Relaxed);
    }
}

/// Gives a value to C, which gives it back by [`Own`].
pub(super) fn give<T: Kind>(value: T) -> *mut T {
    Box::into_raw(Box::new(Handle::new(value))).cast()
}

/// The handle behind a pointer, if there is one of this kind.
#[inline(always)]
fn find<T: Kind>(pointer: *const T) -> Result<*const Handle<T>, Fault> {
    let handle = pointer.cast::<Handle<T>>();
    pointers::check(handle, size_of::<Handle<T>>(), T::NAME)?;
    // SAFETY: **alive**. Where that is broken by a handle that was freed, this reads what the allocator keeps mapped, as a rule, and
    // finds the word that `end` wrote or one of somebody else's; in a program under a sanitizer it is reported here.
    let magic = unsafe { (*handle).magic.load(Ordering::Relaxed) };
    if magic == T::MAGIC { Ok(handle) } else { Err(stranger(T::NAME, pointer.addr(), magic)) }
}

/// What a handle is that is not what was expected.
#[cold]
fn stranger(expected: &'static str, address: usize, found: u64) -> Fault {
    let named = |word: u64| KINDS.iter().find(|(_, magic)| *magic == word).map(|(name, _)| *name);
    match (named(found), named(freed(found))) {
        (Some(found), _) => Fault::Role { expected, found },
        (_, Some(found)) => Fault::Freed { found, address },
        _ => Fault::NoHandle { expected, address },
    }
}

/// A handle that a function uses.
#[repr(transparent)]
pub struct Ref<T>(*const T);

impl<T: Kind + Sync> Ref<T> {
    /// What it stands for. Sync, because C may use a handle from many threads.
    #[inline(always)]
    pub(crate) fn get(&self) -> Result<&T, Fault> {
        let handle = find(self.0)?;
        // SAFETY: **alive**, and it has its magic word; only `Own::free` ends it, which C doesn't call before we are back.
        Ok(unsafe { &(*handle).value })
    }

    /// [`Ref::get`] for what the library's own functions don't look at, and before any lock: in a forked child the handle is its parent's.
    pub(crate) fn here(&self) -> Result<&T, Fault> {
        here(find(self.0)?)
    }

    /// Whether a fork has made another process of the one that it is of.
    pub(crate) fn is_forked(&self) -> Result<bool, Fault> {
        is_forked(find(self.0)?)
    }
}

fn is_forked<T>(handle: *const Handle<T>) -> Result<bool, Fault> {
    // SAFETY: as in `Ref::get`.
    Ok(unsafe { (*handle).process } != process::epoch())
}

/// What a handle stands for in the process that it is of.
#[inline(always)]
fn here<'a, T: Kind + Sync>(handle: *const Handle<T>) -> Result<&'a T, Fault> {
    // SAFETY: as in `Ref::get`.
    let handle = unsafe { &*handle };
    if handle.is_of_this_process() { Ok(&handle.value) } else { Err(process::forked().into()) }
}

/// A handle that a function does something with: without `const` in C. To Rust it is shared all the same; its kind sees to the rest.
#[repr(transparent)]
pub struct Mut<T>(*mut T);

impl<T: Kind + Sync> Mut<T> {
    /// What it stands for.
    #[inline(always)]
    pub(crate) fn get(&self) -> Result<&T, Fault> {
        let handle = find(self.0.cast_const())?;
        // SAFETY: as in `Ref::get`.
        Ok(unsafe { &(*handle).value })
    }

    /// As [`Ref::here`].
    #[inline(always)]
    pub(crate) fn here(&self) -> Result<&T, Fault> {
        here(find(self.0.cast_const())?)
    }

    /// As [`Ref::is_forked`].
    pub(crate) fn is_forked(&self) -> Result<bool, Fault> {
        is_forked(find(self.0.cast_const())?)
    }

    /// Has `work` fill room for up to `most` bytes by what the handle stands for, and puts what it returns into `place`. Says whether that came to
    /// something: not where anything could be said against an argument, nor where `work` returns nothing; there is [`Mut::get`] for that. All
    /// arguments are looked at together: one by one they are a good part of what a short function takes.
    #[inline(always)]
    pub(crate) fn at_once(
        &self,
        room: &mut Room,
        size: Len,
        most: usize,
        place: &Out<usize>,
        work: impl FnOnce(&T, &mut [u8]) -> Option<usize>,
    ) -> bool {
        let handle = self.0.cast_const().cast::<Handle<T>>();
        const { assert!(align_of::<Handle<T>>() == align_of::<u64>() && align_of::<usize>() <= align_of::<u64>()) };
        let is_aligned = (handle.addr() | place.address()).is_multiple_of(align_of::<u64>());
        if !(is_aligned && pointers::may_all_be([handle.addr(), room.address(), place.address()], size.get())) {
            return false;
        }
        // SAFETY: **alive**, as in `find`.
        if unsafe { (*handle).magic.load(Ordering::Relaxed) } != T::MAGIC {
            return false;
        }
        // SAFETY: as in `Ref::get`.
        let value = unsafe { &(*handle).value };
        // SAFETY: nothing is against a place of `size` bytes there, by `may_all_be`.
        let done = work(value, unsafe { room.seen(size.get().min(most)) });
        match done {
            // SAFETY: aligned, and nothing is against a place of a word there, by the same.
            Some(done) => unsafe { place.set_seen(done) },
            None => return false,
        }
        true
    }
}

/// A handle that a function may take over.
#[repr(transparent)]
pub struct Own<T>(*mut T);

impl<T: Kind + Send + Sync> Own<T> {
    /// Ends it, from whatever thread. Null is nothing to do.
    pub(crate) fn free(self) -> Result<(), Fault> {
        self.free_unless(|_| Ok(()))
    }

    /// Ends it, unless something is against that. In a forked child nothing is, because nobody will ever be done with it there: what is in use
    /// stays where it is, half changed as it may be by a thread that the child has not got.
    pub(crate) fn free_unless(self, is_in_use: impl FnOnce(&T) -> Result<(), Fault>) -> Result<(), Fault> {
        if self.0.is_null() {
            return Ok(());
        }
        let handle = find(self.0.cast_const())?.cast_mut();
        // SAFETY: **alive**, and it has its magic word: a handle that `give` made.
        let found = unsafe { &*handle };
        let free = is_in_use(&found.value);
        if found.is_of_this_process() {
            free?;
        } else if free.is_err() {
            found.end();
            return Ok(());
        }
        if !found.end() {
            return Err(Fault::Freed { found: T::NAME, address: self.0.addr() });
        }
        // SAFETY: `give` made it by Box::into_raw, and of all that free it only one has ended it: this call.
        drop(unsafe { Box::from_raw(handle) });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::builder::podshm_builder;
    use crate::result::podshm_result;

    fn kind(result: Result<(), Fault>) -> podshm_result {
        result.map_or_else(|fault| fault.result(), |()| podshm_result::PODSHM_OK)
    }

    #[test]
    fn kinds_have_words_of_their_own() {
        let mut words: Vec<u64> = KINDS.iter().flat_map(|(_, magic)| [*magic, freed(*magic)]).collect();
        words.push(0);
        let count = words.len();
        words.sort_unstable();
        words.dedup();
        assert_eq!(words.len(), count);
    }

    #[test]
    fn what_is_no_handle_is_named() {
        let builder = give(podshm_builder::default());
        assert!(Ref(builder.cast_const()).get().is_ok());
        let wrong: Ref<crate::queue::podshm_queue> = Ref(builder.cast_const().cast());
        let fault = wrong.get().err().unwrap();
        assert_eq!(fault.to_string(), "this is a podshm_builder, expected a podshm_queue");
        assert_eq!(fault.result(), podshm_result::PODSHM_WRONG_ROLE);
        for (pointer, expected) in [
            (std::ptr::null(), podshm_result::PODSHM_BAD_ARGUMENT),
            (std::ptr::without_provenance(64), podshm_result::PODSHM_BAD_ARGUMENT),
            (std::ptr::without_provenance(usize::MAX & !7), podshm_result::PODSHM_BAD_ARGUMENT),
            (builder.cast_const().wrapping_byte_add(1), podshm_result::PODSHM_BAD_ARGUMENT),
        ] {
            let found: Ref<podshm_builder> = Ref(pointer);
            assert_eq!(kind(found.get().map(|_| ())), expected, "{pointer:?}");
        }
        let blank = [0u64; 64];
        let found: Ref<podshm_builder> = Ref(blank.as_ptr().cast());
        assert_eq!(kind(found.get().map(|_| ())), podshm_result::PODSHM_BAD_HANDLE);
        assert_eq!(kind(Own(builder).free()), podshm_result::PODSHM_OK);
        assert_eq!(kind(Own::<podshm_builder>(std::ptr::null_mut()).free()), podshm_result::PODSHM_OK);
    }

    #[test]
    fn an_ended_handle_is_named_as_long_as_its_memory_is_there() {
        let mut handle = Handle::new(podshm_builder::default());
        assert!(handle.end());
        assert!(!handle.end(), "twice");
        let fault = Ref(handle.pointer().cast_const()).get().err().unwrap();
        assert!(fault.to_string().contains("podshm_builder has been freed"), "{fault}");
        assert_eq!(fault.result(), podshm_result::PODSHM_BAD_HANDLE);
    }
}
