"""From a completion to its verdict, as far as that needs no worker: extraction, the task's own rules, cheap proofs."""

import re
from collections.abc import Callable
from dataclasses import dataclass

from rlora.types import VerdictKind
from rlora.verify.comparison.decide import Step
from rlora.verify.comparison.equal import cheap_verdict
from rlora.verify.comparison.relations import named_value
from rlora.verify.extraction.extract import Extraction, extract, gold_text
from rlora.verify.reading.nodes import contains, is_worked_out
from rlora.verify.reading.normalize import plain_latex
from rlora.verify.reading.structure import MAX_CHARACTERS, parse_answer


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeRequest:
    """A completion to judge: `is_truncated` if the token limit cut it; `question` exposes a mere repetition.

    `is_number` asks for a number that has been worked out: an expression of the same value is WRONG, since a policy
    that is paid for "27 + 85" learns to repeat the question (it did, docs/log.md).
    """

    text: str
    gold: str
    is_truncated: bool = False
    question: str = ""
    last_number: bool = True
    is_number: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Pending:
    """An answer that the cheap rules could not decide, and the gold that a worker shall compare it with."""

    extracted: str
    gold: str


_SPACES = re.compile(r"(?<!\d)\s+|\s+(?!\d)")  # but not those between digits: 12 34 is not 1234
_FOUND = {VerdictKind.CORRECT: True, VerdictKind.WRONG: False}
Outcome = Pending | tuple[VerdictKind, str]


def judge_cheaply(request: JudgeRequest, trace: list[Step] | None = None) -> Outcome:
    """Return the kind of verdict and the text taken as the answer, or what a worker must decide.

    The rules that decided are added to `trace`, if given.
    """
    found = extract(
        request.text, is_truncated=request.is_truncated, question=request.question, last_number=request.last_number
    )

    def by(rule: str, kind: VerdictKind, answer: str) -> tuple[VerdictKind, str]:
        if trace is not None:
            trace.append(Step(rule=rule, verdict=_FOUND.get(kind), answer=answer))
        return kind, answer

    if found.kind is not None:
        return by(found.rule, found.kind, found.text)
    if trace is not None:
        trace.append(Step(rule=f"extraction: {found.rule}", verdict=None, answer=found.text))
    return _compared(request, found, by, trace)


def _compared(
    request: JudgeRequest,
    found: Extraction,
    by: Callable[[str, VerdictKind, str], tuple[VerdictKind, str]],
    trace: list[Step] | None,
) -> Outcome:
    gold, answer = gold_text(request.gold), found.text
    if gold == answer and gold:
        return by("the same text", VerdictKind.CORRECT, answer)
    left, right = parse_answer(gold), parse_answer(answer)
    if left is None or right is None:
        if (
            gold
            and len(answer) <= MAX_CHARACTERS
            and _SPACES.sub("", plain_latex(gold)) == _SPACES.sub("", plain_latex(answer))
        ):
            return by("the same text but for spaces, where one is no expression", VerdictKind.CORRECT, answer)
        kind = VerdictKind.UNPARSED if right is None else VerdictKind.WRONG
        return by(f"the {'answer' if right is None else 'gold'} is no expression", kind, answer)
    is_compound = found.is_plain and right.op == "rel" and left.op != "rel" and not named_value(right)
    if is_compound and (request.last_number or not contains(right.args[0], "num")):  # b - a = 4, but not 2x + 3 = 7
        answer = _right_side(answer)
        right = parse_answer(answer) or right
        if trace is not None:
            trace.append(Step(rule="of an equation in prose, its right-hand side", verdict=None, answer=answer))
    if request.is_number and not is_worked_out(right):
        return by("a number is asked for, and this is not worked out", VerdictKind.WRONG, answer)
    if right != left and not is_worked_out(right) and right.args and _squeezed(answer) in _squeezed(request.question):
        return by("an expression copied from the question", VerdictKind.NO_ANSWER, answer)
    verdict = cheap_verdict(gold, answer, is_rounding=True, trace=trace)
    if verdict:
        return VerdictKind.CORRECT, answer
    if right.op == "text" and left.op != "text":
        return by("words, where the gold is an expression", VerdictKind.UNPARSED, answer)
    return Pending(extracted=answer, gold=gold) if verdict is None else (VerdictKind.WRONG, answer)


def _squeezed(text: str) -> str:
    return "".join(plain_latex(text).split())


def _right_side(text: str) -> str:
    """Return the last side of a formula with equals signs or implications, where all of it cannot be the answer."""
    if "=" not in text:
        return text
    side = re.split(r"=|\\(?:Rightarrow|implies|to)(?![a-zA-Z])|\u21d2|\u27f9", text)[-1].strip(" $.")
    while side.endswith("}") and side.count("}") > side.count("{"):
        side = side[:-1].rstrip()
    return side
