//! What is left on a node when podshm leaves the cluster: file systems of domains, what a daemon had written down, empty directories.
//!
//! A daemon that ends leaves all of it, for the next one. Only whoever uninstalls podshm knows that there will be none.

use crate::DRIVER;
use anyhow::{Context, ensure};
use rustix::fs::{FlockOperation, flock};
use rustix::mount::{UnmountFlags, unmount};
use std::fs::{self, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

/// What `podshmd sweep` takes.
#[derive(clap::Args, Clone, Debug)]
pub struct Options {
    /// Where podshmd's --root is seen here, through a mount with propagation Bidirectional of the directory that it lies in.
    #[arg(long, default_value = "/run/podshm")]
    root: PathBuf,
    /// Where the kubelet's --root-dir is seen here.
    #[arg(long, default_value = "/var/lib/kubelet")]
    kubelet_dir: PathBuf,
}

/// Takes it all away, unless a daemon runs or a pod has a volume; done before is done.
pub fn run(options: &Options) -> anyhow::Result<()> {
    let Options { root, kubelet_dir } = options;
    let lock = match OpenOptions::new().write(true).open(root.join("lock")) {
        Ok(lock) => Some(lock),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(error).context(format!("opening {}", root.join("lock").display())),
    };
    let is_free = lock.as_ref().is_none_or(|lock| flock(lock, FlockOperation::NonBlockingLockExclusive).is_ok());
    ensure!(is_free, "a podshmd runs on {}; expected none: delete its DaemonSet first", root.display());
    let volumes = entries(&root.join("volumes"))?;
    ensure!(
        volumes == 0,
        "{volumes} volumes of pods are in {}; expected none: remove the pods first, while podshmd is there",
        root.display()
    );
    // What was mounted last lies on what was mounted before.
    for mount in mounted_below(root)?.into_iter().rev() {
        unmount(&mount, UnmountFlags::NOFOLLOW).with_context(|| format!("unmounting {}", mount.display()))?;
    }
    remove(root)?;
    for directory in ["plugins", "plugins_registry"] {
        remove(&kubelet_dir.join(directory).join(DRIVER))?;
    }
    tracing::info!(root = %root.display(), "nothing of podshm is left here");
    Ok(())
}

fn entries(directory: &Path) -> anyhow::Result<usize> {
    match fs::read_dir(directory) {
        Ok(entries) => Ok(entries.count()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
        Err(error) => Err(error).context(format!("reading {}", directory.display())),
    }
}

/// Where something is mounted below a directory, in the order in which it was mounted.
fn mounted_below(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    let at = mounts.lines().filter_map(|line| line.split(' ').nth(4));
    let at = at.map(|path| PathBuf::from(path.replace("\\040", " ")));
    Ok(at.filter(|path| path != directory && path.starts_with(directory)).collect())
}

/// Goes through no symbolic link.
fn remove(directory: &Path) -> anyhow::Result<()> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).context(format!("removing {}", directory.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(name: &str) -> Options {
        let node = std::env::temp_dir().join(format!("podshm-sweep-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&node);
        let (root, kubelet_dir) = (node.join("run/podshm"), node.join("kubelet"));
        for directory in ["volumes", ".broker", "domains/routing/shm"] {
            fs::create_dir_all(root.join(directory)).expect("a directory");
        }
        fs::write(root.join("lock"), "").expect("a file");
        for directory in ["plugins/podshm.dev", "plugins/other.example", "plugins_registry/podshm.dev"] {
            fs::create_dir_all(kubelet_dir.join(directory)).expect("a directory");
        }
        Options { root, kubelet_dir }
    }

    #[test]
    fn what_is_ours_goes_and_what_is_others_stays() {
        let options = options("all");
        run(&options).expect("nothing is in the way");
        assert!(!options.root.exists() && options.root.parent().is_some_and(Path::exists));
        assert!(!options.kubelet_dir.join("plugins/podshm.dev").exists());
        assert!(!options.kubelet_dir.join("plugins_registry/podshm.dev").exists());
        assert!(options.kubelet_dir.join("plugins/other.example").exists());
        run(&options).expect("done before is done");
    }

    #[test]
    fn nothing_goes_while_a_pod_has_a_volume_or_a_daemon_runs() {
        let options = options("busy");
        let volume = options.root.join("volumes/0123");
        fs::create_dir(&volume).expect("a directory");
        let error = run(&options).expect_err("a pod has it").to_string();
        assert!(error.starts_with("1 volumes of pods are in"), "{error}");
        fs::remove_dir(&volume).expect("it is empty");
        let lock = OpenOptions::new().write(true).open(options.root.join("lock")).expect("a file");
        flock(&lock, FlockOperation::NonBlockingLockExclusive).expect("nobody has it");
        let error = run(&options).expect_err("somebody has it").to_string();
        assert!(error.starts_with("a podshmd runs on"), "{error}");
        assert!(options.root.join(".broker").exists());
        drop(lock);
        run(&options).expect("nothing is in the way");
    }
}
