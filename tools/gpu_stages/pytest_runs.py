"""The project's own tests as a stage: they have to pass, and there have to be some."""

import re
import subprocess
import sys
from collections.abc import Sequence

from gpu_stages.stage import ROOT, CheckError, Context

ENGINE_TESTS = ("engine", "swaps", "experts", "one_copy")  # words in names of tests in test_gpu.py that need vLLM
_STAND_INS = ("tests/test_attention.py", "tests/test_batching.py", "tests/test_logprobs.py")  # on the CPU, in seconds


def unit(context: Context) -> None:
    """The tests marked gpu that need no engine; in a rehearsal CPU tests of the same things."""
    without_engine = " and ".join(f"not {word}" for word in ENGINE_TESTS)
    of_gpu = ("-m", "gpu", "tests/test_gpu.py", "-k", without_engine)
    run_pytest(context, _STAND_INS if context.is_tiny else of_gpu)


def run_pytest(context: Context, arguments: Sequence[str]) -> None:
    """Run tests as a process and say how many passed; CheckError when one failed, or none passed."""
    command = [sys.executable, "-m", "pytest", "--no-header", "-p", "no:cacheprovider", *arguments]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    print(done.stdout, flush=True)
    counts = outcomes(done.stdout)
    passed = counts.get("passed", 0)
    context.say(pytest=counts, code=done.returncode, arguments=list(arguments), headline=f"{passed} tests passed")
    if done.returncode or not passed:
        raise CheckError(f"pytest ended with {done.returncode}, and {passed} tests passed: see {context.stage}.log")


def outcomes(printed: str) -> dict[str, int]:
    """Return pytest's counts by outcome, from the line that it ends with; empty where there is none."""
    for line in reversed(printed.splitlines()):
        counts = re.findall(r"(\d+) (passed|failed|skipped|deselected|xfailed|errors?|warnings?)\b", line)
        if counts and re.search(r" in [\d.:]+", line):
            return {outcome: int(number) for number, outcome in counts}
    return {}
