//! How the agent is: in JSON to whoever calls `health`, in a file for a probe, as a line each second.

use std::fmt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::bundle::replace;
use rustix::time::{ClockId, clock_gettime};

/// What was decided so far.
#[derive(Debug, Default)]
pub struct Counts {
    /// Allowed.
    pub allowed: AtomicU64,
    /// Denied.
    pub denied: AtomicU64,
    /// Questions that could not be decided.
    pub undecided: AtomicU64,
}

/// How the agent is. `state` is `ok`, or `stale` while what is in its directory can't be used and older policies decide.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Health {
    /// `ok` or `stale`.
    pub state: String,
    /// Fingerprint of what decides now, as in verdicts, in hexadecimal.
    pub policies: String,
    /// How many policies that are.
    pub count: usize,
    /// Times that others came into use since the start.
    pub reloads: u64,
    /// Times that the directory held what can't be used.
    pub rejected: u64,
    /// What is wrong with it now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
    /// How many agents have served, up to this one; 0 before it serves.
    #[serde(default)]
    pub epoch: u64,
    /// When this was written, in ms of the machine's uptime.
    #[serde(default)]
    pub uptime_ms: u64,
}

impl Health {
    /// With the time in it, as JSON.
    pub fn json(&self) -> Vec<u8> {
        let now = Self { uptime_ms: uptime().as_millis() as u64, ..self.clone() };
        serde_json::to_vec(&now).unwrap_or_default()
    }

    /// For a probe: whether the file was written less than `age` ago, by an agent that serves where `ready` is asked; what it says, or what
    /// is wrong.
    pub fn probe(path: &Path, age: Duration, ready: bool) -> Result<String, String> {
        let fault = |error: &dyn fmt::Display| format!("health in {}: {error}", path.display());
        let text = std::fs::read_to_string(path).map_err(|e| fault(&e))?;
        let health: Health = serde_json::from_str(&text).map_err(|e| fault(&e))?;
        let old = uptime().saturating_sub(Duration::from_millis(health.uptime_ms));
        if old > age {
            return Err(fault(&format!("written {old:?} ago, expected at most {age:?}; the agent hangs or is gone")));
        }
        if ready && health.epoch == 0 {
            return Err(fault(&"the agent does not serve yet; expected it to have taken over"));
        }
        Ok(text)
    }
}

fn uptime() -> Duration {
    let now = clock_gettime(ClockId::Boottime);
    Duration::new(now.tv_sec.unsigned_abs(), now.tv_nsec as u32)
}

/// The agent's numbers. As text they are one line of `name=value`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// What the agent calls itself.
    pub version: String,
    /// How many agents have served, up to this one; 0 before it serves.
    pub epoch: u64,
    /// Clients that are served.
    pub clients: usize,
    /// Decisions: allowed, denied, none.
    pub decisions: [u64; 3],
    /// How it is.
    pub health: Health,
}

impl Stats {
    /// Writes the health down; that it can't be is no reason to stop serving.
    pub fn write_health(&self, path: &Path) {
        if let Err(error) = replace(path, &self.health.json()) {
            tracing::error!(%error, path = %path.display(), "the health can't be written");
        }
    }
}

impl Counts {
    pub(crate) fn now(&self) -> [u64; 3] {
        [&self.allowed, &self.denied, &self.undecided].map(|count| count.load(Ordering::Relaxed))
    }
}

impl fmt::Display for Stats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { version, epoch, clients, decisions: [allowed, denied, undecided], health } = self;
        let Health { state, policies, count, reloads, rejected, .. } = health;
        write!(f, "version={version} epoch={epoch} clients={clients} allowed={allowed} denied={denied} ")?;
        write!(
            f,
            "undecided={undecided} state={state} policies={policies} count={count} reloads={reloads} rejected={rejected}"
        )
    }
}
