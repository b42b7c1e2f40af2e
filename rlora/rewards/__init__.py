"""Judges: what a completion earns, and why. A new one is a file and a line in `JUDGES`, or a user's `module:name`."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

from rlora.errors import ConfigError
from rlora.registry import check_name, find
from rlora.rewards.callers import InWorkers
from rlora.rewards.combined import CORRECT, Combined, Part, is_share, is_sum, weights_of
from rlora.rewards.config import DEFAULTS, JudgeConfig, RewardName
from rlora.rewards.function import FunctionJudge, RewardFunction
from rlora.rewards.judge import AnswerJudge, Judge, doubts_of, explain, judged, measures_of, sees_groups
from rlora.rewards.mathematics import Mathematics
from rlora.rewards.properties import Format, Length
from rlora.rewards.returned import group_reward, is_group_reward
from rlora.verify import Verifier

__all__ = [
    "CORRECT", "JUDGES", "AnswerJudge", "Judge", "JudgeConfig", "RewardFunction", "RewardName", "as_judge",
    "check_judge", "doubts_of", "explain", "group_reward", "is_share", "judged", "measures_of", "name_of",
    "open_judge", "opened", "sees_groups",
]  # fmt: skip

JUDGES: Mapping[str, Callable[..., Judge]] = {
    "mathematics": Mathematics,  # the answer must be marked, or be the whole last line
    "last_number": partial(Mathematics, last_number=True),  # or the last number of a text
    "number": partial(Mathematics, last_number=True, is_number=True),  # the same, and it must be a number
    "format": Format,  # an answer is marked
    "length": Length,  # tokens
}


def open_judge(
    reward: str,
    verifier: Verifier,
    *,
    own: str = "",
    is_worked_out: bool = True,
    config: JudgeConfig = DEFAULTS,
) -> Judge:
    """Return the judge of this name: one of `JUDGES`, or a user's `module:name`, a function or a `Judge`; or a sum.

    A user's function runs in workers, which start when they are needed and end with the judge (`opened`).

    Args:
        reward: A name, or the parts of a sum with their weights, as "correct=1.0 format=0.2".
        verifier: What judges of mathematics compare with; its workers start when one of them needs them.
        own: The reward of the data set, which the name `correct` stands for; "" where there is none.
        is_worked_out: Have judges of mathematics refuse an answer that is less worked out than its gold.
        config: The limits of a user's function, and the bounds of a sum.

    Raises:
        ConfigError: Nothing has this name, or what has it is neither a function of (completion, problem) nor a judge.
    """

    if config.is_clipped and not is_sum(reward):
        raise ConfigError(
            f"judge.min_reward and judge.max_reward bound a sum, and the reward {reward!r} is none: make it one, as "
            f"{reward}=1."
        )
    return _open(reward, verifier, own=own, is_worked_out=is_worked_out, config=config)


def _open(reward: str, verifier: Verifier, *, own: str, is_worked_out: bool, config: JudgeConfig) -> Judge:
    if is_sum(reward):
        parts = {
            name: Part(judge=_open(name, verifier, own=own, is_worked_out=is_worked_out, config=config), weight=weight)
            for name, weight in weights_of(reward).items()
        }
        return Combined(parts, config)
    if reward == CORRECT:
        if not own:
            raise ConfigError(f"the reward {CORRECT!r} is a data set's own judge, and there is no data set here.")
        return _open(own, verifier, own="", is_worked_out=is_worked_out, config=config)
    return _open_one(reward, verifier, is_worked_out=is_worked_out, config=config)


def _open_one(name: str, verifier: Verifier, *, is_worked_out: bool, config: JudgeConfig) -> Judge:
    check_name(name, (CORRECT, *JUDGES), unknown=_unknown(name))
    found = find(name, JUDGES, unknown=_unknown(name))
    if name in JUDGES:
        return found(verifier, is_worked_out=is_worked_out)
    return as_judge(found, name=name, config=config, is_named=not name.startswith("__main__:"))


@contextmanager
def opened(judge: Judge) -> Iterator[Judge]:
    """Yield a judge, whose workers, if it has any, end with the block."""
    try:
        yield judge
    finally:
        if isinstance(judge, Combined | FunctionJudge):
            judge.close()


def as_judge(
    reward: RewardFunction | Judge, *, name: str, config: JudgeConfig = DEFAULTS, is_named: bool = False
) -> Judge:
    """Return the judge that an object is, a function of (completion, problem) or a `Judge`; errors call it `name`.

    A function that is known as `module:name`, as `is_named` says, runs in workers, which import that module. An object
    runs in this process: a worker would not see what a script has changed in its module, nor a closure's values.

    Raises:
        ConfigError: It is neither.
    """
    if inspect.isclass(reward):
        raise ConfigError(f"the reward {name} is a class; name an object of it, or a function.")
    if callable(getattr(reward, "judge", None)):
        return reward  # pyright: ignore[reportReturnType] - it has the method that makes it one
    if callable(reward):
        caller = InWorkers(name, config, is_group=is_group_reward(reward)) if is_named else None
        return FunctionJudge(reward, name=name, config=config, caller=caller)
    raise ConfigError(f"the reward {name} is {reward!r}; it must be a function of (completion, problem), or a Judge.")


def name_of(reward: RewardFunction | Judge) -> str:
    """Return what a run's configuration calls a reward that was given as an object: where it was defined."""
    named: Any = reward if hasattr(reward, "__qualname__") else type(reward)
    return f"{named.__module__}:{named.__qualname__}"


def check_judge(reward: str, *, own: str = "", config: JudgeConfig = DEFAULTS) -> None:
    """Raise ConfigError where `open_judge` would; what rlora brings is known by its name."""
    with Verifier() as verifier:  # starts nothing
        open_judge(reward, verifier, own=own, config=config)


def _unknown(name: str) -> str:
    return f"the reward {name!r} is unknown"
