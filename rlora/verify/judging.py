"""From a completion to its verdict, as far as that needs no worker: extraction, the task's own rules, cheap proofs."""

import re
from dataclasses import dataclass, replace

from rlora.types import VerdictKind
from rlora.verify.comparison.decide import Step
from rlora.verify.comparison.equal import cheap_verdict
from rlora.verify.comparison.relations import named_value
from rlora.verify.comparison.worked_out import is_left_to_work_out
from rlora.verify.extraction.extract import Extraction, extract, gold_text
from rlora.verify.reading.answer import MAX_CHARACTERS, parse_answer
from rlora.verify.reading.nodes import contains, is_worked_out
from rlora.verify.reading.normalize import plain_latex


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeRequest:
    """A completion to judge: `is_truncated` if the token limit cut it; `question` exposes a mere repetition.

    `is_worked_out` refuses an answer that is less worked out than its gold, if the question is given: a policy that is
    paid for "27 + 85" learns to repeat the question (it did, docs/log.md). `is_number` refuses all but a number that
    was worked out, whatever the gold and the question.
    """

    text: str
    gold: str
    is_truncated: bool = False
    question: str = ""
    last_number: bool = False
    is_number: bool = False
    is_worked_out: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What the cheap rules make of a completion: the text taken as its answer, and the kind of verdict.

    A kind of None leaves it to a worker, which shall compare the answer with `gold`. `is_strict` says that the rule
    that takes no last number comes to the same outcome; `fault` is the exception that judging ended in ("": none).
    """

    kind: VerdictKind | None
    extracted: str
    gold: str = ""
    is_strict: bool = True
    fault: str = ""


_SPACES = re.compile(r"(?<!\d)\s+|\s+(?!\d)")  # but not those between digits: 12 34 is not 1234
_MOST_WORDS = 3  # of a name, as "New York"; more are a sentence
_FOUND = {VerdictKind.CORRECT: True, VerdictKind.WRONG: False}


def is_prose(gold: str) -> bool:
    """Return whether a gold answer is no expression, or a text of more than three words: only the same text equals it.

    Example:
        >>> is_prose("The answer is 21."), is_prose("21"), is_prose("New York")
        (True, False, False)
    """
    tree = parse_answer(gold_text(gold))
    return tree is None or (tree.op == "text" and len(tree.name.split()) > _MOST_WORDS)


def judge_cheaply(request: JudgeRequest, trace: list[Step] | None = None) -> Outcome:
    """Return the kind of verdict and the text taken as the answer, or what a worker must decide.

    The rules that decided are added to `trace`, if given. `last_number` is read in three places: the last number behind
    a phrase, the last number of an unmarked text, and the right-hand side of an equation with numbers on its
    left. What comes through none of them is the strict rule's outcome too, which is what `is_strict` says.
    """
    found = extract(
        request.text, is_truncated=request.is_truncated, question=request.question, last_number=request.last_number
    )

    if found.kind is not None:
        return _decided(found.rule, found.kind, found, trace)
    if trace is not None:
        trace.append(Step(rule=f"extraction: {found.rule}", verdict=None, answer=found.text))
    return _compared(request, found, trace)


def _decided(rule: str, kind: VerdictKind, found: Extraction, trace: list[Step] | None) -> Outcome:
    if trace is not None:
        trace.append(Step(rule=rule, verdict=_FOUND.get(kind), answer=found.text))
    return Outcome(kind=kind, extracted=found.text, is_strict=found.is_strict)


def _compared(request: JudgeRequest, found: Extraction, trace: list[Step] | None) -> Outcome:
    gold = gold_text(request.gold)
    if gold == found.text and gold:
        return _decided("the same text", VerdictKind.CORRECT, found, trace)
    left, right = parse_answer(gold), parse_answer(found.text)
    if left is None or right is None:
        if (
            gold
            and len(found.text) <= MAX_CHARACTERS
            and _SPACES.sub("", plain_latex(gold)) == _SPACES.sub("", plain_latex(found.text))
        ):
            rule = "the same text but for spaces, where one is no expression"
            return _decided(rule, VerdictKind.CORRECT, found, trace)
        kind = VerdictKind.UNPARSED if right is None else VerdictKind.WRONG
        return _decided(f"the {'answer' if right is None else 'gold'} is no expression", kind, found, trace)
    is_compound = found.is_plain and right.op == "rel" and left.op != "rel" and not named_value(right)
    has_number = is_compound and contains(right.args[0], "num")
    if is_compound and (request.last_number or not has_number):  # b - a = 4, but not 2x + 3 = 7
        found = replace(found, text=_right_side(found.text), is_strict=found.is_strict and not has_number)
        right = parse_answer(found.text) or right
        if trace is not None:
            trace.append(Step(rule="of an equation in prose, its right-hand side", verdict=None, answer=found.text))
    if request.is_number and not is_worked_out(right):
        return _decided("a number is asked for, and this is not worked out", VerdictKind.NOT_WORKED_OUT, found, trace)
    if left != right and contains(right.args[-1] if right.op == "rel" else right, "calculus"):
        rule = "a sum, a product, an integral or a limit that is left to compute"
        return _decided(rule, VerdictKind.NOT_WORKED_OUT, found, trace)
    verdict = cheap_verdict(gold, found.text, is_rounding=True, trace=trace)
    is_asked = request.is_worked_out and request.question and verdict is not False and left != right
    if is_asked and is_left_to_work_out(right, left, request.question):
        return _decided("less worked out than the gold, or the question's", VerdictKind.NOT_WORKED_OUT, found, trace)
    if verdict:
        return Outcome(kind=VerdictKind.CORRECT, extracted=found.text, is_strict=found.is_strict)
    if right.op == "text" and left.op != "text":
        return _decided("words, where the gold is an expression", VerdictKind.UNPARSED, found, trace)
    kind = None if verdict is None else VerdictKind.WRONG
    return Outcome(kind=kind, extracted=found.text, gold=gold, is_strict=found.is_strict)


def _right_side(text: str) -> str:
    """Return the last side of a formula with equals signs or implications, where all of it cannot be the answer."""
    if "=" not in text:
        return text
    side = re.split(r"=|\\(?:Rightarrow|implies|to)(?![a-zA-Z])|\u21d2|\u27f9", text)[-1].strip(" $.")
    while side.endswith("}") and side.count("}") > side.count("{"):
        side = side[:-1].rstrip()
    return side
