"""How much better than its group each rollout was: rewards of a group -> advantages."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Literal

from rlora.types import Group, VerdictKind

_WRONG = (VerdictKind.WRONG, VerdictKind.NOT_WORKED_OUT)
CONSENSUS = 0.75  # share of a group that makes its answer the group's

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


def advantages_of(group: Group, name: AdvantageName, *, consensus_penalty: float = 0.0) -> list[float]:
    """Return the advantages of a group's rollouts, in order.

    A group that agrees on a wrong answer has no signal by its rewards, samples nothing else any more, and stays wrong
    for ever; with a penalty all of it is pushed down, so that other answers are tried again. Groups that are wrong in
    many ways are left alone: they explore by themselves. That pushing down wrong samples keeps variety is shown in
    arXiv 2506.01347.
    """
    if consensus_penalty and is_wrong_consensus(group):
        return [-consensus_penalty] * len(group.rollouts)
    return ADVANTAGES[name]([rollout.reward for rollout in group.rollouts])


def is_wrong_consensus(group: Group) -> bool:
    """Return whether no rollout is right and at least three quarters give the same wrong answer.

    A judge that extracts no answers, as a user's function, has no consensus.
    """
    verdicts = [rollout.verdict for rollout in group.rollouts]
    if any(verdict.is_correct for verdict in verdicts):
        return False
    wrong = Counter(each.extracted for each in verdicts if each.kind in _WRONG and each.extracted)
    return max(wrong.values(), default=0) >= CONSENSUS * len(group.rollouts)
