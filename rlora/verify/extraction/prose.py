"""Answers that carry no mark: a plain last line, bold, code, mathematics at the end of a sentence, the last number."""

import re

from rlora.verify.extraction.last_number import CONNECTOR, is_changed
from rlora.verify.reading.structure import parse_answer

_FENCE = re.compile(r"^[ \t]*(?:```|~~~)([\w+-]*)[ \t]*$")
_PLAIN_LABELS = "text txt plaintext latex tex math markdown md output stdout console result"
_PLAIN_FENCES = frozenset({"", *_PLAIN_LABELS.split()})
_BULLET = re.compile(r"^\s*(?:>\s*|[-*+•]\s+(?=\S)|#{1,6}\s+)+")
_AROUND = (
    *(r"\*\*\*(.+)\*\*\*", r"\*\*(.+)\*\*", r"__(.+)__", r"`+([^`]+)`+", r"\*([^*]+)\*", r"\"([^\"]+)\""),
    *(r"\$\$(.+)\$\$", r"\$([^$]+)\$", r"\\\((.+)\\\)", r"\\\[(.+)\\\]"),
)
_WRAPPERS = [re.compile(pattern, re.DOTALL) for pattern in _AROUND]
_SPAN = re.compile(
    r"\*\*([^*\n]+)\*\*|`([^`\n]+)`|\$\$([^$]+)\$\$|(?<!\\)\$([^$\n]+)(?<!\\)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]"
)
_LEAD = re.compile(
    r"^(?:so|thus|therefore|hence|finally|then|that is|i\.e\.|we (?:get|have|find|obtain)|it is|it's|this is|result"
    r"|final result|solution|ans|(?:i|we) (?:choose|pick|select))\b[\s,:]*",
    re.IGNORECASE,
)
_CONTINUED = re.compile(r"^(?:&|=|\\q?quad|\s)+")
_IMPLIES = re.compile(r"\\(?:Longr|R|r|longr)ightarrow|\\implies|[⇒⟹→]|=>")
_PROSE = re.compile(r"\b[A-Za-z]{2,}(?:\s+[A-Za-z]{2,}){4,}")
_DENIED = re.compile(r",?\s+(?:and\s+not|not|rather\s+than|instead\s+of)\s")
_MAX_FORMULA = 2000  # characters of it; each of its words is tried as its beginning
_NAMED = re.compile(r"[A-Za-z](?:_\w|_\{\w+\})?\s*=")
YES_OR_NO = re.compile(
    r"(yes|no|true|false)\b(?!.*\bor\s+(?:yes|no|true|false|not)\b)[,.!:;]?(?:\s[^\d]*)?$", re.IGNORECASE
)
CHOICE = re.compile(r"\(?[A-H]\)\s*\S|[A-H][.:]\s+\S")
_STATED = re.compile(
    r"(?:(?:option|choice|answer)\s+)?(\S{1,40})\s+is\s+(?:the\s+)?(?:(?:final|correct|right|best)\b\s*)?"
    r"(?:answer|option|choice|solution)?\.?",
    re.IGNORECASE,
)
_SPELLED = re.compile(  # 16 + 59 equals 75; "3 + 4 is 7" stays prose, and so does "5 equals 139"
    r"([-+]?[\d.,]*\d(?:\s*[-+*/×÷−]\s*[\d.,]*\d)+)\s+(?:equals|is\s+equal\s+to)\s+([-−]?[\d.,]*\d)\.?",
    re.IGNORECASE,
)
_GLOSS = re.compile(  # a remark in brackets behind an answer: 12 (twelve), 12 (since 3 * 4 = 12), 12 (not 13)
    r"(?<=\S)\s*\((?!or\b)(?:[A-Za-z][A-Za-z ,]{2,}"
    r"|(?:since|because|as|not|i\.e\.|which|where|rounded)\b[^()\n]*)\)\.?$"
)
_ASIDE = re.compile(
    r"\((?:since|because|as|note|check|where|here|that is|i\.e\.|we)\b[^\n]*\)\.?"
    r"|(?:i )?hope (?:this|that|it) \w+[^\d\n]*"
    r"|(?:please )?let me know\b[^\n]*|(?:have|good|great|feel free|thank)\b[^\d\n]*[.!]",
    re.IGNORECASE,
)
_DANGLING = """
    and or is are the a an of to so then that we with by if because plus gives get have has need which where when
    since for from as be can will must let now next therefore thus hence find using into i you it this there their his
    her its
"""
_UNFINISHED = re.compile(rf"(?:[=+\-*/^_({{\[,:<>&\\]|(?<!\d )\btimes|\b(?:{'|'.join(_DANGLING.split())}))\s*$")


def unwrapped(text: str) -> str:
    """Return a line without list marks, bold, code and mathematics marks around all of it."""
    text = _BULLET.sub("", text).strip()
    for _ in range(6):
        bare = text.strip().rstrip(".。 \t").strip()
        for pattern in _WRAPPERS:
            match = pattern.fullmatch(bare)
            if match and not _is_several(pattern, match[1]):
                text = match[1].strip()
                break
        else:
            return text
    return text


def _is_several(pattern: re.Pattern[str], inner: str) -> bool:
    mark = {"\\*\\*(": "**", "\\$\\$(": "$$", "\\\\\\(": "\\(", "\\\\\\[": "\\["}.get(pattern.pattern[:5], "")
    return bool(mark) and mark in inner


def without_gloss(text: str) -> str:
    """Return a text without a remark in brackets at its end."""
    return _GLOSS.sub("", text)


