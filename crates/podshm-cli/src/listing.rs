//! `podshm ls`, `podshm events` and `podshm rm`.

use crate::domain::Where;
use anyhow::{Context, bail};
use podshm_unmodified::control::{Listing, Question, Response, ask};
use podshm_unmodified::events;
use podshm_unmodified::native::KernelSegment;
use podshm_unmodified::{Config, Mode, Place, store, turn};
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;

/// What `podshm ls` and `podshm events` take.
#[derive(clap::Args)]
pub struct List {
    #[command(flatten)]
    place: Where,
    /// This domain alone.
    #[arg(long)]
    domain: Option<String>,
}

/// What `podshm rm` takes.
#[derive(clap::Args)]
pub struct Remove {
    #[command(flatten)]
    place: Where,
    /// The domain.
    #[arg(long)]
    domain: String,
    /// Removes what is in use too; programs keep what they have mapped.
    #[arg(long)]
    force: bool,
    /// System V ids, and names of POSIX objects as /name; the whole domain, if none is given.
    what: Vec<String>,
}

/// Shows what happened, the latest last: how long ago, the reason, whose, in words, how often.
pub fn events(arguments: &List) -> anyhow::Result<()> {
    let now = podshm_unmodified::answer::now();
    for place in arguments.places()? {
        for event in events::read(&place)? {
            let kind = if event.reason.is_warning() { "Warning" } else { "Normal" };
            let member = if event.member.is_empty() { String::new() } else { format!(" member {}", event.member) };
            let often = match event.count {
                1 => String::new(),
                count => format!(" (x{count} over {} s)", event.last - event.first),
            };
            println!(
                "{} s ago  {kind}  {:?}  domain {}{member}  {}{often}",
                (now - event.last).max(0),
                event.reason,
                place.name(),
                event.message
            );
        }
    }
    Ok(())
}

impl List {
    fn places(&self) -> anyhow::Result<Vec<Place>> {
        Ok(match &self.domain {
            Some(name) => vec![Place::of(&self.place.root, name)?],
            None => Place::all(&self.place.root),
        })
    }
}

/// Shows domains, their segments of all three kinds, owners, attachments and sizes.
pub fn list(arguments: &List) -> anyhow::Result<()> {
    for place in arguments.places()? {
        let config = place.config()?;
        let limits = config.limits;
        println!(
            "domain {} mode {} shmmax {} shmall {} shmmni {}",
            config.name, config.mode, limits.shmmax, limits.shmall, limits.shmmni
        );
        if let Ok(fill) = place.fill() {
            let percent = fill.used * 100 / fill.size.max(1);
            let level = config.shm_alert_percent;
            let alert = if fill.percent() >= level { format!(": past {level} %") } else { String::new() };
            println!(
                "  /dev/shm {} of {} bytes ({percent} %), {} of {} files{alert}",
                fill.used, fill.size, fill.inodes_used, fill.inodes
            );
        }
        let idle = match ask(&place, &Question::Idle) {
            Ok(Response::Idle(idle)) => BTreeMap::from_iter(idle),
            _ => BTreeMap::new(), // without a daemon nothing is reaped
        };
        posix(&place, &idle)?;
        match config.mode {
            Mode::Native => native(&place, &idle)?,
            Mode::Preload => match ask(&place, &Question::List) {
                Ok(Response::Listing(listing)) => preload(&listing),
                Ok(other) => bail!("expected a listing from the daemon, found {other:?}"),
                Err(error) => println!("  sysv: the daemon is away ({error}); its segments are kept"),
            },
        }
        let warnings = events::read(&place)?.iter().filter(|event| event.reason.is_warning()).count();
        if warnings > 0 {
            println!("  {warnings} warnings: `podshm events --domain {}`", config.name);
        }
    }
    Ok(())
}

fn posix(place: &Place, idle: &BTreeMap<String, u64>) -> anyhow::Result<()> {
    let mut files: Vec<_> =
        fs::read_dir(place.path("shm")).context("reading the domain's /dev/shm")?.flatten().collect();
    files.sort_by_key(fs::DirEntry::file_name);
    for file in files {
        let Ok(data) = file.metadata() else { continue };
        let name = file.file_name().to_string_lossy().into_owned();
        let idle = idle.get(&name).map_or(String::new(), |seconds| format!(" idle {seconds} s"));
        println!(
            "  posix /{name} owner {}:{} mode {:o} size {} allocated {}{idle}",
            data.uid(),
            data.gid(),
            data.mode() & 0o7777,
            data.size(),
            data.blocks() * 512
        );
    }
    Ok(())
}

