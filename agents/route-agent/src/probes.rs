//! What the kubelet asks: `/healthz`, whether the agent goes round, and `/readyz`, whether it serves.
//!
//! | phase | healthz | readyz |
//! |---|---|---|
//! | starting: no list yet, or the predecessor serves | 200 | 503 |
//! | serving, upstream or not | 200, or 503 when no round has ended for 30 s | the same |
//! | handed over to a successor | 200 | 503 |

use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::{body::Bytes, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;

/// The longest round that is still one of a healthy agent. They take microseconds; publishing waits for the broker for seconds at most.
const LONGEST_ROUND: Duration = Duration::from_secs(30);
/// How long somebody who connects may take to ask.
const PATIENCE: Duration = Duration::from_secs(5);

/// Where an agent is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// It does not serve yet.
    Starting,
    /// It serves.
    Serving,
    /// A successor serves.
    HandedOver,
}

/// What the probes answer by. Clones share it.
#[derive(Debug, Clone)]
pub struct Probes(Arc<Mutex<(Phase, Instant)>>);

impl Default for Probes {
    fn default() -> Self {
        Self(Arc::new(Mutex::new((Phase::Starting, Instant::now()))))
    }
}

impl Probes {
    /// The agent is here, now.
    pub fn at(&self, phase: Phase) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = (phase, Instant::now());
    }

    /// Answers on this address, in a thread of its own, for as long as the process lives. Says which address it is.
    pub fn listen(&self, address: SocketAddr) -> std::io::Result<SocketAddr> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let listener = runtime.block_on(TcpListener::bind(address))?;
        let (found, probes) = (listener.local_addr()?, self.clone());
        std::thread::Builder::new().name("probes".into()).spawn(move || runtime.block_on(probes.serve(&listener)))?;
        Ok(found)
    }

    async fn serve(&self, listener: &TcpListener) {
        loop {
            let Ok((stream, _)) = listener.accept().await else {
                // Out of descriptors, or the peer is gone again.
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            };
            let answer = service_fn(|request: Request<_>| {
                let (status, text) = self.answer(request.uri().path(), Instant::now());
                let mut response = Response::new(Full::new(Bytes::from(text)));
                *response.status_mut() = status;
                async move { Ok::<_, Infallible>(response) }
            });
            // One after the other: whoever holds its connection open holds it for a moment only.
            let mut server = http1::Builder::new();
            server.keep_alive(false).timer(TokioTimer::new()).header_read_timeout(PATIENCE);
            let _ = tokio::time::timeout(PATIENCE, server.serve_connection(TokioIo::new(stream), answer)).await;
        }
    }

    fn answer(&self, path: &str, now: Instant) -> (StatusCode, String) {
        let (phase, last) = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let silent = now.saturating_duration_since(last);
        let stuck = phase == Phase::Serving && silent > LONGEST_ROUND;
        match path {
            "/healthz" | "/readyz" if stuck => (
                StatusCode::SERVICE_UNAVAILABLE,
                format!(
                    "expected a round within {} s, found none for {} s\n",
                    LONGEST_ROUND.as_secs(),
                    silent.as_secs()
                ),
            ),
            "/healthz" => (StatusCode::OK, "ok\n".into()),
            "/readyz" => match phase {
                Phase::Serving => (StatusCode::OK, "ok\n".into()),
                Phase::Starting => (StatusCode::SERVICE_UNAVAILABLE, "starting: it does not serve yet\n".into()),
                Phase::HandedOver => (StatusCode::SERVICE_UNAVAILABLE, "a successor serves\n".into()),
            },
            _ => (StatusCode::NOT_FOUND, "expected /healthz or /readyz\n".into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        io::{Read, Write},
        net::{Ipv4Addr, TcpStream},
    };

    fn status(probes: &Probes, path: &str, now: Instant) -> u16 {
        probes.answer(path, now).0.as_u16()
    }

    #[test]
    fn readiness_follows_the_phase_and_health_the_rounds() {
        let probes = Probes::default();
        let (now, late) = (Instant::now(), Instant::now() + LONGEST_ROUND * 2);
        for (phase, ready, healthy_late) in
            [(Phase::Starting, 503, 200), (Phase::Serving, 200, 503), (Phase::HandedOver, 503, 200)]
        {
            probes.at(phase);
            assert_eq!(status(&probes, "/readyz", now), ready, "{phase:?}");
            assert_eq!(status(&probes, "/healthz", now), 200, "{phase:?}");
            assert_eq!(status(&probes, "/healthz", late), healthy_late, "{phase:?}");
        }
        assert_eq!(status(&probes, "/", now), 404);
    }

    #[test]
    fn it_answers_over_http_also_after_somebody_who_says_nothing() {
        let probes = Probes::default();
        let address = probes.listen((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
        let silent = TcpStream::connect(address).unwrap();
        let ask = || {
            let mut stream = TcpStream::connect(address).unwrap();
            stream.write_all(b"GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).unwrap();
            answer
        };
        assert!(ask().starts_with("HTTP/1.1 503"), "{}", ask());
        probes.at(Phase::Serving);
        assert!(ask().starts_with("HTTP/1.1 200"), "{}", ask());
        drop(silent);
    }
}
