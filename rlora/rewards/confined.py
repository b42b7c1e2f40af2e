"""The process that a generated program runs in: it confines itself for good, then runs the program and its tests.

Standard library alone, so that it starts quickly; started by `rlora.rewards.sandbox`, which describes the limits. What
is allowed is a list of system calls, and everything else is refused (EPERM) by the kernel (seccomp): there is none for
sockets, processes, signals to others, or changes to files, and a file is opened for reading alone.
"""

import ctypes
import json
import os
import random
import resource
import struct
import sys
import traceback
from typing import Any

UNCONFINED = 70
"""The exit code where the kernel does not confine a process."""
_MOST_SAID = 500  # characters of an error
_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _MODE_FILTER = 38, 22, 2
_ARCHITECTURE = 0xC000003E  # AUDIT_ARCH_X86_64
_X32 = 0x40000000  # from here on are the numbers of another table of system calls
_LOAD, _EQUAL, _AT_LEAST, _HAS_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _REFUSE, _KILL = 0x7FFF0000, 0x00050000 | 1, 0x80000000  # 1 is EPERM
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_OPENING = {2: 24, 257: 32}  # open, openat -> where their flags lie in the kernel's record of a call
_ALLOWED = {
    "read": 0, "write": 1, "close": 3, "stat": 4, "fstat": 5, "lstat": 6, "poll": 7, "lseek": 8, "mmap": 9,
    "mprotect": 10, "munmap": 11, "brk": 12, "rt_sigaction": 13, "rt_sigprocmask": 14, "rt_sigreturn": 15,
    "pread64": 17, "readv": 19, "writev": 20, "access": 21, "select": 23, "sched_yield": 24, "mremap": 25,
    "madvise": 28, "dup": 32, "nanosleep": 35, "getpid": 39, "exit": 60, "uname": 63, "fcntl": 72, "getcwd": 79,
    "readlink": 89, "gettimeofday": 96, "getrlimit": 97, "getrusage": 98, "sysinfo": 99, "times": 100, "getuid": 102,
    "getgid": 104, "geteuid": 107, "getegid": 108, "getppid": 110, "sigaltstack": 131, "gettid": 186, "futex": 202,
    "sched_getaffinity": 204, "getdents64": 217, "clock_gettime": 228, "clock_getres": 229, "clock_nanosleep": 230,
    "exit_group": 231, "newfstatat": 262, "readlinkat": 267, "faccessat": 269, "pselect6": 270, "ppoll": 271,
    "getrandom": 318, "statx": 332, "faccessat2": 439,
}  # fmt: skip


def unsupported() -> str:
    """Return why processes cannot be confined on this machine, or "" where that is not known beforehand."""
    here = os.uname()
    if (here.sysname, here.machine) == ("Linux", "x86_64"):
        return ""
    return f"only Linux on x86_64 is known, and this is {here.sysname} on {here.machine}"


def _program() -> bytes:
    """Return the filter: instructions of (code, jump if true, jump if false, value), eight bytes each."""
    opening = [
        step
        for number, flags in _OPENING.items()
        for step in (
            (_EQUAL, 0, 4, number),
            (_LOAD, 0, 0, flags),
            (_HAS_BIT, 0, 1, _WRITING),
            (_RETURN, 0, 0, _REFUSE),
            (_RETURN, 0, 0, _ALLOW),
        )
    ]
    numbers = sorted(_ALLOWED.values())
    steps = [
        (_LOAD, 0, 0, 4),
        (_EQUAL, 1, 0, _ARCHITECTURE),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, 0),
        (_AT_LEAST, 0, 1, _X32),
        (_RETURN, 0, 0, _REFUSE),
        *opening,
        *((_EQUAL, len(numbers) - index, 0, number) for index, number in enumerate(numbers)),
        (_RETURN, 0, 0, _REFUSE),
        (_RETURN, 0, 0, _ALLOW),
    ]
    return b"".join(struct.pack("=HBBI", *step) for step in steps)


def _confine() -> None:
    """Have the kernel refuse this process, from now on, all calls but the allowed; OSError where it cannot."""
    program = ctypes.create_string_buffer(_program())
    record = ctypes.create_string_buffer(struct.pack("@HP", (len(program) - 1) // 8, ctypes.addressof(program)))
    libc = ctypes.CDLL(None, use_errno=True)
    for arguments in (
        (_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0),
        (_PR_SET_SECCOMP, _MODE_FILTER, ctypes.c_void_p(ctypes.addressof(record)), 0, 0),
    ):
        if libc.prctl(*arguments) != 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _limit(seconds: int, megabytes: int) -> None:
    for kind, value in (
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_AS, megabytes * 2**20),
        (resource.RLIMIT_NOFILE, 64),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NPROC, 0),
    ):
        _, hard = resource.getrlimit(kind)
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (value, value))


def main() -> None:
    """Run what standard input asks for; the argument is the descriptor that hears the word if all ends well, and else
    the last line of the error.
    """
    request: dict[str, Any] = json.load(sys.stdin)
    result = int(sys.argv[1])
    try:
        _limit(request["seconds"], request["memory_mb"])
        _confine()
    except OSError as error:
        os.write(result, f"{request['word']} {error}".encode())
        sys.exit(UNCONFINED)
    random.seed(0)
    names = {"__name__": "__main__"}
    try:
        for title, text in request["programs"].items():
            exec(compile(text, f"<{title}>", "exec"), names)
        said = request["word"]
    except BaseException as error:  # whatever a program raises
        said = "".join(traceback.format_exception_only(error)).strip().splitlines()[-1][:_MOST_SAID]
    os.write(result, said.encode(errors="replace"))


if __name__ == "__main__":
    main()
