//! The one privileged process: what it does for podshmd, and what it refuses whoever has taken podshmd over. Needs root and no cluster;
//! each test has a mount namespace of its own, and the helper in it no more capabilities than in its pod.

use podshm_node::helper::{Helper, Mounter, drop_privileges};
use podshm_node::mounts::{Ask, Found, MountError, Mounts, PodVolume, is_mounted};
use podshm_unmodified::Limits;
use podshm_unmodified::place::{FileSystem, Part};
use rustix::fs::{Gid, Uid};
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
use rustix::thread::{CapabilitySet, CapabilitySets, UnshareFlags};
use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// It bounds a hang.
const PATIENCE: Duration = Duration::from_secs(240);
/// As in podshmd's pod.
const OWNER: u32 = 65532;
const VOLUME: &str = "0123456789abcdef0123456789abcdef";

/// Directories of a node, and who asks.
struct Node {
    directory: PathBuf,
    mounter: Mounter,
}

impl Node {
    fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    fn socket(&self) -> PathBuf {
        self.path("own/mount.sock")
    }

    fn ask(&self, ask: &Ask) -> Result<Found, MountError> {
        self.mounter.ask(ask)
    }

    /// A pod's volume as the kubelet prepares it.
    fn pod(&self, uid: &str, driver: &str) -> (PodVolume, PathBuf) {
        let directory = self.path("kubelet/pods").join(uid).join("volumes/kubernetes.io~csi/podshm");
        fs::create_dir_all(&directory).unwrap();
        fs::write(directory.join("vol_data.json"), format!(r#"{{"driverName": "{driver}", "other": 1}}"#)).unwrap();
        (PodVolume { uid: uid.into(), name: "podshm".into() }, directory.join("mount"))
    }

    /// A directory of podshmd's.
    fn own(&self, name: &str) -> PathBuf {
        let path = self.path("run").join(name);
        fs::create_dir_all(&path).unwrap();
        for part in path.ancestors().take_while(|part| *part != self.path("run")) {
            std::os::unix::fs::chown(part, Some(OWNER), Some(OWNER)).unwrap();
        }
        path
    }

    fn mounts(&self) -> usize {
        let all = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
        all.lines().filter(|line| line.contains(self.directory.to_str().unwrap())).count()
    }
}

fn on_a_node(name: &str, test: impl FnOnce(&Node) + Send + 'static) {
    let directory = PathBuf::from(format!("/tmp/podshm-helper-{name}"));
    let mount_point = directory.clone();
    let thread = std::thread::spawn(move || {
        // Deprecated for UnshareFlags::FILES, which is not among these.
        #[allow(deprecated)]
        rustix::thread::unshare(UnshareFlags::NEWNS).expect("a mount namespace of its own: needs root");
        mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).unwrap();
        fs::create_dir_all(&directory).unwrap();
        mount("test", &directory, "tmpfs", MountFlags::empty(), c"mode=755").unwrap();
        for name in ["run", "own", "kubelet/pods"] {
            fs::create_dir_all(directory.join(name)).unwrap();
        }
        let socket = directory.join("own/mount.sock");
        let node = Node { mounter: Mounter::Helper(socket.clone()), directory };
        let mounts = Mounts {
            root: node.path("run"),
            pods: node.path("kubelet/pods"),
            stage: node.path("own/stage"),
            owner: Some(OWNER),
            is_strict: true,
        };
        // Shares this thread's mounts, and lasts as long as the test's process.
        std::thread::spawn(move || {
            let helper = Helper::listen(&socket, mounts, OWNER).unwrap();
            drop_privileges().unwrap();
            helper.serve()
        });
        node.mounter.ready().unwrap();
        test(&node);
    });
    let ended = thread.join();
    let _ = fs::remove_dir(mount_point);
    ended.expect("the test");
}

fn shm(size: u64) -> FileSystem {
    FileSystem { part: Part::Shm, size, inodes: Some(100), exec: true }
}

#[test]
fn what_podshmd_needs_is_done_and_done_before_is_done() {
    on_a_node("done", |node| {
        node.own(&format!("volumes/{VOLUME}/socket/shm"));
        node.own("domains/routing/shm");
        node.own("domains/routing/sysv");
        // As the daemon keeps a domain's directory.
        fs::set_permissions(node.path("run/domains/routing"), fs::Permissions::from_mode(0o700)).unwrap();
        let (at, target) = node.pod("u-1", "podshm.dev");
        let publish =
            Ask::Publish { volume: VOLUME.into(), at: at.clone(), shm_of: Some("routing".into()), lib_of: None };
        let early = node.ask(&publish).unwrap_err().to_string();
        assert!(early.contains("nothing is mounted there"), "{early}");
        let sysv = FileSystem { part: Part::Sysv, size: 1 << 20, inodes: None, exec: false };
        for what in [shm(1 << 20), shm(1 << 20), sysv] {
            node.ask(&Ask::FileSystem { domain: "routing".into(), what }).unwrap();
        }
        assert_eq!(fs::metadata(node.path("run/domains/routing/sysv")).unwrap().uid(), OWNER, "podshmd writes there");
        for _ in 0..2 {
            node.ask(&publish).unwrap();
        }
        assert_eq!(node.ask(&Ask::Look { at: at.clone() }).unwrap(), Found { pod: true, mounted: true });
        fs::write(target.join("shm/routes"), "10.0.0.1").unwrap();
        assert_eq!(fs::read(node.path("run/domains/routing/shm/routes")).unwrap(), b"10.0.0.1");
        let refused = fs::write(target.join("file"), "x").unwrap_err();
        assert_eq!(refused.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
        let all = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
        for (place, flags) in [("mount", "ro,nosuid,nodev,noexec"), ("mount/shm", "rw,nosuid,nodev,noexec")] {
            let place = target.with_file_name(place);
            let line = all.lines().find(|line| line.split(' ').nth(4) == place.to_str()).unwrap();
            assert!(line.contains(flags), "{line}");
        }
        let before = node.mounts();
        for _ in 0..2 {
            node.ask(&Ask::Unpublish { at: at.clone() }).unwrap();
            node.ask(&Ask::Withdraw { volume: VOLUME.into() }).unwrap();
        }
        assert!(!target.exists() && node.mounts() < before);
        assert_eq!(fs::read(node.path("run/domains/routing/shm/routes")).unwrap(), b"10.0.0.1", "it is the domain's");
        assert_eq!(node.ask(&Ask::Look { at }).unwrap(), Found { pod: true, mounted: false });
        // Nothing of the domain stays but the directories, which podshmd removes itself; not its IPC namespace either.
        fs::write(node.path("run/domains/routing/ipc"), "").unwrap();
        let below = node.path("run/domains/routing");
        let of_domain = || {
            let all = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
            all.lines()
                .filter(|line| line.split(' ').nth(4).is_some_and(|at| Path::new(at).starts_with(&below)))
                .count()
        };
        node.ask(&Ask::Ipc { domain: "routing".into(), limits: Limits { shmmax: 1 << 20, shmall: 256, shmmni: 16 } })
            .unwrap();
        assert_eq!(of_domain(), 3);
        for _ in 0..2 {
            node.ask(&Ask::EndDomain { domain: "routing".into() }).unwrap();
            assert_eq!(of_domain(), 0);
        }
        node.ask(&Ask::EndDomain { domain: "nobody".into() }).unwrap();
    });
}

#[test]
fn whatever_is_no_name_or_not_ours_is_refused_by_name_and_nothing_is_mounted() {
    on_a_node("hostile", |node| {
        node.own(&format!("volumes/{VOLUME}/socket/shm"));
        let (ours, target) = node.pod("u-1", "podshm.dev");
        let (foreign, _) = node.pod("u-2", "secrets-store.csi.k8s.io");
        let before = node.mounts();
        let publish = |volume: &str, at: &PodVolume| Ask::Publish {
            volume: volume.into(),
            at: at.clone(),
            shm_of: None,
            lib_of: None,
        };
        let pod = |uid: &str, name: &str| PodVolume { uid: uid.into(), name: name.into() };
        let long = "a".repeat(300);
        let mut asked = vec![
            (publish(VOLUME, &foreign), "secrets-store.csi.k8s.io"),
            (Ask::Unpublish { at: foreign }, "secrets-store"),
        ];
        for bad in ["", "..", "../u-1", "/etc", "u-1/../u-1", ".hidden", "a\0b", "ü", long.as_str()] {
            asked.push((publish(VOLUME, &pod(bad, "podshm")), "the pod's UID"));
            asked.push((publish(VOLUME, &pod("u-1", bad)), "the volume's name"));
            asked.push((Ask::Unpublish { at: pod(bad, "podshm") }, "the pod's UID"));
            asked.push((Ask::Look { at: pod(bad, "podshm") }, "the pod's UID"));
            asked.push((publish(bad, &ours), "the volume's directory"));
            asked.push((Ask::Withdraw { volume: bad.into() }, "the volume's directory"));
            asked.push((Ask::FileSystem { domain: bad.into(), what: shm(1) }, "the domain"));
            asked.push((Ask::EndDomain { domain: bad.into() }, "the domain"));
            let (shm_of, lib_of) = (Some(bad.into()), None);
            asked.push((Ask::Publish { volume: VOLUME.into(), at: ours.clone(), shm_of, lib_of }, "the domain"));
        }
        node.own("domains/routing/shm");
        asked.push((Ask::FileSystem { domain: "routing".into(), what: shm(0) }, "size"));

        // Links in what is podshmd's, and in what is the pod's: names are right, and the way is not.
        let linked = "f".repeat(32);
        fs::create_dir_all(node.path("run/volumes").join(&linked)).unwrap();
        symlink("/etc", node.path("run/volumes").join(&linked).join("socket")).unwrap();
        symlink("/etc", node.path("run/domains/evil")).unwrap();
        symlink(node.path("kubelet/pods/u-1"), node.path("kubelet/pods/u-3")).unwrap();
        let (within, path) = node.pod("u-4", "podshm.dev");
        symlink("/etc", &path).unwrap();
        let link = "a symbolic link is in the way";
        asked.push((publish(&linked, &ours), link));
        asked.push((Ask::FileSystem { domain: "evil".into(), what: shm(4096) }, link));
        asked.push((Ask::Unpublish { at: pod("u-3", "podshm") }, link));
        asked.push((publish(VOLUME, &within), link));
        asked.push((publish(VOLUME, &pod("u-9", "podshm")), "kubelet/pods/u-9"));
        for (ask, says) in asked {
            let refused = node.ask(&ask).expect_err(&format!("{ask:?}")).to_string();
            assert!(refused.contains(says) && refused.len() < 500, "{ask:?}: {refused}");
        }
        assert_eq!(node.mounts(), before);
        assert!(!is_mounted(Path::new("/etc")) && !target.join("shm").exists());
    });
}

#[test]
fn garbage_and_slow_talkers_are_refused_and_the_helper_goes_on() {
    on_a_node("garbage", |node| {
        let metadata = fs::metadata(node.socket()).unwrap();
        assert_eq!((metadata.mode() & 0o777, metadata.uid()), (0o600, OWNER), "nobody else can connect");
        let huge = vec![b'"'; 100_000];
        let unknown =
            br#"{"Publish": {"volume": "x", "at": {"uid": "u", "name": "n"}, "shm_of": null, "flags": "rw"}}"#;
        for text in [&b""[..], b"{", b"\xff\xfe", br#"{"Run": "/bin/sh"}"#, unknown, &huge] {
            let mut stream = UnixStream::connect(node.socket()).unwrap();
            // It does not wait for the end of what is too long.
            let _ = stream.write_all(text);
            let _ = stream.shutdown(std::net::Shutdown::Write);
            let mut answer = String::new();
            let _ = stream.read_to_string(&mut answer);
            assert!(text.len() > 4096 || answer.contains("Refused"), "{text:?}: {answer}");
        }
        let begin = Instant::now();
        let silent = UnixStream::connect(node.socket()).unwrap();
        node.mounter.ready().expect("it goes on when the silent one's time is over");
        assert!(begin.elapsed() < PATIENCE, "it bounds a hang");
        drop(silent);
    });
}

#[test]
fn the_helper_can_do_little_else() {
    std::thread::spawn(|| {
        drop_privileges().unwrap();
        let own = std::env::temp_dir().join(format!("podshm-helper-{}", std::process::id()));
        fs::write(&own, "").unwrap();
        let given = rustix::fs::chown(&own, Some(Uid::from_raw(1)), Some(Gid::from_raw(1)));
        let all = CapabilitySet::SYS_ADMIN | CapabilitySet::CHOWN;
        let raised = rustix::thread::set_capabilities(
            None,
            CapabilitySets { effective: all, permitted: all, inheritable: CapabilitySet::empty() },
        );
        fs::remove_file(&own).unwrap();
        assert_eq!((given, raised), (Err(rustix::io::Errno::PERM), Err(rustix::io::Errno::PERM)));
    })
    .join()
    .expect("the test");
}
