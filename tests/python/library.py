"""The Python module, beside the conformance suite: the interpreter's lock, buffers, closing, prefork servers. See domain.py."""

import asyncio
import errno
import os
import signal
import sys
import threading

import numpy
import podshm
from domain import CLIENT, PATIENCE, Domain, Keep, main


class Waiting(Domain):
    def test_a_call_that_waits_lets_others_run(self):
        """Agent and client are one process: were the lock kept, nobody would ever answer."""
        call, found = self.client.call("c"), []
        thread = threading.Thread(target=lambda: found.append(call.call(b"abc", timeout=PATIENCE)))
        thread.start()
        self.serve(Keep(), lambda: found)
        thread.join()
        self.assertEqual(found, [b"cba"])

    def test_a_push_that_waits_lets_others_run(self):
        queue, done, keep = self.client.queue("q"), [], Keep()
        while queue.push_or_drop(bytes(4000)):
            pass
        thread = threading.Thread(target=lambda: done.append(queue.push(bytes(4000), timeout=PATIENCE)))
        thread.start()
        self.serve(keep, lambda: done)
        thread.join()

    def test_a_wait_of_the_agent_lets_others_run(self):
        keep, call = Keep(), self.client.call("c")
        stop = []
        thread = threading.Thread(target=lambda: (call.call(b"x", timeout=PATIENCE), stop.append(True)))
        thread.start()
        self.agent.run(keep, lambda: stop)
        thread.join()

    def test_ctrl_c_is_heard_while_the_agent_runs_and_while_a_push_waits(self):
        threading.Timer(0.2, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
        with self.assertRaises(KeyboardInterrupt):
            self.agent.run(Keep())
        queue = self.client.queue("q")
        while queue.push_or_drop(bytes(4000)):
            pass
        threading.Timer(0.2, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
        with self.assertRaises(KeyboardInterrupt):
            queue.push(bytes(4000), timeout=PATIENCE)


class Buffers(Domain):
    def test_numpy_takes_values_and_records_as_they_are(self):
        array = numpy.arange(1000, dtype=numpy.float64)
        self.agent.table("t").put(b"array", array)
        value = self.client.table("t")[b"array"]
        view = numpy.frombuffer(value, dtype=numpy.float64)
        self.assertIs(view.base, value)
        self.assertTrue((view == array).all())
        room = numpy.zeros(1000)
        self.assertEqual(self.client.table("t").get_into(b"array", room), array.nbytes)
        self.assertEqual(self.client.table("t").key(b"array").get_into(room), array.nbytes)
        self.assertTrue((room == array).all())
        self.assertEqual(self.client.table("t").value(b"array").read(8, 8), array[1:2].tobytes())

        keep = Keep()
        self.client.queue("q").push(array[:500])
        self.serve(keep, lambda: keep.records)
        record = keep.records[0]
        view = numpy.frombuffer(record.data, dtype=numpy.float64)
        self.assertIs(view.base, record.data)
        self.assertTrue((view == array[:500]).all())
        self.assertEqual((record.service, record.member, record.maybe_seen), ("q", self.client.member, False))

    def test_buffers_that_do_not_do_are_errors(self):
        table, gaps = self.client.table("t"), numpy.zeros((4, 4))[:, ::2]
        self.agent.table("t").put(b"k", b"value")
        for wrong in (b"bytes", memoryview(b"bytes")):
            with self.assertRaises(TypeError):
                table.get_into(b"k", wrong)
        with self.assertRaises(BufferError):
            table.get_into(b"k", gaps)
        with self.assertRaises(BufferError):
            self.client.queue("q").push(gaps)
        for wrong in ("text", 7, None):
            with self.assertRaises(TypeError):
                self.client.queue("q").push(wrong)
        with self.assertRaises(podshm.BufferTooSmallError) as raised:
            table.get_into(b"k", bytearray(4))
        self.assertEqual(raised.exception.needed, 5)
        with self.assertRaises(podshm.BufferTooSmallError):
            table.value(b"k").read(0, 1 << 60)
        with self.assertRaises(ValueError):
            self.client.queue("q").push(b"x", timeout=-1)
        self.assertEqual(table.get(b""), None)

    def test_a_key_may_lie_where_its_value_goes(self):
        """A value that is replaced while it is copied is looked up again: by the key as it was."""
        table, writer, stop = self.client.table("t"), self.agent.table("t"), threading.Event()
        values = [bytes([n]) * 60000 for n in (1, 2)]
        writer.put(b"key", values[0])

        def replace():
            while not stop.is_set():
                for value in values:
                    writer.put(b"key", value)

        thread = threading.Thread(target=replace)
        thread.start()
        try:
            for _ in range(3000):
                buffer = bytearray(60000)
                buffer[100:103] = b"key"
                key = memoryview(buffer)[100:103]
                self.assertEqual(table.get_into(key, buffer), 60000)
                self.assertIn(buffer, values)
        finally:
            stop.set()
            thread.join()

    def test_an_empty_buffer_is_one(self):
        keep = Keep()
        self.client.queue("q").push(numpy.zeros(0))
        self.client.queue("q").push(bytearray())
        self.agent.table("t").put(b"empty", bytearray())
        self.serve(keep, lambda: len(keep.records) == 2)
        self.assertEqual([record.data for record in keep.records], [b"", b""])
        self.assertEqual(self.client.table("t").get(b"empty"), b"")
        self.assertEqual(self.client.table("t").get_into(b"empty", bytearray()), 0)


class Handles(Domain):
    def test_closing_a_client_closes_what_was_made_of_it(self):
        handles = [self.client.table("t"), self.client.queue("q"), self.client.call("c")]
        key = handles[0].key(b"k")
        self.serve(Keep(), lambda: self.agent.clients == 1)
        with self.client:
            pass
        for use in (
            lambda: handles[0].get(b"k"),
            lambda: handles[1].push(b"x"),
            lambda: handles[2].call(b"x"),
            key.get,
            lambda: self.client.member,
            lambda: self.client.table("t"),
        ):
            with self.assertRaises(podshm.ClosedError):
                use()
        self.client.close()
        # The last of it has gone: the agent is told.
        self.serve(Keep(), lambda: self.agent.clients == 0)

    def test_a_system_call_that_fails_says_what_the_kernel_said(self):
        nowhere = os.path.join(CLIENT, "nowhere")
        with self.assertRaises(podshm.SystemCallError) as raised:
            podshm.join(nowhere, timeout=0.0)
        self.assertEqual(raised.exception.errno, errno.ENOENT)
        with self.assertRaises(podshm.NoServiceError) as raised:
            self.client.table("none")
        self.assertIsNone(raised.exception.errno)

    def test_a_table_is_a_mapping_to_read(self):
        writer, table = self.agent.table("t"), self.client.table("t")
        writer[b"a"] = b"1"
        writer.publish({b"b": b"2", b"c": bytearray(b"3")})
        self.assertEqual((len(table), len(writer), b"b" in table, b"z" in table), (3, 3, True, False))
        writer.publish({b"b": None})
        del writer[b"c"]
        self.assertEqual((len(table), table.get(b"b")), (1, None))
        with self.assertRaises(KeyError):
            table[b"b"]
        with self.assertRaises(KeyError):
            del writer[b"c"]
        self.assertLess(table.age(), PATIENCE)
        value = table.value(b"a")
        writer[b"a"] = b"other"
        with self.assertRaises(podshm.ContendedError):
            value.read()

    def test_what_a_handler_raises_comes_out_of_poll_and_fails_the_call(self):
        def bad(request):
            raise ZeroDivisionError("oops")

        found = []

        def ask(timeout=PATIENCE):
            try:
                found.append(self.client.call("c").call(b"x", timeout=timeout))
            except podshm.Error as error:
                found.append(error)

        for answers, raised in ((bad, ZeroDivisionError), (lambda request: 7, TypeError)):
            thread = threading.Thread(target=ask)
            thread.start()
            with self.assertRaises(raised):
                self.serve(Keep(answers), lambda: False)
            thread.join()
            self.assertIsInstance(found[-1], podshm.FailedError)
            self.assertEqual(found[-1].status, 1)
        with self.assertRaises(TypeError):
            self.agent.poll(object())

    def test_a_handler_finds_its_own_agent_in_use(self):
        seen = []

        def reenter(request):
            with self.assertRaises(podshm.BusyError):
                self.agent.poll(Keep())
            seen.append(True)
            return b""

        thread = threading.Thread(target=lambda: self.client.call("c").call(b"x", timeout=PATIENCE))
        thread.start()
        self.serve(Keep(reenter), lambda: seen)
        thread.join()

    def test_a_later_answers_one_call_once(self):
        later = podshm.Later()
        later.reply(b"early")
        with self.assertRaises(ValueError):
            later.reply(b"again")
        found = []
        thread = threading.Thread(target=lambda: found.append(self.client.call("c").call(b"x", timeout=PATIENCE)))
        thread.start()
        self.serve(Keep(lambda request: later), lambda: found)
        thread.join()
        self.assertEqual(found, [b"early"])
        dropped = podshm.Later()
        thread = threading.Thread(
            target=lambda: found.append(self.assertRaises(podshm.FailedError, self.client.call("c").call, b"x", timeout=PATIENCE))
        )
        thread.start()
        self.serve(Keep(lambda request: (dropped.fail(), dropped)[1]), lambda: len(found) == 2)
        thread.join()

    def test_an_answer_that_is_too_long_fails_its_call_alone(self):
        """At once, by a Later before its handler returns, and by one after that."""
        call, long = self.client.call("c"), bytes(65537)

        def early(request):
            later = podshm.Later()
            later.reply(long)
            return later

        def late(request):
            later = podshm.Later()
            threading.Timer(0.01, later.reply, [long]).start()
            return later

        found = []

        def ask():
            with self.assertRaises(podshm.FailedError) as raised:
                call.call(b"x", timeout=PATIENCE)
            found.append(raised.exception.status)

        for answers in (lambda request: long, early, late):
            thread = threading.Thread(target=ask)
            thread.start()
            self.serve(Keep(answers), lambda: not thread.is_alive())
        self.assertEqual(found, [1, 1, 1])
        thread = threading.Thread(target=lambda: found.append(call.call(b"abc", timeout=PATIENCE)))
        thread.start()
        self.serve(Keep(lambda request: bytes(65536)), lambda: not thread.is_alive())
        self.assertEqual(found[3:], [bytes(65536)])


class Forks(Domain):
    def test_a_prefork_server(self):
        """The parent has joined before it forks, as a module that joins when it is imported does; each worker joins for itself."""
        call, queue, key = self.client.call("c"), self.client.queue("q"), self.client.table("t").key(b"k")
        keep = Keep()
        self.agent.table("t").put(b"k", b"v")
        self.assertEqual(key.get(), b"v")
        workers = []
        for number in range(4):
            child = os.fork()
            if not child:
                status = 1
                try:
                    signal.alarm(60)
                    for use in (lambda: call.call(b"x"), lambda: queue.push(b"x"), key.get, self.agent.ready):
                        try:
                            use()
                            raise SystemExit("a handle of the parent's did not say that it is")
                        except podshm.ForkedError:
                            pass
                    with podshm.join(CLIENT, timeout=PATIENCE) as mine:
                        assert mine.id != self.client_id
                        asked = b"worker %d" % number
                        assert mine.call("c").call(asked, timeout=PATIENCE) == asked[::-1]
                        mine.queue("q").push(b"from %d" % number, timeout=PATIENCE)
                        assert asyncio.run(podshm.aio.call(mine.call("c"), b"ab", timeout=PATIENCE)) == b"ba"
                    status = 0
                except BaseException as error:
                    print(repr(error), file=sys.stderr)
                finally:
                    os._exit(status)
            workers.append(child)
        ended = {}

        def all_ended():
            for child in set(workers) - set(ended):
                pid, status = os.waitpid(child, os.WNOHANG)
                if pid:
                    ended[pid] = status
            return len(ended) == len(workers)

        self.serve(keep, all_ended)
        self.assertEqual(set(ended.values()), {0})
        self.serve(keep, lambda: len(keep.records) == 4)
        self.assertEqual(sorted(record.data for record in keep.records), [b"from %d" % n for n in range(4)])
        # The parent goes on.
        self.assertEqual(key.get(), b"v")
        queue.push(b"parent")
        self.serve(keep, lambda: keep.records[-1].data == b"parent")

    def setUp(self):
        super().setUp()
        self.client_id = self.client.id


main()
