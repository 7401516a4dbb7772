"""A participant of the conformance suite in Python: see tests/conformance/cases.txt, and tests/src/conform for the one in Rust.

    conform.py ROLE     agent and successor serve, others join; commands come line by line over control.sock in the pod's socket directory
"""

import os
import select
import signal
import socket
import sys

import conform_agent
import conform_client
import conform_common


def comes(descriptor, seconds):
    """Whether there is something to read, now or within that time."""
    return bool(select.select([descriptor], [], [], seconds)[0])


def main():
    role = sys.argv[1]
    directory = os.environ["PODSHM_SOCKET_DIR"]
    control = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    control.connect(os.path.join(directory, "control.sock"))
    serves = role in ("agent", "successor")
    participant = conform_agent.Serving(directory, control) if serves else conform_client.Joined(directory)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    line = b""
    while True:
        while participant.round() and not comes(control, 0):
            pass
        read = control.recv(4096)
        if not read:
            return
        line += read
        while b"\n" in line:
            command, line = line.split(b"\n", 1)
            words = command.decode()
            if words.startswith("because "):
                answer = conform_common.because(words.removeprefix("because "))
            else:
                answer = participant.follow(words.split(" "))
            control.sendall(answer.encode() + b"\n")


main()
