//! What functions return.

use crate::last::Fault;
use podshm::ErrorKind;
use std::ffi::{CStr, c_char};

/// What came of a call. Numbers keep their meaning; later releases may add some: treat one that you don't know as a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub enum podshm_result {
    /// It is done.
    PODSHM_OK = 0,
    /// The ring is full.
    PODSHM_FULL = 1,
    /// The deadline passed.
    PODSHM_DEADLINE = 2,
    /// No agent serves; what was to be sent was not.
    PODSHM_AGENT_AWAY = 3,
    /// The agent was replaced while the call was out: it may have been handled.
    PODSHM_OUTCOME_UNKNOWN = 4,
    /// The handle belongs to the process that forked; join again in the child.
    PODSHM_FORKED = 5,
    /// A read was overtaken by its writer too often, or what was read at several moments has changed between them.
    PODSHM_CONTENDED = 6,
    /// No such service.
    PODSHM_NO_SERVICE = 7,
    /// The service is of another kind.
    PODSHM_WRONG_KIND = 8,
    /// Longer than the service allows.
    PODSHM_TOO_LONG = 9,
    /// The buffer is too small; the length that is returned is what it takes.
    PODSHM_BUFFER_TOO_SMALL = 10,
    /// The broker said no; the message says why.
    PODSHM_REFUSED = 11,
    /// Versions don't meet.
    PODSHM_VERSION = 12,
    /// The peer's memory holds what no correct peer writes.
    PODSHM_CORRUPT = 13,
    /// A system call failed: see podshm_last_errno().
    PODSHM_SYSTEM = 14,
    /// The table can't grow.
    PODSHM_TABLE_FULL = 15,
    /// Another agent serves by now: end this one.
    PODSHM_SUPERSEDED = 16,
    /// The agent could not handle the call: see podshm_last_status().
    PODSHM_FAILED = 17,
    /// The call was cancelled.
    PODSHM_CANCELLED = 18,
    /// The broker is away.
    PODSHM_BROKER_AWAY = 19,
    /// The handle is in use further up in the same thread.
    PODSHM_REENTERED = 20,
    /// There is no such key.
    PODSHM_NOT_FOUND = 64,
    /// The response has not come yet.
    PODSHM_NOT_YET = 65,
    /// A pointer is null, misaligned or absurd, or a length is.
    PODSHM_BAD_ARGUMENT = 66,
    /// This is no handle, or one that was freed.
    PODSHM_BAD_HANDLE = 67,
    /// This is a handle of another kind: a reader can't write.
    PODSHM_WRONG_ROLE = 68,
    /// The handle belongs to another thread.
    PODSHM_WRONG_THREAD = 69,
    /// The handle is in use by another thread or further up in this one.
    PODSHM_BUSY = 70,
    /// The handle has ended: what it stood for was closed, taken or answered.
    PODSHM_ENDED = 71,
    /// A defect of the library: please report it. What was touched is not to be relied on.
    PODSHM_PANIC = 72,
    /// An error that this release of the C interface has no number for.
    PODSHM_OTHER = 73,
}
use podshm_result::*;

