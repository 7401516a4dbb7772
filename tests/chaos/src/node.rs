//! The node: directories, the broker's pod, and what its books say.

use crate::roles::broker::{Books, read_books};
use crate::schedule::Domain;
use anyhow::Context;
use podshm_testkit::{Pod, PodProcess, Stderr, Stdout};
use rustix::process::Signal;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long anything may take to come back: a bound on a hang, on two cores that others use too.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A program beside this one.
pub fn program(name: &str) -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe()?;
    // Tests live one directory further down.
    let found = own.ancestors().skip(1).take(2).map(|dir| dir.join(name)).find(|path| path.is_file());
    found.with_context(|| format!("{name} is not beside {}: build it with the same profile", own.display()))
}

/// As an argument.
pub fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// Directories of one run; removed at its end unless something is wrong.
#[derive(Debug)]
pub struct Place {
    root: PathBuf,
    /// Stays behind for whoever looks for the reason.
    pub keep: bool,
}

impl Place {
    /// Empty ones, with the route agent's input from `data`.
    pub fn new(data: &Path) -> anyhow::Result<Place> {
        // In memory where that can be: whoever writes to a disk waits for it now and then, for seconds.
        let shm = PathBuf::from("/dev/shm");
        let base = if shm.is_dir() { shm } else { std::env::temp_dir() };
        let root = base.join(format!("podshm-chaos-{}", std::process::id()));
        let _ = fs::remove_dir_all(&root);
        for part in ["sockets", "log", "input"] {
            fs::create_dir_all(root.join(part)).with_context(|| format!("making {}", root.join(part).display()))?;
        }
        fs::set_permissions(root.join("log"), fs::Permissions::from_mode(0o777))?;
        let place = Place { root, keep: false };
        let from = data.join("endpointslices.json");
        fs::copy(&from, place.slices())
            .with_context(|| format!("reading {}: start this from the repository, or say --data", from.display()))?;
        let mut store = route_agent::store::Store::new();
        let list = route_agent::slices::parse_list(fs::File::open(place.slices())?);
        store.replace(list, &route_agent::store::FullWeights);
        let names: Vec<String> =
            store.values().map(|(key, _)| String::from_utf8_lossy(key.as_bytes()).into_owned()).collect();
        fs::write(place.routes(), names.join("\n"))?;
        Ok(place)
    }

    /// What pods may read.
    pub fn input(&self) -> PathBuf {
        self.root.join("input")
    }

    /// The route agent's list.
    pub fn slices(&self) -> PathBuf {
        self.input().join("endpointslices.json")
    }

    /// Names of the routes in it.
    pub fn routes(&self) -> PathBuf {
        self.input().join("routes")
    }

    /// A log.
    pub fn log(&self, name: &str) -> PathBuf {
        self.root.join("log").join(name)
    }

    /// A pod's socket directory.
    pub fn sockets(&self, pod: &str) -> anyhow::Result<PathBuf> {
        let directory = self.root.join("sockets").join(pod);
        for domain in Domain::ALL {
            fs::create_dir_all(directory.join(domain.name()))?;
        }
        Ok(directory)
    }

    /// A pod in which nothing runs yet but a process that waits: others are started in it, and die.
    pub fn pod(&self, name: &str, uid: u32, limit: u64) -> anyhow::Result<Pod> {
        let (input, log) = (self.input(), self.root.join("log"));
        let pod = Pod::builder(name)
            .uid(uid)
            .memory_limit(limit)
            .socket_dir(self.sockets(name)?)
            .bind(&input, text(&input), true)
            .bind(&log, text(&log), false)
            .stdout(Stdout::Lines)
            .stderr(Stderr::File(self.log("stderr")))
            .spawn(text(&program("podshm-chaos")?), ["idle"])?;
        Ok(pod)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if !self.keep {
            let _ = fs::remove_dir_all(&self.root);
        }
    }
}

/// Memory and descriptors of the broker's process.
#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    /// Resident bytes, regions included.
    pub resident: u64,
    /// Open descriptors.
    pub descriptors: u64,
    /// The books of both domains.
    pub books: [Books; 2],
}

/// The broker, in a pod of its own.
#[derive(Debug)]
pub struct BrokerPod {
    pod: Pod,
    process: Option<PodProcess>,
    arguments: Vec<String>,
    books: PathBuf,
}

