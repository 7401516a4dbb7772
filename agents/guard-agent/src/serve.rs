//! The agent at work: questions from podshm, decided by what [`Watch`] keeps up to date.
//!
//! A rollout is as safe as the policies are: an agent that can't use what is in its directory, and has no last good copy, never says that
//! it is ready, so its predecessor goes on. Deciding changes nothing, so that the call may be repeated: a killed agent leaves no question
//! without a verdict.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use guard_client::wire::{decode_question, encode_undecided, encode_verdict};
use guard_client::{DECIDE, Decision, HEALTH, MAX_HEALTH_LEN, MAX_QUESTION_LEN, Verdict};
use podshm::{Agent, Answer, DEFAULT_CALL_RING, Handler, Progress, Request};

use crate::health::{Health, Stats};
use crate::watch::{Shared, Watch};

const HEALTH_RING: u32 = 4096;
/// The longest sleep.
const SLEEP: Duration = Duration::from_millis(20);
/// How often numbers are given and the health is written.
const SECOND: Duration = Duration::from_secs(1);

/// Why the agent can't serve.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    /// The library said so.
    #[error(transparent)]
    Podshm(#[from] podshm::Error),
    /// There is nothing to decide by.
    #[error("no policies to start with: {0}")]
    NoPolicies(String),
}

/// What an agent is started with.
#[derive(Clone, Debug)]
pub struct Config {
    /// Directory of the podshm socket.
    pub socket_dir: PathBuf,
    /// Directory of the policies.
    pub policies: PathBuf,
    /// Where the last good policies are kept, for a start with bad ones.
    pub last_good: Option<PathBuf>,
    /// Where the health is written each second.
    pub health_file: Option<PathBuf>,
    /// How long to wait for the broker.
    pub timeout: Duration,
    /// What this agent calls itself.
    pub version: String,
}

impl Config {
    /// Defaults, for a socket in this directory and policies in that.
    pub fn new(socket_dir: impl Into<PathBuf>, policies: impl Into<PathBuf>) -> Self {
        Self {
            socket_dir: socket_dir.into(),
            policies: policies.into(),
            last_good: None,
            health_file: None,
            timeout: Duration::from_secs(30),
            version: env!("CARGO_PKG_VERSION").into(),
        }
    }
}

/// What a round came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Go on.
    Serving,
    /// A successor is ready: [`Server::close`].
    CloseAsked,
}

/// A serving agent.
#[derive(Debug)]
pub struct Server {
    config: Config,
    agent: Agent,
    watch: Watch,
    desk: Desk,
    next_second: Instant,
}

/// Answers.
#[derive(Debug)]
struct Desk {
    shared: Arc<Shared>,
}

impl Handler for Desk {
    fn call(&mut self, request: Request<'_>, answer: &mut Answer<'_>) {
        match request.service {
            DECIDE => answer.reply_owned(self.decide(request.bytes, request.member)),
            _ => answer.reply_owned(self.shared.health().json()),
        }
    }
}

impl Desk {
    fn decide(&self, bytes: &[u8], member: &str) -> Vec<u8> {
        let (policies, counts) = (self.shared.policies(), &self.shared.counts);
        let undecided = |why: &str| {
            counts.undecided.fetch_add(1, Ordering::Relaxed);
            tracing::debug!(member, why, "a question that can't be decided");
            encode_undecided(why, policies.fingerprint(), MAX_QUESTION_LEN)
        };
        let question = match decode_question(bytes) {
            Ok(question) => question,
            Err(error) => return undecided(&error.to_string()),
        };
        // Whoever found a question that breaks Cedar would otherwise end the agent for all.
        let decided = catch_unwind(AssertUnwindSafe(|| policies.decide(&question, member)));
        match decided.unwrap_or_else(|_| Err("the evaluation broke off".into())) {
            Ok(verdict) => {
                let count = if verdict.decision == Decision::Allow { &counts.allowed } else { &counts.denied };
                count.fetch_add(1, Ordering::Relaxed);
                complain(&verdict, member);
                encode_verdict(&verdict, MAX_QUESTION_LEN)
            }
            Err(why) => undecided(&why),
        }
    }
}

/// A policy that can't be evaluated counts for nothing, a `forbid` too: somebody should hear of it.
fn complain(verdict: &Verdict, member: &str) {
    for error in &verdict.errors {
        tracing::warn!(member, "a policy could not be evaluated: {error}");
    }
}

impl Server {
    /// Reads the policies, connects and says that it is ready.
    pub fn start(config: Config) -> Result<Self, ServeError> {
        let watch = Watch::start(config.policies.clone(), config.last_good.clone()).map_err(ServeError::NoPolicies)?;
        let mut agent = Agent::builder()
            .idempotent_call(DECIDE, DEFAULT_CALL_RING, MAX_QUESTION_LEN as u32)
            .idempotent_call(HEALTH, HEALTH_RING, MAX_HEALTH_LEN as u32)
            .connect(&config.socket_dir, config.timeout)?;
        agent.ready()?;
        let desk = Desk { shared: Arc::clone(watch.shared()) };
        Ok(Self { config, agent, watch, desk, next_second: Instant::now() })
    }

    /// One round. Sleeps a little if there is nothing.
    pub fn step(&mut self) -> Result<Step, ServeError> {
        match self.agent.poll(&mut self.desk)? {
            Progress::CloseAsked => return Ok(Step::CloseAsked),
            Progress::Idle => self.agent.wait(SLEEP)?,
            _ => {}
        }
        Ok(Step::Serving)
    }

    /// Serves until `stop` says so or a successor is ready, gives its numbers to `each_second`, then closes.
    pub fn run(
        mut self,
        mut stop: impl FnMut() -> bool,
        mut each_second: impl FnMut(&Stats),
    ) -> Result<Stats, ServeError> {
        while !stop() && self.step()? == Step::Serving {
            if Instant::now() >= self.next_second {
                self.next_second = Instant::now() + SECOND;
                let stats = self.stats();
                if let Some(path) = &self.config.health_file {
                    stats.write_health(path);
                }
                each_second(&stats);
            }
        }
        self.close()
    }

    /// Ends in order.
    pub fn close(mut self) -> Result<Stats, ServeError> {
        let stats = self.stats();
        self.agent.close(Vec::new())?;
        Ok(stats)
    }

    /// The numbers now.
    pub fn stats(&self) -> Stats {
        let shared = self.watch.shared();
        Stats {
            version: self.config.version.clone(),
            epoch: self.agent.epoch(),
            clients: self.agent.clients(),
            decisions: shared.counts.now(),
            health: Health { epoch: self.agent.epoch(), ..shared.health() },
        }
    }
}
