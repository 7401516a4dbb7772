//! The route agent's program.
#![forbid(unsafe_code)]

use std::{
    io::Write,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use anyhow::Context;
use clap::Parser;
use route_agent::{Config, FileSource, Pace, Server};

/// Serves routes out of EndpointSlices to the pods of this node.
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    /// Directory of the podshm socket.
    #[arg(long)]
    socket_dir: PathBuf,
    /// A list of EndpointSlices, as `kubectl get endpointslices -A -o json` prints it.
    #[arg(long)]
    endpointslices: PathBuf,
    /// Watch events, one JSON object per line.
    #[arg(long)]
    events: Option<PathBuf>,
    /// Replay an event every so many milliseconds.
    #[arg(long, conflicts_with = "events_over")]
    events_every: Option<u64>,
    /// Replay all events evenly over so many seconds.
    #[arg(long)]
    events_over: Option<u64>,
    /// What this agent calls itself in its output.
    #[arg(long, default_value = env!("CARGO_PKG_VERSION"))]
    agent_version: String,
    /// Log each delivered record to this file (put it on tmpfs).
    #[arg(long)]
    log_delivered: Option<PathBuf>,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "info".into());
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGTERM, signal_hook::consts::SIGINT] {
        signal_hook::flag::register(signal, Arc::clone(&stop)).context("registering for SIGTERM and SIGINT")?;
    }
    let pace = match (args.events_every, args.events_over) {
        (Some(ms), _) => Pace::Every(ms.saturating_mul(1_000_000)),
        (None, Some(s)) => Pace::Over(s.saturating_mul(1_000_000_000)),
        (None, None) => Pace::Unpaced,
    };
    let source = FileSource::new(args.endpointslices, args.events, pace);
    let mut config = Config::new(args.socket_dir);
    config.version = args.agent_version;
    config.log_delivered = args.log_delivered;
    let server = Server::start(config, source)?;
    let mut out = std::io::stdout();
    let stats = server.run(
        || stop.load(Ordering::Relaxed),
        // Nobody may be reading; that is no reason to stop serving.
        |stats| drop(writeln!(out, "{stats}").and_then(|()| out.flush())),
    )?;
    tracing::info!(%stats, "closed");
    Ok(())
}
