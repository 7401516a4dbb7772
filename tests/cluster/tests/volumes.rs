//! Volumes of the node daemon without a cluster: what is done twice, and what a daemon finds that follows one which ended at any
//! moment. Needs root: each test has a mount namespace of its own.

use podshm::{Agent, Answer, Client, ErrorKind, Handler, Record, Request};
use podshm_broker::{Broker, BrokerConfig};
use podshm_domain::{Identity, Role};
use podshm_node::domains::Domains;
use podshm_node::helper::Mounter;
use podshm_node::memory::Memory;
use podshm_node::mounts::{Mounts, is_mounted};
use podshm_node::request::{Target, VolumeId, Wanted};
use podshm_node::volumes::{VolumeError, Volumes};
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_change, unmount};
use rustix::thread::UnshareFlags;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

#[path = "volumes/leaving.rs"]
mod leaving;

const PATIENCE: Duration = Duration::from_secs(60);

/// A node's directories, on a tmpfs that goes with the test.
struct Node(PathBuf);

impl Node {
    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// A daemon's volumes, as it finds them when it starts.
    fn daemon(&self) -> Volumes {
        self.daemon_with(Memory::UNBOUNDED)
    }

    fn daemon_with(&self, memory: Memory) -> Volumes {
        let state = Some(self.path("run/.broker"));
        let broker = Broker::start_with(BrokerConfig { state, rejoin_grace: Duration::from_secs(5) }).unwrap();
        let (root, kubelet) = (self.path("run"), self.path("kubelet"));
        let mounter = Mounter::Here(Mounts::of(&root, &kubelet));
        Volumes::restore(&root, Domains::at(&self.path("domains")), broker, mounter, memory).unwrap()
    }

    /// What the kubelet asks for a pod; its directory is there, as the kubelet makes it.
    fn wanted(&self, pod: &str, role: Role) -> Wanted {
        let path = self.path("kubelet").join("pods").join(pod).join("volumes/kubernetes.io~csi/podshm/mount");
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let (target, uid) = Target::parse(path.to_str().unwrap(), &self.path("kubelet")).unwrap();
        Wanted {
            volume: VolumeId::parse(&format!("csi-{pod}")).unwrap(),
            target,
            who: Identity { namespace: "shop".into(), pod: pod.into(), uid, service_account: "default".into() },
            domain: "routing".into(),
            role,
        }
    }

    fn left(&self) -> Vec<PathBuf> {
        fs::read_dir(self.path("run/volumes")).unwrap().flatten().map(|entry| entry.path()).collect()
    }
}

/// Runs a test in a thread whose mounts are its own.
fn on_a_node(name: &str, test: impl FnOnce(&Node) + Send + 'static) {
    let name = format!("/tmp/podshm-{name}");
    let mount_point = name.clone();
    let thread = std::thread::spawn(move || {
        // Deprecated for UnshareFlags::FILES, which is not among these.
        #[allow(deprecated)]
        rustix::thread::unshare(UnshareFlags::NEWNS).expect("a mount namespace of its own: needs root");
        mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).unwrap();
        fs::create_dir_all(&name).unwrap();
        mount("test", &name, "tmpfs", MountFlags::empty(), c"mode=755").unwrap();
        let node = Node(PathBuf::from(&name));
        for directory in ["run", "kubelet/pods", "domains"] {
            fs::create_dir_all(node.path(directory)).unwrap();
        }
        let domain = r#"{"modes": ["channel", "posix"], "budget": "8Mi", "perPod": "4Mi", "shmSize": "1Mi",
            "serve": [{"namespace": "shop"}], "join": [{"namespace": "shop"}]}"#;
        fs::write(node.path("domains/routing"), domain).unwrap();
        test(&node);
    });
    let ended = thread.join();
    let _ = fs::remove_dir(mount_point);
    ended.expect("the test");
}

/// Takes a volume away, as somebody else than the daemon may.
fn unmounted(target: &Path) {
    while is_mounted(target) {
        unmount(target, UnmountFlags::DETACH).unwrap();
    }
    fs::remove_dir(target).unwrap();
}

fn join(target: &Path) -> Result<Client, podshm::Error> {
    Client::join(target, PATIENCE)
}

