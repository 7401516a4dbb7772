//! `podshm run`: an unmodified command as a member of a domain, in namespaces of its own.
//!
//! ```text
//!  podshm run ── new pid namespace ──► stage (pid 1: mount, uts and ipc namespaces, mounts, checks; then reaps)
//!   signals, exit status                 └─► COMMAND: its uid, few capabilities, no_new_privs
//! ```
//! The file system and the network are the machine's; /dev/shm, /proc, System V memory and the host name are not.

use crate::domain::{By, Setup, Where};
use crate::stage::{Stage, VERB};
use anyhow::{Context, bail};
use podshm_unmodified::control::{Question, Response, ask, ask_patiently};
use podshm_unmodified::runs::Run;
use podshm_unmodified::{Mode, Place};
use rustix::process::{Pid, Signal, kill_process};
use rustix::thread::UnshareFlags;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};

/// What `podshm run` takes.
#[derive(clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    place: Where,
    /// The domain.
    #[arg(long)]
    domain: String,
    #[command(flatten)]
    setup: Setup,
    /// The member's name and host name; one of its own unless said.
    #[arg(long)]
    member: Option<String>,
    /// User to run as: a name, or UID[:GID].
    #[arg(long, value_name = "USER")]
    user: Option<String>,
    /// Another preload library than the domain's.
    #[arg(long, value_name = "PATH", hide = true)]
    library: Option<PathBuf>,
    /// The command.
    #[arg(last = true, required = true)]
    command: Vec<String>,
}

/// Runs it; its exit status, or 128 and the signal's number.
pub fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    let place = Place::of(&arguments.place.root, &arguments.domain)?;
    let config = arguments.setup.resolve(&place, &arguments.domain, By::Run)?;
    let member = arguments.member.unwrap_or_else(|| format!("run-{}", std::process::id()));
    anyhow::ensure!(
        !member.is_empty() && !member.contains('/') && !member.starts_with('.') && member.len() <= 63,
        "member {member:?}: expected a plain name of at most 63 bytes"
    );
    let mut held = None;
    if config.mode == Mode::Preload {
        held = Some(Run::begin(&place, &member)?);
        let answer = ask_patiently(&place, &Question::AddMember(member.clone())).with_context(|| {
            format!(
                "domain {} is in preload mode and its daemon is not there; start `podshm domain --domain {}`",
                config.name, config.name
            )
        })?;
        if let Response::Refused(why) = answer {
            bail!("the domain's daemon refused member {member}: {why}");
        }
    }
    let (uid, gid) = user(arguments.user.as_deref())?;
    let stage = Stage {
        root: arguments.place.root.clone(),
        domain: config.name,
        mode: config.mode,
        member: member.clone(),
        uid,
        gid,
        library: arguments.library,
        command: arguments.command,
    };
    let done = start(&stage);
    if held.take().is_some() {
        // A daemon that is away finds out by itself.
        let _ = ask(&place, &Question::RunEnded);
    }
    done
}

fn start(stage: &Stage) -> anyhow::Result<ExitCode> {
    let mut signals = signal_hook::iterator::Signals::new([1, 2, 15]).context("watching for signals")?;
    let handle = signals.handle();
    let member = Arc::new(AtomicI32::new(0));
    let to = Arc::clone(&member);
    // Before the pid namespace is made: after it this process can have children, and no more threads.
    let forwarder = std::thread::spawn(move || {
        for signal in &mut signals {
            let pid = Pid::from_raw(to.load(Ordering::Relaxed));
            if let (Some(pid), Some(signal)) = (pid, Signal::from_named_raw(signal)) {
                let _ = kill_process(pid, signal);
            }
        }
    });
    // Deprecated for UnshareFlags::FILES, which is not among these. Our later children live in the new namespace.
    #[allow(deprecated)]
    rustix::thread::unshare(UnshareFlags::NEWPID).context("making a pid namespace (needs root)")?;
    let mut child = Command::new("/proc/self/exe")
        .arg(VERB)
        .arg(serde_json::to_string(stage)?)
        .spawn()
        .context("starting the member's first process")?;
    // A signal of the moment before is the caller's to repeat.
    member.store(i32::try_from(child.id()).unwrap_or(0), Ordering::Relaxed);
    let status = child.wait().context("waiting for the member")?;
    handle.close();
    let _ = forwarder.join();
    let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
    Ok(ExitCode::from(code as u8))
}

/// `name` or `UID[:GID]`, by /etc/passwd.
fn user(asked: Option<&str>) -> anyhow::Result<(u32, u32)> {
    let Some(asked) = asked else {
        return Ok((rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw()));
    };
    let (user, group) = asked.split_once(':').map_or((asked, None), |(user, group)| (user, Some(group)));
    let passwd = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let entry =
        passwd.lines().map(|line| line.split(':').collect::<Vec<_>>()).find(|words| words.first() == Some(&user));
    let (uid, own) = match entry.as_deref() {
        Some([_, _, uid, gid, ..]) => (uid.parse()?, gid.parse()?),
        _ => {
            let uid =
                user.parse().with_context(|| format!("user {user:?}: expected a name in /etc/passwd or a uid"))?;
            (uid, uid)
        }
    };
    let gid = group.map_or(Ok(own), str::parse).with_context(|| format!("group of {asked:?}: expected a gid"))?;
    Ok((uid, gid))
}
