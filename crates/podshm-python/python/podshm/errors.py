"""Errors: one class for each kind that the library knows, all of them `Error`."""

from __future__ import annotations

import enum


class ErrorKind(enum.IntEnum):
    """What a caller can do about an error. The numbers are those of the C library."""

    FULL = 1
    DEADLINE = 2
    AGENT_AWAY = 3
    OUTCOME_UNKNOWN = 4
    FORKED = 5
    CONTENDED = 6
    NO_SERVICE = 7
    WRONG_KIND = 8
    TOO_LONG = 9
    BUFFER_TOO_SMALL = 10
    REFUSED = 11
    VERSION = 12
    CORRUPT = 13
    SYSTEM = 14
    TABLE_FULL = 15
    SUPERSEDED = 16
    FAILED = 17
    CANCELLED = 18
    BROKER_AWAY = 19
    REENTERED = 20


class Error(Exception):
    """An error of the library."""

    #: What kind it is; None for what only this language has: ClosedError, BusyError.
    kind: ErrorKind | None = None
    #: How large a buffer would have done, where one was too small.
    needed: int | None = None
    #: What the agent said, where it failed.
    status: int | None = None
    #: What the kernel said, one of the module `errno`'s numbers, where a system call failed.
    errno: int | None = None
    #: How many of several records were accepted, where there was no room for all.
    accepted: int | None = None


class FullError(Error):
    """The ring is full."""


class DeadlineError(Error, TimeoutError):
    """The deadline passed."""


class AgentAwayError(Error, ConnectionError):
    """No agent serves; the call was not sent."""


class OutcomeUnknownError(Error, ConnectionError):
    """The agent changed while the call was out: it may have been handled."""


class ForkedError(Error):
    """The handle came over a fork: join again in the child."""


class ContendedError(Error):
    """A read was overtaken by its writer."""


class NoServiceError(Error, LookupError):
    """No such service."""


class WrongKindError(Error, TypeError):
    """The service is of another kind."""


class TooLongError(Error, ValueError):
    """Longer than the service allows."""


class BufferTooSmallError(Error, ValueError):
    """The buffer is too small: see `needed`."""


class RefusedError(Error, PermissionError):
    """The broker said no."""


class VersionError(Error):
    """Versions don't meet."""


class CorruptError(Error):
    """The peer's memory holds what no correct peer writes."""


class SystemCallError(Error, OSError):
    """A system call failed: see `errno`."""


class TableFullError(Error):
    """The table can't grow."""


class SupersededError(Error):
    """Another agent serves by now: end this one."""


class FailedError(Error):
    """The agent's handler failed, or answered that it can't: see `status`."""


class CancelledError(Error):
    """The call was cancelled."""


class BrokerAwayError(Error, ConnectionError):
    """The broker is away."""


class ReenteredError(Error):
    """The handle is in use further up in the same thread."""


class ClosedError(Error, ValueError):
    """The handle is closed, or its client or agent is."""


class BusyError(Error):
    """The handle is in use by another thread, or by what called this."""


class Fail(Exception):
    """Raised by a handler's `call`: the caller gets FailedError with this status."""

    def __init__(self, status: int = 1) -> None:
        super().__init__(f"failed with status {status}")
        self.podshm_status = status


_CLASSES: dict[int, type[Error]] = {
    0: ClosedError,
    -1: BusyError,
    ErrorKind.FULL: FullError,
    ErrorKind.DEADLINE: DeadlineError,
    ErrorKind.AGENT_AWAY: AgentAwayError,
    ErrorKind.OUTCOME_UNKNOWN: OutcomeUnknownError,
    ErrorKind.FORKED: ForkedError,
    ErrorKind.CONTENDED: ContendedError,
    ErrorKind.NO_SERVICE: NoServiceError,
    ErrorKind.WRONG_KIND: WrongKindError,
    ErrorKind.TOO_LONG: TooLongError,
    ErrorKind.BUFFER_TOO_SMALL: BufferTooSmallError,
    ErrorKind.REFUSED: RefusedError,
    ErrorKind.VERSION: VersionError,
    ErrorKind.CORRUPT: CorruptError,
    ErrorKind.SYSTEM: SystemCallError,
    ErrorKind.TABLE_FULL: TableFullError,
    ErrorKind.SUPERSEDED: SupersededError,
    ErrorKind.FAILED: FailedError,
    ErrorKind.CANCELLED: CancelledError,
    ErrorKind.BROKER_AWAY: BrokerAwayError,
    ErrorKind.REENTERED: ReenteredError,
}
for _number, _class in _CLASSES.items():
    if _number > 0:
        _class.kind = ErrorKind(_number)


def make(kind: int, message: str, needed: int | None, status: int | None, errno: int | None) -> Error:
    """For the library: the exception of this kind."""
    error = _CLASSES.get(kind, Error)(message)
    error.needed = needed
    error.status = status
    error.errno = errno
    return error
