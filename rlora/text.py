"""Text of others on its way to a terminal, which would obey what it finds there."""

import re
import textwrap
from collections.abc import Iterable, Iterator

# control characters but for tab and line feed, marks that turn the direction of writing, halves of surrogate pairs
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    r"""Return a text as a terminal may show it: what a terminal would obey instead is written as its code.

    All that is printed passes here: names of files and models, questions, completions, errors that quote them.

    Example:
        >>> printable("\x1b[31mred")
        '\\x1b[31mred'
    """
    return _UNPRINTABLE.sub(lambda match: match[0].encode("unicode_escape", "surrogatepass").decode(), text)


def shortened(text: str, length: int = 52) -> str:
    """Return a text as a part of a line: its first characters, without line breaks."""
    line = " ".join(text.split())
    return line if len(line) <= length else f"{line[: length - 4]} ..."


def wrapped(lines: Iterable[str], *, width: int = 100) -> Iterator[str]:
    """Yield lines of at most `width` characters: what follows in a longer one is indented below it.

    Example:
        >>> list(wrapped(["a line of words"], width=10))
        ['a line of', '  words']
    """
    for line in lines:
        start = line[: len(line) - len(line.lstrip())]
        yield from textwrap.wrap(
            line, width, subsequent_indent=f"{start}  ", break_long_words=False, break_on_hyphens=False
        ) or [""]


def clock(seconds: float) -> str:
    """Return seconds as a clock shows them: 4:05, or 2h07."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02}" if hours else f"{minutes}:{rest:02}"


def shown_score(score: float, *, is_share: bool) -> str:
    """Return a score in per cent where it is a share, else as it is; one outside [-1, 1] is never one.

    Example:
        >>> shown_score(0.62, is_share=True), shown_score(0.62, is_share=False)
        ('62.0 %', '0.620')
    """
    return f"{100 * score:.1f} %" if is_share and abs(score) <= 1 else f"{score:.3f}"
