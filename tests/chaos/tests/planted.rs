//! Bugs that are planted in the agents of domain `work`: the harness must find each of them, in as many words.

use std::process::Command;

/// Runs it for a few seconds with agents killed now and then; what it says, and whether it found promises broken.
fn run_with(bug: &str) -> (String, bool) {
    let output = Command::new(env!("CARGO_BIN_EXE_podshm-chaos"))
        .args(["--seconds", "4", "--seed", "3", "--clients", "6", "--gap-ms", "150", "--least", "12"])
        .args(["--only", "agent killed", "--data", concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/data")])
        .args(Some(bug).filter(|bug| !bug.is_empty()).map(|bug| format!("--bug={bug}")))
        .env_remove("DURATION")
        .env_remove("SEED")
        .env_remove("CLIENTS")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    println!("{said}");
    (said, output.status.success())
}

#[track_caller]
fn is_found(bug: &str, words: &[&str]) {
    let (said, is_well) = run_with(bug);
    assert!(!is_well, "{bug} was not found");
    assert!(words.iter().any(|word| said.contains(word)), "{bug} was not named: expected one of {words:?}");
}

#[test]
fn without_a_bug_every_promise_is_kept() {
    let (said, is_well) = run_with("");
    assert!(is_well && said.contains("every promise was kept"));
}

#[test]
fn records_that_are_acknowledged_before_they_are_handled_are_found_lost() {
    is_found("acknowledges-early", &["accepted and lost"]);
}

#[test]
fn skipped_acknowledgements_are_found_by_what_comes_again() {
    is_found("skips-acknowledgements", &["records again over"]);
}

#[test]
fn an_index_that_is_published_before_its_record_is_found_by_readers() {
    is_found("entry-first", &["was torn", "was missing"]);
}
