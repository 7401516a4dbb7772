//! POSIX objects through the daemon: members whose /dev/shm is their own.
#![forbid(unsafe_code)]

use podshm_unmodified_tests::cli::said;
use podshm_unmodified_tests::programs::{Build, compile};
use podshm_unmodified_tests::{Domain, small};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

/// A program as a member with an empty /dev/shm of its own; what lies in that afterwards is said too.
fn with_own_shm(domain: &Domain, member: &str, program: &Path, args: &[&str]) -> String {
    let mut command = domain.command(member, "/usr/bin/unshare".as_ref());
    let line = "mount -t tmpfs own /dev/shm && \"$@\"; ls -A /dev/shm";
    said(command.args(["--mount", "sh", "-c", line, "sh"]).arg(program).args(args))
}

#[test]
fn objects_are_the_domains_where_dev_shm_is_not() {
    let (one, two) = (Domain::start("one", small()), Domain::start("two", small()));
    for build in [Build::Dynamic, Build::Musl] {
        let program = compile("posix", build);
        let a = |args: &[&str]| with_own_shm(&one, "a", &program, args);
        let b = |args: &[&str]| with_own_shm(&one, "b", &program, args);
        assert_eq!(a(&["see", "/podshm-o"]), "shm_open: errno 2\n");
        assert_eq!(a(&["put", "/podshm-o", "object"]), "put\n", "and nothing is in the member's own");
        assert_eq!(b(&["see", "/podshm-o"]), "seen object\n");
        assert_eq!(with_own_shm(&two, "c", &program, &["see", "/podshm-o"]), "shm_open: errno 2\n", "another domain");
        assert_eq!(said(Command::new(&program).args(["see", "/podshm-o"])), "shm_open: errno 2\n", "the host");
        // Rights by uid and mode, and who may unlink is as in a sticky directory.
        let other = |args: &[&str]| said(one.command("b", &program).args(args).uid(1234).gid(1234));
        assert_eq!(other(&["see", "/podshm-o"]), "seen object\n");
        assert_eq!(other(&["unlink", "/podshm-o"]), "shm_unlink: errno 13\n");
        assert_eq!(a(&["put", "/podshm-closed", "x", "600"]), "put\n");
        assert_eq!(other(&["see", "/podshm-closed"]), "shm_open: errno 13\n");
        // What grows is allocated; a full domain says so. It has 4 MiB.
        assert_eq!(a(&["grow", "/podshm-o", "1048576"]), "grown to 1048576, 1048576 allocated\n");
        assert_eq!(b(&["grow", "/podshm-o", "8388608"]), "ftruncate: errno 28\n");
        assert_eq!(b(&["unlink", "/podshm-o"]), "unlinked\n");
        assert_eq!(a(&["see", "/podshm-o"]), "shm_open: errno 2\n", "unlinked for everybody");
        assert_eq!(a(&["unlink", "/podshm-o"]), "shm_unlink: errno 2\n");
        assert_eq!(a(&["unlink", "/podshm-closed"]), "unlinked\n");
    }
}

#[test]
fn a_named_semaphore_is_never_private() {
    let domain = Domain::start("sem", small());
    for build in [Build::Dynamic, Build::Musl] {
        let program = compile("posix", build);
        let line = "mount -t tmpfs own /dev/shm && PODSHM_LOG=info \"$@\" 2>&1; ls -A /dev/shm";
        let mut command = domain.command("a", "/usr/bin/unshare".as_ref());
        command.args(["--mount", "sh", "-c", line, "sh"]).arg(&program).args(["write", "/podshm-s", "x"]);
        let said = said(&mut command);
        assert!(said.contains("sem_open: errno 38\n") && said.contains("native mode"), "{build:?}: {said}");
        assert!(said.contains("mount the domain's") && !said.contains("podshm-s"), "no file for it: {said}");
    }
}
