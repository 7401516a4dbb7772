//! What a domain for unmodified programs is made of, as options; and which mode it gets.

use podshm_unmodified::place::PlaceError;
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

/// How a domain is set up, if it is not there yet.
#[derive(clap::Args, Clone, Debug)]
pub struct Setup {
    /// How System V calls reach the domain.
    #[arg(long, value_enum, default_value = "auto")]
    pub mode: Asked,
    /// Size of /dev/shm in MiB.
    #[arg(long, default_value_t = 256)]
    pub shm_mib: u64,
    /// Files in /dev/shm.
    #[arg(long, default_value_t = 4096)]
    pub shm_inodes: u64,
    /// Lets what lies in /dev/shm be executed.
    #[arg(long)]
    pub shm_exec: bool,
    /// How full /dev/shm may be, in percent of its size or its files, before the daemon warns.
    #[arg(long, value_name = "PERCENT", default_value_t = 90, value_parser = clap::value_parser!(u8).range(1..=100))]
    pub shm_alert_percent: u8,
    /// Largest System V segment in MiB; as much as all of them unless said.
    #[arg(long)]
    pub shmmax_mib: Option<u64>,
    /// All System V segments together, in MiB.
    #[arg(long, default_value_t = 256)]
    pub shmall_mib: u64,
    /// System V segments at once.
    #[arg(long, default_value_t = 4096)]
    pub shmmni: u32,
    /// Seconds after which a segment goes that has neither its creator nor an attachment; never unless said.
    #[arg(long, value_name = "SECONDS")]
    pub reap_after: Option<u64>,
}

impl Setup {
    /// The domain in this mode.
    pub fn config(&self, name: &str, mode: Mode) -> Config {
        let shmall = self.shmall_mib << 20;
        let limits = Limits {
            shmmax: self.shmmax_mib.map_or(shmall, |mib| mib << 20),
            shmall: shmall / 4096,
            shmmni: self.shmmni,
        };
        Config {
            limits,
            shm_size: self.shm_mib << 20,
            shm_inodes: self.shm_inodes,
            shm_exec: self.shm_exec,
            shm_alert_percent: self.shm_alert_percent,
            reap_after: self.reap_after,
            ..Config::new(name, mode)
        }
    }

    /// The domain as it is, or set up now. Auto is resolved here, once: the domain remembers.
    pub fn resolve(&self, place: &Place, name: &str) -> Result<Config, PlaceError> {
        match place.config() {
            Ok(found) if self.mode == Asked::Auto => return Ok(found),
            Ok(found) => {
                let mode = if self.mode == Asked::Native { Mode::Native } else { Mode::Preload };
                if found.mode == mode {
                    return Ok(found);
                }
                return Err(PlaceError::Otherwise {
                    name: name.to_owned(),
                    what: "mode",
                    found: found.mode.to_string(),
                    asked: mode.to_string(),
                });
            }
            Err(PlaceError::Absent { .. }) => {}
            Err(error) => return Err(error),
        }
        let set_up = |mode| {
            let config = self.config(name, mode);
            place.set_up(&config).map(|()| config)
        };
        match self.mode {
            Asked::Native => set_up(Mode::Native),
            Asked::Preload => set_up(Mode::Preload),
            Asked::Auto => set_up(Mode::Native).or_else(|why| {
                eprintln!("podshm: domain {name}: native mode can't be had here ({why}); preload");
                set_up(Mode::Preload)
            }),
        }
    }
}
