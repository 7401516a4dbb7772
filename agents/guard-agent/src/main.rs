//! The guard agent's program.
#![forbid(unsafe_code)]

use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use clap::{CommandFactory, Parser};
use guard_agent::{Bundle, Config, Health, Policies, Server};

/// Answers authorization requests of the pods of this node from Cedar policies.
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    /// Directory of the podshm socket.
    #[arg(long, required_unless_present_any = ["check", "probe"])]
    socket_dir: Option<PathBuf>,
    /// Directory of the policies: *.cedar, and where wanted schema.cedarschema (or schema.json) and entities.json. Followed while the
    /// agent runs.
    #[arg(long, required_unless_present_any = ["check", "probe"])]
    policies: Option<PathBuf>,
    /// Keep a copy of the last good policies in this file, and start with it where those in the directory can't be used.
    #[arg(long)]
    last_good: Option<PathBuf>,
    /// Write the agent's health to this file each second (put it on tmpfs).
    #[arg(long)]
    health_file: Option<PathBuf>,
    /// What this agent calls itself in its output.
    #[arg(long, default_value = env!("CARGO_PKG_VERSION"))]
    agent_version: String,
    /// Say whether the policies in this directory can be used, and end.
    #[arg(long, conflicts_with_all = ["socket_dir", "probe"])]
    check: Option<PathBuf>,
    /// Say whether the agent that writes this health file is at work, and end; for a kubelet's probe.
    #[arg(long, conflicts_with = "socket_dir")]
    probe: Option<PathBuf>,
    /// With --probe: say whether it serves, too; a successor that waits for its turn does not.
    #[arg(long, requires = "probe")]
    ready: bool,
    /// Wait for SIGTERM when a successor has taken over: for those that are started again when they end.
    #[arg(long)]
    linger: bool,
}

fn main() -> anyhow::Result<()> {
    if agent_main::describes(Args::command(), "podshm-guard-agent")? {
        return Ok(());
    }
    let args = Args::parse();
    if let Some(directory) = args.check {
        return check(&directory);
    }
    if let Some(file) = args.probe {
        println!("{}", Health::probe(&file, Duration::from_secs(10), args.ready).map_err(anyhow::Error::msg)?);
        return Ok(());
    }
    agent_main::log();
    let stop = agent_main::told_to_end()?;
    let given = |path: Option<PathBuf>| path.context("expected --socket-dir and --policies");
    let mut config = Config::new(given(args.socket_dir)?, given(args.policies)?);
    (config.last_good, config.health_file, config.version) = (args.last_good, args.health_file, args.agent_version);
    let health_file = config.health_file.clone();
    let server = Server::start(config)?;
    let mut out = std::io::stdout();
    let stats = server.run(
        &stop,
        // Nobody may be reading; that is no reason to stop serving.
        |stats| drop(writeln!(out, "{stats}").and_then(|()| out.flush())),
    )?;
    tracing::info!(%stats, "closed");
    if args.linger && !stop() {
        tracing::info!("a successor serves; waiting to be told to end");
        while !stop() {
            std::thread::sleep(Duration::from_millis(200));
            // The kubelet goes on asking.
            if let Some(file) = &health_file {
                stats.write_health(file);
            }
        }
    }
    Ok(())
}

fn check(directory: &std::path::Path) -> anyhow::Result<()> {
    let policies = Policies::parse(&Bundle::read(directory)?)?;
    for warning in policies.warnings() {
        println!("warning: {warning}");
    }
    println!("{} policies, fingerprint {:016x}", policies.count(), policies.fingerprint());
    Ok(())
}
