//! `podshm ls` and `podshm rm`.

use crate::domain::Where;
use anyhow::{Context, bail};
use podshm_unmodified::control::{Listing, Question, Response, ask};
use podshm_unmodified::{Mode, Place};
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::process::Command;

/// What `podshm ls` takes.
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

/// Shows domains, their segments of all three kinds, owners, attachments and sizes.
pub fn list(arguments: &List) -> anyhow::Result<()> {
    let places = match &arguments.domain {
        Some(name) => vec![Place::of(&arguments.place.root, name)?],
        None => Place::all(&arguments.place.root),
    };
    for place in places {
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
        posix(&place)?;
        match config.mode {
            Mode::Native => native(&place)?,
            Mode::Preload => match ask(&place, &Question::List) {
                Ok(Response::Listing(listing)) => preload(&listing),
                Ok(other) => bail!("expected a listing from the daemon, found {other:?}"),
                Err(error) => println!("  sysv: the daemon is away ({error}); its segments are kept"),
            },
        }
    }
    Ok(())
}

fn posix(place: &Place) -> anyhow::Result<()> {
    let mut files: Vec<_> =
        fs::read_dir(place.path("shm")).context("reading the domain's /dev/shm")?.flatten().collect();
    files.sort_by_key(fs::DirEntry::file_name);
    let idle = match ask(place, &Question::Idle) {
        Ok(Response::Idle(idle)) => BTreeMap::from_iter(idle),
        _ => BTreeMap::new(), // without a daemon nothing is reaped
    };
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
fn native(place: &Place) -> anyhow::Result<()> {
    let text = in_ipc(place, || Ok(fs::read_to_string("/proc/sysvipc/shm")?))?;
    for line in text.lines().skip(1) {
        let words: Vec<&str> = line.split_whitespace().collect();
        if let [key, id, mode, size, creator, _, attached, uid, ..] = words[..] {
            println!(
                "  sysv {id} key {key} owner {uid} mode {mode} size {size} attached {attached} creator pid {creator}"
            );
        }
    }
    Ok(())
}

/// In a thread that enters the domain's IPC namespace.
fn in_ipc<T: Send>(place: &Place, work: impl FnOnce() -> anyhow::Result<T> + Send) -> anyhow::Result<T> {
    std::thread::scope(|scope| {
        let inside = || {
            place.enter_ipc()?;
            work()
        };
        scope.spawn(inside).join().unwrap_or_else(|_| bail!("the thread in the domain's namespace died"))
    })
}

/// Removes segments, or ends the domain.
pub fn remove(arguments: &Remove) -> anyhow::Result<()> {
    let place = Place::of(&arguments.place.root, &arguments.domain)?;
    let config = place.config()?;
    if arguments.what.is_empty() {
        return end(&place, arguments);
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
            Mode::Native => native_remove(&place, id, arguments.force)?,
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

fn native_remove(place: &Place, id: i32, force: bool) -> anyhow::Result<()> {
    in_ipc(place, || {
        let text = fs::read_to_string("/proc/sysvipc/shm")?;
        let found = text.lines().skip(1).map(|line| line.split_whitespace().collect::<Vec<_>>());
        let segment = found.into_iter().find(|words| words.get(1) == Some(&&*id.to_string()));
        let segment = segment.with_context(|| format!("no segment {id} here; `podshm ls` shows those that are"))?;
        if segment.get(6) != Some(&"0") && !force {
            bail!("segment {id} is attached {} times; end those programs, or use --force", segment[6]);
        }
        let status = Command::new("ipcrm").args(["-m", &id.to_string()]).status().context("ipcrm, of util-linux")?;
        anyhow::ensure!(status.success(), "ipcrm: {status}");
        Ok(())
    })
}

fn end(place: &Place, arguments: &Remove) -> anyhow::Result<()> {
    if !arguments.force {
        if let Ok(Response::Listing(listing)) = ask(place, &Question::List) {
            anyhow::ensure!(
                listing.members.is_empty(),
                "domain {} has members ({}); end them, or use --force: they keep what they have mapped",
                arguments.domain,
                listing.members.join(" ")
            );
        }
        for file in fs::read_dir(place.path("shm"))?.flatten() {
            if let Some(user) = in_use(&file.path())? {
                bail!("{} is in use by process {user}; end it, or use --force", file.file_name().to_string_lossy());
            }
        }
    }
    place.tear_down()?;
    Ok(())
}
