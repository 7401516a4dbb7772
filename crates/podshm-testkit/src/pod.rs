//! A pod: namespaces, a cgroup and processes in them.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::{Mutex, Once, PoisonError};
use std::time::Duration;

use rustix::process::{Signal, kill_process};

use crate::cgroup::{Cgroup, Memory};
use crate::process::{Lines, PodError, PodProcess, Ready, Stderr, Stdout, forced_isolation, program_path, raw_pid};
use crate::spec::{Bind, Isolation, Spec};
use crate::{SOCKET_DIR, SOCKET_DIR_ENV};

/// What a pod shall be; ends in [`spawn`](PodBuilder::spawn).
#[derive(Debug, Clone)]
#[must_use]
pub struct PodBuilder {
    spec: Spec,
    gid: Option<u32>,
    socket_dir: Option<PathBuf>,
    isolation: Option<Isolation>,
    stdout: Stdout,
    stderr: Stderr,
}

impl PodBuilder {
    /// UID of the pod's processes; 65534 unless said. Use a different one for each pod.
    pub fn uid(mut self, uid: u32) -> Self {
        self.spec.uid = uid;
        self
    }

    /// GID; the UID's number unless said.
    pub fn gid(mut self, gid: u32) -> Self {
        self.gid = Some(gid);
        self
    }

    /// UID 0 in the pod, with the capabilities that container runtimes leave by default (no SYS_ADMIN, no PTRACE).
    pub fn root_in_container(mut self, root: bool) -> Self {
        if root {
            self.spec.uid = 0;
            self.gid = Some(0);
        } else if self.spec.uid == 0 {
            self = self.uid(65534);
            self.gid = None;
        }
        self
    }

    /// The pod's socket directory: appears, writable as its modes say, at [`SOCKET_DIR`]; its parent on the host is
    /// hidden. The modes are the caller's business: the pod's UID needs to get in.
    pub fn socket_dir(mut self, host: impl Into<PathBuf>) -> Self {
        self.socket_dir = Some(host.into());
        self
    }

    /// Bind-mounts a file or directory. Missing directories on the way to `inside` are made on the pod's own tmpfs
    /// (`/run`, `/tmp` and the hidden paths); elsewhere they have to exist.
    pub fn bind(mut self, host: impl Into<PathBuf>, inside: impl Into<PathBuf>, read_only: bool) -> Self {
        self.spec.binds.push(Bind { host: host.into(), inside: inside.into(), read_only });
        self
    }

    /// Hides a path of the host: an empty tmpfs over a directory, `/dev/null` over a file. `/run`, `/tmp`, `/var/tmp`
    /// and the socket directory's parent are hidden anyway.
    pub fn hide(mut self, path: impl Into<PathBuf>) -> Self {
        self.spec.hide.push(path.into());
        self
    }

    /// Keeps a directory visible, read-only, that lies below a hidden one. The programs' own directories are kept anyway.
    pub fn expose(mut self, path: impl Into<PathBuf>) -> Self {
        self.spec.expose.push(path.into());
        self
    }

    /// Memory limit in bytes; exceeding it is an OOM kill inside this pod.
    pub fn memory_limit(mut self, bytes: u64) -> Self {
        self.spec.memory_limit = Some(bytes);
        self
    }

    /// Size of the pod's `/dev/shm` in bytes; 64 MiB unless said.
    pub fn shm_size(mut self, bytes: u64) -> Self {
        self.spec.shm_size = bytes;
        self
    }

    /// Sets a variable. The harness's environment is not inherited, except RUST_BACKTRACE, RUST_LOG and LLVM_PROFILE_FILE.
    pub fn env(mut self, key: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.spec.env.push((key.into(), value.into()));
        self
    }

    /// Where stdout goes, for the first process and those of [`Pod::exec`]; collected as lines unless said.
    pub fn stdout(mut self, to: Stdout) -> Self {
        self.stdout = to;
        self
    }

    /// Where stderr goes, for the first process and those of [`Pod::exec`]; inherited unless said.
    pub fn stderr(mut self, to: Stderr) -> Self {
        self.stderr = to;
        self
    }

    /// Forces an isolation instead of the strongest that works.
    pub fn isolation(mut self, isolation: Isolation) -> Self {
        self.isolation = Some(isolation);
        self
    }

