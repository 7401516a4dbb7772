//! Unmodified programs as members, by `podshm run`: across pods, and only across those of one domain.
#![forbid(unsafe_code)]

use podshm_unmodified_tests::cli::{Machine, Talk, said, until};
use podshm_unmodified_tests::programs::{Build, compile, run};
use podshm_unmodified_tests::{Domain, small};
use std::process::Command;

#[test]
fn the_library_needs_nothing_and_no_version_of_anything() {
    let path = std::env::temp_dir().join(format!("podshm-preload-{}.so", std::process::id()));
    std::fs::write(&path, podshm_preload::LIBRARY).unwrap();
    let dynamic = run(Command::new("readelf").arg("-dW").arg(&path));
    let versions = run(Command::new("readelf").arg("-VW").arg(&path));
    let symbols = run(Command::new("readelf").args(["--dyn-syms", "-W"]).arg(&path));
    std::fs::remove_file(&path).unwrap();
    assert!(
        dynamic.contains("(SONAME)") && !dynamic.contains("(NEEDED)") && !dynamic.contains("(TEXTREL)"),
        "{dynamic}"
    );
    assert!(!versions.contains("Version needs section"), "{versions}");
    let undefined: Vec<_> =
        symbols.lines().filter(|line| line.contains(" UND ") && !line.contains(" LOCAL ")).collect();
    assert!(!undefined.is_empty() && undefined.iter().all(|line| line.contains(" WEAK ")), "{undefined:#?}");
    for name in
        ["shmget", "shmat", "shmdt", "shmctl", "ftok", "shm_open", "shm_unlink", "ftruncate", "semget", "msgget"]
    {
        assert!(symbols.lines().any(|line| line.ends_with(&format!(" {name}"))), "{name} is not exported");
    }
    assert!(!symbols.contains(" memcpy"), "the program's own copies would be replaced");
}

#[test]
fn two_members_share_and_nobody_else() {
    let mut machine = Machine::new("share");
    machine.serve("one", &[]);
    machine.serve("two", &[]);
    let (glibc, musl) = (compile("sysv", Build::Dynamic), compile("sysv", Build::Musl));
    let posix = (compile("posix", Build::Dynamic), compile("posix", Build::Musl));
    let of =
        |domain, options: &[&str], program, args: &[&str]| said(machine.member(domain, options, program).args(args));
    assert_eq!(of("one", &[], &glibc, &["write", "0x77", "hello"]), "written\n");
    assert_eq!(of("one", &["--user", "1234"], &musl, &["read", "0x77"]), "read hello\n");
    assert_eq!(of("two", &[], &glibc, &["read", "0x77"]), "shmget: errno 2\n", "another domain");
    assert_eq!(said(Command::new(&glibc).args(["read", "0x77"])), "shmget: errno 2\n", "the host");
    assert_eq!(of("one", &[], &posix.0, &["write", "/podshm-n", "there"]), "written\n");
    assert_eq!(of("one", &["--user", "1234"], &posix.0, &["read", "/podshm-n"]), "read there\n");
    assert_eq!(of("two", &[], &posix.0, &["read", "/podshm-n"]), "shm_open: errno 2\n");
    assert_eq!(said(Command::new(&posix.0).args(["read", "/podshm-n"])), "shm_open: errno 2\n");
    assert_eq!(of("one", &[], &posix.1, &["write", "/podshm-m", "musl"]), "written\n");
    assert_eq!(of("one", &[], &posix.1, &["read", "/podshm-m"]), "read musl\n");
    let keys =
        [of("one", &[], &glibc, &["ftok", "/etc/passwd"]), of("one", &[], &musl, &["ftok", "/etc/../etc/passwd"])];
    assert_eq!(keys[0], keys[1]);
    assert!(keys[0].starts_with('7') && keys[0].len() <= 9, "{keys:?}");
    // Another domain's directory is not there for a member, root or not.
    let inside = of("one", &[], "/bin/ls".as_ref(), &["-A", &machine_domains(&machine)]);
    assert_eq!(inside, "", "a member sees domains");
    let listed = machine.ls("one");
    assert!(listed.contains("key 0x00000077") && listed.contains("posix /podshm-n owner 0:0"), "{listed}");
}

