//! `podshm`: the command for people.
#![forbid(unsafe_code)]

mod broker;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(version, about = "Fast shared memory between pods on the same node")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Runs a broker on a plain machine: one domain, a socket directory for each pod.
    Broker(broker::Arguments),
}

fn main() -> anyhow::Result<()> {
    let filter = tracing_subscriber::EnvFilter::try_from_env("PODSHM_LOG").unwrap_or_else(|_| "warn".into());
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    match Arguments::parse().command {
        Command::Broker(arguments) => broker::run(arguments),
    }
}
