//! fork: the child gets descriptions of its own, so that the kernel counts its attachments apart from its parent's.
//!
//! ```text
//!  prepare   takes the lock; the daemon opens each segment once more and locks it for the child: nattch is up by now
//!  parent    closes what is the child's; the lock goes
//!  child     maps each piece anew from its own description, protections as they were; the lock goes
//! ```
//! A child that is made behind libc's back (`clone`) shares its parent's: nattch counts the two as one, and never as none.

use super::attachments::{ATTACHMENTS, Attachment};
use super::call::{FORKING, Request, call, tell};
use super::lock::{Mask, block_signals, restore_signals};
use super::log::{Cause, explain};
use super::{libc, sys};
use crate::wire::{self, FORK_BATCH, READ_ONLY, request};
use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicBool, Ordering};

static REGISTERED: AtomicBool = AtomicBool::new(false);

struct Before(UnsafeCell<Mask>);
// SAFETY: written and read by the one thread that forks, while it holds the attachments' lock.
unsafe impl Sync for Before {}
static BEFORE: Before = Before(UnsafeCell::new(unblocked()));

const fn unblocked() -> Mask {
    // SAFETY: a Mask is one integer, of which every value is valid.
    unsafe { core::mem::transmute::<u64, Mask>(0) }
}

/// Called before the first attachment is made.
pub fn watch() {
    // Relaxed: it only has to be done once, and the handlers take the lock.
    if !REGISTERED.swap(true, Ordering::Relaxed) && !libc::at_fork(prepare, parent, child) {
        explain(Cause::Fork, &[b"this libc has no fork handlers; nattch counts a forked child and its parent as one"]);
    }
}

extern "C" fn prepare() {
    let mask = block_signals();
    ATTACHMENTS.acquire();
    // SAFETY: the lock is held from here to `parent` or `child`, and the mask belongs to its holder.
    unsafe { *BEFORE.0.get() = mask };
    // SAFETY: the lock is held, and this reference ends before the handlers that follow.
    let all = unsafe { ATTACHMENTS.held() };
    for batch in all.all().chunks_mut(FORK_BATCH) {
        let mut pairs = [[0u64; 2]; FORK_BATCH];
        for (pair, one) in pairs.iter_mut().zip(&*batch) {
            *pair = [one.id as u64, one.token];
        }
        let mut tokens = [0u64; FORK_BATCH];
        let mut fds = [-1; FORK_BATCH];
        let done = call(
            Request {
                words: request(wire::FORK, [batch.len() as u64, 0, 0], sys::pid()),
                tail: [pairs.as_ptr() as usize, batch.len() * 16],
                fd: None,
                into: [tokens.as_mut_ptr() as usize, size_of_val(&tokens)],
                fds: &mut fds,
            },
            FORKING,
        );
        let came = done.as_ref().map_or(0, |reply| reply.fds);
        let mut given = fds[..came].iter();
        for (one, token) in batch.iter_mut().zip(tokens).filter(|(_, token)| *token != 0) {
            one.child = given.next().map(|fd| (*fd, token));
        }
        if done.is_err() {
            explain(Cause::Fork, &[b"the daemon is away: nattch counts this fork's child and its parent as one"]);
        }
    }
}

extern "C" fn parent() {
    // SAFETY: `prepare` has taken the lock in this thread.
    for one in unsafe { ATTACHMENTS.held() }.all() {
        if let Some((fd, _)) = one.child.take() {
            sys::close(fd);
        }
    }
    release();
}

extern "C" fn child() {
    // SAFETY: `prepare` has taken the lock in the thread that this child is a copy of.
    let all = unsafe { ATTACHMENTS.held() };
    for batch in all.all().chunks_mut(FORK_BATCH) {
        let mut pairs = [[0u64; 2]; FORK_BATCH];
        let mut count = 0;
        for one in batch {
            if let Some(token) = take_over(one) {
                pairs[count] = [one.id as u64, token];
                count += 1;
            }
        }
        if count > 0 {
            tell(request(wire::ADOPT, [count as u64, 0, 0], sys::pid()), [pairs.as_ptr() as usize, count * 16]);
        }
    }
    release();
}

/// Maps the child's own description over its parent's; returns its token.
fn take_over(one: &mut Attachment) -> Option<u64> {
    let (fd, token) = one.child.take()?;
    let read_only = one.token & READ_ONLY != 0;
    one.pieces(|piece| {
        let length = piece.end - piece.start;
        let flags = sys::MAP_SHARED | sys::MAP_FIXED;
        let protection = if read_only { piece.protection & !sys::PROT_WRITE } else { piece.protection };
        // SAFETY: the same bytes of the same file at the same place, from the child's own description; where this fails
        // the kernel leaves what is there.
        let _ = unsafe { sys::mmap(piece.start, length, protection, flags, fd, piece.offset) };
    });
    sys::close(fd);
    one.token = token;
    Some(token)
}

fn release() {
    // SAFETY: as above.
    let mask = unsafe { *BEFORE.0.get() };
    // SAFETY: taken by `prepare`, and no reference to the attachments is left.
    unsafe { ATTACHMENTS.release() };
    restore_signals(mask);
}
