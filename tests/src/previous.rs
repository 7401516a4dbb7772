//! The previous release, built from git: its agents, clients and broker beside today's, each in a process of its own.

use crate::deliveries::{self, Kind, Line, Outcome, Sent, Tally};
use crate::participant::Participant;
use crate::programs::Talk;
use crate::roles::{ask_to_stop, written_down};
use crate::{PATIENCE, patient};
use podshm_broker::{Broker, DomainStats, Identity, Rights};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// Whose program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Release {
    /// The last one of RELEASES.
    Previous,
    /// What is here.
    Today,
}

/// Where the previous release's programs are; fails where they can't be built.
pub fn programs() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/previous-release");
        let built = Command::new(&script).output().unwrap_or_else(|e| panic!("{}: {e}", script.display()));
        let said = String::from_utf8_lossy(&built.stderr);
        assert!(built.status.success(), "the previous release is not built ({}):\n{said}", built.status);
        PathBuf::from(String::from_utf8(built.stdout).expect("a path").trim_end())
    })
}

#[derive(Debug)]
enum Serving {
    Today(Broker),
    Previous(Talk),
}

/// A domain `d` on a directory, whose broker and participants are of one release or the other.
#[derive(Debug)]
pub struct Skew {
    today: &'static str,
    root: PathBuf,
    broker: Option<Serving>,
    clients: Vec<(u32, Participant)>,
    done: Vec<u32>,
    /// One at a time: each is half a dozen processes at full speed.
    _alone: MutexGuard<'static, ()>,
}

static ALONE: Mutex<()> = Mutex::new(());

const PODS: [&str; 3] = ["agent", "a", "b"];

impl Skew {
    /// A broker of this release; `today` is today's `podshm-test-participant`.
    pub fn new(today: &'static str, broker: Release) -> Skew {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("podshm-skew-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let root = std::env::temp_dir().join(name);
        // A test that was killed may have left one behind, in a process of the same number.
        let _ = std::fs::remove_dir_all(&root);
        std::fs::create_dir_all(&root).expect("a directory for sockets");
        let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let mut skew = Skew { today, root, broker: None, clients: Vec::new(), done: Vec::new(), _alone };
        skew.start_broker(broker);
        skew
    }

    /// Starts a broker on the sockets' directories, as the one before left them.
    pub fn start_broker(&mut self, release: Release) {
        assert!(self.broker.is_none(), "one broker at a time");
        self.broker = Some(match release {
            Release::Previous => {
                let mut command = Command::new(programs().join("podshm"));
                command.arg("broker").arg("--root").arg(&self.root).args(["--domain", "d", "--agent", "test/agent"]);
                command.args(["--member", "test/a", "--member", "test/b"]);
                let mut program = Talk::start(command);
                program.find("ready: ");
                Serving::Previous(program)
            }
            Release::Today => {
                let broker = Broker::start().expect("a broker");
                broker.add_domain(patient()).expect("a domain");
                for pod in PODS {
                    let who = Identity {
                        namespace: "test".into(),
                        pod: pod.into(),
                        uid: pod.into(),
                        service_account: "default".into(),
                    };
                    let serve = pod == "agent";
                    std::fs::create_dir_all(self.pod(pod)).expect("a pod's directory");
                    broker.add_socket("d", &self.pod(pod), who, Rights { join: !serve, serve }).expect("a socket");
                }
                Serving::Today(broker)
            }
        });
    }

    /// Ends the broker without a word to anybody: the previous release's by SIGKILL.
    pub fn end_broker(&mut self) {
        match self.broker.take() {
            Some(Serving::Previous(mut program)) => program.kill(),
            Some(Serving::Today(broker)) => drop(broker),
            None => panic!("there is no broker"),
        }
    }

    /// Waits until today's broker's numbers are as `good` says; nothing where the broker is the previous release's, which tells
    /// nobody.
    pub fn settle(&self, what: &str, good: impl Fn(&DomainStats) -> bool) {
        let Some(Serving::Today(broker)) = &self.broker else { return };
        await_that(what, || good(&broker.stats("d").expect("stats")));
    }

