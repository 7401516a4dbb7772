//! A port for the kubelet's probes and for scrapes. Anybody on the pod network can reach it, so nothing can be changed there, and nobody can
//! take up more of the process than a few sockets for a few seconds.

#![forbid(unsafe_code)]

use anyhow::Context;
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::collections::HashMap;
use std::convert::Infallible;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};

pub use hyper::StatusCode;

/// What a scrape is answered with.
pub const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// Connections at once, in all and of one address: another pod must not be able to keep the kubelet's probes out.
const MOST: usize = 128;
const MOST_OF_ONE: usize = 8;
/// A connection ends after this, whatever it does.
const LONGEST: Duration = Duration::from_secs(10);

/// What a path is answered with.
pub type Answer = Response<Full<Bytes>>;

/// Listens at an address, or at this port of all addresses of this pod.
pub async fn listen(address: Option<SocketAddr>, port: u16) -> anyhow::Result<TcpListener> {
    let all = [IpAddr::from(Ipv6Addr::UNSPECIFIED), IpAddr::from(Ipv4Addr::UNSPECIFIED)];
    let addresses = address.map_or_else(|| all.map(|address| SocketAddr::new(address, port)).to_vec(), |one| vec![one]);
    // The first one that there is: a node may be without IPv6.
    TcpListener::bind(&addresses[..]).await.with_context(|| format!("listening at {addresses:?}"))
}

/// Answers a GET of a path, until it is dropped.
pub async fn answer<F, A>(listener: TcpListener, respond: F)
where
    F: Fn(String) -> A + Clone + Send + Sync + 'static,
    A: Future<Output = Answer> + Send + 'static,
{
    let open = Arc::new(Mutex::new(HashMap::new()));
    loop {
        let (stream, from) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of descriptors, say: it passes.
                tracing::warn!(%error, "the port for probes and scrapes");
                tokio::time::sleep(Duration::from_millis(200)).await;
                continue;
            }
        };
        let Some(place) = Place::take(&open, from.ip()) else { continue };
        let respond = respond.clone();
        tokio::spawn(async move {
            let _ = tokio::time::timeout(LONGEST, connection(stream, respond)).await;
            drop(place);
        });
    }
}

async fn connection<F, A>(stream: TcpStream, respond: F) -> hyper::Result<()>
where
    F: Fn(String) -> A + Clone,
    A: Future<Output = Answer>,
{
    let service = service_fn(move |request: Request<Incoming>| {
        let respond = respond.clone();
        async move {
            Ok::<_, Infallible>(match *request.method() {
                Method::GET => respond(request.uri().path().to_owned()).await,
                _ => plain(StatusCode::METHOD_NOT_ALLOWED, "expected GET; nothing can be changed here\n"),
            })
        }
    });
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(LONGEST / 2).keep_alive(false).max_buf_size(8 << 10);
    builder.serve_connection(TokioIo::new(stream), service).await
}

/// An answer in words.
pub fn plain(status: StatusCode, text: impl Into<Bytes>) -> Answer {
    with_type(status, "text/plain; charset=utf-8", text)
}

/// An answer of some media type.
pub fn with_type(status: StatusCode, content: &'static str, text: impl Into<Bytes>) -> Answer {
    let mut response = Response::new(Full::new(text.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content));
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
