"""numpy over shared memory: arrays go round without a copy beside the one out of the shared memory.

    meter serve SOCKET-DIRECTORY          an agent: sums latencies that clients report, and publishes their quantiles
    meter report SOCKET-DIRECTORY ROUTE N reports N records of 64 latencies each
    meter show SOCKET-DIRECTORY ROUTE     prints count and quantiles

A record is the route's name, padded to 32 bytes, and 64 latencies as float64; `record.data` is those bytes, copied once out of the client's
memory, and `numpy.frombuffer` is a view of them. A table's value is a histogram: the client's array is filled by `get_into` in place.
"""

import signal
import sys

import numpy
import podshm

NAME = 32
LATENCIES = 64
BUCKETS = 1024
#: Upper bounds of the histogram's buckets, in seconds.
BOUNDS = numpy.geomspace(1e-6, 10.0, BUCKETS)


class Meter:
    """An agent's handler: one histogram for each route."""

    def __init__(self) -> None:
        self.histograms: dict[bytes, numpy.ndarray] = {}
        self.changed: set[bytes] = set()

    def record(self, record: podshm.Record) -> None:
        if len(record.data) != NAME + 8 * LATENCIES:
            return
        latencies = numpy.frombuffer(record.data, dtype=numpy.float64, offset=NAME)
        route = record.data[:NAME].rstrip(b"\0")
        if not route or not numpy.isfinite(latencies).all():
            return
        histogram = self.histograms.setdefault(route, numpy.zeros(BUCKETS, dtype=numpy.uint64))
        numpy.add.at(histogram, numpy.minimum(numpy.searchsorted(BOUNDS, latencies), BUCKETS - 1), 1)
        self.changed.add(route)


def serve(directory: str) -> None:
    stopped = []
    signal.signal(signal.SIGTERM, lambda *_: stopped.append(True))
    offer = podshm.Services().table("latencies", keys=256, bytes=4 << 20).queue("reports", ring=1 << 16, longest=1024)
    meter = Meter()
    with podshm.Agent(directory, offer, timeout=5.0) as agent:
        table = agent.table("latencies")
        agent.ready()
        while not stopped:
            progress = agent.poll(meter)
            for route in meter.changed:
                table.put(route, meter.histograms[route])  # an array is a buffer
            meter.changed.clear()
            if progress == podshm.Progress.CLOSE_ASKED:
                break
            if progress == podshm.Progress.IDLE:
                agent.wait(0.02)


def report(directory: str, route: str, count: int) -> None:
    latencies = numpy.random.default_rng(1).lognormal(mean=-7.0, sigma=0.5, size=(count, LATENCIES))
    record = numpy.zeros(NAME + 8 * LATENCIES, dtype=numpy.uint8)
    name = route.encode()
    record[: len(name)] = numpy.frombuffer(name, dtype=numpy.uint8)
    with podshm.join(directory, timeout=5.0) as client:
        reports = client.queue("reports")
        for row in latencies:
            record[NAME:].view(numpy.float64)[:] = row
            reports.push(record, timeout=5.0)  # copied once, into the ring
    print(f"{count * LATENCIES} latencies reported")


def show(directory: str, route: str) -> int:
    histogram = numpy.empty(BUCKETS, dtype=numpy.uint64)
    with podshm.join(directory, timeout=5.0) as client:
        if client.table("latencies").get_into(route.encode(), histogram) != histogram.nbytes:
            print(f"meter: nobody has reported on {route}", file=sys.stderr)
            return 1
    count = int(histogram.sum())
    at = numpy.searchsorted(histogram.cumsum(), numpy.array([0.5, 0.99]) * count)
    median, slow = BOUNDS[numpy.minimum(at, BUCKETS - 1)]
    print(f"{route} {count} p50={median * 1e6:.0f}us p99={slow * 1e6:.0f}us")
    return 0


def main() -> int:
    match sys.argv[1:]:
        case ["serve", directory]:
            serve(directory)
        case ["report", directory, route, count] if 0 < len(route.encode()) <= NAME:
            report(directory, route, int(count))
        case ["show", directory, route]:
            return show(directory, route)
        case _:
            print(__doc__, file=sys.stderr)
            return 64
    return 0


if __name__ == "__main__":
    sys.exit(main())
