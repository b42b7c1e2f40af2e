"""The worker process: reads pairs of answers on its input and writes whether they are the same.

A task is answered twice: when what it needs is loaded, so that no import counts towards its deadline, and when it is
decided. It runs under a timer of the process's own CPU time whose signal the kernel delivers as death (SIGPROF's
default), so no code, not even C, can outlast it, and a busy machine does not shorten it. It ends when its input ends
or its parent is another. PR_SET_PDEATHSIG is not used: it fires when the parent's *thread* that started the worker
ends.
"""

import os
import resource
import select
import signal
import sys
import traceback
from pathlib import Path
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


def _described(error: Exception) -> str:
    """Return an exception's type and the line of this package that it passed last: enough to tell a bug from data."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if Path(frame.filename).parent == Path(__file__).parent]
    return f"{type(error).__name__} in {Path(own[-1].filename).name}:{own[-1].lineno}"


def main() -> None:
    """Serve until the input ends; arguments: the parent's process id, CPU seconds a task, MiB of address space."""
    parent, seconds, megabytes = int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what an interrupt means
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    output = _private_output()
    _limit_memory(megabytes)
    from rlora.verify import protocol
    from rlora.verify.decide import Step
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
        task = protocol.task_of(request)
        load_for(task.gold, task.answer)
        output.write(protocol.pack({"loaded": True}))
        output.flush()
        steps: list[Step] = []
        error = ""
        signal.setitimer(signal.ITIMER_PROF, seconds)
        try:
            kind = judge_pair(
                task.gold, task.answer, is_rounding=task.is_rounding, trace=steps if task.is_traced else None
            )
        except MemoryError:
            os._exit(3)  # the parent reads the end of the pipe as a limit that was passed
        except Exception as failure:  # the project's one broad except: parsers fail in any way on text, which is data
            kind, error = "unparsed", _described(failure)  # the parent says so, since it may be a bug all the same
        signal.setitimer(signal.ITIMER_PROF, 0)
        output.write(protocol.pack(protocol.reply_message(kind, steps, error)))
        output.flush()


if __name__ == "__main__":
    main()
