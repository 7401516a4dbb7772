//! Who of several controllers leads: the holder of a Lease, as client-go's leader election has it.
//!
//! ```text
//!  nobody's, or not renewed for DURATION as we saw it ──► ours ──► renewed every RETRY ──► given up at the end
//! ```
//! The clocks of two machines are never compared: what counts is how long the same renewal has been seen.

mod belief;

use belief::{Belief, DEADLINE, RETRY};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::Client;
use kube::api::{Api, ObjectMeta, PostParams};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// A process's part in it.
#[derive(Clone, Debug)]
pub struct Lead {
    leases: Api<Lease>,
    name: Arc<str>,
    me: Arc<str>,
    belief: Arc<Mutex<Belief>>,
    changed: Arc<tokio::sync::Notify>,
}

impl Lead {
    /// Of a Lease of this name; `me` is this process's name alone.
    pub fn of(client: Client, namespace: &str, name: &str, me: &str) -> Self {
        let (leases, me) = (Api::namespaced(client, namespace), Arc::<str>::from(me));
        let belief = Arc::new(Mutex::new(Belief::of(me.clone())));
        Lead { leases, name: name.into(), me, belief, changed: Arc::default() }
    }

    /// This process's name.
    pub fn me(&self) -> &str {
        &self.me
    }

    /// Whether this process leads.
    pub fn is_held(&self) -> bool {
        self.belief().is_held(Instant::now())
    }

    /// Whether the API server has ever said who leads.
    pub fn is_known(&self) -> bool {
        self.belief().is_known()
    }

    /// As if the API server had said so.
    #[cfg(test)]
    pub(crate) fn looked(&self, is_ours: bool) {
        self.belief().ended(Instant::now(), is_ours);
    }

    /// Until this process leads.
    pub async fn held(&self) {
        while !self.is_held() {
            let _ = tokio::time::timeout(RETRY, self.changed.notified()).await;
        }
    }

    /// Does what only the one that leads may do, and drops it, whatever it waits for, once this process leads no more. What does not wait
    /// has to ask [`Lead::is_held`] itself.
    pub async fn while_held<T>(&self, act: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            biased;
            () = self.lost() => None,
            done = act => Some(done),
        }
    }

    async fn lost(&self) {
        loop {
            let until = self.belief().until().filter(|until| *until > Instant::now());
            let Some(until) = until else { return };
            let _ = tokio::time::timeout_at(until.into(), self.changed.notified()).await;
        }
    }

    /// Takes the lease where it can, and keeps it, until it is dropped.
    pub async fn keep(&self) {
        loop {
            let asked = Instant::now();
            let was_held = self.is_held();
            match tokio::time::timeout(DEADLINE, self.try_once()).await {
                Ok(Ok(is_ours)) => self.belief().ended(asked, is_ours),
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
        self.belief().ended(Instant::now(), false);
        self.changed.notify_waiters();
        let Some(mut lease) = self.leases.get_opt(&self.name).await? else { return Ok(()) };
        let Some(spec) = lease.spec.as_mut().filter(|spec| spec.holder_identity.as_deref() == Some(&*self.me)) else {
            return Ok(());
        };
        (spec.holder_identity, spec.lease_duration_seconds) = (None, Some(1));
        self.leases.replace(&self.name, &PostParams::default(), &lease).await.map(drop)
    }

    fn belief(&self) -> MutexGuard<'_, Belief> {
        self.belief.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether it is ours now. Two that write at once: the API server refuses one, by the object's version.
    async fn try_once(&self) -> kube::Result<bool> {
        let found = self.leases.get_opt(&self.name).await?;
        let now = MicroTime(Timestamp::now());
        let is_there = found.is_some();
        let metadata = ObjectMeta { name: Some(self.name.to_string()), ..ObjectMeta::default() };
        let mut lease = found.unwrap_or(Lease { metadata, spec: None });
        let before = is_there.then(|| lease.spec.take().unwrap_or_default());
        let Some(spec) = self.belief().bid(before, Instant::now(), now) else { return Ok(false) };
        lease.spec = Some(spec);
        let parameters = PostParams::default();
        won(match is_there {
            true => self.leases.replace(&self.name, &parameters, &lease).await,
            false => self.leases.create(&parameters, &lease).await,
        })
    }
}

fn won(written: kube::Result<Lease>) -> kube::Result<bool> {
    match written {
        Ok(_) => Ok(true),
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
        Err(error) => Err(error),
    }
}
