//! Routes over shared memory: lookups without a system call, reports that cost one copy, and a question to the agent.

use std::{
    net::{IpAddr, SocketAddr},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use podshm::{Caller, Client, Key, QueueSender, Table};

use crate::{
    Address, Choice, KeyError, Locality, Outcome, PickError, Picked, Random, ReadAt, Report, RouteKey, Trailer,
    WireError, report::MAX_LATENCY_NS, wire::Place,
};

/// The table's name: route key to route value.
pub const ROUTES: &str = "routes";
/// The queue's name: [`Report`]s.
pub const REPORTS: &str = "reports";
/// The call's name: a route key to JSON.
pub const EXPLAIN: &str = "explain";
/// The longest answer to [`RouteClient::explain`] in bytes.
pub const MAX_EXPLAIN_LEN: usize = 64 * 1024;

/// What went wrong, as a caller can act on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ClientErrorKind {
    /// The route's name is not of its shape.
    Key,
    /// The agent knows no such route now.
    NoRoute,
    /// The route has no endpoint that could be used now.
    NoCandidate,
    /// The route's value is not what an agent of this release writes.
    Value,
    /// The library said so.
    Podshm(podshm::ErrorKind),
}

/// Why there is no endpoint, or no report.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// The route's name is not of its shape.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The agent knows no such route now.
    #[error("expected route {route}, found no such key in the agent's table; look whether the service has slices")]
    NoRoute {
        /// Which route.
        route: String,
    },
    /// The route has no endpoint that could be used now.
    #[error("route {route}: expected a ready or still serving endpoint, found none among {endpoints}; wait for one")]
    NoCandidate {
        /// Which route.
        route: String,
        /// How many endpoints it has.
        endpoints: u16,
    },
    /// The route's value is not what an agent of this release writes.
    #[error("route {route}: {source}")]
    Value {
        /// Which route.
        route: String,
        /// What is wrong with it.
        source: WireError<podshm::Error>,
    },
    /// The library said so.
    #[error(transparent)]
    Podshm(#[from] podshm::Error),
}

impl ClientError {
    /// What the caller can do about it.
    pub fn kind(&self) -> ClientErrorKind {
        match self {
            Self::Key(_) => ClientErrorKind::Key,
            Self::NoRoute { .. } => ClientErrorKind::NoRoute,
            Self::NoCandidate { .. } => ClientErrorKind::NoCandidate,
            Self::Value { .. } => ClientErrorKind::Value,
            Self::Podshm(error) => ClientErrorKind::Podshm(error.kind()),
        }
    }
}

/// A process that uses routes. Clones share everything and are for other threads.
///
/// ```no_run
/// # fn main() -> Result<(), route_client::ClientError> {
/// use std::time::{Duration, Instant};
/// use route_client::{Locality, Outcome, RouteClient, SmallRandom};
/// let routes = RouteClient::join("/run/podshm/routing", Duration::from_secs(5))?.in_zone(Locality::zone("zone-a"));
/// let mut cart = routes.route("shop/cart:http")?;
/// let mut random = SmallRandom::new(std::process::id().into());
/// let picked = cart.pick(&mut random)?;
/// let start = Instant::now();
/// // … call picked.socket_addr() …
/// routes.report(&cart, picked.record.id, Outcome::Success, start.elapsed())?;
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
pub struct RouteClient {
    client: Client,
    table: Table,
    reports: QueueSender,
    explain: Caller,
    locality: Locality,
    seq: Arc<AtomicU64>,
}

impl RouteClient {
    /// Joins the domain whose socket is in `directory`; waits for broker and agent until `timeout`.
    pub fn join(directory: impl AsRef<Path>, timeout: Duration) -> Result<Self, ClientError> {
        Self::over(Client::join(directory, timeout)?)
    }

    /// Over a client that has joined already.
    pub fn over(client: Client) -> Result<Self, ClientError> {
        Ok(Self {
            table: client.table(ROUTES)?,
            reports: client.queue(REPORTS)?,
            explain: client.call(EXPLAIN)?,
            client,
            locality: Locality::ANYWHERE,
            seq: Arc::default(),
        })
    }

    /// Says where this process is, for routes asked for from now on.
    pub fn in_zone(self, locality: Locality) -> Self {
        Self { locality, ..self }
    }

    /// The client below.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// How old the routes are: how long ago the agent changed one or said that all are still true.
    pub fn age(&self) -> Result<Duration, ClientError> {
        Ok(self.table.age()?)
    }

    /// A handle to route `namespace/service:port`, whether or not it exists by now.
    pub fn route(&self, name: &str) -> Result<RouteHandle, ClientError> {
        let key: RouteKey = name.parse()?;
        Ok(RouteHandle { id: key.id(), value: self.table.key(key.as_bytes()), key, locality: self.locality })
    }

    /// Reports on a use of an endpoint, or drops the report if the queue is full; says which. Never waits.
    #[inline]
    pub fn report(
        &self,
        route: &RouteHandle,
        endpoint: u64,
        outcome: Outcome,
        latency: Duration,
    ) -> Result<bool, ClientError> {
        Ok(self.reports.push_or_drop(&self.make(route, endpoint, outcome, latency).encode())?)
    }

