//! What is left in a domain: removed by hand, or after a grace; never from those who have it.
#![forbid(unsafe_code)]

use podshm_unmodified_tests::cli::{Machine, Talk, said, until};
use podshm_unmodified_tests::programs::{Build, compile};

#[test]
fn rm_refuses_what_is_attached_unless_forced() {
    let mut machine = Machine::new("rm");
    machine.serve("d", &[]);
    let program = compile("sysv", Build::Dynamic);
    let mut holder = Talk::start(machine.member("d", &["--member", "holder"], &program).args(["hold", "6"]));
    assert_eq!(holder.line(), "holding");
    let rm = |args: &[&str]| said(machine.command("rm").args(["--domain", "d"]).args(args));
    assert!(rm(&["0"]).contains("is attached 1 times"), "{}", machine.ls("d"));
    assert!(rm(&[]).contains("has members (holder)"));
    assert_eq!(rm(&["--force", "0"]), "");
    assert!(!machine.ls("d").contains("key 0x00000006"), "{}", machine.ls("d"));
    assert!(holder.ask().starts_with("-22"), "the id is gone; the memory is still mapped");
    holder.end();
    assert!(rm(&["0"]).contains("no segment 0 here"));
    // Nobody is there any more but the daemon.
    assert!(rm(&[]).contains("is served by a daemon, pid"), "{}", machine.ls("d"));
    // What is attached is known without it.
    let mut holder = Talk::start(machine.member("d", &[], &program).args(["hold", "7"]));
    assert_eq!(holder.line(), "holding");
    machine.kill9("d");
    let rm = |args: &[&str]| said(machine.command("rm").args(["--domain", "d"]).args(args));
    assert!(rm(&[]).contains("is attached 1 times"));
    holder.end();
    assert_eq!(rm(&[]), "");
    assert!(!machine.path("domains/d").exists());
}

#[test]
fn rm_refuses_what_is_attached_in_native_mode_too() {
    let machine = Machine::new("rmn");
    let program = compile("sysv", Build::Dynamic);
    let mut holder = Talk::start(machine.member("n", &["--mode", "native"], &program).args(["hold", "6"]));
    assert_eq!(holder.line(), "holding");
    let rm = |args: &[&str]| said(machine.command("rm").args(["--domain", "n"]).args(args));
    let id = machine
        .ls("n")
        .lines()
        .find_map(|line| Some(line.split_once("sysv ")?.1.split_once(' ')?.0.to_owned()))
        .unwrap();
    assert!(rm(&[&id]).contains("is attached 1 times"), "{}", machine.ls("n"));
    assert!(rm(&[]).contains("is attached 1 times"));
    assert_eq!(rm(&["--force", &id]), "");
    assert!(rm(&[]).contains("is attached 1 times"), "it waits for its last attachment");
    holder.end();
    assert!(rm(&[&id]).contains("no segment"), "{}", machine.ls("n"));
    assert_eq!(rm(&[]), "");
    assert!(!machine.path("domains/n").exists());
}

#[test]
fn what_nobody_comes_back_to_is_reaped_after_its_grace() {
    let mut machine = Machine::new("reap");
    let program = compile("sysv", Build::Dynamic);
    for (domain, kept, mode) in [("p", "kept-p", "preload"), ("n", "kept-n", "native")] {
        machine.serve_in(mode, domain, &["--reap-after", "2"]);
        machine.serve_in(mode, kept, &[]);
        let mut holder = Talk::start(machine.member(domain, &[], &program).args(["hold", "9"]));
        assert_eq!(holder.line(), "holding");
        for domain in [domain, kept] {
            assert_eq!(said(machine.member(domain, &[], &program).args(["write", "8", "x"])), "written\n");
        }
        let line = |key: &str| machine.ls(domain).lines().find(|line| line.contains(key)).map(str::to_owned);
        until("it is aged", || line("key 0x00000008").is_some_and(|line| line.contains(" idle ")));
        until("it is reaped", || line("key 0x00000008").is_none());
        assert!(line("key 0x00000009").is_some_and(|line| !line.contains(" idle ")), "attached: {mode}");
        holder.end();
        until("it is reaped once nobody has it", || line("key 0x00000009").is_none());
        assert!(machine.ls(kept).contains("key 0x00000008"), "off unless asked for: {mode}");
        let events = machine.events(domain);
        assert_eq!(events.matches("SegmentReaped").count(), 2, "{mode}: {events}");
        assert!(machine.log(domain).contains("a segment has neither its creator nor an attachment"), "{mode}");
    }
    assert!(machine.ls("p").contains("sysv 0 of"), "the budget is whole again: {}", machine.ls("p"));
}

#[test]
fn posix_objects_too_are_reaped_once_creator_and_users_are_gone() {
    let mut machine = Machine::new("reapp");
    let program = compile("posix", Build::Dynamic);
    for (domain, mode) in [("p", "preload"), ("n", "native")] {
        machine.serve_in(mode, domain, &["--reap-after", "2"]);
        machine.serve_in(mode, &format!("kept-{domain}"), &[]);
        let shell = |user: &str, line: String| {
            let mut command = machine.member(domain, &["--user", user], "/bin/sh".as_ref());
            let mut talk = Talk::start(command.args(["-c", &format!("{line}; echo up; read line; exit 0")]));
            assert_eq!(talk.line(), "up");
            talk
        };
        let put = |name: &str| format!("{} put {name} x >/dev/null", program.display());
        // Made by processes that end; one shell stays with what it may have made, and one has an object open.
        let creator = shell("0", put("/podshm-kept"));
        let user = shell("1235", "exec 3</dev/shm/podshm-kept".into());
        assert_eq!(
            said(machine.member(&format!("kept-{domain}"), &[], &program).args(["put", "/podshm-off", "x"])),
            "put\n"
        );
        let mut other = machine.member(domain, &["--user", "1234"], &program);
        assert_eq!(said(other.args(["put", "/podshm-gone", "x"])), "put\n");
        let aged = |line: &str| line.contains("posix /podshm-gone") && line.contains(" idle ");
        until("it is aged", || machine.ls(domain).lines().any(aged));
        until("it is reaped", || !machine.ls(domain).contains("/podshm-gone"));
        let log = machine.log(domain);
        assert!(log.contains("an object was reaped") && log.contains("name=\"podshm-gone\""), "{log}");
        assert!(machine.ls(domain).contains("/podshm-kept"), "{}", machine.ls(domain));
        creator.end();
        let reaped = || !machine.ls(domain).contains("/podshm-kept");
        // Longer than its grace and a look: what is open is not idle.
        std::thread::sleep(std::time::Duration::from_secs(5));
        assert!(!reaped(), "open in another member");
        user.end();
        until("nobody has it any more", reaped);
        let kept = machine.ls(&format!("kept-{domain}"));
        assert!(kept.contains("posix /podshm-off"), "off unless asked for: {kept}");
    }
}
