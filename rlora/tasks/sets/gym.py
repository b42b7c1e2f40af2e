"""The tasks of the package reasoning-gym, `--data reasoning_gym:NAME`: generated, each with a scorer of its own."""

import difflib
import json
import os
import subprocess
import sys
from typing import Any

from rlora.errors import ConfigError, DataError, MissingDependencyError
from rlora.tasks.data import DataConfig
from rlora.tasks.select import refuse_filters
from rlora.tasks.sets import gym_items
from rlora.types import Problem

PREFIX = "reasoning_gym:"
JUDGE = "rlora.rewards.gym:score"
INSTRUCTION = "Think step by step. Then give the final answer alone, as <answer>answer</answer>."
_SEEDS = {"train": 1, "test": 1_000_001}  # far apart: item i is often drawn from seed + i
_SIZES = {"train": 1000, "test": 200}


def check_gym(name: str) -> None:
    """Raise ConfigError where reasoning-gym has no task of this name, MissingDependencyError where it is not there."""
    known = _package().factory.DATASETS
    if name not in known:
        near = difflib.get_close_matches(name, list(known), n=3) or sorted(known)[:3]
        raise ConfigError(
            f"the data set {PREFIX + name!r} is unknown: reasoning-gym has {len(known)} tasks, as {', '.join(near)}."
        )


def load_gym(name: str, split: str, data: DataConfig) -> list[Problem]:
    """Return generated problems: 1,000 to train on, 200 others, of another seed, for the test.

    The id of each holds what it can be made from again, which is how it is scored. Where a task has few questions,
    those that are in the test too are dropped from training, as everywhere. Raises DataError where none can be made.
    """
    refuse_filters(data, name=PREFIX + name)
    seed, size = _SEEDS[split], _SIZES[split]
    return [
        Problem(
            id=f"reasoning_gym/{name}/{split}/seed{seed}-of{size}/{index}",
            question=question,
            answer=answer,
            source=PREFIX + name,
        )
        for index, (question, answer) in enumerate(_items(name, seed, size))
    ]


def _items(name: str, seed: int, size: int) -> list[list[str]]:
    """Return question and answer of each item, the same in every process."""
    command = [sys.executable, "-P", gym_items.__file__, name, str(seed), str(size)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONHASHSEED": "0"})
    if done.returncode:
        why = (done.stderr.strip().splitlines() or ["it says nothing"])[-1]
        raise DataError(f"reasoning-gym cannot make problems of {name!r} from its defaults: {why}. Take another task.")
    return json.loads(done.stdout)


def _package() -> Any:
    try:
        import reasoning_gym
    except ModuleNotFoundError as error:
        if error.name != "reasoning_gym":
            raise
        raise MissingDependencyError(
            f"--data {PREFIX}NAME needs the package reasoning-gym, which is not installed: pip install 'rlora[gym]'."
        ) from error
    return reasoning_gym
