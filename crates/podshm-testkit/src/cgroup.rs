//! The memory cgroup of a pod, v1 and v2 by detection.
//!
//! A pod's group never escapes a memory limit that binds the harness: it is made below the deepest group that has one,
//! and otherwise as high in the hierarchy as it may be written. `PODSHM_CGROUP_PARENT` overrides the place.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Directory below which pod groups are made, instead of the one that is detected.
pub const PARENT_ENV: &str = "PODSHM_CGROUP_PARENT";

/// v1 writes "no limit" as the largest page-aligned i64; anything from here up is no limit.
const V1_UNLIMITED: u64 = 1 << 62;

/// Bytes charged to a pod's cgroup.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Memory {
    /// All that is charged: `memory.usage_in_bytes` (v1) or `memory.current` (v2). The kernel batches charges, so it may
    /// run a few hundred KiB ahead of what was touched.
    pub charged: u64,
    /// Anonymous memory: `rss` (v1) or `anon` (v2).
    pub rss: u64,
    /// Page cache, shared memory included: `cache` (v1) or `file` (v2).
    pub cache: u64,
    /// tmpfs, memfd and shared anonymous memory: `shmem`.
    pub shmem: u64,
}

/// One pod's group.
#[derive(Debug, Clone)]
pub(crate) struct Cgroup {
    dir: PathBuf,
    v2: bool,
}

impl Cgroup {
    /// Makes a group; `Err` says in words why there is none.
    pub(crate) fn make(name: &str, limit: Option<u64>) -> Result<Self, String> {
        let mut tried = Vec::new();
        for (parent, v2) in parents()? {
            let dir = parent.join(format!("podshm-{}-{}", file_name(name), std::process::id()));
            // A group of a dead helper that had our pid; a live one has processes and stays.
            let _ = fs::remove_dir(&dir);
            if let Err(error) = fs::create_dir(&dir) {
                tried.push(format!("{}: {error}", dir.display()));
                continue;
            }
            let group = Self { dir, v2 };
            match group.set_up(limit) {
                Ok(()) => return Ok(group),
                Err(error) => {
                    group.remove(Duration::ZERO);
                    tried.push(error);
                }
            }
        }
        Err(format!("no memory cgroup could be made ({})", tried.join("; ")))
    }