    fn pod(&self, name: &str) -> PathBuf {
        self.root.join(format!("test_{name}"))
    }

    fn deliveries(&self) -> PathBuf {
        self.root.join("deliveries")
    }

    fn written(&self, sender: u32) -> PathBuf {
        self.root.join(format!("client-{sender}"))
    }

    fn start(&self, who: Release, layout_1: bool, role: &str, pod: &str, file: &Path, number: u32) -> Participant {
        let built; // lives as long as its name is used
        let program = match who {
            Release::Today => self.today,
            Release::Previous => {
                built = programs().join("podshm-test-participant");
                built.to_str().expect("a plain path")
            }
        };
        Participant::speaking(program, layout_1, role, &self.pod(pod), file, number)
    }

    /// Agent number `index`, which speaks only layout 1 if told so.
    pub fn agent(&self, who: Release, layout_1: bool, index: u32) -> Participant {
        self.start(who, layout_1, "agent", "agent", &self.deliveries(), index)
    }

    /// A client at work as number `sender`.
    pub fn client(&mut self, who: Release, layout_1: bool, sender: u32) {
        let pod = PODS[1 + sender as usize % 2];
        let client = self.start(who, layout_1, "client", pod, &self.written(sender), sender);
        self.clients.push((sender, client));
    }

    fn lines(&self) -> Vec<Line> {
        if self.deliveries().exists() { deliveries::read_so_far(&self.deliveries()) } else { Vec::new() }
    }

    /// Waits until agent `index` has handled some more records and calls of every client, and every client has been answered.
    pub fn await_progress(&self, what: &str, index: u32) {
        for (sender, _) in &self.clients {
            let counts = || {
                let lines = self.lines();
                let of = |record| {
                    let mine =
                        |l: &&Line| l.agent == index && l.sender == *sender && (l.kind == Kind::Record) == record;
                    lines.iter().filter(mine).count()
                };
                let sent = written_down(&self.written(*sender), *sender).1;
                let answered = sent.once.values().chain(sent.again.values()).filter(|o| **o == Outcome::Answered);
                [of(true), of(false), answered.count()]
            };
            let before = counts();
            let what = format!("agent {index} serves client {sender} {what}");
            await_that(&what, || counts().iter().zip(before).all(|(now, before)| *now >= before + 10));
        }
    }

    /// Ends every client in order and waits until all that it had pushed is delivered.
    pub fn end_clients(&mut self) {
        for (sender, client) in std::mem::take(&mut self.clients) {
            ask_to_stop(&self.written(sender));
            client.await_end();
            self.done.push(sender);
            let accepted = written_down(&self.written(sender), sender).1.accepted;
            await_that(&format!("delivery of client {sender}'s {accepted} records"), || {
                let mine = |l: &&Line| l.kind == Kind::Record && l.sender == sender;
                self.lines().iter().filter(mine).count() as u64 >= accepted
            });
        }
        self.settle("every client is drained", |s| s.clients.is_empty());
    }

    /// Nothing is lost, repeated, marked or torn, and each call had an outcome that is true. To be asked when all have ended.
    pub fn check_each_once(&self) -> Tally {
        let in_order = |sender: &u32| Sent { in_hand: 0, ..written_down(&self.written(*sender), *sender).1 };
        let sent: Vec<Sent> = self.done.iter().map(in_order).collect();
        let tally = deliveries::check(&deliveries::read(&self.deliveries()), &sent);
        assert_eq!((tally.repeated, tally.marked), (0, 0), "each once: {tally:?}");
        assert!(tally.records > 0 && tally.answered > 0, "no load: {tally:?}");
        tally
    }
}

impl Drop for Skew {
    fn drop(&mut self) {
        self.clients.clear();
        self.broker = None;
        let _ = std::fs::remove_dir_all(&self.root);
    }
}

fn await_that(what: &str, good: impl Fn() -> bool) {
    let until = Instant::now() + PATIENCE * 3;
    while !good() {
        assert!(Instant::now() < until, "this did not come about: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}
