//! What a domain for unmodified programs is made of, as options; and which mode it gets.

use podshm_unmodified::events::{self, Event, Reason};
use podshm_unmodified::place::{PlaceError, differs};
use podshm_unmodified::{Config, Limits, Mode, Place};
use std::path::PathBuf;

/// Where domains are on this machine.
#[derive(clap::Args, Clone, Debug)]
pub struct Where {
    /// Directory of the domains; root's.
    #[arg(long, value_name = "ROOT", env = "PODSHM_ROOT", default_value = "/run/podshm")]
    pub root: PathBuf,
}

/// Mode, as it is asked for.
#[derive(clap::ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// Native where it can be, preload otherwise; as it is, where the domain is there.
    Auto,
    /// System V calls through libpodshm-preload.so and the daemon.
    Preload,
    /// System V calls by the kernel, in an IPC namespace of the domain.
    Native,
}

/// How a domain is set up, if it is not there yet. Of one that is there, what is said here has to be so.
#[derive(clap::Args, Clone, Debug)]
pub struct Setup {
    /// How System V calls reach the domain.
    #[arg(long, value_enum, default_value = "auto")]
    pub mode: Asked,
    /// Size of /dev/shm in MiB; 256 unless said.
    #[arg(long)]
    pub shm_mib: Option<u64>,
    /// Files in /dev/shm; 4096 unless said.
    #[arg(long)]
    pub shm_inodes: Option<u64>,
    /// Lets what lies in /dev/shm be executed.
    #[arg(long)]
    pub shm_exec: bool,
    /// How full /dev/shm may be, in percent of its size or its files, before the daemon warns; 90 unless said.
    #[arg(long, value_name = "PERCENT", value_parser = clap::value_parser!(u8).range(1..=100))]
    pub shm_alert_percent: Option<u8>,
    /// Largest System V segment in MiB; as much as all of them unless said.
    #[arg(long)]
    pub shmmax_mib: Option<u64>,
    /// All System V segments together, in MiB; 256 unless said.
    #[arg(long)]
    pub shmall_mib: Option<u64>,
    /// System V segments at once; 4096 unless said.
    #[arg(long)]
    pub shmmni: Option<u32>,
    /// Seconds after which a segment goes that has neither its creator nor an attachment; 0, and unless said: never.
    #[arg(long, value_name = "SECONDS")]
    pub reap_after: Option<u64>,
}

/// Who asks for a domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// Its daemon, which may set what is the daemon's.
    Daemon,
    /// `podshm run`.
    Run,
}

impl Setup {
    /// A domain that is not there yet.
    fn new_domain(&self, name: &str, mode: Mode) -> Config {
        let mut base = Config::new(name, mode);
        if let Some(mib) = self.shmall_mib {
            base.limits.shmmax = mib << 20;
        }
        self.said_of(base)
    }

    /// A domain with what is said here, and all else as it is.
    fn said_of(&self, found: Config) -> Config {
        let was = found.limits;
        let limits = Limits {
            shmmax: self.shmmax_mib.map_or(was.shmmax, |mib| mib << 20),
            shmall: self.shmall_mib.map_or(was.shmall, |mib| (mib << 20) / 4096),
            shmmni: self.shmmni.unwrap_or(was.shmmni),
        };
        Config {
            limits,
            mode: match self.mode {
                Asked::Auto => found.mode,
                Asked::Preload => Mode::Preload,
                Asked::Native => Mode::Native,
            },
            shm_size: self.shm_mib.map_or(found.shm_size, |mib| mib << 20),
            shm_inodes: self.shm_inodes.unwrap_or(found.shm_inodes),
            shm_exec: self.shm_exec || found.shm_exec,
            shm_alert_percent: self.shm_alert_percent.unwrap_or(found.shm_alert_percent),
            reap_after: self.reap_after.map_or(found.reap_after, |seconds| Some(seconds).filter(|some| *some > 0)),
            name: found.name,
        }
    }

    /// The domain as it is, or set up now. Auto is resolved here, once: the domain remembers.
    pub fn resolve(&self, place: &Place, name: &str, by: By) -> Result<Config, PlaceError> {
        match place.config() {
            Ok(found) => {
                let asked = self.said_of(found.clone());
                differs(&asked, &found)?;
                if by == By::Run {
                    daemons_differ(&asked, &found)?;
                }
                return Ok(asked);
            }
            Err(PlaceError::Absent { .. }) => {}
            Err(error) => return Err(error),
        }
        let set_up = |mode| {
            let config = self.new_domain(name, mode);
            place.set_up(&config).map(|()| config)
        };
        match self.mode {
            Asked::Native => set_up(Mode::Native),
            Asked::Preload => set_up(Mode::Preload),
            Asked::Auto => set_up(Mode::Native).or_else(|why| {
                eprintln!("podshm: domain {name}: native mode can't be had here ({why}); preload");
                let config = set_up(Mode::Preload)?;
                let message = format!("native mode can't be had here ({why}); the domain is in preload mode");
                if let Err(error) = events::record(place, [Event::now(Reason::ModeFellBack, "", message)]) {
                    eprintln!("podshm: domain {name}: an event could not be written down: {error}");
                }
                Ok(config)
            }),
        }
    }
}

/// What its daemon reads once, at its start.
fn daemons_differ(asked: &Config, found: &Config) -> Result<(), PlaceError> {
    let name = asked.name.clone();
    let seconds = |reap_after: Option<u64>| reap_after.unwrap_or(0).to_string();
    let pairs = [
        ("--shm-alert-percent", found.shm_alert_percent.to_string(), asked.shm_alert_percent.to_string()),
        ("--reap-after", seconds(found.reap_after), seconds(asked.reap_after)),
    ];
    match pairs.into_iter().find(|(_, found, asked)| found != asked) {
        None => Ok(()),
        Some((what, found, asked)) => Err(PlaceError::Daemons { name, what, found, asked }),
    }
}
