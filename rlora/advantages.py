"""How much better than its group each rollout was: rewards of a group -> advantages."""

from collections.abc import Callable, Sequence
from typing import Literal

AdvantageName = Literal["centered", "standardized", "leave_one_out", "raw"]


def centered(rewards_G: Sequence[float]) -> list[float]:
    """Return reward minus the group's mean, the default: no division by the standard deviation, which favours easy
    groups.
    """
    mean = sum(rewards_G) / len(rewards_G)
    return [reward - mean for reward in rewards_G]


def standardized(rewards_G: Sequence[float]) -> list[float]:
    """Return centered advantages over the group's standard deviation (GRPO, arXiv 2402.03300); 0 where it is 0."""
    advantages = centered(rewards_G)
    deviation = (sum(a * a for a in advantages) / len(advantages)) ** 0.5
    return [a / deviation if deviation > 0 else 0.0 for a in advantages]


def leave_one_out(rewards_G: Sequence[float]) -> list[float]:
    """Return reward minus the mean of the other rollouts (RLOO, arXiv 2402.14740)."""
    count = len(rewards_G)
    return [a * count / (count - 1) for a in centered(rewards_G)]


def raw(rewards_G: Sequence[float]) -> list[float]:
    """Return the rewards themselves: no baseline, so a group may hold a single rollout."""
    return list(rewards_G)


ADVANTAGES: dict[str, Callable[[Sequence[float]], list[float]]] = {
    "centered": centered,
    "standardized": standardized,
    "leave_one_out": leave_one_out,
    "raw": raw,
}
