//! What is said at the one port: `/metrics`, `/healthz`, `/readyz`, `/domains`. Anybody on the pod network can reach it (`podshm-port`).

use crate::metrics::Metrics;
use crate::report::NodeView;
use crate::volumes::Volumes;
use podshm_port::{Answer, OPENMETRICS, StatusCode, plain, with_type};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use tokio::net::TcpListener;

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
    podshm_port::answer(listener, move |path| respond(path, Arc::clone(&told))).await;
}

async fn respond(path: String, told: Arc<Told>) -> Answer {
    match path.as_str() {
        "/healthz" => plain(StatusCode::OK, "ok\n"),
        "/readyz" if told.is_registered() => plain(StatusCode::OK, "ok\n"),
        "/readyz" => plain(StatusCode::SERVICE_UNAVAILABLE, "the kubelet has not registered this daemon\n"),
        "/metrics" => {
            body(told, OPENMETRICS, |told, view| {
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
}
