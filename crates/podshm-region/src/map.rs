//! Mapped regions and windows on them: where the layout's [`Load`] and [`Store`] meet real memory.

use crate::copy::copy_racy;
use crate::futex;
use crate::memory::{Memory, RegionError};
use podshm_layout::mem::{Load, Store};
use podshm_layout::sync::Ordering;
use rustix::mm::{
    Advice, MapFlags, MprotectFlags, MremapFlags, ProtFlags, madvise, mmap, mmap_anonymous, mprotect, mremap_fixed,
    munmap,
};
use std::ffi::c_void;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, fence};

/// Bytes of a huge page on x86-64 and, with 4 KiB pages, on arm64.
const HUGE: usize = 2 << 20;

#[derive(Debug)]
struct Mapping {
    start: NonNull<u8>,
    bytes: usize,
    epoch: u32,
}

// SAFETY: the mapping is plain memory that is reached by atomics, by `copy_racy`, or through a window that owns its bytes.
unsafe impl Send for Mapping {}
// SAFETY: as above; shared use goes through atomics only.
unsafe impl Sync for Mapping {}

impl Mapping {
    fn new(memory: &Memory, prot: MprotectFlags) -> Result<Self, RegionError> {
        let bytes = memory.bytes() as usize;
        let epoch = crate::fork::install();
        crate::copy::look_at_processor();
        // Without access until a forked child can't get it: another thread may fork between the calls.
        let start = if bytes < HUGE {
            // SAFETY: a fresh mapping at an address of the kernel's choice; nothing of this process lies there.
            unsafe { mmap(std::ptr::null_mut(), bytes, ProtFlags::empty(), MapFlags::SHARED, memory, 0) }
        } else {
            map_aligned(memory, bytes)
        }
        .map_err(RegionError::system("mmap", memory.bytes()))?;
        let mapping = Mapping { start: NonNull::new(start.cast()).expect("mmap never returns null"), bytes, epoch };
        // SAFETY: exactly the mapping made above. A forked child then has nothing there at all.
        unsafe { madvise(start, bytes, Advice::LinuxDontFork) }
            .map_err(RegionError::system("madvise(MADV_DONTFORK)", memory.bytes()))?;
        // SAFETY: exactly the mapping made above, which nobody has used yet.
        unsafe { mprotect(start, bytes, prot) }.map_err(RegionError::system("mprotect", memory.bytes()))?;
        Ok(mapping)
    }
}

/// A mapping without access that starts at a huge page's border, so that huge pages of the memory are mapped as such.
fn map_aligned(memory: &Memory, bytes: usize) -> rustix::io::Result<*mut c_void> {
    let room = bytes.checked_add(HUGE).ok_or(rustix::io::Errno::NOMEM)?;
    // SAFETY: a fresh mapping at an address of the kernel's choice.
    let whole = unsafe { mmap_anonymous(std::ptr::null_mut(), room, ProtFlags::empty(), MapFlags::PRIVATE) }?;
    let front = whole.align_offset(HUGE);
    // SAFETY: `front < HUGE`, so `bytes` from there on lie within the mapping made above, which nobody else knows of: what is
    // replaced and what is let go is its own.
    unsafe {
        let start = whole.add(front);
        let mapped = mmap(start, bytes, ProtFlags::empty(), MapFlags::SHARED | MapFlags::FIXED, memory, 0);
        if mapped.is_err() {
            munmap(whole, room)?;
            return mapped;
        }
        if front > 0 {
            munmap(whole, front)?;
        }
        let end = front + bytes.next_multiple_of(4096);
        if end < room {
            munmap(whole.add(end), room - end)?;
        }
        Ok(start)
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // In a forked child there is nothing at this address, or something else: leave it alone.
        if crate::fork::epoch() != self.epoch {
            return;
        }
        // SAFETY: this mapping was made by `new` and nothing borrows from it: windows hold an Arc of it.
        let _ = unsafe { munmap(self.start.as_ptr().cast(), self.bytes) };
    }
}

