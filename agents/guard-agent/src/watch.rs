//! Follows the directory. What is good in it comes into use as a whole; what is not leaves everything as it was, and is said.
//!
//! inotify says when to look; a look every second finds what inotify does not tell (a directory that was replaced, a network file system).
//! What counts is whether the files' content is another, so nobody is fooled by times. Files that are being written are waited for: 50 ms
//! without a change.

use std::os::fd::{AsFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};

use crate::bundle::Bundle;
use crate::health::{Counts, Health};
use crate::policies::{Policies, PolicyError};

const LOOK: Duration = Duration::from_secs(1);
const QUIET: Duration = Duration::from_millis(50);
/// Who never stops writing is read all the same.
const MOST_QUIET: Duration = Duration::from_secs(2);

/// What decides now, and how the agent is. Shared by who serves and who watches.
#[derive(Debug)]
pub struct Shared {
    policies: ArcSwap<Policies>,
    health: Mutex<Health>,
    /// What was decided.
    pub counts: Counts,
}

impl Shared {
    /// What decides now.
    pub fn policies(&self) -> Arc<Policies> {
        self.policies.load_full()
    }

    /// How the agent is.
    pub fn health(&self) -> Health {
        self.locked().clone()
    }

    fn locked(&self) -> MutexGuard<'_, Health> {
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A directory that is followed until this is dropped.
#[derive(Debug)]
pub struct Watch {
    shared: Arc<Shared>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

struct Follower {
    shared: Arc<Shared>,
    directory: PathBuf,
    copy: Option<PathBuf>,
    /// The directory's content when it was last looked at, good or bad; or why it could not be read.
    seen: Result<u64, String>,
    parse: Parse,
}

type Parse = fn(&Bundle) -> Result<Policies, PolicyError>;

impl Watch {
    /// Reads `directory` and follows it. Where it can't be used, what is in `copy` is (the last good one, which is written there);
    /// where that can't either, says why the directory can't.
    pub fn start(directory: PathBuf, copy: Option<PathBuf>) -> Result<Self, String> {
        Self::start_with(directory, copy, Policies::parse)
    }

    fn start_with(directory: PathBuf, copy: Option<PathBuf>, parse: Parse) -> Result<Self, String> {
        let read = read(&directory);
        let seen = read.as_ref().map(Bundle::fingerprint).map_err(Clone::clone);
        let parsed = read.and_then(|bundle| Ok((parsed(parse, &bundle)?, bundle)));
        let (policies, problem) = match parsed {
            Ok((policies, bundle)) => {
                keep(copy.as_deref(), &bundle);
                (policies, None)
            }
            Err(problem) => (last_good(copy.as_deref(), &problem)?, Some(problem)),
        };
        warn(&policies);
        let health = Health {
            state: if problem.is_some() { "stale" } else { "ok" }.into(),
            policies: hexadecimal(&policies),
            count: policies.count(),
            rejected: problem.is_some().into(),
            problem,
            ..Health::default()
        };
        let (counts, health, policies) = (Counts::default(), Mutex::new(health), ArcSwap::from_pointee(policies));
        let shared = Arc::new(Shared { policies, health, counts });
        let stop = Arc::new(AtomicBool::new(false));
        let follower = Follower { shared: Arc::clone(&shared), directory, copy, seen, parse };
        let stopped = Arc::clone(&stop);
        let thread = std::thread::Builder::new().name("guard-watch".into()).spawn(move || {
            let _end = End(Arc::clone(&follower.shared));
            follower.run(&stopped);
        });
        let thread = thread.map_err(|e| format!("a thread that watches the policies: {e}"))?;
        Ok(Self { shared, stop, thread: Some(thread) })
    }

