"""The comparison that a worker of the verifier makes."""

from collections.abc import Callable

import mpmath  # noqa: F401 - loaded before the first task's timer starts

from rlora.verify.comparison.decide import Step
from rlora.verify.comparison.equal import full_verdict
from rlora.verify.workers.faults import described
from rlora.verify.workers.protocol import Message
from rlora.verify.workers.task import Task


def judge_pair(gold: str, answer: str, *, is_rounding: bool, trace: list[Step] | None = None) -> str:
    """Return the verdict kind of an answer against its gold; without a deadline, so only for workers and tests."""
    verdict = full_verdict(gold, answer, is_rounding=is_rounding, trace=trace)
    return "unparsed" if verdict is None else "correct" if verdict else "wrong"


def job(_settings: Message) -> Callable[[Message], dict[str, object]]:
    """Return what a worker does with each task's message: the reply's message."""
    return _reply_message


def _reply_message(message: Message) -> dict[str, object]:
    task, steps, error = Task(**message), [], ""
    try:
        kind = judge_pair(task.gold, task.answer, is_rounding=task.is_rounding, trace=steps if task.is_traced else None)
    except MemoryError:
        raise
    except Exception as failure:  # parsers fail in any way on text, which is data
        kind, error = "unparsed", described(failure)  # the caller says so, since it may be a bug all the same
    rows = [[step.rule, step.verdict, step.gold, step.answer] for step in steps]
    return {"kind": kind, "steps": rows, "error": error}
