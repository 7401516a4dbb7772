//! Volumes: made, written down, found again by the next daemon, and taken away.
//!
//! ```text
//!  ROOT/volumes/HASH/volume.json      whose it is; written before the pod can see anything
//!                   /socket/          mounted into the pod, read-only
//!                     broker.sock     whoever connects here is that pod
//!                     shm/            the domain's /dev/shm is mounted here   (mode posix)
//!                     shm.sock, lib/  see sysv.rs                             (mode sysv)
//!  ROOT/.broker/                      the broker's ledger
//!  ROOT/domains/NAME/                 /dev/shm of a domain                    (podshm-unmodified)
//! ```
//! A pod mounts the volume where its library looks for the socket, and with `subPath: shm` at /dev/shm.

mod error;
mod leaving;
mod record;

pub use error::VolumeError;

use error::doing;
use record::Record;

use crate::domains::{self, Bytes, DomainSpec, Domains, Mode};
use crate::helper::Mounter;
use crate::memory::Memory;
use crate::mounts::{self, Ask, MountError, PodVolume};
use crate::nri::Native;
use crate::report::{DomainView, NodeView, condition};
use crate::request::{Target, VolumeId, Wanted};
use crate::sysv;
use podshm_api::report::NodeCondition;
use podshm_broker::{Broker, DomainConfig};
use podshm_domain::{Identity, Limits, Rights};
use podshm_unmodified::{Place, PlaceError, Server};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use xxhash_rust::xxh3::xxh3_128;

/// A domain that the broker has.
#[derive(Debug)]
struct Served {
    /// The budget that it goes by.
    budget: u64,
    /// The limits that its description asked for.
    asked: Limits,
}

/// All volumes of this node.
#[derive(Debug)]
pub struct Volumes {
    root: PathBuf,
    domains: Domains,
    broker: Broker,
    mounter: Mounter,
    memory: Memory,
    /// Domains that the broker has.
    channels: BTreeMap<String, Served>,
    /// Domains with a /dev/shm, or System V memory.
    unmodified: BTreeMap<String, Server>,
    /// What System V memory of domains, and what else the library has reserved, may come to.
    sysv: BTreeMap<String, u64>,
    /// Why a domain is not served as its description says, as it was found last.
    failed: BTreeMap<String, NodeCondition>,
    /// Domains that pods have already and that get no more than is left.
    clamped: BTreeMap<String, NodeCondition>,
    records: BTreeMap<String, Record>,
    unserved: BTreeSet<PathBuf>,
    /// Pods whose containers the runtime has join their domain.
    native: Arc<Native>,
}

impl Volumes {
    /// With a broker that has begun on ROOT; serves again what a daemon before this one has published.
    pub fn restore(
        root: &Path,
        domains: Domains,
        broker: Broker,
        mounter: Mounter,
        memory: Memory,
    ) -> Result<Self, VolumeError> {
        Self::restore_with(root, domains, broker, mounter, memory, Arc::default())
    }

    /// The same, where the container runtime may ask about pods of native domains.
    pub fn restore_with(
        root: &Path,
        domains: Domains,
        broker: Broker,
        mounter: Mounter,
        memory: Memory,
        native: Arc<Native>,
    ) -> Result<Self, VolumeError> {
        let mut all = Volumes {
            root: root.to_owned(),
            domains,
            broker,
            mounter,
            memory,
            channels: BTreeMap::new(),
            unmodified: BTreeMap::new(),
            sysv: BTreeMap::new(),
            failed: BTreeMap::new(),
            clamped: BTreeMap::new(),
            records: BTreeMap::new(),
            unserved: BTreeSet::new(),
            native,
        };
        make_directory(&all.root.join("volumes"), 0o711)?;
        let entries = doing("reading", &root.join("volumes"), fs::read_dir(root.join("volumes")))?;
        for directory in entries.flatten().map(|entry| entry.path()) {
            let found = match fs::read(directory.join("volume.json")) {
                // A daemon that was killed before it had written this down had not shown it to anybody.
                Err(error) if error.kind() == io::ErrorKind::NotFound => all.remove(&directory),
                read => {
                    doing("reading the record of", &directory, read.and_then(|text| Ok(serde_json::from_slice(&text)?)))
                        .and_then(|record| all.restore_one(&directory, record))
                }
            };
            // A pod may have it, and its record may be a newer daemon's: it stays until it is unpublished.
            if let Err(error) = found {
                tracing::error!(directory = %directory.display(), %error, "a volume is not served");
                all.unserved.insert(directory);
            }
        }
        // What pods have comes first: it is there already. One that fails is no reason to leave the others alone; whoever asks for it
        // is told why.
        for (name, spec) in all.domains.all() {
            if let Err(error) = all.serve(&name, &spec, false) {
                tracing::error!(domain = name, %error, "a domain is not served");
            }
        }
        Ok(all)
    }

