"""The comparison that a worker makes."""

import mpmath  # noqa: F401 - loaded before the first task's timer starts

from rlora.verify.comparison.decide import Step
from rlora.verify.comparison.equal import full_verdict


def judge_pair(gold: str, answer: str, *, is_rounding: bool, trace: list[Step] | None = None) -> str:
    """Return the verdict kind of an answer against its gold; without a deadline, so only for workers and tests."""
    verdict = full_verdict(gold, answer, is_rounding=is_rounding, trace=trace)
    return "unparsed" if verdict is None else "correct" if verdict else "wrong"
