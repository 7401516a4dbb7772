//! POSIX objects that nobody will come back to: named, aged, and after the domain's grace removed.
//!
//! ```text
//!  a thread of its own ── now and then ──► the directory, and /proc of the node ──► Books: who is idle, since when ──► unlink
//! ```
//! The kernel keeps no creator of a file. What is known: whoever made it was there when it was first seen, had its owner's uid, and
//! has the domain's /dev/shm (or asked the daemon, which remembers). While one such process lives, or anybody has the object open
//! or mapped, it stays; so an object is never taken from its creator, and may stay longer than it has to.

use crate::events::{self, Event, Reason};
use crate::peer::started;
use crate::place::{Doing, Place, PlaceError};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// A process that can't be mistaken for a later one: its pid on the node, and when it started.
pub type Named = (i32, u64);

/// What the daemon's threads tell each other.
#[derive(Clone, Debug, Default)]
pub struct Shared(Arc<Mutex<Told>>);

#[derive(Debug, Default)]
struct Told {
    /// By inode: who had the daemon make it.
    creators: BTreeMap<u64, Named>,
    /// By name: since when it is idle.
    idle: BTreeMap<String, Instant>,
}

impl Shared {
    fn told<R>(&self, with: impl FnOnce(&mut Told) -> R) -> R {
        with(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The daemon has made this object for somebody.
    pub fn made(&self, inode: u64, node_pid: i32) {
        if let Some(started) = started(node_pid) {
            self.told(|told| told.creators.insert(inode, (node_pid, started)));
        }
    }

    /// Objects without creator and user, and for how many seconds.
    pub fn idle(&self) -> Vec<(String, u64)> {
        let age = |(name, since): (&String, &Instant)| (name.clone(), since.elapsed().as_secs());
        self.told(|told| told.idle.iter().map(age).collect())
    }
}

/// An object as it lies there.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Object {
    inode: u64,
    name: String,
    uid: u32,
    size: u64,
}

/// A process as far as it matters here.
#[derive(Clone, Debug, Default)]
struct Running {
    named: Named,
    uids: BTreeSet<u32>,
    /// It has the domain's /dev/shm.
    member: bool,
    /// Inodes that it has open or mapped.
    holds: BTreeSet<u64>,
}

#[derive(Debug)]
struct Seen {
    object: Object,
    creators: BTreeSet<Named>,
    idle_since: Option<Instant>,
}

/// What was seen so far. Pure.
#[derive(Debug, Default)]
struct Books(BTreeMap<u64, Seen>);

impl Books {
    /// Takes note of what is there; those that have become idle, and those whose grace is over.
    fn look(
        &mut self,
        objects: Vec<Object>,
        running: &[Running],
        told: &BTreeMap<u64, Named>,
        now: Instant,
        grace: Duration,
    ) -> (Vec<Object>, Vec<Object>) {
        let alive: BTreeSet<Named> = running.iter().map(|process| process.named).collect();
        let held: BTreeSet<u64> = running.iter().flat_map(|process| process.holds.iter().copied()).collect();
        let there: BTreeSet<u64> = objects.iter().map(|object| object.inode).collect();
        self.0.retain(|inode, _| there.contains(inode));
        let (mut idle, mut over) = (Vec::new(), Vec::new());
        for object in objects {
            let seen = self.0.entry(object.inode).or_insert_with(|| {
                let may_have = |process: &&Running| process.member && process.uids.contains(&object.uid);
                let creators = running.iter().filter(may_have).map(|process| process.named);
                let creators = creators.chain(told.get(&object.inode).copied()).collect();
                Seen { object: object.clone(), creators, idle_since: None }
            });
            seen.object = object;
            seen.creators.retain(|creator| alive.contains(creator));
            if !seen.creators.is_empty() || held.contains(&seen.object.inode) {
                seen.idle_since = None;
                continue;
            }
            match seen.idle_since {
                None => {
                    seen.idle_since = Some(now);
                    idle.push(seen.object.clone());
                }
                Some(since) if now.duration_since(since) >= grace => over.push(seen.object.clone()),
                Some(_) => {}
            }
        }
        (idle, over)
    }
}

/// The thread; it ends when this is dropped.
#[derive(Debug)]
pub struct Reaper {
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Reaper {
    /// Watches a domain's /dev/shm.
    pub fn start(place: &Place, grace: u64, shared: Shared) -> Result<Self, PlaceError> {
        let directory = place.path("shm");
        let device = fs::metadata(&directory).doing(|| format!("looking at {}", directory.display()))?.dev();
        let (stop, stopped) = channel::<()>();
        let grace = Duration::from_secs(grace);
        let mut watch = Watch {
            place: place.clone(),
            domain: place.name(),
            directory,
            device,
            grace,
            books: Books::default(),
            shared,
        };
        // /proc is large where many processes run; nothing waits for this thread.
        let pause = (grace / 4).clamp(Duration::from_secs(1), Duration::from_secs(60));
        let run = move || {
            while stopped.recv_timeout(pause) == Err(RecvTimeoutError::Timeout) {
                watch.look();
            }
        };
        let thread = std::thread::Builder::new()
            .name("podshm-reaper".into())
            .spawn(run)
            .doing(|| "starting the reaper's thread".into())?;
        Ok(Reaper { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Reaper {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Watch {
    place: Place,
    domain: String,
    directory: PathBuf,
    device: u64,
    grace: Duration,
    books: Books,
    shared: Shared,
}

impl Watch {
    fn look(&mut self) {
        let objects = match objects(&self.directory) {
            Ok(objects) => objects,
            Err(error) => return tracing::error!(domain = self.domain, %error, "the domain's /dev/shm can't be read"),
        };
        // After the directory: whoever has made what is in it is among them, or gone.
        let running = if objects.is_empty() { Vec::new() } else { running(self.device) };
        let told = self.shared.told(|told| {
            let there: BTreeSet<u64> = objects.iter().map(|object| object.inode).collect();
            // One that is made while this looks is told of next time.
            std::mem::take(&mut told.creators)
                .into_iter()
                .partition::<BTreeMap<_, _>, _>(|(inode, _)| there.contains(inode))
        });
        let (told, later) = told;
        let (idle, over) = self.books.look(objects, &running, &told, Instant::now(), self.grace);
        for Object { name, uid, size, .. } in idle {
            let grace = self.grace.as_secs();
            tracing::info!(
                domain = self.domain,
                name,
                uid,
                size,
                grace,
                "an object has neither its creator nor a user"
            );
        }
        for object in over {
            let path = self.directory.join(&object.name);
            // Another may have got the name.
            if fs::symlink_metadata(&path).is_ok_and(|file| file.ino() == object.inode)
                && fs::remove_file(&path).is_ok()
            {
                tracing::warn!(
                    domain = self.domain,
                    name = object.name,
                    uid = object.uid,
                    size = object.size,
                    "an object was reaped"
                );
                let message = format!("/{} of uid {}, {} bytes", object.name, object.uid, object.size);
                let event = Event::now(Reason::ObjectReaped, "", message);
                if let Err(error) = events::record(&self.place, [event]) {
                    tracing::error!(%error, "an event could not be written down");
                }
            }
        }
        let idle = self.books.0.values().filter_map(|seen| Some((seen.object.name.clone(), seen.idle_since?)));
        let idle = idle.collect();
        self.shared.told(|told| {
            told.idle = idle;
            told.creators.extend(later);
        });
    }
}

fn objects(directory: &Path) -> std::io::Result<Vec<Object>> {
    let object = |entry: fs::DirEntry| {
        let data = entry.metadata().ok().filter(fs::Metadata::is_file)?;
        let name = entry.file_name().into_string().ok()?;
        Some(Object { inode: data.ino(), name, uid: data.uid(), size: data.size() })
    };
    Ok(fs::read_dir(directory)?.flatten().filter_map(object).collect())
}

/// Every process of the node.
fn running(device: u64) -> Vec<Running> {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    processes.filter_map(|process| process_of(&process.path(), device)).collect()
}

fn process_of(process: &Path, device: u64) -> Option<Running> {
    let pid: i32 = process.file_name()?.to_str()?.parse().ok()?;
    let named = (pid, started(pid)?);
    let status = fs::read_to_string(process.join("status")).ok()?;
    let uids = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    let uids = uids.split_whitespace().filter_map(|uid| uid.parse().ok()).collect();
    let member = fs::metadata(process.join("root/dev/shm")).is_ok_and(|shm| shm.dev() == device);
    let maps = fs::read_to_string(process.join("maps")).unwrap_or_default();
    let mut holds: BTreeSet<u64> = maps.lines().filter_map(|line| mapped(line, device)).collect();
    let open = fs::read_dir(process.join("fd")).into_iter().flatten().flatten();
    let on_device = |fd: fs::DirEntry| fs::metadata(fd.path()).ok().filter(|file| file.dev() == device);
    holds.extend(open.filter_map(on_device).map(|file| file.ino()));
    Some(Running { named, uids, member, holds })
}

/// Inode of a line of /proc/PID/maps, where it is on this device.
fn mapped(line: &str, device: u64) -> Option<u64> {
    let mut words = line.split_whitespace().skip(3);
    let (major, minor) = words.next()?.split_once(':')?;
    let number = |hex| u32::from_str_radix(hex, 16).ok();
    let found = rustix::fs::makedev(number(major)?, number(minor)?);
    (found == device).then_some(())?;
    words.next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRACE: Duration = Duration::from_secs(10);

    fn object(inode: u64) -> Object {
        Object { inode, name: format!("o{inode}"), uid: 7, size: 1 }
    }

    fn process(pid: i32, uid: u32, holds: &[u64]) -> Running {
        let holds = holds.iter().copied().collect();
        Running { named: (pid, 1), uids: [uid].into(), member: true, holds }
    }

    #[test]
    fn what_has_a_creator_or_a_user_stays() {
        let (mut books, told, start) = (Books::default(), BTreeMap::from([(4, (50, 1))]), Instant::now());
        let all = || (1..=4).map(object).collect::<Vec<_>>();
        let mut look = |running: &[Running], seconds: u64| {
            let (idle, over) = books.look(all(), running, &told, start + Duration::from_secs(seconds), GRACE);
            let inodes = |list: Vec<Object>| list.into_iter().map(|object| object.inode).collect::<Vec<_>>();
            (inodes(idle), inodes(over))
        };
        // 10 may have made all of them; 50 had the daemon make 4; others have another uid, or are no members.
        let other = Running { member: false, ..process(12, 7, &[2]) };
        let asked = Running { member: false, ..process(50, 7, &[]) };
        assert_eq!(
            look(&[process(10, 7, &[]), process(11, 8, &[]), other.clone(), asked.clone()], 0),
            (vec![], vec![])
        );
        // A later one of that uid has made none of them, nor has another process of the same pid.
        let again = Running { named: (10, 2), ..process(10, 7, &[]) };
        let later = [again, process(20, 7, &[1]), other, asked];
        assert_eq!(look(&later, 20), (vec![3], vec![]), "1 and 2 are in use, 4 has its creator");
        assert_eq!(look(&later, 29), (vec![], vec![]));
        assert_eq!(look(&later, 30), (vec![], vec![3]));
        assert_eq!(look(&[process(20, 7, &[3])], 31), (vec![1, 2, 4], vec![]), "3 was taken up again");
        assert_eq!(look(&[], 32), (vec![3], vec![]), "and its time starts anew");
    }

    #[test]
    fn this_process_is_seen_with_what_it_holds() {
        let path = std::env::temp_dir().join(format!("podshm-reaper-{}", std::process::id()));
        let file = fs::File::create(&path).unwrap();
        let data = file.metadata().unwrap();
        let own = Path::new("/proc").join(std::process::id().to_string());
        let seen = process_of(&own, data.dev()).unwrap();
        assert!(seen.holds.contains(&data.ino()) && seen.named.0 == std::process::id() as i32);
        drop(file);
        fs::remove_file(&path).unwrap();
        assert!(!process_of(&own, data.dev()).unwrap().holds.contains(&data.ino()));
        assert_eq!(mapped("7f00-7f01 rw-s 00000000 00:1b 4711 /dev/shm/a b", rustix::fs::makedev(0, 0x1b)), Some(4711));
        assert_eq!(mapped("7f00-7f01 rw-p 00000000 00:00 0 ", rustix::fs::makedev(0, 0x1b)), None);
    }
}
