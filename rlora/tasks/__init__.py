"""The data sets, by name. A new one is a file with `INSTRUCTION` and `load`, and one line in `TASKS`.

A user's own data set is a Task in a module of theirs, `--data my_module:my_task`; `--data reasoning_gym:NAME` is any
task of that package.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from rlora.errors import ConfigError, DataError
from rlora.registry import find
from rlora.tasks.data import GIVEN, OWN, DataConfig
from rlora.tasks.sets import aime, arithmetic, deepmath, gsm8k, gym, hendrycks_math, own
from rlora.types import Problem

__all__ = ["TASKS", "DataConfig", "Task", "task"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A data set: how to read a split ("train" or "test"), what to tell the model, and which judge rewards it.

    `judge` is a name of `rlora.rewards`: a line of its table, or a `module:name`. Tasks for tests alone raise DataError
    when asked for "train".

    Example:
        >>> def read(split, data):
        ...     return [Problem(id=f"{split}/1", question="What is 2 + 3?", answer="5", source="mine")]
        >>> Task(read=read, instruction="Answer with the number only.", judge="number").load("test")[0].answer
        '5'
    """

    read: Callable[[str, DataConfig], list[Problem]]
    instruction: str
    judge: str = "mathematics"

    def load(self, split: str, data_dir: str | None = None) -> list[Problem]:
        """Return a whole split of a named data set."""
        return self.read(split, DataConfig(data_dir=data_dir))


def _not_given(split: str, data: DataConfig) -> list[Problem]:
    raise DataError("this run's problems were given by a script, as rlora.run(config, problems); start that again.")


TASKS: dict[str, Task] = {
    "arithmetic": Task(read=arithmetic.load, instruction=arithmetic.INSTRUCTION, judge="number"),
    "digits": Task(read=arithmetic.load_digits, instruction="", judge="number"),
    "gsm8k": Task(read=gsm8k.load, instruction=gsm8k.INSTRUCTION, judge="number"),
    "math": Task(read=hendrycks_math.load, instruction=hendrycks_math.INSTRUCTION),
    "math500": Task(read=hendrycks_math.load_500, instruction=hendrycks_math.INSTRUCTION),
    "deepmath": Task(read=deepmath.load, instruction=deepmath.INSTRUCTION),
    "aime2024": Task(read=aime.load_2024, instruction=aime.INSTRUCTION),
    "aime2025": Task(read=aime.load_2025, instruction=aime.INSTRUCTION),
    "aime2026": Task(read=aime.load_2026, instruction=aime.INSTRUCTION),
    OWN: Task(read=own.load, instruction=own.INSTRUCTION),
    GIVEN: Task(read=_not_given, instruction=""),
}


def task(name: str) -> Task:
    """Return the task of this name: one of `TASKS`, a `reasoning_gym:NAME`, or a user's `module:name`, a Task or a
    function that returns one.

    Raises:
        ConfigError: Nothing has this name, or what has it is no Task.
    """
    if name.startswith(gym.PREFIX):
        return _of_gym(name.removeprefix(gym.PREFIX))
    found = find(name, TASKS, unknown=f"the data set {name!r} is unknown")
    if not isinstance(found, Task) and callable(found):
        found = found()
    if not isinstance(found, Task):
        raise ConfigError(
            f"the data set {name} is {found!r}; it must be a rlora.tasks.Task, or a function without arguments "
            "that returns one."
        )
    return found


def _of_gym(name: str) -> Task:
    gym.check_gym(name)
    return Task(read=partial(gym.load_gym, name), instruction=gym.INSTRUCTION, judge=gym.JUDGE)
