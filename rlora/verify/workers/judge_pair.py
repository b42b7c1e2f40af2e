"""The comparison that a worker makes."""

import mpmath  # noqa: F401 - loaded before the first task's timer starts

from rlora.verify.comparison.decide import Step
from rlora.verify.comparison.equal import full_verdict

_CALCULUS = ("\\sum", "\\prod", "\\int", "\\lim", "∑", "∏", "∫")


def load_sympy() -> None:
    """Import SymPy, which takes half a second."""
    import rlora.verify.comparison.calculus  # noqa: F401


def load_for(gold: str, answer: str) -> bool:
    """Import SymPy if these texts need it, so that importing does not count towards their deadline; whether they do."""
    is_needed = any(sign in text for text in (gold, answer) for sign in _CALCULUS)
    if is_needed:
        load_sympy()
    return is_needed


def judge_pair(gold: str, answer: str, *, is_rounding: bool, trace: list[Step] | None = None) -> str:
    """Return the verdict kind of an answer against its gold; without a deadline, so only for workers and tests."""
    verdict = full_verdict(gold, answer, is_rounding=is_rounding, trace=trace)
    return "unparsed" if verdict is None else "correct" if verdict else "wrong"