    fn restore_one(&mut self, directory: &Path, record: Record) -> Result<(), VolumeError> {
        let at = record.at().ok_or_else(|| io::Error::other(format!("{}: no pod's volume", record.target.display())));
        let found = self.mounter.ask(&Ask::Look { at: doing("looking for", &record.target, at)? })?;
        if !found.pod && !found.mounted {
            tracing::info!(volume = record.volume, pod = record.who().name(), "its pod went while no daemon was here");
            self.close(directory, &record)?;
            return self.remove(directory);
        }
        self.serve(&record.domain, &record.spec, true)?;
        self.open(directory, &record)?;
        self.records.insert(record.volume.clone(), record);
        Ok(())
    }

    /// Publishes a volume; done before is done, whatever has been decided since: the kubelet asks again for pods that run, after its own
    /// restart among others. What fails the first time leaves nothing.
    pub fn publish(&mut self, wanted: &Wanted) -> Result<(), VolumeError> {
        let published = self.records.get(wanted.volume.as_str()).filter(|found| found.is_of(wanted)).cloned();
        if let Some(record) = published.filter(|_| self.is_mounted_at(wanted.target.at())) {
            self.serve(&record.domain, &record.spec, true)?;
            return self.show(&record);
        }
        let spec = self.domains.find(&wanted.domain)?;
        let not_allowed = |source| VolumeError::NotAllowed { domain: wanted.domain.clone(), source };
        spec.policy().rights(&wanted.who, wanted.role).map_err(not_allowed)?;
        if let Some(why) = self.native.why_not().filter(|_| sysv::is_native(&spec)) {
            return Err(VolumeError::NoRuntime { domain: wanted.domain.clone(), why });
        }
        let mut record = Record::of(wanted, spec);
        let found = self.records.get(&record.volume);
        // A pod may have what is not served.
        let is_new = found.is_none() && !self.unserved.contains(&self.directory(&record.volume));
        match found {
            Some(found) if found.is_of(wanted) => record = found.clone(),
            Some(found) => {
                let (volume, found_for, at) = (record.volume, found.who().name(), found.target.clone());
                return Err(VolumeError::Otherwise { volume, found: found_for, at });
            }
            None => {}
        }
        self.serve(&record.domain, &record.spec, false)?;
        let shown = self.show(&record);
        // One that can't be reached can't be asked to undo it either; the kubelet will, since it is told that nothing is sure.
        let is_away = matches!(shown, Err(VolumeError::Mount(MountError::Unreachable { .. })));
        if shown.is_err() && is_new && !is_away {
            self.undo(&record);
        }
        shown
    }

    /// Takes away what was made of a volume that could not be published.
    fn undo(&mut self, record: &Record) {
        let was_open = self.records.insert(record.volume.clone(), record.clone()).is_some();
        if let Err(error) = self.take_away(&record.volume, None) {
            tracing::warn!(volume = record.volume, %error, "what was made of a volume that could not be published stays for now");
            if !was_open {
                self.records.remove(&record.volume);
                self.unserved.insert(self.directory(&record.volume));
            }
        }
    }

    fn is_mounted_at(&self, at: &PodVolume) -> bool {
        self.mounter.ask(&Ask::Look { at: at.clone() }).is_ok_and(|found| found.mounted)
    }

