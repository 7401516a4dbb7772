//! What the kubelet asks of a controller, `/healthz` and `/readyz`, and what Prometheus is told of it, `/metrics`.
//!
//! | phase | healthz | readyz |
//! |---|---|---|
//! | what it goes by is not there yet, or nobody has said yet who leads | 200 | 503 |
//! | leads, or stands by | 200 | 200 |
//! | no turn of its loop for four minutes | 503: it is started anew | 503 |
//!
//! An API server that is away is no reason to start anything anew: what waits for it goes round, and says so by [`Pulse::waiting`].

use crate::lease::Lead;
use anyhow::Context;
use podshm_port::{Answer, OPENMETRICS, StatusCode, plain, with_type};
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// The longest turn that is still one of a healthy controller. A call of the API server takes 210 s at most until it is given up: to connect (30 s),
/// to be sent and to be answered (90 s each, main.rs).
const LONGEST: Duration = Duration::from_secs(240);
/// How often what waits says so.
const BEAT: Duration = Duration::from_secs(5);

/// How a controller's loop goes. Clones share it.
#[derive(Clone, Debug)]
pub struct Pulse(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    lead: Lead,
    state: Mutex<State>,
    turns: Counter,
}

#[derive(Debug)]
struct State {
    turned: Instant,
    is_synced: bool,
}

impl Pulse {
    /// Of the part that this process has in leading.
    pub fn of(lead: Lead) -> Self {
        let state = Mutex::new(State { turned: Instant::now(), is_synced: false });
        Pulse(Arc::new(Shared { lead, state, turns: Counter::default() }))
    }

    /// The loop has gone on.
    pub fn turn(&self) {
        self.0.turns.inc();
        self.state(|state| state.turned = Instant::now());
    }

    /// Whether all that this process goes by is there.
    pub fn synced(&self, is_synced: bool) {
        self.state(|state| state.is_synced = is_synced);
    }

    /// Waits for what may take as long as it takes, or ends by itself.
    pub async fn waiting<T>(&self, what: impl Future<Output = T>) -> T {
        let mut what = std::pin::pin!(what);
        loop {
            self.turn();
            if let Ok(done) = tokio::time::timeout(BEAT, &mut what).await {
                return done;
            }
        }
    }

