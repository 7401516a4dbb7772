//! Asking over shared memory.

use std::path::Path;
use std::time::{Duration, Instant};

use podshm::{Caller, Client, ErrorKind, Spin};

use crate::wire::{self, Question, Verdict, WireError};

/// The call's name: a [`Question`] to a [`Verdict`]. It may be repeated, so no restart of the agent leaves a question open.
pub const DECIDE: &str = "decide";
/// The call's name: anything to the agent's health, in JSON.
pub const HEALTH: &str = "health";
/// The longest question and verdict in bytes.
pub const MAX_QUESTION_LEN: usize = 64 * 1024;
/// The longest answer about the agent's health in bytes.
pub const MAX_HEALTH_LEN: usize = 64 * 1024;
/// Verdicts are short unless policies fail; longer ones are asked for again.
const ROOM: usize = 512;

/// Why there is no verdict.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GuardError {
    /// The question can't be sent, can't be decided, or the answer is no verdict.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// The library said so.
    #[error(transparent)]
    Podshm(#[from] podshm::Error),
}

/// A process that asks. Clones share everything and are for other threads.
///
/// ```no_run
/// # fn main() -> Result<(), guard_client::GuardError> {
/// use std::time::Duration;
/// use guard_client::{Decision, GuardClient, Question};
/// let guard = GuardClient::join("/run/podshm/guard", Duration::from_secs(5))?;
/// let question = Question {
///     principal: r#"User::"alice""#,
///     action: r#"Action::"read""#,
///     resource: r#"Document::"plan""#,
///     context: r#"{"over_tls": true}"#,
/// };
/// let may = match guard.ask(&question, Duration::from_millis(20)) {
///     Ok(verdict) => verdict.decision == Decision::Allow,
///     Err(error) => { eprintln!("{error}"); false }
/// };
/// # let _ = may; Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct GuardClient {
    client: Client,
    decide: Caller,
    health: Caller,
}

impl GuardClient {
    /// Joins the domain whose socket is in `directory`. Waits until `timeout` for a broker and an agent to be there.
    pub fn join(directory: impl AsRef<Path>, timeout: Duration) -> Result<Self, GuardError> {
        let client = Client::join(directory, timeout)?;
        Ok(Self { decide: client.call(DECIDE)?.wait_for_agent(true), health: client.call(HEALTH)?, client })
    }

    /// Sets how long a question spins before it sleeps.
    pub fn spin(mut self, spin: Spin) -> Self {
        self.decide = self.decide.spin(spin);
        self
    }

    /// The joined client below.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Asks, and waits for the verdict until `timeout`, also where no agent is there to be asked: one that is replaced is followed by the
    /// next within milliseconds. [`ErrorKind::AgentAway`] then says that none came.
    pub fn ask(&self, question: &Question<'_>, timeout: Duration) -> Result<Verdict, GuardError> {
        let until = Instant::now() + timeout;
        let question = wire::encode_question(question)?;
        let mut room = [0; ROOM];
        match self.decide.call(&question, &mut room, timeout) {
            Ok(len) => Ok(wire::decode_verdict(&room[..len])?),
            Err(error) if error.kind() == ErrorKind::BufferTooSmall => {
                let mut room = vec![0; MAX_QUESTION_LEN];
                let left = until.saturating_duration_since(Instant::now());
                let len = self.decide.call(&question, &mut room, left)?;
                Ok(wire::decode_verdict(&room[..len])?)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// [`GuardClient::ask`] for async programs, on any executor.
    pub async fn ask_async(&self, question: &Question<'_>, timeout: Duration) -> Result<Verdict, GuardError> {
        let question = wire::encode_question(question)?;
        Ok(wire::decode_verdict(&self.decide.call_async(question, timeout).await?)?)
    }

    /// How the agent is, in JSON: what it decides by, since when, and what is wrong with what it was given since. Where none is there,
    /// [`ErrorKind::AgentAway`] says so at once.
    pub fn health(&self, timeout: Duration) -> Result<String, GuardError> {
        let mut room = vec![0; MAX_HEALTH_LEN];
        let len = self.health.call(&[], &mut room, timeout)?;
        room.truncate(len);
        String::from_utf8(room).map_err(|_| WireError::NoText { what: "health" }.into())
    }
}
