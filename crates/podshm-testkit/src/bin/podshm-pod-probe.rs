//! What the tests of `podshm-testkit` run inside pods, and one harness to be killed.
//!
//! Lines on stdout say `ready` and then what was found; it lives until it is killed where that matters.

#![deny(unsafe_code)]

use std::io::Write;
use std::time::Duration;

use podshm_testkit::Pod;
use podshm_testkit::fault::Faults;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    match words[..] {
        ["sleep"] => say("ready"),
        ["eat", bytes] => eat(bytes.parse().expect("a number of bytes")),
        ["shm", path, bytes] => {
            std::fs::write(path, vec![7; bytes.parse().expect("a number of bytes")]).expect("the file is writable");
            say("ready");
        }
        ["sysv", key] => sysv(key.parse().expect("a key")),
        ["fault"] => {
            let faults = Faults::from_env().expect("PODSHM_FAULT can be read");
            for visit in 1..=3 {
                say(&format!("visit {visit}"));
                faults.visit("probe.step");
            }
            say("survived");
        }
        ["harness"] => harness(),
        _ => panic!("expected sleep, eat BYTES, shm PATH BYTES, sysv KEY, fault or harness, found {words:?}"),
    }
    loop {
        std::thread::sleep(Duration::from_secs(3600));
    }
}

fn say(line: &str) {
    let mut out = std::io::stdout();
    writeln!(out, "{line}").and_then(|()| out.flush()).expect("stdout is open");
}

/// Touches memory a MiB at a time.
fn eat(bytes: usize) {
    let mut eaten = Vec::new();
    while eaten.len() << 20 < bytes {
        eaten.push(vec![eaten.len() as u8 | 1; 1 << 20]);
    }
    say("ready");
    std::thread::sleep(Duration::from_secs(3600));
    drop(eaten);
}

/// Makes a System V segment, of which /proc/sysvipc/shm then tells.
#[allow(unsafe_code)]
fn sysv(key: i32) {
    // SAFETY: shmget takes three numbers and touches no memory of ours.
    let id = unsafe { libc::shmget(key, 4096, libc::IPC_CREAT | libc::IPC_EXCL | 0o666) };
    assert!(id >= 0, "shmget: {}", std::io::Error::last_os_error());
    say("ready");
}

/// A harness of its own: one pod with an exec'd second process, then nothing until it is killed.
fn harness() {
    let probe = std::env::current_exe().expect("a program knows its path");
    let mut pod = Pod::builder("orphan").uid(20009).spawn(&probe, ["sleep"]).expect("the pod starts");
    pod.stdout().next_within(Duration::from_secs(10)).expect("the payload is up");
    let second = pod.exec(&probe, ["sleep"]).expect("exec joins");
    let cgroup = pod.cgroup_dir().map_or("-".into(), |dir| dir.display().to_string());
    say(&format!("pod {} {} {} {cgroup}", pod.pid(), pod.init_pid().unwrap_or(0), second.pid()));
    loop {
        std::thread::sleep(Duration::from_secs(3600));
    }
}
