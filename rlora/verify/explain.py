"""A verdict with what led to it: the steps recorded by the code that judged, and both answers as they were read."""

from collections.abc import Iterator
from dataclasses import dataclass

from rlora.types import Verdict, VerdictKind
from rlora.verify.comparison.decide import Step
from rlora.verify.extraction.extract import gold_text
from rlora.verify.judging import JudgeRequest
from rlora.verify.reading.answer import parse_answer
from rlora.verify.reading.normalize import plain_latex
from rlora.verify.reading.show import show
from rlora.verify.workers.faults import RAISED

_MAX_CHARACTERS = 400
_MEANING = {
    VerdictKind.UNPARSED: "no rule could compare them, or they are too large to evaluate",
    VerdictKind.TIMEOUT: "comparing passed the deadline or the memory limit; the worker was ended",
}
_FOUND = {True: "equal", False: "different", None: "-"}


def _short(text: str) -> str:
    return repr(text if len(text) <= _MAX_CHARACTERS else f"{text[:_MAX_CHARACTERS]}...")


def _trees(step: Step) -> str:
    if step.gold or step.answer:
        return ": " + " | ".join(_short(side) for side in (step.gold, step.answer) if side)
    return ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """A verdict and the steps on the way to it, in order; `is_by_worker` if the cheap rules did not suffice."""

    request: JudgeRequest
    verdict: Verdict
    steps: tuple[Step, ...]
    is_by_worker: bool

    @property
    def rule(self) -> str:
        """The rule that decided, which is the last step's, unless a worker came to none."""
        if self.is_by_worker and self.verdict.kind in _MEANING:
            return _MEANING[self.verdict.kind]
        return self.steps[-1].rule

    def lines(self) -> Iterator[str]:
        """Yield the explanation, line by line, for a person."""
        kind, extracted = self.verdict.kind, self.verdict.extracted
        yield f"verdict     {kind.upper()}"
        yield f"rule        {self.rule}"
        yield f"decided     {'by a worker' if self.is_by_worker else 'without a worker'}, {self.verdict.seconds:.4f} s"
        yield f"extracted   {_short(extracted) if extracted else 'nothing'}"
        if not self.rule.startswith(RAISED):  # else reading may raise again
            yield from self._readings()
        yield "steps"
        for i, step in enumerate(self.steps, 1):
            yield f"  {i}. [{_FOUND[step.verdict]}] {step.rule}{_trees(step)}"

    def _readings(self) -> Iterator[str]:
        for name, text in (("gold", gold_text(self.request.gold)), ("answer", self.verdict.extracted)):
            if text:
                yield f"{name:<11} spelled {_short(plain_latex(text))}"
                yield f"{'':<11} read as {show(parse_answer(text))}"
