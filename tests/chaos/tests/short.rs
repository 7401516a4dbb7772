//! Thirty seconds of everything: `make chaos` does the same for ten minutes.

use std::process::Command;

#[test]
fn two_hundred_faults_break_no_promise() {
    let status = Command::new(env!("CARGO_BIN_EXE_podshm-chaos"))
        .args(["--seconds", "30", "--least", "200", "--broker-restarts"])
        .args(["--data", concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/data")])
        .env_remove("DURATION")
        .status()
        .unwrap();
    assert!(status.success(), "promises were broken: what it says is above, with the seed that replays it");
}
