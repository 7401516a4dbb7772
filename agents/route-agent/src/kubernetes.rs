//! Slices out of a live API server: one list in pages, then one watch, by a thread of its own.
//!
//! ```text
//!  API server ◀─ list, watch ─ thread ─ events ─▶ KubernetesSource ─▶ Server's rounds
//!                                  └──── wakes ──────────────────────▶ the agent's sleep
//! ```
//! kube's watcher keeps that going: bookmarks, resumption where the watch broke off, a new list where that is not possible, ever longer
//! pauses between attempts. What it doesn't say is that an attempt has succeeded, as long as nothing changes; so that is taken
//! from the API server's answers.

use std::{
    borrow::Cow,
    error::Error,
    pin::pin,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use futures::{StreamExt, future};
use kube::{
    Api, Client, Config, Resource,
    api::ObjectMeta,
    client::ClientBuilder,
    core::NamespaceResourceScope,
    runtime::{WatchStreamExt, watcher, watcher::Event},
};
use podshm::AgentWaker;
use serde::{Deserialize, Deserializer};
use tokio::sync::{mpsc, oneshot};
use tower::util::MapResponseLayer;

use crate::{
    Slice, SliceError, SliceName, Source, SourceEvent, WatchEvent,
    slices::{List, parse_value},
};

/// Events that wait for the agent's next round; when there are more, the thread reads no further.
const WAITING: usize = 1024;
/// The API server sends a bookmark every minute: one that is silent for longer is taken for gone.
const SILENCE: Duration = Duration::from_secs(90);
/// Errors of a connection say the essential last.
const CAUSES: usize = 8;

/// Why the API server can't be watched at all. What can pass is an event instead.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KubernetesError {
    /// There is no configuration.
    #[error(
        "how to reach the API server: expected a service account's token in the pod, or KUBECONFIG, found: {found}; give the pod \
         automountServiceAccountToken: true"
    )]
    Config {
        /// What was found, in kube's words.
        found: String,
    },
    /// The configuration can't be used.
    #[error(
        "a client of the API server: expected usable certificates and addresses, found: {found}; look at the kubeconfig"
    )]
    Client {
        /// What was found, in kube's words.
        found: String,
    },
    /// The operating system gives no thread.
    #[error("a thread for the watch: {0}; give the process more memory, or threads")]
    Thread(#[from] std::io::Error),
}

/// A source that watches the EndpointSlices of the whole cluster.
#[derive(Debug)]
pub struct KubernetesSource {
    events: mpsc::Receiver<SourceEvent>,
    upstream: Arc<Upstream>,
    /// Its end stops the thread.
    _stop: oneshot::Sender<()>,
}

/// What thread and source know of each other.
#[derive(Debug, Default)]
struct Upstream {
    lists: AtomicU64,
    answers: AtomicBool,
    waker: OnceLock<AgentWaker>,
}

