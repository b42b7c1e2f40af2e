"""The data sets, by name. A new one is a file with `INSTRUCTION` and `load(split, data_dir)`, and one line in `TASKS`."""

from collections.abc import Callable
from dataclasses import dataclass

from rlora.errors import ConfigError
from rlora.tasks import arithmetic, gsm8k
from rlora.types import Problem


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A data set: how to load a split, what to tell the model, and whether a text's last number may be its answer."""

    load: Callable[[str, str | None], list[Problem]]
    instruction: str
    last_number: bool = True


TASKS: dict[str, Task] = {
    "arithmetic": Task(load=arithmetic.load, instruction=arithmetic.INSTRUCTION),
    "digits": Task(load=arithmetic.load_digits, instruction=""),
    "gsm8k": Task(load=gsm8k.load, instruction=gsm8k.INSTRUCTION),
}


def task(name: str) -> Task:
    """Return the task of this name; ConfigError lists the known ones."""
    if name not in TASKS:
        raise ConfigError(f"the data set {name!r} is unknown; it must be one of {', '.join(TASKS)}.")
    return TASKS[name]
