"""The worker process: reads pairs of answers on its input and writes whether they are the same.

Each task runs under a timer of the process's own CPU time whose signal the kernel delivers as death (SIGPROF's
default), so no code, not even C, can outlast it, and a busy machine does not shorten it. It ends when its input ends
or its parent is another. PR_SET_PDEATHSIG is not used: it fires when the parent's *thread* that started the worker
ends.
"""

import os
import resource
import select
import signal
import sys
from typing import BinaryIO

_POLL_SECONDS = 2.0


def _limit_memory(megabytes: int) -> None:
    size = megabytes * 2**20
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (size if hard == resource.RLIM_INFINITY else min(size, hard), hard))


def _private_output() -> BinaryIO:
    """Return a stream on the real output, and point file descriptor 1 at stderr, so that no print breaks a frame."""
    output = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return output


def _is_orphan(parent: int) -> bool:
    return os.getppid() != parent


def main() -> None:
    """Serve until the input ends; arguments: the parent's process id, CPU seconds a task, MiB of address space."""
    parent, seconds, megabytes = int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what an interrupt means
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    output = _private_output()
    _limit_memory(megabytes)
    from rlora.verify import protocol
    from rlora.verify.judge_pair import judge_pair, load_for

    output.write(protocol.pack({"ready": True}))
    output.flush()
    source = os.fdopen(0, "rb", buffering=0, closefd=False)
    while True:
        while not select.select([0], [], [], _POLL_SECONDS)[0]:
            if _is_orphan(parent):
                return
        request = protocol.read(source)
        if request is None:
            return
        gold, answer = str(request["gold"]), str(request["answer"])
        load_for(gold, answer)
        signal.setitimer(signal.ITIMER_PROF, seconds)
        try:
            kind = judge_pair(gold, answer, is_rounding=bool(request["is_rounding"]))
        except MemoryError:
            os._exit(3)  # the parent reads the end of the pipe as a limit that was passed
        except Exception:  # the project's one broad except: parsers fail in any way on text, which is data, not a bug
            kind = "unparsed"
        signal.setitimer(signal.ITIMER_PROF, 0)
        output.write(protocol.pack({"kind": kind}))
        output.flush()


if __name__ == "__main__":
    main()