    /// Builds the pod and starts `program` in it, which is found through PATH or by its path.
    pub fn spawn<A: Into<OsString>>(
        mut self,
        program: impl AsRef<OsStr>,
        args: impl IntoIterator<Item = A>,
    ) -> Result<Pod, PodError> {
        self.complete()?;
        self.spec.program = program_path(&self.spec.name, program.as_ref())?;
        self.spec.args = args.into_iter().map(Into::into).collect();
        self.expose_program();
        let forced = self.isolation.map_or_else(|| forced_isolation(&self.spec.name), |forced| Ok(Some(forced)))?;
        let order = match forced {
            Some(forced) => vec![forced],
            None => STRENGTHS.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        };
        let mut refused = None;
        for isolation in order {
            self.spec.isolation = isolation;
            self.place_socket_dir();
            match PodProcess::start("pod", &self.spec, &self.stdout, &self.stderr) {
                Ok((main, ready)) => {
                    if forced.is_none() {
                        // Don't try again, for each pod, what the kernel refused once.
                        STRENGTHS
                            .lock()
                            .unwrap_or_else(PoisonError::into_inner)
                            .retain(|one| *one as u8 >= isolation as u8);
                    }
                    return Ok(self.ready(main, ready, refused));
                }
                Err(error @ PodError::Unavailable { .. }) => refused = Some(error),
                Err(error) => return Err(error),
            }
        }
        Err(refused.expect("at least one isolation was tried"))
    }

    /// What doesn't depend on the isolation.
    fn complete(&mut self) -> Result<(), PodError> {
        let pod = self.spec.name.clone();
        let invalid = |reason: String| PodError::Invalid { pod: pod.clone(), reason };
        self.spec.gid = self.gid.unwrap_or(self.spec.uid);
        for key in ["RUST_BACKTRACE", "RUST_LOG", "LLVM_PROFILE_FILE"] {
            if let Some(value) = std::env::var_os(key) {
                self.spec.env.insert(0, (key.into(), value));
            }
        }
        self.spec.env.insert(0, ("HOSTNAME".into(), self.spec.name.clone().into()));
        let path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
        self.spec.env.insert(0, ("PATH".into(), path.into()));
        for path in ["/run", "/tmp", "/var/tmp"] {
            self.spec.hide.push(path.into());
        }
        if let Some(dir) = &mut self.socket_dir {
            let real = fs::canonicalize(&*dir).ok().filter(|dir| dir.is_dir());
            let real = real.ok_or_else(|| invalid(format!("socket_dir: expected a directory, found {dir:?}")))?;
            let parent = real.parent().filter(|parent| *parent != Path::new("/"));
            let parent = parent.ok_or_else(|| {
                invalid(format!("socket_dir: {real:?} lies in /, which can't be hidden; put it a level deeper"))
            })?;
            self.spec.hide.push(parent.to_owned());
            *dir = real;
        }
        for bind in &mut self.spec.binds {
            bind.host = fs::canonicalize(&bind.host)
                .map_err(|error| invalid(format!("bind: {:?} on the host: {error}", bind.host)))?;
            if !bind.inside.is_absolute() {
                return Err(invalid(format!("bind: expected an absolute path inside, found {:?}", bind.inside)));
            }
        }
        Ok(())
    }

    /// The program, and the harness's siblings (for `exec`), stay visible even below /tmp.
    fn expose_program(&mut self) {
        let exe = std::env::current_exe().unwrap_or_default();
        let home = exe.parent().map(|dir| if dir.ends_with("deps") { dir.parent().unwrap_or(dir) } else { dir });
        let dirs = [self.spec.program.parent(), home];
        self.spec.expose.extend(dirs.into_iter().flatten().map(Path::to_owned));
        let real = fs::canonicalize(&self.spec.program).unwrap_or_default();
        self.spec.expose.extend(real.parent().map(Path::to_owned));
    }

    fn place_socket_dir(&mut self) {
        let Some(dir) = &self.socket_dir else { return };
        self.spec.binds.retain(|bind| bind.inside != Path::new(SOCKET_DIR));
        self.spec.env.retain(|(key, _)| key != SOCKET_DIR_ENV);
        let seen = if self.spec.isolation == Isolation::None {
            dir.clone()
        } else {
            self.spec.binds.insert(0, Bind { host: dir.clone(), inside: SOCKET_DIR.into(), read_only: false });
            SOCKET_DIR.into()
        };
        self.spec.env.push((SOCKET_DIR_ENV.into(), seen.into()));
    }

