"""The client's half."""

import asyncio
import math
import os
import select

import podshm
from conform_common import PATIENCE, answer, check, in_child, in_children, key, made, until

ENDED = "error ENDED"


class Joined:
    def __init__(self, directory):
        self.directory = directory
        self.client = None
        self.handles = {}
        self.pending = None
        self.expected = b""
        self.spin = None
        self.waits = False

    def round(self):
        return False

    def follow(self, words):
        what, rest = words[0], words[1:]
        if what == "fork":
            return in_child(lambda: self.as_child(rest))
        if what == "prefork":
            return in_children(int(rest[0]), lambda: self.as_child(rest[1:]))
        # Two commands have the names of what they change.
        name = {"keys": "keys_in", "spin": "spin_for"}.get(what, what.replace("-", "_"))
        method = getattr(self, name, None)
        if method is None:
            return "no such command"
        return answer(method, *rest)

    def as_child(self, words):
        """With its parent's handles, or, with "again", as a client of its own."""
        if words[0] != "again":
            return self.follow(words)
        joined = answer(self.join, str(int(PATIENCE * 1000)))
        found = self.follow(words[1:]) if joined == "ok" else joined
        self.leave()
        return found

    def join(self, timeout):
        self.leave()
        self.client = podshm.join(self.directory, timeout=int(timeout) / 1000)

    def leave(self):
        self.handles, self.pending = {}, None
        if self.client is not None:
            self.client.close()
            self.client = None

    def domain(self):
        return self.client.domain

    def member(self):
        return self.client.member

    def present(self):
        return "true" if self.client.agent_present() else "false"

    # --- tables

    def get(self, table, name, length, seed):
        found = self.client.table(table).get(key(name))
        return "not found" if found is None else check(found, made(int(length), int(seed)))

    def key(self, table, name, length, seed):
        if (table, name) not in self.handles:
            self.handles = {(table, name): self.client.table(table).key(key(name))}
        found = self.handles[(table, name)].get()
        return "not found" if found is None else check(found, made(int(length), int(seed)))

    def get_into(self, table, name, size):
        found = self.client.table(table).get_into(key(name), bytearray(int(size)))
        return "not found" if found is None else "ok"

    def part(self, table, name, whole, seed, offset, length):
        value = self.client.table(table).value(key(name))
        if value is None:
            return "not found"
        offset, length = int(offset), int(length)
        found = value.read(offset, length)
        if len(value) != int(whole):
            return f"wrong length: {len(value)}"
        return check(found, made(int(whole), int(seed))[offset : offset + length])

    def snapshot(self, table, *wanted):
        snapshot = self.client.table(table).snapshot()
        for at in range(0, len(wanted), 3):
            name, length, seed = wanted[at : at + 3]
            found = snapshot.get(key(name))
            if found is None:
                return "not found"
            checked = check(found, made(int(length), int(seed)))
            if checked != "ok":
                return checked
        snapshot.check()

    def get_many(self, table, count, length):
        table = self.client.table(table)
        for n in range(int(count)):
            found = table.get(b"key-%d" % n)
            if found is None:
                return "not found"
            checked = check(found, made(int(length), n))
            if checked != "ok":
                return checked

    def keys_in(self, table):
        return str(len(self.client.table(table)))

    # --- queues

    def push(self, queue, length, seed, timeout):
        self.client.queue(queue).push(made(int(length), int(seed)), timeout=int(timeout) / 1000)

    def try_push(self, queue, length, seed):
        self.client.queue(queue).try_push(made(int(length), int(seed)))

    def push_or_drop(self, queue, length, seed):
        return "ok" if self.client.queue(queue).push_or_drop(made(int(length), int(seed))) else "dropped"

    def push_in_place(self, queue, length, seed):
        """Of a buffer that is no bytes: copied once, into the ring."""
        self.client.queue(queue).try_push(memoryview(bytearray(made(int(length), int(seed)))))

    def push_many(self, queue, count, length, seed):
        queue = self.client.queue(queue)
        for n in range(int(count)):
            queue.push(made(int(length), int(seed) + n), timeout=PATIENCE)

    def fill(self, queue, length, seed):
        queue, n = self.client.queue(queue), 0
        while queue.push_or_drop(made(int(length), int(seed) + n)):
            n += 1
        return str(n)

    def batch(self, queue, count, length, seed):
        self.client.queue(queue).push_all(made(int(length), int(seed) + n) for n in range(int(count)))

    push_all = batch

    # --- calls

    def caller(self, name):
        return self.client.call(name, spin=self.spin, wait_for_agent=self.waits)

    def call(self, name, length, seed, timeout):
        request = made(int(length), int(seed))
        return check(self.caller(name).call(request, timeout=int(timeout) / 1000), request[::-1])

    def call_into(self, name, length, seed, timeout, size):
        request, room = made(int(length), int(seed)), bytearray(int(size))
        found = self.caller(name).call_into(request, room, timeout=int(timeout) / 1000)
        return check(room[:found], request[::-1])

    def call_in_place(self, name, length, seed, timeout):
        """Of a buffer, by the event loop."""
        request = made(int(length), int(seed))
        asked = podshm.aio.call(self.caller(name), bytearray(request), timeout=int(timeout) / 1000)
        return check(asyncio.run(asked), request[::-1])

    def start(self, name, length, seed, timeout):
        request = made(int(length), int(seed))
        self.pending = self.caller(name).start(request, timeout=int(timeout) / 1000)
        self.expected = request[::-1]

    def take(self):
        try:
            return check(self.pending.wait(), self.expected)
        except podshm.ClosedError:
            return ENDED

    def look(self):
        try:
            found = self.pending.take()
        except podshm.ClosedError:
            return ENDED
        return "not yet" if found is None else check(found, self.expected)

    def event(self):
        descriptor = self.caller("decide").fileno()
        while True:
            self.pending.arm()
            found = self.look()
            if found != "not yet":
                return found
            if not select.select([descriptor], [], [], PATIENCE)[0]:
                return "no event"
            try:
                os.read(descriptor, 8)
            except BlockingIOError:
                pass

    def cancel(self):
        self.pending.cancel()

    # --- the rest

    def spin_for(self, how):
        self.spin = 0.0 if how == "never" else math.inf

    def wait_for_agent(self):
        self.waits = True

    def await_away(self):
        return until(lambda: not self.client.agent_present())

    def await_present(self):
        return until(self.client.agent_present)

    def await_epoch(self, epoch):
        return until(lambda: self.client.agent_epoch() >= int(epoch))