    /// Makes what a volume consists of, as far as it is not there, and has it mounted.
    fn show(&mut self, record: &Record) -> Result<(), VolumeError> {
        let directory = self.directory(&record.volume);
        make_directory(&directory, 0o711)?;
        let socket = directory.join("socket");
        make_directory(&socket, 0o755)?;
        let has = |mode| record.spec.modes.contains(&mode);
        let (has_shm, has_library) = (has(Mode::Posix), sysv::has_library(&record.spec));
        for (name, is_there) in [("shm", has_shm), (sysv::LIBRARY, has_library)] {
            // Published before, it is the domain's own that is mounted there, and not to be changed.
            if is_there && !mounts::is_mounted(&socket.join(name)) {
                make_directory(&socket.join(name), 0o755)?;
            }
        }
        if !self.records.contains_key(&record.volume) {
            write_down(&directory, record)?;
            self.open(&directory, record)?;
            self.records.insert(record.volume.clone(), record.clone());
            self.unserved.remove(&directory);
        }
        let of = |has: bool| has.then(|| record.domain.clone());
        let (shm_of, lib_of) = (of(has_shm), of(has_library));
        let at = record.at().ok_or_else(|| io::Error::other(format!("{}: no pod's volume", record.target.display())));
        let at = doing("mounting", &record.target, at)?;
        self.mounter.ask(&Ask::Publish { volume: hash(&record.volume), at, shm_of, lib_of })?;
        Ok(())
    }

    /// Takes a volume away; done before is done.
    pub fn unpublish(&mut self, volume: &VolumeId, target: &Target) -> Result<(), VolumeError> {
        self.mounter.ask(&Ask::Unpublish { at: target.at().clone() })?;
        self.take_away(volume.as_str(), Some(target.at()))
    }

    /// The pods that have volumes, as they were when the volumes were published.
    pub fn pods(&self) -> BTreeSet<Identity> {
        self.records.values().map(Record::who).collect()
    }

    /// Takes all volumes of a pod away that has ended; the kubelet, which asks later, is told that it is done. Says how many there were.
    pub fn pod_has_ended(&mut self, uid: &str) -> Result<usize, VolumeError> {
        let of_pod = self.records.values().filter(|record| record.uid == uid).map(|record| record.volume.clone());
        let volumes: Vec<String> = of_pod.collect();
        for volume in &volumes {
            self.take_away(volume, None)?;
        }
        Ok(volumes.len())
    }

    /// The same, where it is not mounted at `done` any more.
    fn take_away(&mut self, volume: &str, done: Option<&PodVolume>) -> Result<(), VolumeError> {
        let directory = self.directory(volume);
        if let Some(record) = self.records.get(volume) {
            if let Some(at) = record.at().filter(|at| Some(at) != done) {
                self.mounter.ask(&Ask::Unpublish { at })?;
            }
            self.broker.remove_socket(&directory.join("socket"))?;
            self.close(&directory, record)?;
        }
        self.remove(&directory)?;
        self.records.remove(volume);
        self.unserved.remove(&directory);
        Ok(())
    }

    /// Whether another daemon has taken over from this one's broker.
    pub fn has_given_way(&self) -> bool {
        self.broker.has_given_way()
    }

    /// What the node's report and its metrics are made of.
    pub fn view(&self) -> NodeView {
        let nri = self.native.is_wanted().then(|| self.native.is_connected());
        let mut view = NodeView { nri, unserved_volumes: self.unserved.len() as u64, ..NodeView::default() };
        let mut budgets: BTreeMap<String, u64> =
            self.domains.all().into_iter().map(|(name, spec)| (name, spec.budget.0)).collect();
        budgets.extend(self.channels.iter().map(|(name, served)| (name.clone(), served.budget)));
        let of_records = self.records.values().map(|record| &record.domain);
        let names = budgets.keys().chain(self.unmodified.keys()).chain(self.failed.keys()).chain(of_records);
        for name in names.cloned().collect::<BTreeSet<_>>() {
            let stats = self.broker.stats(&name).ok();
            if let Some(stats) = &stats {
                (view.region_bytes, view.regions) = (stats.region_bytes, stats.regions as u64);
            }
            let of =
                |agent| self.records.values().filter(|record| record.domain == name && record.agent == agent).count();
            let place = self.unmodified.get(&name).and_then(|_| Place::of(&self.root, &name).ok());
            let fill = place.and_then(|place| place.fill().ok());
            let conditions = [&self.failed, &self.clamped].into_iter().filter_map(|found| found.get(&name).cloned());
            let private = self.native.private(&name);
            let conditions = conditions.chain(private.first().map(|first| {
                let says = format!(
                    "{first} and {} more containers were started while the container runtime did not ask podshmd, and have System V \
                     memory of their own; restart them",
                    private.len() - 1
                );
                condition("PrivateNamespace", says)
            }));
            let domain = DomainView {
                stats,
                generation: self.domains.generation(&name),
                budget: budgets.get(&name).copied().unwrap_or_default(),
                agents: of(true) as u32,
                members: of(false) as u32,
                shm: fill.map(|fill| (fill.used, fill.size)),
                conditions: conditions.collect(),
            };
            view.domains.insert(name, domain);
        }
        view
    }