/// All of them with their names.
const NAMES: &[(podshm_result, &CStr)] = &[
    (PODSHM_OK, c"PODSHM_OK"),
    (PODSHM_FULL, c"PODSHM_FULL"),
    (PODSHM_DEADLINE, c"PODSHM_DEADLINE"),
    (PODSHM_AGENT_AWAY, c"PODSHM_AGENT_AWAY"),
    (PODSHM_OUTCOME_UNKNOWN, c"PODSHM_OUTCOME_UNKNOWN"),
    (PODSHM_FORKED, c"PODSHM_FORKED"),
    (PODSHM_CONTENDED, c"PODSHM_CONTENDED"),
    (PODSHM_NO_SERVICE, c"PODSHM_NO_SERVICE"),
    (PODSHM_WRONG_KIND, c"PODSHM_WRONG_KIND"),
    (PODSHM_TOO_LONG, c"PODSHM_TOO_LONG"),
    (PODSHM_BUFFER_TOO_SMALL, c"PODSHM_BUFFER_TOO_SMALL"),
    (PODSHM_REFUSED, c"PODSHM_REFUSED"),
    (PODSHM_VERSION, c"PODSHM_VERSION"),
    (PODSHM_CORRUPT, c"PODSHM_CORRUPT"),
    (PODSHM_SYSTEM, c"PODSHM_SYSTEM"),
    (PODSHM_TABLE_FULL, c"PODSHM_TABLE_FULL"),
    (PODSHM_SUPERSEDED, c"PODSHM_SUPERSEDED"),
    (PODSHM_FAILED, c"PODSHM_FAILED"),
    (PODSHM_CANCELLED, c"PODSHM_CANCELLED"),
    (PODSHM_BROKER_AWAY, c"PODSHM_BROKER_AWAY"),
    (PODSHM_REENTERED, c"PODSHM_REENTERED"),
    (PODSHM_NOT_FOUND, c"PODSHM_NOT_FOUND"),
    (PODSHM_NOT_YET, c"PODSHM_NOT_YET"),
    (PODSHM_BAD_ARGUMENT, c"PODSHM_BAD_ARGUMENT"),
    (PODSHM_BAD_HANDLE, c"PODSHM_BAD_HANDLE"),
    (PODSHM_WRONG_ROLE, c"PODSHM_WRONG_ROLE"),
    (PODSHM_WRONG_THREAD, c"PODSHM_WRONG_THREAD"),
    (PODSHM_BUSY, c"PODSHM_BUSY"),
    (PODSHM_ENDED, c"PODSHM_ENDED"),
    (PODSHM_PANIC, c"PODSHM_PANIC"),
    (PODSHM_OTHER, c"PODSHM_OTHER"),
];

impl podshm_result {
    /// The number of an error's kind is its result.
    pub(crate) fn of(kind: ErrorKind) -> podshm_result {
        let is_its_number =
            |(result, _): &&(podshm_result, &CStr)| *result as i32 == kind as i32 && *result != PODSHM_OK;
        NAMES.iter().find(is_its_number).map_or(PODSHM_OTHER, |(result, _)| *result)
    }
}

impl Fault {
    #[inline]
    pub(crate) fn result(&self) -> podshm_result {
        match self {
            Fault::Library(error) => podshm_result::of(error.kind()),
            Fault::NotFound => PODSHM_NOT_FOUND,
            Fault::NotYet => PODSHM_NOT_YET,
            Fault::Argument { .. } => PODSHM_BAD_ARGUMENT,
            Fault::NoHandle { .. } | Fault::Freed { .. } => PODSHM_BAD_HANDLE,
            Fault::Role { .. } => PODSHM_WRONG_ROLE,
            Fault::Thread { .. } => PODSHM_WRONG_THREAD,
            Fault::Busy { .. } => PODSHM_BUSY,
            Fault::Ended { .. } => PODSHM_ENDED,
            Fault::Panic(_) => PODSHM_PANIC,
        }
    }
}

/// Name of a result, as in this header; "unknown" for a number that this release doesn't know. Never null, never to be freed.
#[unsafe(no_mangle)]
pub extern "C" fn podshm_result_name(result: i32) -> *const c_char {
    let found = NAMES.iter().find(|(known, _)| *known as i32 == result);
    found.map_or(c"unknown", |(_, name)| *name).as_ptr()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_its_result() {
        for kind in ErrorKind::ALL {
            let result = podshm_result::of(*kind);
            assert_eq!(result as i32, *kind as i32, "{kind:?}: add it to podshm_result");
            let name = NAMES.iter().find(|(known, _)| *known == result).unwrap().1.to_str().unwrap();
            let same = name.strip_prefix("PODSHM_").unwrap().replace('_', "");
            assert_eq!(same, format!("{kind:?}").to_uppercase());
        }
        let kinds = NAMES.iter().filter(|(result, _)| (1..64).contains(&(*result as i32))).count();
        assert_eq!(kinds, ErrorKind::ALL.len());
    }

    #[test]
    fn names_are_those_of_the_variants() {
        for (result, name) in NAMES {
            assert_eq!(format!("{result:?}"), name.to_str().unwrap());
        }
    }
}
