//! The conformance suite, by programs in every language there is a library for: who joins in one, who serves in the same or another.

use podshm_tests::conformance::{Pair, cases, run};
use podshm_tests::programs::{conform_in_c, conform_in_cpp};
use std::path::{Path, PathBuf};

const RUST: &str = env!("CARGO_BIN_EXE_podshm-test-conform");

fn of(directory: &str) -> PathBuf {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join(directory);
    std::fs::create_dir_all(&directory).expect("a directory");
    directory
}

/// All of the suite, unless pods have no walls here, which is said.
fn whole(name: &str, agent: &Path, client: &Path) {
    let done = run(name, Pair { agent, client });
    assert!(done == 0 || done == cases().len(), "{done} of {}", cases().len());
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

#[test]
fn cpp_joins_rust() {
    whole("cpp-rust", Path::new(RUST), &conform_in_cpp(&of("conform-cpp-rust")));
}

#[test]
fn c_joins_cpp() {
    let (agent, client) = (conform_in_cpp(&of("conform-cpp")), conform_in_c(&of("conform-c-cpp"), &[]));
    whole("c-cpp", &agent, &client);
}
