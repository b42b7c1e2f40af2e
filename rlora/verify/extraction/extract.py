"""Which text of a completion is its answer.

In order: what follows the thinking; what follows the last retraction; the last marked answer (box, ####, tag,
phrase); a plain last line; the last number, where the task asks for it. Several candidates in one final sentence stay
several (a list), so that an answer cannot be fished from them. What is cut off before it answered has no answer.
"""

import re
from dataclasses import dataclass, replace

from rlora.types import VerdictKind
from rlora.verify.comparison.decide import Effort
from rlora.verify.comparison.equal import cheap_verdict
from rlora.verify.extraction import prose
from rlora.verify.extraction.last_number import last_number as last_number_of
from rlora.verify.extraction.markers import HEDGE, UNCERTAIN, is_said, kept, markers, phrases
from rlora.verify.extraction.scan import Scan, Span, boxes, unwrapped
from rlora.verify.extraction.visible import is_repetition, visible
from rlora.verify.reading.answer import MAX_CHARACTERS
from rlora.verify.reading.normalize import plain_latex

_JOINED = re.compile(r"\b(?:and|or|alternatively|otherwise)\b|[,;&]|^[\s$]*$", re.IGNORECASE)
_SEPARATE = re.compile(
    r"\n\n|[.!?]\s(?!\W*(?:or|alternatively|otherwise)\b)|\b(?:so|thus|hence|therefore|which|then|equals|is|no|wait)\b"
    r"|\\(?:implies|Rightarrow)",
    re.IGNORECASE,
)
_CHOICE_LEFT = re.compile(
    rf"[\s$,(—–-]{{0,9}}{HEDGE.pattern}|[ $]{{0,9}}[.;] (?:or )?(?:maybe|perhaps|possibly)\b",
    re.IGNORECASE,
)
_BOXING = re.compile(r"\\boxed\s?\{([^{}]{0,200})\}")
_TEXT = re.compile(r"\\text\s*\{([^{}]*)\}")
_OR_ELSE = re.compile(
    r"[;,—(]\s{0,9}(?:(?:or|otherwise|alternatively|maybe|perhaps|possibly|if (?:that|this|it|not))\b"
    r"|(?:but|though|although)\s(?:it|that|this|the answer)\s(?:may|might|could)\b)",
    re.IGNORECASE,
)
_VALUE = re.compile(r"\d|^\(?[A-H]\)?$")
_RANGE = re.compile(r"^(?:\W*(?:between\b|from\b|at\s+(?:least|most)\b)|(?:\W*\s)?\S+\s+to\s+[-$\d])", re.IGNORECASE)
_MAX_DISTINCT = 12  # boxes of one sentence; more of them are guesses


@dataclass(frozen=True, slots=True, kw_only=True)
class Extraction:
    """The text taken as the answer, or the kind of verdict that stands without comparing it."""

    text: str = ""
    kind: VerdictKind | None = None
    is_plain: bool = False
    """Whether no mark set the answer off, so that of an equation in prose the right-hand side may be meant."""
    rule: str = ""
    """The rule that found it, or found it missing."""
    is_strict: bool = True
    """Whether it would have been found without taking the last number of a text, or of a phrase, for an answer."""


def _none(rule: str) -> Extraction:
    return Extraction(kind=VerdictKind.NO_ANSWER, rule=rule)


def _cut(rule: str) -> Extraction:
    return Extraction(kind=VerdictKind.TRUNCATED, rule=f"cut off: {rule}")


def gold_text(gold: str) -> str:
    """Return the answer in a gold text: the content of its last box, what follows ####, or all of it."""
    found, _ = boxes(gold)
    if found:
        return _boxed(gold, found).text
    if "####" in gold:
        gold = gold.rpartition("####")[2]
    gold = gold.strip()
    while len(gold) > 2 and gold[0] == gold[-1] == "$" and "$" not in gold[1:-1]:
        gold = gold[1:-1].strip()
    return gold


def _unboxed(content: str) -> str:
    for _ in range(5):
        inner, _ = boxes(content)
        if len(inner) != 1 or content.replace(content[inner[0].start : inner[0].end], "").strip(" $.,"):
            break
        content = inner[0].content
    if "answer" in content.lower() and (said := phrases(Scan(_TEXT.sub(r"\1", content)))):
        content = said[-1].content  # \boxed{\text{The answer is } 7}
    return content.strip().strip("$").strip()


def extract(text: str, *, is_truncated: bool = False, question: str = "", last_number: bool = False) -> Extraction:
    """Return the answer of a completion, or why it has none; never raises."""
    body, is_thinking = visible(text)
    if is_thinking:
        return _cut("its thinking never ends")
    missing = _cut if is_truncated else _none
    if not body.strip():
        return missing("nothing is said")
    if question and is_repetition(body, question):
        return missing("it only repeats the question")
    scan = Scan(body)
    if (text := kept(body, scan.boxes[-1].end if scan.boxes else 0, prose.is_value)) is not body:
        scan = Scan(text)
    found = markers(scan)
    has_box = bool(found) and found[0].kind == "box"
    last = next((mark for mark in reversed(found) if _is_conclusive(mark, has_box)), None)
    if scan.unclosed >= 0 and (last is None or scan.unclosed > last.start):
        return _cut("a box is left open behind the last answer")
    if last is not None:
        return _marked(scan, last, is_truncated, last_number)
    if scan.boxes:
        return _none("what is boxed is denied, supposed or a place for an answer")
    if is_truncated or prose.is_unfinished(scan):
        return missing("it breaks off before a marked answer")
    return _unmarked(scan, last_number)


