//! The demo: a broker, a route agent and eight business pods, each in namespaces of its own; the agent is killed, replaced and
//! upgraded under load, and everything that was accepted is accounted for.
#![forbid(unsafe_code)]

mod agents;
mod histogram;
mod pod;
mod run;
mod verdict;

use clap::{Parser, Subcommand};
use std::path::PathBuf;

#[derive(Parser)]
#[command(version, about = "Eight pods, one agent per node, killed and upgraded under load")]
struct Arguments {
    #[command(subcommand)]
    role: Option<Role>,
    /// Seconds of load.
    #[arg(long, default_value_t = 20)]
    seconds: u64,
    /// Business pods.
    #[arg(long, default_value_t = 8)]
    pods: u32,
    /// Directory with endpointslices.json and endpointslice-events.jsonl.
    #[arg(long, default_value = "examples/data")]
    data: PathBuf,
    /// Only plain lines and the verdict, for tests.
    #[arg(long)]
    check: bool,
}

#[derive(Subcommand)]
enum Role {
    /// A business pod (started by the demo).
    #[command(hide = true)]
    Pod(pod::Arguments),
    /// The other end of a Unix socket, at standard input (started by a pod).
    #[command(hide = true)]
    UnixEcho,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    match arguments.role {
        Some(Role::Pod(pod)) => pod::run(pod),
        Some(Role::UnixEcho) => pod::unix_echo(),
        None => {
            let good = run::run(&run::Plan {
                seconds: arguments.seconds,
                pods: arguments.pods,
                data: arguments.data,
                plain: arguments.check,
            })?;
            std::process::exit(i32::from(!good));
        }
    }
}
