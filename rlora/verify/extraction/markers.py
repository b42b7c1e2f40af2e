"""Words around answers: "the answer is", `####` lines and tags mark one; others deny it, or take it back."""

import re
from collections import deque
from collections.abc import Callable

from rlora.verify.extraction.scan import Scan, Span

_HASHES = re.compile(r"####(?<!\S####)[ \t]*([^#\s][^\n]*)")  # the literal first, which is searched for fast
_ANSWER = (
    "answers?|(?:correct|right|best) (?:option|choice)|ответ|respuesta|réponse|antwort|resposta|risposta|odpowiedź"
    "|cevap|đáp án"
)
_PHRASE = re.compile(
    rf"(?<![\w\\])(?:{_ANSWER})\b(?:\s+(?:to|for|of|in)\s[^.\n:=]{{1,80}}?)?[\s*_`]*+"
    r"(?:(?<=\s)(?:(?:w|sh)ould\s+be|(?:will|must)\s+be|is|are|equals|comes\s+out\s+to(?:\s+be)?|es|est|ist|lautet|é|è)\b"
    r"|[:=：])(?:\s+(?:therefore|thus|then|simply|just|indeed|exactly|hence|now)\b,?)?"
    r"(?:(?:\*\*|__)(?=[\s:]))?:?(?:(?:\*\*|__)(?=\s))?\s*",
    re.IGNORECASE,
)
_EAST_ASIAN = re.compile(r"(?:答案|答え|正解|정답|답)\s*[是为為は은는:：]{1,2}\s*")
_COPULA = re.compile(r"\s*(?:です|입니다)[。.]?$")
_DENIAL = re.compile(r"(?:not|n't|incorrect|wrong|correct|right)\b", re.IGNORECASE)
_LATIN = "answer option choice ответ respuesta réponse antwort resposta risposta odpowied cevap đáp"
_WORDS = (*_LATIN.split(), *"答解답")  # to search for first
_UNSAID = re.compile(  # before an answer: if the answer is, check the answer; not; your answer in; a part of a formula
    r"(?:\b(?:if|suppose|assum\w+|whether|unless|check|verify|wrong|incorrect|impossible|example:?)\s+(?:that\s+)?"
    r"(?:(?:the|our|this|an?)\s+)?(?:final\s+|correct\s+)?"
    r"|(?:\b(?:not|never|cannot be|rather than|instead of|for (?:example|instance),?|format:)"
    r"|n't|\be\.g\.,?|\bor (?:maybe|perhaps|possibly)|\byour (?:final )?(?:answer|result) (?:in|inside|within|as))"
    r"[\s$*`\\([]*"
    r"|[-+/^\d]|\d\s*[+/]\s*|\\(?:cdot|times|div|pm)\s*\$?\s*|\\(?:[dt]?frac(?:\{[^{}]*\})?|sqrt(?:\[\d\])?)\{)$",
    re.IGNORECASE,
)
_DENIED = re.compile(  # behind an answer; or it is a part of a formula, or asked
    r"[\s$*`)\]\\]*\(?(?:(?:is|was|would be|seems)\s)?(?:(?:clearly|obviously)\s)?(?:(?:wrong|incorrect|false|invalid"
    r"|rejected|extraneous|impossible|if it were|should be|would be (?:right|correct)"
    r"|(?:cannot|can't|could not|couldn't) be (?:right|correct)"
    r"|(?:was|is) (?:my|our|the|a) (?:first|initial) (?:guess|attempt|thought|idea)"
    r"|not (?:the answer|right|correct|valid|possible|a sol))\b|\?)"
    r"|\s*(?:\^(?!\s*\{?\s*\\circ)|\\(?:cdot|times|div|pm)(?![a-z])|[+/]\s*[\d\\({]|-\d)|\d"
    r"|[\s$]+(?:squared|cubed|factorial|(?:plus|minus|divided by)\s+[$\\(]*\d)",
    re.IGNORECASE,
)
_LEADS = re.compile(  # in a formula, to a box that is all of a value
    r"(?:^|[=:;,&~]\}?|\\(?:approx|equiv|cong|sim|in|[lg]eq?|to|implies|iff|therefore|(?:[Ll]ong)?[Rr]ightarrow|q?quad"
    r"|displaystyle|[lL]arge|huge|left|[$\\])|\\(?:text|math|mbox|begin|renew)[a-z]*\s?\{[^{}]*\}?(?:\{[^{}]*\})?"
    r"|\\|(?<![\\A-Za-z])[a-z]{2,})\s*\{?\s*$"
)
_BOX_CONTENT = re.compile(r"\\boxed\s?\{[^{}]*\}")
_THIN = re.compile(r"(?:\s|~|\\[,;:! ]|\\$){1,9}$")
_BRACKET = re.compile(r"(?:\(|\[|\\\{)([^()\[\]]{0,60})$")
_BRACKET_END = re.compile(r"([^()\[\]]{0,60}?)(?:\\right)?(?:\)|\]|\\\})")
_CONTRAST = re.compile(r"\b(?:but|however|although|though|while)\b")
HEDGE = re.compile(
    r"\b(?:or|otherwise|alternatively|maybe|perhaps|possibly|either|(?:one|any) of|could be|might be)\b", re.IGNORECASE
)
UNCERTAIN = re.compile(
    r"\b(?:otherwise|alternatively|maybe|perhaps|possibly|(?:if|suppose|assum\w+|whether|unless|wrong|incorrect"
    r"|impossible) (?:that )?(?:the )?(?:final |correct )?answer)\b",
    re.IGNORECASE,
)
_RETRACTION = re.compile(
    r"(?<!\w)(?:(?:no|oh|but|and|so),?\s)?(?:(?P<doubt>wait(?! times?\b)|hold on(?! to\b))"
    r"|(?P<denial>oops|actually,? no(?=[.!;])"
    r"|i (?:don't|do not) think (?:that )?(?:this|that|it) (?:is|was) (?:right|correct)"
    r"|scratch that|ignore that|on second thought|not (?:quite|exactly)"
    r"|i(?:'ve)? made an? (?:mistake|error)|i (?:was|am) wrong"
    r"|(?:that|this|it|(?:that|this|the|my) (?:final )?(?:answer|result))"
    r"(?:(?:'s| is| was| seems| looks) (?:wrong|incorrect|not (?:right|correct))(?! (?:for|if|when|in|unless)\b)"
    r"|\s?(?:can't|cannot) be (?:right|correct)))"
    r"|correction|edit(?=:)|hmm+|actually|no,|sorry|(?:i )?apologize|i (?:mean|meant)"
    r"|(?:it|that|this) (?:should|must) (?:actually |instead )?(?:be|have been))(?![\w-])",
    re.IGNORECASE,
)
_RETRACTING = (  # a part of each of them, to search for first: fifty times as fast
    "wait", "oops", "scratch", "ignore", "second", "hold", "wrong", "mistake", "error", "apolog", "no,", "actually",
    "hmm", "correct", "right", "sorry", "edit:", "should", "must", "not quite", "not exact", "i mean",
)  # fmt: skip
_BEFORE_RETRACTION = frozenset(".!?;,…)}]$*`—–-\n。0123456789")
_CONFIRMS = re.compile(
    r"\b(?:correct|right|confirmed|verified|checks? out|consistent|holds|works|agrees|matches)\b", re.IGNORECASE
)
_DENIES = re.compile(r"\b(?:not|wrong|incorrect|mistake|error|instead)\b|n't\b", re.IGNORECASE)
_MAX_PHRASES = 8  # of a hostile repetition, the last are enough
_MAX_BEFORE = 200  # characters of a formula before a box
_MAX_CONTENT = 4_000  # characters behind a phrase


