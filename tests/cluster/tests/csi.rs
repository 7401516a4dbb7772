//! csi-sanity, the CSI conformance suite, against podshmd; and what it leaves out, a volume that is published. Needs root and no cluster.

#[path = "csi/grpc.rs"]
mod grpc;

use grpc::{Ended, call};
use podshm_cluster::images::built_statically;
use podshm_cluster::programs::{Programs, TESTS};
use podshm_node::messages::{Nothing, PublishRequest, UnpublishRequest, VolumeCapability};
use serde_json::Value;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

const SKIPS: &str = include_str!("../csi-sanity-skips.txt");

/// As whom podshmd runs in its pod.
const USER: &str = "65532";

/// A daemon as it is shipped, unprivileged beside its mount helper, on a directory of its own, in a mount namespace of their own.
struct Daemon {
    helper: Child,
    process: Child,
    directory: PathBuf,
}

impl Daemon {
    fn start(name: &str) -> Self {
        let directory = PathBuf::from(format!("/var/tmp/podshm-csi-{name}-{}", std::process::id()));
        for name in ["root", "kubelet/pods", "domains", "own"] {
            fs::create_dir_all(directory.join(name)).unwrap();
        }
        let domain = r#"{"modes": ["channel", "posix"], "shmSize": "1Mi", "join": [{"namespace": "*"}]}"#;
        fs::write(directory.join("domains/routing"), domain).unwrap();
        let helper = Command::new("unshare")
            .args(["--mount", "--propagation", "private"])
            .arg(built_statically("podshmd").unwrap())
            .args(["mount-helper", "--uid", USER])
            .arg("--socket")
            .arg(directory.join("own/mount.sock"))
            .args(Daemon::places(&directory))
            .spawn()
            .expect("unshare (util-linux)");
        until("the mount helper to listen", || directory.join("own/mount.sock").exists());
        let process = Daemon::run(&helper, &directory);
        Daemon { helper, process, directory }
    }

    fn places(directory: &Path) -> [OsString; 4] {
        let (root, kubelet) = (directory.join("root"), directory.join("kubelet"));
        ["--root".into(), root.into(), "--kubelet-dir".into(), kubelet.into()]
    }

    fn run(helper: &Child, directory: &Path) -> Child {
        let socket = directory.join("kubelet/plugins/podshm.dev/csi.sock");
        // Of the one before.
        let _ = fs::remove_file(&socket);
        let process = Command::new("nsenter")
            .args(["--mount", "--target", &helper.id().to_string()])
            .args(["setpriv", "--reuid", USER, "--regid", USER, "--clear-groups", "--no-new-privs"])
            .arg(built_statically("podshmd").unwrap())
            .args(["run", "--node", "here", "--metrics-addr", "127.0.0.1:0"])
            .args(Daemon::places(directory))
            .arg("--domains")
            .arg(directory.join("domains"))
            .arg("--mount-helper")
            .arg(directory.join("own/mount.sock"))
            .spawn()
            .expect("nsenter, setpriv (util-linux)");
        until("podshmd to listen", || socket.exists());
        process
    }

    /// Kills it; another one follows.
    fn restart(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
        self.process = Daemon::run(&self.helper, &self.directory);
    }

    fn socket(&self) -> PathBuf {
        self.directory.join("kubelet/plugins/podshm.dev/csi.sock")
    }

    /// How often something is mounted there, in the namespace of the daemon and its helper.
    fn mounts_at(&self, place: &Path) -> usize {
        let all = fs::read_to_string(format!("/proc/{}/mountinfo", self.helper.id())).unwrap();
        all.lines().filter(|line| line.split(' ').nth(4) == place.to_str()).count()
    }

    /// A path as they see it.
    fn seen(&self, place: &Path) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{}", self.helper.id(), place.display()))
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        for process in [&mut self.process, &mut self.helper] {
            let _ = process.kill();
            let _ = process.wait();
        }
        let _ = fs::remove_dir_all(&self.directory);
    }
}

fn until(what: &str, is_so: impl Fn() -> bool) {
    let begin = Instant::now();
    while !is_so() {
        assert!(begin.elapsed() < Duration::from_secs(240), "{what}: not so");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// What csi-sanity leaves out because it has no controller to make a volume: a volume of a pod, asked for as the kubelet does.
#[test]
fn a_volume_is_published_and_unpublished_as_often_as_the_kubelet_asks() {
    let mut daemon = Daemon::start("publish");
    let uid = "0c9dd3a5-4f0e-4d5c-8d5e-6a2f5f0e7b11";
    let volume = daemon.directory.join("kubelet/pods").join(uid).join("volumes/kubernetes.io~csi/podshm");
    fs::create_dir_all(&volume).unwrap();
    fs::write(volume.join("vol_data.json"), r#"{"driverName": "podshm.dev"}"#).unwrap();
    let target = volume.join("mount");
    let kubelet = [
        ("csi.storage.k8s.io/ephemeral", "true"),
        ("csi.storage.k8s.io/pod.namespace", "shop"),
        ("csi.storage.k8s.io/pod.name", "cart"),
        ("csi.storage.k8s.io/pod.uid", uid),
        ("csi.storage.k8s.io/serviceAccount.name", "default"),
        ("domain", "routing"),
    ];
    let publish = PublishRequest {
        volume_id: "csi-1".into(),
        target_path: target.display().to_string(),
        volume_capability: Some(VolumeCapability { block: None, mount: Some(Nothing {}) }),
        volume_context: kubelet.map(|(key, value)| (key.to_owned(), value.to_owned())).into(),
    };
    let unpublish = UnpublishRequest { volume_id: "csi-1".into(), target_path: publish.target_path.clone() };
    let done = Ended { code: 0, words: String::new() };
    let ask = |daemon: &Daemon| call(&daemon.socket(), "csi.v1.Node/NodePublishVolume", &publish);
    let end = |daemon: &Daemon| call(&daemon.socket(), "csi.v1.Node/NodeUnpublishVolume", &unpublish);
    let parts = [target.clone(), target.join("shm")];
    let is_there = |daemon: &Daemon| parts.each_ref().map(|part| daemon.mounts_at(part));

    // Unpublished before it was published: the kubelet does that after its own restart.
    assert_eq!((end(&daemon), is_there(&daemon)), (done.clone(), [0, 0]));
    for time in 1..=2 {
        assert_eq!((ask(&daemon), is_there(&daemon)), (done.clone(), [1, 1]), "published {time} times");
    }
    let socket = daemon.seen(&target).join("broker.sock");
    assert!(socket.exists(), "{:?}", fs::read_dir(daemon.seen(&target)).unwrap().flatten().collect::<Vec<_>>());
    // A daemon that is killed between the two.
    daemon.restart();
    assert_eq!((ask(&daemon), is_there(&daemon)), (done.clone(), [1, 1]), "and once more by the next daemon");
    daemon.restart();
    for time in 1..=2 {
        assert_eq!((end(&daemon), is_there(&daemon)), (done.clone(), [0, 0]), "unpublished {time} times");
        assert!(!daemon.seen(&target).exists());
    }
    assert_eq!(fs::read_dir(daemon.directory.join("root/volumes")).unwrap().count(), 0);
    // And again, under the same name.
    assert_eq!((ask(&daemon), is_there(&daemon)), (done.clone(), [1, 1]));
    assert_eq!((end(&daemon), is_there(&daemon)), (done, [0, 0]));
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
    let daemon = Daemon::start("sanity");
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
