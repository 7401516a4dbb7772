//! `podshm-cluster`: a real Kubernetes cluster on this machine.
#![forbid(unsafe_code)]

use anyhow::Context;
use clap::{Parser, Subcommand};
use podshm_cluster::place::Place;
use podshm_cluster::programs::{CLUSTER, CRANE, HELM, Programs, TESTS};
use podshm_cluster::{control, down, node, supervise, up};
use std::os::unix::process::CommandExt;
use std::process::Command;

/// A real Kubernetes cluster on this machine: etcd, API server, controller manager, scheduler, two nodes with containerd.
#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Builds the Go programs, where they are not built yet; `up` does so too.
    Build,
    /// Brings the cluster up, in place of one that is there.
    Up,
    /// Takes it down and checks that nothing is left.
    Down,
    /// kubectl, as the cluster's administrator.
    #[command(disable_help_flag = true)]
    Kubectl {
        /// What kubectl is given.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// helm, as the cluster's administrator where there is a cluster; builds it where it is not built yet.
    #[command(disable_help_flag = true)]
    Helm {
        /// What helm is given.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Asks a set of namespaces (a, b, control): `ask a 'restart kubelet'`; stop and start too.
    Ask {
        /// The set.
        set: String,
        /// What it shall do.
        request: String,
    },
    #[command(hide = true)]
    Set { name: String },
    #[command(hide = true)]
    First { name: String },
}

fn main() -> anyhow::Result<()> {
    let place = Place::here();
    match Arguments::parse().verb {
        Verb::Build => Programs::build(&[CLUSTER, TESTS, HELM, CRANE].concat()).map(drop),
        Verb::Up => up::up(&place),
        Verb::Down => down::down(&place),
        Verb::Kubectl { arguments } => {
            // Where there is no cluster its address is somebody else's.
            supervise::alive(&place, control::SET).context("there is no cluster; run `make cluster-up`")?;
            let kubectl = Programs::built(CLUSTER)?.path("kubectl")?;
            let mut command = Command::new(kubectl);
            Err(command.args(arguments).env("KUBECONFIG", place.kubeconfig()).exec()).context("starting kubectl")
        }
        Verb::Helm { arguments } => {
            // What it says of the build is not what somebody renders.
            let helm = Programs::built(HELM).or_else(|_| Programs::build(HELM))?.path("helm")?;
            let mut command = Command::new(helm);
            Err(command.args(arguments).env("KUBECONFIG", place.kubeconfig()).exec()).context("starting helm")
        }
        Verb::Ask { set, request } => supervise::ask(&place, &set, &request),
        Verb::Set { name } => supervise::set(&place, &name),
        Verb::First { name } if name == control::SET => control::first(&place),
        Verb::First { name } => node::first(&place, &name),
    }
}
