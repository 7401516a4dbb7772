"""The Python module in event loops: podshm.aio. See domain.py."""

import asyncio
import contextlib
import time

import podshm
from domain import AGENT, PATIENCE, SERVICES, Domain, Keep, main


class Slow:
    """Takes longer for some calls than anybody waits."""

    def __init__(self):
        self.running = []

    def call(self, request):
        if request.data == b"raise":
            raise ZeroDivisionError
        return self.answer(request)

    async def answer(self, request):
        if request.data != b"slow":
            raise ZeroDivisionError
        self.running.append("slow")
        try:
            await asyncio.sleep(PATIENCE)
        except asyncio.CancelledError:
            self.running.append("cancelled")
            raise


class Loops(Domain):
    def test_many_calls_at_once_from_one_loop(self):
        self.serve_in_thread(Keep())
        call = self.client.call("c")

        async def all_of_them():
            asked = [bytes([n % 256]) * (n * 37 % 3000) + b"end" for n in range(300)]
            found = await asyncio.gather(*(podshm.aio.call(call, one, timeout=PATIENCE) for one in asked))
            self.assertEqual(found, [one[::-1] for one in asked])

        asyncio.run(all_of_them())

    def test_deadlines_and_cancelling(self):
        """Nobody serves."""
        call = self.client.call("c")

        async def both():
            with self.assertRaises(podshm.DeadlineError):
                await podshm.aio.call(call, b"x", timeout=0.05)
            task = asyncio.ensure_future(podshm.aio.call(call, b"y", timeout=PATIENCE))
            await asyncio.sleep(0.05)
            self.assertFalse(task.done())
            task.cancel()
            with self.assertRaises(asyncio.CancelledError):
                await task
            self.assertEqual(len(podshm.aio._out(asyncio.get_running_loop()).calls), 0)
            # The loop was never held up, and still is not.
            with self.assertRaises(TimeoutError):
                await asyncio.wait_for(podshm.aio.call(call, b"z", timeout=PATIENCE), 0.05)

        asyncio.run(both())

    def test_an_agent_in_a_loop_whose_handler_is_a_coroutine(self):
        running = []

        class Slow:
            async def call(self, request):
                running.append(1)
                await asyncio.sleep(0.05)
                if request.data == b"bad":
                    return None
                if request.data == b"fail":
                    raise podshm.Fail(77)
                return b"%d" % len(running)

        async def ask(call, request):
            return await podshm.aio.call(call, request, timeout=PATIENCE)

        async def whole():
            stop, call = asyncio.Event(), self.client.call("c")
            serving = asyncio.ensure_future(podshm.aio.serve(self.agent, Slow(), stop=stop))
            found = await asyncio.gather(*(ask(call, b"x") for _ in range(20)))
            # Each was begun before the first had ended.
            self.assertEqual(found, [b"20"] * 20)
            for request, status in ((b"bad", 1), (b"fail", 77)):
                with self.assertRaises(podshm.FailedError) as raised:
                    await ask(call, request)
                self.assertEqual(raised.exception.status, status)
            await asyncio.sleep(0.1)
            self.assertEqual(await ask(call, b"after a sleep"), b"23")
            stop.set()
            await serving

        asyncio.run(whole())
        with self.assertRaises(podshm.ClosedError):
            self.agent.poll(Keep())

    def ends(self, handler, end, raised, answer=podshm.FailedError):
        """Serves two calls, one of them by a coroutine that takes its time, until `end`; nothing is left of it then."""

        async def whole():
            stop, call = asyncio.Event(), self.client.call("c")
            serving = asyncio.ensure_future(podshm.aio.serve(self.agent, handler, stop=stop))
            slow = asyncio.ensure_future(podshm.aio.call(call, b"slow", timeout=2.0))
            while not handler.running:
                await asyncio.sleep(0.01)
            began = time.monotonic()
            rest = asyncio.ensure_future(end(call, serving, stop))
            with self.assertRaises(raised) if raised else contextlib.nullcontext():
                await serving
            took = time.monotonic() - began
            self.assertEqual(handler.running, ["slow", "cancelled"])
            self.assertEqual(asyncio.all_tasks() - {slow, rest}, {asyncio.current_task()})
            with self.assertRaises(podshm.ClosedError):
                self.agent.fileno()
            with self.assertRaises(answer):
                await slow
            await asyncio.gather(rest, return_exceptions=True)
            return took

        return asyncio.run(whole())

    def test_a_server_that_is_cancelled_leaves_nothing_behind(self):
        async def end(call, serving, stop):
            serving.cancel()

        before = self.agent.epoch
        self.assertLess(self.ends(Slow(), end, asyncio.CancelledError), 0.9)
        successor = podshm.Agent(AGENT, SERVICES, timeout=PATIENCE)
        successor.ready()
        self.agent = successor
        self.serve(Keep(), lambda: self.agent.epoch == before + 1)
        successor.close()

    def test_a_server_whose_handler_raises_leaves_nothing_behind(self):
        async def end(call, serving, stop):
            await podshm.aio.call(call, b"raise", timeout=2.0)

        self.ends(Slow(), end, ZeroDivisionError, podshm.Error)

    def test_a_server_whose_coroutine_raises_leaves_nothing_behind(self):
        async def end(call, serving, stop):
            await podshm.aio.call(call, b"raise later", timeout=2.0)

        self.ends(Slow(), end, ZeroDivisionError, podshm.Error)

    def test_a_coroutine_gets_a_second_at_the_end(self):
        async def end(call, serving, stop):
            stop.set()

        self.assertGreater(self.ends(Slow(), end, None), 0.9)


main()