fn machine_domains(machine: &Machine) -> String {
    let command = machine.command("ls");
    let root = command.get_args().nth(2).expect("--root ROOT").to_string_lossy().into_owned();
    format!("{root}/domains")
}

#[test]
fn attachments_are_counted_right_through_fork_exec_and_kill() {
    let mut machine = Machine::new("forks");
    machine.serve("d", &[]);
    for build in [Build::Dynamic, Build::Musl] {
        let program = compile("sysv", build);
        let key = format!("{:#x}", 0x100 + build as i32);
        assert_eq!(said(machine.member("d", &[], &program).args(["forks", &key])), "right\n", "{build:?}");
        assert_eq!(
            said(machine.member("d", &[], &program).args(["threads", &key])),
            "failed 0 attached 1\n",
            "{build:?}"
        );
    }
}

#[test]
fn a_user_namespace_has_its_own_names_and_no_rights_by_them() {
    let mut machine = Machine::new("userns");
    machine.serve("p", &[]);
    user_namespaces(&machine, "p", "preload");
    user_namespaces(&machine, "n", "native");
}

fn user_namespaces(machine: &Machine, domain: &str, mode: &str) {
    let member =
        |user: &str, program: &str| machine.member(domain, &["--mode", mode, "--user", user], program.as_ref());
    let as_root_of_its_own = |user: &str, code: &str| {
        said(member(user, "/usr/bin/unshare").args(["--user", "--map-root-user", "/usr/bin/perl", "-e", code]))
    };
    let owner = "my $b = ''; shmctl(0, 2, $b) or die 'errno ' . ($! + 0); print unpack('L', substr($b, 4, 4))";
    assert_eq!(as_root_of_its_own("1234", "print defined shmget(5, 4096, 0x200 | 0600) ? 'made' : $! + 0"), "made");
    assert_eq!(as_root_of_its_own("1234", owner), "0", "by its own name");
    assert!(machine.ls(domain).contains("owner 1234 mode 600"), "by the node's: {}", machine.ls(domain));
    let outside = said(member("1234", "/usr/bin/perl").args(["-e", owner]));
    assert_eq!(outside, "1234");
    let other = as_root_of_its_own("1235", owner);
    assert!(other.starts_with("errno 13"), "{mode}: all capabilities of a namespace of its own are none here: {other}");
}

#[test]
fn a_daemonising_program_keeps_its_segment_attached() {
    let mut machine = Machine::new("daemon");
    machine.serve("d", &[]);
    let program = compile("sysv", Build::Dynamic);
    // The shell stays, as the member's first process has to.
    let mut shell = machine.member("d", &[], "/bin/sh".as_ref());
    let talk = Talk::start(shell.args(["-c", &format!("{} daemon 0x5; read line; exit 0", program.display())]));
    until("the daemon is attached", || machine.ls("d").contains("attached 1"));
    let read = said(machine.member("d", &[], &program).args(["read", "0x5"]));
    assert_eq!(read, "read daemon\n");
    assert!(machine.ls("d").contains("attached 1"), "{}", machine.ls("d"));
    talk.kill9();
    until("it is let go of", || machine.ls("d").contains("attached 0"));
}

#[test]
fn nothing_is_lost_when_the_daemon_is_killed() {
    let mut machine = Machine::new("restart");
    machine.serve("d", &[]);
    let program = compile("sysv", Build::Dynamic);
    let member = |args: &[&str]| said(machine.member("d", &[], &program).args(args));
    assert_eq!(member(&["write", "1", "unattached"]), "written\n");
    assert_eq!(member(&["write", "2", "attached"]), "written\n");
    let mut holder = Talk::start(machine.member("d", &["--member", "holder"], &program).args(["hold", "2"]));
    assert_eq!(holder.line(), "holding");
    assert_eq!(holder.ask(), "1 attached");
    machine.kill9("d");
    let away = machine.ls("d");
    assert!(away.contains("the daemon is away"), "{away}");
    let refused = said(machine.member("d", &[], &program).args(["read", "1"]));
    assert!(refused.contains("its daemon is not there"), "{refused}");
    machine.serve("d", &[]);
    assert_eq!(holder.ask(), "1 attached", "the kernel has kept who is attached");
    let member = |args: &[&str]| said(machine.member("d", &[], &program).args(args));
    assert_eq!(member(&["read", "1"]), "read unattached\n");
    assert_eq!(member(&["read", "2"]), "read attached\n");
    holder.end();
    let listed = machine.ls("d");
    assert!(listed.contains("key 0x00000001") && !listed.contains("attached 1"), "{listed}");
}

