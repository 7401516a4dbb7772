"""asyncio: calls that are awaited, and an agent in an event loop.

    response = await podshm.aio.call(caller, b"may alice read?", timeout=0.05)
    await podshm.aio.serve(agent, handler)

No thread is started for it: the loop waits for descriptors.
"""

from __future__ import annotations

import asyncio
import inspect
import weakref
from typing import Any

from ._podshm import Agent, Caller, Calls, Later, Progress
from .errors import Fail

#: Rounds with work before other tasks of the loop get their turn.
_ROUNDS = 16

#: Seconds that coroutines get at the end: as long as `Agent.close` waits for answers.
_PATIENCE = 1.0


class _Out:
    """The calls of one loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.calls = Calls()
        self.futures: dict[int, asyncio.Future[bytes]] = {}
        loop.add_reader(self.calls.fileno(), self.ready)

    def ready(self) -> None:
        for token, response, error in self.calls.ready():
            future = self.futures.pop(token, None)
            if future is None or future.done():
                continue
            if error is not None:
                future.set_exception(error)
            elif response is not None:
                future.set_result(response)


_loops: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _Out] = weakref.WeakKeyDictionary()


def _out(loop: asyncio.AbstractEventLoop) -> _Out:
    out = _loops.get(loop)
    if out is None:
        out = _loops[loop] = _Out(loop)
    return out


async def call(caller: Caller, request: Any, *, timeout: float | None = 5.0) -> bytes:
    """`Caller.call` without holding up the loop. Cancelling it cancels the call."""
    loop = asyncio.get_running_loop()
    out = _out(loop)
    token, response = out.calls.begin(caller, request, timeout)
    if response is not None:
        return response
    future: asyncio.Future[bytes] = loop.create_future()
    out.futures[token] = future
    try:
        return await future
    finally:
        if out.futures.pop(token, None) is not None:
            out.calls.cancel(token)


class _Coroutines:
    """A handler whose `call` may be a coroutine: what it returns is the answer."""

    def __init__(self, handler: Any, something: asyncio.Event) -> None:
        self.record = getattr(handler, "record", None)
        self.part = getattr(handler, "part", None)
        self.call = None if getattr(handler, "call", None) is None else self.answer
        self.handler = handler
        self.something = something
        self.tasks: set[asyncio.Task[None]] = set()
        self.raised: Exception | None = None

    def answer(self, request: Any) -> Any:
        response = self.handler.call(request)
        if not inspect.isawaitable(response):
            return response
        later = Later()
        task = asyncio.ensure_future(self.finish(response, later))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return later

    async def finish(self, response: Any, later: Later) -> None:
        try:
            given = await response
            if given is None:
                later.fail()
            else:
                later.reply(given)
        except Fail as failure:
            later.fail(failure.podshm_status)
        except Exception as error:
            later.fail()
            self.raised = self.raised or error
            self.something.set()
        except BaseException:
            later.fail()
            raise

    async def end(self, patience: float) -> None:
        """Waits for those that are at it; what is left then is cancelled, and so fails its call."""
        if self.tasks and patience:
            await asyncio.wait(self.tasks, timeout=patience)
        for task in self.tasks:
            task.cancel()
        if self.tasks:
            await asyncio.wait(self.tasks, timeout=_PATIENCE)


async def serve(agent: Agent, handler: Any, *, stop: asyncio.Event | None = None) -> None:
    """Serves until `stop` is set or a successor is ready, then closes in order. A handler's `call` may be a coroutine; at the end those that
    are at it get a second before they are cancelled, which fails their calls.

    Cancelled, it closes in order, too, without that second. Where the handler raises, in a coroutine or not, that comes out of here, and the
    agent hangs up as one that has crashed. No way out of here leaves the agent open, or a task behind.
    """
    something = asyncio.Event()
    functions = _Coroutines(handler, something)
    patience: float = 0
    raised: type[BaseException] | None = None
    try:
        await _rounds(agent, functions, stop)
        patience = _PATIENCE
    except asyncio.CancelledError:
        raise
    except BaseException as error:
        raised = type(error)
        raise
    finally:
        try:
            await functions.end(patience)
        finally:
            agent.__exit__(raised, None, None)


async def _rounds(agent: Agent, functions: _Coroutines, stop: asyncio.Event | None) -> None:
    """Until `stop` is set or a successor is ready."""
    loop, something = asyncio.get_running_loop(), functions.something
    stopped = None
    if stop is not None:
        stopped = asyncio.ensure_future(stop.wait())
        stopped.add_done_callback(lambda _: something.set())
    descriptor = agent.fileno()
    try:
        while stop is None or not stop.is_set():
            if functions.raised is not None:
                raise functions.raised
            progress = Progress.IDLE
            for _ in range(_ROUNDS):
                progress = agent.poll(functions)
                if progress != Progress.HANDLED:
                    break
            if progress == Progress.CLOSE_ASKED:
                return
            if progress == Progress.HANDLED or not agent.park():
                await asyncio.sleep(0)
                continue
            something.clear()
            loop.add_reader(descriptor, something.set)
            try:
                await something.wait()
            finally:
                # It stays readable until the agent has looked.
                loop.remove_reader(descriptor)
    finally:
        if stopped is not None:
            stopped.cancel()