def is_said(text: str, start: int, end: int) -> bool:
    """Whether what stands from `start` to `end` is said to be the answer: not supposed, denied, or a place for one."""
    return not _UNSAID.search(text, max(0, start - 60), start) and not _DENIED.match(text, end, end + 60)


def is_boxed(scan: Scan, box: Span) -> bool:
    """Whether a box is said to be the answer: neither denied nor a part of a larger formula, as in 2^{\\boxed{5}}."""
    text = scan.text
    if not is_said(text, box.start, box.end):
        return False
    before, after = text[max(0, box.start - 2) : box.start].rstrip(" "), text[box.end : box.end + 2].lstrip(" ")
    if (not before or before[-1] in "$=\n") and after[:1] in ("", "$", ".", "\n"):
        return True
    formulas = (span for span in scan.spans if span.kind == "formula" and span.start < box.start and box.end < span.end)
    formula = next(formulas, None)
    if formula is None:
        return True
    mark = (formula.end - formula.start - len(formula.content)) // 2
    start = max(formula.start + mark, box.start - _MAX_BEFORE)
    before, after = text[start : box.start].strip(), text[box.end : formula.end - mark]
    opened, closed = _BRACKET.search(before), _BRACKET_END.match(after)
    if opened and closed:  # (\boxed{1}, \boxed{2}), but not (2, \boxed{1})
        others = _BOX_CONTENT.sub("", opened[1] + closed[1])
        if others.strip(" ,"):
            return False
        before, after = before[: opened.start()], after[closed.end() :]
    return _LEADS.search(_THIN.sub("", before)) is not None and not after.lstrip(" }").startswith(
        ("!", "-", "+", "*", "/")
    )


