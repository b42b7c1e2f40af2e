import dataclasses

import pytest
from support.rollouts import completion, group

from rlora.train.advantages import ADVANTAGES, advantages_of, is_wrong_consensus
from rlora.types import Group, Verdict, VerdictKind

pytestmark = pytest.mark.unit

REWARDS = [1.0, 0.0, 0.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("centered", [0.4, -0.6, -0.6, 0.4, 0.4]),
        ("standardized", [0.4 / 0.24**0.5, -0.6 / 0.24**0.5, -0.6 / 0.24**0.5, 0.4 / 0.24**0.5, 0.4 / 0.24**0.5]),
        ("leave_one_out", [1 - 2 / 4, 0 - 3 / 4, 0 - 3 / 4, 1 - 2 / 4, 1 - 2 / 4]),
        ("raw", REWARDS),
    ],
)
def test_values(name, expected) -> None:
    assert ADVANTAGES[name](REWARDS) == pytest.approx(expected)


@pytest.mark.parametrize("name", ["centered", "standardized", "leave_one_out"])
def test_equal_rewards_carry_no_signal(name) -> None:
    assert ADVANTAGES[name]([1.0, 1.0, 1.0]) == [0.0, 0.0, 0.0]


def answered(*answers: str, right: str = "7", kind: VerdictKind = VerdictKind.WRONG) -> Group:
    made = group([1], [completion([2]) for _ in answers], [float(answer == right) for answer in answers])
    rollouts = []
    for rollout, answer in zip(made.rollouts, answers, strict=True):
        verdict = Verdict(
            kind=VerdictKind.CORRECT if answer == right else kind, reward=rollout.reward, extracted=answer
        )
        rollouts.append(dataclasses.replace(rollout, verdict=verdict))
    return dataclasses.replace(made, rollouts=tuple(rollouts))


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (answered("8", "8", "8", "8"), True),
        (answered("8", "8", "8", "9"), True),
        (answered("8", "8", "9", "9"), False),
        (answered("8", "8", "8", "7"), False),
        (answered("7", "7", "7", "7"), False),
        (answered("", "", "", "", kind=VerdictKind.TRUNCATED), False),
        (answered("", "", "", "", kind=VerdictKind.WRONG), False),  # of a function, which extracts no answers
    ],
)
def test_a_wrong_consensus_is_three_quarters_with_one_wrong_answer(made, expected) -> None:
    assert is_wrong_consensus(made) == expected


def test_a_wrong_consensus_is_pushed_down_only_with_a_penalty() -> None:
    agreed, mixed = answered("8", "8", "8", "9"), answered("8", "8", "8", "7")
    assert advantages_of(agreed, "standardized") == [0.0] * 4
    assert advantages_of(agreed, "standardized", consensus_penalty=0.5) == [-0.5] * 4
    assert advantages_of(mixed, "centered", consensus_penalty=0.5) == pytest.approx([-0.25, -0.25, -0.25, 0.75])
