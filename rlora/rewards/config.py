"""The options of judging: what a function of a user's may take, what its failure means, and the bounds of a sum."""

import math
from dataclasses import dataclass
from typing import Annotated, Literal

from tyro.constructors import PrimitiveConstructorSpec

from rlora.errors import ConfigError
from rlora.rewards.judge import MAX_REWARD


def _joined(words: list[str]) -> str | None:
    if not words:
        raise ValueError("name a reward")
    return None if words == ["None"] else " ".join(words)


RewardName = Annotated[
    str | None,
    PrimitiveConstructorSpec(
        nargs="*",
        metavar="NAME ...",
        instance_from_str=_joined,
        is_instance=lambda value: value is None or isinstance(value, str),
        str_from_instance=lambda value: ["None"] if value is None else value.split(),
    ),
]
"""A reward on the command line: a name, or several words that are the parts of a sum and become one text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeConfig:
    """How rewards are had from functions of yours, which run in worker processes."""

    num_workers: int = 2
    """Worker processes for each function of yours (at least 1); they start when the first completion is judged."""
    seconds: float = 5.0
    """CPU seconds that one call of your function may take."""
    wall_seconds: float = 30.0
    """Seconds by the clock that one call of it may take, whatever it waits for."""
    memory_mb: int = 4096
    """Address space of a worker, in MiB (at least 256), with all that your module imports."""
    on_failure: Literal["end", "go_on"] = "end"
    """What happens where your function hangs, raises, or returns no reward: end the run, naming the completion, or go
    on with failed_reward in its place; metrics count them as verdict/num_raised.
    """
    failed_reward: float = 0.0
    """What a completion earns at which your function failed, with --judge.on-failure go_on."""
    min_reward: float | None = None
    """Least value of a sum of parts (--reward correct=1.0 ...); what is below is raised to it."""
    max_reward: float | None = None
    """Largest value of a sum of parts."""

    def check(self) -> None:
        """Raise ConfigError for the first value that breaks a rule."""
        for name, least in (("num_workers", 1), ("seconds", 0.01), ("wall_seconds", 0.01), ("memory_mb", 256)):
            value = getattr(self, name)
            if not (value >= least and math.isfinite(value)):
                raise ConfigError(f"judge.{name} is {value}; it must be at least {least}, and finite.")
        for name in ("failed_reward", "min_reward", "max_reward"):
            value = getattr(self, name)
            if value is not None and not abs(value) <= MAX_REWARD:
                raise ConfigError(f"judge.{name} is {value}; it must be from -{MAX_REWARD:g} to {MAX_REWARD:g}.")
        if self.min_reward is not None and self.max_reward is not None and self.min_reward >= self.max_reward:
            raise ConfigError(f"judge.min_reward is {self.min_reward}; it must be below max_reward, {self.max_reward}.")

    @property
    def is_clipped(self) -> bool:
        """Whether sums have a bound."""
        return (self.min_reward, self.max_reward) != (None, None)

    def clipped(self, reward: float) -> float:
        """Return a sum within its bounds.

        Example:
            >>> JudgeConfig(max_reward=1.0).clipped(1.25)
            1.0
        """
        if self.min_reward is not None:
            reward = max(reward, self.min_reward)
        return reward if self.max_reward is None else min(reward, self.max_reward)


DEFAULTS = JudgeConfig()
