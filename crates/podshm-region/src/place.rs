//! Telling threads apart, at the cost of one load.

#[cfg(any(test, miri, not(target_arch = "x86_64")))]
use std::{
    cell::Cell,
    sync::atomic::{AtomicU64, Ordering},
};

/// Where this thread's own things are: other than that of every thread that runs, and never below 4096. A thread that begins may get what
/// one that has ended left: it is that one's successor, and comes after all that it did, because libc hands the block on under a lock.
///
/// A thread-local number would do as well, but a shared library has to call the dynamic linker for each look at one.
#[inline(always)]
pub fn this_place() -> u64 {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    {
        let place: u64;
        // SAFETY: reads the first word of the thread's control block, which by the ABI is there and holds its own address.
        unsafe { std::arch::asm!("mov {}, fs:0", out(reg) place, options(pure, readonly, nostack, preserves_flags)) };
        place
    }
    #[cfg(not(all(target_arch = "x86_64", not(miri))))]
    this_number()
}

/// A number from 4096 on that no other thread of the process ever has.
#[inline(always)]
#[cfg(any(test, miri, not(target_arch = "x86_64")))]
fn this_number() -> u64 {
    thread_local! { static NUMBER: Cell<u64> = const { Cell::new(0) } }
    NUMBER.with(|number| if number.get() != 0 { number.get() } else { numbered(number) })
}

#[cold]
#[cfg(any(test, miri, not(target_arch = "x86_64")))]
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