/// A region that this process alone may write.
#[derive(Debug)]
pub struct WriteMap {
    mapping: Arc<Mapping>,
    taken: Vec<(usize, usize)>,
}

impl WriteMap {
    /// Maps a region for writing. Only possible before it is sealed.
    pub fn map(memory: &Memory) -> Result<Self, RegionError> {
        let mapping = Mapping::new(memory, MprotectFlags::READ | MprotectFlags::WRITE)?;
        Ok(WriteMap { mapping: Arc::new(mapping), taken: Vec::new() })
    }

    /// Moves the memory into huge pages as far as there are any; says whether it is. For the broker, while nobody else has the
    /// region: whoever does it pays for all of it. Takes about a millisecond for a huge page.
    pub fn collapse(&self) -> bool {
        let whole = self.mapping.bytes & !(HUGE - 1);
        // Linux 6.1; rustix has no name for it.
        const MADV_COLLAPSE: libc::c_int = 25;
        // SAFETY: a part of exactly this mapping; its content does not change.
        whole > 0 && unsafe { libc::madvise(self.mapping.start.as_ptr().cast(), whole, MADV_COLLAPSE) } == 0
    }

    /// A window on `bytes` at `offset` that nobody else gets.
    ///
    /// # Panics
    /// If the window reaches outside the region or over one that was taken before: a geometry that was not checked.
    pub fn window(&mut self, offset: usize, bytes: usize) -> Window {
        let end = offset.checked_add(bytes).expect("window's end");
        assert!(end <= self.mapping.bytes, "window {offset}+{bytes} outside a region of {}", self.mapping.bytes);
        assert!(self.taken.iter().all(|&(from, to)| end <= from || offset >= to), "window {offset}+{bytes} is taken");
        self.taken.push((offset, end));
        Window { view: View::new(&self.mapping, offset, bytes) }
    }

    /// Lets `write` write anywhere before any window is taken.
    ///
    /// # Panics
    /// If a window was taken before.
    pub fn prepare<R>(&mut self, write: impl FnOnce(&mut Window) -> R) -> R {
        assert!(self.taken.is_empty(), "windows are taken already");
        write(&mut Window { view: View::new(&self.mapping, 0, self.mapping.bytes) })
    }

    /// Touches every page, so that it is zeroed and mapped before anybody waits for it.
    pub fn touch(&self) -> Result<(), RegionError> {
        // SAFETY: exactly this mapping; populating changes no byte.
        let done =
            unsafe { madvise(self.mapping.start.as_ptr().cast(), self.mapping.bytes, Advice::LinuxPopulateWrite) };
        done.map_err(RegionError::system("madvise(MADV_POPULATE_WRITE)", self.mapping.bytes as u64))
    }
}

/// A region that somebody else writes.
#[derive(Clone, Debug)]
pub struct ReadMap {
    view: View,
}

impl ReadMap {
    /// Checks that the region is sealed, whole and of `bytes`, and maps it read-only.
    pub fn map(memory: &Memory, bytes: u64) -> Result<Self, RegionError> {
        memory.check(bytes)?;
        Self::map_unsealed(memory, bytes)
    }

    /// Maps a region of the broker's own (which writes it for as long as it lives, so it can't be sealed against itself) after
    /// checking its size only.
    pub fn map_unsealed(memory: &Memory, bytes: u64) -> Result<Self, RegionError> {
        if memory.bytes() != bytes {
            return Err(RegionError::Refused { what: "its size", expected: bytes, found: memory.bytes() });
        }
        let mapping = Arc::new(Mapping::new(memory, MprotectFlags::READ)?);
        Ok(ReadMap { view: View::new(&mapping, 0, bytes as usize) })
    }

    /// A part of the region.
    ///
    /// # Panics
    /// If it reaches outside the region.
    pub fn part(&self, offset: usize, bytes: usize) -> ReadMap {
        let end = offset.checked_add(bytes).expect("part's end");
        assert!(end <= self.view.bytes, "part {offset}+{bytes} outside a region of {}", self.view.bytes);
        ReadMap { view: View::new(&self.view.mapping, self.view.offset() + offset, bytes) }
    }

