//! `podshm-controller`.
#![forbid(unsafe_code)]

use clap::{Parser, Subcommand};
use podshm_controller::rollout;

#[derive(Parser)]
#[command(name = "podshm-controller", version, about = "podshm's controller: one process for a whole cluster")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Carries out AgentRollouts.
    Rollouts,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let filter = tracing_subscriber::EnvFilter::try_from_env("PODSHM_LOG").unwrap_or_else(|_| "info".into());
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    let Arguments { command: Command::Rollouts } = Arguments::parse();
    let mut term = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    let client = kube::Client::try_default().await?;
    tokio::select! {
        ended = rollout::run(client) => ended,
        _ = term.recv() => Ok(()),
    }
}
