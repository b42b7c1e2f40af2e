"""Programs from elsewhere, such as a chat template, run with a limit on their time and on their memory."""

import contextlib
import os
import resource
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

_OVER_MEMORY = 3


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise TimeoutError in the block once it has run for `seconds`; only in a main thread, where signals arrive."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(_number: int, _frame: FrameType | None) -> None:
        raise TimeoutError(f"it did not end within {seconds:g} s")

    previous = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def exceeded(work: Callable[[], object], *, seconds: float, gigabytes: float) -> str:
    """Return which limit `work` passes when it is tried in a fork of this process: "time", "memory", or "" for neither.

    What it returns, raises or changes stays in the fork. Memory is what it takes beside what is taken already; where
    the system does not tell that (macOS), time alone is limited.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of a fork beside threads: the child uses none of them
        child = os.fork()
    if child == 0:
        code = 0
        try:
            _limit_memory(round(gigabytes * 2**30))
            work()
        except MemoryError:
            code = _OVER_MEMORY
        except BaseException:  # the parent meets it too, and says so
            code = 1
        finally:
            os._exit(code)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            is_over = os.waitstatus_to_exitcode(status) in (_OVER_MEMORY, -signal.SIGKILL)
            return "memory" if is_over else ""
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return "time"


def _limit_memory(more: int) -> None:
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except OSError:
        return
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    wanted = pages * resource.getpagesize() + more
    resource.setrlimit(resource.RLIMIT_AS, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard))
