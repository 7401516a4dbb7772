"""A member that tries to get at what is not its own. Each attempt is a line: `refused: WHAT` or `REACHED: WHAT`.

    hostile.py look ROOT DOMAIN MEMBER PID    another domain's things, by path and by /proc; PID is a member of it
    hostile.py reach ROOT DOMAIN MEMBER PID   these, and by every other way that a process has: changes what it succeeds with
    hostile.py forge ID                       messages to its own socket about a segment that another uid has for itself
"""
import ctypes
import os
import socket
import struct
import sys

libc = ctypes.CDLL(None, use_errno=True)
EPERM, ENOENT, EBADF, EACCES, EXDEV, EINVAL, EFBIG, ENOSYS, ELOOP, EIDRM = 1, 2, 9, 13, 18, 22, 27, 38, 40, 43
ENAMETOOLONG = 36


def attempt(what, do):
    try:
        do()
    except OSError as error:
        print(f"refused: {what}: errno {error.errno}")
    else:
        print(f"REACHED: {what}")


def call(result):
    if result == -1:
        raise OSError(ctypes.get_errno(), "")


def connect(path, kind):
    with socket.socket(socket.AF_UNIX, kind) as s:
        s.connect(path)


def look(root, domain, member, pid):
    base = f"{root}/domains/{domain}"
    things = [f"members/{member}/shm.sock", "control.sock", "shm/secret", "sysv/segments", "domain.json"]

    def all_of(prefix):
        for thing in things:
            if thing.endswith(".sock"):
                kind = socket.SOCK_STREAM if thing == "control.sock" else socket.SOCK_SEQPACKET
                attempt(prefix + thing, lambda: connect(f"{prefix}{base}/{thing}", kind))
            else:
                attempt(prefix + thing, lambda: os.close(os.open(f"{prefix}{base}/{thing}", os.O_RDONLY)))

    all_of("")
    # On the machine there are many, and what they have is not asked for: see the test.
    processes = {int(name) for name in os.listdir("/proc") if name.isdigit()}
    if len(processes) > 8:
        processes = set()
    attempt("the victim's /dev/shm", lambda: os.listdir(f"/proc/{pid}/root/dev/shm"))
    attempt("the victim's descriptors", lambda: os.listdir(f"/proc/{pid}/fd"))
    attempt("the victim's memory", lambda: os.close(os.open(f"/proc/{pid}/mem", os.O_RDONLY)))
    for process in sorted(processes | {1}):
        all_of(f"/proc/{process}/root")
        all_of(f"/proc/{process}/cwd")
        attempt(f"domains among the descriptors of {process}", lambda: descriptors(process, base))


def reach(root, domain, member, pid):
    assert "PODSHM_DOMAIN" in os.environ, "not on the machine itself: it would be changed"
    look(root, domain, member, pid)
    CLONE_NEWNS, CLONE_NEWUSER, MNT_DETACH = 0x20000, 0x10000000, 2
    attempt("unmounting what hides the domains", lambda: call(libc.umount2(f"{root}/domains".encode(), MNT_DETACH)))
    attempt("mounting over it", lambda: call(libc.mount(b"x", f"{root}/domains".encode(), b"tmpfs", 0, None)))
    attempt("the victim's mount namespace", lambda: call(libc.setns(os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY), 0)))
    attempt("the first process's mount namespace", lambda: call(libc.setns(os.open("/proc/1/ns/mnt", os.O_RDONLY), 0)))
    attempt("a device of its own", lambda: os.mknod("/tmp/podshm-hostile", 0o60600, os.makedev(254, 0)))
    handle = struct.pack("Ii8s", 8, 1, b"\1" * 8)
    AT = os.open("/", os.O_RDONLY)
    attempt("a file by its handle", lambda: call(libc.open_by_handle_at(AT, handle, os.O_RDONLY)))
    PTRACE_ATTACH = 16
    attempt("tracing the first process", lambda: call(libc.ptrace(PTRACE_ATTACH, 1, None, None)))
    # In namespaces of its own it is root, and what its parent hid from it stays hidden.
    if os.fork() == 0:
        if libc.unshare(CLONE_NEWUSER | CLONE_NEWNS) == 0:
            attempt("unmounting in its own namespaces", lambda: call(libc.umount2(f"{root}/domains".encode(), MNT_DETACH)))
            attempt("unmounting /dev/shm there", lambda: call(libc.umount2(b"/dev/shm", 0)))
            look(root, domain, member, pid)
        sys.stdout.flush()
        os._exit(0)
    os.wait()


def descriptors(process, base):
    for fd in os.listdir(f"/proc/{process}/fd"):
        path = f"/proc/{process}/fd/{fd}"
        if os.readlink(path).startswith(base) or os.path.exists(f"{path}/domain.json"):
            return
    raise FileNotFoundError(ENOENT, "")


MAGIC = 0x70730001
HELLO, GET, ATTACH, UNDO, DETACH, FORK, CONTROL, OPEN, UNLINK, GROW, ADOPT = range(1, 12)


