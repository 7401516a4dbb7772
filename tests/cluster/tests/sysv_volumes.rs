//! Mode `sysv` by preload, without a cluster: an unmodified program, and what its domain's volume gives it. Needs root and cc.

use podshm_broker::{Broker, BrokerConfig};
use podshm_cluster::images::compile_dynamic;
use podshm_domain::{Identity, Role};
use podshm_node::domains::Domains;
use podshm_node::helper::Mounter;
use podshm_node::memory::Memory;
use podshm_node::mounts::{Mounts, is_mounted};
use podshm_node::request::{Target, VolumeId, Wanted};
use podshm_node::volumes::Volumes;
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_change, unmount};
use rustix::thread::UnshareFlags;
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

const KEY: &str = "0x706f6411";
const TEXT: &str = "10.0.0.1:80";
/// As long as a name may be: paths of sockets are short.
const DOMAIN: &str = "routing-aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";

fn daemon(node: &Path) -> Volumes {
    let state = Some(node.join("run/.broker"));
    let broker = Broker::start_with(BrokerConfig { state, rejoin_grace: Duration::from_secs(5) }).unwrap();
    let (root, kubelet) = (node.join("run"), node.join("kubelet"));
    let mounter = Mounter::Here(Mounts::of(&root, &kubelet));
    Volumes::restore(&root, Domains::at(&node.join("domains")), broker, mounter, Memory::UNBOUNDED).unwrap()
}

fn wanted(node: &Path, pod: &str) -> Wanted {
    let path = node.join("kubelet").join("pods").join(pod).join("volumes/kubernetes.io~csi/podshm/mount");
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let (target, uid) = Target::parse(path.to_str().unwrap(), &node.join("kubelet")).unwrap();
    Wanted {
        volume: VolumeId::parse(&format!("csi-{pod}")).unwrap(),
        target,
        who: Identity { namespace: "shop".into(), pod: pod.into(), uid, service_account: "default".into() },
        domain: DOMAIN.into(),
        role: Role::Member,
    }
}

/// What the probe says with a pod's library, as a user.
fn said(node: &Path, pod: &Wanted, user: u32, words: &[&str]) -> String {
    let library = pod.target.path().join("lib/libpodshm-preload.so");
    let mut probe = Command::new(node.join("probe"));
    let output = probe.args(words).env("LD_PRELOAD", &library).uid(user).gid(user).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).trim_end().to_owned();
    text + &String::from_utf8_lossy(&output.stderr)
}

fn left(node: &Path) -> Vec<PathBuf> {
    let members = node.join("run/domains").join(DOMAIN).join("members");
    let all = [node.join("run/volumes"), members].map(|path| fs::read_dir(path).unwrap().flatten());
    all.into_iter().flatten().map(|entry| entry.path()).collect()
}

#[test]
fn an_unmodified_program_shares_segments_by_one_variable() {
    let path = PathBuf::from("/tmp/podshm-sysv");
    let node = path.clone();
    let thread = std::thread::spawn(move || {
        // Deprecated for UnshareFlags::FILES, which is not among these.
        #[allow(deprecated)]
        rustix::thread::unshare(UnshareFlags::NEWNS).expect("a mount namespace of its own: needs root");
        mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).unwrap();
        fs::create_dir_all(&node).unwrap();
        mount("test", &node, "tmpfs", MountFlags::empty(), c"mode=755").unwrap();
        mount_change(&node, MountPropagationFlags::SHARED).unwrap();
        for directory in ["run", "kubelet/pods", "domains"] {
            fs::create_dir_all(node.join(directory)).unwrap();
        }
        let domain = r#"{"modes": ["posix", "sysv"], "shmSize": "1Mi", "sysv": {"shmmax": "1Mi", "shmall": "1Mi"},
            "join": [{"namespace": "shop"}]}"#;
        fs::write(node.join("domains").join(DOMAIN), domain).unwrap();
        compile_dynamic("probe", &node.join("probe")).unwrap();
        on(&node);
    });
    let ended = thread.join();
    let _ = fs::remove_dir(path);
    ended.expect("the test");
}

fn on(node: &Path) {
    let mut volumes = daemon(node);
    let (cart, till) = (wanted(node, "cart"), wanted(node, "till"));
    for pod in [&cart, &till, &till] {
        volumes.publish(pod).unwrap();
    }
    let library = cart.target.path().join("lib/libpodshm-preload.so");
    let refused = fs::File::options().write(true).open(&library).unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ReadOnlyFilesystem, "others load it, too");

    assert_eq!(said(node, &cart, 20_001, &["sysv-put", KEY, TEXT]), "");
    assert_eq!(said(node, &till, 30_002, &["sysv-get", KEY]), TEXT, "another pod and another user");
    let alone = Command::new(node.join("probe")).args(["sysv-get", KEY]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&alone.stdout).trim_end(), "sysv-get: No such file or directory");
    // /dev/shm of these programs is the machine's: the library asks the daemon for the domain's.
    assert_eq!(said(node, &cart, 20_001, &["posix-put", "/podshm-sysv-test", TEXT]), "");
    assert_eq!(said(node, &till, 30_002, &["posix-get", "/podshm-sysv-test"]), TEXT);
    assert_eq!(fs::read(cart.target.path().join("shm/podshm-sysv-test")).unwrap().len(), 4096);
    assert_eq!(
        said(node, &till, 30_002, &["sysv-fill", "0x706f6412", "2"]),
        "sysv-fill: Invalid argument",
        "over shmmax"
    );
    let full = said(node, &till, 30_002, &["sysv-fill", "0x706f6412", "1"]);
    assert_eq!(full, "sysv-fill: No space left on device", "over shmall, with the page that is there");
    assert_eq!(said(node, &till, 30_002, &["sem-get", KEY]), "sem-get: Function not implemented");

    // The next daemon, killed or not, listens at the same socket directories; memory stays.
    drop(volumes);
    let mut volumes = daemon(node);
    assert_eq!(said(node, &till, 30_002, &["sysv-get", KEY]), TEXT);
    // A pod that went while nobody was here.
    drop(volumes);
    while is_mounted(till.target.path()) {
        unmount(till.target.path(), UnmountFlags::DETACH).unwrap();
    }
    fs::remove_dir_all(node.join("kubelet/pods/till")).unwrap();
    volumes = daemon(node);
    assert_eq!(left(node).len(), 2, "{:?}", left(node));
    assert_eq!(said(node, &cart, 20_001, &["sysv-get", KEY]), TEXT);
    for _ in 0..2 {
        volumes.unpublish(&cart.volume, &cart.target).unwrap();
    }
    assert_eq!(left(node), [] as [PathBuf; 0]);
    volumes.publish(&till_again(node)).unwrap();
    assert_eq!(
        said(node, &till_again(node), 30_002, &["sysv-get", KEY]),
        TEXT,
        "as segments do, it stays without anybody"
    );
}

fn till_again(node: &Path) -> Wanted {
    wanted(node, "till")
}
