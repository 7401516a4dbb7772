//! `podshm doctor`: what of a node, or of a cluster, is in podshm's way, and what to do about it.
//!
//! ```text
//!  gather ── facts ──▶ findings (pure) ──▶ text or JSON, and the worst as exit status
//! ```

#[cfg(feature = "kubernetes")]
mod cluster;
mod finding;
mod node;
mod support;

use std::process::ExitCode;

/// What to look at, and how to say it.
#[derive(clap::Args)]
pub struct Arguments {
    /// Look at a cluster, by KUBECONFIG or the pod's service account, in place of this machine.
    #[cfg(feature = "kubernetes")]
    #[arg(long)]
    cluster: bool,
    /// The namespace that podshm is installed in.
    #[cfg(feature = "kubernetes")]
    #[arg(long, default_value = "podshm-system", requires = "cluster")]
    namespace: String,
    /// How to say it.
    #[arg(short, long, value_enum, default_value = "text")]
    output: Output,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Output {
    /// For people.
    Text,
    /// A list of findings.
    Json,
}

/// Looks, says what it saw, and returns the worst: 0, 2 for a warning, 3 for a problem.
pub fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let support = support::table();
    let findings = look(arguments, &support)?;
    match arguments.output {
        Output::Text => print!("{}", finding::text(&findings)),
        Output::Json => println!("{}", serde_json::to_string_pretty(&findings)?),
    }
    Ok(ExitCode::from(finding::status(&findings)))
}

#[cfg(feature = "kubernetes")]
fn look(arguments: &Arguments, support: &support::Support) -> anyhow::Result<Vec<finding::Finding>> {
    match arguments.cluster {
        true => Ok(cluster::findings(&cluster::gather(&arguments.namespace)?, support)),
        false => Ok(node::findings(&node::gather(), support)),
    }
}

#[cfg(not(feature = "kubernetes"))]
fn look(_: &Arguments, support: &support::Support) -> anyhow::Result<Vec<finding::Finding>> {
    Ok(node::findings(&node::gather(), support))
}
