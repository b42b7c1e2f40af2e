"""Kill toy runs, or cohorts of four, with SIGKILL at random moments and let each go on to its end.

    python -m support.kills FOLDER NUMBER SEED [cohort]

Imports once and forks for every run, so that a run takes a second: the time is spent where kills can hurt. Prints one
JSON line: how long the straight run took, and at which moments the others were killed.
"""

import contextlib
import dataclasses
import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from rlora.cohort.fates import Rules
from rlora.evaluation.held_out import EvaluationConfig
from rlora.loop import run
from support.cohorts import cohort_of
from support.runs import toy

SIZE = {
    "problems_per_step": 6,
    "samples_per_problem": 64,
    "num_steps": 6,
    "evaluation": EvaluationConfig(every=2, num_problems=4),
}


def one_run(folder: Path) -> None:
    run(toy(folder, **SIZE))


def one_cohort(folder: Path) -> None:
    """Four members, of which one is frozen and the worse half of the others stops."""
    configs = [toy(folder, **SIZE | {"samples_per_problem": 32, "seed": seed}) for seed in range(3)]
    optimizer = dataclasses.replace(configs[0].optimizer, learning_rate=1e30)
    cohort_of(folder, [*configs, dataclasses.replace(configs[0], optimizer=optimizer)], rules=Rules(halving=(3,))).run()


def in_a_child(work: Callable[[Path], None], folder: Path, *, kill_after: float | None = None) -> tuple[bool, float]:
    """Run to the end, or until killed; return whether it ended by itself, and its seconds."""
    start = time.monotonic()
    child = os.fork()
    if child == 0:
        os.setsid()
        with (folder.parent / f"{folder.name}.log").open("a") as log:
            os.dup2(log.fileno(), 2)
            code = 1
            with contextlib.suppress(BaseException):
                work(folder)
                code = 0
            os._exit(code)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    ended = os.WIFEXITED(status)
    if ended and os.WEXITSTATUS(status) != 0:
        raise SystemExit(f"the run in {folder} failed; see its log")
    return ended, time.monotonic() - start


def main() -> None:
    folder, number, seed = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    work = one_cohort if sys.argv[4:] == ["cohort"] else one_run
    torch.set_num_threads(1)
    in_a_child(work, folder / "warm")  # the first run of a machine makes the toy model
    _, seconds = in_a_child(work, folder / "straight")
    moments, draw = [], random.Random(seed)
    for index in range(number):
        killed = False
        while not killed:  # a run that was faster than the kill is drawn again
            moment = draw.uniform(0, seconds)
            target = folder / f"killed-{index}-{len(moments)}"
            ended, _ = in_a_child(work, target, kill_after=moment)
            killed = not ended
        moments.append({"run": target.name, "seconds": moment})
        in_a_child(work, target)
    print(json.dumps({"straight_seconds": seconds, "kills": moments}))


if __name__ == "__main__":
    main()
