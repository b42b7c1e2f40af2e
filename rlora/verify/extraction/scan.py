"""One pass over a text: its boxes, formulas, bold and code, with where they stand, and where its sentences end."""

import re
from bisect import bisect_left
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

_BOX = re.compile(r"\\(?:boxed|fbox|framebox)(?![a-zA-Z])\s*")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_BARE_BOX = re.compile(r"[^\s{}$.,\\]+")
_MARK = re.compile(r"\\.|\$\$?|\*\*|__|`+|\n|\.(?=\s|$|[*_`\"')\]])|!(?=\s|$)|[?。！？]", re.DOTALL)  # 5!) is a value
_CLOSING = {"\\(": "\\)", "\\[": "\\]"}
_DISPLAYS = ("$$", "\\[", "```")  # which may span lines
_PRICE = re.compile(r"\d[\d,.]*(?:\s+[A-Za-z]{2}|[,;]?\s+$)")  # $5 and $6
_BULLET = re.compile(r"^\s*(?:>\s*|[-*+•]\s+(?=\S)|#{1,6}\s+)+")
_MAX_LINE = 8_000  # characters of one that is looked into
_MAX_BOXES = 64  # of a hostile repetition, the last are enough


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """What is marked from `start` to `end`, and what stands inside; `kind` is box, formula, bold or code, or what says
    an answer: hash, tag or phrase."""

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


def boxes(text: str) -> tuple[list[Span], int]:
    """Return the complete outermost boxes among the last 64, and the position of the last box that is never closed
    (-1: none)."""
    marks = deque(_BOX.finditer(text), maxlen=_MAX_BOXES) if "box" in text else ()
    if not marks:
        return [], -1
    pairs = braces(text, marks[0].start())  # a brace before it has no partner between those of the boxes
    found: list[Span] = []
    unclosed, inside = -1, -1
    for match in marks:
        start, at = match.span()
        if start < inside:
            continue
        if text.startswith("{", at) and (close := pairs.get(at)) is not None:
            found.append(Span(kind="box", start=start, end=close + 1, content=text[at + 1 : close]))
            inside = close
        elif text.startswith("{", at) or at >= len(text):
            unclosed = start
        elif bare := _BARE_BOX.match(text, at):
            found.append(Span(kind="box", start=start, end=bare.end(), content=bare[0]))
    return found, unclosed


class Scan:
    """A text with its marked parts in order of position: `boxes`, and `spans` of formulas, bold and code.

    `ends` are the positions at which lines and sentences end; none is inside a box, a formula or code. `unclosed` is
    the position of the last box that is left open (-1: none). Each is found when first asked for, in linear time.
    """

    def __init__(self, text: str) -> None:
        """Keep a text, in which the boxes are found at once."""
        self.text = text
        self.boxes, self.unclosed = boxes(text)
        self._next: dict[str, int] = {}
        self._scanned: tuple[list[Span], list[int]] | None = None

    @property
    def spans(self) -> list[Span]:
        """Formulas, bold and code; what stands within bold is a span as well."""
        return self._scan()[0]

    @property
    def ends(self) -> list[int]:
        """The positions of the marks that end sentences and of line feeds."""
        return self._scan()[1]

    def _find(self, mark: str, start: int) -> int:
        """Return where a mark stands next (-1: nowhere), at `start` or behind, which never falls from call to call."""
        at = self._next.get(mark, -2)
        if at != -1 and at < start:
            at = self.text.find(mark, start)
            while mark[0] == "$" and at > 0 and self.text[at - 1] == "\\":
                at = self.text.find(mark, at + 1)
            self._next[mark] = at
        return at

    def _scan(self) -> tuple[list[Span], list[int]]:
        if self._scanned is not None:
            return self._scanned
        spans, ends = self._scanned = [], []
        position, in_box, closing = 0, 0, -1
        while match := _MARK.search(self.text, position):
            (at, position), mark = match.span(), match[0]
            while in_box < len(self.boxes) and self.boxes[in_box].end <= at:
                in_box += 1
            if in_box < len(self.boxes) and self.boxes[in_box].start <= at:
                position = self.boxes[in_box].end
            elif mark[0] in "\n.!?。！？":
                ends.append(at)
            elif at != closing and (mark[0] != "\\" or mark in _CLOSING):
                span = self._span(mark, at, position)
                if span is not None:
                    spans.append(span)
                    closing = span.end - len(mark) if span.kind == "bold" else -1  # what is bold is scanned as well
                    position = position if span.kind == "bold" else span.end
        return self._scanned

    def _span(self, mark: str, at: int, start: int) -> Span | None:
        """Return what the mark at `at` opens; None if nothing closes it, for a price, and for what is empty."""
        closer = _CLOSING.get(mark, mark)
        close = self._find(closer, start)
        if close <= start or (not mark.startswith(_DISPLAYS) and 0 <= self._find("\n", start) < close):
            return None
        content = self.text[start:close]
        if mark == "$" and _PRICE.match(content):
            return None
        kind = "bold" if mark in ("**", "__") else "code" if mark[0] == "`" else "formula"
        return Span(kind=kind, start=at, end=close + len(closer), content=content)

    def end_of(self, start: int) -> int:
        """Return where the sentence or line that goes on at `start` ends."""
        ends = self.ends
        i = bisect_left(ends, start)
        return ends[i] if i < len(ends) else len(self.text)

    def lines(self) -> Iterator[str]:
        """Yield the lines from the last to the first; displayed mathematics and blocks of code are one line each."""
        end = len(self.text)
        for at in reversed(self.ends):
            if self.text[at] == "\n":
                yield self.text[at + 1 : end]
                end = at
        yield self.text[:end]

    def outer(self) -> list[Span]:
        """Return the spans that stand in no other one."""
        found: list[Span] = []
        for span in self.spans:
            if not found or span.start >= found[-1].end:
                found.append(span)
        return found


def unwrapped(text: str) -> str:
    """Return a line without list marks, bold, code, quotes and mathematics marks around all of it."""
    text = _BULLET.sub("", text).strip()
    for _ in range(6 if len(text) <= _MAX_LINE else 0):
        bare = text.rstrip(".。 \t")
        spans = Scan(bare).spans if bare[:1] in ("*", "_", "`", "$", "\\") else ()
        if bare[:3] == bare[-3:] == "***":
            text = bare[3:-3]
        elif spans and (spans[0].start, spans[0].end) == (0, len(bare)):
            text = spans[0].content.strip()
        elif len(bare) > 2 and bare[0] == bare[-1] and bare[0] in "*\"'" and bare[0] not in bare[1:-1]:
            text = bare[1:-1].strip()
        else:
            break
    return text.strip()
