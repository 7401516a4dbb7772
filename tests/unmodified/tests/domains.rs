//! Domains as they are set up and served: options, modes, daemons that follow each other, events.
#![forbid(unsafe_code)]

use podshm_unmodified_tests::cli::{Machine, Talk, podshm, said, until};
use podshm_unmodified_tests::programs::{Build, compile};
use std::io::{BufRead, BufReader, Lines};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};

#[test]
fn dev_shm_is_as_it_was_set_up() {
    let mut machine = Machine::new("options");
    machine.serve("closed", &["--shm-mib", "1", "--shm-inodes", "3"]);
    machine.serve("open", &["--shm-exec"]);
    let line = "grep ' /dev/shm ' /proc/mounts; cp /bin/true /dev/shm/true && /dev/shm/true && echo executed; \
                touch /dev/shm/a /dev/shm/b && echo two; touch /dev/shm/c || echo full";
    let of = |domain: &str| said(machine.member(domain, &[], "/bin/sh".as_ref()).args(["-c", line]));
    let (closed, open) = (of("closed"), of("open"));
    // The machine's own are below the domain's.
    let flags = |said: &str| said.lines().rfind(|line| line.contains(" /dev/shm ")).unwrap().to_owned();
    let (flags, exec) = (flags(&closed), flags(&open));
    for flag in ["nosuid", "nodev", "noexec", "size=1024k", "nr_inodes=4"] {
        assert!(flags.contains(flag), "{flag}: {closed}");
    }
    assert!(closed.contains("two\n") && closed.contains("full\n") && !closed.contains("executed"), "{closed}");
    assert!(exec.contains("nosuid,nodev") && !exec.contains("noexec") && open.contains("executed\n"), "{open}");
}

#[test]
fn an_option_that_a_domain_does_not_have_is_refused_or_taken_up() {
    let mut machine = Machine::new("differ");
    machine.serve("d", &["--shmall-mib", "8", "--reap-after", "600"]);
    let run = |options: &[&str]| said(machine.member("d", options, "/bin/echo".as_ref()).arg("ran"));
    assert_eq!(run(&[]), "ran\n", "what is not said is as it is");
    assert_eq!(run(&["--shmall-mib", "8", "--mode", "preload", "--reap-after", "600"]), "ran\n");
    for (options, found) in [
        (["--shmall-mib", "16"], "shmall 2048, not 4096"),
        (["--shmmax-mib", "4"], "shmmax 8388608, not 4194304"),
        (["--shmmni", "7"], "shmmni 4096, not 7"),
        (["--shm-mib", "1"], "/dev/shm of bytes 268435456, not 1048576"),
        (["--shm-inodes", "7"], "/dev/shm of files 4096, not 7"),
        (["--mode", "native"], "mode preload, not native"),
    ] {
        let refused = run(&options);
        assert!(refused.contains(found) && refused.contains("podshm rm --domain d"), "{options:?}: {refused}");
        let mut daemon = machine.command("domain");
        let daemon = said(daemon.args(["--domain", "d"]).args(options));
        assert!(daemon.contains(found), "{options:?}: {daemon}");
    }
    assert!(run(&["--shm-exec"]).contains("executable /dev/shm false, not true"));
    for options in [["--reap-after", "1"], ["--shm-alert-percent", "50"]] {
        assert!(run(&options).contains("that is its daemon's"), "{options:?}: {}", run(&options));
    }
    // The next daemon takes up what is a daemon's, and keeps what is not said.
    machine.kill9("d");
    machine.serve("d", &["--reap-after", "1"]);
    let sysv = compile("sysv", Build::Dynamic);
    assert_eq!(said(machine.member("d", &[], &sysv).args(["write", "8", "x"])), "written\n");
    until("it is reaped", || !machine.ls("d").contains("key 0x00000008"));
    assert!(machine.ls("d").contains("shmall 2048"), "{}", machine.ls("d"));
}