    fn directory(&self, volume: &str) -> PathBuf {
        self.root.join("volumes").join(hash(volume))
    }

    /// Removes a volume's directory; done before is done.
    fn remove(&self, directory: &Path) -> Result<(), VolumeError> {
        // What is mounted within the volume is mounted here too where mounts are propagated, and what lies in it is the domain's.
        let volume = directory.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let parts = ["shm", sysv::LIBRARY].map(|name| directory.join("socket").join(name));
        if parts.iter().any(|part| part.exists()) {
            self.mounter.ask(&Ask::Withdraw { volume })?;
        }
        for part in parts {
            let is_free = if mounts::is_mounted(&part) { Err(io::ErrorKind::ResourceBusy.into()) } else { Ok(()) };
            doing("removing what is still mounted at", &part, is_free)?;
        }
        match fs::remove_dir_all(directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => doing("removing", directory, other),
        }
    }

    /// Listens for one pod.
    fn open(&self, directory: &Path, record: &Record) -> Result<(), VolumeError> {
        let place = Place::of(&self.root, &record.domain)?;
        if sysv::is_native(&record.spec) {
            let has_shm = record.spec.modes.contains(&Mode::Posix);
            self.native.add(&record.uid, record.who().name(), &place, has_shm);
        }
        if sysv::has_library(&record.spec) {
            let socket = directory.join("socket");
            doing("listening for System V calls in", &socket, sysv::add(&place, &socket))?;
        }
        if !record.spec.modes.contains(&Mode::Channel) {
            return Ok(());
        }
        let rights = Rights { join: !record.agent, serve: record.agent };
        Ok(self.broker.add_socket(&record.domain, &directory.join("socket"), record.who(), rights)?)
    }

    /// Listens no more for what the broker knows nothing of.
    fn close(&self, directory: &Path, record: &Record) -> Result<(), VolumeError> {
        let (place, socket) = (Place::of(&self.root, &record.domain)?, directory.join("socket"));
        self.native.remove(&record.uid);
        doing("listening no more in", &socket, sysv::remove(&place, &socket))
    }

    /// Begins to serve a domain, as far as it is not served yet; what is in the way stays in the report until it is not. One that pods
    /// have already is served whatever there is room for: they keep what they have, and are refused more.
    fn serve(&mut self, name: &str, spec: &DomainSpec, pods_have_it: bool) -> Result<(), VolumeError> {
        let served = self.serve_what_is_not(name, spec, pods_have_it);
        match &served {
            Ok(()) => drop(self.failed.remove(name)),
            Err(error) => {
                let reason = if error.rule() == Some("over_limit") { "OverLimit" } else { "NotServed" };
                self.failed.insert(name.to_owned(), condition(reason, error.to_string()));
            }
        }
        served
    }

    fn serve_what_is_not(&mut self, name: &str, spec: &DomainSpec, pods_have_it: bool) -> Result<(), VolumeError> {
        // Each apart: a mode may have come later, and what failed is tried again with the next volume.
        if spec.modes.contains(&Mode::Channel) && !self.channels.contains_key(name) {
            let config = domains::config(name, spec);
            let mut budget = config.limits.budget;
            match self.memory.admit(budget, self.others(name)?) {
                Ok(()) => {}
                Err(refused) if pods_have_it => {
                    let (asked, left) = (String::from(spec.budget), String::from(Bytes(refused.room())));
                    tracing::error!(domain = name, asked, left, "a domain that pods have gets less than its budget");
                    let says =
                        format!("{refused}. Its pods keep what they have; beyond {left} new regions are refused");
                    self.clamped.insert(name.to_owned(), condition("OverLimit", says));
                    budget = refused.room();
                }
                Err(source) => return Err(VolumeError::OverLimit { domain: name.to_owned(), source }),
            }
            self.add_channel(config, budget)?;
        }
        if spec.modes.contains(&Mode::Sysv) && !self.sysv.contains_key(name) {
            self.admit_sysv(name, sysv::charged(spec), pods_have_it)?;
        }
        let is_for_unmodified = [Mode::Posix, Mode::Sysv].iter().any(|mode| spec.modes.contains(mode));
        if is_for_unmodified && !self.unmodified.contains_key(name) {
            let server = self.serve_unmodified(name, spec)?;
            self.unmodified.insert(name.to_owned(), server);
        }
        Ok(())
    }