def is_mathematics(text: str) -> bool:
    """Whether a text reads as an expression (not as words)."""
    node = parse_answer(text)
    return node is not None and node.op != "text"


def last_lines(text: str) -> list[str]:
    """Return the last line that says something, inside a code block or displayed mathematics if one ends the text."""
    lines = text.rstrip().split("\n")
    while lines and (not lines[-1].strip() or (len(lines) > 1 and _ASIDE.fullmatch(lines[-1].strip()))):
        lines.pop()
    if not lines:
        return []
    if _FENCE.match(lines[-1]) and len(lines) > 1:
        for i in range(len(lines) - 2, -1, -1):
            opening = _FENCE.match(lines[i])
            if opening:
                inside = [line for line in lines[i + 1 : -1] if line.strip()]
                if opening[1].lower() in _PLAIN_FENCES:
                    return inside[-1:]
                return []
    last = lines[-1].strip()
    if last in ("$$", "\\]") and len(lines) > 1:
        inside = [line for line in lines[:-1] if line.strip() and line.strip() not in ("$$", "\\[")]
        return inside[-1:]
    if len(lines) > 1 and CHOICE.match(last) and CHOICE.match(lines[-2].strip()):
        return []  # the options, told once more
    return [lines[-1]]


def last_sentence(line: str) -> str:
    """Return the last sentence of a line; a point inside a number or mathematics does not end one."""
    parts = re.split(r"(?<=[.!?])\s+(?=[A-Z\\$*`(])", line.strip())
    return parts[-1]


def is_unfinished(text: str) -> bool:
    """Whether a text breaks off: in the middle of a formula, at a sign, or at a word that something must follow."""
    tail = text.rstrip()[-2000:].split("\n")[-1]
    if re.search(r"[\w)}] \*$", tail):
        return True
    if _UNFINISHED.search(tail.rstrip("*`$ ")) and not tail.rstrip().endswith(("**", "__", "`", "!")):
        return True
    return (len(re.findall(r"(?<!\\)\$", tail)) % 2 == 1 and not re.search(r"\$\s?\d", tail)) or tail.count(
        "\\("
    ) > tail.count("\\)")


def spans(sentence: str) -> str | None:
    """Return what bold, code or mathematics ends the sentence; several joined by commas or words count as one list."""
    sentence = sentence[-4000:]
    found = list(_SPAN.finditer(_without_open(sentence)))
    if not found:
        return None
    tail = sentence[found[-1].end() :].strip(" .!*_)\"'")
    if tail and (not re.fullmatch(r"[a-z%°]+(?:\s[A-Za-z]+){0,3}", tail) or tail.split()[-1] in _DANGLING.split()):
        return None
    group = [found[-1]]
    for previous in reversed(found[:-1]):
        if not CONNECTOR.fullmatch(sentence[previous.end() : group[0].start()]):
            break
        group.insert(0, previous)
    contents = [unwrapped(sentence[slice(*match.span(match.lastindex or 0))]) for match in group]
    if any("=" in content for content in contents) and not all(_NAMED.match(content) for content in contents):
        return contents[-1]  # steps of a computation, of which the last is the result
    return ", ".join(contents) if len(set(contents)) > 1 else contents[0]


def _without_open(sentence: str) -> str:
    """Return a text of the same length in which nothing opens that never closes: each would be searched to the end."""
    for opening, closing in (("\\(", "\\)"), ("\\[", "\\]")):
        end = sentence.rfind(closing) + 1
        sentence = sentence[:end] + sentence[end:].replace(opening, "\0\0")
    return sentence


def plain_final(line: str) -> str | None:
    """Return the answer of a last line that is an expression or a few words, or that ends in marked text."""
    bare = without_gloss(unwrapped(line))
    if stated := _STATED.fullmatch(bare):
        bare = stated[1]
    elif spelled := _SPELLED.fullmatch(bare):
        bare = f"{spelled[1]} = {spelled[2]}"
    if word := YES_OR_NO.match(bare):
        return word[1]
    said = _DENIED.split(bare, maxsplit=1)[0]
    for candidate in (bare, said, _LEAD.sub("", bare), _CONTINUED.sub("", bare), _IMPLIES.split(bare)[-1]):
        candidate = candidate.strip()
        if candidate and is_mathematics(candidate) and not _PROSE.search(candidate):
            return candidate
    if CHOICE.match(bare):
        return bare
    sentence = last_sentence(line.strip())
    found = spans(sentence)
    is_symbol = found is not None and re.fullmatch(r"[a-z]\.?", found) and re.search(r"\d", sentence)
    if found is not None and not is_symbol and (is_mathematics(found) or len(found.split()) <= 4):
        return found
    if 0 < len(bare.split()) <= 3 and not re.search(r"\d", bare) and not bare.endswith((":", "?", ",")):
        return bare
    return None


def last_formula(line: str) -> str | None:
    """Return the longest formula that ends a line, as in "so we get x = 2\\sqrt{3}."; None if words end it."""
    sentence = last_sentence(line.strip()).rstrip(". ")
    words = sentence[-_MAX_FORMULA:].split(" ")[-40:]
    if len(sentence) > _MAX_FORMULA:
        words.pop(0)  # it may be half a word
    for start, word in enumerate(words):
        if re.search(r"[\d\\$]|^[(\[]?[A-Za-z]\b", word):
            tail = " ".join(words[start:])
            if is_changed(" ".join(words[:start]) + " "):
                return None
            if is_mathematics(tail) and not _PROSE.search(tail):
                return tail
    return None
