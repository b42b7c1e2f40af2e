"""What a recipe script calls: command line in, run directory out, errors as one readable message."""

import os
import re
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from transformers.utils.logging import disable_progress_bar

from rlora.config import cli, with_home
from rlora.errors import EngineError, EngineStartError, RloraError, message_of
from rlora.loop import run
from rlora.resume import branched
from rlora.state import Resumable, checkpoints_of
from rlora.system.interrupts import Interrupted

C = TypeVar("C", bound=Resumable)
_FAILURES = "RLORA_ENGINE_FAILURES"  # "STEP:COUNT" of the failures in a row, handed to the process that goes on
_MAX_FAILURES = 3


def main(
    presets: Mapping[str, C],
    *,
    description: str | None,
    arguments: Sequence[str] | None = None,
    program: str | None = None,
    train: Callable[[C], Any] = run,
) -> None:
    """Run the recipe that the command line describes, or `arguments`; `program` is what the help calls the command.

    `train` carries out what the presets configure.

    An engine that fails is replaced together with the process, which goes on from the last checkpoint. Exit codes:
    0 done, 1 an error that the message explains, 2 a wrong option, 130 and 143 ended by SIGINT and SIGTERM.
    """
    config = with_home(cli(presets, description=description or "", arguments=arguments, program=program))

    def state() -> tuple[str, list[int]]:
        own, _ = branched(config)
        return own.run_dir, checkpoints_of(own).steps()

    with explained(state):
        train(config)


@contextmanager
def explained(state: Callable[[], tuple[str, list[int]]]) -> Iterator[None]:
    """Turn what ends the block into a message and an exit code, those of `main`; start again where an engine failed.

    `state` returns the folder that is written, and the steps that it has checkpoints of.
    """
    disable_progress_bar()  # of Transformers, whose bars for loading weights would fill the log
    try:
        yield
    except EngineStartError as error:
        print(message_of(error), file=sys.stderr)
        raise SystemExit(1) from error
    except EngineError as error:
        _start_again(*state(), error)
    except RloraError as error:
        print(message_of(error), file=sys.stderr)
        raise SystemExit(1) from error
    except KeyboardInterrupt as error:
        folder, steps = state()
        last = f"the last checkpoint is of step {steps[-1]}" if steps else "no step was finished"
        print(
            f"Interrupted ({error}). {folder} is whole: {last}. To go on from there:\n  {shlex.join(sys.orig_argv)}",
            file=sys.stderr,
        )
        raise SystemExit(error.code if isinstance(error, Interrupted) else 130) from None


def failures_at(step: int, stated: str) -> int:
    """Return how many failures at a step the process before states, 0 for anything that it cannot have stated."""
    found = re.fullmatch(rf"{step}:([1-9]\d{{0,8}})", stated, re.ASCII)
    return int(found[1]) if found else 0


def _start_again(folder: str, steps: Sequence[int], error: EngineError) -> None:
    """Replace this process by a new one of the same command, unless the engine failed three times at this step."""
    step = steps[-1] if steps else 0
    failures = 1 + failures_at(step, os.environ.get(_FAILURES, ""))
    print(message_of(error), file=sys.stderr)
    if failures >= _MAX_FAILURES:
        print(
            f"The engine failed {failures} times in a row at step {step}. {folder} is whole up to there: mend "
            "the cause and start the same command again, or start a new run from an earlier step with another rate or "
            f"seed: --branch NEW_DIR@{max(0, step - 1)}.",
            file=sys.stderr,
        )
        raise SystemExit(1) from error
    print(f"Starting again from step {step} (failure {failures} of {_MAX_FAILURES}).", file=sys.stderr, flush=True)
    os.environ[_FAILURES] = f"{step}:{failures}"
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