/// As an upgrade goes: the old daemon is told to end, the new one is started at once.
#[test]
fn an_upgrade_of_the_daemon_loses_nothing_and_fails_no_call() {
    let mut machine = Machine::new("upgrade");
    machine.serve("d", &[]);
    let (sysv, posix) = (compile("sysv", Build::Dynamic), compile("posix", Build::Dynamic));
    let member = |program, args: &[&str]| said(machine.member("d", &[], program).args(args));
    assert_eq!(member(&sysv, &["write", "1", "unattached"]), "written\n");
    assert_eq!(member(&sysv, &["write", "2", "attached"]), "written\n");
    assert_eq!(member(&posix, &["put", "/podshm-up", "object"]), "put\n");
    let mut holder = Talk::start(machine.member("d", &["--member", "holder"], &sysv).args(["hold", "2"]));
    assert_eq!(holder.line(), "holding");
    let calls =
        "$a = 0; while (!-e $ARGV[0]) { defined shmget(1, 0, 0) or die 'errno ' . ($! + 0); $a++ } print $a > 0";
    let done = machine.path("done");
    let mut caller = machine.member("d", &["--member", "caller"], "/usr/bin/perl".as_ref());
    let caller = Talk::start(caller.args(["-e", &format!("$| = 1; print \"up\\n\"; {calls}")]).arg(&done));
    let mut caller = caller;
    assert_eq!(caller.line(), "up");
    for _ in 0..3 {
        machine.upgrade("d");
        assert_eq!(holder.ask(), "1 attached");
    }
    std::fs::write(&done, "").unwrap();
    assert_eq!(caller.end(), "1", "a call has failed");
    let member = |program, args: &[&str]| said(machine.member("d", &[], program).args(args));
    assert_eq!(member(&sysv, &["read", "1"]), "read unattached\n");
    assert_eq!(member(&sysv, &["read", "2"]), "read attached\n");
    assert_eq!(member(&posix, &["see", "/podshm-up"]), "seen object\n");
    holder.end();
    until("its end is seen", || !machine.ls("d").contains("attached 1"));
}

#[test]
fn a_call_without_a_daemon_is_an_errno_and_is_explained_once() {
    let mut machine = Machine::new("away");
    machine.serve("d", &[]);
    let program = compile("sysv", Build::Dynamic);
    let mut holder = machine.member("d", &[], "/bin/sh".as_ref());
    holder.env("PODSHM_LOG", "info").args(["-c", "echo up; read line; exec $0 read 9 2>&1", program.to_str().unwrap()]);
    let mut holder = Talk::start(&mut holder);
    assert_eq!(holder.line(), "up");
    machine.kill9("d");
    let said = holder.end();
    assert!(said.contains("nobody answers") && said.contains("shmget: errno 12"), "{said}");
    assert_eq!(said.matches("podshm:").count(), 1, "{said}");
}

#[test]
fn each_refusal_is_as_the_man_page_says_and_explained_once() {
    let mut machine = Machine::new("refused");
    machine.serve("d", &["--shmall-mib", "1"]);
    let program = compile("sysv", Build::Dynamic);
    let perl = "shmget(0x79, 4096, 0x200 | 0600) // die; shmget(5, 900 << 10, 0x200 | 0600) // die";
    assert_eq!(said(machine.member("d", &[], "/usr/bin/perl".as_ref()).args(["-e", perl])), "");
    let mut user = machine.member("d", &["--user", "1234"], &program);
    let quiet = said(user.arg("refused"));
    assert_eq!(quiet, "22 2 13 28 22\n22 2 13 28 22\n", "EINVAL, ENOENT, EACCES, ENOSPC, EINVAL");
    let mut user = machine.member("d", &["--user", "1234"], &program);
    let told = said(user.env("PODSHM_LOG", "info").arg("refused"));
    for why in
        ["over the domain's shmmax", "no segment of this key", "denied by the segment's owner", "shmall or shmmni"]
    {
        assert_eq!(told.matches(why).count(), 1, "{why}: {told}");
    }
    assert_eq!(told.matches("podshm: ").count(), 5, "{told}");
    let posix = compile("posix", Build::Dynamic);
    let mut full = machine.member("d", &[], &posix);
    let full = said(full.env("PODSHM_LOG", "info").args(["grow", "/podshm-f", "1099511627776"]));
    assert!(full.contains("errno 28") && full.contains("/dev/shm is full"), "{full}");
}

