"""Python beside multiprocessing.connection: a small call, in one run and in interleaved rounds.

    calls.py BROKER [--rounds 8] [--seconds 0.3] [--size 64] [--spin-us 50]

BROKER is the program `podshm`. Two processes, pinned to a processor each where there are two. Medians over the rounds of the median time of
a call. A goal that is missed is said and ends the program no other way than one that is met, as with those targets of
podshm-bench that are not `fatal`: numbers of a busy machine fail no run. Rows:

    podshm, awake     both sides spin for the stated budget before they sleep; calls follow one another
    podshm, asleep    neither spins: each call wakes the agent, each answer the caller
    connection        multiprocessing.connection over a Unix socket: both sides sleep in recv
    interpreter       what of an awake call is the interpreter's: a handler that is called and returns, and a call of a method of the module
                      that gets bytes and raises nothing, with no shared memory in between
"""

import argparse
import multiprocessing.connection
import os
import pathlib
import signal
import statistics
import subprocess
import sys
import tempfile
import time

import podshm


class Echo:
    @staticmethod
    def call(request):
        return request.data


#: What this process may run on, before it pins itself.
CPUS = sorted(os.sched_getaffinity(0))


def pin(number):
    os.sched_setaffinity(0, {CPUS[number % len(CPUS)]})


def child(work):
    """Forks a process for the other side."""
    pid = os.fork()
    if pid:
        return pid
    try:
        pin(1)
        work()
    finally:
        os._exit(0)


def serve_podshm(directory, spin):
    services = podshm.Services().table("none", keys=8, bytes=4096).call("echo", ring=16384, longest=4096)
    stopped = []
    signal.signal(signal.SIGTERM, lambda *_: stopped.append(1))
    with podshm.Agent(directory, services, timeout=30.0) as agent:
        agent.set_spin(spin)
        agent.ready()
        agent.run(Echo, lambda: stopped)


def serve_connection(address):
    with multiprocessing.connection.Listener(address, "AF_UNIX") as listener, listener.accept() as peer:
        try:
            while True:
                peer.send_bytes(peer.recv_bytes())
        except EOFError:
            pass


def timed(call, request, seconds):
    """The median time of a call, in us: a mean would count whoever else has the processor meanwhile."""
    for _ in range(50):
        assert call(request) == request
    clock, times = time.perf_counter_ns, []
    until = clock() + int(seconds * 1e9)
    while not times or clock() < until:
        for _ in range(50):
            begun = clock()
            call(request)
            times.append(clock() - begun)
    return statistics.median(times) / 1000


def interpreter(request, table, seconds):
    """A call's path through the interpreter, without the way between the processes: us."""
    handler, one = Echo(), table.get
    key = b"no such key"

    def both(_):
        one(key)  # a method of the module: arguments, a result
        return handler.call(Given(request))

    return timed(both, request, seconds)


class Given:
    def __init__(self, data):
        self.data = data


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("broker")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=0.3)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--spin-us", type=float, default=50.0)
    given = parser.parse_args()
    spin, request = given.spin_us / 1e6, bytes(range(256)) * (1 + given.size // 256)
    with tempfile.TemporaryDirectory(prefix="podshm-bench-") as scratch:
        return compare(given, spin, request[: given.size], pathlib.Path(scratch))


def broker(program, root):
    arguments = [program, "broker", "--root", root, "--agent", "bench/agent", "--member", "bench/client"]
    started = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not list(pathlib.Path(root).glob("*/broker.sock")):
        if started.poll() is not None:
            sys.exit(f"{program} broker ended with {started.returncode}")
        time.sleep(0.01)
    return started


def directory(root, pod):
    found = [path for path in pathlib.Path(root).iterdir() if path.name.endswith(pod)]
    return str(found[0])


def compare(given, spin, request, scratch):
    rows, others, clients = {"podshm, awake": [], "podshm, asleep": [], "connection": []}, [], []
    calls = {}
    pin(0)
    for name, budget in (("podshm, awake", spin), ("podshm, asleep", 0.0)):
        root = scratch / name.split()[-1]
        root.mkdir()
        others.append(broker(given.broker, str(root)))
        agent = child(lambda: serve_podshm(directory(root, "agent"), budget))
        others.append(agent)
        client = podshm.join(directory(root, "client"), timeout=30.0)
        clients.append(client)
        call = client.call("echo", spin=budget)
        calls[name] = call.call
    address = str(scratch / "connection")
    others.append(child(lambda: serve_connection(address)))
    while not os.path.exists(address):
        time.sleep(0.01)
    peer = multiprocessing.connection.Client(address, "AF_UNIX")

    def over_connection(asked):
        peer.send_bytes(asked)
        return peer.recv_bytes()

    calls["connection"] = over_connection
    for _ in range(given.rounds):
        for name, call in calls.items():
            rows[name].append(timed(call, request, given.seconds))
    share = interpreter(request, clients[0].table("none"), given.seconds)
    peer.close()
    for client in clients:
        client.close()
    for other in reversed(others):
        if isinstance(other, int):
            os.kill(other, signal.SIGTERM)
            os.waitpid(other, 0)
        else:
            other.terminate()
            other.wait()
    report(given, rows, share)
    return 0


def report(given, rows, share):
    print(f"{given.size} bytes, {given.rounds} rounds of {given.seconds} s, Python {sys.version.split()[0]}, {os.cpu_count()} processors, pinned")
    middle = {name: statistics.median(times) for name, times in rows.items()}
    for name, times in rows.items():
        print(f"{name:18} {middle[name]:8.2f} us   ({min(times):.2f} to {max(times):.2f})")
    print(f"{'interpreter':18} {share:8.2f} us   ({100 * share / middle['podshm, awake']:.0f} % of an awake call)")
    awake, asleep = (middle["connection"] / middle[f"podshm, {how}"] for how in ("awake", "asleep"))
    print(f"awake, with {given.spin_us:.0f} us to spin: {awake:.1f} times as fast as connection (goal: 5)   {'met' if awake >= 5 else 'MISSED'}")
    print(f"asleep: {asleep:.2f} times as fast as connection (goal: 1)   {'met' if asleep >= 1 else 'MISSED'}")


sys.exit(main())