    fn ready(self, main: PodProcess, ready: Ready, refused: Option<PodError>) -> Pod {
        static NO_CGROUP: Once = Once::new();
        static NO_WALLS: Once = Once::new();
        if self.spec.isolation == Isolation::None {
            NO_WALLS.call_once(|| {
                let why = refused.map_or_else(|| "asked for".to_owned(), |error| error.to_string());
                eprintln!("podshm-testkit: WARNING: NO ISOLATION: pods are plain processes of this user ({why})");
            });
        }
        if ready.cgroup.is_none() {
            let why = ready.warnings.join("; ");
            NO_CGROUP.call_once(|| eprintln!("podshm-testkit: WARNING: no memory figures or limits for pods: {why}"));
        }
        let cgroup = ready.cgroup.as_deref().map(Cgroup::open);
        Pod { main, init: ready.init, cgroup, spec: self.spec, stdout: self.stdout, stderr: self.stderr }
    }
}

/// Isolations still worth trying, strongest first.
static STRENGTHS: Mutex<Vec<Isolation>> = Mutex::new(Vec::new());

/// A running pod. Its first process may end and others be started with [`exec`](Pod::exec); the pod itself lives until it
/// is dropped, and then nothing of it is left: no process, mount or cgroup.
#[derive(Debug)]
pub struct Pod {
    main: PodProcess,
    init: Option<u32>,
    cgroup: Option<Cgroup>,
    spec: Spec,
    stdout: Stdout,
    stderr: Stderr,
}

impl Pod {
    /// A pod of this name, which is also its host name.
    pub fn builder(name: impl Into<String>) -> PodBuilder {
        let mut strengths = STRENGTHS.lock().unwrap_or_else(PoisonError::into_inner);
        if strengths.is_empty() {
            if rustix::process::geteuid().is_root() {
                strengths.push(Isolation::Root);
            }
            strengths.extend([Isolation::User, Isolation::None]);
        }
        PodBuilder {
            spec: Spec {
                name: name.into(),
                isolation: Isolation::None,
                uid: 65534,
                gid: 65534,
                binds: Vec::new(),
                hide: Vec::new(),
                expose: Vec::new(),
                memory_limit: None,
                env: Vec::new(),
                shm_size: 64 << 20,
                init: None,
                cgroup: None,
                program: PathBuf::new(),
                args: Vec::new(),
            },
            gid: None,
            socket_dir: None,
            isolation: None,
            stdout: Stdout::default(),
            stderr: Stderr::default(),
        }
    }

    /// The name it was built with.
    pub fn name(&self) -> &str {
        &self.spec.name
    }

    /// How far it is walled off.
    pub fn isolation(&self) -> Isolation {
        self.spec.isolation
    }

    /// The first process's id, as the harness counts.
    pub fn pid(&self) -> u32 {
        self.main.pid()
    }

    /// Pid of the pod's init, which holds its namespaces; none with [`Isolation::None`].
    pub fn init_pid(&self) -> Option<u32> {
        self.init
    }

    /// The pod's memory cgroup on the host.
    pub fn cgroup_dir(&self) -> Option<&Path> {
        self.cgroup.as_ref().map(Cgroup::dir)
    }

    /// The first process itself.
    pub fn main(&mut self) -> &mut PodProcess {
        &mut self.main
    }

    /// The first process's stdout.
    pub fn stdout(&mut self) -> &mut Lines {
        self.main.stdout()
    }

    /// SIGKILL to the first process; the pod's namespaces stay.
    pub fn kill9(&self) -> Result<(), PodError> {
        self.main.kill9()
    }

    /// A signal to the first process.
    pub fn signal(&self, signal: Signal) -> Result<(), PodError> {
        self.main.signal(signal)
    }

    /// SIGSTOP to every process in the pod.
    pub fn stop(&self) -> Result<(), PodError> {
        self.signal_all(Signal::STOP)
    }

    /// SIGCONT to every process in the pod.
    pub fn cont(&self) -> Result<(), PodError> {
        self.signal_all(Signal::CONT)
    }