    /// Answers at a port, in a thread of its own, for as long as the process lives: a loop that hangs is told of. Says at which address.
    pub fn listen(&self, address: Option<SocketAddr>, port: u16) -> anyhow::Result<SocketAddr> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (bound, is_bound) = std::sync::mpsc::channel();
        let pulse = self.clone();
        // All of it there: whoever calls is in a runtime already, and one can't be entered within another.
        let serve = async move {
            let listener = match podshm_port::listen(address, port).await {
                Ok(listener) => listener,
                Err(error) => return drop(bound.send(Err(error))),
            };
            let _ = bound.send(listener.local_addr().map_err(anyhow::Error::from));
            let respond = move |path: String| std::future::ready(pulse.respond(&path, Instant::now()));
            podshm_port::answer(listener, respond).await;
        };
        std::thread::Builder::new().name("probes".into()).spawn(move || runtime.block_on(serve))?;
        is_bound.recv().context("the thread that answers probes has ended")?
    }

    fn respond(&self, path: &str, now: Instant) -> Answer {
        let silent = self.state(|state| now.saturating_duration_since(state.turned));
        let ready = self.ready(silent);
        match path {
            "/healthz" if silent > LONGEST => plain(StatusCode::SERVICE_UNAVAILABLE, stuck(silent)),
            "/healthz" => plain(StatusCode::OK, "ok\n"),
            "/readyz" => match ready {
                Ok(()) => plain(StatusCode::OK, "ok\n"),
                Err(why) => plain(StatusCode::SERVICE_UNAVAILABLE, why),
            },
            "/metrics" => match self.metrics(ready.is_ok()) {
                Ok(text) => with_type(StatusCode::OK, OPENMETRICS, text),
                Err(error) => plain(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
            },
            _ => plain(StatusCode::NOT_FOUND, "expected /metrics, /healthz or /readyz\n"),
        }
    }

    fn ready(&self, silent: Duration) -> Result<(), String> {
        if silent > LONGEST {
            return Err(stuck(silent));
        }
        if !self.0.lead.is_known() {
            return Err("the API server has not said yet who leads\n".into());
        }
        match self.state(|state| state.is_synced) {
            true => Ok(()),
            false => {
                Err("what it goes by has not come yet from the API server; where that lasts, its log says why\n".into())
            }
        }
    }

    fn metrics(&self, is_ready: bool) -> Result<String, std::fmt::Error> {
        let mut registry = Registry::with_prefix("podshm_controller");
        let gauge = |value: bool| {
            let gauge: Gauge = Gauge::default();
            gauge.set(value.into());
            gauge
        };
        registry.register("leads", "Whether this process leads", gauge(self.0.lead.is_held()));
        registry.register("ready", "Whether it has what it goes by, and leads or stands by", gauge(is_ready));
        registry.register("turns", "How often its loop has gone on", self.0.turns.clone());
        let mut text = String::new();
        encode(&mut text, &registry)?;
        Ok(text)
    }

    fn state<T>(&self, of: impl FnOnce(&mut State) -> T) -> T {
        of(&mut self.0.state.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

fn stuck(silent: Duration) -> String {
    format!("expected a turn within {} s, found none for {} s\n", LONGEST.as_secs(), silent.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::{Ipv4Addr, TcpStream};

    /// Of a Lease at an API server that nobody has started.
    fn pulse() -> Pulse {
        let nowhere = kube::Config::new("http://127.0.0.1:9".parse().unwrap());
        let client = kube::Client::try_from(nowhere).unwrap();
        Pulse::of(Lead::of(client, "podshm-system", "podshm-controller", "here"))
    }

    fn status(pulse: &Pulse, path: &str, now: Instant) -> u16 {
        pulse.respond(path, now).status().as_u16()
    }

    #[tokio::test]
    async fn ready_is_what_has_all_it_goes_by_and_leads_or_stands_by_and_live_is_what_goes_on() {
        for leads in [true, false] {
            let pulse = pulse();
            let (now, late) = (Instant::now(), Instant::now() + LONGEST * 2);
            assert_eq!((status(&pulse, "/healthz", now), status(&pulse, "/readyz", now)), (200, 503));
            pulse.synced(true);
            assert_eq!(status(&pulse, "/readyz", now), 503, "nobody has said who leads");
            pulse.0.lead.looked(leads);
            assert_eq!(status(&pulse, "/readyz", now), 200, "leads: {leads}");
            pulse.synced(false);
            assert_eq!((status(&pulse, "/healthz", now), status(&pulse, "/readyz", now)), (200, 503));
            pulse.synced(true);
            assert_eq!((status(&pulse, "/healthz", late), status(&pulse, "/readyz", late)), (503, 503), "no turn");
            assert_eq!(status(&pulse, "/", now), 404);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_waits_is_alive_and_what_hangs_is_not() {
        let pulse = pulse();
        let hour = Duration::from_secs(3600);
        let _ = tokio::time::timeout(hour, pulse.waiting(std::future::pending::<()>())).await;
        assert_eq!(status(&pulse, "/healthz", Instant::now()), 200);
        let _ = tokio::time::timeout(hour, std::future::pending::<()>()).await;
        assert_eq!(status(&pulse, "/healthz", Instant::now()), 503);
        assert_eq!(pulse.waiting(std::future::ready(7)).await, 7);
        assert_eq!(status(&pulse, "/healthz", Instant::now()), 200);
    }

    #[tokio::test]
    async fn it_answers_over_http_while_the_loop_s_own_thread_is_taken() {
        let pulse = pulse();
        let address = pulse.listen(Some((Ipv4Addr::LOCALHOST, 0).into()), 0).unwrap();
        // On this thread, which is the only one of its runtime.
        let ask = |path: &str| {
            let mut stream = TcpStream::connect(address).unwrap();
            write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).unwrap();
            answer
        };
        assert!(ask("/readyz").starts_with("HTTP/1.1 503"), "{}", ask("/readyz"));
        pulse.synced(true);
        pulse.0.lead.looked(true);
        pulse.turn();
        assert!(ask("/readyz").starts_with("HTTP/1.1 200"), "{}", ask("/readyz"));
        let metrics = ask("/metrics");
        for line in ["podshm_controller_leads 1", "podshm_controller_ready 1", "podshm_controller_turns_total 1"] {
            assert!(metrics.lines().any(|found| found == line), "{line}: {metrics}");
        }
    }
}
