//! Named injection points: `PODSHM_FAULT=point:action[:nth][,…]`.
//!
//! A convention, so that a test can stop or kill a process *at* a step instead of near it. The code under test calls its
//! own hook at each named step; with this module the hook is two lines:
//!
//! ```
//! use podshm_testkit::fault::{Action, Faults};
//! let faults: Faults = "ring.publish:stop:3".parse().unwrap();
//! assert_eq!([(); 4].map(|()| faults.hit("ring.publish")), [None, None, Some(Action::Stop), None]);
//! ```

use std::fmt;
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};

/// The environment variable that [`Faults::from_env`] reads.
pub const FAULT_ENV: &str = "PODSHM_FAULT";

/// Exit status of [`Action::Exit`].
pub const FAULT_EXIT_STATUS: i32 = 86;

/// What happens at the point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// SIGSTOP on the own process; it goes on after SIGCONT.
    Stop,
    /// SIGKILL on the own process.
    Kill,
    /// Exit with [`FAULT_EXIT_STATUS`], running no destructors.
    Exit,
}

impl Action {
    /// Does it. Returns only from [`Action::Stop`], once the process was continued.
    pub fn perform(self) {
        let own = rustix::process::getpid();
        let signal = match self {
            Self::Stop => rustix::process::Signal::STOP,
            Self::Kill => rustix::process::Signal::KILL,
            Self::Exit => std::process::exit(FAULT_EXIT_STATUS),
        };
        // Signalling oneself can't fail; pid 1 of a pid namespace would ignore it, which is why a payload never is pid 1.
        let _ = rustix::process::kill_process(own, signal);
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Stop => "stop",
            Self::Kill => "kill",
            Self::Exit => "exit",
        })
    }
}

impl FromStr for Action {
    type Err = FaultParseError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "stop" => Ok(Self::Stop),
            "kill" => Ok(Self::Kill),
            "exit" => Ok(Self::Exit),
            other => Err(FaultParseError::Action(other.to_owned())),
        }
    }
}

/// A fault that could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FaultParseError {
    /// No `point:action`.
    #[error("fault: expected point:action[:nth], found {0:?}")]
    Shape(String),
    /// An unknown action.
    #[error("fault: expected action stop, kill or exit, found {0:?}")]
    Action(String),
    /// A visit that is no number from 1.
    #[error("fault: expected nth to be a number from 1, found {0:?}")]
    Nth(String),
}

/// One fault: at the `nth` visit (from 1) of `point`, do `action`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// Name of the step, such as `ring.publish`; no colon or comma.
    pub point: String,
    /// What happens there.
    pub action: Action,
    /// At which visit, counted from 1 in each process.
    pub nth: u64,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.point, self.action)?;
        if self.nth != 1 { write!(f, ":{}", self.nth) } else { Ok(()) }
    }
}

impl FromStr for Fault {
    type Err = FaultParseError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut words = text.trim().split(':');
        let (point, action, nth) = match (words.next(), words.next(), words.next(), words.next()) {
            (Some(point), Some(action), nth, None) if !point.is_empty() => (point, action, nth),
            _ => return Err(FaultParseError::Shape(text.to_owned())),
        };
        let nth = match nth {
            None => 1,
            Some(nth) => match nth.parse() {
                Ok(number) if number > 0 => number,
                _ => return Err(FaultParseError::Nth(nth.to_owned())),
            },
        };
        Ok(Self { point: point.to_owned(), action: action.parse()?, nth })
    }
}

/// The faults planted in this process, with the visits so far.
#[derive(Debug, Default)]
pub struct Faults {
    planted: Vec<(Fault, AtomicU64)>,
}

impl Faults {
    /// Reads [`FAULT_ENV`]; unset or empty plants nothing.
    pub fn from_env() -> Result<Self, FaultParseError> {
        match std::env::var_os(FAULT_ENV) {
            Some(text) => text.to_string_lossy().parse(),
            None => Ok(Self::default()),
        }
    }

    /// True when nothing is planted: the hook may return at once.
    pub fn is_empty(&self) -> bool {
        self.planted.is_empty()
    }

    /// Counts a visit and says what is due; each fault fires once.
    pub fn hit(&self, point: &str) -> Option<Action> {
        let mut due = None;
        for (fault, visits) in self.planted.iter().filter(|(fault, _)| fault.point == point) {
            // Relaxed: the count orders nothing but itself.
            if visits.fetch_add(1, Ordering::Relaxed) + 1 == fault.nth {
                due = due.or(Some(fault.action));
            }
        }
        due
    }

    /// Counts a visit and does what is due.
    pub fn visit(&self, point: &str) {
        if let Some(action) = self.hit(point) {
            action.perform();
        }
    }
}

impl FromStr for Faults {
    type Err = FaultParseError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let words = text.split(',').map(str::trim).filter(|word| !word.is_empty());
        let planted = words.map(|word| Ok((word.parse()?, AtomicU64::new(0)))).collect::<Result<_, _>>()?;
        Ok(Self { planted })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_read_back_as_written() {
        for text in ["ring.publish:stop", "drain:kill:7", "a-b_c:exit:2"] {
            assert_eq!(text.parse::<Fault>().unwrap().to_string(), text);
        }
        assert_eq!("p:stop:1".parse::<Fault>().unwrap().to_string(), "p:stop");
    }

    #[test]
    fn bad_faults_say_what_was_expected() {
        let error = |text: &str| text.parse::<Fault>().unwrap_err();
        assert_eq!(error("p"), FaultParseError::Shape("p".into()));
        assert_eq!(error(":kill"), FaultParseError::Shape(":kill".into()));
        assert_eq!(error("p:kill:1:2"), FaultParseError::Shape("p:kill:1:2".into()));
        assert_eq!(error("p:burn"), FaultParseError::Action("burn".into()));
        assert_eq!(error("p:kill:0"), FaultParseError::Nth("0".into()));
        assert_eq!(error("p:kill:x"), FaultParseError::Nth("x".into()));
    }

    #[test]
    fn each_fires_once_at_its_visit() {
        let faults: Faults = "a:stop:2, b:kill".parse().unwrap();
        assert_eq!(faults.hit("a"), None);
        assert_eq!(faults.hit("b"), Some(Action::Kill));
        assert_eq!(faults.hit("a"), Some(Action::Stop));
        assert_eq!(faults.hit("a"), None);
        assert_eq!(faults.hit("c"), None);
        assert!("".parse::<Faults>().unwrap().is_empty());
    }
}
