//! Whose turn it is to serve a domain: one daemon at a time, by a lock that the kernel lets go of whatever becomes of its holder.

use crate::place::{Doing, Place, PlaceError};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use std::fs::File;
use std::io::{Read, Seek, Write};
use std::path::Path;
use std::time::{Duration, Instant};

/// How long a daemon waits for its predecessor, which answers whoever has called before it ends.
const HAND_OVER: Duration = Duration::from_secs(10);

/// Held as long as a daemon works on the domain.
#[derive(Debug)]
pub struct Turn(#[allow(dead_code, reason = "the lock is the open file's")] File);

impl Turn {
    /// Waits for the daemon before this one, if there is one; one that does not end is named.
    pub fn take(place: &Place) -> Result<Self, PlaceError> {
        let path = place.path("daemon.lock");
        take(&path, HAND_OVER).doing(|| format!("taking {}", path.display()))?.map_err(|holder| PlaceError::Served {
            name: place.name(),
            holder,
            waited: HAND_OVER.as_secs(),
        })
    }
}

/// Pid of the daemon that serves a domain, if one does.
pub fn holder(place: &Place) -> std::io::Result<Option<String>> {
    Ok(take(&place.path("daemon.lock"), Duration::ZERO)?.err())
}

/// The lock, or who has it.
fn take(path: &Path, patience: Duration) -> std::io::Result<Result<Turn, String>> {
    let mut file = File::options().create(true).truncate(false).read(true).write(true).open(path)?;
    let start = Instant::now();
    loop {
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => break,
            Err(Errno::INTR) => {}
            Err(Errno::WOULDBLOCK) if start.elapsed() < patience => std::thread::sleep(Duration::from_millis(5)),
            Err(Errno::WOULDBLOCK) => {
                let mut holder = String::new();
                file.read_to_string(&mut holder)?;
                return Ok(Err(holder.trim().to_owned()));
            }
            Err(error) => return Err(error.into()),
        }
    }
    file.set_len(0)?;
    file.rewind()?;
    writeln!(file, "{}", std::process::id())?;
    Ok(Ok(Turn(file)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_at_a_time_and_whoever_waits_learns_who_has_it() {
        let path = std::env::temp_dir().join(format!("podshm-turn-{}", std::process::id()));
        let short = Duration::from_millis(20);
        let first = take(&path, short).unwrap().unwrap();
        assert_eq!(take(&path, short).unwrap().unwrap_err(), std::process::id().to_string());
        let waiting = std::thread::spawn({
            let path = path.clone();
            move || take(&path, Duration::from_secs(60)).unwrap().is_ok()
        });
        drop(first);
        assert!(waiting.join().unwrap(), "it was waited for");
        std::fs::remove_file(&path).unwrap();
    }
}
