//! A daemon's life: takes over from the one before, serves, gives way to the next.
//!
//! ```text
//!  broker (the old daemon's gives way) → lock (the old daemon is done) → volumes → csi.sock → reg.sock → acknowledged
//! ```
//! A daemon that has given way waits to be ended; if its successor ends first, it begins anew.

use crate::domains::{Domains, Known};
use crate::helper::Mounter;
use crate::memory::{Memory, RESERVE};
use crate::mounts::Mounts;
use crate::nri::{Native, Plugin};
use crate::port::{self, Told};
use crate::services::made::identity_server::IdentityServer;
use crate::services::made::node_server::NodeServer;
use crate::services::made::registration_server::RegistrationServer;
use crate::services::{Driver, Registration};
use crate::sockets::SocketFile;
use crate::volumes::Volumes;
use crate::{DRIVER, ended, sockets, watch};
use anyhow::Context;
use podshm_api::report::PORT;
use podshm_broker::{Broker, BrokerConfig};
use rustix::fs::{FlockOperation, flock};
use std::fs::{self, File, OpenOptions};
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::signal::unix::{SignalKind, signal};
use tokio_stream::wrappers::UnixListenerStream;

/// How often a daemon looks whether it has given way, and one that has, whether it is its turn again.
const TICK: Duration = Duration::from_millis(50);
/// How often domains are looked for that nobody has any more.
const LOOK: Duration = Duration::from_secs(1);
/// How long a daemon before this one may take to let go of what it has.
const PATIENCE: Duration = Duration::from_secs(20);

/// What `podshmd run` takes.
#[derive(clap::Args, Clone, Debug)]
pub struct Options {
    /// This node's name.
    #[arg(long, env = "NODE_NAME")]
    node: String,
    /// Where what volumes are made of lies: on a tmpfs of the node, with mount propagation.
    #[arg(long, default_value = "/run/podshm")]
    root: PathBuf,
    /// The kubelet's --root-dir, at the same path here as there, its `pods` with mount propagation.
    #[arg(long, default_value = "/var/lib/kubelet")]
    kubelet_dir: PathBuf,
    /// A directory with one JSON file for each domain, where there is no cluster whose ShmDomains say which there are.
    #[arg(long)]
    domains: Option<PathBuf>,
    /// The one port: /metrics, /healthz, /readyz, /domains. By default 9478 at all addresses of this pod.
    #[arg(long)]
    metrics_addr: Option<SocketAddr>,
    /// What of this daemon's memory limit is not for regions.
    #[arg(long, default_value_t = RESERVE)]
    memory_reserve: u64,
    /// The container runtime's NRI socket, for domains whose sysv.mechanism is native; without it those are refused.
    #[arg(long)]
    nri_socket: Option<PathBuf>,
    /// The mount helper's socket; without one, this process mounts itself and has to be root.
    #[arg(long)]
    mount_helper: Option<PathBuf>,
}

impl Options {
    fn mounter(&self) -> Mounter {
        match &self.mount_helper {
            Some(socket) => Mounter::Helper(socket.clone()),
            None => Mounter::Here(Mounts::of(&self.root, &self.kubelet_dir)),
        }
    }

    fn memory(&self) -> Memory {
        Memory::of_this_process(self.memory_reserve)
    }
}

