//! The one port: `/metrics`, `/healthz`, `/readyz`, `/domains`. Anybody on the pod network can reach it, so nothing can be changed
//! there, and nobody can take up more of the daemon than a few sockets for a few seconds.

use crate::metrics::{CONTENT_TYPE, Metrics};
use crate::report::NodeView;
use crate::volumes::Volumes;
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::CONTENT_TYPE as TYPE;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::collections::HashMap;
use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};

/// Connections at once, in all and of one address: another pod must not be able to keep the kubelet's probes out.
const MOST: usize = 128;
const MOST_OF_ONE: usize = 8;
/// A connection ends after this, whatever it does.
const LONGEST: Duration = Duration::from_secs(10);

/// What is told at the port.
#[derive(Debug)]
pub struct Told {
    /// This node's name.
    pub node: String,
    /// What is counted.
    pub metrics: Metrics,
    /// The daemon's memory limit.
    pub limit: Option<u64>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    volumes: Weak<Mutex<Volumes>>,
    is_registered: bool,
}

impl Told {
    /// Nothing yet.
    pub fn new(node: &str, limit: Option<u64>) -> Self {
        Told { node: node.to_owned(), metrics: Metrics::default(), limit, state: Mutex::default() }
    }

    /// From here on there are volumes; they go when the daemon lets go of them.
    pub fn serves(&self, volumes: &Arc<Mutex<Volumes>>) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).volumes = Arc::downgrade(volumes);
    }

    /// What the kubelet has said.
    pub fn registered(&self, is_registered: bool) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).is_registered = is_registered;
    }

    fn is_registered(&self) -> bool {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).is_registered
    }

    /// Waits for a call that is at work.
    fn view(&self) -> NodeView {
        let volumes = self.state.lock().unwrap_or_else(PoisonError::into_inner).volumes.upgrade();
        volumes.map_or_else(NodeView::default, |volumes| volumes.lock().unwrap_or_else(PoisonError::into_inner).view())
    }
}

/// Answers until it is dropped.
pub async fn answer(listener: TcpListener, told: Arc<Told>) {
    let open = Arc::new(Mutex::new(HashMap::new()));
    loop {
        let (stream, from) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of descriptors, say: it passes.
                tracing::warn!(%error, "the metrics port");
                tokio::time::sleep(Duration::from_millis(200)).await;
                continue;
            }
        };
        let Some(place) = Place::take(&open, from.ip()) else { continue };
        let told = Arc::clone(&told);
        tokio::spawn(async move {
            let _ = tokio::time::timeout(LONGEST, connection(stream, told)).await;
            drop(place);
        });
    }
}

async fn connection(stream: TcpStream, told: Arc<Told>) -> hyper::Result<()> {
    let service = service_fn(move |request| {
        let told = Arc::clone(&told);
        async move { Ok::<_, Infallible>(respond(&request, told).await) }
    });
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(LONGEST / 2).keep_alive(false).max_buf_size(8 << 10);
    builder.serve_connection(TokioIo::new(stream), service).await
}

type Answer = Response<Full<Bytes>>;

async fn respond(request: &Request<Incoming>, told: Arc<Told>) -> Answer {
    if request.method() != Method::GET {
        return plain(StatusCode::METHOD_NOT_ALLOWED, "expected GET; nothing can be changed here\n");
    }
    match request.uri().path() {
        "/healthz" => plain(StatusCode::OK, "ok\n"),
        "/readyz" if told.is_registered() => plain(StatusCode::OK, "ok\n"),
        "/readyz" => plain(StatusCode::SERVICE_UNAVAILABLE, "the kubelet has not registered this daemon\n"),
        "/metrics" => {
            body(told, CONTENT_TYPE, |told, view| {
                told.metrics.text(view, told.is_registered(), told.limit).map_err(|error| error.to_string())
            })
            .await
        }
        "/domains" => {
            body(told, "application/json", |told, view| {
                let report = view.report(&told.node, told.is_registered(), told.limit, told.metrics.failed_publishes());
                serde_json::to_string(&report).map_err(|error| error.to_string())
            })
            .await
        }
        _ => plain(StatusCode::NOT_FOUND, "expected /metrics, /healthz, /readyz or /domains\n"),
    }
}

