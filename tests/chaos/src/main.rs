//! `podshm-chaos`: the harness, and every participant that it starts.
#![forbid(unsafe_code)]

use clap::{Parser, Subcommand};
use podshm_chaos::roles;
use podshm_chaos::run::{self, Plan};
use podshm_chaos::scale;
use podshm_chaos::schedule::Kind;
use podshm_chaos::table;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

#[derive(Parser)]
#[command(
    version,
    about = "Kills, stops, upgrades and squeezes under load; what was promised is counted from the logs"
)]
struct Arguments {
    #[command(subcommand)]
    role: Option<Role>,
    #[command(flatten)]
    plan: Options,
}

#[derive(clap::Args)]
struct Options {
    /// Seconds of faults.
    #[arg(long, env = "DURATION", default_value_t = 600)]
    seconds: u64,
    /// Of the schedule; the time's if none is given.
    #[arg(long, env = "SEED")]
    seed: Option<u64>,
    /// Client pods.
    #[arg(long, env = "CLIENTS", default_value_t = 8)]
    clients: u32,
    /// Faults that must have hit work in flight; 25 for every three seconds if not said.
    #[arg(long)]
    least: Option<u64>,
    /// Milliseconds between two faults, on average and at least.
    #[arg(long, default_value_t = 60)]
    gap_ms: u64,
    /// Microseconds for which a client's threads rest between two rounds.
    #[arg(long, default_value_t = 4000)]
    pace_us: u64,
    /// Directory with endpointslices.json.
    #[arg(long, default_value = "examples/data")]
    data: PathBuf,
    /// Kill and restart the broker, too.
    #[arg(long)]
    broker_restarts: bool,
    /// A bug for the agents of domain `work`, to see that it is found.
    #[arg(long)]
    bug: Option<String>,
    /// Only faults whose name begins so; may be given several times.
    #[arg(long)]
    only: Vec<String>,
    /// Keep the logs when all is well, too.
    #[arg(long)]
    keep: bool,
    /// Say what is done.
    #[arg(long)]
    verbose: bool,
}

#[derive(Subcommand)]
enum Role {
    /// Longest gaps with many clients, and when a dead client's memory is back.
    Scale {
        /// How many clients; may be given several times.
        #[arg(long = "clients", default_values_t = [1, 100, 1000])]
        numbers: Vec<u32>,
        /// Directory with endpointslices.json.
        #[arg(long, default_value = "examples/data")]
        data: PathBuf,
    },
    /// Many clients in one process.
    #[command(hide = true)]
    Many { log: PathBuf, first: u32, count: u32, drivers: usize },
    /// The broker of both domains.
    #[command(hide = true)]
    Broker { root: PathBuf, books: PathBuf, clients: u32, processes: u32 },
    /// An agent of domain `work`.
    #[command(hide = true)]
    Agent { log: PathBuf, generation: u32 },
    /// A client of both domains.
    #[command(hide = true)]
    Client { log: PathBuf, sender: u32, routes: PathBuf, pace_us: u64 },
    /// Nothing: what keeps a pod while processes in it come and go.
    #[command(hide = true)]
    Idle,
}

fn main() -> anyhow::Result<ExitCode> {
    let arguments = Arguments::parse();
    match arguments.role {
        None => chaos(arguments.plan),
        Some(Role::Scale { numbers, data }) => scale::run(&data, &numbers).map(|()| ExitCode::SUCCESS),
        Some(Role::Many { log, first, count, drivers }) => {
            roles::many::run(log, first, count, drivers).map(|()| ExitCode::SUCCESS)
        }
        Some(Role::Broker { root, books, clients, processes }) => {
            roles::broker::run(&root, &books, clients, processes).map(|()| ExitCode::SUCCESS)
        }
        Some(Role::Agent { log, generation }) => Ok(match roles::agent::run(log, generation)? {
            true => ExitCode::SUCCESS,
            false => ExitCode::from(roles::agent::SUPERSEDED),
        }),
        Some(Role::Client { log, sender, routes, pace_us }) => {
            roles::client::run(log, sender, &routes, Duration::from_micros(pace_us)).map(|()| ExitCode::SUCCESS)
        }
        Some(Role::Idle) => loop {
            std::thread::park();
        },
    }
}

fn chaos(options: Options) -> anyhow::Result<ExitCode> {
    // Which seed does not matter, as long as it is said.
    let seed = options.seed.unwrap_or_else(podshm_chaos::entry::now);
    let least = options.least.unwrap_or(options.seconds * 25 / 3);
    let plan = Plan {
        // Some of them hit nothing in flight.
        enough: (least + least / 20) as usize,
        duration: Duration::from_secs(options.seconds),
        control: Duration::from_secs((options.seconds / 10).clamp(2, 20)),
        seed,
        clients: options.clients,
        mean_gap: Duration::from_millis(options.gap_ms),
        pace: Duration::from_micros(options.pace_us),
        data: options.data,
        broker_restarts: options.broker_restarts,
        bug: options.bug,
        only: Kind::ALL.iter().copied().filter(|k| options.only.iter().any(|o| k.name().starts_with(o))).collect(),
        keeps_logs: options.keep,
        is_verbose: options.verbose,
    };
    println!("chaos for {} s with {} client pods; SEED={seed} replays it", options.seconds, options.clients);
    let report = run::run(&plan)?;
    let good = table::print(&plan, &report, least);
    if !good {
        println!("SEED={seed} CLIENTS={} DURATION={} make chaos", options.clients, options.seconds);
    }
    Ok(ExitCode::from(u8::from(!good)))
}