#[test]
fn what_a_preload_cannot_reach_gets_an_errno_or_does_not_start() {
    let mut machine = Machine::new("static");
    machine.serve("d", &[]);
    let (fixed, dynamic) = (compile("sysv", Build::Static), compile("sysv", Build::Dynamic));
    let refused = said(machine.member("d", &[], &fixed).args(["write", "3", "x"]));
    assert!(refused.contains("statically linked") && refused.contains("--mode native"), "{refused}");
    let why = machine.log("d");
    assert!(why.contains("a member was not started") && why.contains("statically linked"), "{why}");
    assert!(why.contains("System V calls that do not come through the library"), "{why}");
    // Behind a shell it starts, and gets nothing; see also hostile.rs.
    let line = format!("{} write 3 x; {} sem", fixed.display(), fixed.display());
    let behind = said(machine.member("d", &[], "/bin/sh".as_ref()).args(["-c", &line]));
    assert_eq!(behind, "shmget: errno 38\nsemget -1 errno 38 msgget -1 errno 38\n");
    let mut semaphores = machine.member("d", &[], &dynamic);
    let semaphores = said(semaphores.env("PODSHM_LOG", "info").arg("sem"));
    assert!(semaphores.starts_with("semget -1 errno 38 msgget -1 errno 38\n"), "{semaphores}");
    assert!(semaphores.contains("native mode"), "{semaphores}");
    // POSIX objects of static programs are the domain's: /dev/shm is.
    let posix = (compile("posix", Build::Static), compile("posix", Build::Dynamic));
    let line = format!("{} put /podshm-s static", posix.0.display());
    assert_eq!(said(machine.member("d", &[], "/bin/sh".as_ref()).args(["-c", &line])), "put\n");
    assert_eq!(said(machine.member("d", &[], &posix.1).args(["see", "/podshm-s"])), "seen static\n");
    let events = machine.events("d");
    assert!(events.contains("MemberNotStarted") && events.contains("statically linked"), "{events}");
    // A library that can't be loaded: the member does not start.
    let missing = said(machine.member("d", &["--library", "/nonexistent.so"], &dynamic).args(["write", "3", "x"]));
    assert!(missing.contains("does not load /nonexistent.so"), "{missing}");
}

