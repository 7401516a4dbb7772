//! Ends the run when it hangs: a spinning reader whose peer is gone would spin for ever.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

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
        loop {
            std::thread::sleep(Duration::from_secs(1));
            let watched = WATCHED.lock().unwrap_or_else(|held| held.into_inner());
            if let Some(watched) = watched.as_ref().filter(|w| Instant::now() > w.until) {
                eprintln!(
                    "podshm-bench: row {} did not end within {} s (is its peer, pid {}, alive?); giving up",
                    watched.row,
                    PATIENCE.as_secs(),
                    watched.peer.as_raw_nonzero(),
                );
                let _ = kill_process(watched.peer, Signal::KILL);
                std::process::exit(3);
            }
        }
    });
}

fn set(watched: Option<Watched>) {
    *WATCHED.lock().unwrap_or_else(|held| held.into_inner()) = watched;
}