impl BrokerPod {
    /// Starts it, for so many client pods with so many processes each.
    pub fn start(place: &Place, clients: u32, processes: u32) -> anyhow::Result<BrokerPod> {
        let (sockets, log) = (place.root.join("sockets"), place.root.join("log"));
        let books = place.log("books");
        for domain in Domain::ALL {
            place.sockets(&format!("agent-{}", domain.name()))?;
        }
        for number in 0..clients {
            place.sockets(&format!("client-{number}"))?;
        }
        let arguments = ["broker".to_owned(), text(&sockets), text(&books), clients.to_string(), processes.to_string()];
        let pod = Pod::builder("broker")
            .root_in_container(true)
            .bind(&sockets, text(&sockets), false)
            .bind(&log, text(&log), false)
            .stdout(Stdout::Lines)
            .stderr(Stderr::File(place.log("stderr")))
            .spawn(text(&program("podshm-chaos")?), ["idle"])?;
        let mut broker = BrokerPod { pod, process: None, arguments: arguments.into(), books };
        broker.run()?;
        broker.await_books("the broker writes its books", |_| true)?;
        Ok(broker)
    }

    /// Starts its process, where there is none.
    pub fn run(&mut self) -> anyhow::Result<()> {
        let mut process = self.pod.exec(text(&program("podshm-chaos")?), &self.arguments)?;
        process.stdout().wait_for("ready", PATIENCE).context("the broker does not say that it is ready")?;
        self.process = Some(process);
        Ok(())
    }

    /// SIGKILL.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        if let Some(mut process) = self.process.take() {
            process.kill9()?;
            process.wait()?;
        }
        Ok(())
    }

    /// A signal to its process.
    pub fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        Ok(self.process.as_ref().map_or(Ok(()), |process| process.signal(signal))?)
    }

    /// What it wrote down last.
    pub fn books(&self) -> [Books; 2] {
        self.books_at().1
    }

    /// What it wrote down last, and when.
    pub fn books_at(&self) -> (u64, [Books; 2]) {
        read_books(&self.books).unwrap_or_default()
    }

    /// Waits until the books are as `good` says.
    pub fn await_books(&self, what: &str, good: impl Fn(&[Books; 2]) -> bool) -> anyhow::Result<()> {
        let until = Instant::now() + PATIENCE;
        loop {
            if read_books(&self.books).is_some_and(|(_, books)| good(&books)) {
                return Ok(());
            }
            anyhow::ensure!(
                Instant::now() < until,
                "{what}: not within {PATIENCE:?}, the books say {:?}",
                self.books()
            );
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Its memory and descriptors now.
    pub fn usage(&self) -> Usage {
        let pid = self.process.as_ref().map_or(0, PodProcess::pid);
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let resident =
            status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.split_whitespace().next()?.parse().ok());
        let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, |all| all.count() as u64);
        Usage { resident: resident.unwrap_or(0) * 1024, descriptors, books: self.books() }
    }

    /// Processes that the kernel has killed there for memory.
    pub fn oom_kills(&self) -> u64 {
        self.pod.oom_kills().unwrap_or(0)
    }
}

/// Keeps the kernel ready for processes that go over to another cgroup, as every process that is started in a pod does: the first one
/// after a pause waits for a grace period of the kernel's RCU, which takes seconds while both cores are busy. One that comes every few
/// milliseconds, and goes nowhere, makes it that the others don't. (What the mount option `favordynmods` does, for the whole node.)
#[derive(Debug)]
pub struct QuickMoves {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl QuickMoves {
    /// Until it is dropped; nothing where there is no cgroup v1.
    pub fn start() -> anyhow::Result<QuickMoves> {
        let stop = Arc::new(AtomicBool::new(false));
        let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let memory = own.lines().find_map(|line| line.split_once(":memory:")).map(|(_, path)| path.to_owned());
        let Some(path) = memory else { return Ok(QuickMoves { stop, thread: None }) };
        let file = format!("/sys/fs/cgroup/memory{path}/cgroup.procs");
        let stopped = Arc::clone(&stop);
        let thread = std::thread::Builder::new().name("moves".into()).spawn(move || {
            // Relaxed: nothing else is told by it.
            while !stopped.load(Ordering::Relaxed) && fs::write(&file, "0").is_ok() {
                std::thread::sleep(Duration::from_millis(3));
            }
        })?;
        Ok(QuickMoves { stop, thread: Some(thread) })
    }
}

impl Drop for QuickMoves {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
