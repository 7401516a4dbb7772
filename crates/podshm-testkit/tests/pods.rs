//! Pods are walled off from each other and from the host, and share what they should.
//!
//! Run with the strongest isolation that works here; `PODSHM_POD_ISOLATION=user` runs the same tests in user namespaces.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use podshm_testkit::{Isolation, Pod, PodBuilder, PodError, PodProcess, Stdout};
use rustix::process::Signal;

const PROBE: &str = env!("CARGO_BIN_EXE_podshm-pod-probe");
const SOON: Duration = Duration::from_secs(20);

/// Runs a shell line in the pod and returns what it printed.
fn sh(pod: &Pod, line: &str) -> String {
    let mut process = pod.exec("/bin/sh", ["-c", line]).unwrap();
    let out: Vec<String> = process.stdout().collect();
    end_of(&mut process);
    out.join("\n")
}

fn sleeper(builder: PodBuilder) -> Pod {
    probe(builder, &["sleep"])
}

fn probe(builder: PodBuilder, args: &[&str]) -> Pod {
    let mut pod = builder.spawn(PROBE, args).unwrap();
    assert_eq!(pod.stdout().next_within(SOON).as_deref(), Some("ready"));
    pod
}

/// A bounded wait: a broken pod fails its test instead of holding up the run.
fn end_of(process: &mut PodProcess) -> ExitStatus {
    process.wait_within(SOON).unwrap().expect("the payload ends soon")
}

/// Without walls there is nothing to test; said, not silently passed.
fn walled(pod: &Pod) -> bool {
    let walled = pod.isolation() != Isolation::None;
    if !walled {
        eprintln!("SKIPPED: no namespaces here");
    }
    walled
}

/// A directory for the test with one socket directory for each pod.
struct Sockets(PathBuf);

impl Sockets {
    fn new(test: &str) -> Self {
        let root =
            std::env::var_os("PODSHM_TEST_DIR").map_or_else(|| env!("CARGO_TARGET_TMPDIR").into(), PathBuf::from);
        let root = root.join(format!("{test}-{}", std::process::id()));
        for pod in ["a", "b"] {
            let dir = root.join("sockets").join(pod);
            std::fs::create_dir_all(&dir).unwrap();
            std::fs::set_permissions(&dir, PermissionsExt::from_mode(0o777)).unwrap();
            std::fs::write(dir.join(format!("of-{pod}")), pod).unwrap();
        }
        Self(root)
    }

    fn of(&self, pod: &str) -> PathBuf {
        self.0.join("sockets").join(pod)
    }
}

