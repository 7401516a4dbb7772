"""The agent's half."""

import signal
import threading
import time

import podshm
from conform_common import PATIENCE, answer, check, in_child, key, made


class Keep:
    """What it does with what comes."""

    def __init__(self, control):
        self.how = "at-once"
        #: Bytes that an answer has beyond its request's.
        self.more = 0
        self.records = []
        self.gathered = b""
        self.parts = 0
        self.control = control

    def record(self, record):
        self.records.append((record.service, record.data))

    def part(self, request, offset):
        if self.how != "parts":
            return False
        self.gathered = (b"" if offset == 0 else self.gathered) + request.data
        self.parts += 1
        return True

    def call(self, request):
        asked = request.data or self.gathered[: request.total]
        response = asked[::-1] + bytes(self.more)
        if self.how in ("at-once", "parts"):
            return response
        if self.how == "in-place":
            return memoryview(bytearray(response))
        if self.how == "later":
            later = podshm.Later()
            threading.Thread(target=lambda: (time.sleep(0.005), later.reply(response))).start()
            return later
        if self.how.startswith("late-fail:"):
            later, status = podshm.Later(), int(self.how.removeprefix("late-fail:"))
            threading.Thread(target=lambda: (time.sleep(0.005), later.fail(status))).start()
            return later
        if self.how == "nothing":
            return None
        if self.how == "hang":
            # In place of whoever reads the next command.
            self.control.sendall(b"ok\n")
            while True:
                signal.pause()
        raise podshm.Fail(int(self.how.removeprefix("fail:")))


class Serving:
    def __init__(self, directory, control):
        self.directory = directory
        self.keep = Keep(control)
        self.agent = None
        self.serves = False
        self.closed = False
        self.behind = b""

    def follow(self, words):
        what, rest = words[0], words[1:]
        if what == "fork":
            return in_child(lambda: self.follow(rest))
        method = getattr(self, what.replace("-", "_"), None)
        return "no such command" if method is None else answer(method, *rest)

    def round(self):
        if self.serves:
            self.poll()
        return self.serves

    def connect(self, *services):
        offer = podshm.Services()
        for service in services:
            name, kind, first, second = service.split(":")
            first, second = int(first), int(second)
            if kind == "table":
                offer.table(name, keys=first, bytes=second)
            elif kind == "queue":
                offer.queue(name, ring=first, longest=second)
            else:
                offer.call(name, ring=first, longest=second, idempotent=kind == "idempotent")
        self.agent = podshm.Agent(self.directory, offer, timeout=PATIENCE)

    def put(self, table, name, length, seed):
        self.agent.table(table).put(key(name), made(int(length), int(seed)))

    def remove(self, table, name):
        return "ok" if self.agent.table(table).remove(key(name)) else "not found"

    def put_many(self, table, count, length):
        writer = self.agent.table(table)
        for n in range(int(count)):
            writer[b"key-%d" % n] = made(int(length), n)

    def publish(self, table, *changes):
        groups = [changes[at : at + 3] for at in range(0, len(changes), 3)]
        self.agent.table(table).publish({key(name): made(int(length), int(seed)) for name, length, seed in groups})

    def ready(self):
        self.agent.ready()

    def serve(self):
        self.serves = True

    def pause(self):
        self.serves = False

    def poll(self):
        progress = self.agent.poll(self.keep)
        if progress == podshm.Progress.IDLE:
            self.agent.wait(0.001)
        elif progress == podshm.Progress.CLOSE_ASKED:
            self.agent.close(self.behind)
            self.serves, self.closed = False, True

    def until(self, good):
        """Serves until something is so."""
        end = time.monotonic() + PATIENCE
        while not good():
            if time.monotonic() > end or not self.round():
                return "ok" if good() else "it did not happen"
        return "ok"

    def expect(self, queue, count, length, seed):
        """Waits for so many more records of a queue, which follow one another."""
        count, length, seed = int(count), int(length), int(seed)
        found = lambda: sum(name == queue for name, _ in self.keep.records)
        self.until(lambda: found() >= count)
        if found() < count:
            return f"{found()} records"
        answered, taken, rest = "ok", 0, []
        for name, data in self.keep.records:
            if name == queue and taken < count:
                checked = check(data, made(length, seed + taken))
                answered = answered if checked == "ok" else checked
                taken += 1
            else:
                rest.append((name, data))
        self.keep.records = rest
        return answered

    def answer(self, how):
        self.keep.how, _, more = how.partition("+")
        self.keep.more = int(more or 0)

    def parts(self):
        return "several" if self.keep.parts > 1 else "none"

    def hangs(self):
        return self.until(lambda: False)

    def leave(self, *words):
        self.behind = " ".join(words).encode()

    def close(self, *words):
        self.serves, self.closed = False, True
        self.agent.close(" ".join(words).encode())

    def epoch(self):
        return str(self.agent.epoch)

    def close_with(self, length, seed):
        self.agent.close(made(int(length), int(seed)))
        self.serves, self.closed = False, True

    def inherited_is(self, length, seed):
        state = self.agent.inherited_state
        return "not yet" if state is None else check(state, made(int(length), int(seed)))

    def inherited(self):
        state = self.agent.inherited_state
        if state is None:
            return "not yet"
        return state.decode() or "nothing"

    def await_closed(self):
        return self.until(lambda: self.closed)

    def await_serving(self):
        return self.until(lambda: self.agent.epoch > 0)
