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

#: Rounds with work before other tasks of the loop get their turn.
_ROUNDS = 16


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

    def __init__(self, handler: Any) -> None:
        self.record = getattr(handler, "record", None)
        self.part = getattr(handler, "part", None)
        self.call = None if getattr(handler, "call", None) is None else self.answer
        self.handler = handler
        self.tasks: set[asyncio.Task[None]] = set()

    def answer(self, request: Any) -> Any:
        response = self.handler.call(request)
        if not inspect.isawaitable(response):
            return response
        later = Later()
        task = asyncio.ensure_future(self.finish(response, later))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return later

    @staticmethod
    async def finish(response: Any, later: Later) -> None:
        try:
            given = await response
        except BaseException:
            later.fail()
            raise
        if given is None:
            later.fail()
        else:
            later.reply(given)


async def serve(agent: Agent, handler: Any, *, stop: asyncio.Event | None = None) -> None:
    """Serves until `stop` is set or a successor is ready, then closes in order. A handler's `call` may be a coroutine."""
    loop = asyncio.get_running_loop()
    functions = _Coroutines(handler)
    something = asyncio.Event()
    stopped = asyncio.ensure_future(stop.wait()) if stop is not None else None
    descriptor = agent.fileno()
    try:
        while stop is None or not stop.is_set():
            progress = Progress.IDLE
            for _ in range(_ROUNDS):
                progress = agent.poll(functions)
                if progress != Progress.HANDLED:
                    break
            if progress == Progress.CLOSE_ASKED:
                break
            if progress == Progress.HANDLED or not agent.park():
                await asyncio.sleep(0)
                continue
            loop.add_reader(descriptor, something.set)
            something.clear()
            waits = {asyncio.ensure_future(something.wait())}
            if stopped is not None:
                waits.add(stopped)
            _, pending = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            for wait in pending - {stopped}:
                wait.cancel()
            # It stays readable until the agent has looked.
            loop.remove_reader(descriptor)
    finally:
        loop.remove_reader(descriptor)
        if stopped is not None:
            stopped.cancel()
    if functions.tasks:
        await asyncio.wait(functions.tasks, timeout=1.0)
    agent.close()