    /// Puts another region of the same size, checked as by [`ReadMap::map`], in the place of this one, for everybody who has this
    /// mapping or a part of it: whoever loads from it sees the one or the other.
    pub fn replace(&self, memory: &Memory) -> Result<(), RegionError> {
        let old = &self.view.mapping;
        memory.check(old.bytes as u64)?;
        let new = Mapping::new(memory, MprotectFlags::READ)?;
        // SAFETY: both are whole mappings of `bytes` made by `Mapping::new`, of shared memory without access or read-only: `old` is a
        // ReadMap's, so nobody borrows from it but for single atomic loads and racy copies, which may see any bytes. The kernel takes
        // the one away and puts the other there under one lock; a load in between faults and waits for that lock.
        let moved = unsafe {
            let (from, to) = (new.start.as_ptr().cast(), old.start.as_ptr().cast());
            mremap_fixed(from, new.bytes, old.bytes, MremapFlags::MAYMOVE, to)
        };
        moved.map_err(RegionError::system("mremap", memory.bytes()))?;
        // What it was is at the other's address by now, and unmapped with that one.
        std::mem::forget(new);
        Ok(())
    }

    /// Sleeps until the 32-bit word at `offset` is no longer `expected`, somebody wakes it, or `timeout` is over.
    pub fn futex_wait(&self, offset: usize, expected: u32, timeout: std::time::Duration) {
        futex::wait(self.view.at(offset, 4).cast(), expected, timeout);
    }
}

/// Bytes of a region that this process alone writes, and only through this window.
#[derive(Debug)]
pub struct Window {
    view: View,
}

impl Window {
    /// Wakes everybody who sleeps on the 32-bit word at `offset`.
    pub fn futex_wake(&self, offset: usize) {
        futex::wake(self.view.at(offset, 4).cast());
    }
}

#[derive(Clone, Debug)]
struct View {
    start: NonNull<u8>,
    bytes: usize,
    mapping: Arc<Mapping>,
}

// SAFETY: a view is a range of a mapping that it keeps alive; see Mapping.
unsafe impl Send for View {}
// SAFETY: as above.
unsafe impl Sync for View {}

impl View {
    fn new(mapping: &Arc<Mapping>, offset: usize, bytes: usize) -> Self {
        // SAFETY: callers checked `offset + bytes <= mapping.bytes`.
        let start = unsafe { mapping.start.add(offset) };
        View { start, bytes, mapping: Arc::clone(mapping) }
    }

    fn offset(&self) -> usize {
        self.start.as_ptr() as usize - self.mapping.start.as_ptr() as usize
    }

    #[inline(always)]
    fn at(&self, offset: usize, len: usize) -> *mut u8 {
        assert!(len <= self.bytes && offset <= self.bytes - len, "access outside the window");
        // SAFETY: inside the view by the line above.
        unsafe { self.start.as_ptr().add(offset) }
    }

    #[inline(always)]
    fn word(&self, offset: usize) -> &AtomicU64 {
        assert!(offset.is_multiple_of(8), "unaligned word");
        // SAFETY: inside the view and aligned (mappings are page aligned, windows line aligned); an atomic may be shared with
        // writers in other processes, and every word access of the project is atomic. Read-only mappings are only loaded from.
        unsafe { &*self.at(offset, 8).cast::<AtomicU64>() }
    }

    /// [`Load::copy_while`], which looks at the view's ends once: a fence has the compiler read what lies in memory again, and so every check too.
    #[inline(always)]
    fn copy_while(&self, word_at: usize, expected: u64, offset: usize, dst: &mut [u8]) -> bool {
        let (start, bytes) = (self.start.as_ptr(), self.bytes);
        let inside = |at: usize, len: usize| len <= bytes && at <= bytes - len;
        if !(word_at.is_multiple_of(8) && inside(word_at, 8) && inside(offset, dst.len())) {
            return false;
        }
        // SAFETY: as in `word`: inside the view and aligned by the line above.
        let word = unsafe { &*start.add(word_at).cast::<AtomicU64>() };
        if word.load(Ordering::Acquire) != expected {
            return false;
        }
        // SAFETY: as in `copy_out`: inside the view for the length; `dst` is private memory.
        unsafe { copy_racy(start.add(offset), dst.as_mut_ptr(), dst.len()) };
        fence(Ordering::Acquire);
        word.load(Ordering::Relaxed) == expected
    }
}