async fn body(
    told: Arc<Told>,
    content: &'static str,
    make: impl FnOnce(&Told, &NodeView) -> Result<String, String> + Send + 'static,
) -> Answer {
    let made = tokio::task::spawn_blocking(move || make(&told, &told.view())).await;
    match made.map_err(|error| error.to_string()).and_then(|made| made) {
        Ok(text) => with_type(StatusCode::OK, content, text),
        Err(error) => plain(StatusCode::INTERNAL_SERVER_ERROR, error),
    }
}

fn plain(status: StatusCode, text: impl Into<Bytes>) -> Answer {
    with_type(status, "text/plain; charset=utf-8", text)
}

fn with_type(status: StatusCode, content: &'static str, text: impl Into<Bytes>) -> Answer {
    let mut response = Response::new(Full::new(text.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(TYPE, hyper::header::HeaderValue::from_static(content));
    response
}

type Open = Arc<Mutex<HashMap<IpAddr, usize>>>;

/// One connection's part of what may be open.
struct Place {
    open: Open,
    of: IpAddr,
}

impl Place {
    fn take(open: &Open, of: IpAddr) -> Option<Self> {
        let mut counts = open.lock().unwrap_or_else(PoisonError::into_inner);
        let (all, own) = (counts.values().sum::<usize>(), counts.get(&of).copied().unwrap_or_default());
        if all >= MOST || own >= MOST_OF_ONE {
            return None;
        }
        counts.insert(of, own + 1);
        Some(Place { open: Arc::clone(open), of })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut counts = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        match counts.get_mut(&self.of) {
            Some(own) if *own > 1 => *own -= 1,
            _ => drop(counts.remove(&self.of)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::{SocketAddr, TcpStream as Blocking};

    fn get(address: SocketAddr, line: &str) -> String {
        let mut stream = Blocking::connect(address).unwrap();
        write!(stream, "{line} HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        let mut text = String::new();
        // One that is turned away may be reset.
        let _ = stream.read_to_string(&mut text);
        text
    }

    /// A port that answers in a runtime of its own.
    fn port(told: &Arc<Told>) -> SocketAddr {
        let (address, told) = (std::sync::mpsc::channel(), Arc::clone(told));
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async move {
                let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
                address.0.send(listener.local_addr().unwrap()).unwrap();
                answer(listener, told).await;
            });
        });
        address.1.recv().unwrap()
    }

    #[test]
    fn ready_is_what_the_kubelet_has_said_and_nothing_can_be_changed() {
        let told = Arc::new(Told::new("n", None));
        let port = port(&told);
        assert!(get(port, "GET /healthz").starts_with("HTTP/1.1 200"));
        let before = get(port, "GET /readyz");
        assert!(before.starts_with("HTTP/1.1 503") && before.contains("kubelet"), "{before}");
        told.registered(true);
        assert!(get(port, "GET /readyz").starts_with("HTTP/1.1 200"));
        let report = get(port, "GET /domains");
        let report = report.split_once("\r\n\r\n").unwrap().1;
        let report: podshm_api::report::NodeReport = serde_json::from_str(report).unwrap();
        assert_eq!((report.node.as_str(), report.registered), ("n", true));
        assert!(get(port, "GET /metrics").contains("podshm_registered 1"));
        assert!(get(port, "POST /domains").starts_with("HTTP/1.1 405"));
        assert!(get(port, "GET /../etc").starts_with("HTTP/1.1 404"));
    }

    #[test]
    fn one_address_can_hold_a_few_connections_and_they_end() {
        let open = Open::default();
        let (one, other) = (IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2]));
        let held: Vec<Place> = std::iter::from_fn(|| Place::take(&open, one)).collect();
        assert_eq!(held.len(), MOST_OF_ONE);
        let place = Place::take(&open, other).expect("the kubelet's");
        drop((held, place));
        assert!(open.lock().unwrap().is_empty());
    }
}