    /// Has the broker serve a domain, with this budget whatever its description says.
    fn add_channel(&mut self, config: DomainConfig, budget: u64) -> Result<(), VolumeError> {
        let (name, asked) = (config.name.clone(), config.limits);
        self.broker.add_domain(DomainConfig { limits: Limits { budget, ..asked }, ..config })?;
        self.channels.insert(name, Served { budget, asked });
        Ok(())
    }

    /// Counts what a domain's System V memory may come to. Where pods have it already it is there, whatever there is room for.
    fn admit_sysv(&mut self, name: &str, charged: u64, pods_have_it: bool) -> Result<(), VolumeError> {
        let own = self.channels.get(name).map_or(0, |served| served.budget);
        match self.memory.admit(charged, self.others(name)?.saturating_add(own)) {
            Ok(()) => {}
            Err(refused) if pods_have_it => {
                tracing::error!(domain = name, %refused, "a domain that pods have may have more than there is room for");
                self.clamped.insert(name.to_owned(), condition("OverLimit", refused.to_string()));
            }
            Err(source) => return Err(VolumeError::SysvOverLimit { domain: name.to_owned(), source }),
        }
        self.sysv.insert(name.to_owned(), charged);
        Ok(())
    }

    /// What is not for a domain: the other domains' budgets, or what they have where that is more, and what nobody's budget counts.
    fn others(&self, name: &str) -> Result<u64, VolumeError> {
        let mut others = self.broker.unserved_bytes(name)?;
        for (other, served) in &self.channels {
            others = others.saturating_add(self.broker.stats(other)?.domain_bytes.max(served.budget));
        }
        others = self.sysv.values().fold(others, |sum, charged| sum.saturating_add(*charged));
        Ok(others)
    }

    fn serve_unmodified(&self, name: &str, spec: &DomainSpec) -> Result<Server, VolumeError> {
        let place = Place::of(&self.root, name)?;
        let config = match place.config() {
            // A live domain stays as it is until nobody has it.
            Ok(found) => {
                let asked = sysv::config(name, spec).mode;
                if spec.modes.contains(&Mode::Sysv) && asked != found.mode {
                    let (found, asked) = (found.mode.to_string(), asked.to_string());
                    return Err(PlaceError::Otherwise { name: name.to_owned(), what: "mode", found, asked }.into());
                }
                found
            }
            Err(PlaceError::Absent { .. }) => sysv::config(name, spec),
            Err(error) => return Err(error.into()),
        };
        place.make_directories()?;
        for what in config.file_systems() {
            self.mounter.ask(&Ask::FileSystem { domain: name.to_owned(), what })?;
        }
        if config.mode == podshm_unmodified::Mode::Native {
            place.make_ipc_file()?;
            self.mounter.ask(&Ask::Ipc { domain: name.to_owned(), limits: config.limits })?;
        }
        sysv::prune(&place);
        Ok(Server::start(place, config)?)
    }
}

/// A volume's name as its directory's: a Unix socket's path has 107 bytes, and the kubelet's names alone have 68.
fn hash(volume: &str) -> String {
    format!("{:032x}", xxh3_128(volume.as_bytes()))
}

fn make_directory(path: &Path, mode: u32) -> Result<(), VolumeError> {
    let made = DirBuilder::new().recursive(true).mode(mode).create(path);
    // The mode of a process may be masked.
    doing("making", path, made.and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(mode))))
}

fn write_down(directory: &Path, record: &Record) -> Result<(), VolumeError> {
    let (path, next) = (directory.join("volume.json"), directory.join("volume.json.next"));
    let write = || fs::write(&next, serde_json::to_vec(record)?).and_then(|()| fs::rename(&next, &path));
    doing("writing", &path, write())
}
