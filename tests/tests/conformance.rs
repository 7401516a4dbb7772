//! The conformance suite, by programs in every language there is a library for: who joins in one, who serves in the same or another.

use podshm_testkit::ISOLATION_ENV;
use podshm_tests::conformance::{Pair, fault, run};
use podshm_tests::programs::{SANITIZED, conform_in_c, conform_in_cpp, conform_in_python, under_valgrind};
use std::path::{Path, PathBuf};
use std::process::Command;

const RUST: &str = env!("CARGO_BIN_EXE_podshm-test-conform");

fn of(directory: &str) -> PathBuf {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join(directory);
    std::fs::create_dir_all(&directory).expect("a directory");
    directory
}

/// All of the suite.
fn whole(name: &str, agent: &Path, client: &Path) {
    run(name, Pair { agent, client });
}

/// Where pods have no walls nothing can be run, and that is no success.
#[test]
fn a_suite_that_can_not_be_run_does_not_pass() {
    for test in ["one_case_alone", "all_cases_alone"] {
        let mut command = Command::new(std::env::current_exe().expect("this program"));
        command.args(["--exact", test, "--include-ignored"]).env(ISOLATION_ENV, "none");
        let output = command.output().expect("this program");
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(!output.status.success() && said.contains("no case was run"), "{test}: {said}");
    }
}

#[test]
#[ignore = "for the one above"]
fn one_case_alone() {
    let pair = Pair { agent: Path::new(RUST), client: Path::new(RUST) };
    assert_eq!(fault("one-case", pair, "a client knows who it is"), "");
}

#[test]
#[ignore = "for the one above"]
fn all_cases_alone() {
    whole("all-cases", Path::new(RUST), Path::new(RUST));
}

#[test]
fn rust_with_rust() {
    whole("rust-rust", Path::new(RUST), Path::new(RUST));
}

#[test]
fn c_joins_rust() {
    whole("c-rust", Path::new(RUST), &conform_in_c(&of("conform-c-rust"), &[]));
}

#[test]
fn rust_joins_c() {
    whole("rust-c", &conform_in_c(&of("conform-rust-c"), &[]), Path::new(RUST));
}

#[test]
fn c_with_c() {
    let program = conform_in_c(&of("conform-c-c"), &[]);
    whole("c-c", &program, &program);
}

/// Some of the suite, with every kind of handle: all of it takes minutes, and is in `make conformance`.
#[test]
fn c_under_valgrind() {
    let program = under_valgrind(&conform_in_c(&of("conform-c-vg"), &[]));
    let pair = Pair { agent: &program, client: &program };
    for case in ["values go round", "records arrive in order", "calls that are out", "a child has its parent's handles"]
    {
        assert_eq!(fault("c-vg", pair, case), "", "{case}");
    }
}

/// The same for C++, and its client's half with the sanitizers: the agent's has them in [`c_joins_cpp`].
#[test]
fn cpp_under_valgrind_and_with_sanitizers() {
    let plain = under_valgrind(&conform_in_cpp(&of("conform-cpp-vg"), &[]));
    let sanitized = conform_in_cpp(&of("conform-cpp-san"), SANITIZED);
    for (name, program) in [("cpp-vg", &plain), ("cpp-san", &sanitized)] {
        for case in ["values go round", "records arrive in order", "answers of every kind", "calls that are out"] {
            assert_eq!(fault(name, Pair { agent: program, client: program }, case), "", "{name}: {case}");
        }
    }
}

#[test]
#[ignore = "minutes: make conformance"]
fn all_of_it_under_valgrind() {
    let c = under_valgrind(&conform_in_c(&of("conform-c-vg-all"), &[]));
    let cpp = under_valgrind(&conform_in_cpp(&of("conform-cpp-vg-all"), &[]));
    whole("c-vg-all", &c, &c);
    whole("cpp-vg-all", &cpp, &cpp);
}

/// [`c_joins_cpp`] the other way round.
#[test]
#[ignore = "as much again: make conformance"]
fn cpp_joins_c_with_sanitizers() {
    let agent = conform_in_c(&of("conform-c-sanitized"), SANITIZED);
    whole("cpp-c-sanitized", &agent, &conform_in_cpp(&of("conform-cpp-sanitized"), SANITIZED));
}

#[test]
fn cpp_joins_rust() {
    whole("cpp-rust", Path::new(RUST), &conform_in_cpp(&of("conform-cpp-rust"), &[]));
}

/// With the sanitizers for addresses, leaks and undefined behaviour.
#[test]
fn c_joins_cpp() {
    let agent = conform_in_cpp(&of("conform-cpp"), SANITIZED);
    whole("c-cpp", &agent, &conform_in_c(&of("conform-c-cpp"), SANITIZED));
}

/// What the two above look for is found where it is planted.
#[test]
fn a_leak_and_an_overflow_are_found() {
    for plant in ["PLANTED_LEAK", "PLANTED_OVERFLOW"] {
        let planted = format!("-D{plant}");
        let plain = conform_in_c(&of(&format!("conform-{plant}")), &[&planted]);
        let sanitized = [SANITIZED, &[&planted]].concat();
        let sanitized = conform_in_c(&of(&format!("conform-{plant}-sanitized")), &sanitized);
        for (how, client) in [("valgrind", under_valgrind(&plain)), ("sanitizers", sanitized)] {
            let pair = Pair { agent: Path::new(RUST), client: &client };
            let found = fault(&format!("plant-{how}"), pair, "a client knows who it is");
            assert!(!found.is_empty(), "{plant}: {how} found nothing");
        }
        let pair = Pair { agent: Path::new(RUST), client: &plain };
        assert_eq!(fault("plant-plain", pair, "a client knows who it is"), "", "{plant}");
    }
}

#[test]
fn python_joins_rust() {
    whole("py-rust", Path::new(RUST), &conform_in_python(&of("conform-py-rust")));
}

#[test]
fn c_joins_python() {
    whole("c-py", &conform_in_python(&of("conform-py")), &conform_in_c(&of("conform-c-py"), &[]));
}

/// What the covering set above leaves out: `make conformance`.
#[test]
#[ignore = "all pairs: make conformance"]
fn all_pairs() {
    let programs = [
        ("rust", PathBuf::from(RUST)),
        ("c", conform_in_c(&of("conform-all-c"), &[])),
        ("cpp", conform_in_cpp(&of("conform-all-cpp"), &[])),
        ("py", conform_in_python(&of("conform-all-py"))),
    ];
    for (agent, serves) in &programs {
        for (client, joins) in &programs {
            whole(&format!("{client}-{agent}"), serves, joins);
        }
    }
}
