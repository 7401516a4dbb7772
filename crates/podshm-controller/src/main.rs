//! `podshm-controller`.
#![forbid(unsafe_code)]

use clap::{Args, Parser, Subcommand};
use podshm_controller::lease::Lead;
use podshm_controller::probes::Pulse;
use podshm_controller::uninstall::{self, sweep};
use podshm_controller::{domains, rollout};
use std::time::Duration;

/// A connection to the API server that says nothing for so long, although bookmarks come every minute, is taken for dead.
const SILENCE: Duration = Duration::from_secs(90);

#[derive(Parser)]
#[command(name = "podshm-controller", version, about = "podshm's controller: one process for a whole cluster")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Carries out AgentRollouts, as the one of several that leads.
    Rollouts(Place),
    /// Writes the status of ShmDomains, as the one of several that leads.
    Domains(Place),
    /// Before the chart is uninstalled: refuses while rollouts are under way or pods have volumes and names them, ends podshmd and leaves nothing on its nodes.
    Uninstall {
        /// The namespace of podshmd.
        #[arg(long, env = "POD_NAMESPACE")]
        namespace: String,
        #[command(flatten)]
        sweep: sweep::Options,
    },
}

/// Where this process runs.
#[derive(Args)]
struct Place {
    /// The namespace of podshmd and of the lease.
    #[arg(long, env = "POD_NAMESPACE")]
    namespace: String,
    /// This process's name, of several.
    #[arg(long, env = "POD_NAME")]
    name: String,
    /// The one port, at all addresses of this pod: /healthz, /readyz, /metrics. Without it there is none.
    #[arg(long)]
    port: Option<u16>,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let filter = tracing_subscriber::EnvFilter::try_from_env("PODSHM_LOG").unwrap_or_else(|_| "info".into());
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false).init();
    let Arguments { command } = Arguments::parse();
    let mut config = kube::Config::infer().await?;
    // By itself it would wait for an answer for good.
    (config.read_timeout, config.write_timeout) = (Some(SILENCE), Some(SILENCE));
    let client = kube::Client::try_from(config)?;
    match command {
        Command::Rollouts(place) => {
            let (lead, pulse) = part(&client, &place, "podshm-rollouts")?;
            led(&lead, rollout::run(client, &place.namespace, lead.clone(), pulse)).await
        }
        Command::Domains(place) => {
            let (lead, pulse) = part(&client, &place, "podshm-controller")?;
            led(&lead, domains::run(client, &place.namespace, lead.clone(), pulse)).await
        }
        Command::Uninstall { namespace, sweep: options } => {
            uninstall::is_meant(&client, &namespace).await?;
            uninstall::held(&client).await?;
            uninstall::check(client.clone()).await?;
            sweep::sweep(&client, &namespace, &options).await
        }
    }
}

/// This process's part in leading, and how its loop goes, which is told at its port.
fn part(client: &kube::Client, place: &Place, lease: &str) -> anyhow::Result<(Lead, Pulse)> {
    let lead = Lead::of(client.clone(), &place.namespace, lease, &place.name);
    let pulse = Pulse::of(lead.clone());
    if let Some(port) = place.port {
        pulse.listen(None, port)?;
    }
    Ok((lead, pulse))
}

/// Until it ends, or this process is told to.
async fn led(lead: &Lead, work: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    let mut term = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    let ended = tokio::select! {
        ended = work => ended,
        () = lead.keep() => Ok(()),
        _ = term.recv() => Ok(()),
    };
    // The next one need not wait for the lease to end by itself.
    lead.give_up().await?;
    ended
}
