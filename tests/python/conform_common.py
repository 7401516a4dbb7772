"""What both roles of the conformance suite's participant in Python share."""

import os
import signal
import sys
import time

import podshm

#: Seconds that anything may take here.
PATIENCE = 20.0

_STEPS = bytes((at * 7) & 255 for at in range(256))


def made(length, seed):
    """The bytes of this length and seed: byte `at` is seed + 7 at + at / 256."""
    blocks = []
    for block in range((length + 255) // 256):
        add = (seed + block) & 255
        table = bytes((value + add) & 255 for value in range(256))
        blocks.append(_STEPS.translate(table))
    return b"".join(blocks)[:length]


def check(found, expected):
    return "ok" if bytes(found) == expected else f"wrong bytes: {len(found)} of {len(expected)}"


def key(written):
    """A key as the suite writes it."""
    if written == "-":
        return b""
    letter, star, count = written.partition("*")
    return letter.encode() * int(count) if star else written.encode()


_reason = ""


def because(words):
    """Whether the last error gave these words for its reason: several reasons have one kind."""
    return "ok" if words in _reason else f"because {_reason}"


def said(error):
    """What an error is called in an answer."""
    global _reason
    print(f"conform: {error!r}", file=sys.stderr)
    _reason = str(error)
    name = f"error {error.kind.name}"
    if error.status is not None:
        return f"{name} {error.status}"
    return f"{name} {error.needed}" if error.needed is not None else name


def answer(work, *words):
    """The answer to a command, an error among them."""
    try:
        return work(*words) or "ok"
    except podshm.Error as error:
        return said(error)


def until(good):
    """Waits for it."""
    end = time.monotonic() + PATIENCE
    while not good():
        if time.monotonic() > end:
            return "it did not happen"
        time.sleep(0.001)
    return "ok"


def in_child(work):
    """Runs it in a forked child, and returns its answer."""
    return in_children(1, work)


def in_children(count, work):
    """Runs it in so many children at once, as a prefork server does; what they all answer."""
    answers = [_ended(*begun) for begun in [_begun(work) for _ in range(count)]]
    return answers[0] if len(set(answers)) == 1 else f"the children do not agree: {answers}"


def _begun(work):
    ours, childs = os.pipe()
    child = os.fork()
    if not child:
        status = 1
        signal.alarm(60)
        try:
            os.write(childs, work().encode())
            status = 0
        finally:
            os._exit(status)
    os.close(childs)
    return child, ours


def _ended(child, ours):
    with os.fdopen(ours, "rb") as pipe:
        found = pipe.read().decode()
    _, status = os.waitpid(child, 0)
    return found if found and not status else "the child ended badly"
