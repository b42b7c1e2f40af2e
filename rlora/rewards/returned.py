"""What a user's function returns, as rewards with their reasons; what is none is said in words."""

from collections.abc import Callable, Iterable
from numbers import Real
from typing import Any

from rlora.errors import RewardError
from rlora.rewards.judge import REWARD_RULE, is_reward

Reward = tuple[float, str]
"""A reward and why it was earned ("": not said)."""
_SHOWN = 200  # characters of what was returned


def group_reward(function: Callable[..., Any]) -> Callable[..., Any]:
    """Mark a function as one of all completions of a problem: `f(completions, problem) -> rewards`, in their order.

    Example:
        >>> @group_reward
        ... def longest(completions, problem):
        ...     best = max(map(len, completions))
        ...     return [float(len(each) == best) for each in completions]
    """
    function.is_group_reward = True  # type: ignore[attr-defined]
    return function


def is_group_reward(function: Callable[..., Any]) -> bool:
    """Return whether a function was marked by `group_reward`."""
    return getattr(function, "is_group_reward", False) is True


def rewards_in(value: Any, count: int, *, is_group: bool) -> list[Reward]:
    """Return the rewards in what a function returned for `count` completions.

    Raises:
        RewardError: It is something else; the message begins with "returned".
    """
    if not is_group:
        return [_reward_in(value)]
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise RewardError(f"returned {_shown(value)}; a reward of the whole group must return one reward a completion")
    values = list(value)
    if len(values) != count:
        raise RewardError(f"returned {len(values)} rewards for {count} completions; it must return one each, in order")
    return [_reward_in(each) for each in values]


def _reward_in(value: Any) -> Reward:
    reward, reason = value if isinstance(value, tuple) and len(value) == 2 else (value, "")
    if not isinstance(reward, Real) or not isinstance(reason, str):
        raise RewardError(f"returned {_shown(value)}; it must return a number, or a number and a text as its reason")
    if not is_reward(reward):
        raise RewardError(f"returned {_shown(value)}; a reward must be {REWARD_RULE}")
    return float(reward), reason


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