def _is_conclusive(mark: Span, has_box: bool) -> bool:
    """Whether a mark says an answer: not a heading, and beside a box no phrase that goes on in words."""
    if mark.kind in ("box", "tag"):
        return True
    bare = unwrapped(mark.content)
    if mark.kind == "hash":
        return prose.is_mathematics(bare) or len(bare.split()) <= 2
    return not has_box or "boxed" in bare or prose.is_mathematics(prose.clause(bare)) or bool(prose.spans(mark.content))


def _marked(scan: Scan, last: Span, is_truncated: bool, last_number: bool) -> Extraction:
    if is_truncated and last.kind in ("phrase", "hash") and not scan.text[last.end :].strip(" .*`$"):
        return _cut("it may break off inside the last marked answer")
    if last.kind == "box":
        hedge = _CHOICE_LEFT.match(scan.text, last.end)
        behind = scan.text[last.end : scan.end_of(hedge.end())].lstrip(" $.;") if hedge else ""
        other = last_number_of(_BOXING.sub(r"\1", behind).replace("(", " ").replace(")", " "))
        return _boxed(scan.text, [box for box in scan.boxes if box.start <= last.start], other)
    content = prose.without_gloss(unwrapped(last.content))
    if last.kind == "phrase":
        return replace(_phrase(prose.restated(content), last.content, last_number), is_plain=True)
    rule = {"hash": "what follows the last ####", "tag": "the last <answer> element"}[last.kind]
    return Extraction(text=_unboxed(content), rule=rule) if content else _none("the last mark is empty")


def _boxed(text: str, found: list[Span], alternative: str | None = None) -> Extraction:
    """Return the last box, joined with other boxes of the same sentence, and with an alternative to it, into a list."""
    last = found[-1]
    contents = [_unboxed(last.content)]
    position = last.start
    for box in reversed(found[:-1]):
        between = text[box.end : position]
        if len(between) > 60 or not _JOINED.search(between) or _SEPARATE.search(between):
            break
        if not is_said(text, box.start, box.end):
            break
        contents.insert(0, _unboxed(box.content))
        position = box.start
    if not contents[-1]:
        return _none("the last box is empty")
    if len(contents) == 1 and alternative is None:
        return Extraction(text=contents[0], rule="the last complete box")
    contents.extend(filter(None, [alternative]))
    spelled: dict[str, str] = {}  # by the plain spelling, the last box first
    for content in reversed(contents):
        if content:
            spelled.setdefault(plain_latex(content) if len(content) <= MAX_CHARACTERS else content, content)
    if len(spelled) > _MAX_DISTINCT:
        text = ", ".join(reversed(spelled.values()))
        return Extraction(text=text, kind=VerdictKind.WRONG, rule=f"more than {_MAX_DISTINCT} boxes in one sentence")
    distinct: list[str] = []
    effort = Effort()  # for all pairs together
    for content in spelled.values():
        if not any(cheap_verdict(content, other, is_rounding=False, effort=effort) for other in distinct):
            distinct.insert(0, content)
    rule = "the last complete box" if len(distinct) == 1 else "the boxes of the last sentence, as a list"
    return Extraction(text=", ".join(distinct), rule=rule)


def _phrase(content: str, raw: str, last_number: bool) -> Extraction:
    said = 'the last "the answer is"'
    if not content:
        return _none(f"nothing follows {said}")
    if prose.is_mathematics(content) or prose.CHOICE.match(content):
        return Extraction(text=content, rule=f"what follows {said}")
    if word := prose.YES_OR_NO.match(content):
        return Extraction(text=word[1], rule=f"yes or no behind {said}")
    found, cut = prose.spans(raw), "" if _OR_ELSE.search(content) else prose.clause(content)
    if cut and prose.is_mathematics(cut) and (found is None or _VALUE.search(cut)):
        return Extraction(text=cut, rule=f"the first clause behind {said}")
    if found is not None and prose.is_mathematics(found):
        return Extraction(text=found, rule=f"bold, code or mathematics behind {said}")
    if _RANGE.search(content):
        return Extraction(text=content, rule=f"a range behind {said}")
    number = last_number_of(content) if last_number and not HEDGE.search(content) else None
    if number:
        return Extraction(text=number, rule=f"the last number behind {said}", is_strict=False)
    return Extraction(text=cut or content, rule=f"the words behind {said}")


def _unmarked(scan: Scan, last_number: bool) -> Extraction:
    line = prose.last_line(scan)
    if not line:
        return _none("no last line that could be an answer")
    if (answer := prose.plain_final(line)) is not None:
        rule = "the last line, which is or ends in an expression or a few words"
        return Extraction(text=answer, is_plain=True, rule=rule)
    lenient = {"the last number of the last line": line, "the last number of the text": scan.text}
    for rule, text in lenient.items() if last_number and not UNCERTAIN.search(line) else ():
        if (answer := last_number_of(text)) is not None:
            return Extraction(text=answer, is_plain=True, rule=rule, is_strict=False)
    return _none("no mark, and the last line is prose")
