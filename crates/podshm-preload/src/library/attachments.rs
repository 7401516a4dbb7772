//! What this process has attached: where, which segment, and the token of its lock.

use super::lock::Lock;
use super::maps::{self, BATCH, Piece};
use super::sys::{self, FileId};
use core::ffi::c_int;

/// One attachment.
#[derive(Clone, Copy, Debug)]
pub struct Attachment {
    /// Where it was attached.
    pub address: usize,
    /// How long it was then, a whole number of pages.
    pub length: usize,
    /// The segment.
    pub id: i32,
    /// What the daemon calls this attachment; whoever knows it has the segment attached.
    pub token: u64,
    /// The segment's file.
    pub file: FileId,
    /// While a fork is under way: the child's own description of the file and its token.
    pub child: Option<(c_int, u64)>,
}

impl Attachment {
    /// Whether a mapped piece is part of it, still where it was attached.
    pub fn owns(&self, piece: &Piece) -> bool {
        piece.file == self.file
            && (self.address..self.address + self.length).contains(&piece.start)
            && (piece.start - self.address) as u64 == piece.offset
    }

    /// Calls `each` with every piece of it that is still mapped.
    pub fn pieces(&self, mut each: impl FnMut(&Piece)) {
        let mut found = [Piece::default(); BATCH];
        let mut from = self.address;
        loop {
            let Some(count) = maps::find(from, &mut found, |piece| self.owns(piece)) else {
                // No /proc: it is taken to be as it was attached.
                let whole = Piece { start: self.address, end: self.address + self.length, ..Piece::default() };
                let protection = match self.token & crate::wire::READ_ONLY {
                    0 => sys::PROT_READ | sys::PROT_WRITE,
                    _ => sys::PROT_READ,
                };
                return each(&Piece { protection, ..whole });
            };
            found[..count].iter().for_each(&mut each);
            if count < BATCH {
                return;
            }
            from = found[count - 1].end;
        }
    }
}

/// All of them, in memory of their own.
#[derive(Debug)]
pub struct Attachments {
    at: *mut Attachment,
    length: usize,
    capacity: usize,
}

// SAFETY: the array belongs to this struct alone, which lives behind a lock.
unsafe impl Send for Attachments {}

/// This process's.
pub static ATTACHMENTS: Lock<Attachments> =
    Lock::new(Attachments { at: core::ptr::null_mut(), length: 0, capacity: 0 });

impl Attachments {
    /// As a slice.
    pub fn all(&mut self) -> &mut [Attachment] {
        if self.length == 0 {
            return &mut [];
        }
        // SAFETY: the first `length` are initialised, and the array is borrowed with self.
        unsafe { core::slice::from_raw_parts_mut(self.at, self.length) }
    }

    /// Makes room for one more.
    pub fn reserve(&mut self) -> Result<(), c_int> {
        if self.length < self.capacity {
            return Ok(());
        }
        let bytes = (self.capacity * size_of::<Attachment>() * 2).max(4096);
        let (prot, flags) = (sys::PROT_READ | sys::PROT_WRITE, sys::MAP_PRIVATE | sys::MAP_ANONYMOUS);
        // SAFETY: new memory, wherever the kernel likes.
        let fresh = unsafe { sys::mmap(0, bytes, prot, flags, -1, 0) }? as *mut Attachment;
        let (old, old_bytes) = (self.at, (self.capacity * size_of::<Attachment>()).next_multiple_of(4096));
        if self.length > 0 {
            // SAFETY: `length` are initialised in the old array, the new one is larger, and they don't overlap.
            unsafe { core::ptr::copy_nonoverlapping(old, fresh, self.length) };
        }
        (self.at, self.capacity) = (fresh, bytes / size_of::<Attachment>());
        if old_bytes > 0 {
            // SAFETY: the old array was mapped by this function, and nothing refers to it any more.
            let _ = unsafe { sys::munmap(old as usize, old_bytes) };
        }
        Ok(())
    }

    /// Adds one, for which there is room. Those that its range covers have been unmapped before without `shmdt`, or been
    /// replaced: they are none any more.
    pub fn add(&mut self, new: Attachment) {
        let range = new.address..new.address + new.length;
        let mut index = 0;
        while index < self.length {
            let old = self.all()[index];
            if range.start <= old.address && old.address + old.length <= range.end {
                self.remove(index);
            } else {
                index += 1;
            }
        }
        debug_assert!(self.length < self.capacity);
        // SAFETY: `reserve` has made room past the last one.
        unsafe { self.at.add(self.length).write(new) };
        self.length += 1;
    }

    /// Takes one out.
    pub fn remove(&mut self, index: usize) -> Attachment {
        let last = self.length - 1;
        let all = self.all();
        all.swap(index, last);
        let gone = all[last];
        self.length = last;
        gone
    }

    /// Is there any?
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(address: usize, length: usize) -> Attachment {
        Attachment { address, length, id: 1, token: 0, file: FileId::default(), child: None }
    }

    #[test]
    fn the_array_grows_and_what_is_covered_goes() {
        let mut all = Attachments { at: core::ptr::null_mut(), length: 0, capacity: 0 };
        for index in 1..=1000 {
            all.reserve().unwrap();
            all.add(at(index * 0x10000, 0x1000));
        }
        assert_eq!(all.all().len(), 1000);
        assert!((1..=1000).all(|index| all.all().iter().any(|one| one.address == index * 0x10000)));
        all.reserve().unwrap();
        all.add(at(0x10000, 0x20001));
        assert_eq!(all.all().len(), 999, "two are covered, the one after them is not");
        let gone = all.remove(0);
        assert!(all.all().iter().all(|one| one.address != gone.address));
    }
}
