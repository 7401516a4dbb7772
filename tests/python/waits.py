"""The Python module while it waits: other threads run, and Ctrl-C is heard. See domain.py."""

import contextlib
import os
import signal
import threading
import time

import podshm
from domain import AGENT, BROKER, CLIENT, PATIENCE, SERVICES, Domain, Keep, main

#: A wait that does not hear it lasts for longer.
SOON = 3.0


@contextlib.contextmanager
def stopped_broker():
    os.kill(BROKER, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(BROKER, signal.SIGCONT)


class Ticks:
    """A thread that counts while the interpreter lets it."""

    def __init__(self):
        self.count = 0
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self.run)

    def run(self):
        while not self.stop.wait(0.01):
            self.count += 1

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.stop.set()
        self.thread.join()


class Others(Domain):
    def test_a_table_that_grows_lets_others_run(self):
        """Growing waits for the broker, which here does not come to it for a while."""
        table, large = self.agent.table("t"), bytes(60000)
        for change in (lambda n: table.put(b"put-%d" % n, large), lambda n: table.publish({b"publish-%d" % n: large})):
            seen = []
            with Ticks() as ticks, stopped_broker():

                def let_go():
                    seen.append(ticks.count)
                    time.sleep(0.5)
                    seen.append(ticks.count)
                    os.kill(BROKER, signal.SIGCONT)

                timer = threading.Timer(0.1, let_go)
                timer.start()
                began = time.monotonic()
                for n in range(100):
                    change(n)
                    took = time.monotonic() - began
                    if took > 0.4:
                        break
                timer.join()
            self.assertTrue(0.4 < took < SOON, took)
            self.assertGreater(seen[1] - seen[0], 10, seen)


class CtrlC(Domain):
    def interrupt(self, work):
        """What is left after Ctrl-C in the midst of it: nothing, and soon."""
        began = time.monotonic()
        threading.Timer(0.2, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
        with self.assertRaises(KeyboardInterrupt):
            work()
        took = time.monotonic() - began
        self.assertTrue(0.15 < took < SOON, took)

    def test_a_call_hears_it_and_is_over(self):
        """Nobody serves."""
        for spin in (None, 0.0, float("inf")):
            call = self.client.call("c", spin=spin)
            self.interrupt(lambda: call.call(b"x", timeout=PATIENCE))
            self.interrupt(lambda: call.call_into(b"x", bytearray(9), timeout=PATIENCE))
            pending = call.start(b"x", timeout=PATIENCE)
            self.interrupt(pending.wait)
            with self.assertRaises(podshm.ClosedError):
                pending.take()
        keep = Keep()
        # The agent may find them; their callers don't, and the next call is answered as if nothing had been.
        found = []
        thread = threading.Thread(target=lambda: found.append(call.call(b"abc", timeout=PATIENCE)))
        thread.start()
        self.serve(keep, lambda: found)
        thread.join()
        self.assertEqual(found, [b"cba"])

    def test_a_call_without_room_hears_it(self):
        call, out = self.client.call("c"), []
        with self.assertRaises(podshm.DeadlineError):
            for _ in range(100):
                out.append(call.start(bytes(4000), timeout=0.1))
        self.interrupt(lambda: call.start(bytes(4000), timeout=PATIENCE))
        self.interrupt(lambda: call.call(bytes(60000), timeout=PATIENCE))

    def test_joining_and_connecting_hear_it(self):
        nowhere = os.path.join(CLIENT, "nowhere")
        self.interrupt(lambda: podshm.join(nowhere, timeout=PATIENCE))
        self.interrupt(lambda: podshm.Agent(nowhere, SERVICES, timeout=PATIENCE))
        with stopped_broker():
            self.interrupt(lambda: podshm.join(CLIENT, timeout=PATIENCE))
            self.interrupt(lambda: podshm.Agent(AGENT, SERVICES, timeout=PATIENCE))

    def test_a_handler_of_another_signal_runs_and_the_wait_goes_on(self):
        heard, call = [], self.client.call("c")

        def other(number, frame):
            # The library is free to be used in it.
            with self.assertRaises(podshm.DeadlineError):
                self.client.call("c").call(b"y", timeout=0.01)
            heard.append(number)

        before = signal.signal(signal.SIGUSR1, other)
        self.addCleanup(signal.signal, signal.SIGUSR1, before)
        threading.Timer(0.1, lambda: os.kill(os.getpid(), signal.SIGUSR1)).start()
        stop = threading.Event()

        def serve():
            while not stop.is_set():
                if heard:
                    self.agent.poll(Keep())
                time.sleep(0.001)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            self.assertEqual(call.call(b"abc", timeout=PATIENCE), b"cba")
        finally:
            stop.set()
            thread.join()
        self.assertEqual(heard, [signal.SIGUSR1])


class Forks(Domain):
    def test_a_child_knows_the_agent_for_its_parents_while_another_thread_serves(self):
        leave, found = threading.Event(), []

        def hold():
            while not leave.is_set():
                with contextlib.suppress(podshm.BusyError):
                    self.agent.wait(PATIENCE)

        def fork():
            child = os.fork()
            if not child:
                status = 1
                try:
                    signal.alarm(60)
                    for use in (self.agent.ready, lambda: self.agent.epoch, lambda: self.agent.poll(Keep()), self.agent.close):
                        try:
                            use()
                            status = 2
                        except podshm.ForkedError:
                            continue
                        except podshm.Error as error:
                            print(repr(error), flush=True)
                            status = 3
                        break
                    else:
                        status = 0
                finally:
                    os._exit(status)
            found.append(os.waitpid(child, 0)[1])

        self.serve(Keep(), lambda: self.agent.epoch > 0 and self.agent.clients == 1)
        holder = threading.Thread(target=hold)
        holder.start()
        end = time.monotonic() + PATIENCE
        while True:
            self.assertLess(time.monotonic(), end)
            try:
                self.agent.epoch
            except podshm.BusyError:
                break
            time.sleep(0.01)
        forker = threading.Thread(target=fork)
        forker.start()
        forker.join()
        # For the one that holds it to go on.
        leave.set()
        self.client.queue("q").push(b"x")
        holder.join()
        self.assertEqual(found, [0])


main()