impl KubernetesSource {
    /// Starts to watch, with the configuration that the pod's service account, or KUBECONFIG, gives.
    pub fn start() -> Result<Self, KubernetesError> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let config = runtime.block_on(Config::infer());
        Self::start_with(runtime, config.map_err(|e| KubernetesError::Config { found: chain(&e) })?)
    }

    /// Starts to watch what this configuration is of.
    pub fn start_at(config: Config) -> Result<Self, KubernetesError> {
        Self::start_with(tokio::runtime::Builder::new_current_thread().enable_all().build()?, config)
    }

    fn start_with(runtime: tokio::runtime::Runtime, mut config: Config) -> Result<Self, KubernetesError> {
        config.read_timeout = Some(SILENCE);
        let upstream = Arc::new(Upstream::default());
        let heard = Arc::clone(&upstream);
        let answered = MapResponseLayer::new(move |response: http::Response<_>| {
            if response.status().is_success() {
                // Relaxed: nothing else is read by it.
                heard.answers.store(true, Ordering::Relaxed);
            }
            response
        });
        let client = {
            // Its connection pool wants to be made inside.
            let _inside = runtime.enter();
            let builder = ClientBuilder::try_from(config).map_err(|e| KubernetesError::Client { found: chain(&e) })?;
            builder.with_layer(&answered).build()
        };
        let (sender, events) = mpsc::channel(WAITING);
        let (stop, stopped) = oneshot::channel();
        let thread = Arc::clone(&upstream);
        std::thread::Builder::new().name("slices".into()).spawn(move || {
            let work = pin!(watch(client, &thread, sender));
            // Either ends it: nobody is there to hear the rest.
            runtime.block_on(future::select(work, stopped));
        })?;
        Ok(Self { events, upstream, _stop: stop })
    }

    /// Waits until there is a list; says whether there is: not so where `stop` said so first.
    pub fn wait_for_list(&self, stop: impl Fn() -> bool) -> bool {
        while self.events.is_empty() {
            if stop() {
                return false;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        true
    }
}

impl Source for KubernetesSource {
    fn poll(&mut self, _: u64) -> Option<SourceEvent> {
        match self.events.try_recv() {
            Ok(event) => Some(event),
            Err(mpsc::error::TryRecvError::Empty) => None,
            Err(mpsc::error::TryRecvError::Disconnected) => Some(SourceEvent::End),
        }
    }

    fn next_due_ns(&self) -> Option<u64> {
        // Nothing is ever due: the waker says when something has come.
        Some(u64::MAX)
    }

    fn connections(&self) -> u64 {
        self.upstream.lists.load(Ordering::Relaxed)
    }

    fn is_current(&self) -> bool {
        self.upstream.answers.load(Ordering::Relaxed) && !self.events.is_closed()
    }

    fn wake_by(&mut self, waker: AgentWaker) {
        // There is one agent for a source.
        let _ = self.upstream.waker.set(waker);
    }
}

/// Watches until nobody listens any more.
async fn watch(client: Client, upstream: &Upstream, sender: mpsc::Sender<SourceEvent>) {
    let api: Api<Watched> = Api::all(client);
    let mut changes = pin!(watcher(api, watcher::Config::default()).default_backoff());
    let mut list = List::default();
    while let Some(change) = changes.next().await {
        let event = match change {
            Ok(Event::Init) => {
                // What a list that broke off had so far is of no use.
                list = List::default();
                upstream.lists.fetch_add(1, Ordering::Relaxed);
                continue;
            }
            Ok(Event::InitApply(Watched { slice, .. })) => {
                match slice {
                    Ok(slice) => list.slices.push(slice),
                    Err(error) => list.bad.push(error),
                }
                continue;
            }
            Ok(Event::InitDone) => {
                list.complete = true;
                SourceEvent::Snapshot(std::mem::take(&mut list))
            }
            Ok(Event::Apply(Watched { slice: Ok(slice), .. })) => SourceEvent::Event(WatchEvent::Applied(slice)),
            Ok(Event::Apply(Watched { slice: Err(error), .. })) => SourceEvent::Bad(error),
            Ok(Event::Delete(gone)) => SourceEvent::Event(gone.deleted()),
            Err(error) => {
                upstream.answers.store(false, Ordering::Relaxed);
                SourceEvent::Away { found: chain(&error) }
            }
        };
        if sender.send(event).await.is_err() {
            return;
        }
        if let Some(waker) = upstream.waker.get() {
            waker.wake();
        }
    }
}

/// An object of the API server. Whatever is in it, reading it does not fail: one bad slice must not end the list that it is in.
#[derive(Debug, Clone)]
struct Watched {
    meta: ObjectMeta,
    slice: Result<Slice, SliceError>,
}

impl Watched {
    fn deleted(&self) -> WatchEvent {
        let part = |text: &Option<String>| text.as_deref().unwrap_or_default().into();
        let version = self.meta.resource_version.as_deref();
        WatchEvent::Deleted {
            name: SliceName { namespace: part(&self.meta.namespace), name: part(&self.meta.name) },
            resource_version: version.and_then(|version| version.parse().ok()).unwrap_or(0),
        }
    }
}

impl<'de> Deserialize<'de> for Watched {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let object = serde_json::Value::deserialize(from)?;
        let meta = object.get("metadata").map(ObjectMeta::deserialize).and_then(Result::ok).unwrap_or_default();
        Ok(Self { meta, slice: parse_value(&object) })
    }
}

impl Resource for Watched {
    type DynamicType = ();
    type Scope = NamespaceResourceScope;

    fn kind((): &()) -> Cow<'_, str> {
        "EndpointSlice".into()
    }

    fn group((): &()) -> Cow<'_, str> {
        "discovery.k8s.io".into()
    }

    fn version((): &()) -> Cow<'_, str> {
        "v1".into()
    }

    fn plural((): &()) -> Cow<'_, str> {
        "endpointslices".into()
    }

    fn meta(&self) -> &ObjectMeta {
        &self.meta
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.meta
    }
}

/// An error and what led to it, each once.
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let causes = std::iter::successors(error.source(), |cause| (*cause).source());
    for cause in causes.take(CAUSES).map(ToString::to_string) {
        if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}