    pub(crate) fn open(dir: &Path) -> Self {
        Self { v2: dir.join("memory.current").exists(), dir: dir.to_owned() }
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Moves the calling process in; what it touched before stays charged where it was.
    pub(crate) fn join(&self) -> io::Result<()> {
        fs::write(self.dir.join("cgroup.procs"), "0")
    }

    pub(crate) fn processes(&self) -> Vec<u32> {
        let text = fs::read_to_string(self.dir.join("cgroup.procs")).unwrap_or_default();
        text.lines().filter_map(|line| line.parse().ok()).collect()
    }

    pub(crate) fn memory(&self) -> Option<Memory> {
        let charged = if self.v2 { "memory.current" } else { "memory.usage_in_bytes" };
        let charged = fs::read_to_string(self.dir.join(charged)).ok()?.trim().parse().ok()?;
        let stat = fs::read_to_string(self.dir.join("memory.stat")).ok()?;
        let (rss, cache) = if self.v2 { ("anon", "file") } else { ("rss", "cache") };
        let of = |key| field(&stat, key).unwrap_or(0);
        Some(Memory { charged, rss: of(rss), cache: of(cache), shmem: of("shmem") })
    }

    pub(crate) fn oom_kills(&self) -> Option<u64> {
        let file = if self.v2 { "memory.events" } else { "memory.oom_control" };
        field(&fs::read_to_string(self.dir.join(file)).ok()?, "oom_kill")
    }

    /// Removes the group, retrying while its last processes are going away. True when it is gone.
    pub(crate) fn remove(&self, patience: Duration) -> bool {
        let start = Instant::now();
        loop {
            match fs::remove_dir(&self.dir) {
                Ok(()) => return true,
                Err(error) if error.kind() == io::ErrorKind::NotFound => return true,
                Err(_) if start.elapsed() < patience => std::thread::sleep(Duration::from_millis(2)),
                Err(_) => return false,
            }
        }
    }

    fn set_up(&self, limit: Option<u64>) -> Result<(), String> {
        let probe = if self.v2 { "memory.max" } else { "memory.limit_in_bytes" };
        if !self.dir.join(probe).exists() {
            return Err(format!("{}: expected a memory controller, found no {probe}", self.dir.display()));
        }
        let Some(limit) = limit else { return Ok(()) };
        let put = |file: &str, value: u64, needed: bool| match fs::write(self.dir.join(file), value.to_string()) {
            Err(error) if needed => Err(format!("{}: {error}", self.dir.join(file).display())),
            _ => Ok(()),
        };
        if self.v2 {
            put("memory.max", limit, true)?;
            put("memory.swap.max", 0, false)
        } else {
            put("memory.limit_in_bytes", limit, true)?;
            // Memory plus swap: absent where swap accounting is off.
            put("memory.memsw.limit_in_bytes", limit, false)
        }
    }
}

/// Takes memory, touching it, until its pod's limit kills this process.
pub fn leak() -> ! {
    let mut all: Vec<Vec<u8>> = Vec::new();
    loop {
        all.push(vec![1; 1 << 20]);
        std::hint::black_box(&all);
    }
}

fn field(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
}

fn file_name(name: &str) -> String {
    name.chars().map(|c| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' }).take(40).collect()
}

/// Directories to try, best first.
fn parents() -> Result<Vec<(PathBuf, bool)>, String> {
    if let Some(parent) = std::env::var_os(PARENT_ENV) {
        let parent = PathBuf::from(parent);
        let v2 = parent.join("cgroup.controllers").exists();
        return Ok(vec![(parent, v2)]);
    }
    let read = |path: &str| fs::read_to_string(path).map_err(|error| format!("{path}: {error}"));
    let own = read("/proc/self/cgroup")?;
    let (mount, v2) = hierarchy(&read("/proc/self/mountinfo")?).ok_or("no memory cgroup hierarchy is mounted")?;
    let path = own_path(&own, v2).ok_or("/proc/self/cgroup names no memory group")?;
    Ok(candidates(&mount, &path, v2).into_iter().map(|dir| (dir, v2)).collect())
}

/// Mount point of the hierarchy that has the memory controller.
fn hierarchy(mountinfo: &str) -> Option<(PathBuf, bool)> {
    let mut unified = None;
    for line in mountinfo.lines() {
        let (Some((left, right)), mut words) = (line.split_once(" - "), line.split(' ')) else {
            continue;
        };
        let _ = left;
        let Some(point) = words.nth(4) else { continue };
        let mut right = right.split(' ');
        match (right.next(), right.next_back()) {
            (Some("cgroup"), Some(options)) if options.split(',').any(|option| option == "memory") => {
                return Some((point.into(), false));
            }
            (Some("cgroup2"), _) => {
                let controllers = fs::read_to_string(Path::new(point).join("cgroup.controllers")).unwrap_or_default();
                if controllers.split_whitespace().any(|name| name == "memory") {
                    unified = Some((point.into(), true));
                }
            }
            _ => {}
        }
    }
    unified
}

fn own_path(own: &str, v2: bool) -> Option<PathBuf> {
    own.lines().find_map(|line| {
        let mut words = line.splitn(3, ':');
        let (_, controllers, path) = (words.next()?, words.next()?, words.next()?);
        let hit = if v2 { controllers.is_empty() } else { controllers.split(',').any(|name| name == "memory") };
        hit.then(|| path.trim_start_matches('/').into())
    })
}

/// From the deepest limited ancestor of the harness's group (or the root) down to the harness's own group.
fn candidates(mount: &Path, own: &Path, v2: bool) -> Vec<PathBuf> {
    let mut line: Vec<PathBuf> = vec![mount.to_owned()];
    for part in own.components() {
        let next = line[line.len() - 1].join(part);
        if !next.is_dir() {
            // A cgroup namespace hides the rest of the path.
            break;
        }
        line.push(next);
    }
    let limited = |dir: &PathBuf| {
        let file = if v2 { "memory.max" } else { "memory.limit_in_bytes" };
        let text = fs::read_to_string(dir.join(file)).unwrap_or_default();
        text.trim().parse::<u64>().is_ok_and(|limit| limit < V1_UNLIMITED)
    };
    let from = line.iter().rposition(limited).unwrap_or(0);
    line.split_off(from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn v1_and_v2_are_told_apart() {
        let v1 = "30 20 0:26 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n\
                  31 20 0:27 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids\n";
        assert_eq!(hierarchy(v1), Some(("/sys/fs/cgroup/memory".into(), false)));
        assert_eq!(hierarchy("31 20 0:27 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids\n"), None);
        let own = "4:memory:/a/b\n1:name=systemd:/\n0::/c\n";
        assert_eq!(own_path(own, false), Some("a/b".into()));
        assert_eq!(own_path(own, true), Some("c".into()));
    }

    #[test]
    fn fields_are_whole_words() {
        let text = "rss_huge 5\nrss 7\noom_kill_disable 0\noom_kill 2\n";
        assert_eq!(field(text, "rss"), Some(7));
        assert_eq!(field(text, "oom_kill"), Some(2));
        assert_eq!(field(text, "absent"), None);
    }

    #[test]
    fn a_limit_that_binds_the_harness_is_kept() {
        let root = std::env::temp_dir().join(format!("podshm-cgroup-test-{}", std::process::id()));
        fs::create_dir_all(root.join("a/b")).unwrap();
        fs::write(root.join("a/memory.limit_in_bytes"), "1048576\n").unwrap();
        fs::write(root.join("a/b/memory.limit_in_bytes"), "9223372036854771712\n").unwrap();
        let found = candidates(&root, Path::new("a/b"), false);
        assert_eq!(found, vec![root.join("a"), root.join("a/b")]);
        fs::write(root.join("a/memory.limit_in_bytes"), "9223372036854771712\n").unwrap();
        assert_eq!(candidates(&root, Path::new("a/b"), false).len(), 3);
        fs::remove_dir_all(&root).unwrap();
    }
}
