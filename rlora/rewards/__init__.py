"""Judges: what a completion earns, and why. A new one is a file and a line in `JUDGES`, or a user's `module:name`."""

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from rlora.errors import ConfigError
from rlora.registry import check_name, find
from rlora.rewards.function import FunctionJudge, RewardFunction
from rlora.rewards.judge import AnswerJudge, Judge, doubts_of, explain, judged, measures_of
from rlora.rewards.mathematics import Mathematics
from rlora.verify import Verifier

__all__ = [
    "JUDGES", "AnswerJudge", "Judge", "RewardFunction", "as_judge", "check_judge", "doubts_of", "explain", "judged",
    "measures_of", "name_of", "open_judge",
]  # fmt: skip

JUDGES: Mapping[str, Callable[..., Judge]] = {
    "mathematics": Mathematics,  # the answer must be marked, or be the whole last line
    "last_number": partial(Mathematics, last_number=True),  # or the last number of a text
    "number": partial(Mathematics, last_number=True, is_number=True),  # the same, and it must be a number
}


def open_judge(name: str, verifier: Verifier, *, is_worked_out: bool = True) -> Judge:
    """Return the judge of this name: one of `JUDGES`, or a user's `module:name`, a function or a `Judge`.

    `verifier` is what judges of mathematics compare with; its workers start when one of them needs them.
    `is_worked_out` has them refuse an answer that is less worked out than its gold.

    Raises:
        ConfigError: Nothing has this name, or what has it is neither a function of (completion, problem) nor a judge.
    """
    found = find(name, JUDGES, unknown=_unknown(name))
    return found(verifier, is_worked_out=is_worked_out) if name in JUDGES else as_judge(found, name=name)


def as_judge(reward: RewardFunction | Judge, *, name: str) -> Judge:
    """Return the judge that an object is, a function of (completion, problem) or a `Judge`; errors call it `name`.

    Raises:
        ConfigError: It is neither.
    """
    if inspect.isclass(reward):
        raise ConfigError(f"the reward {name} is a class; name an object of it, or a function.")
    if callable(getattr(reward, "judge", None)):
        return reward  # pyright: ignore[reportReturnType] - it has the method that makes it one
    if callable(reward):
        return FunctionJudge(reward, name=name)
    raise ConfigError(f"the reward {name} is {reward!r}; it must be a function of (completion, problem), or a Judge.")


def name_of(reward: RewardFunction | Judge) -> str:
    """Return what a run's configuration calls a reward that was given as an object: where it was defined."""
    named: Any = reward if hasattr(reward, "__qualname__") else type(reward)
    return f"{named.__module__}:{named.__qualname__}"


def check_judge(name: str) -> None:
    """Raise ConfigError where `open_judge` would; what rlora brings is known by its name."""
    check_name(name, JUDGES, unknown=_unknown(name))
    if name not in JUDGES:
        with Verifier() as verifier:  # starts nothing
            open_judge(name, verifier)


def _unknown(name: str) -> str:
    return f"the reward {name!r} is unknown"