    /// [`RouteClient::report`] that waits for room until `timeout`; returns the record's position.
    pub fn report_wait(
        &self,
        route: &RouteHandle,
        endpoint: u64,
        outcome: Outcome,
        latency: Duration,
        timeout: Duration,
    ) -> Result<u64, ClientError> {
        Ok(self.reports.push(&self.make(route, endpoint, outcome, latency).encode(), timeout)?)
    }

    /// [`RouteClient::report_wait`] with a trailer that says who sent which: for demos that check deliveries.
    pub fn report_numbered(
        &self,
        route: &RouteHandle,
        (endpoint, outcome, latency): (u64, Outcome, Duration),
        trailer: Trailer,
        timeout: Duration,
    ) -> Result<u64, ClientError> {
        Ok(self.reports.push(&trailer.encode(&self.make(route, endpoint, outcome, latency)), timeout)?)
    }

    /// Reports that were dropped since the queue was full.
    pub fn dropped(&self) -> u64 {
        self.reports.dropped()
    }

    /// What the agent knows of a route's endpoints, as JSON.
    pub fn explain(&self, route: &RouteHandle, timeout: Duration) -> Result<String, ClientError> {
        let answer = self.ask(route.key.as_bytes(), timeout)?;
        Ok(String::from_utf8_lossy(&answer).into_owned())
    }

    /// Sends any request to the agent's `explain`; one that begins with `echo:` comes back as it is.
    pub fn ask(&self, request: &[u8], timeout: Duration) -> Result<Vec<u8>, ClientError> {
        let mut answer = vec![0; MAX_EXPLAIN_LEN];
        let len = self.explain.call(request, &mut answer, timeout)?;
        answer.truncate(len);
        Ok(answer)
    }

    fn make(&self, route: &RouteHandle, endpoint: u64, outcome: Outcome, latency: Duration) -> Report {
        let latency_ns = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX).min(MAX_LATENCY_NS);
        // Relaxed: only the numbers count, not what else happened.
        let seq = self.seq.fetch_add(1, Ordering::Relaxed);
        Report { route: route.id, endpoint, outcome, latency_ns, seq }
    }
}

/// A route by its name. One per thread; clones are cheap.
#[derive(Debug, Clone)]
pub struct RouteHandle {
    key: RouteKey,
    id: u64,
    value: Key,
    locality: Locality,
}

impl RouteHandle {
    /// Its name.
    pub fn key(&self) -> &RouteKey {
        &self.key
    }

    /// Its id, which reports carry.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Picks an endpoint. Picks again if the agent replaces the value meanwhile, so what is returned was whole.
    #[inline]
    pub fn pick(&mut self, random: &mut impl Random) -> Result<Picked, ClientError> {
        self.with(|value, locality| Choice::read(value, locality)?.pick(value, random))
    }

    /// [`RouteHandle::pick`], and the address; needed only where it may be a name ([`Picked::socket_addr`] is `None`).
    pub fn pick_address(&mut self, random: &mut impl Random) -> Result<(Picked, Address), ClientError> {
        self.with(|value, locality| {
            let picked = Choice::read(value, locality)?.pick(value, random)?;
            let address = picked.record.address(&picked.header, value)?;
            Ok((picked, address))
        })
    }

    /// Picks `into.capacity()` endpoints from one version of the value, reading its header and zones once.
    pub fn pick_many(&mut self, random: &mut impl Random, into: &mut Vec<Picked>) -> Result<(), ClientError> {
        self.with(|value, locality| {
            into.clear();
            let choice = Choice::read(value, locality)?;
            while into.len() < into.capacity() {
                into.push(choice.pick(value, random)?);
            }
            Ok(())
        })
    }

    fn with<R>(
        &mut self,
        mut f: impl FnMut(&mut Value<'_>, &Locality) -> Result<R, PickError<podshm::Error>>,
    ) -> Result<R, ClientError> {
        let Self { key, value, locality, .. } = self;
        // An error of the pick is kept inside: the library repeats the closure if the value changed under it.
        match value.read(|at, len| Ok(f(&mut Value { at, len }, locality)))? {
            Some(Ok(picked)) => Ok(picked),
            Some(Err(PickError::NoCandidate { endpoints })) => {
                Err(ClientError::NoCandidate { route: key.to_string(), endpoints })
            }
            Some(Err(PickError::Wire(WireError::Read(error)))) => Err(error.into()),
            Some(Err(PickError::Wire(source))) => Err(ClientError::Value { route: key.to_string(), source }),
            None => Err(ClientError::NoRoute { route: key.to_string() }),
        }
    }
}

impl Picked {
    /// Where to connect, or `None` for a host name.
    pub fn socket_addr(&self) -> Option<SocketAddr> {
        let ip = match self.record.place {
            Place::V4(ip) => IpAddr::V4(ip),
            Place::V6(ip) => IpAddr::V6(ip),
            Place::Name { .. } => return None,
        };
        Some(SocketAddr::new(ip, self.record.port))
    }
}

type ReadPart<'a> = dyn FnMut(usize, &mut [u8]) -> Result<(), podshm::Error> + 'a;

/// A value in the agent's table, read piece by piece.
struct Value<'a> {
    at: &'a mut ReadPart<'a>,
    len: usize,
}

impl ReadAt for Value<'_> {
    type Error = podshm::Error;

    fn len(&self) -> usize {
        self.len
    }

    #[inline]
    fn read_at(&mut self, offset: usize, buf: &mut [u8]) -> Result<(), podshm::Error> {
        (self.at)(offset, buf)
    }
}