fn preload(listing: &Listing) {
    for one in &listing.segments {
        let gone = if one.creator_gone { " (gone)" } else { "" };
        let idle = one.idle_seconds.map_or(String::new(), |seconds| format!(" idle {seconds} s"));
        println!(
            "  sysv {} key {:#010x} owner {} mode {:o} size {} attached {} creator {}{gone}{idle}",
            one.id, one.key, one.uid, one.mode, one.size, one.attached, one.creator
        );
    }
    println!(
        "  sysv {} of {} pages, members: {}",
        listing.pages,
        listing.config.limits.shmall,
        listing.members.join(" ")
    );
}

/// As the kernel lists them in the domain's namespace.
fn native(place: &Place, idle: &BTreeMap<String, u64>) -> anyhow::Result<()> {
    for one in place.kernel_segments()? {
        let KernelSegment { key, id, mode, size, creator, attached, uid } = one;
        let idle = idle.get(&format!("sysv/{id}")).map_or(String::new(), |seconds| format!(" idle {seconds} s"));
        println!(
            "  sysv {id} key {key:#010x} owner {uid} mode {mode} size {size} attached {attached} creator pid {creator}{idle}"
        );
    }
    Ok(())
}

/// Removes segments, or ends the domain.
pub fn remove(arguments: &Remove) -> anyhow::Result<()> {
    let place = Place::of(&arguments.place.root, &arguments.domain)?;
    let config = place.config()?;
    if arguments.what.is_empty() {
        return end(&place, &config, arguments);
    }
    for what in &arguments.what {
        if let Some(name) = what.strip_prefix('/') {
            posix_remove(&place, name, arguments.force)?;
            continue;
        }
        let id: i32 = what.parse().with_context(|| format!("{what:?}: expected an id, or /name of a POSIX object"))?;
        match config.mode {
            Mode::Preload => match ask(&place, &Question::Remove(id, arguments.force)).context("asking the daemon")? {
                Response::Done => {}
                Response::Refused(why) => bail!(why),
                other => bail!("unexpected answer {other:?}"),
            },
            Mode::Native => place.remove_kernel_segment(id, arguments.force)?,
        }
    }
    Ok(())
}

fn posix_remove(place: &Place, name: &str, force: bool) -> anyhow::Result<()> {
    anyhow::ensure!(!name.is_empty() && !name.contains('/') && name != "..", "/{name} is no name of an object");
    let path = place.path("shm").join(name);
    if !force && let Some(user) = in_use(&path)? {
        bail!("/{name} is open or mapped in process {user}; end it, or use --force");
    }
    fs::remove_file(&path).with_context(|| format!("removing /{name}"))
}

/// A process that has a file open or mapped, by /proc.
fn in_use(path: &std::path::Path) -> anyhow::Result<Option<u32>> {
    let data = fs::metadata(path).with_context(|| format!("no such object: {}", path.display()))?;
    let same =
        |other: &std::path::Path| fs::metadata(other).is_ok_and(|o| (o.dev(), o.ino()) == (data.dev(), data.ino()));
    for process in fs::read_dir("/proc")?.flatten() {
        let Ok(pid) = process.file_name().to_string_lossy().parse::<u32>() else { continue };
        for folder in ["fd", "map_files"] {
            let entries = fs::read_dir(process.path().join(folder));
            if entries.into_iter().flatten().flatten().any(|entry| same(&entry.path())) {
                return Ok(Some(pid));
            }
        }
    }
    Ok(None)
}

fn end(place: &Place, config: &Config, arguments: &Remove) -> anyhow::Result<()> {
    if !arguments.force {
        if let Ok(Response::Listing(listing)) = ask(place, &Question::List) {
            anyhow::ensure!(
                listing.members.is_empty(),
                "domain {} has members ({}); end them, or use --force: they keep what they have mapped",
                arguments.domain,
                listing.members.join(" ")
            );
        }
        let attached = match config.mode {
            Mode::Preload => store::attached(&place.path("sysv")).context("looking for attachments")?,
            Mode::Native => {
                let all = place.kernel_segments()?;
                all.iter().find(|one| one.attached > 0).map(|one| (one.id, one.attached as usize))
            }
        };
        if let Some((id, times)) = attached {
            bail!(
                "segment {id} is attached {times} times; end those programs, or use --force: they keep what they have mapped"
            );
        }
        for file in fs::read_dir(place.path("shm"))?.flatten() {
            if let Some(user) = in_use(&file.path())? {
                bail!("{} is in use by process {user}; end it, or use --force", file.file_name().to_string_lossy());
            }
        }
        if let Some(pid) = turn::holder(place).context("looking for the domain's daemon")? {
            bail!("domain {} is served by a daemon, pid {pid}; end it first, or use --force", arguments.domain);
        }
    }
    place.tear_down()?;
    Ok(())
}
