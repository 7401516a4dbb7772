//! Who pays for a domain's memory: in preload mode the daemon, in native mode whoever touches it first. By real memory cgroups.
#![forbid(unsafe_code)]

use podshm_testkit::{Isolation, Pod};
use podshm_unmodified_tests::PATIENCE;
use podshm_unmodified_tests::cli::{Machine, until};
use podshm_unmodified_tests::programs::{Build, compile};
use std::process::Command;

const SIZE: u64 = 16 << 20;
/// Records, the library, pages that the kernel charges ahead.
const SLACK: u64 = 2 << 20;

/// A command in a memory cgroup of its own; `podshm` makes the namespaces by itself.
fn grouped(name: &str, command: &Command) -> Pod {
    let pod = Pod::builder(name).isolation(Isolation::None).spawn(command.get_program(), command.get_args());
    pod.expect("a pod")
}

/// tmpfs bytes charged to it; says so where there is no cgroup to be had.
fn shmem(pod: &Pod) -> Option<u64> {
    let memory = pod.memory();
    if memory.is_none() {
        eprintln!("SKIPPED: no memory cgroups here");
    }
    memory.map(|memory| memory.shmem)
}

fn is_about(what: &str, pod: &Pod, expected: u64) {
    let charged = || shmem(pod).expect("it was there before");
    let near = |bytes: u64| bytes <= expected + SLACK && bytes + SLACK >= expected;
    // The kernel's counters are brought up to date now and then.
    until(&format!("{what} is charged {expected}, found {}", charged()), || near(charged()));
}

/// Makes 16 MiB of System V memory and 16 MiB of a POSIX object and touches all of both; ends. Its charges stay.
fn toucher(machine: &Machine, domain: &str, mode: &str) -> Pod {
    let code = format!(
        "my $id = shmget(7, {SIZE}, 0x200 | 0666) // die $!; shmwrite($id, 'x' x {SIZE}, 0, {SIZE}) or die $!; \
         exec @ARGV or die $!"
    );
    let mut command = machine.member(domain, &["--mode", mode], "/usr/bin/perl".as_ref());
    let size = SIZE.to_string();
    command.args(["-e", &code]).arg(compile("posix", Build::Dynamic)).args(["touch", "/podshm-c", &size]);
    let mut pod = grouped("toucher", &command);
    let status = pod.wait_within(PATIENCE).expect("it can be waited for").expect("it ends");
    assert!(status.success(), "{status}");
    pod
}

#[test]
fn memory_is_charged_to_the_daemon_over_the_preload() {
    let machine = Machine::new("paid");
    let mut serve = machine.command("domain");
    serve.args(["--domain", "d", "--mode", "preload"]);
    let mut daemon = grouped("daemon", &serve);
    daemon.stdout().wait_for("ready", PATIENCE).expect("the daemon is ready");
    let Some(before) = shmem(&daemon) else { return };
    let member = toucher(&machine, "d", "preload");
    is_about("the daemon", &daemon, before + 2 * SIZE);
    is_about("the member", &member, 0);
}

#[test]
fn memory_is_charged_to_whoever_touches_it_in_native_mode() {
    let machine = Machine::new("touched");
    let member = toucher(&machine, "n", "native");
    if shmem(&member).is_some() {
        is_about("the member", &member, 2 * SIZE);
    }
}
