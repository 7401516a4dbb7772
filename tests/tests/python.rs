//! The Python module: what its own tests say (`tests/python/library.py`, `loops.py`, `waits.py`), its stubs, and the examples, each in an environment that has the
//! wheel and nothing else of ours.

use podshm::ErrorKind;
use podshm_tests::daemon::Daemon;
use podshm_tests::programs::{module, python};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn sources() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("python")
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

fn succeeds(command: &mut Command) -> String {
    let output = command.output().expect("Python");
    assert!(output.status.success(), "{command:?}: {}\n{}", output.status, text(&output));
    text(&output)
}

fn in_python() -> Command {
    let module = module(); // and with it the environment that has Python
    let mut command = Command::new(python());
    command.env("PYTHONPATH", module).env("PYTHONDONTWRITEBYTECODE", "1");
    command
}

/// Runs the tests of one file in a domain of their own, whose broker is a process that they may stop.
fn does(file: &str) {
    let mut broker = Daemon::start(env!("CARGO_BIN_EXE_podshm-test-broker"));
    let (agent, client) = (broker.pod("agent"), broker.pod("client"));
    let mut command = in_python();
    let said = succeeds(command.arg(sources().join(file)).args([agent, client]).arg(broker.number().to_string()));
    assert!(said.contains("\nOK") && !said.contains("skipped"), "{said}");
}

#[test]
fn the_module_does_what_its_tests_say() {
    does("library.py");
}

#[test]
fn the_module_does_in_event_loops_what_its_tests_say() {
    does("loops.py");
}

#[test]
fn the_module_waits_as_its_tests_say() {
    does("waits.py");
}

/// Every kind has an exception of its own, under the kind's number.
#[test]
fn every_kind_of_error_has_an_exception() {
    let script = "import podshm\nfor k in podshm.ErrorKind: print(int(k), k.name, type(podshm.errors.make(k, '', None, None, None)).__name__)";
    let said = succeeds(in_python().args(["-c", script]));
    let found: Vec<Vec<&str>> = said.lines().map(|line| line.split(' ').collect()).collect();
    assert_eq!(found.len(), ErrorKind::ALL.len(), "{said}");
    let mut classes: Vec<&str> = found.iter().map(|words| words[2]).collect();
    for (kind, words) in ErrorKind::ALL.iter().zip(&found) {
        let name = words[1].replace('_', "").to_lowercase();
        assert_eq!((words[0].parse(), name), (Ok(*kind as i32), format!("{kind:?}").to_lowercase()));
    }
    classes.sort_unstable();
    classes.dedup();
    assert_eq!(classes.len(), found.len(), "{said}");
    assert!(!classes.contains(&"Error"), "{said}");
}

/// The stubs say what is there, and the module's own Python is typed. (mypy and stubtest come with `scripts/wheel.sh tools`.)
#[test]
fn the_stubs_are_true() {
    let cache = Path::new(env!("CARGO_TARGET_TMPDIR")).join("mypy");
    let module = module();
    for arguments in [
        vec!["-m", "mypy", "--strict", "-p", "podshm"],
        vec!["-m", "mypy.stubtest", "podshm"],
        vec!["-m", "mypy", "--strict", "../examples/python/guard-ask/guard_ask.py"],
    ] {
        let mut command = in_python();
        command.args(&arguments).env("MYPYPATH", &module).env("MYPY_CACHE_DIR", &cache);
        succeeds(command.current_dir(env!("CARGO_MANIFEST_DIR")));
    }
}
