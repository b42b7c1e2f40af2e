"""Programs that a model wrote, run where they can do little harm.

A program runs in a fresh Python without site-packages, in an empty environment, with the standard library alone. The
kernel (seccomp) refuses it every system call that is not on a short list (`rlora.rewards.confined`): no socket of any
kind, no process or thread, no signal to others, no change to any file or folder, wherever it lies. Its CPU time, wall
time and memory are limited.

What is not kept from it: reading what this user may read. Nothing that it reads can leave, since there is no network
and its output is thrown away, but for the last line of an error, which is a verdict's reason. The tests run in its
process, so a program that looks for them (in its own frames) can pass without solving anything: look at rollouts. It is
a limit, not a virtual machine: a hole of the kernel's in the calls that are allowed is a hole here.
"""

import json
import os
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass

from rlora.errors import ConfigError
from rlora.rewards import confined


@dataclass(frozen=True, slots=True, kw_only=True)
class Ran:
    """What became of a program: whether it ran to its end, and the last line of its error, or "" where it has none."""

    is_done: bool
    error: str = ""


def check_sandbox() -> None:
    """Raise ConfigError where programs cannot be confined."""
    if why := confined.unsupported():
        raise ConfigError(f"generated programs cannot be confined here: {why}. Take another reward, or machine.")


def run_programs(programs: Mapping[str, str], *, seconds: int = 2, memory_mb: int = 256) -> Ran:
    """Run Python texts one after the other in one confined process, each finding the names of those before.

    Args:
        programs: The texts by title, which is what tracebacks call them.
        seconds: CPU seconds for all; three times as many by the clock.
        memory_mb: Address space, in MiB.

    Raises:
        ConfigError: Processes cannot be confined here: then nothing was run.

    Example:
        >>> run_programs({"answer": "x = 2", "tests": "assert x == 3"})
        Ran(is_done=False, error='AssertionError')
    """
    check_sandbox()
    word = secrets.token_hex(16)
    request = json.dumps({"programs": dict(programs), "seconds": seconds, "memory_mb": memory_mb, "word": word})
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as heard, tempfile.TemporaryDirectory() as folder:
        try:
            code = _code_of(request, folder, writing, seconds=3 * seconds)
        finally:
            os.close(writing)
        said = heard.read().decode(errors="replace")
    if said == word:
        return Ran(is_done=True)
    if code == confined.UNCONFINED and said.startswith(word):
        why = said.removeprefix(word).strip()
        raise ConfigError(f"generated programs cannot be confined here: the kernel says {why}. Take another reward.")
    if code is None or code < 0:
        return Ran(is_done=False, error=f"it took more than {seconds} s, or its process was ended")
    return Ran(is_done=False, error=said or f"it ended its process with code {code}")


def _code_of(request: str, folder: str, result: int, *, seconds: int) -> int | None:
    """Return the exit code of the confined process, negative for a signal; None where it had to be killed."""
    process = subprocess.Popen(
        [sys.executable, "-s", "-S", "-P", confined.__file__, str(result)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=folder,
        env={"PYTHONHASHSEED": "0", "LC_ALL": "C.UTF-8"},
        pass_fds=[result],
        start_new_session=True,
    )
    try:
        process.communicate(request.encode(errors="surrogatepass"), timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return None
    except BrokenPipeError:  # it ended before it had read everything
        process.wait()
    return process.returncode
