//! The same script natively, in an IPC namespace of its own, and through the preload library: every result and every errno.
#![forbid(unsafe_code)]

use podshm_unmodified_tests::programs::{Build, compile, text};
use podshm_unmodified_tests::script::{WORKERS, calls};
use podshm_unmodified_tests::{Domain, small};
use std::io::Write;
use std::process::{Command, Stdio};

fn answers(mut command: Command, script: &[String]) -> Vec<String> {
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it runs");
    let mut stdin = child.stdin.take().expect("piped");
    let input = script.join("\n") + "\n";
    let writer = std::thread::spawn(move || stdin.write_all(input.as_bytes()));
    let output = child.wait_with_output().expect("it ends");
    let _ = writer.join();
    text(&command, output).lines().map(str::to_owned).collect()
}

/// A member's own IPC namespace with these limits, as `podshm run` makes one with none.
fn native(program: &std::path::Path) -> Command {
    let limits = small();
    let mut command = Command::new("unshare");
    let set = format!(
        "echo {} > /proc/sys/kernel/shmmax; echo {} > /proc/sys/kernel/shmall; echo {} > /proc/sys/kernel/shmmni; exec \"$@\"",
        limits.shmmax, limits.shmall, limits.shmmni
    );
    command.args(["--ipc", "sh", "-c", &set, "sh"]).arg(program).args(WORKERS);
    command
}

/// Both answers to every line.
fn both(name: &str, script: &[String], build: Build) -> (Vec<String>, Vec<String>) {
    let program = compile("caller", build);
    let domain = Domain::start(name, small());
    let mut through = domain.command("member", &program);
    through.args(WORKERS);
    (answers(through, script), answers(native(&program), script))
}

/// The first line that they answer differently.
fn difference(name: &str, script: &[String], build: Build) -> Option<(usize, String, String)> {
    let (ours, kernels) = both(name, script, build);
    let line = ours.iter().zip(&kernels).position(|(ours, kernels)| ours != kernels)?;
    Some((line, ours[line].clone(), kernels[line].clone()))
}

/// Leaves out what the difference does not need.
fn shrunk(name: &str, mut script: Vec<String>, build: Build) -> Vec<String> {
    for step in [64, 16, 4, 1] {
        let mut at = 0;
        while at < script.len() {
            let mut less = script.clone();
            less.drain(at..(at + step).min(script.len()));
            match difference(name, &less, build) {
                Some((line, ..)) => {
                    less.truncate(line + 1);
                    script = less;
                }
                None => at += step,
            }
        }
    }
    script
}

fn compare(name: &str, seed: u64, script: &[String], build: Build) {
    let (ours, kernels) = both(name, script, build);
    if let Some(line) = ours.iter().zip(&kernels).position(|(ours, kernels)| ours != kernels) {
        let least = shrunk(name, script[..=line].to_vec(), build);
        panic!(
            "seed {seed}, {build:?}, line {line}: ours {:?}, the kernel's {:?}; the same comes of\n{}",
            ours[line],
            kernels[line],
            least.join("\n")
        );
    }
    assert_eq!(ours.len(), script.len());
    let worked = ours.iter().filter(|answer| !answer.starts_with("-1")).count();
    assert!(worked * 3 > ours.len(), "most of this script fails: it tests nothing");
}

fn seeds(from: u64, build: Build) {
    // PODSHM_SEEDS=from-to for more of them.
    let asked = std::env::var("PODSHM_SEEDS").ok().and_then(|text| {
        let (from, to) = text.split_once('-')?;
        Some(from.parse().ok()?..to.parse().ok()?)
    });
    for seed in asked.unwrap_or(from..from + 8) {
        compare(&format!("diff-{build:?}"), seed, &calls(seed, 600), build);
    }
}

#[test]
fn random_calls_answer_as_the_kernels_do() {
    seeds(1, Build::Dynamic);
}

#[test]
fn random_calls_answer_as_the_kernels_do_under_musl() {
    seeds(101, Build::Musl);
}
