//! Members that try to get at what is not theirs: another domain's things, the host's, another uid's. `hostile.py` is what they run.
#![forbid(unsafe_code)]

use podshm_unmodified_tests::cli::{Machine, Talk, said, until};
use podshm_unmodified_tests::programs::{Build, compile};
use std::path::{Path, PathBuf};
use std::process::Command;

const ATTEMPTS: &str = include_str!("../hostile.py");

fn python() -> PathBuf {
    "/usr/bin/python3".into()
}

/// All were made, and each was refused.
fn all_refused(who: &str, said: &str, least: usize) {
    let refused = said.lines().filter(|line| line.starts_with("refused: ")).count();
    assert!(!said.contains("REACHED") && said.ends_with("done\n"), "{who}: {said}");
    assert!(refused >= least, "{who}: only {refused} attempts: {said}");
}

#[test]
fn nothing_of_another_domain_or_of_the_host_is_within_reach() {
    let mut machine = Machine::new("reach");
    for domain in ["one", "two"] {
        machine.serve(domain, &[]);
    }
    let (sysv, posix) = (compile("sysv", Build::Dynamic), compile("posix", Build::Dynamic));
    let mut victim = Talk::start(machine.member("two", &["--member", "victim"], &sysv).args(["hold", "2"]));
    assert_eq!(victim.line(), "holding");
    assert_eq!(said(machine.member("two", &[], &posix).args(["put", "/secret", "x"])), "put\n");
    let root = machine.path("").to_string_lossy().trim_end_matches('/').to_owned();
    let pid = victim.member_pid().to_string();
    let arguments = ["-c", ATTEMPTS, "reach", &root, "two", "victim", &pid];
    for user in ["0", "1234"] {
        let mut command = machine.member("one", &["--user", user], &python());
        all_refused(&format!("uid {user} over the preload"), &said(command.args(arguments)), 40);
        let mut command = machine.command("run");
        let native = ["--domain", "n", "--mode", "native", "--user", user, "--"];
        let command = command.args(native).arg(python()).args(arguments);
        all_refused(&format!("uid {user} in native mode"), &said(command), 40);
    }
    // Those that only look are real: root of the node reaches all that there is.
    let host = said(Command::new(python()).args(["-c", ATTEMPTS, "look", &root, "two", "victim", &pid]));
    for thing in ["members/victim/shm.sock", "control.sock", "shm/secret", "sysv/segments", "the victim's /dev/shm"] {
        assert!(host.lines().any(|line| line == format!("REACHED: {thing}")), "{thing}: {host}");
    }
    // A program that is given another domain's socket by name finds nobody there, and nothing private instead.
    let other = machine.path("domains/two/members/victim/shm.sock");
    let line = format!("PODSHM_SHM_SOCKET={} {} read 2", other.display(), sysv.display());
    let mut shell = machine.member("one", &[], "/bin/sh".as_ref());
    assert_eq!(said(shell.args(["-c", &line])), "shmget: errno 12\n");
    assert_eq!(victim.ask(), "1", "it is as it was");
}

#[test]
fn forged_ids_tokens_and_descriptors_get_nothing() {
    let mut machine = Machine::new("forge");
    machine.serve("d", &[]);
    let stat = "my $b = ''; shmctl(0, 2, $b) or die $!; print join ' ', unpack('q3 i2 Q', substr($b, 56, 40))";
    let make = "shmget(7, 4096, 0x200 | 0600) // die $!; shmwrite(0, 'kept', 0, 4) or die $!; print 'made'";
    let perl = |code: &str| said(machine.member("d", &[], Path::new("/usr/bin/perl")).args(["-e", code]));
    assert_eq!(perl(make), "made");
    let posix = compile("posix", Build::Dynamic);
    assert_eq!(said(machine.member("d", &[], &posix).args(["put", "/secret", "x", "600"])), "put\n");
    let sysv = compile("sysv", Build::Dynamic);
    let mut holder = Talk::start(machine.member("d", &[], &sysv).args(["hold", "7"]));
    assert_eq!(holder.line(), "holding");
    let before = perl(stat);
    let mut forger = machine.member("d", &["--user", "1234"], &python());
    all_refused("uid 1234", &said(forger.args(["-c", ATTEMPTS, "forge", "0"])), 50);
    // ctime, dtime, atime, pids and attachments are what they were.
    assert_eq!(perl(stat), before);
    assert!(before.ends_with(" 1"), "one attachment: {before}");
    assert_eq!(holder.ask(), "1 kept");
    holder.end();
    until("it is let go of", || machine.ls("d").contains("attached 0"));
}