/// Serves until SIGTERM or SIGINT.
pub async fn run(options: Options) -> anyhow::Result<()> {
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let state = options.root.join(".broker");
    // First: a daemon that waits for the one before it is alive.
    let told = Arc::new(Told::new(&options.node, options.memory().limit));
    let port = tokio::spawn(port::answer(podshm_port::listen(options.metrics_addr, PORT).await?, Arc::clone(&told)));
    let native = Arc::new(Native::default());
    let client = match options.domains {
        Some(_) => None,
        // Asks nobody yet: this daemon begins where the API server is away, too.
        None => Some(kube::Client::try_default().await.context("there is neither --domains nor a cluster to ask")?),
    };
    let begun = {
        let (options, native) = (options.clone(), Arc::clone(&native));
        tokio::task::spawn_blocking(move || begin(&options, native))
    };
    let Begun { volumes, lock, known } = begun.await??;
    let watch = client.clone().zip(known).map(|(client, known)| tokio::spawn(watch::follow(client, known)));
    let volumes = Arc::new(Mutex::new(volumes));
    told.serves(&volumes);
    let ended = client.map(|client| tokio::spawn(ended::look(client, Arc::clone(&volumes))));
    // Once it is known which pods there are, and before the kubelet asks for more.
    let plugin = options.nri_socket.clone().map(|socket| Plugin::start(native, socket)).transpose();
    let plugin = plugin.context("starting the thread that the container runtime asks")?;

    let csi = options.kubelet_dir.join("plugins").join(DRIVER).join("csi.sock");
    let (acknowledged, mut heard) = tokio::sync::watch::channel(false);
    let driver = Driver::new(Arc::clone(&volumes), options.kubelet_dir.clone(), &options.node, told.metrics.clone());
    let registry = registry_socket(&options.kubelet_dir);
    let (csi_file, csi_listener) = open(&csi)?;
    let endpoint = csi.display().to_string();
    let services = tonic::transport::Server::builder()
        .add_service(IdentityServer::new(driver.clone()))
        .add_service(NodeServer::new(driver))
        .serve_with_incoming(csi_listener);
    let services = tokio::spawn(services);
    // Last: the kubelet calls the driver at once.
    let (registry_file, registry_listener) = open(&registry)?;
    let registration = tonic::transport::Server::builder()
        .add_service(RegistrationServer::new(Registration::new(&endpoint, acknowledged)))
        .serve_with_incoming(registry_listener);
    let registration = tokio::spawn(registration);
    tracing::info!(endpoint, "serving");

    let mut tick = tokio::time::interval(TICK);
    let mut look = tokio::time::interval(LOOK);
    let is_ended = loop {
        tokio::select! {
            _ = term.recv() => break true,
            _ = int.recv() => break true,
            changed = heard.changed() => {
                changed.context("the registration service has ended")?;
                told.registered(*heard.borrow_and_update());
            }
            _ = tick.tick() => {
                if volumes.lock().is_ok_and(|volumes| volumes.has_given_way()) { break false }
            }
            _ = look.tick() => {
                let volumes = Arc::clone(&volumes);
                let let_go = move || volumes.lock().map(|mut volumes| volumes.let_go()).is_ok();
                // To its end: a successor begins where this daemon has ended.
                let done = tokio::task::spawn_blocking(let_go).await;
                anyhow::ensure!(done.unwrap_or_default(), "a thread that had the volumes has panicked");
            }
        }
    };
    told.registered(false);
    if let Some(watch) = watch {
        // Its successor keeps what is heard in the same file.
        watch.abort();
        let _ = watch.await;
    }
    if let Some(ended) = ended {
        ended.abort();
        let _ = ended.await;
    }
    for task in [services, registration] {
        task.abort();
        // What it holds, the volumes among it, goes with it.
        let _ = task.await;
    }
    drop((csi_file, registry_file));
    // Of two plugins that change a container alike the runtime wants neither.
    drop(plugin);
    drop(volumes);
    drop(lock);
    if is_ended {
        port.abort();
        tracing::info!("ended; volumes stay as they are");
        return Ok(());
    }
    tracing::info!("another daemon has taken over; waiting to be ended");
    loop {
        tokio::select! {
            _ = term.recv() => return Ok(()),
            _ = int.recv() => return Ok(()),
            () = tokio::time::sleep(Duration::from_secs(1)) => {
                let lock = OpenOptions::new().write(true).open(state.join("lock"));
                if lock.is_ok_and(|lock| flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok()) {
                    tracing::warn!("the daemon that took over is gone; beginning anew");
                    let error = Command::new("/proc/self/exe").args(std::env::args_os().skip(1)).exec();
                    return Err(error).context("starting this program anew");
                }
            }
        }
    }
}

/// Where the kubelet finds out about the driver.
///
/// The '@' is for HTTP/2: the kubelet's gRPC library takes the path, percent-encoded, for the server's authority, and ours, rightly,
/// refuses percent signs anywhere but in front of an '@'.
fn registry_socket(kubelet_dir: &Path) -> PathBuf {
    // In a directory of its own, which can be this daemon's: the kubelet looks there too.
    kubelet_dir.join("plugins_registry").join(DRIVER).join(format!("{DRIVER}@reg.sock"))
}

/// What a daemon that has begun has.
struct Begun {
    volumes: Volumes,
    lock: File,
    /// Where the domains are the cluster's.
    known: Option<Arc<Known>>,
}

/// Takes over from a daemon that is there, and finds what is published.
fn begin(options: &Options, native: Arc<Native>) -> anyhow::Result<Begun> {
    let make = |path: &Path| fs::create_dir_all(path).with_context(|| format!("making {}", path.display()));
    make(&options.root)?;
    let mounter = options.mounter();
    // The helper may have only just been started, and what this daemon writes to is its own once the helper answers.
    mounter.ready().context("waiting for the mount helper")?;
    let broker =
        Broker::start_with(BrokerConfig { state: Some(options.root.join(".broker")), ..BrokerConfig::default() })?;
    // The old broker has given way; its daemon lets go of its domains' /dev/shm a moment later.
    let path = options.root.join("lock");
    let lock = OpenOptions::new().write(true).create(true).truncate(false).open(&path);
    let lock = lock.with_context(|| format!("opening {}", path.display()))?;
    let since = Instant::now();
    while flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
        anyhow::ensure!(
            since.elapsed() < PATIENCE,
            "the daemon before this one has given way but does not let go of {}",
            path.display()
        );
        std::thread::sleep(TICK);
    }
    let (domains, known) = match &options.domains {
        Some(directory) => (Domains::at(directory), None),
        None => {
            let known = Known::on_node(&options.root).context("reading what is kept of the cluster's domains")?;
            (Domains::of_cluster(&known), Some(known))
        }
    };
    let volumes = Volumes::restore_with(&options.root, domains, broker, mounter, options.memory(), native)?;
    Ok(Begun { volumes, lock, known })
}

fn open(path: &Path) -> anyhow::Result<(SocketFile, UnixListenerStream)> {
    let directory = path.parent().context("a socket has a directory")?;
    fs::create_dir_all(directory).with_context(|| format!("making {}", directory.display()))?;
    let (file, listener) = sockets::listen(path).with_context(|| format!("listening at {}", path.display()))?;
    Ok((file, UnixListenerStream::new(tokio::net::UnixListener::from_std(listener)?)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tonic::codegen::http::uri::Authority;

    #[test]
    fn the_registry_sockets_path_is_an_authority_once_the_kubelet_has_encoded_it() {
        let path = registry_socket(Path::new("/var/lib/kubelet"));
        let encoded = path.to_str().unwrap().replace('/', "%2F");
        encoded.parse::<Authority>().unwrap();
        encoded.replace('@', "-").parse::<Authority>().expect_err("without it, no kubelet can call");
    }
}