impl Drop for Sockets {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[test]
fn two_pods_share_nothing() {
    let sockets = Sockets::new("walls");
    let a = sleeper(Pod::builder("pod-a").uid(20001).socket_dir(sockets.of("a")));
    let b = sleeper(Pod::builder("pod-b").uid(20002).socket_dir(sockets.of("b")));
    if !walled(&a) {
        return;
    }
    // Ids and names.
    assert_eq!(sh(&a, "id -u; id -g; id -G; hostname"), "20001\n20001\n20001\npod-a");
    assert_eq!(sh(&b, "id -u; cat /proc/sys/kernel/hostname"), "20002\npod-b");
    // Processes: init, the sleeper, the shell and ls; the other pod's and the host's are not there.
    let seen = sh(&a, "ls /proc | grep -c '^[0-9]'; tr '\\0' ' ' < /proc/2/cmdline");
    let (count, second) = seen.split_once('\n').unwrap();
    assert!(count.parse::<u32>().unwrap() <= 5, "{seen}");
    assert!(second.contains("podshm-pod-probe sleep"), "{seen}");
    // POSIX shared memory, private /tmp.
    sh(&a, "echo secret > /dev/shm/mine; echo secret > /tmp/mine");
    assert_eq!(sh(&a, "cat /dev/shm/mine /tmp/mine"), "secret\nsecret");
    assert_eq!(sh(&b, "ls /dev/shm /tmp | grep mine"), "");
    assert!(!Path::new("/dev/shm/mine").exists());
    assert_eq!(sh(&a, "df -P -k /dev/shm | tail -1 | awk '{print $2}'"), "65536");
    // System V: the segment is there in its own pod only.
    let mut maker = a.exec(PROBE, ["sysv", "4242"]).unwrap();
    assert_eq!(maker.stdout().next_within(SOON).as_deref(), Some("ready"));
    assert_eq!(sh(&a, "awk '$1 == 4242' /proc/sysvipc/shm | wc -l"), "1");
    assert_eq!(sh(&b, "awk '$1 == 4242' /proc/sysvipc/shm | wc -l"), "0");
    // Network: lo alone, and up.
    assert_eq!(sh(&a, "tail -n +3 /proc/net/dev | cut -d: -f1 | tr -d ' '"), "lo");
    assert_eq!(sh(&a, "ls /sys/class/net"), "lo");
    assert!(sh(&a, "cat /proc/net/fib_trie").contains("127.0.0.1"), "lo has its address, so it is up");
    // Socket directories: its own, and nothing of the others' by any name.
    assert_eq!(
        sh(&a, "ls /run /run/podshm; echo $PODSHM_SOCKET_DIR"),
        "/run:\npodshm\n\n/run/podshm:\nof-a\n/run/podshm"
    );
    assert_eq!(sh(&b, "ls /run/podshm; cat /run/podshm/of-b"), "of-b\nb");
    let parent = sockets.0.join("sockets");
    assert_eq!(sh(&a, &format!("ls -A {} 2>&1 | grep -v 'No such file'", parent.display())), "");
    assert_eq!(sh(&a, "echo hello > /run/podshm/new; cat /run/podshm/new"), "hello");
    assert_eq!(std::fs::read_to_string(sockets.of("a").join("new")).unwrap(), "hello\n");
    // A directory bind: a re-created socket is seen.
    std::fs::remove_file(sockets.of("a").join("new")).unwrap();
    std::fs::write(sockets.of("a").join("new"), "again").unwrap();
    assert_eq!(sh(&a, "cat /run/podshm/new"), "again");
}

#[test]
fn namespaces_differ_from_the_hosts() {
    let a = sleeper(Pod::builder("ns-a").uid(20001));
    let b = sleeper(Pod::builder("ns-b").uid(20002));
    if !walled(&a) {
        return;
    }
    for space in ["mnt", "pid", "ipc", "uts", "net"] {
        let link = |pid: u32| std::fs::read_link(format!("/proc/{pid}/ns/{space}")).unwrap();
        let all = [link(a.pid()), link(b.pid()), link(std::process::id())];
        assert!(all[0] != all[1] && all[0] != all[2] && all[1] != all[2], "{space}: {all:?}");
    }
}

#[test]
fn a_pod_has_no_privileges() {
    let pod = sleeper(Pod::builder("plain").uid(20001));
    if !walled(&pod) {
        return;
    }
    let sets = sh(&pod, "grep -E 'Cap(Inh|Prm|Eff|Bnd|Amb)|NoNewPrivs' /proc/self/status | cut -f2");
    assert_eq!(sets, "0000000000000000\n".repeat(5) + "1");
    assert_eq!(sh(&pod, "touch /etc/x 2>/dev/null || echo refused"), "refused");
    assert_eq!(sh(&pod, "mount -t tmpfs x /tmp 2>/dev/null || echo refused"), "refused");
}

#[test]
fn root_in_the_container_is_no_root_on_the_host() {
    let pod = sleeper(Pod::builder("rooted").root_in_container(true));
    if !walled(&pod) {
        return;
    }
    assert_eq!(sh(&pod, "id -u"), "0");
    assert_eq!(sh(&pod, "grep CapEff /proc/self/status | cut -f2"), "00000000a80425fb");
    assert_eq!(sh(&pod, "touch /etc/podshm-x 2>/dev/null || echo refused"), "refused");
    assert_eq!(sh(&pod, "mount -t tmpfs x /tmp 2>/dev/null || echo refused"), "refused");
    // Neither the kernel's switches, which file modes alone would leave open to it.
    let switches = "/proc/sys/vm/overcommit_memory /proc/sysrq-trigger";
    let test = format!("for f in {switches}; do [ -w $f ] && echo open $f; done; true");
    assert_eq!(sh(&pod, &test), "");
    assert_eq!(
        sh(&pod, "ls /dev | tr '\\n' ' '"),
        "fd full mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero "
    );
    // It may override file modes, which a plain pod may not.
    sh(&pod, "echo x > /tmp/f; chown 5:5 /tmp/f 2>/dev/null; chmod 0 /tmp/f");
    if pod.isolation() == Isolation::Root {
        assert_eq!(sh(&pod, "cat /tmp/f"), "x");
    }
}

#[test]
fn exec_joins_the_pod() {
    let pod = sleeper(Pod::builder("joined").uid(20003).env("COLOUR", "green"));
    let mut second = pod.exec_with_env(PROBE, ["sleep"], [("EXTRA", "1")]).unwrap();
    assert_eq!(second.stdout().next_within(SOON).as_deref(), Some("ready"));
    assert!(pod.processes().contains(&second.pid()) && pod.processes().contains(&pod.pid()));
    if walled(&pod) {
        for space in ["mnt", "pid", "ipc", "uts", "net"] {
            let link = |pid: u32| std::fs::read_link(format!("/proc/{pid}/ns/{space}")).unwrap();
            assert_eq!(link(pod.pid()), link(second.pid()), "{space}");
        }
        let owner = |pid: u32| {
            let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
            status.lines().filter(|line| line.starts_with("Uid:") || line.starts_with("Cap")).collect::<String>()
        };
        assert_eq!(owner(pod.pid()), owner(second.pid()));
    }
    let group = |pid: u32| std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    assert_eq!(group(pod.pid()), group(second.pid()));
    assert_eq!(sh(&pod, "echo $COLOUR $HOSTNAME $EXTRA $HOME"), "green joined");
    // The second goes alone, and the first can be replaced.
    drop(second);
    assert_eq!(pod.processes(), vec![pod.pid()]);
    let mut pod = pod;
    pod.kill9().unwrap();
    assert_eq!(end_of(pod.main()).signal(), Some(9));
    pod.kill9().unwrap();
    assert!(matches!(pod.signal(Signal::TERM), Err(PodError::Gone { .. })));
    let mut again = pod.exec(PROBE, ["sleep"]).unwrap();
    assert_eq!(again.stdout().next_within(SOON).as_deref(), Some("ready"));
    assert!(again.try_wait().unwrap().is_none());
}

#[test]
fn status_and_output_come_back() {
    let mut pod = Pod::builder("status").uid(20004).spawn("sh", ["-c", "echo one; echo two; exit 7"]).unwrap();
    assert_eq!(pod.wait().unwrap().code(), Some(7));
    assert_eq!(pod.wait().unwrap().code(), Some(7));
    assert_eq!(pod.stdout().by_ref().collect::<Vec<_>>(), ["one", "two"]);
    let quiet = Pod::builder("quiet").uid(20004).stdout(Stdout::Null).spawn("sh", ["-c", "echo one"]);
    assert_eq!(quiet.unwrap().stdout().next_within(SOON), None);
}

#[test]
fn stop_and_cont_reach_every_process() {
    let pod = sleeper(Pod::builder("stopped").uid(20005));
    let _second = pod.exec("/bin/sh", ["-c", "sleep 1000; true"]).unwrap();
    let start = Instant::now();
    while pod.processes().len() < 3 && start.elapsed() < SOON {
        std::thread::sleep(Duration::from_millis(5));
    }
    let states = |pod: &Pod| {
        let of = |pid: &u32| {
            std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap().rsplit_once(") ").unwrap().1[..1].to_owned()
        };
        pod.processes().iter().map(of).collect::<String>()
    };
    pod.stop().unwrap();
    wait_until("all are stopped", || states(&pod) == "TTT");
    pod.cont().unwrap();
    wait_until("all go on", || states(&pod) == "SSS");
}

#[test]
fn memory_is_charged_to_the_pod() {
    let pod = probe(Pod::builder("charged").uid(20006), &["eat", "20000000"]);
    let Some(memory) = pod.memory() else {
        return eprintln!("SKIPPED: no cgroup here");
    };
    assert!(memory.charged >= 20 << 20 && memory.charged < 30 << 20, "{memory:?}");
    assert!(memory.rss >= 19 << 20, "{memory:?}");
    let mut writer = pod.exec(PROBE, ["shm", "/dev/shm/x", "10485760"]).unwrap();
    assert_eq!(writer.stdout().next_within(SOON).as_deref(), Some("ready"));
    if walled(&pod) {
        let memory = pod.memory().unwrap();
        assert!(memory.shmem >= 9 << 20, "{memory:?}");
    }
    let idle = sleeper(Pod::builder("idle").uid(20007));
    assert!(idle.memory().unwrap().charged < 4 << 20, "{:?}", idle.memory());
}

#[test]
fn the_memory_limit_kills_in_this_pod_only() {
    let bystander = sleeper(Pod::builder("bystander").uid(20001).memory_limit(32 << 20));
    let glutton = Pod::builder("glutton").uid(20002).memory_limit(32 << 20);
    let mut glutton = glutton.spawn(PROBE, ["eat", "200000000"]).unwrap();
    if glutton.memory().is_none() {
        return eprintln!("SKIPPED: no cgroup here");
    }
    assert_eq!(end_of(glutton.main()).signal(), Some(9));
    assert_eq!(glutton.oom_kills(), Some(1));
    assert_eq!(bystander.oom_kills(), Some(0));
    assert_eq!(bystander.processes(), vec![bystander.pid()]);
    // The pod outlives its process.
    let mut again: PodProcess = glutton.exec(PROBE, ["eat", "1000000"]).unwrap();
    assert_eq!(again.stdout().next_within(SOON).as_deref(), Some("ready"));
}

#[test]
fn binds_appear_where_asked() {
    let sockets = Sockets::new("binds");
    let pod = Pod::builder("binds").uid(20001).socket_dir(sockets.of("a"));
    let pod =
        pod.bind(sockets.of("b"), "/run/extra/ro", true).bind(sockets.of("b").join("of-b"), "/tmp/deep/file", false);
    let pod = sleeper(pod.hide("/etc/hostname"));
    if !walled(&pod) {
        return;
    }
    assert_eq!(sh(&pod, "cat /run/extra/ro/of-b /tmp/deep/file"), "bb");
    assert_eq!(sh(&pod, "touch /run/extra/ro/x 2>/dev/null || echo refused"), "refused");
    assert_eq!(sh(&pod, "wc -c < /etc/hostname"), "0");
}

#[test]
fn mistakes_are_explained() {
    let failed = |result: Result<Pod, PodError>| result.expect_err("refused").to_string();
    let text = failed(Pod::builder("m").spawn("no-such-program", [""; 0]));
    assert!(text.contains("no-such-program") && text.contains("not found"), "{text}");
    let text = failed(Pod::builder("m").socket_dir("/no/such/dir").spawn("true", [""; 0]));
    assert!(text.contains("expected a directory"), "{text}");
    let text = failed(Pod::builder("m").uid(20001).spawn("/etc/passwd", [""; 0]));
    assert!(text.contains("Permission denied") && text.contains("/etc/passwd"), "{text}");
    if rustix::process::geteuid().is_root() {
        let pod = Pod::builder("m").uid(20001).isolation(Isolation::Root).bind("/etc", "/no/such/place", true);
        let text = failed(pod.spawn("true", [""; 0]));
        assert!(text.contains("/no/such/place") && text.contains("has to exist"), "{text}");
    }
}

#[test]
fn a_planted_fault_stops_the_payload_at_its_step() {
    let mut pod =
        Pod::builder("fault").uid(20008).env("PODSHM_FAULT", "probe.step:stop:2").spawn(PROBE, ["fault"]).unwrap();
    assert!(pod.stdout().wait_for("visit 2", SOON).is_some());
    let state = |pid: u32| std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap().contains(") T ");
    wait_until("it has stopped itself", || state(pod.pid()));
    assert_eq!(pod.stdout().ready(), [""; 0]);
    pod.signal(Signal::CONT).unwrap();
    assert!(pod.stdout().wait_for("survived", SOON).is_some());
    let mut killed = pod.exec_with_env(PROBE, ["fault"], [("PODSHM_FAULT", "probe.step:kill:3")]).unwrap();
    assert_eq!(end_of(&mut killed).signal(), Some(9));
    let mut left = pod.exec_with_env(PROBE, ["fault"], [("PODSHM_FAULT", "probe.step:exit")]).unwrap();
    assert_eq!(end_of(&mut left).code(), Some(podshm_testkit::fault::FAULT_EXIT_STATUS));
}

#[test]
fn plain_processes_still_make_a_pod() {
    let sockets = Sockets::new("none");
    let pod = sleeper(Pod::builder("none").isolation(Isolation::None).socket_dir(sockets.of("a")));
    assert_eq!(pod.isolation(), Isolation::None);
    assert_eq!(sh(&pod, "ls $PODSHM_SOCKET_DIR"), "of-a");
    let pid = pod.pid();
    drop(pod);
    wait_until("it has gone", || !Path::new(&format!("/proc/{pid}")).exists());
}

#[test]
fn user_namespaces_work_too() {
    let pod = Pod::builder("userns").uid(20001).isolation(Isolation::User).spawn(PROBE, ["sleep"]);
    let pod = match pod {
        Err(PodError::Unavailable { reason, .. }) => return eprintln!("SKIPPED: {reason}"),
        other => other.unwrap(),
    };
    assert_eq!(sh(&pod, "id -u; hostname; grep CapEff /proc/self/status | cut -f2"), "20001\nuserns\n0000000000000000");
    assert_eq!(
        sh(&pod, "echo x > /dev/shm/y; cat /dev/shm/y; tail -n +3 /proc/net/dev | cut -d: -f1 | tr -d ' '"),
        "x\nlo"
    );
}

fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < SOON, "waited for: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
