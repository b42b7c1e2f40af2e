"""The data sets, by name. A new one is a file with `INSTRUCTION` and `load`, and one line in `TASKS`."""

from collections.abc import Callable
from dataclasses import dataclass

from rlora.errors import ConfigError
from rlora.tasks import arithmetic, gsm8k
from rlora.types import Problem


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A data set: how to load a split, what to tell the model, and what counts as an answer.

    `last_number` lets the last number of a text be its answer; `is_number` asks for a number that was worked out, so
    that repeating "27 + 85" earns nothing.
    """

    load: Callable[[str, str | None], list[Problem]]
    instruction: str
    last_number: bool = True
    is_number: bool = False


TASKS: dict[str, Task] = {
    "arithmetic": Task(load=arithmetic.load, instruction=arithmetic.INSTRUCTION, is_number=True),
    "digits": Task(load=arithmetic.load_digits, instruction="", is_number=True),
    "gsm8k": Task(load=gsm8k.load, instruction=gsm8k.INSTRUCTION, is_number=True),
}


def task(name: str) -> Task:
    """Return the task of this name; ConfigError lists the known ones."""
    if name not in TASKS:
        raise ConfigError(f"the data set {name!r} is unknown; it must be one of {', '.join(TASKS)}.")
    return TASKS[name]
