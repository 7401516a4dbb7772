//! A node: its view of the file system, containerd, kubelet.

use crate::cgroups;
use crate::images::PAUSE;
use crate::place::{BRIDGE, Place, REGISTRY_PORT, node_address, nodes, pod_network, registry};
use crate::programs::{CLUSTER, Programs};
use crate::supervise::{self, Program};
use anyhow::Context;
use rustix::fs::CWD;
use rustix::mount::{
    MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, mount, mount_bind, mount_change, move_mount,
    open_tree,
};
use serde_json::json;
use std::fs;
use std::os::fd::OwnedFd;
use std::path::Path;

/// What Debian's containernetworking-plugins installs.
pub const CNI: &str = "/usr/lib/cni";
/// Sysctls of the whole machine that a kubelet wants so. Each node reads these values from files over them, finds nothing to write,
/// and leaves the machine's as they are.
const WANTED: [(&str, &str); 6] = [
    ("vm/overcommit_memory", "1"),
    ("vm/panic_on_oom", "0"),
    ("kernel/panic", "10"),
    ("kernel/panic_on_oops", "1"),
    ("kernel/keys/root_maxkeys", "1000000"),
    ("kernel/keys/root_maxbytes", "25000000"),
];
const PLAIN: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV).union(MountFlags::NOEXEC);

/// The machine's values of those, to be compared when the cluster goes.
pub fn sysctls() -> String {
    let value = |name: &str| fs::read_to_string(Path::new("/proc/sys").join(name)).unwrap_or_default();
    WANTED.iter().map(|(name, _)| format!("{name} = {}\n", value(name).trim())).collect()
}

/// Writes what a node's programs are configured by. Outside, before the node starts.
pub fn prepare(place: &Place, index: usize) -> anyhow::Result<()> {
    let node = nodes()[index];
    let directory = place.node(node);
    for name in
        ["var-lib/kubelet", "var-lib/containerd", "var-lib/cni", "var-log/pods", "var-log/containers", "cni", "sysctl"]
    {
        let path = directory.join(name);
        fs::create_dir_all(&path).with_context(|| format!("making {}", path.display()))?;
    }
    for (name, value) in WANTED {
        fs::write(directory.join("sysctl").join(name.replace('/', ".")), format!("{value}\n"))?;
    }
    fs::write(directory.join("containerd.toml"), containerd(&directory))?;
    let certificates = directory.join("registries").join(registry());
    fs::create_dir_all(&certificates)?;
    // Nodes reach it on their bridge only.
    let hosts = format!("[host.\"http://{BRIDGE}:{REGISTRY_PORT}\"]\n  capabilities = [\"pull\", \"resolve\"]\n");
    fs::write(certificates.join("hosts.toml"), hosts)?;
    fs::write(directory.join("resolv.conf"), "")?;
    let (subnet, _) = pod_network(index);
    let cni = json!({
        "cniVersion": "1.0.0", "name": "pods",
        "plugins": [{
            "type": "bridge", "bridge": "pods", "isGateway": true, "ipMasq": false, "hairpinMode": true,
            "ipam": {"type": "host-local", "dataDir": "/run/cni", "ranges": [[{"subnet": subnet}]], "routes": [{"dst": "0.0.0.0/0"}]},
        }],
    });
    fs::write(directory.join("cni/10-pods.conflist"), cni.to_string())?;
    fs::write(directory.join("kubelet.json"), kubelet(place, node).to_string())?;
    Ok(())
}

