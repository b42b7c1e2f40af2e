"""The data sets, by name. A new one is a file with `INSTRUCTION` and `load`, and one line in `TASKS`."""

from collections.abc import Callable
from dataclasses import dataclass

from rlora.errors import ConfigError
from rlora.tasks.data import OWN, DataConfig
from rlora.tasks.sets import aime, arithmetic, deepmath, gsm8k, hendrycks_math, own
from rlora.types import Problem

__all__ = ["TASKS", "DataConfig", "Task", "task"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A data set: how to read a split ("train" or "test"), what to tell the model, and what counts as an answer.

    `last_number` lets the last number of a text be its answer; `is_number` asks for a number that was worked out, so
    that repeating "27 + 85" earns nothing. Where problems are hard a stray last number is luck, so there the answer
    must be marked. Tasks for tests alone raise DataError when asked for "train".
    """

    read: Callable[[str, DataConfig], list[Problem]]
    instruction: str
    last_number: bool = True
    is_number: bool = False

    def load(self, split: str, data_dir: str | None = None) -> list[Problem]:
        """Return a whole split of a named data set."""
        return self.read(split, DataConfig(data_dir=data_dir))


TASKS: dict[str, Task] = {
    "arithmetic": Task(read=arithmetic.load, instruction=arithmetic.INSTRUCTION, is_number=True),
    "digits": Task(read=arithmetic.load_digits, instruction="", is_number=True),
    "gsm8k": Task(read=gsm8k.load, instruction=gsm8k.INSTRUCTION, is_number=True),
    "math": Task(read=hendrycks_math.load, instruction=hendrycks_math.INSTRUCTION, last_number=False),
    "math500": Task(read=hendrycks_math.load_500, instruction=hendrycks_math.INSTRUCTION, last_number=False),
    "deepmath": Task(read=deepmath.load, instruction=deepmath.INSTRUCTION, last_number=False),
    "aime2024": Task(read=aime.load_2024, instruction=aime.INSTRUCTION, last_number=False),
    "aime2025": Task(read=aime.load_2025, instruction=aime.INSTRUCTION, last_number=False),
    "aime2026": Task(read=aime.load_2026, instruction=aime.INSTRUCTION, last_number=False),
    OWN: Task(read=own.load, instruction=own.INSTRUCTION, last_number=False),
}


def task(name: str) -> Task:
    """Return the task of this name; ConfigError lists the known ones."""
    if name not in TASKS:
        raise ConfigError(f"the data set {name!r} is unknown; it must be one of {', '.join(TASKS)}.")
    return TASKS[name]