    /// What it keeps up to date.
    pub fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Says that nobody follows the directory any more, however that came.
struct End(Arc<Shared>);

impl Drop for End {
    fn drop(&mut self) {
        let problem = "the directory of the policies is not followed any more; start this agent anew".to_owned();
        if std::thread::panicking() {
            tracing::error!("{problem}");
        }
        let mut health = self.0.locked();
        (health.state, health.problem) = ("stale".into(), Some(problem));
    }
}

impl Follower {
    fn run(mut self, stop: &AtomicBool) {
        let mut events = None;
        while !stop.load(Ordering::Relaxed) {
            // Anew each second: the directory may be another by now, or there only now. A watch of the same one stays one watch.
            if let Err(error) = self.watch(&mut events) {
                tracing::debug!(%error, "no inotify; looking every second");
            }
            self.look();
            let until = Instant::now() + LOOK;
            while Instant::now() < until && !stop.load(Ordering::Relaxed) {
                if wait(events.as_ref(), Duration::from_millis(100)) {
                    let begun = Instant::now();
                    while wait(events.as_ref(), QUIET) && begun.elapsed() < MOST_QUIET {}
                    break;
                }
            }
        }
    }

    fn watch(&self, events: &mut Option<OwnedFd>) -> rustix::io::Result<()> {
        if events.is_none() {
            *events = Some(inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?);
        }
        let Some(events) = events else { return Ok(()) };
        let changes = WatchFlags::CLOSE_WRITE
            | WatchFlags::CREATE
            | WatchFlags::DELETE
            | WatchFlags::MODIFY
            | WatchFlags::MOVED_FROM
            | WatchFlags::MOVED_TO;
        inotify::add_watch(events, &self.directory, changes).map(drop)
    }

    fn look(&mut self) {
        let read = read(&self.directory);
        let seen = read.as_ref().map(Bundle::fingerprint).map_err(Clone::clone);
        if seen == self.seen {
            return;
        }
        let first = self.seen.is_ok() || seen.is_ok();
        self.seen = seen;
        match read.and_then(|bundle| Ok((parsed(self.parse, &bundle)?, bundle))) {
            Ok((policies, bundle)) => self.take(policies, &bundle),
            // That a directory can't be read for yet another reason is no news.
            Err(problem) => self.refuse(problem, first),
        }
    }

    fn take(&self, policies: Policies, bundle: &Bundle) {
        warn(&policies);
        keep(self.copy.as_deref(), bundle);
        let fingerprint = hexadecimal(&policies);
        tracing::info!(policies = fingerprint, count = policies.count(), "policies are in use");
        let mut health = self.shared.locked();
        health.reloads += u64::from(health.policies != fingerprint);
        (health.state, health.problem) = ("ok".into(), None);
        (health.policies, health.count) = (fingerprint, policies.count());
        self.shared.policies.store(Arc::new(policies));
    }

