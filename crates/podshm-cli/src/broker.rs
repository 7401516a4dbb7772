//! `podshm broker`.

use anyhow::Context;
use podshm_broker::{Broker, BrokerConfig, DomainConfig, Identity, Limits, Rights};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::PathBuf;

/// What `podshm broker` takes.
#[derive(clap::Args)]
pub struct Arguments {
    /// Directory that gets one socket directory for each pod; mount ROOT/POD into the pod, and nothing else.
    #[arg(long, value_name = "ROOT")]
    root: PathBuf,
    /// The domain's name.
    #[arg(long, default_value = "default")]
    domain: String,
    /// A pod that may serve the domain. May be given several times.
    #[arg(long = "agent", value_name = "NAMESPACE/POD")]
    agents: Vec<String>,
    /// A pod that may join the domain. May be given several times.
    #[arg(long = "member", value_name = "NAMESPACE/POD")]
    members: Vec<String>,
    /// The domain's budget in MiB, the agent's successor included.
    #[arg(long, default_value_t = 256)]
    budget_mib: u64,
    /// One member's share of the budget in MiB.
    #[arg(long, default_value_t = 64)]
    share_mib: u64,
    /// Most clients in the domain.
    #[arg(long, default_value_t = 4096)]
    clients: u32,
    /// How long, in ms, participants may take to come back after a restart of the broker before they are taken for gone.
    #[arg(long, default_value_t = 10_000)]
    rejoin_grace_ms: u64,
    /// Serves the domain's unmodified programs too, as `podshm domain` does; the options below are theirs.
    #[arg(long)]
    unmodified: bool,
    #[command(flatten)]
    setup: crate::domain::Setup,
}

/// Each client, and each call that waits, costs a few descriptors: this process takes as many as it may, not the few that a shell allows.
pub fn allow_descriptors() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }) {
        eprintln!("the limit on descriptors stays as it is: {error}");
    }
}

/// Runs until SIGTERM or SIGINT, or until another one is started on the same root.
pub fn run(arguments: Arguments) -> anyhow::Result<()> {
    let mut signals = signal_hook::iterator::Signals::new([15, 2]).context("watching for SIGTERM and SIGINT")?;
    let limits = Limits {
        budget: arguments.budget_mib << 20,
        member_share: arguments.share_mib << 20,
        clients: arguments.clients,
        ..Limits::default()
    };
    allow_descriptors();
    // Beside the pods' directories, root's alone. On a node ROOT is on /run, which goes with the machine, as the regions do.
    let state = Some(arguments.root.join(".broker"));
    let rejoin_grace = std::time::Duration::from_millis(arguments.rejoin_grace_ms);
    let place = crate::domain::Where { root: arguments.root.clone() };
    let unmodified = match arguments.unmodified {
        true => Some(crate::serve::prepare(&place, &arguments.domain, &arguments.setup)?),
        false => None,
    };
    // From here on a broker that served this root ends, and with it what it had for unmodified programs: that is waited for below.
    let broker = Broker::start_with(BrokerConfig { state, rejoin_grace })?;
    broker.add_domain(DomainConfig { limits, ..DomainConfig::new(&arguments.domain) })?;
    let agents = arguments.agents.iter().map(|pod| (pod, Rights { join: false, serve: true }));
    let members = arguments.members.iter().map(|pod| (pod, Rights { join: true, serve: false }));
    for (pod, rights) in agents.chain(members) {
        let (namespace, name) =
            pod.split_once('/').with_context(|| format!("pod {pod:?}: expected NAMESPACE/POD, as in shop/cart-1"))?;
        anyhow::ensure!(
            ![namespace, name].iter().any(|part| part.is_empty() || part.contains('/') || part.starts_with('.')),
            "pod {pod:?}: expected NAMESPACE/POD with plain names"
        );
        let directory = arguments.root.join(format!("{namespace}_{name}"));
        if !directory.exists() {
            std::fs::DirBuilder::new()
                .recursive(true)
                .mode(0o755)
                .create(&directory)
                .with_context(|| format!("making the socket directory {}", directory.display()))?;
        }
        std::fs::set_permissions(&directory, std::fs::Permissions::from_mode(0o755))?;
        let who = Identity {
            namespace: namespace.to_owned(),
            pod: name.to_owned(),
            uid: pod.clone(),
            service_account: "default".to_owned(),
        };
        broker.add_socket(&arguments.domain, &directory, who, rights)?;
    }
    let _unmodified = unmodified.map(crate::serve::serve).transpose()?;
    println!("ready: domain {} at {}", arguments.domain, arguments.root.display());
    while signals.pending().next().is_none() {
        if broker.has_given_way() {
            println!("another broker has taken over");
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    Ok(())
}