    /// Waits for the first process to end.
    pub fn wait(&mut self) -> Result<ExitStatus, PodError> {
        self.main.wait()
    }

    /// Waits at most `timeout` for the first process; `None` if it still runs.
    pub fn wait_within(&mut self, timeout: Duration) -> Result<Option<ExitStatus>, PodError> {
        self.main.wait_within(timeout)
    }

    /// `None` if the first process still runs.
    pub fn try_wait(&mut self) -> Result<Option<ExitStatus>, PodError> {
        self.main.try_wait()
    }

    /// What is charged to the pod's cgroup; `None` where there is none (said once on stderr).
    pub fn memory(&self) -> Option<Memory> {
        self.cgroup.as_ref()?.memory()
    }

    /// Processes of this pod that the kernel killed for memory; `None` where there is no cgroup.
    pub fn oom_kills(&self) -> Option<u64> {
        self.cgroup.as_ref()?.oom_kills()
    }

    /// Host pids of the pod's processes, its init not among them.
    pub fn processes(&self) -> Vec<u32> {
        match self.init {
            Some(init) => in_pid_namespace_of(init),
            None => {
                let mut pids = self.cgroup.as_ref().map(Cgroup::processes).unwrap_or_default();
                for pid in crate::sandbox::descendants(self.main.pid()) {
                    if !pids.contains(&pid) {
                        pids.push(pid);
                    }
                }
                pids
            }
        }
    }

    /// Starts one more process in the pod: same namespaces, UID, capabilities, environment and cgroup.
    pub fn exec<A: Into<OsString>>(
        &self,
        program: impl AsRef<OsStr>,
        args: impl IntoIterator<Item = A>,
    ) -> Result<PodProcess, PodError> {
        self.exec_with_env(program, args, std::iter::empty::<(OsString, OsString)>())
    }

    /// [`exec`](Pod::exec) with further variables, such as a fault to inject.
    pub fn exec_with_env<A: Into<OsString>, K: Into<OsString>, V: Into<OsString>>(
        &self,
        program: impl AsRef<OsStr>,
        args: impl IntoIterator<Item = A>,
        env: impl IntoIterator<Item = (K, V)>,
    ) -> Result<PodProcess, PodError> {
        let mut spec = self.spec.clone();
        // Not looked at on the host: the pod may have it bound elsewhere.
        let program = program.as_ref();
        spec.program = program_path(&spec.name, program).or_else(|error| match program.as_encoded_bytes().first() {
            Some(b'/') => Ok(PathBuf::from(program)),
            _ => Err(error),
        })?;
        spec.args = args.into_iter().map(Into::into).collect();
        spec.env.extend(env.into_iter().map(|(key, value)| (key.into(), value.into())));
        // Without walls there is no init to die with; the further process follows the pod's helper.
        spec.init = self.init.or_else(|| Some(self.main.helper_pid()));
        spec.cgroup = self.cgroup_dir().map(Path::to_owned);
        PodProcess::start("enter", &spec, &self.stdout, &self.stderr).map(|(process, _)| process)
    }

    fn signal_all(&self, signal: Signal) -> Result<(), PodError> {
        // Again until nobody new turns up: a process may fork while the list is read.
        let mut done: Vec<u32> = Vec::new();
        loop {
            let fresh: Vec<u32> = self.processes().into_iter().filter(|pid| !done.contains(pid)).collect();
            if fresh.is_empty() {
                return Ok(());
            }
            for pid in fresh {
                done.push(pid);
                match raw_pid(pid).map(|pid| kill_process(pid, signal)) {
                    None | Some(Ok(()) | Err(rustix::io::Errno::SRCH)) => {}
                    Some(Err(error)) => {
                        let pod = self.spec.name.clone();
                        return Err(PodError::Io { pod, what: "signalling every process", source: error.into() });
                    }
                }
            }
        }
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        self.main.take_down();
        if let Some(cgroup) = &self.cgroup {
            // The supervisor has done it, unless somebody killed it.
            cgroup.remove(Duration::from_secs(2));
        }
    }
}

fn in_pid_namespace_of(init: u32) -> Vec<u32> {
    let space = |pid: u32| fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
    let Some(ours) = space(init) else {
        return Vec::new();
    };
    let Ok(all) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    let pids = all.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|pid| *pid != init && space(*pid).as_ref() == Some(&ours)).collect()
}
