//! `podshm`: the command for people.
#![forbid(unsafe_code)]

mod broker;
mod doctor;
mod domain;
mod listing;
mod pages;
mod past;
#[cfg(feature = "kubernetes")]
mod rollout;
mod run;
mod serve;
mod stage;
mod verify;

use clap::{CommandFactory, Parser, Subcommand};
use std::process::ExitCode;

#[derive(Parser)]
#[command(name = "podshm", version, about = "Fast shared memory between pods on the same node")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Runs a broker on a plain machine: one domain, a socket directory for each pod.
    Broker(broker::Arguments),
    /// Serves a domain for unmodified programs on a plain machine.
    Domain(serve::Arguments),
    /// Runs an unmodified command as a member of a domain, in namespaces of its own.
    Run(run::Arguments),
    /// Shows domains, what lies in them and who uses it.
    Ls(listing::List),
    /// Shows what happened in domains that somebody should hear of: refused calls, members that did not start, what was reaped.
    Events(listing::List),
    /// Says what of this node, or of a cluster, is in podshm's way, and what to do about it.
    Doctor(doctor::Arguments),
    /// Removes what is left in a domain, or the domain.
    Rm(listing::Remove),
    /// Plans, starts, watches and steers gray rollouts of node agents (also: kubectl podshm rollout).
    #[cfg(feature = "kubernetes")]
    #[command(subcommand)]
    Rollout(rollout::Verb),
    /// Does a real round trip with the agent of this node: lookups, reports, calls. Runs in a pod of the domain.
    Verify(verify::Arguments),
    /// Writes man pages and shell completions.
    #[command(hide = true)]
    Pages(pages::Arguments),
    /// For `podshm run` alone.
    #[command(name = stage::VERB, hide = true)]
    MemberStage {
        /// What the member shall be.
        stage: String,
    },
}

fn main() -> anyhow::Result<ExitCode> {
    let filter = tracing_subscriber::EnvFilter::try_from_env("PODSHM_LOG").unwrap_or_else(|_| "warn".into());
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    match Arguments::parse().command {
        Command::Broker(arguments) => broker::run(arguments)?,
        Command::Domain(arguments) => serve::run(&arguments)?,
        Command::Run(arguments) => return run::run(arguments),
        Command::Ls(arguments) => listing::list(&arguments)?,
        Command::Events(arguments) => listing::events(&arguments)?,
        Command::Doctor(arguments) => return doctor::run(&arguments),
        Command::Rm(arguments) => listing::remove(&arguments)?,
        #[cfg(feature = "kubernetes")]
        Command::Rollout(verb) => return rollout::run(verb),
        Command::Verify(arguments) => verify::run(&arguments)?,
        Command::Pages(arguments) => pages::write(self::Arguments::command(), &arguments)?,
        Command::MemberStage { stage } => return stage::run(&stage),
    }
    Ok(ExitCode::SUCCESS)
}