/// Where the kernel lets nobody make an IPC namespace, as far as the daemon can tell.
#[test]
fn auto_falls_back_to_preload_says_so_and_remembers() {
    let mut machine = Machine::new("auto");
    let profile = machine.path("profile.json");
    let rule = r#"{"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_AARCH64"], "syscalls": [
        {"names": ["unshare"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1,
         "args": [{"index": 0, "value": 134217728, "valueTwo": 134217728, "op": "SCMP_CMP_MASKED_EQ"}]}]}"#;
    std::fs::write(&profile, rule).unwrap();
    let confine = Path::new(env!("CARGO_MANIFEST_DIR")).join("confine.py");
    let mut confined = Command::new("/usr/bin/python3");
    confined.arg(confine).arg(&profile).arg(podshm()).args(["domain", "--domain", "d", "--root"]).arg(machine.path(""));
    machine.serve_by(confined, "d");
    assert!(machine.ls("d").contains("domain d mode preload"), "{}", machine.ls("d"));
    let why = "native mode can't be had here";
    assert!(machine.log("d").contains(why), "{}", machine.log("d"));
    let events = machine.events("d");
    assert!(
        events.contains("Warning  ModeFellBack  domain d") && events.contains("Operation not permitted"),
        "{events}"
    );
    // It stays so for those who could have native mode.
    let sysv = compile("sysv", Build::Dynamic);
    assert_eq!(said(machine.member("d", &["--mode", "auto"], &sysv).args(["write", "8", "x"])), "written\n");
    assert!(machine.ls("d").contains("mode preload") && machine.ls("d").contains("key 0x00000008"));
    // And without such an obstacle it is native.
    assert_eq!(said(machine.member("n", &["--mode", "auto"], &sysv).args(["write", "8", "x"])), "written\n");
    assert!(machine.ls("n").contains("domain n mode native"), "{}", machine.ls("n"));
}

#[test]
fn a_second_daemon_does_not_serve_and_says_who_does() {
    let mut machine = Machine::new("second");
    machine.serve("d", &[]);
    let second = said(machine.command("domain").args(["--domain", "d"]));
    let pid = machine.pid("d");
    assert!(second.contains(&format!("served by another daemon, pid {pid}")) && !second.contains("ready"), "{second}");
    let sysv = compile("sysv", Build::Dynamic);
    assert_eq!(said(machine.member("d", &[], &sysv).args(["write", "8", "x"])), "written\n");
}

/// `podshm broker --unmodified`, replaced by another one that is started on the same root.
#[test]
fn a_broker_that_serves_unmodified_programs_is_upgraded_and_no_call_fails() {
    let machine = Machine::new("broker");
    let start = |options: &[&str]| {
        let mut command = Command::new(podshm());
        command.args(["broker", "--unmodified", "--mode", "preload", "--domain", "d", "--root"]).arg(machine.path(""));
        Serving::start(command.args(options))
    };
    let mut broker = start(&[]);
    let done = machine.path("done");
    let calls = "$| = 1; defined shmget(1, 4096, 0x200 | 0666) or die $!; print \"up\\n\"; $a = 0; \
                 while (!-e $ARGV[0]) { defined shmget(1, 0, 0) or die 'errno ' . ($! + 0); $a++ } print $a > 0";
    let mut caller = Talk::start(machine.member("d", &[], Path::new("/usr/bin/perl")).args(["-e", calls]).arg(&done));
    assert_eq!(caller.line(), "up");
    for _ in 0..3 {
        let next = start(&[]);
        broker.has_ended();
        broker = next;
    }
    // One that could not serve the domain leaves the one that does alone.
    let mut other = Command::new(podshm());
    other.args(["broker", "--unmodified", "--mode", "native", "--domain", "d", "--root"]).arg(machine.path(""));
    assert!(said(&mut other).contains("mode preload, not native"));
    std::fs::write(&done, "").unwrap();
    assert_eq!(caller.end(), "1", "a call has failed");
    broker.end();
}

#[test]
fn a_member_ends_with_its_last_run_killed_or_not() {
    let mut machine = Machine::new("runs");
    machine.serve("d", &[]);
    let sysv = compile("sysv", Build::Dynamic);
    let hold = || {
        let mut talk = Talk::start(machine.member("d", &["--member", "m"], &sysv).args(["hold", "1"]));
        assert_eq!(talk.line(), "holding");
        talk
    };
    let members = |machine: &Machine, which: &str| machine.ls("d").contains(&format!("members: {which}\n"));
    let (first, mut second) = (hold(), hold());
    machine.upgrade("d");
    first.end();
    assert!(members(&machine, "m"), "{}", machine.ls("d"));
    assert_eq!(second.ask(), "1", "its socket is there");
    second.kill9();
    until("nobody runs it", || members(&machine, ""));
    assert!(!machine.path("domains/d/members/m").exists() && !machine.path("domains/d/runs/m").exists());
}

/// A broker, until it is dropped.
struct Serving {
    child: Child,
    /// Kept open: it says more later.
    _stdout: Lines<BufReader<ChildStdout>>,
}

impl Serving {
    fn start(command: &mut Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        for what in ["for unmodified programs", "at"] {
            let line = lines.next().unwrap().unwrap();
            assert!(line.starts_with("ready") && line.contains(what), "{line}");
        }
        Serving { child, _stdout: lines }
    }

    fn has_ended(mut self) {
        assert!(self.child.wait().unwrap().success());
    }

    fn end(mut self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        assert!(self.child.wait().unwrap().success());
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.child.kill().and_then(|()| self.child.wait());
    }
}
