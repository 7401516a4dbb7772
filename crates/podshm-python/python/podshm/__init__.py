"""Fast shared memory between pods on the same node, without giving up the pods' isolation.

    with podshm.join("/run/podshm/routing", timeout=5.0) as client:
        routes = client.table("routes")
        value = routes.get(b"shop/cart:http")          # bytes, or None
        client.queue("reports").push(b"one record")
        answer = client.call("decide").call(b"may alice read?", timeout=0.05)

Agents: `Services`, `Agent`. asyncio: `podshm.aio`. What goes wrong: `podshm.errors`. A handle used after `os.fork` raises ForkedError; the
child joins again.
"""

from __future__ import annotations

import os

from . import aio as aio
from ._podshm import (
    DEFAULT_CALL_RING as DEFAULT_CALL_RING,
    DEFAULT_RING as DEFAULT_RING,
    Agent as Agent,
    Caller as Caller,
    Client as Client,
    Key as Key,
    Later as Later,
    Pending as Pending,
    Progress as Progress,
    Queue as Queue,
    Record as Record,
    Request as Request,
    Services as Services,
    Snapshot as Snapshot,
    Table as Table,
    TableWriter as TableWriter,
    Value as Value,
    __version__ as __version__,
)
from .errors import (
    AgentAwayError as AgentAwayError,
    BrokerAwayError as BrokerAwayError,
    BufferTooSmallError as BufferTooSmallError,
    BusyError as BusyError,
    CancelledError as CancelledError,
    ClosedError as ClosedError,
    ContendedError as ContendedError,
    CorruptError as CorruptError,
    DeadlineError as DeadlineError,
    Error as Error,
    ErrorKind as ErrorKind,
    Fail as Fail,
    FailedError as FailedError,
    ForkedError as ForkedError,
    FullError as FullError,
    NoServiceError as NoServiceError,
    OutcomeUnknownError as OutcomeUnknownError,
    ReenteredError as ReenteredError,
    RefusedError as RefusedError,
    SupersededError as SupersededError,
    SystemCallError as SystemCallError,
    TableFullError as TableFullError,
    TooLongError as TooLongError,
    VersionError as VersionError,
    WrongKindError as WrongKindError,
)


def join(directory: str | os.PathLike[str], *, timeout: float | None = 5.0) -> Client:
    """Joins the domain whose socket is in `directory`. Waits until `timeout` for a broker and an agent to be there."""
    return Client(directory, timeout=timeout)
