//! `podshmd`.
#![forbid(unsafe_code)]

use clap::{Parser, Subcommand};
use podshm_node::nri::relay;
use podshm_node::{helper, run, sweep};

/// The node daemon: a CSI driver whose volumes are a domain's shared memory.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Serves until it is ended, or another one takes over.
    Run(run::Options),
    /// Mounts and unmounts for a daemon that may not do so itself.
    MountHelper(helper::Options),
    /// Passes bytes between such a daemon and the container runtime's NRI socket.
    NriRelay(relay::Options),
    /// Takes away what is left on a node, once no daemon will come any more.
    Sweep(sweep::Options),
}

fn main() -> anyhow::Result<()> {
    let log = tracing_subscriber::EnvFilter::try_from_env("PODSHM_LOG").unwrap_or_else(|_| "info".into());
    tracing_subscriber::fmt().with_env_filter(log).with_writer(std::io::stderr).with_ansi(false).init();
    match Arguments::parse().verb {
        Verb::Run(options) => {
            tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(run::run(options))
        }
        Verb::MountHelper(options) => helper::run(&options),
        Verb::NriRelay(options) => relay::run(&options),
        Verb::Sweep(options) => sweep::run(&options),
    }
}
