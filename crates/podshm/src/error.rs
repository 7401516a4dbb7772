//! One error type, one stable kind per thing that a caller can do about it.

use podshm_layout::ring::{PushError, RingError};
use podshm_layout::table::{ReadError, TableError};
use podshm_proto::RefusalKind;
use std::time::Duration;

/// What went wrong, as a caller sees it. Numbers are stable: they are the C result codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
#[repr(i32)]
pub enum ErrorKind {
    /// The ring is full.
    Full = 1,
    /// The deadline passed.
    Deadline = 2,
    /// No agent serves.
    AgentAway = 3,
    /// The agent changed while the call was out: it may have been handled.
    OutcomeUnknown = 4,
    /// The handle came over a fork.
    Forked = 5,
    /// A read was overtaken by its writer too often.
    Contended = 6,
    /// No such service.
    NoService = 7,
    /// The service is of another kind.
    WrongKind = 8,
    /// Longer than the service allows.
    TooLong = 9,
    /// The caller's buffer is too small.
    BufferTooSmall = 10,
    /// The broker said no.
    Refused = 11,
    /// Versions don't meet.
    Version = 12,
    /// The peer's memory holds what no correct peer writes.
    Corrupt = 13,
    /// A system call failed.
    System = 14,
    /// The table can't grow.
    TableFull = 15,
    /// Another agent serves by now.
    Superseded = 16,
    /// The agent's handler failed, or answered that it can't.
    Failed = 17,
    /// The call was cancelled.
    Cancelled = 18,
    /// The broker is away.
    BrokerAway = 19,
    /// The handle is in use further up in the same thread.
    Reentered = 20,
}

impl ErrorKind {
    /// All of them, for languages that have numbers or classes for each.
    pub const ALL: &[ErrorKind] = &[
        ErrorKind::Full,
        ErrorKind::Deadline,
        ErrorKind::AgentAway,
        ErrorKind::OutcomeUnknown,
        ErrorKind::Forked,
        ErrorKind::Contended,
        ErrorKind::NoService,
        ErrorKind::WrongKind,
        ErrorKind::TooLong,
        ErrorKind::BufferTooSmall,
        ErrorKind::Refused,
        ErrorKind::Version,
        ErrorKind::Corrupt,
        ErrorKind::System,
        ErrorKind::TableFull,
        ErrorKind::Superseded,
        ErrorKind::Failed,
        ErrorKind::Cancelled,
        ErrorKind::BrokerAway,
        ErrorKind::Reentered,
    ];
}

