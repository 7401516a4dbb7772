//! Stopping or killing this process at a named step: `PODSHM_STEP=name:nth:action`, for tests.
//!
//! ```text
//!   PODSHM_STEP=drain.claimed:7:kill    SIGKILL when step drain.claimed is passed for the seventh time
//!   PODSHM_STEP=push.written:1:stop     SIGSTOP at the first time; the process goes on from there after SIGCONT
//! ```
//! The signal goes to the thread that passes the step, so that it gets not one instruction further.

use std::str::FromStr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

pub use podshm_layout::step::{Bug, Hook, Side, Step, is_planted, plant, set_hook};

/// The variable that [`arm_from_env`] reads.
pub const VARIABLE: &str = "PODSHM_STEP";

/// What happens at the step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// SIGKILL.
    Kill,
    /// SIGSTOP.
    Stop,
}

impl Action {
    /// Does it to this process, now. Returns only from a stop, once the process was continued.
    pub fn perform(self) {
        let signal = match self {
            Action::Kill => libc::SIGKILL,
            Action::Stop => libc::SIGSTOP,
        };
        // SAFETY: raise(3) has no precondition; neither of the two signals can have a handler.
        unsafe { libc::raise(signal) };
    }
}

/// What to do, and when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// At which step.
    pub step: Step,
    /// At which passing of it in this process, from 1.
    pub nth: u64,
    /// What.
    pub action: Action,
}

/// A plan that can't be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{VARIABLE} is {found:?}: expected name:nth:action, with a step's name, a number from 1, and kill or stop")]
pub struct BadPlan {
    /// What was found.
    pub found: String,
}

impl FromStr for Plan {
    type Err = BadPlan;

    fn from_str(text: &str) -> Result<Self, BadPlan> {
        let bad = || BadPlan { found: text.to_owned() };
        let [name, nth, action] = text.split(':').collect::<Vec<_>>()[..] else { return Err(bad()) };
        Ok(Plan {
            step: Step::named(name).ok_or_else(bad)?,
            nth: nth.parse().ok().filter(|n| *n > 0).ok_or_else(bad)?,
            action: match action {
                "kill" => Action::Kill,
                "stop" => Action::Stop,
                _ => return Err(bad()),
            },
        })
    }
}

impl std::fmt::Display for Plan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let action = match self.action {
            Action::Kill => "kill",
            Action::Stop => "stop",
        };
        write!(f, "{}:{}:{action}", self.step.name(), self.nth)
    }
}

static PLAN: OnceLock<Plan> = OnceLock::new();
static PASSED: AtomicU64 = AtomicU64::new(0);

/// Arms this process as the environment says; nothing where it says nothing.
pub fn arm_from_env() -> Result<Option<Plan>, BadPlan> {
    let Some(text) = std::env::var_os(VARIABLE) else { return Ok(None) };
    let plan: Plan = text.to_string_lossy().parse()?;
    arm(plan);
    Ok(Some(plan))
}

/// Arms this process; the first plan stands.
pub fn arm(plan: Plan) {
    let _ = PLAN.set(plan);
    set_hook(pass);
}

fn pass(at: Step) {
    // Relaxed: the count orders nothing but itself.
    if let Some(plan) = PLAN.get()
        && plan.step == at
        && PASSED.fetch_add(1, Ordering::Relaxed) + 1 == plan.nth
    {
        plan.action.perform();
    }
}

const _: () = assert!(podshm_layout::step::ON, "this module is there only with the feature");