/// An agent that serves one table, until it is dropped.
struct Serving {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

struct NoRecords;

impl Handler for NoRecords {
    fn record(&mut self, _: Record<'_>) {}

    fn call(&mut self, _: Request<'_>, _: &mut Answer<'_>) {}
}

fn serve(target: &Path) -> Serving {
    let (target, stop) = (target.to_owned(), Arc::new(AtomicBool::new(false)));
    let told = Arc::clone(&stop);
    let thread = std::thread::spawn(move || {
        let mut agent = Agent::builder().table("values", 10, 4096).connect(target, PATIENCE).unwrap();
        agent.table("values").unwrap().put(b"key", b"value").unwrap();
        agent.ready().unwrap();
        agent.run(&mut NoRecords, || told.load(Ordering::Relaxed)).unwrap();
    });
    Serving { stop, thread: Some(thread) }
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let ended = self.thread.take().expect("dropped once").join();
        assert!(ended.is_ok() || std::thread::panicking(), "the agent");
    }
}

#[test]
fn done_before_is_done() {
    on_a_node("twice", |node| {
        let mut volumes = node.daemon();
        let (agent, member) = (node.wanted("agent", Role::Agent), node.wanted("cart", Role::Member));
        for wanted in [&agent, &member, &member, &agent] {
            volumes.publish(wanted).unwrap();
        }
        let _agent = serve(agent.target.path());
        let client = join(member.target.path()).unwrap();
        assert_eq!(client.member(), "shop/cart");
        let mut value = [0; 8];
        assert_eq!(client.table("values").unwrap().get(b"key", &mut value).unwrap(), Some(5));
        // The domain's /dev/shm is one; the volume itself is nobody's to write.
        fs::write(agent.target.path().join("shm/routes"), "10.0.0.1").unwrap();
        assert_eq!(fs::read(member.target.path().join("shm/routes")).unwrap(), b"10.0.0.1");
        let refused = fs::write(member.target.path().join("file"), "x").unwrap_err();
        assert_eq!(refused.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
        drop(client);
        for wanted in [&member, &member, &agent, &agent] {
            volumes.unpublish(&wanted.volume, &wanted.target).unwrap();
            assert!(!wanted.target.path().exists());
        }
        assert_eq!(node.left(), [] as [PathBuf; 0]);
    });
}

/// As after a restart of the kubelet, for pods that run.
#[test]
fn done_before_is_done_whatever_the_domain_says_now() {
    on_a_node("again", |node| {
        let mut volumes = node.daemon();
        let (agent, member) = (node.wanted("agent", Role::Agent), node.wanted("cart", Role::Member));
        volumes.publish(&agent).unwrap();
        volumes.publish(&member).unwrap();
        let spec = fs::read_to_string(node.path("domains/routing")).unwrap();
        fs::write(node.path("domains/routing"), spec.replace("shop", "bank")).unwrap();
        for daemon in ["the same", "the next"] {
            volumes.publish(&member).unwrap_or_else(|error| panic!("{daemon}: {error}"));
            let refused = volumes.publish(&node.wanted("new", Role::Member)).unwrap_err();
            assert!(matches!(refused, VolumeError::NotAllowed { .. }), "{daemon}: {refused}");
            let refused = volumes.publish(&Wanted { role: Role::Agent, ..member.clone() }).unwrap_err();
            assert!(matches!(refused, VolumeError::NotAllowed { .. }), "{daemon}: not the same role: {refused}");
            drop(volumes);
            volumes = node.daemon();
        }
        fs::remove_file(node.path("domains/routing")).unwrap();
        volumes.publish(&member).unwrap();
        let _agent = serve(agent.target.path());
        join(member.target.path()).unwrap();
        // Not mounted, it is asked as for a new one: nothing was done that could be done before.
        unmounted(member.target.path());
        let refused = volumes.publish(&member).unwrap_err();
        assert!(matches!(refused, VolumeError::Domain(_)), "{refused}");
    });
}

#[test]
fn what_can_not_be_published_leaves_nothing() {
    on_a_node("failed", |node| {
        let mut volumes = node.daemon();
        let wanted = node.wanted("cart", Role::Member);
        // The volume itself is mounted, and then its /dev/shm is not to be had.
        let shm = node.path("run/domains/routing/shm");
        unmount(&shm, UnmountFlags::DETACH).unwrap();
        for _ in 0..2 {
            let failed = volumes.publish(&wanted).unwrap_err();
            assert!(matches!(failed, VolumeError::Mount(_)), "{failed}");
            assert_eq!((node.left(), volumes.pods().len()), (Vec::new(), 0), "nobody may ask for it any more");
            assert!(!is_mounted(wanted.target.path()));
        }
        mount("test", &shm, "tmpfs", MountFlags::empty(), c"mode=1777").unwrap();
        volumes.publish(&wanted).unwrap();
        assert!(is_mounted(wanted.target.path()));
        volumes.unpublish(&wanted.volume, &wanted.target).unwrap();
        assert_eq!(node.left(), [] as [PathBuf; 0]);
    });
}

#[test]
fn a_volume_is_one_pods() {
    on_a_node("otherwise", |node| {
        let mut volumes = node.daemon();
        let first = node.wanted("cart", Role::Member);
        volumes.publish(&first).unwrap();
        let other = Wanted { volume: first.volume.clone(), ..node.wanted("thief", Role::Member) };
        let refused = volumes.publish(&other).unwrap_err();
        assert!(matches!(refused, VolumeError::Otherwise { .. }), "{refused}");
        assert!(!is_mounted(other.target.path()));
        let foreign = Wanted { who: Identity { namespace: "bank".into(), ..other.who.clone() }, ..other };
        let refused = volumes.publish(&foreign).unwrap_err();
        assert!(matches!(refused, VolumeError::NotAllowed { .. }), "{refused}");
    });
}

#[test]
fn a_daemon_goes_on_from_where_the_one_before_it_ended() {
    on_a_node("restart", |node| {
        let mut volumes = node.daemon();
        let (agent, member) = (node.wanted("agent", Role::Agent), node.wanted("cart", Role::Member));
        volumes.publish(&agent).unwrap();
        volumes.publish(&member).unwrap();
        let _agent = serve(agent.target.path());
        let client = join(member.target.path()).unwrap();
        // The domain is taken out of the cluster, and then the daemon ends; pods that have it keep it.
        fs::remove_file(node.path("domains/routing")).unwrap();
        drop(volumes);
        let mut value = [0; 8];
        assert_eq!(
            client.table("values").unwrap().get(b"key", &mut value).unwrap(),
            Some(5),
            "nobody is needed for it"
        );
        let mut volumes = node.daemon();
        join(member.target.path()).expect("the next daemon answers at the same socket directory, in the same mount");
        drop(client);
        let refused = volumes.publish(&node.wanted("new", Role::Member)).unwrap_err();
        assert!(matches!(refused, VolumeError::Domain(_)), "{refused}");
        volumes.unpublish(&member.volume, &member.target).unwrap();
        volumes.unpublish(&agent.volume, &agent.target).unwrap();
        assert_eq!(node.left(), [] as [PathBuf; 0]);
    });
}

#[test]
fn what_a_daemon_was_killed_over_is_finished_or_removed() {
    on_a_node("halfway", |node| {
        let mut volumes = node.daemon();
        let (half, gone) = (node.wanted("half", Role::Member), node.wanted("gone", Role::Member));
        volumes.publish(&half).unwrap();
        volumes.publish(&gone).unwrap();
        drop(volumes);
        // Written down and not mounted yet; the pod is there, and the kubelet will ask again.
        unmounted(half.target.path());
        // Its pod went altogether while nobody was here.
        unmounted(gone.target.path());
        fs::remove_dir_all(node.path("kubelet/pods/gone")).unwrap();
        // Begun and not written down.
        fs::create_dir_all(node.path("run/volumes/0123/socket")).unwrap();
        let mut volumes = node.daemon();
        assert_eq!(node.left().len(), 1, "{:?}", node.left());
        volumes.publish(&half).unwrap();
        let refused = Client::join(half.target.path(), Duration::from_millis(300)).expect_err("there is no agent");
        assert_eq!(refused.kind(), ErrorKind::Deadline, "the socket is answered, and there is no agent: {refused}");
        volumes.unpublish(&half.volume, &half.target).unwrap();
        volumes.unpublish(&gone.volume, &gone.target).unwrap();
        assert_eq!(node.left(), [] as [PathBuf; 0]);
    });
}

#[test]
fn domains_do_not_see_each_other() {
    on_a_node("domains", |node| {
        fs::copy(node.path("domains/routing"), node.path("domains/audit")).unwrap();
        let mut volumes = node.daemon();
        let (agent, member) = (node.wanted("agent", Role::Agent), node.wanted("cart", Role::Member));
        let other = Wanted { domain: "audit".into(), ..node.wanted("till", Role::Member) };
        for wanted in [&agent, &member, &other] {
            volumes.publish(wanted).unwrap();
        }
        fs::write(member.target.path().join("shm/routes"), "10.0.0.1").unwrap();
        assert!(agent.target.path().join("shm/routes").exists());
        assert!(!other.target.path().join("shm/routes").exists());
        let _agent = serve(agent.target.path());
        assert_eq!(join(member.target.path()).unwrap().domain(), "routing");
        let refused = Client::join(other.target.path(), Duration::from_millis(500)).expect_err("it has no agent");
        assert_eq!(refused.kind(), ErrorKind::Deadline, "{refused}");
    });
}

#[test]
fn a_domain_may_get_a_dev_shm_later_and_says_each_time_why_it_has_none() {
    on_a_node("later", |node| {
        let both = fs::read_to_string(node.path("domains/routing")).unwrap();
        fs::write(node.path("domains/routing"), both.replace(r#", "posix""#, "")).unwrap();
        let mut volumes = node.daemon();
        let before = node.wanted("before", Role::Member);
        volumes.publish(&before).unwrap();
        assert!(!before.target.path().join("shm").exists());
        fs::write(node.path("domains/routing"), both).unwrap();
        let after = node.wanted("after", Role::Member);
        // In the way of the domain's directory.
        fs::write(node.path("run/domains"), "").unwrap();
        let refused = [volumes.publish(&after).unwrap_err(), volumes.publish(&after).unwrap_err()];
        assert!(refused.iter().all(|error| matches!(error, VolumeError::Place(_))), "{refused:?}");
        fs::remove_file(node.path("run/domains")).unwrap();
        volumes.publish(&after).unwrap();
        fs::write(after.target.path().join("shm/routes"), "10.0.0.1").unwrap();
    });
}

#[test]
fn what_a_daemon_cannot_serve_is_left_alone_and_the_rest_is_served() {
    on_a_node("unserved", |node| {
        let mut volumes = node.daemon();
        let (agent, member) = (node.wanted("agent", Role::Agent), node.wanted("cart", Role::Member));
        volumes.publish(&member).unwrap();
        // As a newer daemon may have written it.
        let record = node.left()[0].join("volume.json");
        fs::write(&record, r#"{"version": 2}"#).unwrap();
        volumes.publish(&agent).unwrap();
        drop(volumes);
        // In the way of a domain's directory.
        fs::copy(node.path("domains/routing"), node.path("domains/audit")).unwrap();
        fs::write(node.path("run/domains/audit"), "").unwrap();
        let mut volumes = node.daemon();
        assert!(record.exists(), "a pod has it");
        let _agent = serve(agent.target.path());
        let till = node.wanted("till", Role::Member);
        volumes.publish(&till).unwrap();
        join(till.target.path()).unwrap();
        volumes.unpublish(&member.volume, &member.target).unwrap();
        assert!(!record.exists());
    });
}

#[test]
fn a_volume_goes_and_its_domains_dev_shm_stays_as_it_is() {
    on_a_node("shared", |node| {
        mount_change(&node.0, MountPropagationFlags::SHARED).unwrap();
        let mut volumes = node.daemon();
        let (agent, member) = (node.wanted("agent", Role::Agent), node.wanted("cart", Role::Member));
        volumes.publish(&agent).unwrap();
        volumes.publish(&member).unwrap();
        let file = agent.target.path().join("shm/routes");
        fs::write(&file, "10.0.0.1").unwrap();
        // Somebody takes the pod's mounts away where this daemon's copy of them does not hear of it.
        mount_change(member.target.path(), MountPropagationFlags::PRIVATE).unwrap();
        unmounted(member.target.path());
        volumes.unpublish(&member.volume, &member.target).unwrap();
        assert_eq!(fs::read(&file).unwrap(), b"10.0.0.1");
        assert_eq!(node.left().len(), 1);
    });
}

/// Joins a member until the domain's budget is spent; with what refuses the next.
fn fill(node: &Node, volumes: &mut Volumes) -> (Vec<Client>, String) {
    let mut clients = Vec::new();
    for number in 0..1000 {
        let member = node.wanted(&format!("full-{}", number / 8), Role::Member);
        volumes.publish(&member).unwrap();
        match join(member.target.path()) {
            Ok(client) => clients.push(client),
            Err(error) => return (clients, error.to_string()),
        }
    }
    panic!("{} clients, and nobody is refused", clients.len());
}

#[test]
fn a_full_domain_stays_within_its_budget_whoever_follows() {
    on_a_node("full", |node| {
        let small = fs::read_to_string(node.path("domains/routing")).unwrap();
        fs::write(node.path("domains/routing"), small.replace(r#""budget": "8Mi""#, r#""budget": "3Mi""#)).unwrap();
        let memory = Memory { limit: Some(4 << 20), reserve: 1 << 20 };
        let mut volumes = node.daemon_with(memory);
        let agent = node.wanted("agent", Role::Agent);
        volumes.publish(&agent).unwrap();
        let _agent = serve(agent.target.path());
        let (mut clients, refused) = fill(node, &mut volumes);
        assert!(refused.contains("budget"), "{refused}");
        for daemon in 1..=3 {
            drop(volumes);
            volumes = node.daemon_with(memory);
            let back = (0..600).any(|_| {
                std::thread::sleep(Duration::from_millis(100));
                volumes.view().domains["routing"].stats.as_ref().is_some_and(|stats| stats.expected == 0 && stats.agent)
            });
            assert!(back, "daemon {daemon}: {:?}", volumes.view());
            // What was there fills the budget as before: nobody else gets in, and one that goes makes room for one.
            let late = node.wanted(&format!("late-{daemon}"), Role::Member);
            volumes.publish(&late).unwrap();
            let refused = join(late.target.path()).expect_err("the budget is spent");
            assert!(refused.to_string().contains("budget"), "daemon {daemon}: {refused}");
            assert!(volumes.view().region_bytes <= 3 << 20, "daemon {daemon}: {:?}", volumes.view());
            drop(clients.pop());
            // Once it is drained.
            let room = (0..600).find_map(|_| {
                std::thread::sleep(Duration::from_millis(100));
                join(late.target.path()).ok()
            });
            clients.push(room.expect("there is room for one"));
            let mut value = [0; 8];
            for client in &clients {
                assert_eq!(client.table("values").unwrap().get(b"key", &mut value).unwrap(), Some(5));
            }
        }
    });
}

#[test]
fn budgets_fit_into_the_daemons_own_limit_and_what_does_not_says_what_to_change() {
    on_a_node("limit", |node| {
        fs::copy(node.path("domains/routing"), node.path("domains/audit")).unwrap();
        // Two of 8 MiB, and room for one and a half.
        let memory = |limit: u64| Memory { limit: Some(limit << 20), reserve: 2 << 20 };
        let mut volumes = node.daemon_with(memory(14));
        let reasons = |volumes: &Volumes, domain: &str| {
            let found = volumes.view().report("here", true, None, 0);
            let found = found.domains.into_iter().find(|found| found.name == domain).expect("the domain");
            found.conditions.into_iter().map(|condition| (condition.reason, condition.message)).collect::<Vec<_>>()
        };
        // By name, so audit has come first.
        assert!(reasons(&volumes, "audit").is_empty());
        let left_out = reasons(&volumes, "routing");
        assert!(
            matches!(&left_out[..], [(reason, says)] if reason == "OverLimit" && says.contains("18Mi")),
            "{left_out:?}"
        );
        let member = node.wanted("cart", Role::Member);
        let refused = volumes.publish(&member).unwrap_err();
        assert!(refused.rule() == Some("over_limit") && refused.to_string().contains("18Mi"), "{refused}");
        assert!(!is_mounted(member.target.path()));
        // There is room for it now, and pods have it; then there is less than it may have. It stays, and gets no more.
        fs::remove_file(node.path("domains/audit")).unwrap();
        drop(volumes);
        let mut volumes = node.daemon_with(memory(14));
        let agent = node.wanted("agent", Role::Agent);
        volumes.publish(&agent).unwrap();
        volumes.publish(&member).unwrap();
        let _agent = serve(agent.target.path());
        let client = join(member.target.path()).unwrap();
        drop(volumes);
        let volumes = node.daemon_with(memory(2));
        let clamped = reasons(&volumes, "routing");
        assert!(matches!(&clamped[..], [(reason, _)] if reason == "OverLimit"), "{clamped:?}");
        let refused = join(member.target.path()).expect_err("there is no room");
        assert!(refused.to_string().contains("budget"), "{refused}");
        let mut value = [0; 8];
        assert_eq!(client.table("values").unwrap().get(b"key", &mut value).unwrap(), Some(5));
        drop(volumes);
    });
}
