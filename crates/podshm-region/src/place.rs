//! Telling threads apart, at the cost of one load.
//!
//! By the address of a thread's control block, which the ABI of x86-64 has at `fs:0`. What that rests on:
//!
//! * Threads that run at once have different ones, and each keeps its own until its last instruction. Who moves between kernel threads with its own
//!   `fs` is one thread to libc, too.
//! * A thread that begins may get the block of one that has ended. libc hands it on under a lock, once the kernel has said that the former
//!   thread is gone; so all that one did comes before, and whoever goes by the place may take the two for one thread. What the former one
//!   left open stays open: it counts as entered by its successor.
//! * A handler of a signal is its thread. A child by fork is the thread that forked; what other threads had open is never closed there, and a
//!   thread that begins in the child with the place of such a one finds it so.
//!
//! Elsewhere, and in the x32 ABI, it is a thread-local number, which no other thread of the process ever has.

use std::{
    cell::Cell,
    sync::atomic::{AtomicU64, Ordering},
};

/// What no other thread that runs has, and never below 4096. See the module.
///
/// A thread-local number would do as well, but a shared library has to call the dynamic linker for each look at one.
#[inline(always)]
pub fn this_place() -> u64 {
    #[cfg(all(target_arch = "x86_64", target_os = "linux", target_pointer_width = "64", not(miri)))]
    {
        let place: u64;
        // SAFETY: reads the first word of the thread's control block, which by the ABI is there and holds its own address.
        unsafe { std::arch::asm!("mov {}, fs:0", out(reg) place, options(pure, readonly, nostack, preserves_flags)) };
        place
    }
    #[cfg(any(miri, not(all(target_arch = "x86_64", target_os = "linux", target_pointer_width = "64"))))]
    this_number()
}

/// A number from 4096 on that no other thread of the process ever has, not even one that begins after this one has ended: for what must never
/// be taken over.
#[inline(always)]
pub fn this_number() -> u64 {
    thread_local! { static NUMBER: Cell<u64> = const { Cell::new(0) } }
    NUMBER.with(|number| if number.get() != 0 { number.get() } else { numbered(number) })
}

#[cold]
fn numbered(number: &Cell<u64>) -> u64 {
    static LAST: AtomicU64 = AtomicU64::new(4095);
    number.set(LAST.fetch_add(1, Ordering::Relaxed) + 1);
    number.get()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_that_run_at_once_have_different_places() {
        for of in [this_place as fn() -> u64, this_number] {
            let here = of();
            let all_there = std::sync::Barrier::new(4);
            let mut places = std::thread::scope(|s| {
                let run = || {
                    let place = of();
                    all_there.wait();
                    assert_eq!(of(), place, "it stays");
                    place
                };
                let threads: Vec<_> = (0..4).map(|_| s.spawn(run)).collect();
                threads.into_iter().map(|t| t.join().unwrap()).collect::<Vec<_>>()
            });
            places.push(here);
            assert!(places.iter().all(|place| *place >= 4096));
            places.sort_unstable();
            places.dedup();
            assert_eq!(places.len(), 5);
        }
    }
}
