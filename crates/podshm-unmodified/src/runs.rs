//! Members that `podshm run` has started. Each run holds a lock on its member's file, which the kernel lets go of whatever becomes of the
//! run: so a member ends with the last of its runs, killed or not, whichever daemon serves the domain by then.

use crate::place::{Doing, Place, PlaceError, make_directory};
use rustix::fs::{FlockOperation, flock, fstat};
use std::fs::{self, File};
use std::io;
use std::path::Path;

const DIRECTORY: &str = "runs";

/// Held as long as the run lasts.
#[derive(Debug)]
pub struct Run(#[allow(dead_code, reason = "the lock is the open file's")] File);

impl Run {
    /// One more run of a member; before the daemon is asked for it.
    pub fn begin(place: &Place, member: &str) -> Result<Self, PlaceError> {
        make_directory(&place.path(DIRECTORY), 0o700)?;
        let path = place.path(DIRECTORY).join(member);
        begin(&path).doing(|| format!("locking {}", path.display()))
    }
}

fn begin(path: &Path) -> io::Result<Run> {
    loop {
        let file = File::options().create(true).truncate(false).write(true).open(path)?;
        flock(&file, FlockOperation::LockShared)?;
        // The daemon may have found that the runs before this one were over, and have removed the file.
        if fstat(&file)?.st_nlink > 0 {
            return Ok(Run(file));
        }
    }
}

/// Members whose runs are all over; each is named once.
pub fn ended(place: &Place) -> Vec<String> {
    let files = fs::read_dir(place.path(DIRECTORY)).into_iter().flatten().flatten();
    let over = files.filter(|file| is_over(&file.path()));
    over.map(|file| file.file_name().to_string_lossy().into_owned()).collect()
}

fn is_over(path: &Path) -> bool {
    let Ok(file) = File::open(path) else { return false };
    flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok() && fs::remove_file(path).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_is_over_with_its_last_run() {
        let path = std::env::temp_dir().join(format!("podshm-runs-{}", std::process::id()));
        let runs = [begin(&path).unwrap(), begin(&path).unwrap()];
        for run in runs {
            assert!(!is_over(&path));
            drop(run);
        }
        assert!(is_over(&path) && !path.exists());
        assert!(!is_over(&path), "once");
    }
}