    fn refuse(&self, problem: String, first: bool) {
        let mut health = self.shared.locked();
        tracing::error!(in_use = health.policies, "{problem}; the last good policies stay in use");
        health.rejected += u64::from(first);
        (health.state, health.problem) = ("stale".into(), Some(problem));
    }
}

fn read(directory: &std::path::Path) -> Result<Bundle, String> {
    Bundle::read(directory).map_err(|e| e.to_string())
}

/// A file that breaks Cedar is as bad as one that Cedar refuses.
fn parsed(parse: Parse, bundle: &Bundle) -> Result<Policies, String> {
    match catch_unwind(AssertUnwindSafe(|| parse(bundle))) {
        Ok(policies) => policies.map_err(|e| e.to_string()),
        Err(_) => Err("reading the policies broke off; look for something unusual in what was changed last".into()),
    }
}

fn last_good(copy: Option<&std::path::Path>, problem: &str) -> Result<Policies, String> {
    let Some(copy) = copy else { return Err(problem.to_owned()) };
    let bundle = Bundle::read_copy(copy).map_err(|e| format!("{problem}; and {e}"))?;
    let policies = Policies::parse(&bundle).map_err(|e| format!("{problem}; and the last good ones: {e}"))?;
    tracing::error!(
        in_use = hexadecimal(&policies),
        "{problem}; the last good policies, of a former start, are in use"
    );
    Ok(policies)
}

fn keep(copy: Option<&std::path::Path>, bundle: &Bundle) {
    if let Some(path) = copy
        && let Err(error) = bundle.write_copy(path)
    {
        tracing::error!(%error, path = %path.display(), "the last good policies can't be written down");
    }
}

fn warn(policies: &Policies) {
    for warning in policies.warnings() {
        tracing::warn!("{warning}");
    }
}

fn hexadecimal(policies: &Policies) -> String {
    format!("{:016x}", policies.fingerprint())
}

/// Whether something changed within this time. Takes all that inotify has to say.
fn wait(events: Option<&OwnedFd>, time: Duration) -> bool {
    let Some(events) = events else {
        std::thread::sleep(time);
        return false;
    };
    let time = Timespec { tv_sec: 0, tv_nsec: i64::from(time.subsec_nanos()) };
    if poll(&mut [PollFd::from_borrowed_fd(events.as_fd(), PollFlags::IN)], Some(&time)).unwrap_or(0) == 0 {
        return false;
    }
    let mut buffer = [0u8; 4096];
    while rustix::io::read(events, &mut buffer).is_ok_and(|read| read > 0) {}
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Cedar, as it would be with a fault in it.
    fn fragile(bundle: &Bundle) -> Result<Policies, PolicyError> {
        assert!(!bundle.files.values().any(|text| text.contains("breaks Cedar")), "planted");
        Policies::parse(bundle)
    }

    fn place(name: &str, text: &str) -> PathBuf {
        let directory = std::env::temp_dir().join(format!("guard-watch-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        std::fs::write(directory.join("a.cedar"), text).unwrap();
        directory
    }

    fn await_health(watch: &Watch, what: impl Fn(&Health) -> bool) -> Health {
        let until = Instant::now() + Duration::from_secs(20);
        loop {
            let health = watch.shared().health();
            if what(&health) {
                return health;
            }
            assert!(Instant::now() < until, "it did not happen: {health:?}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    const ALL: &str = "permit(principal, action, resource);";

    #[test]
    fn policies_that_break_the_parser_are_refused_and_the_next_ones_come_into_use() {
        let directory = place("breaks", ALL);
        let watch = Watch::start_with(directory.clone(), None, fragile).unwrap();
        let first = watch.shared().health();
        assert_eq!((first.state.as_str(), first.count), ("ok", 1));
        std::fs::write(directory.join("a.cedar"), "// breaks Cedar").unwrap();
        let stale = await_health(&watch, |health| health.state == "stale");
        assert!(stale.problem.as_deref().is_some_and(|problem| problem.contains("broke off")), "{stale:?}");
        assert_eq!((stale.policies, stale.rejected), (first.policies, 1));
        std::fs::write(directory.join("a.cedar"), format!("{ALL}\n{ALL}")).unwrap();
        let next = await_health(&watch, |health| health.state == "ok");
        assert_eq!((next.count, next.problem), (2, None));
        drop(watch);
        std::fs::write(directory.join("a.cedar"), "// breaks Cedar").unwrap();
        let refused = Watch::start_with(directory.clone(), None, fragile).unwrap_err();
        assert!(refused.contains("broke off"), "{refused}");
        std::fs::remove_dir_all(directory).unwrap();
    }

    #[test]
    fn a_thread_that_dies_is_told() {
        let directory = place("dies", ALL);
        let watch = Watch::start(directory.clone(), None).unwrap();
        let shared = Arc::clone(watch.shared());
        let dies = std::thread::spawn(move || {
            let _end = End(shared);
            panic!("planted");
        });
        assert!(dies.join().is_err());
        let health = watch.shared().health();
        assert_eq!(health.state, "stale");
        assert!(health.problem.is_some_and(|problem| problem.contains("not followed any more")));
        std::fs::remove_dir_all(directory).unwrap();
    }
}
