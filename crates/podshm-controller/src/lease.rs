//! Who of several controllers leads: the holder of a Lease, as client-go's leader election has it.
//!
//! ```text
//!  nobody's, or not renewed for DURATION as we saw it ──► ours ──► renewed every RETRY ──► given up at the end
//! ```
//! The clocks of two machines are never compared: what counts is how long the same renewal has been seen.

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::Client;
use kube::api::{Api, ObjectMeta, PostParams};
use std::sync::Arc;
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// How long a lease holds without being renewed.
const DURATION: Duration = Duration::from_secs(15);
/// How long its holder goes by it: it stops before others may begin.
const DEADLINE: Duration = Duration::from_secs(10);
/// How often it is renewed, or looked at.
const RETRY: Duration = Duration::from_secs(3);

/// A process's part in it.
#[derive(Clone, Debug)]
pub struct Lead {
    leases: Api<Lease>,
    name: Arc<str>,
    me: Arc<str>,
    /// Ours from then on for a [`DEADLINE`].
    renewed: Arc<Mutex<Option<Instant>>>,
    changed: Arc<tokio::sync::Notify>,
}

/// What was seen of somebody else's lease, and since when.
type Seen = Option<(Option<String>, Option<MicroTime>, Instant)>;

impl Lead {
    /// Of a Lease of this name; `me` is this process's name alone.
    pub fn of(client: Client, namespace: &str, name: &str, me: &str) -> Self {
        let leases = Api::namespaced(client, namespace);
        Lead { leases, name: name.into(), me: me.into(), renewed: Arc::default(), changed: Arc::default() }
    }

    /// Whether this process leads.
    pub fn is_held(&self) -> bool {
        self.renewed.lock().is_ok_and(|renewed| renewed.is_some_and(|at| at.elapsed() < DEADLINE))
    }

    /// Until this process leads.
    pub async fn held(&self) {
        while !self.is_held() {
            let _ = tokio::time::timeout(RETRY, self.changed.notified()).await;
        }
    }

    /// Takes the lease where it can, and keeps it, until it is dropped.
    pub async fn keep(&self) {
        let mut seen = None;
        loop {
            let asked = Instant::now();
            let was_held = self.is_held();
            match tokio::time::timeout(DEADLINE, self.try_once(&mut seen)).await {
                Ok(Ok(is_ours)) => self.note(is_ours.then_some(asked)),
                // What was renewed before holds until its deadline.
                Ok(Err(error)) => tracing::warn!(%error, lease = &*self.name, "the lease"),
                Err(_) => tracing::warn!(lease = &*self.name, "the API server does not answer"),
            }
            if was_held != self.is_held() {
                tracing::info!(leads = self.is_held(), me = &*self.me, "who leads has changed");
                self.changed.notify_waiters();
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    /// For whoever comes next: it need not wait.
    pub async fn give_up(&self) -> kube::Result<()> {
        self.note(None);
        let Some(mut lease) = self.leases.get_opt(&self.name).await? else { return Ok(()) };
        let Some(spec) = lease.spec.as_mut().filter(|spec| spec.holder_identity.as_deref() == Some(&*self.me)) else {
            return Ok(());
        };
        (spec.holder_identity, spec.lease_duration_seconds) = (None, Some(1));
        self.leases.replace(&self.name, &PostParams::default(), &lease).await.map(drop)
    }

    fn note(&self, renewed: Option<Instant>) {
        if let Ok(mut at) = self.renewed.lock() {
            *at = renewed;
        }
    }

    /// Whether it is ours now. Two that write at once: the API server refuses one, by the object's version.
    async fn try_once(&self, seen: &mut Seen) -> kube::Result<bool> {
        let now = MicroTime(Timestamp::now());
        let Some(mut lease) = self.leases.get_opt(&self.name).await? else {
            let metadata = ObjectMeta { name: Some(self.name.to_string()), ..ObjectMeta::default() };
            let lease = Lease { metadata, spec: Some(self.spec(None, now)) };
            return won(self.leases.create(&PostParams::default(), &lease).await);
        };
        let spec = lease.spec.take().unwrap_or_default();
        let is_mine = spec.holder_identity.as_deref() == Some(&*self.me);
        if !is_mine && spec.holder_identity.is_some() {
            let found = (spec.holder_identity.clone(), spec.renew_time.clone());
            let since = match &*seen {
                Some((holder, renewed, since)) if (holder, renewed) == (&found.0, &found.1) => *since,
                _ => Instant::now(),
            };
            *seen = Some((found.0, found.1, since));
            let lasts = spec.lease_duration_seconds.and_then(|seconds| u64::try_from(seconds).ok());
            if since.elapsed() < lasts.map_or(DURATION, Duration::from_secs) {
                return Ok(false);
            }
        }
        lease.spec = Some(self.spec(Some(&spec), now));
        won(self.leases.replace(&self.name, &PostParams::default(), &lease).await)
    }

    fn spec(&self, before: Option<&LeaseSpec>, now: MicroTime) -> LeaseSpec {
        let kept = before.filter(|spec| spec.holder_identity.as_deref() == Some(&*self.me));
        let transitions = before.and_then(|spec| spec.lease_transitions).unwrap_or_default();
        LeaseSpec {
            holder_identity: Some(self.me.to_string()),
            lease_duration_seconds: i32::try_from(DURATION.as_secs()).ok(),
            acquire_time: kept.map_or_else(|| Some(now.clone()), |spec| spec.acquire_time.clone()),
            renew_time: Some(now),
            lease_transitions: Some(if kept.is_some() { transitions } else { transitions.saturating_add(1) }),
            ..LeaseSpec::default()
        }
    }
}

fn won(written: kube::Result<Lease>) -> kube::Result<bool> {
    match written {
        Ok(_) => Ok(true),
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
        Err(error) => Err(error),
    }
}
