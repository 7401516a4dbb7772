//! Native mode: an IPC namespace that is pinned by a bind mount, with limits of its own. Whoever is started in it has the kernel's
//! own System V memory, semaphores and message queues, shared with the domain and nobody else.

use crate::place::{Config, Doing, Place, PlaceError, is_mounted};
use crate::segments::Limits;
use podshm_region::sysv;
use rustix::mount::mount_bind;
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, Instant};

/// Leaves the calling thread's IPC namespace for a new one. Threads differ by it only; nothing else is unshared.
pub fn new_ipc_namespace() -> io::Result<()> {
    // Deprecated for the one hazard of UnshareFlags::FILES, which is not among these.
    #[allow(deprecated)]
    rustix::thread::unshare(UnshareFlags::NEWIPC)?;
    Ok(())
}

/// Sets the limits of the calling thread's IPC namespace.
pub fn set_limits(limits: &[(&str, String)]) -> io::Result<()> {
    limits.iter().try_for_each(|(name, value)| fs::write(format!("/proc/sys/{name}"), value))
}

/// Limits under which the kernel gives nobody anything: for members that get theirs through the preload library.
pub fn nothing() -> Vec<(&'static str, String)> {
    ["kernel/shmmni", "kernel/shmall", "kernel/msgmni", "fs/mqueue/queues_max"]
        .map(|name| (name, "0".to_owned()))
        .into_iter()
        .chain([("kernel/sem", "0 0 0 0".to_owned())])
        .collect()
}

/// Makes an IPC namespace with these limits, and mounts it over a file.
pub fn pin(limits: Limits, path: &Path) -> io::Result<()> {
    // A thread of its own: it leaves this process's namespace and ends.
    std::thread::scope(|scope| {
        let pin = || {
            new_ipc_namespace()?;
            set_limits(&[
                ("kernel/shmmax", limits.shmmax.to_string()),
                ("kernel/shmall", limits.shmall.to_string()),
                ("kernel/shmmni", limits.shmmni.to_string()),
            ])?;
            mount_bind("/proc/thread-self/ns/ipc", path)?;
            io::Result::Ok(())
        };
        scope.spawn(pin).join().unwrap_or_else(|_| Err(io::Error::other("the thread that makes it died")))
    })
}

impl Place {
    /// Makes the file over which the domain's namespace is mounted.
    pub fn make_ipc_file(&self) -> Result<(), PlaceError> {
        let path = self.path("ipc");
        if path.exists() {
            return Ok(());
        }
        File::create(&path).map(drop).doing(|| format!("making {}", path.display()))
    }

    /// Makes the domain's namespace, if it is not there.
    pub(crate) fn pin_ipc(&self, config: &Config) -> Result<(), PlaceError> {
        let path = self.path("ipc");
        if is_mounted(&path) {
            return Ok(());
        }
        self.make_ipc_file()?;
        pin(config.limits, &path).doing(|| format!("pinning an IPC namespace at {} (needs root)", path.display()))
    }

    /// Moves the calling thread into the domain's namespace.
    pub fn enter_ipc(&self) -> Result<(), PlaceError> {
        let path = self.path("ipc");
        let file = File::open(&path).doing(|| format!("opening {}", path.display()))?;
        move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::InterProcessCommunication))
            .doing(|| format!("joining the IPC namespace at {}", path.display()))
    }

    /// In a thread that enters the domain's namespace and ends.
    fn in_ipc<T: Send>(&self, work: impl FnOnce() -> io::Result<T> + Send) -> Result<T, PlaceError> {
        std::thread::scope(|scope| {
            let inside = || {
                self.enter_ipc()?;
                work().doing(|| "in the domain's IPC namespace".into())
            };
            let died =
                || Err(io::Error::other("the thread in it died")).doing(|| "in the domain's IPC namespace".into());
            scope.spawn(inside).join().unwrap_or_else(|_| died())
        })
    }

    /// The segments of a domain in native mode.
    pub fn kernel_segments(&self) -> Result<Vec<KernelSegment>, PlaceError> {
        self.in_ipc(|| Ok(parse(&fs::read_to_string("/proc/sysvipc/shm")?)))
    }

    /// Removes one, unless it is attached and `force` is not said. An attachment that is made at the same moment stays.
    pub fn remove_kernel_segment(&self, id: i32, force: bool) -> Result<(), PlaceError> {
        self.in_ipc(|| {
            let there = parse(&fs::read_to_string("/proc/sysvipc/shm")?);
            let Some(segment) = there.iter().find(|segment| segment.id == id) else {
                return Err(io::Error::other(format!("no segment {id} here; `podshm ls` shows those that are")));
            };
            if segment.attached > 0 && !force {
                let attached = segment.attached;
                let why = format!("segment {id} is attached {attached} times; end those programs, or use --force");
                return Err(io::Error::other(why));
            }
            sysv::remove(id)
        })
    }
}

