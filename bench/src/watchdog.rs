//! Ends the run when it hangs: a spinning reader whose peer is gone would spin for ever.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};

/// No row takes longer in one round.
const PATIENCE: Duration = Duration::from_secs(60);

struct Watched {
    row: &'static str,
    peer: Pid,
    until: Instant,
}

static WATCHED: Mutex<Option<Watched>> = Mutex::new(None);

/// Watches one row in one round; stops watching on drop.
#[derive(Debug)]
pub struct Guard(());

/// Starts watching `row`, whose other end is the process `peer`.
pub fn watch(row: &'static str, peer: Pid) -> Guard {
    let watched = Watched { row, peer, until: Instant::now() + PATIENCE };
    set(Some(watched));
    Guard(())
}

impl Drop for Guard {
    fn drop(&mut self) {
        set(None);
    }
}

/// Starts the thread that watches; call once.
pub fn start() {
    std::thread::spawn(|| {
        let mut gone_since = None;
        loop {
            std::thread::sleep(Duration::from_secs(1));
            let watched = WATCHED.lock().unwrap_or_else(|held| held.into_inner());
            let Some(watched) = watched.as_ref() else { continue };
            let (row, peer) = (watched.row, watched.peer);
            // Gone for two looks in a row: a peer that ends as it should is reaped in between.
            if has_ended(peer) {
                if gone_since.replace(peer) == Some(peer) {
                    give_up(row, &format!("its peer process, pid {}, ended", peer.as_raw_nonzero()));
                }
            } else if Instant::now() > watched.until {
                let _ = kill_process(peer, Signal::KILL);
                give_up(row, &format!("it did not end within {} s", PATIENCE.as_secs()));
            }
        }
    });
}

fn has_ended(peer: Pid) -> bool {
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    matches!(waitid(WaitId::Pid(peer), options), Ok(Some(_)))
}

fn give_up(row: &str, why: &str) -> ! {
    eprintln!("podshm-bench: row {row}: {why}; giving up");
    std::process::exit(3)
}

fn set(watched: Option<Watched>) {
    *WATCHED.lock().unwrap_or_else(|held| held.into_inner()) = watched;
}