def phrases(scan: Scan, start: int = 0) -> list[Span]:
    """Return what stands behind "the answer is" and its like, from `start` on, to the end of the sentence or of what is
    bold."""
    text, found = scan.text, []
    lowered = text[start:].lower()
    if not any(map(lowered.__contains__, _WORDS)):
        return []
    matches = sorted([*_PHRASE.finditer(text, start), *_EAST_ASIAN.finditer(text, start)], key=re.Match.start)
    for match in matches[-_MAX_PHRASES:]:
        at, begin = match.span()
        ends = [span.end - 2 for span in scan.spans if span.kind == "bold" and span.start < at < span.end]
        end = min(scan.end_of(begin), begin + _MAX_CONTENT, *(end for end in ends if end >= begin))
        content = _COPULA.sub("", text[begin:end].strip())
        content = content[:-1] if content.find("*") == len(content) - 1 else content  # *Answer: 42*
        is_asked = text[end : end + 1] in ("?", "？")
        if found and found[-1].end == end and _CONTRAST.search(text, found[-1].start, at):
            found.pop()  # some say that the answer is 12, but the answer is 13
        if content and not is_asked and not _DENIAL.match(content) and is_said(text, at, at):
            found.append(Span(kind="phrase", start=at, end=end, content=content))
    return found


def markers(scan: Scan) -> list[Span]:
    """Return the last box that is said to be the answer, and behind it every other mark, in order of position."""
    text = scan.text
    box = next((box for box in reversed(scan.boxes) if is_boxed(scan, box)), None)
    start = box.end if box else 0
    found = phrases(scan, start)
    for match in deque(_HASHES.finditer(text, start), maxlen=_MAX_PHRASES):
        found.append(Span(kind="hash", start=match.start(), end=match.end(), content=match[1].strip()))
    lowered = text.lower() if "</" in text else ""
    close = lowered.rfind("</answer>")
    opening = lowered.rfind("<answer>", start, close) if close >= 0 else -1
    if opening >= 0:
        found.append(Span(kind="tag", start=opening, end=close + 9, content=text[opening + 8 : close].strip()))
    return [*filter(None, [box]), *sorted(found, key=lambda mark: (mark.end, -mark.start))]


def kept(text: str, start: int, is_value: Callable[[str], bool]) -> str:
    """Return a text without what it takes back behind `start`.

    "That's wrong" and its like take back what stands before, "wait" unless what follows only confirms it, "no,",
    "actually" and "it should be" only where a value follows at once, which `is_value` tells of a sentence.
    """
    lowered = text[start:].lower()
    if not any(map(lowered.__contains__, _RETRACTING)):
        return text
    for match in reversed(deque(_RETRACTION.finditer(text, start), maxlen=_MAX_PHRASES)):
        before, rest = text[: match.start()].rstrip(" "), text[match.end() :].lstrip(" ,.:;—–-")
        if not before.strip() or before[-1] not in _BEFORE_RETRACTION:
            continue
        if match["doubt"] and _CONFIRMS.search(rest) and not _DENIES.search(rest) and not markers(Scan(rest)):
            return before
        if match["doubt"] or match["denial"] or is_value(rest[: Scan(rest[:_MAX_CONTENT]).end_of(0)]):
            return rest
    return text