/// A segment as the kernel lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelSegment {
    /// Its key.
    pub key: i32,
    /// Its id.
    pub id: i32,
    /// Mode, in octal.
    pub mode: String,
    /// Bytes.
    pub size: u64,
    /// Pid of its creator on this node, alive or not; 0 where it can't be seen from here.
    pub creator: i32,
    /// Attachments.
    pub attached: u64,
    /// Owner.
    pub uid: u32,
}

fn parse(text: &str) -> Vec<KernelSegment> {
    let segment = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [key, id, mode, size, creator, _, attached, uid, ..] = words[..] else { return None };
        Some(KernelSegment {
            key: key.parse().ok()?,
            id: id.parse().ok()?,
            mode: mode.to_owned(),
            size: size.parse().ok()?,
            creator: creator.parse().ok()?,
            attached: attached.parse().ok()?,
            uid: uid.parse().ok()?,
        })
    };
    text.lines().skip(1).filter_map(segment).collect()
}

/// A creator of a pid that it shares with a later process counts as alive as long as that one is: nothing is taken from a creator.
#[derive(Debug)]
struct Seen {
    creator: Option<u64>,
    idle_since: Option<Instant>,
}

/// What was seen of the kernel's segments so far. Pure.
#[derive(Debug, Default)]
pub struct Native(BTreeMap<i32, Seen>);

impl Native {
    /// Takes note of what is there, and when the process of a pid has started; those that have become idle, and those whose grace
    /// is over.
    pub fn look(
        &mut self,
        there: &[KernelSegment],
        started: impl Fn(i32) -> Option<u64>,
        now: Instant,
        grace: Duration,
    ) -> (Vec<KernelSegment>, Vec<KernelSegment>) {
        self.0.retain(|id, _| there.iter().any(|segment| segment.id == *id));
        let (mut idle, mut over) = (Vec::new(), Vec::new());
        for segment in there {
            let is = started(segment.creator);
            let seen = self.0.entry(segment.id).or_insert(Seen { creator: is, idle_since: None });
            let gone = segment.creator != 0 && (is.is_none() || is != seen.creator);
            if !gone || segment.attached > 0 {
                seen.idle_since = None;
                continue;
            }
            match seen.idle_since {
                None => {
                    seen.idle_since = Some(now);
                    idle.push(segment.clone());
                }
                Some(since) if now.duration_since(since) >= grace => over.push(segment.clone()),
                Some(_) => {}
            }
        }
        (idle, over)
    }

    /// Those that are idle, by a name that no POSIX object has, and for how many seconds.
    pub fn idle(&self) -> Vec<(String, u64)> {
        let age = |(id, seen): (&i32, &Seen)| Some((format!("sysv/{id}"), seen.idle_since?.elapsed().as_secs()));
        self.0.iter().filter_map(age).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_its_creator_or_an_attachment_stays() {
        let text = "       key      shmid perms                  size  cpid  lpid nattch   uid   gid  cuid  cgid      atime\n\
                    \t-5  3  1600  4096  10  11  0  7  7  7  7  0\n \t17  4   600  8192  12  0  2  0  0  0  0  0\n";
        let mut all = parse(text);
        let first = KernelSegment { key: -5, id: 3, mode: "1600".into(), size: 4096, creator: 10, attached: 0, uid: 7 };
        assert_eq!((all.len(), &all[0], all[1].attached), (2, &first, 2));
        all.push(KernelSegment { id: 5, creator: 0, ..first.clone() });
        let (mut native, start, grace) = (Native::default(), Instant::now(), Duration::from_secs(10));
        let ids = |list: Vec<KernelSegment>| list.into_iter().map(|segment| segment.id).collect::<Vec<_>>();
        let mut look = |all: &[KernelSegment], alive: &[(i32, u64)], seconds| {
            let started = |pid| alive.iter().find(|(alive, _)| *alive == pid).map(|(_, started)| *started);
            let (idle, over) = native.look(all, started, start + Duration::from_secs(seconds), grace);
            (ids(idle), ids(over))
        };
        assert_eq!(look(&all, &[(10, 1)], 0), (vec![], vec![]), "a creator, an attachment, a creator out of sight");
        assert_eq!(look(&all, &[(10, 2)], 1), (vec![3], vec![]), "another process of that pid is not its creator");
        all[1].attached = 0;
        assert_eq!(look(&all, &[], 11), (vec![4], vec![3]));
        all.remove(0);
        assert_eq!(look(&all, &[], 21), (vec![], vec![4]));
    }
}
