//! The node that this runs on: what its kernel has, judged.
//!
//! [`gather`] looks, [`findings`] judges what it saw and nothing else.

use super::finding::{Finding, Level};
use super::support::{self, Support};
use podshm_region::barrier;
use podshm_region::peer::{self, Means, Peer};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create, statvfs};
use rustix::process::{PidfdFlags, getpid, pidfd_open};
use std::fs;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;
use std::path::Path;

/// What a pod's /dev/shm has by default: less on a node would be odd.
const LITTLE: u64 = 64 << 20;
/// The kernel's number of System V segments by default; it is often lowered, never needed to be.
const FEW_SEGMENTS: u64 = 128;
/// The kubelet's --root-dir, where nobody has said another.
const KUBELET: &str = "/var/lib/kubelet";
/// From here on a file system is told to be full soon.
const FULL_PERCENT: u64 = 80;

/// What was seen. `None` is what could not be looked at.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    pub kernel: String,
    /// As Kubernetes calls it.
    pub architecture: String,
    pub page_size: usize,
    /// Why a memfd can't be made and sealed, where it can't.
    pub no_seals: Option<String>,
    pub no_pidfd: Option<String>,
    pub means: Option<Means>,
    pub has_barriers: bool,
    pub has_seccomp_notice: bool,
    pub shm: Option<Space>,
    pub shmmax: Option<u64>,
    pub shmall: Option<u64>,
    pub shmmni: Option<u64>,
    /// The word in brackets of `transparent_hugepage/shmem_enabled`.
    pub huge_shmem: Option<String>,
    /// Pages of the pool: all, free.
    pub huge_pool: Option<(u64, u64)>,
    pub cgroup: Option<Cgroup>,
    /// Runtime, and whether its NRI socket is there too.
    pub runtimes: Vec<(String, bool)>,
    /// What podshmd's driver has on this node; `None` where no kubelet is.
    pub driver: Option<Driver>,
    /// Whether SELinux enforces, where there is SELinux.
    pub selinux: Option<bool>,
    pub has_apparmor: bool,
}

/// What is there of the driver.
#[derive(Clone, Copy, Debug, Default)]
pub struct Driver {
    /// Where the kubelet finds out about it.
    pub registration: bool,
    /// Where the kubelet calls it.
    pub endpoint: bool,
    /// podshmd's directory.
    pub root: bool,
}

/// A file system's bytes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Space {
    pub size: u64,
    pub free: u64,
}

/// Which hierarchy resources are counted by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cgroup {
    V1,
    V2,
}

/// Looks at this machine; at a container's view of it, in one.
pub fn gather() -> Facts {
    let word = |path: &str| fs::read_to_string(path).ok().map(|text| text.trim().to_owned());
    let number = |path: &str| word(path)?.parse::<u64>().ok();
    let memory = word("/proc/meminfo").unwrap_or_default();
    let pages = |name: &str| {
        let line = memory.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim_start_matches(':').trim().parse::<u64>().ok()
    };
    let is_socket = |path: &str| fs::metadata(path).is_ok_and(|found| found.file_type().is_socket());
    let has_nri = is_socket("/run/nri/nri.sock");
    let runtimes = [("containerd", "/run/containerd/containerd.sock"), ("CRI-O", "/run/crio/crio.sock")];
    Facts {
        kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
        architecture: kubernetes_name(std::env::consts::ARCH).to_owned(),
        page_size: rustix::param::page_size(),
        no_seals: seals().err().map(|e| e.to_string()),
        no_pidfd: pidfd_open(getpid(), PidfdFlags::empty()).err().map(|e| e.to_string()),
        means: means(),
        has_barriers: barrier::register_private() && barrier::register_global(),
        has_seccomp_notice: word("/proc/sys/kernel/seccomp/actions_avail")
            .is_some_and(|actions| actions.split(' ').any(|action| action == "user_notif")),
        shm: statvfs("/dev/shm")
            .ok()
            .map(|fs| Space { size: fs.f_blocks * fs.f_frsize, free: fs.f_bavail * fs.f_frsize }),
        shmmax: number("/proc/sys/kernel/shmmax"),
        shmall: number("/proc/sys/kernel/shmall"),
        shmmni: number("/proc/sys/kernel/shmmni"),
        huge_shmem: word("/sys/kernel/mm/transparent_hugepage/shmem_enabled").and_then(|all| chosen(&all)),
        huge_pool: pages("HugePages_Total").zip(pages("HugePages_Free")),
        cgroup: cgroup(),
        runtimes: runtimes
            .into_iter()
            .filter(|(_, socket)| is_socket(socket))
            .map(|(name, _)| (name.into(), has_nri))
            .collect(),
        driver: Path::new(KUBELET).join("pods").is_dir().then(|| Driver {
            registration: is_socket(&format!("{KUBELET}/plugins_registry/podshm.dev/podshm.dev@reg.sock")),
            endpoint: is_socket(&format!("{KUBELET}/plugins/podshm.dev/csi.sock")),
            root: Path::new("/run/podshm").is_dir(),
        }),
        selinux: number("/sys/fs/selinux/enforce").map(|enforces| enforces == 1),
        has_apparmor: word("/sys/module/apparmor/parameters/enabled").is_some_and(|enabled| enabled == "Y"),
    }
}

