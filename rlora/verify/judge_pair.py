"""The comparison that a worker makes."""

import rlora.verify.calculus  # noqa: F401 - SymPy is loaded before the first task's timer starts
from rlora.verify.equal import full_verdict


def judge_pair(gold: str, answer: str, *, is_rounding: bool) -> str:
    """Return the verdict kind of an answer against its gold; without a deadline, so only for workers and tests."""
    verdict = full_verdict(gold, answer, is_rounding=is_rounding)
    return "unparsed" if verdict is None else "correct" if verdict else "wrong"
