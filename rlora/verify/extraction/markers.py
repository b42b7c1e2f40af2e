"""Marked answers in a completion: boxes, `####` lines, answer tags and "the answer is" phrases, with where they
stand."""

import re
from collections import deque
from dataclasses import dataclass

_BOX = re.compile(r"\\(?:boxed|fbox|framebox)(?![a-zA-Z])\s*")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_BARE_BOX = re.compile(r"[^\s{}$.,\\]+")
_HASHES = re.compile(r"####(?<!\S####)[ \t]*([^#\s][^\n]*)")  # the literal first, which is searched for fast
_PHRASE = re.compile(
    r"(?<![\w\\])(?<!check our )(?<!check the )(?<!check this )(?<!verify our )(?<!verify the )"
    r"(?:final\s+|correct\s+)?answers?\b"
    r"(?P<of>\s+(?:to|for|of|in)\s[^.\n:=]{1,80}?)?"
    r"[\s*_`]*+(?:(?<=\s)(?:is|are|would\s+be|should\s+be|will\s+be|must\s+be|equals|comes\s+out\s+to(?:\s+be)?)\b|[:=]|：)"
    r"(?:\s+(?:therefore|thus|then|simply|just|indeed|exactly|hence|now)\b,?)?"
    r"(?:(?:\*\*|__)(?=[\s:]))?:?(?:(?:\*\*|__)(?=\s))?[ \t]*",
    re.IGNORECASE,
)
_CHINESE = re.compile(r"答案(?:是|为|：|:)[ \t]*")
_SENTENCE_END = re.compile(r"\n|[.!?。](?=\s|$|[*_`\"')\]])|[!?。]")
_MAX_PHRASES = 8  # of a hostile repetition, the last are enough
_MAX_BOXES = 64  # the same
_MAX_CONTENT = 4_000  # characters behind a phrase
_INLINE_SKIP = re.compile(r"\s*\n\s*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Marker:
    """A marked answer, mark and content from `start` to `end`; `kind` is box, hash, tag or phrase."""

    kind: str
    start: int
    end: int
    content: str


def braces(text: str, start: int = 0) -> dict[int, int]:
    """Return the position of each closing brace by that of its opening one, in one pass over the text from `start`."""
    pairs: dict[int, int] = {}
    opened: list[int] = []
    for match in _BRACE.finditer(text, start):
        if match[0] == "{":
            opened.append(match.start())
        elif match[0] == "}" and opened:
            pairs[opened.pop()] = match.start()
    return pairs


def boxes(text: str) -> tuple[list[Marker], int]:
    """Return the complete outermost boxes among the last 64, and the position of the last box that is never closed
    (-1: none)."""
    marks = deque(_BOX.finditer(text), maxlen=_MAX_BOXES) if "box" in text else ()
    if not marks:
        return [], -1
    pairs = braces(text, marks[0].start())  # a brace before it has no partner between those of the boxes
    found: list[Marker] = []
    unclosed, inside = -1, -1
    for match in marks:
        if match.start() < inside:
            continue
        at = match.end()
        if at < len(text) and text[at] == "{":
            close = pairs.get(at)
            if close is None:
                unclosed = match.start()
                continue
            found.append(Marker(kind="box", start=match.start(), end=close + 1, content=text[at + 1 : close]))
            inside = close
        elif bare := _BARE_BOX.match(text, at):
            found.append(Marker(kind="box", start=match.start(), end=bare.end(), content=bare[0]))
        elif at >= len(text):
            unclosed = match.start()
    return found, unclosed


def sentence_end(text: str, start: int) -> int:
    """Return where the sentence that goes on at `start` ends: a full stop before a space, or the end of the line."""
    match = _SENTENCE_END.search(text, start)
    return match.start() if match else len(text)


def phrases(text: str) -> list[Marker]:
    """Return what stands behind "the answer is" and its like, to the end of the sentence (or of the next line)."""
    found: list[Marker] = []
    said = _PHRASE.finditer(text) if "answer" in text.lower() else ()
    matches = [*said, *(_CHINESE.finditer(text) if "答案" in text else ())]
    for match in matches[-_MAX_PHRASES:]:
        start = match.end()
        if start < len(text) and text[start] == "\n":
            skip = _INLINE_SKIP.match(text, start)
            start = skip.end() if skip else start
        end = min(_display_end(text, start) or sentence_end(text, start), start + _MAX_CONTENT)
        content = text[start:end].strip()
        if content and not re.match(r"(?:not|n't|incorrect|wrong|correct|right)\b", content, re.IGNORECASE):
            found.append(Marker(kind="phrase", start=match.start(), end=end, content=content))
    return found


def _display_end(text: str, start: int) -> int | None:
    """Return the end of displayed mathematics that begins at `start`, which may span lines."""
    for opening, closing in (("$$", "$$"), ("\\[", "\\]"), ("```", "```")):
        if text.startswith(opening, start):
            end = text.find(closing, start + len(opening))
            return None if end < 0 else end + len(closing)
    return None


def _tags(text: str) -> list[Marker]:
    """Return the last <answer> element."""
    lowered = text.lower() if "</" in text else ""
    close = lowered.rfind("</answer>")
    start = lowered.rfind("<answer>", 0, close) if close >= 0 else -1
    if start < 0:
        return []
    return [Marker(kind="tag", start=start, end=close + 9, content=text[start + 8 : close].strip())]


def markers(text: str) -> tuple[list[Marker], int]:
    """Return every marked answer in order of position, and the position of a box left open (-1: none)."""
    found, unclosed = boxes(text)
    hashes = [
        Marker(kind="hash", start=m.start(), end=m.end(), content=m[1].strip())
        for m in deque(_HASHES.finditer(text), maxlen=_MAX_PHRASES)
    ]
    return sorted(
        [*found, *hashes, *_tags(text), *phrases(text)], key=lambda marker: (marker.end, -marker.start)
    ), unclosed