fn kubernetes_name(rust: &str) -> &str {
    match rust {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// What a region needs: no one can map it writable, shrink or grow it any more.
fn seals() -> rustix::io::Result<()> {
    let memory = memfd_create("podshm-doctor", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    fcntl_add_seals(&memory, SealFlags::SHRINK | SealFlags::GROW | SealFlags::FUTURE_WRITE | SealFlags::SEAL)
}

fn means() -> Option<Means> {
    let (here, _there) = UnixStream::pair().ok()?;
    match peer::process_of(&here) {
        Ok(Peer::Alive(_, means)) => Some(means),
        Ok(Peer::Dead) | Err(_) => None,
    }
}

fn cgroup() -> Option<Cgroup> {
    let root = Path::new("/sys/fs/cgroup");
    let v2 = root.join("cgroup.controllers").exists().then_some(Cgroup::V2);
    v2.or_else(|| root.join("memory").exists().then_some(Cgroup::V1))
}

/// The word in brackets of a list of choices.
fn chosen(all: &str) -> Option<String> {
    Some(all.split_once('[')?.1.split_once(']')?.0.to_owned())
}

/// Judges what was seen.
pub fn findings(facts: &Facts, support: &Support) -> Vec<Finding> {
    [kernel(facts, support), memory(facts), surroundings(facts, support)].concat()
}

fn kernel(facts: &Facts, support: &Support) -> Vec<Finding> {
    let floors = &support.floors;
    let is_there = |problem: &Option<String>| {
        problem.as_ref().map_or_else(|| "works".to_owned(), |why| format!("does not work: {why}"))
    };
    let (means, is_sure) = match facts.means {
        Some(Means::PeerPidfd) => ("by SO_PEERPIDFD", true),
        Some(Means::PeerCredentials) => ("by the peer's pid", true),
        None => ("not at all: no pid of a peer is visible", false),
    };
    let has = |has: bool| if has { "there" } else { "not there" };
    vec![
        Finding::ok("kernel", &facts.kernel, format!("{} or newer", floors.kernel)).judged(
            support::reaches(&facts.kernel, &floors.kernel) == Some(true),
            Level::Problem,
            format!("run podshm on nodes with a newer kernel only, by nodeSelector of podshmd: {}", support.says("Linux before 6.1")),
        ),
        Finding::ok("architecture", &facts.architecture, floors.architectures.join(" or ")).judged(
            floors.architectures.contains(&facts.architecture),
            Level::Warning,
            "nothing was tested on it: run the tests there before you rely on it, docs/support.md",
        ),
        Finding::ok("page-size", facts.page_size.to_string(), floors.page_size.to_string()).judged(
            facts.page_size == floors.page_size,
            Level::Warning,
            format!("boot a kernel with pages of 4 KiB: {}", support.says("Pages of 64 KiB")),
        ),
        Finding::ok("memfd-seals", is_there(&facts.no_seals), "works").judged(
            facts.no_seals.is_none(),
            Level::Problem,
            "without F_SEAL_FUTURE_WRITE nothing keeps a region to one writer: another kernel, or a seccomp profile that lets memfd_create and \
             fcntl through",
        ),
        Finding::ok("pidfd", is_there(&facts.no_pidfd), "works").judged(
            facts.no_pidfd.is_none(),
            Level::Warning,
            "a child that keeps a dead process's socket would hide its death: let pidfd_open through the seccomp profile",
        ),
        Finding::ok("peer-pidfd", format!("deaths are seen {means}"), "SO_PEERPIDFD (Linux 6.5), or a pid that is visible").judged(
            is_sure,
            Level::Warning,
            "run podshmd in the node's pid namespace, or a kernel from 6.5 on",
        ),
        Finding::ok("membarrier", has(facts.has_barriers), "there").judged(
            facts.has_barriers,
            Level::Warning,
            "podshm works, each push with a fence of its own, and is slower: let membarrier through the seccomp profile",
        ),
        Finding::ok("seccomp-notice", has(facts.has_seccomp_notice), "there").judged(
            facts.has_seccomp_notice,
            Level::Warning,
            "`podshm run` can't tell of calls that go past the preload library; nothing else needs it",
        ),
    ]
}

fn memory(facts: &Facts) -> Vec<Finding> {
    let mut all = Vec::new();
    match facts.shm {
        None => all.push(Finding::ok("dev-shm", "none", "a tmpfs at /dev/shm").judged(
            false,
            Level::Warning,
            "scheme `host` needs it on the node: mount -t tmpfs tmpfs /dev/shm; domains have their own",
        )),
        Some(Space { size, free }) => {
            let percent = (size - free.min(size)) * 100 / size.max(1);
            all.push(Finding::ok("dev-shm", format!("{}, {percent} % in use", bytes(size)), format!("{} or more", bytes(LITTLE))).judged(
                size >= LITTLE && percent < FULL_PERCENT,
                Level::Warning,
                "bounds POSIX memory of scheme `host`, and of pods without podshm: see what is in it, or mount -o remount,size=… /dev/shm",
            ));
        }
    }
    let page = facts.page_size as u64;
    let sysctls = [
        ("shmmax", facts.shmmax, LITTLE, "bytes of one System V segment", false),
        (
            "shmall",
            facts.shmall.map(|pages| pages.saturating_mul(page)),
            LITTLE,
            "bytes of all System V segments",
            false,
        ),
        ("shmmni", facts.shmmni, FEW_SEGMENTS, "System V segments", true),
    ];
    for (name, value, least, what, is_count) in sysctls {
        let shown = |value: u64| if is_count { value.to_string() } else { bytes(value) };
        let Some(value) = value else { continue };
        all.push(Finding::ok(name, format!("{} {what}", shown(value)), format!("{} or more", shown(least))).judged(
            value >= least,
            Level::Warning,
            format!("scheme `host` and native mode `sysv` are bounded by it: sysctl -w kernel.{name}=…"),
        ));
    }
    if let Some(choice) = &facts.huge_shmem {
        all.push(Finding::ok("huge-pages-shmem", choice, "any but deny").judged(
            choice != "deny",
            Level::Warning,
            "large tables stay in small pages, lookups are slower: echo advise > /sys/kernel/mm/transparent_hugepage/shmem_enabled",
        ));
    }
    if let Some((pages, free)) = facts.huge_pool {
        all.push(Finding::ok("huge-pages-pool", format!("{pages} pages, {free} free"), "any: podshm takes none of it"));
    }
    all
}

fn surroundings(facts: &Facts, support: &Support) -> Vec<Finding> {
    let mut all = Vec::new();
    let cgroup = match facts.cgroup {
        Some(Cgroup::V1) => "v1",
        Some(Cgroup::V2) => "v2",
        None => "none that is visible",
    };
    all.push(Finding::ok("cgroup", cgroup, "v1 or v2").judged(
        facts.cgroup.is_some(),
        Level::Warning,
        "who pays for memory can't be said; mount /sys/fs/cgroup",
    ));
    if facts.runtimes.is_empty() {
        all.push(Finding::ok("runtime", "no socket of containerd or CRI-O in /run", "any, where this is a node"));
    }
    for (name, has_nri) in &facts.runtimes {
        let nri = if *has_nri { "with NRI" } else { "without NRI" };
        all.push(Finding::ok("runtime", format!("{name} {nri}"), "containerd; NRI for native mode `sysv`").judged(
            name == "containerd",
            Level::Warning,
            format!("run the tests there before you rely on it: {}", support.says("CRI-O")),
        ));
    }
    all.push(driver(facts));
    let selinux = match facts.selinux {
        Some(true) => "enforcing",
        Some(false) => "permissive",
        None => "not there",
    };
    all.push(Finding::ok("selinux", selinux, "not there, or permissive").judged(
        facts.selinux != Some(true),
        Level::Warning,
        format!("look for denials (ausearch -m avc): {}", support.says("SELinux, enforcing")),
    ));
    all.push(Finding::ok("apparmor", if facts.has_apparmor { "enabled" } else { "not there" }, "any"));
    all
}

fn driver(facts: &Facts) -> Finding {
    let expected = "podshmd's sockets for the kubelet, and /run/podshm";
    let Some(Driver { registration, endpoint, root }) = facts.driver else {
        return Finding::ok("csi-driver", "no kubelet in /var/lib/kubelet", "any, where this is no node");
    };
    let is_there = |is_there: bool| if is_there { "there" } else { "not there" };
    let found = format!(
        "plugins_registry/podshm.dev/podshm.dev@reg.sock {}, plugins/podshm.dev/csi.sock {}, /run/podshm {}",
        is_there(registration),
        is_there(endpoint),
        is_there(root)
    );
    Finding::ok("csi-driver", found, expected).judged(
        registration && endpoint && root,
        Level::Problem,
        "podshmd does not run on this node: kubectl -n podshm-system get pods -l app=podshmd -o wide; or the kubelet's --root-dir is not the \
         chart's kubeletDir",
    )
}

/// As people write it.
fn bytes(bytes: u64) -> String {
    match bytes {
        // The kernel's way to say that there is no limit.
        _ if bytes >= 1 << 50 => "unlimited".into(),
        _ if bytes >= 1 << 30 && bytes.is_multiple_of(1 << 30) => format!("{}Gi", bytes >> 30),
        _ if bytes >= 1 << 20 => format!("{}Mi", bytes >> 20),
        _ => format!("{bytes}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn healthy() -> Facts {
        Facts {
            kernel: "6.12.1".into(),
            architecture: "amd64".into(),
            page_size: 4096,
            means: Some(Means::PeerPidfd),
            has_barriers: true,
            has_seccomp_notice: true,
            shm: Some(Space { size: 1 << 30, free: 1 << 29 }),
            shmmax: Some(u64::MAX),
            shmall: Some(u64::MAX),
            shmmni: Some(4096),
            huge_shmem: Some("advise".into()),
            huge_pool: Some((0, 0)),
            cgroup: Some(Cgroup::V2),
            runtimes: vec![("containerd".into(), true)],
            driver: Some(Driver { registration: true, endpoint: true, root: true }),
            ..Facts::default()
        }
    }

    fn judged(facts: &Facts) -> Vec<Finding> {
        findings(facts, &support::table())
    }

    #[test]
    fn a_healthy_node_has_nothing_to_be_said_of() {
        for finding in judged(&healthy()) {
            assert_eq!((finding.level, finding.remedy.as_str()), (Level::Ok, ""), "{finding:?}");
        }
    }

    #[test]
    fn each_fault_is_found_by_its_own_check_alone_and_has_a_remedy() {
        type Fault = fn(&mut Facts);
        let faults: [(&str, Level, Fault); 19] = [
            ("kernel", Level::Problem, |f| f.kernel = "5.15.0-100-generic".into()),
            ("architecture", Level::Warning, |f| f.architecture = "riscv64".into()),
            ("page-size", Level::Warning, |f| f.page_size = 65536),
            ("memfd-seals", Level::Problem, |f| f.no_seals = Some("Operation not permitted".into())),
            ("pidfd", Level::Warning, |f| f.no_pidfd = Some("Function not implemented".into())),
            ("peer-pidfd", Level::Warning, |f| f.means = None),
            ("membarrier", Level::Warning, |f| f.has_barriers = false),
            ("seccomp-notice", Level::Warning, |f| f.has_seccomp_notice = false),
            ("dev-shm", Level::Warning, |f| f.shm = None),
            ("dev-shm", Level::Warning, |f| f.shm = Some(Space { size: 1 << 30, free: 1 << 20 })),
            ("dev-shm", Level::Warning, |f| f.shm = Some(Space { size: 1 << 20, free: 1 << 20 })),
            ("shmmax", Level::Warning, |f| f.shmmax = Some(32 << 20)),
            ("shmall", Level::Warning, |f| f.shmall = Some(100)),
            ("shmmni", Level::Warning, |f| f.shmmni = Some(8)),
            ("huge-pages-shmem", Level::Warning, |f| f.huge_shmem = Some("deny".into())),
            ("cgroup", Level::Warning, |f| f.cgroup = None),
            ("csi-driver", Level::Problem, |f| f.driver = Some(Driver::default())),
            ("csi-driver", Level::Problem, |f| f.driver.as_mut().unwrap().registration = false),
            ("selinux", Level::Warning, |f| f.selinux = Some(true)),
        ];
        for (check, level, plant) in faults {
            let mut facts = healthy();
            plant(&mut facts);
            let bad: Vec<Finding> = judged(&facts).into_iter().filter(|finding| finding.level != Level::Ok).collect();
            assert_eq!(bad.len(), 1, "{check}: {bad:?}");
            assert_eq!((bad[0].check.as_str(), bad[0].level), (check, level));
            assert!(!bad[0].remedy.is_empty(), "{check}");
        }
    }

    #[test]
    fn this_machine_can_be_looked_at() {
        let facts = gather();
        assert_eq!(facts.no_seals, None);
        assert!(facts.means.is_some() && facts.shm.is_some() && facts.page_size >= 4096, "{facts:?}");
        assert!(judged(&facts).len() >= 12);
    }

    #[test]
    fn choices_are_read_as_the_kernel_writes_them() {
        assert_eq!(chosen("always within_size advise [never] deny force").as_deref(), Some("never"));
        assert_eq!(chosen("nothing"), None);
    }
}