/// Static, setuid, without LD_PRELOAD, system calls by hand: never a private segment, and somebody hears of it.
#[test]
fn a_call_past_the_library_is_an_errno_an_event_and_a_line_in_the_log() {
    let mut machine = Machine::new("past");
    machine.serve("d", &[]);
    let (fixed, dynamic) = (compile("sysv", Build::Static), compile("sysv", Build::Dynamic));
    let shell = |user: &str, line: String| {
        let mut command = machine.member("d", &["--member", "m", "--user", user], "/bin/sh".as_ref());
        said(command.args(["-c", &line]))
    };
    assert!(!machine.ls("d").contains("warnings"), "{}", machine.ls("d"));
    assert_eq!(shell("0", format!("{0} write 3 x; {0} write 3 x", fixed.display())), "shmget: errno 38\n".repeat(2));
    assert_eq!(shell("0", format!("env -u LD_PRELOAD {} write 3 x", dynamic.display())), "shmget: errno 38\n");
    let number = if cfg!(target_arch = "x86_64") { 64 } else { 190 };
    let raw = format!("/usr/bin/perl -e 'print syscall({number}, 1, 1, 01600), \" \", $! + 0'");
    assert_eq!(shell("1234", raw), "-1 38");
    // Told before it is refused: none of these programs lives on.
    let events = machine.events("d");
    let told = [(&*fixed.to_string_lossy(), "shmget"), (&*dynamic.to_string_lossy(), "shmget"), ("perl", "semget")];
    assert!(told.iter().all(|(program, call)| tells(&events, program, call)), "{events}");
    let log = machine.log("d");
    for (program, call) in told {
        let line = log.lines().filter(|line| line.contains("did not come through the library"));
        let line = line.filter(|line| line.contains(program) && line.contains(&format!("call=\"{call}\"")));
        assert_eq!(line.count(), 1, "once for each program and call: {program} {call}: {log}");
    }
    assert!(machine.ls("d").contains("3 warnings: `podshm events --domain d`"), "{}", machine.ls("d"));
    // The library makes none of these calls: what comes through it is as ever, setuid programs too.
    let setuid = machine.path("setuid");
    std::fs::copy(&dynamic, &setuid).unwrap();
    std::fs::set_permissions(&setuid, std::os::unix::fs::PermissionsExt::from_mode(0o4755)).unwrap();
    std::fs::set_permissions(machine.path(""), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    assert_eq!(shell("1234", format!("{} write 4 shared", setuid.display())), "written\n");
    assert_eq!(said(machine.member("d", &[], &dynamic).args(["read", "4"])), "read shared\n");
    assert!(machine.ls("d").contains("key 0x00000004 owner 1234"), "no other uid: {}", machine.ls("d"));
    assert!(machine.ls("d").contains("3 warnings"), "{}", machine.ls("d"));
    // They outlive the daemon.
    machine.kill9("d");
    let events = machine.events("d");
    assert!(events.contains("NativeCallRefused  domain d member m"), "{events}");
}

fn tells(events: &str, program: &str, call: &str) -> bool {
    let about = |line: &&str| line.contains("NativeCallRefused") && line.contains(program);
    events.lines().filter(about).any(|line| line.contains(&format!("{call} by ")))
}