/// Loaded as a container runtime loads it, by libseccomp.
#[test]
fn the_seccomp_profile_refuses_what_goes_past_the_library() {
    let own = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let (confine, profile) = (own.join("confine.py"), own.join("../../deploy/seccomp/podshm-preload.json"));
    let domain = Domain::start("seccomp", small());
    let confined = |program: &std::path::Path, args: &[&str]| {
        // An IPC namespace with the kernel's limits: what is refused is refused by the profile.
        let mut command = domain.command("a", "/usr/bin/unshare".as_ref());
        command.args(["--ipc", "python3"]).arg(&confine).arg(&profile);
        said(command.arg(program).args(args))
    };
    let (fixed, dynamic) = (compile("sysv", Build::Static), compile("sysv", Build::Dynamic));
    let open =
        said(domain.command("a", "/usr/bin/unshare".as_ref()).arg("--ipc").arg(&fixed).args(["write", "7", "x"]));
    assert_eq!(open, "written\n", "without the profile: a private segment");
    assert_eq!(confined(&fixed, &["write", "7", "x"]), "shmget: errno 38\n");
    assert_eq!(confined(&fixed, &["sem"]), "semget -1 errno 38 msgget -1 errno 38\n");
    assert_eq!(confined(&dynamic, &["write", "7", "shared"]), "written\n");
    assert_eq!(said(domain.command("b", &dynamic).args(["read", "7"])), "read shared\n");
    assert_eq!(confined(&dynamic, &["threads", "8"]), "failed 0 attached 1\n", "threads and children go on");
    let namespaces = confined("/usr/bin/unshare".as_ref(), &["--user", "true"]);
    assert!(namespaces.contains("Operation not permitted"), "as by a runtime's own profile: {namespaces}");
    // All twelve calls, raw: shm{get,at,ctl,dt}, sem{get,op,ctl,timedop}, msg{get,snd,rcv,ctl}.
    let numbers = match cfg!(target_arch = "x86_64") {
        true => "29,30,31,67,64,65,66,220,68,69,70,71",
        false => "194,196,195,197,190,193,191,192,186,189,188,187",
    };
    let raw = format!("print map {{ $! = 0; syscall($_, 0, 0, 0, 0, 0); $! + 0 }} ({numbers})");
    assert_eq!(confined("/usr/bin/perl".as_ref(), &["-e", &raw]), "38".repeat(12));
}

#[test]
fn native_mode_has_all_of_it_for_static_programs_too() {
    let machine = Machine::new("native");
    let options = ["--mode", "native", "--shmall-mib", "1"];
    for (build, key) in [(Build::Static, "3"), (Build::Dynamic, "4"), (Build::Musl, "5")] {
        let (sysv, posix) = (compile("sysv", build), compile("posix", build));
        let of = |program, args: &[&str]| said(machine.member("n", &options, program).args(args));
        assert_eq!(of(&sysv, &["write", key, "kernel"]), "written\n");
        assert_eq!(of(&sysv, &["read", key]), "read kernel\n");
        assert!(of(&sysv, &["sem"]).contains("semget 0 errno 0"), "semaphores");
        assert_eq!(of(&posix, &["write", &format!("/p{key}"), "tmpfs"]), "written\n");
        assert_eq!(of(&posix, &["read", &format!("/p{key}")]), "read tmpfs\n");
        assert_eq!(said(Command::new(&sysv).args(["read", key])), "shmget: errno 2\n", "the host");
    }
    let listed = machine.ls("n");
    assert!(
        listed.contains("mode native") && listed.contains("shmall 256") && listed.contains(" key 0x00000003 "),
        "{listed}"
    );
    let other = said(machine.command("run").args(["--domain", "n", "--mode", "preload", "--", "true"]));
    assert!(other.contains("with mode native, not preload"), "{other}");
}

#[test]
fn a_full_domain_is_an_errno() {
    let mut machine = Machine::new("full");
    machine.serve("d", &["--shm-mib", "1", "--shmall-mib", "1"]);
    let posix = compile("posix", Build::Dynamic);
    let grow = |name: &str, bytes: &str| said(machine.member("d", &[], &posix).args(["grow", name, bytes]));
    assert_eq!(grow("/a", "524288"), "grown to 524288, 524288 allocated\n", "allocated, not only named");
    assert_eq!(grow("/b", "1000000"), "ftruncate: errno 28\n");
    assert_eq!(grow("/a", "4096"), "grown to 4096, 4096 allocated\n");
    assert_eq!(grow("/b", "1000000"), "grown to 1000000, 1003520 allocated\n");
    assert!(machine.ls("d").contains("/dev/shm 1007616 of 1048576 bytes (96 %)"), "{}", machine.ls("d"));
    // What the library does not reach pays at the touch, and a full domain is SIGBUS there.
    let line = format!("{} touch /c 500000; echo $?", compile("posix", Build::Static).display());
    let touched = said(machine.member("d", &[], "/bin/sh".as_ref()).args(["-c", &line]));
    assert!(touched.contains("135\n"), "{touched}");
    let mut ipcmk = machine.member("d", &[], "/usr/bin/ipcmk".as_ref());
    let full = said(ipcmk.args(["-M", "2000000"]));
    assert!(full.contains("Invalid argument"), "over shmmax: {full}");
    for _ in 0..2 {
        said(machine.member("d", &[], "/usr/bin/ipcmk".as_ref()).args(["-M", "500000"]));
    }
    let full = said(machine.member("d", &[], "/usr/bin/ipcmk".as_ref()).args(["-M", "500000"]));
    assert!(full.contains("No space left on device"), "over shmall: {full}");
    until("the event", || machine.events("d").contains("SegmentRefused"));
}

