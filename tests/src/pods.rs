//! Broker, agent and clients by hand, each in a pod of its own, and each doing one thing at a time as the test says.
//!
//! ```text
//!  test ── a line ──► podshm-test-pod (in the pod, own cgroup, own UID)
//!       ◄─ a line ──  what came of it
//! ```
//! A pod's control socket lies in its socket directory, beside the broker's.

use podshm_testkit::{Isolation, Memory, Pod};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// A directory with one socket directory for each pod, for a broker that is in a pod itself.
#[derive(Debug)]
pub struct Sockets(PathBuf);

impl Sockets {
    /// One of this name.
    pub fn new(test: &str) -> Self {
        let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../target/test-sockets");
        // Short: a socket's path may have 107 characters.
        let root = root.join(format!("{test}-{}", std::process::id()));
        std::fs::create_dir_all(&root).expect("a directory for sockets");
        let root = root.canonicalize().expect("a directory has a real path");
        open(&root);
        Sockets(root)
    }

    /// The pod's own.
    pub fn of(&self, pod: &str) -> PathBuf {
        let directory = self.0.join(pod);
        if !directory.exists() {
            std::fs::create_dir_all(&directory).expect("a pod's directory");
            open(&directory);
        }
        directory
    }

    /// All of them.
    pub fn root(&self) -> &Path {
        &self.0
    }
}

impl Drop for Sockets {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn open(path: &Path) {
    std::fs::set_permissions(path, PermissionsExt::from_mode(0o777)).expect("a mode");
}

/// A pod with `podshm-test-pod` in it.
#[derive(Debug)]
pub struct InPod {
    /// The pod.
    pub pod: Pod,
    control: BufReader<UnixStream>,
}

/// How long anything in a pod may take; under valgrind, on a busy machine, that is long.
const SOON: Duration = Duration::from_secs(180);

impl InPod {
    /// Starts `program` (the path of `podshm-test-pod`) as `uid`, 0 being root in the container, with `directory` as what it finds at
    /// /run/podshm. `None` where pods have no walls here, which is said.
    pub fn start(program: &str, name: &str, uid: u32, directory: &Path) -> Option<InPod> {
        let path = directory.join("control.sock");
        let _ = std::fs::remove_file(&path);
        let listener = UnixListener::bind(&path).expect("a control socket");
        open(&path);
        // Scripts come from the checkout, which may lie below /tmp.
        let checkout = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let checkout = checkout.canonicalize().expect("the checkout");
        let builder = Pod::builder(name).socket_dir(directory).expose(checkout);
        let builder = if uid == 0 { builder.root_in_container(true) } else { builder.uid(uid) };
        let mut pod = builder.spawn(program, [name]).expect("a pod");
        if pod.isolation() == Isolation::None {
            eprintln!("SKIPPED: no namespaces here");
            return None;
        }
        listener.set_nonblocking(true).expect("a flag");
        let until = Instant::now() + SOON;
        let stream = loop {
            match listener.accept() {
                Ok((stream, _)) => break stream,
                Err(e) => assert!(Instant::now() < until, "{name} does not come: {e}"),
            }
            // Nobody waits a minute for a program that has ended, as those do in which a sanitizer finds something at once.
            let ended = pod.try_wait().expect("a pod's end");
            assert!(ended.is_none(), "{name} ends before it comes: {ended:?}");
            std::thread::sleep(Duration::from_millis(2));
        };
        stream.set_nonblocking(false).expect("a flag");
        stream.set_read_timeout(Some(SOON)).expect("a timeout");
        Some(InPod { pod, control: BufReader::new(stream) })
    }

    /// Tells it to do something, and waits for what comes of it.
    pub fn ask(&mut self, line: &str) -> String {
        self.tell(line);
        self.hear()
    }

    /// Tells it to do something.
    pub fn tell(&mut self, line: &str) {
        writeln!(self.control.get_mut(), "{line}").expect("the pod listens");
    }

    /// What came of it.
    pub fn hear(&mut self) -> String {
        let mut answer = String::new();
        let result = self.control.read_line(&mut answer);
        assert!(result.is_ok_and(|n| n > 0), "{}: no answer", self.pod.name());
        answer.trim_end().to_owned()
    }

    /// Hangs up, which ends it, and waits for that: how it ended, `None` if it did not.
    pub fn end(mut self) -> Option<std::process::ExitStatus> {
        self.control.get_ref().shutdown(std::net::Shutdown::Both).expect("a connection");
        self.pod.wait_within(SOON).expect("a pod's end")
    }

    /// What its cgroup is charged; `None` where it has none, which is said.
    pub fn memory(&self) -> Option<Memory> {
        let memory = self.pod.memory();
        if memory.is_none() {
            eprintln!("SKIPPED: no memory cgroups here");
        }
        memory
    }

    /// Waits until the shared memory that its cgroup is charged is so many bytes above `before`, to the page. The kernel sums this up
    /// every two seconds at the latest.
    pub fn is_charged(&self, before: Memory, bytes: u64, what: &str) {
        let until = Instant::now() + SOON;
        loop {
            let now = self.pod.memory().expect("it had a cgroup");
            let more = now.shmem as i64 - before.shmem as i64;
            if more == bytes as i64 {
                return;
            }
            let name = self.pod.name();
            assert!(Instant::now() < until, "{what}: {name} is charged {more} bytes more, expected {bytes}: {now:?}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Starts to watch the most that its cgroup is charged at any moment; `None` where the kernel can't (cgroup v2).
    pub fn watch_peak(&self) -> Option<u64> {
        let file = self.pod.cgroup_dir()?.join("memory.max_usage_in_bytes");
        std::fs::write(&file, "0").ok()?;
        self.peak()
    }

    /// That most.
    pub fn peak(&self) -> Option<u64> {
        let file = self.pod.cgroup_dir()?.join("memory.max_usage_in_bytes");
        std::fs::read_to_string(file).ok()?.trim().parse().ok()
    }
}
