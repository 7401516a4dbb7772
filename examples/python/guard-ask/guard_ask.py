"""A client with asyncio: asks the guard agent (docs/guard.md) many questions at once, from one event loop and one thread.

    guard-ask SOCKET-DIRECTORY ACTION RESOURCE PRINCIPAL...

    guard-ask /run/podshm 'Action::"read"' 'Document::"plan"' 'User::"alice"' 'User::"bob"'

Each principal's verdict is one line of the output. Ends with 0 where all may, with 1 where one may not, with 2 where there is no verdict.
"""

import asyncio
import struct
import sys

import podshm

QUESTION = struct.Struct("<BBHHHI")
VERDICT = struct.Struct("<BBHIQ")
DENY, ALLOW, UNDECIDED = range(3)


def question(principal: str, action: str, resource: str, context: str = '{"over_tls": true}') -> bytes:
    texts = [text.encode() for text in (principal, action, resource, context)]
    return QUESTION.pack(1, 0, *map(len, texts)) + b"".join(texts)


def verdict(answer: bytes) -> tuple[int, str]:
    version, decision, _reasons, length, _policies = VERDICT.unpack_from(answer)
    if version != 1 or len(answer) != VERDICT.size + length:
        return UNDECIDED, "the agent speaks another version"
    return decision, answer[VERDICT.size :].decode()


async def ask(decide: podshm.Caller, principal: str, action: str, resource: str) -> int:
    try:
        answer = await podshm.aio.call(decide, question(principal, action, resource), timeout=5.0)
    except podshm.Error as error:
        print(f"{principal}: no verdict: {error}")
        return UNDECIDED
    decision, why = verdict(answer)
    word = {DENY: "deny", ALLOW: "allow"}.get(decision, "no verdict")
    print(f"{principal}: {word}" + (f" ({why})" if why else ""))
    return decision


async def ask_all(directory: str, action: str, resource: str, principals: list[str]) -> int:
    with podshm.join(directory, timeout=5.0) as client:
        decide = client.call("decide")
        decisions = await asyncio.gather(*(ask(decide, principal, action, resource) for principal in principals))
    if UNDECIDED in decisions:
        return 2
    return 1 if DENY in decisions else 0


def main() -> int:
    if len(sys.argv) < 5:
        print(__doc__, file=sys.stderr)
        return 64
    directory, action, resource, *principals = sys.argv[1:]
    return asyncio.run(ask_all(directory, action, resource, principals))


if __name__ == "__main__":
    sys.exit(main())