def ask(operation, arguments=(), tail=b"", fds=(), magic=MAGIC, whole=None):
    """The result and how many descriptors came; None where there is no answer."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as s:
        s.connect(os.environ["PODSHM_SHM_SOCKET"])
        s.settimeout(20)
        words = [magic << 32 | operation, *arguments] + [0] * (7 - len(arguments))
        words[4] = 1  # a pid that it has not
        message = whole if whole is not None else struct.pack("8Q", *[word & (1 << 64) - 1 for word in words]) + tail
        socket.send_fds(s, [message], list(fds))
        reply, came, _, _ = socket.recv_fds(s, 4096, 64)
        if len(reply) < 64:
            return None
        return struct.unpack("2q", reply[:16])[1], came, reply[64:]


def expect(what, asked, result):
    found = None if asked is None else asked[0]
    fine = found == result and (asked is None or not asked[1])
    print(f"refused: {what}" if fine else f"REACHED: {what}: {asked}, expected {result}")


def forge(victim):
    guesses = [struct.unpack("Q", os.urandom(8))[0] for _ in range(32)]
    pairs = b"".join(struct.pack("2Q", victim, token) for token in guesses)
    expect("attach", ask(ATTACH, [victim, 0]), -EACCES)
    expect("attach to read", ask(ATTACH, [victim, 0o10000]), -EACCES)
    for command, result in [(0, -EPERM), (1, -EPERM), (2, -EACCES), (11, -EPERM)]:
        expect(f"shmctl {command}", ask(CONTROL, [victim, command], b"\0" * 112), result)
    expect("an id of another round", ask(ATTACH, [victim + (1 << 15), 0]), -EIDRM)
    for number in [victim + 1, -1, 1 << 31, 0x7FFFFFFF & ~0x7FFF | 77]:
        expect(f"the id {number}", ask(ATTACH, [number, 0]), -EINVAL)
    forked = ask(FORK, [32], pairs)
    expect("tokens for a child", None if forked and not any(forked[2]) and not forked[1] else forked, None)
    expect("more tokens than fit", ask(FORK, [33], pairs + pairs[:16]), None)
    expect("more tokens than there are", ask(FORK, [33], pairs), -EINVAL)
    expect("fewer tokens than said", ask(FORK, [32], pairs[:-16]), -EINVAL)
    for operation, name in [(UNDO, "undo"), (DETACH, "detach")]:
        for token in guesses[:4] + [0, 1]:
            # No error, and nothing has changed: the test looks.
            expect(f"{name} {token}", ask(operation, [victim, token]), 0)
    expect("adopt", ask(ADOPT, [32], pairs), 0)
    expect("no such operation", ask(99), -ENOSYS)
    expect("another protocol", ask(HELLO, magic=MAGIC + 1), None)
    expect("a short message", ask(HELLO, whole=b"x" * 63), None)
    expect("a long message", ask(HELLO, whole=b"x" * 4096), None)

    for name in ["../sysv/segments", "a/b", "", ".", "..", "a\0b"]:
        expect(f"the object {name!r}", ask(OPEN, [os.O_RDWR | os.O_CREAT, 0o600], name.encode()), -EINVAL)
    expect("a long name", ask(OPEN, [os.O_RDWR | os.O_CREAT, 0o600], b"x" * 256), -ENAMETOOLONG)
    shm, mine = "/dev/shm", f"podshm-{os.getuid()}"
    os.symlink("/etc/shadow", f"{shm}/{mine}-link")
    expect("a link to elsewhere", ask(OPEN, [os.O_RDONLY, 0], f"{mine}-link".encode()), -ELOOP)
    # From a directory of the daemon's mounts `..` would lead out of the domain.
    os.mkdir(f"{shm}/{mine}-directory")
    expect("a directory", ask(OPEN, [os.O_RDONLY, 0], f"{mine}-directory".encode()), -EINVAL)
    expect("a directory, made", ask(OPEN, [os.O_RDONLY | os.O_DIRECTORY, 0], f"{mine}-directory".encode()), -EINVAL)
    os.mkfifo(f"{shm}/{mine}-fifo")
    expect("a pipe", ask(OPEN, [os.O_RDWR, 0], f"{mine}-fifo".encode()), -EINVAL)
    expect("another's object", ask(OPEN, [os.O_RDONLY, 0], b"secret"), -EACCES)
    expect("another's object, unlinked", ask(UNLINK, [], b"secret"), -EACCES)

    own = os.open(f"{shm}/{mine}-own", os.O_RDWR | os.O_CREAT, 0o600)
    read_only, path = os.open(f"{shm}/{mine}-own", os.O_RDONLY), os.open(f"{shm}/{mine}-own", os.O_PATH)
    for what, fd in [
        ("a file of the machine", os.open("/etc/passwd", os.O_RDONLY)),
        ("a memfd", os.memfd_create("x")),
        ("a directory", os.open(shm, os.O_RDONLY)),
        ("a pipe", os.open(f"{shm}/{mine}-fifo", os.O_RDWR)),
        ("a socket", socket.socket(socket.AF_UNIX, socket.SOCK_STREAM).detach()),
    ]:
        expect(f"growing {what}", ask(GROW, [8192], fds=[fd]), -EXDEV)
    expect("growing what it may only read", ask(GROW, [8192], fds=[read_only]), -EINVAL)
    expect("growing what it may only name", ask(GROW, [8192], fds=[path]), -EINVAL)
    expect("growing nothing", ask(GROW, [8192]), -EBADF)
    expect("growing past everything", ask(GROW, [1 << 63], fds=[own]), -EFBIG)
    assert os.fstat(own).st_size == 0
    grown = ask(GROW, [8192], fds=[own])
    assert grown is not None and grown[0] == 0 and os.fstat(own).st_size == 8192, "the honest way works"


if sys.argv[1] in ("look", "reach"):
    {"look": look, "reach": reach}[sys.argv[1]](*sys.argv[2:5], int(sys.argv[5]))
else:
    forge(int(sys.argv[2]))
print("done")
