//! What the tests of unmodified programs share: a domain of their own, programs in C, scripts of System V calls.
#![forbid(unsafe_code)]

pub mod cli;
pub mod programs;
pub mod script;

use podshm_unmodified::control::{Listing, Question, Response, ask};
use podshm_unmodified::{Config, Limits, Mode, Place, Server};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Longer than anything takes that does not hang.
pub const PATIENCE: std::time::Duration = std::time::Duration::from_secs(60);

/// A domain with its daemon in this process, gone when dropped.
#[derive(Debug)]
pub struct Domain {
    root: PathBuf,
    /// Where it is.
    pub place: Place,
    config: Config,
    server: Option<Server>,
}

/// Small limits that tests can reach: 64 pages in 16 segments, the largest 32 pages.
pub fn small() -> Limits {
    Limits { shmmax: 32 * 4096, shmall: 64, shmmni: 16 }
}

impl Domain {
    /// A domain in preload mode.
    pub fn start(name: &str, limits: Limits) -> Self {
        Self::with(Config { limits, shm_size: 4 << 20, ..Config::new(name, Mode::Preload) })
    }

    /// A domain as it is said.
    pub fn with(config: Config) -> Self {
        // Short: a socket's path may have 107 characters.
        let root = PathBuf::from(format!("/tmp/podshm-u{}", std::process::id()));
        let place = Place::of(&root, &config.name).expect("a name");
        let mut domain = Domain { root, place, config, server: None };
        domain.restart();
        // Root's alone outside of tests; here members of other uids come through the host's path.
        for path in [domain.root.clone(), domain.root.join("domains"), domain.place.path("")] {
            std::fs::set_permissions(path, PermissionsExt::from_mode(0o755)).expect("a mode");
        }
        domain
    }

    /// Ends the daemon, if it runs; the memory stays.
    pub fn stop(&mut self) {
        self.server = None;
    }

    /// A daemon that takes over what the last one left.
    pub fn restart(&mut self) {
        self.server = None;
        self.server = Some(Server::start(self.place.clone(), self.config.clone()).expect("a daemon (needs root)"));
    }

    /// Path of a member's socket.
    pub fn member(&self, name: &str) -> PathBuf {
        assert_eq!(self.ask(Question::AddMember(name.to_owned())), Response::Done);
        self.place.member(name).join("shm.sock")
    }

    /// Asks the daemon.
    pub fn ask(&self, question: Question) -> Response {
        ask(&self.place, &question).expect("the daemon answers")
    }

    /// What there is.
    pub fn list(&self) -> Listing {
        match self.ask(Question::List) {
            Response::Listing(listing) => listing,
            other => panic!("expected a listing, found {other:?}"),
        }
    }

    /// The preload library.
    pub fn library(&self) -> PathBuf {
        self.place.path("lib").join(podshm_preload::FILE_NAME)
    }

    /// A program as a member, without namespaces of its own.
    pub fn command(&self, member: &str, program: &Path) -> Command {
        let mut command = Command::new(program);
        command.env("LD_PRELOAD", self.library());
        command.env(podshm_preload::SOCKET_ENV, self.member(member));
        command
    }
}

impl Drop for Domain {
    fn drop(&mut self) {
        self.stop();
        if let Err(error) = self.place.tear_down() {
            eprintln!("{error}");
        }
        let _ = std::fs::remove_dir(self.root.join("domains"));
        let _ = std::fs::remove_dir(&self.root);
    }
}
