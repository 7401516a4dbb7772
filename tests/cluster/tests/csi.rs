//! csi-sanity, the CSI conformance suite, against podshmd. Needs root and no cluster.

use podshm_cluster::images::built_statically;
use podshm_cluster::programs::{Programs, TESTS};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

const SKIPS: &str = include_str!("../csi-sanity-skips.txt");

/// A daemon on a directory of its own, in a mount namespace of its own.
struct Daemon {
    process: Child,
    directory: PathBuf,
}

impl Daemon {
    fn start() -> Self {
        let directory = PathBuf::from(format!("/var/tmp/podshm-csi-{}", std::process::id()));
        for name in ["root", "kubelet/pods", "domains"] {
            fs::create_dir_all(directory.join(name)).unwrap();
        }
        fs::write(directory.join("domains/routing"), r#"{"modes": ["channel"], "join": [{"namespace": "*"}]}"#)
            .unwrap();
        let process = Command::new("unshare")
            .args(["--mount", "--propagation", "private"])
            .arg(built_statically("podshmd").unwrap())
            .args(["run", "--node", "here", "--metrics-addr", "127.0.0.1:0"])
            .arg("--root")
            .arg(directory.join("root"))
            .arg("--kubelet-dir")
            .arg(directory.join("kubelet"))
            .arg("--domains")
            .arg(directory.join("domains"))
            .spawn()
            .expect("unshare (util-linux)");
        Daemon { process, directory }
    }

    fn socket(&self) -> PathBuf {
        self.directory.join("kubelet/plugins/podshm.dev/csi.sock")
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// The list: what is left out by itself, what csi-sanity is asked to leave out.
fn skips() -> (Vec<&'static str>, Vec<&'static str>) {
    let lines = SKIPS.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
    let names: Vec<&str> = lines
        .map(|line| {
            let (name, capability) = line.split_once('|').unwrap_or_else(|| panic!("{line:?} names no capability"));
            assert!(capability.trim().chars().all(|c| c.is_ascii_uppercase() || c == '_'), "{line:?}");
            name.trim()
        })
        .collect();
    let asked = names.iter().filter_map(|name| name.strip_prefix("asked: ")).collect();
    (names.iter().filter(|name| !name.starts_with("asked: ")).copied().collect(), asked)
}

#[test]
fn csi_sanity_passes_and_skips_what_the_list_explains() {
    let daemon = Daemon::start();
    let begin = Instant::now();
    while !daemon.socket().exists() {
        assert!(begin.elapsed() < Duration::from_secs(60), "podshmd does not listen");
        std::thread::sleep(Duration::from_millis(20));
    }
    let (by_itself, asked) = skips();
    let report = daemon.directory.join("report.json");
    let mut sanity = Command::new(Programs::built(TESTS).unwrap().path("csi-sanity").unwrap());
    sanity.arg(format!("-csi.endpoint={}", daemon.socket().display()));
    sanity.arg(format!("-csi.mountdir={}", daemon.directory.join("mount").display()));
    sanity.arg(format!("-csi.stagingdir={}", daemon.directory.join("staging").display()));
    sanity.arg(format!("-ginkgo.json-report={}", report.display()));
    for pattern in &asked {
        sanity.arg(format!("-ginkgo.skip={pattern}"));
    }
    let status = sanity.status().expect("csi-sanity");
    let (passed, skipped) = outcomes(&report);
    println!("csi-sanity: {} passed, {} skipped", passed.len(), skipped.len());
    assert!(status.success(), "csi-sanity: {status}");
    for prefix in by_itself.iter().chain(&asked) {
        assert!(skipped.iter().any(|name| name.contains(prefix)), "the list has {prefix:?}, which nothing skips");
    }
    for name in &skipped {
        let is_listed =
            by_itself.iter().any(|prefix| name.starts_with(prefix)) || asked.iter().any(|part| name.contains(part));
        assert!(is_listed, "{name:?} is skipped, and csi-sanity-skips.txt does not say why");
    }
    assert!(passed.iter().any(|name| name.contains("NodePublishVolume")), "{passed:?}");
    assert!(passed.iter().any(|name| name.contains("NodeUnpublishVolume")), "{passed:?}");
}

/// Names of the tests that passed, and that were skipped.
fn outcomes(report: &Path) -> (Vec<String>, Vec<String>) {
    let text = fs::read_to_string(report).expect("csi-sanity's report");
    let report: Value = serde_json::from_str(&text).expect("csi-sanity's report");
    let specs = report[0]["SpecReports"].as_array().expect("a list of tests");
    let (mut passed, mut skipped) = (Vec::new(), Vec::new());
    for spec in specs.iter().filter(|spec| spec["LeafNodeType"] == "It") {
        let containers = spec["ContainerHierarchyTexts"].as_array().into_iter().flatten().filter_map(Value::as_str);
        let name = containers.chain(spec["LeafNodeText"].as_str()).collect::<Vec<_>>().join(" ");
        match spec["State"].as_str() {
            Some("passed") => passed.push(name),
            Some("skipped" | "pending") => skipped.push(name),
            other => println!("{name}: {other:?}"),
        }
    }
    (passed, skipped)
}
