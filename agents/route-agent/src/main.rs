//! The route agent's program.
#![forbid(unsafe_code)]

use std::{io::Write, path::PathBuf};

use anyhow::Context;
use clap::{CommandFactory, Parser};
use route_agent::{Config, FileSource, Pace, Server, Source, Stats};

/// Serves routes out of EndpointSlices to the pods of this node.
#[derive(Debug, Parser)]
#[command(version)]
#[cfg_attr(
    feature = "kubernetes",
    command(group(clap::ArgGroup::new("source").required(true).args(["endpointslices", "kubernetes"])))
)]
#[cfg_attr(
    not(feature = "kubernetes"),
    command(group(clap::ArgGroup::new("source").required(true).args(["endpointslices"])))
)]
struct Args {
    /// Directory of the podshm socket.
    #[arg(long)]
    socket_dir: PathBuf,
    /// A list of EndpointSlices, as `kubectl get endpointslices -A -o json` prints it.
    #[arg(long)]
    endpointslices: Option<PathBuf>,
    /// Watch events, one JSON object per line.
    #[arg(long, requires = "endpointslices")]
    events: Option<PathBuf>,
    /// Replay an event every so many milliseconds.
    #[arg(long, conflicts_with = "events_over")]
    events_every: Option<u64>,
    /// Replay all events evenly over so many seconds.
    #[arg(long)]
    events_over: Option<u64>,
    /// Watch the cluster's EndpointSlices, by the pod's service account, or by KUBECONFIG.
    #[cfg(feature = "kubernetes")]
    #[arg(long)]
    kubernetes: bool,
    /// Answer the kubelet's probes, /healthz and /readyz, at this port.
    #[cfg(feature = "kubernetes")]
    #[arg(long, value_name = "PORT")]
    probes: Option<u16>,
    /// Wait for SIGTERM when a successor has taken over: for those that are started again when they end.
    #[arg(long)]
    linger: bool,
    /// What this agent calls itself in its output.
    #[arg(long, default_value = env!("CARGO_PKG_VERSION"))]
    agent_version: String,
    /// Log each delivered record to this file (put it on tmpfs).
    #[arg(long)]
    log_delivered: Option<PathBuf>,
}

fn main() -> anyhow::Result<()> {
    if agent_main::describes(Args::command(), "podshm-route-agent")? {
        return Ok(());
    }
    let args = Args::parse();
    agent_main::log();
    let stop = agent_main::told_to_end()?;
    let phases = Phases::of(&args)?;
    #[cfg(feature = "kubernetes")]
    if args.kubernetes {
        let source = route_agent::KubernetesSource::start()?;
        // As long as it takes: the predecessor's routes stay in use meanwhile.
        if !source.wait_for_list(&stop) {
            return Ok(());
        }
        return serve(args, source, stop, &phases);
    }
    let pace = match (args.events_every, args.events_over) {
        (Some(ms), _) => Pace::Every(ms.saturating_mul(1_000_000)),
        (None, Some(s)) => Pace::Over(s.saturating_mul(1_000_000_000)),
        (None, None) => Pace::Unpaced,
    };
    let list = args.endpointslices.clone().context("expected --endpointslices, found none")?;
    let source = FileSource::new(list, args.events.clone(), pace);
    serve(args, source, stop, &phases)
}

fn serve(args: Args, source: impl Source, stop: impl Fn() -> bool, phases: &Phases) -> anyhow::Result<()> {
    let mut config = Config::new(args.socket_dir);
    config.version = args.agent_version;
    config.log_delivered = args.log_delivered;
    let server = Server::start(config, source)?;
    let mut out = std::io::stdout();
    let stats = server.run(&stop, |stats| {
        phases.round(stats);
        // Nobody may be reading; that is no reason to stop serving.
        drop(writeln!(out, "{stats}").and_then(|()| out.flush()));
    })?;
    tracing::info!(%stats, "closed");
    if args.linger && !stop() {
        phases.handed_over();
        tracing::info!("a successor serves; waiting to be told to end");
        while !stop() {
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
    }
    Ok(())
}

/// What the probes are told, where there are any.
struct Phases {
    #[cfg(feature = "kubernetes")]
    probes: route_agent::Probes,
}

#[cfg(feature = "kubernetes")]
impl Phases {
    fn of(args: &Args) -> anyhow::Result<Self> {
        let probes = route_agent::Probes::default();
        if let Some(port) = args.probes {
            use std::net::{Ipv4Addr, Ipv6Addr};
            // The first is IPv4 too, where there is IPv6 at all.
            let found = probes.listen((Ipv6Addr::UNSPECIFIED, port).into());
            let found = found.or_else(|_| probes.listen((Ipv4Addr::UNSPECIFIED, port).into()));
            let found = found.with_context(|| format!("listening on port {port} for probes"))?;
            tracing::info!(%found, "answering probes");
        }
        Ok(Self { probes })
    }

    fn round(&self, stats: &Stats) {
        self.probes.at(if stats.epoch > 0 { route_agent::Phase::Serving } else { route_agent::Phase::Starting });
    }

    fn handed_over(&self) {
        self.probes.at(route_agent::Phase::HandedOver);
    }
}

#[cfg(not(feature = "kubernetes"))]
impl Phases {
    fn of(_: &Args) -> anyhow::Result<Self> {
        Ok(Self {})
    }

    fn round(&self, _: &Stats) {}

    fn handed_over(&self) {}
}
