"""What the tests of the Python module stand on: an agent and a client of one domain, in this process.

    TEST.py AGENT-DIRECTORY CLIENT-DIRECTORY BROKER-PID [unittest arguments]
"""

import sys
import threading
import time
import unittest

import podshm

PATIENCE = 30.0
AGENT, CLIENT = sys.argv[1:3]
BROKER = int(sys.argv[3])
SERVICES = podshm.Services().table("t", keys=100, bytes=1 << 16).queue("q", ring=16384, longest=4096)
SERVICES.call("c", ring=16384, longest=65536).call("again", ring=16384, longest=65536, idempotent=True)


class Keep:
    """A handler that keeps what it gets, and answers by what a test gives it."""

    def __init__(self, answers=lambda request: request.data[::-1]):
        self.records = []
        self.answers = answers

    def record(self, record):
        self.records.append(record)

    def call(self, request):
        return self.answers(request)


class Domain(unittest.TestCase):
    def setUp(self):
        self.agent = podshm.Agent(AGENT, SERVICES, timeout=PATIENCE)
        self.agent.ready()
        self.addCleanup(lambda: self.agent.__exit__(None, None, None))
        joined = []
        thread = threading.Thread(target=lambda: joined.append(podshm.join(CLIENT, timeout=PATIENCE)))
        thread.start()
        while thread.is_alive():
            self.agent.poll(Keep())
            self.agent.wait(0.001)
        self.client = joined[0]
        self.addCleanup(self.client.close)

    def serve(self, handler, good):
        """Serves here until something is so."""
        end = time.monotonic() + PATIENCE
        while not good():
            self.assertLess(time.monotonic(), end)
            self.agent.poll(handler)
            self.agent.wait(0.001)

    def serve_in_thread(self, handler):
        stop = threading.Event()
        thread = threading.Thread(target=lambda: self.run_until(handler, stop))
        thread.start()
        self.addCleanup(lambda: (stop.set(), thread.join()))

    def run_until(self, handler, stop):
        while not stop.is_set():
            if self.agent.poll(handler) == podshm.Progress.IDLE:
                self.agent.wait(0.005)


def main():
    """Runs the tests of the program."""
    unittest.main(argv=[sys.argv[0], *sys.argv[4:]], verbosity=2)
