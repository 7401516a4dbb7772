"""Runs a command under a seccomp profile in the OCI's format, as a container runtime does: by libseccomp
(Debian's libseccomp2, which apt itself needs).

    confine.py PROFILE COMMAND...
"""
import ctypes
import json
import os
import sys

ALLOW, ERRNO, MASKED_EQ = 0x7FFF0000, 0x00050000, 7


class Compare(ctypes.Structure):
    _fields_ = [("arg", ctypes.c_uint), ("op", ctypes.c_int), ("a", ctypes.c_uint64), ("b", ctypes.c_uint64)]


lib = ctypes.CDLL("libseccomp.so.2")
lib.seccomp_init.restype = ctypes.c_void_p
lib.seccomp_rule_add_array.argtypes = [ctypes.c_void_p, ctypes.c_uint32, ctypes.c_int, ctypes.c_uint, ctypes.c_void_p]
lib.seccomp_arch_add.argtypes = [ctypes.c_void_p, ctypes.c_uint32]
lib.seccomp_load.argtypes = [ctypes.c_void_p]


def done(result, what):
    if result < 0:
        sys.exit(f"{what}: {os.strerror(-result)}")


profile = json.load(open(sys.argv[1]))
assert profile["defaultAction"] == "SCMP_ACT_ALLOW", profile["defaultAction"]
context = lib.seccomp_init(ALLOW)
for arch in profile["architectures"]:
    token = lib.seccomp_arch_resolve_name(arch.removeprefix("SCMP_ARCH_").lower().encode()) & 0xFFFFFFFF
    assert token, arch
    result = lib.seccomp_arch_add(context, token)
    done(0 if result == -17 else result, arch)  # EEXIST: this machine's own
for rule in profile["syscalls"]:
    assert rule["action"] == "SCMP_ACT_ERRNO", rule
    compares = [Compare(arg["index"], MASKED_EQ, arg["value"], arg["valueTwo"]) for arg in rule.get("args", [])]
    assert all(arg["op"] == "SCMP_CMP_MASKED_EQ" for arg in rule.get("args", [])), rule
    array = (Compare * len(compares))(*compares)
    for name in rule["names"]:
        number = lib.seccomp_syscall_resolve_name(name.encode())
        if number == -1:
            continue  # what this libseccomp does not know, a runtime passes over too
        done(lib.seccomp_rule_add_array(context, ERRNO | rule["errnoRet"], number, len(compares), array), name)
done(lib.seccomp_load(context), "loading the filter")
os.execvp(sys.argv[2], sys.argv[2:])