#[test]
fn in_native_mode_a_full_dev_shm_is_sigbus() {
    let machine = Machine::new("sigbus");
    let posix = compile("posix", Build::Dynamic);
    let options = ["--mode", "native", "--shm-mib", "1"];
    let touch = |name: &str, bytes: &str| {
        machine.member("n", &options, &posix).args(["touch", name, bytes]).status().expect("it runs").code()
    };
    assert_eq!(touch("/small", "500000"), Some(0));
    assert_eq!(touch("/large", "2000000"), Some(128 + 7), "ftruncate succeeds, the touch does not");
}

#[test]
fn a_dev_shm_that_fills_up_is_warned_of_once_each_time() {
    let mut machine = Machine::new("alert");
    let options = ["--shm-mib", "1", "--shm-alert-percent", "50"];
    let posix = compile("posix", Build::Dynamic);
    for (domain, mode) in [("p", "preload"), ("n", "native")] {
        machine.serve_in(mode, domain, &options);
        let fill = |bytes: &str| {
            assert!(machine.member(domain, &[], &posix).args(["touch", "/a", bytes]).status().unwrap().success());
        };
        let said = |what: &str, times: usize| {
            until(what, || machine.log(domain).matches(what).count() >= times);
            assert_eq!(machine.log(domain).matches(what).count(), times, "{}", machine.log(domain));
        };
        fill("100000");
        assert!(!machine.ls(domain).contains("past 50 %"), "{}", machine.ls(domain));
        fill("600000");
        assert!(machine.ls(domain).contains(": past 50 %"), "{}", machine.ls(domain));
        said("is filling up", 1);
        fill("900000");
        assert_eq!(run(machine.command("rm").args(["--domain", domain, "/a"])), "");
        said("has room again", 1);
        fill("900000");
        said("is filling up", 2);
        assert!(machine.log(domain).contains("percent=57") && machine.log(domain).contains("level=50"));
        let events = || machine.events(domain);
        until("the events too", || events().contains("DevShmFilling") && events().contains("(x2 over "));
        assert!(events().contains("Normal  DevShmHasRoom"), "{}", events());
    }
}

#[test]
fn other_preloaded_libraries_are_kept_and_without_a_domain_ours_does_nothing() {
    let mut machine = Machine::new("kept");
    machine.serve("d", &[]);
    let mut env = machine.member("d", &[], "/usr/bin/env".as_ref());
    let other = std::env::temp_dir().join(format!("podshm-other-{}.so", std::process::id()));
    std::fs::write(&other, podshm_preload::LIBRARY).unwrap();
    let listed = said(env.env("LD_PRELOAD", &other));
    assert!(
        listed.contains(&format!("LD_PRELOAD=/run/podshm/lib/libpodshm-preload.so:{}", other.display())),
        "{listed}"
    );
    let sysv = compile("sysv", Build::Dynamic);
    let line = format!("LD_PRELOAD={} {} write 9 native && {} read 9", other.display(), sysv.display(), sysv.display());
    let native = said(Command::new("unshare").args(["--ipc", "sh", "-c", &line]));
    std::fs::remove_file(&other).unwrap();
    assert_eq!(native, "written\nread native\n", "the kernel's own segment");
}

/// Reported, not judged: the machine may be busy.
#[test]
fn what_attaching_costs_is_reported() {
    let mut machine = Machine::new("speed");
    machine.serve("d", &[]);
    let program = compile("sysv", Build::Dynamic);
    assert_eq!(said(machine.member("d", &[], &program).args(["write", "5", "x"])), "written\n");
    let line = said(machine.member("d", &[], &program).args(["speed", "5"]));
    eprint!("through the preload library: {line}");
    assert!(line.starts_with("shmget and shmat: "), "{line}");
}