macro_rules! load {
    ($type:ty) => {
        impl Load for $type {
            #[inline(always)]
            fn size(&self) -> usize {
                self.view.bytes
            }

            #[inline(always)]
            fn load(&self, offset: usize, order: Ordering) -> u64 {
                self.view.word(offset).load(order)
            }

            #[inline(always)]
            fn copy_out(&self, offset: usize, dst: &mut [u8]) {
                let src = self.view.at(offset, dst.len());
                // SAFETY: `src` is inside the mapping for the length; `dst` is private memory, so they don't overlap.
                unsafe { copy_racy(src, dst.as_mut_ptr(), dst.len()) }
            }

            #[inline(always)]
            fn copy_while(&self, word_at: usize, expected: u64, offset: usize, dst: &mut [u8]) -> bool {
                self.view.copy_while(word_at, expected, offset, dst)
            }

            #[inline(always)]
            fn prefetch(&self, offset: usize) {
                crate::copy::prefetch_read(self.view.start.as_ptr().wrapping_add(offset));
            }
        }
    };
}
load!(ReadMap);
load!(Window);

impl Store for Window {
    #[inline(always)]
    fn store(&self, offset: usize, value: u64, order: Ordering) {
        self.view.word(offset).store(value, order);
    }

    #[inline(always)]
    fn prefetch_write(&self, offset: usize) {
        crate::copy::prefetch_write(self.view.start.as_ptr().wrapping_add(offset));
    }

    #[inline(always)]
    fn copy_in(&mut self, offset: usize, src: &[u8]) {
        let dst = self.view.at(offset, src.len());
        // SAFETY: inside the window; `&mut self` and the windows' disjointness make this the only access of this process, and no
        // other process can write here. Readers elsewhere copy racily and check afterwards.
        unsafe { std::ptr::copy_nonoverlapping(src.as_ptr(), dst, src.len()) }
    }

    #[inline(always)]
    fn fill<R>(&mut self, offset: usize, len: usize, fill: impl FnOnce(&mut [u8]) -> R) -> R {
        let dst = self.view.at(offset, len);
        // SAFETY: as in copy_in; the memory is initialised (zeroed or written before) and lent for the call only.
        fill(unsafe { std::slice::from_raw_parts_mut(dst, len) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_is_held_by_its_word_and_stays_in_the_window() {
        let memory = Memory::create("test", 4096).unwrap();
        let mut window = WriteMap::map(&memory).unwrap().window(0, 4096);
        window.store(8, 7, Ordering::Relaxed);
        window.copy_in(4086, b"0123456789");
        let read = ReadMap::map_unsealed(&memory, 4096).unwrap();
        let copy = |word_at, expected, offset, len| {
            let mut bytes = vec![b'-'; len];
            read.copy_while(word_at, expected, offset, &mut bytes).then_some(bytes)
        };
        assert_eq!(copy(8, 7, 4086, 10).as_deref(), Some(&b"0123456789"[..]));
        assert_eq!(copy(8, 7, 4096, 0), Some(Vec::new()));
        // Another value, a word that is none, and what lies outside: none of them panics.
        for (word_at, expected, offset, len) in [
            (8, 6, 4086, 10),
            (12, 7, 0, 8),
            (4096, 0, 0, 8),
            (usize::MAX & !7, 0, 0, 8),
            (8, 7, 4087, 10),
            (8, 7, 4097, 0),
            (8, 7, usize::MAX, 2),
            (8, 7, 0, 4097),
        ] {
            assert_eq!(copy(word_at, expected, offset, len), None, "{word_at} {expected} {offset} {len}");
        }
    }
}