/// An error of the library.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A record could not be written.
    #[error(transparent)]
    Push(#[from] PushError),
    /// A ring holds what no correct producer writes.
    #[error(transparent)]
    Ring(#[from] RingError),
    /// A read failed.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// A publication failed.
    #[error(transparent)]
    Table(#[from] TableError),
    /// A region was not what it must be.
    #[error(transparent)]
    Region(#[from] podshm_region::RegionError),
    /// A region is written at a layout that this participant does not speak.
    #[error(transparent)]
    Layout(#[from] podshm_layout::UnknownLayout),
    /// The deadline passed.
    #[error(
        "{what} did not happen within {waited:?}; try again with a longer deadline, or see whether the agent is at work"
    )]
    Deadline {
        /// What was waited for.
        what: &'static str,
        /// How long.
        waited: Duration,
    },
    /// No agent serves.
    #[error("no agent serves this domain now; the call was not sent, try again when it is back")]
    AgentAway,
    /// The agent changed while the call was out.
    #[error(
        "the agent was replaced while this call was out: it may or may not have been handled; ask before repeating it"
    )]
    OutcomeUnknown,
    /// The handle came over a fork.
    #[error("this handle belongs to the process that forked; join again in the child")]
    Forked,
    /// No such service.
    #[error("no service {name:?} in domain {domain:?}: it offers {offered}")]
    NoService {
        /// The name asked for.
        name: String,
        /// The domain.
        domain: String,
        /// What there is.
        offered: String,
    },
    /// The service is of another kind.
    #[error("service {name:?} is a {found:?}, expected a {expected:?}")]
    WrongKind {
        /// The name.
        name: String,
        /// What it is.
        found: podshm_proto::ServiceKind,
        /// What was asked for.
        expected: podshm_proto::ServiceKind,
    },
    /// A message longer than the service allows.
    #[error("{what} of {found} bytes: the service allows {most}")]
    TooLong {
        /// Request or response.
        what: &'static str,
        /// Its length.
        found: usize,
        /// The limit.
        most: usize,
    },
    /// The response does not fit the caller's buffer.
    #[error("response of {needed} bytes: the buffer has {found}; pass a larger one")]
    BufferTooSmall {
        /// Its length.
        needed: usize,
        /// The buffer's.
        found: usize,
    },
    /// The broker said no.
    #[error("broker refused: {message}")]
    Refused {
        /// Kind of no.
        kind: RefusalKind,
        /// Why.
        message: String,
    },
    /// The broker sent what makes no sense.
    #[error("broker's message is wrong: {0}")]
    Protocol(String),
    /// A system call failed.
    #[error("{what}: {source}")]
    System {
        /// What was being done.
        what: String,
        /// The kernel's answer.
        source: std::io::Error,
    },
    /// The agent's handler failed.
    #[error("the agent could not handle the call (status {status})")]
    Failed {
        /// What it said.
        status: u32,
    },
    /// The call was cancelled.
    #[error("the call was cancelled")]
    Cancelled,
    /// Another agent serves by now.
    #[error("another agent serves this domain by now; end this one")]
    Superseded,
    /// The handle is in use further up in the same thread.
    #[error(transparent)]
    Reentered(#[from] podshm_region::biased::Reentered),
    /// The broker is away.
    #[error("the broker is away; {what} needs it, try again when it is back")]
    BrokerAway {
        /// What needs it.
        what: &'static str,
    },
}

impl Error {
    /// What the caller can do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Error::Push(PushError::Full { .. }) => ErrorKind::Full,
            Error::Push(PushError::TooLong { .. }) | Error::TooLong { .. } => ErrorKind::TooLong,
            Error::Table(TableError::Key { .. } | TableError::Value { .. }) => ErrorKind::TooLong,
            Error::Table(_) => ErrorKind::TableFull,
            Error::Read(ReadError::Contended(_) | ReadError::Changed) => ErrorKind::Contended,
            Error::Read(ReadError::BufferTooSmall { .. } | ReadError::OutOfValue { .. })
            | Error::BufferTooSmall { .. } => ErrorKind::BufferTooSmall,
            Error::Push(_) | Error::Ring(_) | Error::Read(_) | Error::Protocol(_) | Error::Region(_) => {
                ErrorKind::Corrupt
            }
            Error::Deadline { .. } => ErrorKind::Deadline,
            Error::AgentAway => ErrorKind::AgentAway,
            Error::OutcomeUnknown => ErrorKind::OutcomeUnknown,
            Error::Forked => ErrorKind::Forked,
            Error::NoService { .. } => ErrorKind::NoService,
            Error::WrongKind { .. } => ErrorKind::WrongKind,
            Error::Layout(_) | Error::Refused { kind: RefusalKind::Version, .. } => ErrorKind::Version,
            Error::Refused { .. } => ErrorKind::Refused,
            Error::System { .. } => ErrorKind::System,
            Error::Failed { .. } => ErrorKind::Failed,
            Error::Cancelled => ErrorKind::Cancelled,
            Error::Superseded => ErrorKind::Superseded,
            Error::BrokerAway { .. } => ErrorKind::BrokerAway,
            Error::Reentered(_) => ErrorKind::Reentered,
        }
    }

    /// How large a buffer would have done, where one was too small.
    pub fn needed(&self) -> Option<usize> {
        match self {
            Error::Read(ReadError::BufferTooSmall { needed, .. }) | Error::BufferTooSmall { needed, .. } => {
                Some(*needed)
            }
            _ => None,
        }
    }

    /// Whether it says that the broker has hung up.
    pub(crate) fn is_hang_up(&self) -> bool {
        match self {
            Error::BrokerAway { .. } => true,
            Error::System { source, .. } => matches!(
                source.kind(),
                std::io::ErrorKind::BrokenPipe | std::io::ErrorKind::ConnectionReset | std::io::ErrorKind::NotConnected
            ),
            _ => false,
        }
    }

    pub(crate) fn system(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Error {
        let what = what.into();
        move |source| Error::System { what, source }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers are without gaps, so that the one after the last says that a kind was added and `ALL` was not.
    #[test]
    fn all_kinds_are_listed_by_number() {
        for (at, kind) in ErrorKind::ALL.iter().enumerate() {
            assert_eq!(*kind as usize, at + 1, "{kind:?}");
        }
        let source = include_str!("error.rs");
        let numbered = source.lines().filter(|line| line.starts_with("    ") && line.ends_with(','));
        let numbered = numbered
            .filter(|line| line.split_once(" = ").is_some_and(|(_, n)| n.trim_end_matches(',').parse::<u32>().is_ok()));
        assert_eq!(numbered.count(), ErrorKind::ALL.len(), "a kind is missing in ErrorKind::ALL");
    }
}