fn containerd(directory: &Path) -> String {
    format!(
        r#"version = 3
root = "/var/lib/containerd"
state = "/run/containerd"
disabled_plugins = ["io.containerd.snapshotter.v1.blockfile", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.erofs", "io.containerd.snapshotter.v1.zfs", "io.containerd.tracing.processor.v1.otlp"]

[grpc]
  address = "/run/containerd/containerd.sock"

[plugins.'io.containerd.cri.v1.images'.pinned_images]
  sandbox = "{PAUSE}"

[plugins.'io.containerd.cri.v1.images'.registry]
  config_path = "{}"

[plugins.'io.containerd.cri.v1.runtime']
  # Root here may lack CAP_SYS_RESOURCE, which lowering oom_score_adj needs.
  restrict_oom_score_adj = true

[plugins.'io.containerd.cri.v1.runtime'.cni]
  bin_dirs = ["{CNI}"]
  conf_dir = "{}"

[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"

[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
  SystemdCgroup = false
"#,
        directory.join("registries").display(),
        directory.join("cni").display()
    )
}

fn kubelet(place: &Place, node: &str) -> serde_json::Value {
    json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration",
        "authentication": {"anonymous": {"enabled": false}, "webhook": {"enabled": false}, "x509": {"clientCAFile": place.path("pki/ca.pem")}},
        "authorization": {"mode": "AlwaysAllow"},
        "cgroupDriver": "cgroupfs", "cgroupRoot": cgroups::root_of(node), "failCgroupV1": false, "failSwapOn": false,
        "oomScoreAdj": 0,
        "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
        "resolvConf": place.node(node).join("resolv.conf"),
        "volumePluginDir": "/var/lib/kubelet/volumeplugins",
        "makeIPTablesUtilChains": false,
        // The machine's disk is not the test's business.
        "evictionHard": {"memory.available": "50Mi", "nodefs.available": "0%", "nodefs.inodesFree": "0%", "imagefs.available": "0%", "imagefs.inodesFree": "0%"},
        "imageGCHighThresholdPercent": 100, "imageGCLowThresholdPercent": 99,
        "serializeImagePulls": false, "maxPods": 250,
        "fileCheckFrequency": "1m0s", "syncFrequency": "10s", "nodeStatusUpdateFrequency": "2s",
    })
}

/// Pid 1 of a node.
pub fn first(place: &Place, node: &str) -> anyhow::Result<()> {
    let index = nodes().iter().position(|name| *name == node).with_context(|| format!("no node {node:?}"))?;
    supervise::wait_for_network(place, node)?;
    let programs = Programs::built(CLUSTER)?;
    rustix::system::sethostname(format!("podshm-{node}").as_bytes()).context("setting the host name")?;
    view(&place.node(node))?;
    // Of this network namespace alone.
    fs::write("/proc/sys/net/ipv4/ip_forward", "1").context("letting pods reach other nodes")?;
    let program = |name: &str, arguments: Vec<String>| {
        let (path, search_path) = (programs.path(name)?, programs.search_path());
        anyhow::Ok(Program { name: name.to_owned(), path, arguments, search_path })
    };
    let containerd = format!("--config={}", place.node(node).join("containerd.toml").display());
    let kubelet = vec![
        format!("--config={}", place.node(node).join("kubelet.json").display()),
        format!("--kubeconfig={}", place.path("pki").join(format!("node-{node}.kubeconfig")).display()),
        format!("--hostname-override={node}"),
        format!("--node-ip={}", node_address(index)),
        "--v=2".into(),
    ];
    supervise::run(place, node, vec![program("containerd", vec![containerd])?, program("kubelet", kubelet)?])
}

/// Mounts: what is a node's own, over the machine's.
fn view(directory: &Path) -> anyhow::Result<()> {
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).context("making mounts private")?;
    let take = |path: &Path| -> anyhow::Result<OwnedFd> {
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
        open_tree(CWD, path, flags).with_context(|| format!("taking {} along", path.display()))
    };
    let attach = |tree: &OwnedFd, to: &Path| -> anyhow::Result<()> {
        move_mount(tree, "", CWD, to, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
            .with_context(|| format!("mounting at {}", to.display()))
    };
    let tmpfs = |at: &str, flags: MountFlags, options: &std::ffi::CStr| {
        mount("podshm", at, "tmpfs", flags, options).with_context(|| format!("mounting a tmpfs at {at}"))
    };
    let groups = take(Path::new("/sys/fs/cgroup"))?;
    mount("proc", "/proc", "proc", PLAIN, c"").context("mounting /proc")?;
    mount("sysfs", "/sys", "sysfs", PLAIN, c"").context("mounting /sys")?;
    attach(&groups, Path::new("/sys/fs/cgroup"))?;
    for (at, own) in [("/var/lib", "var-lib"), ("/var/log", "var-log")] {
        mount_bind(directory.join(own), at).with_context(|| format!("mounting the node's own {at}"))?;
    }
    let dev = MountFlags::NOSUID | MountFlags::NODEV;
    tmpfs("/run", dev, c"mode=755")?;
    tmpfs("/dev/shm", dev, c"mode=1777")?;
    if Path::new("/dev/mqueue").exists() {
        mount("mqueue", "/dev/mqueue", "mqueue", PLAIN, c"").context("mounting /dev/mqueue")?;
    }
    for (name, _) in WANTED {
        let over = Path::new("/proc/sys").join(name);
        if over.exists() {
            mount_bind(directory.join("sysctl").join(name.replace('/', ".")), &over)
                .with_context(|| format!("hiding {}", over.display()))?;
        }
    }
    // As on any node: a pod's Bidirectional mounts need it.
    mount_change("/", MountPropagationFlags::SHARED | MountPropagationFlags::REC).context("making mounts shared")
}
