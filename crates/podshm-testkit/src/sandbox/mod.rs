//! The helper's side: what `podshm-pod` does. Not an API.
//!
//! Four verbs, each a fresh single-threaded process, so that nothing has to fork by hand:
//! `pod` (supervisor) starts `init` and `stage`; `enter` (waiter of a further process) starts `stage`.

mod init;
mod mounts;
mod namespaces;
mod stage;
mod supervisor;

pub(crate) use supervisor::descendants;

use std::fmt::Display;
use std::process::ExitCode;

use crate::spec::Spec;

/// Why a step failed.
#[derive(Debug)]
pub(crate) enum StepError {
    /// The kernel doesn't allow this isolation here; a weaker one may work.
    Unavailable(String),
    /// It is wrong whatever the isolation.
    Failed(String),
}

impl StepError {
    /// As one line of the protocol between helper processes and library.
    fn line(&self) -> String {
        let (word, text) = match self {
            Self::Unavailable(text) => ("unavailable", text),
            Self::Failed(text) => ("error", text),
        };
        format!("{word} {}\n", text.replace('\n', " "))
    }

    fn parse(line: &str) -> Self {
        match line.split_once(' ') {
            Some(("unavailable", text)) => Self::Unavailable(text.trim_end().to_owned()),
            Some(("error", text)) => Self::Failed(text.trim_end().to_owned()),
            _ => Self::Failed(format!("expected ready from a helper stage, found {line:?}")),
        }
    }
}

/// Adds what was being done.
pub(crate) trait Step<T> {
    fn failed(self, what: impl Display) -> Result<T, StepError>;
    fn unavailable(self, what: impl Display) -> Result<T, StepError>;
}

impl<T, E: Display> Step<T> for Result<T, E> {
    fn failed(self, what: impl Display) -> Result<T, StepError> {
        self.map_err(|error| StepError::Failed(format!("{what}: {error}")))
    }

    fn unavailable(self, what: impl Display) -> Result<T, StepError> {
        self.map_err(|error| StepError::Unavailable(format!("{what}: {error}")))
    }
}

/// `main` of `podshm-pod`.
pub fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1);
    let verb = args.next().unwrap_or_default();
    let spec = match Spec::from_args(args) {
        Ok(spec) => spec,
        Err(reason) => return supervisor::refuse(&reason),
    };
    match verb.to_str() {
        Some("pod") => supervisor::pod(&spec),
        Some("enter") => supervisor::enter(&spec),
        Some("init") => init::run(&spec),
        Some("stage") => stage::run(&spec),
        _ => supervisor::refuse(&format!("expected pod or enter, found {verb:?}; this is a helper of podshm-testkit")),
    }
}
