"""Formulas in the texts of rollouts, as MathML that browsers draw by themselves.

What is typeset is what is marked as mathematics: `$...$`, `$$...$$`, `\\(...\\)`, `\\[...\\]`. A dollar is a price more
often than not in word problems, so what stands between two single ones must look like mathematics.
"""

import re
from collections import Counter
from dataclasses import dataclass, field

from latex2mathml.converter import convert

_MARKED = re.compile(r"\$\$([^$]+)\$\$|\\\[(.+?)\\\]|\\\((.+?)\\\)|\$([^\s$](?:[^$\n]*[^\s$])?)\$", re.DOTALL)
_IS_MATHEMATICS = re.compile(r"[\\^_=+*/<>]|^[A-Za-z]$|^\d+$")
_LONGEST, _MOST = 400, 4000  # characters of a formula; formulas of a page


@dataclass(slots=True)
class Formulas:
    """Counts the formulas of texts, and typesets the most frequent.

    Example:
        >>> formulas = Formulas(); formulas.find("so $x^2 = 4$"); list(formulas.typeset())
        ['x^2 = 4']
    """

    counts: Counter[str] = field(default_factory=Counter)

    def find(self, text: str) -> None:
        """Count what is marked as mathematics in a text."""
        if "$" in text or "\\" in text:
            self.counts.update(formulas_in(text))

    def typeset(self, *, most: int = _MOST) -> dict[str, str]:
        """Return the MathML of at most so many formulas, by their source; one that cannot be read is left out."""
        found: dict[str, str] = {}
        for source, _ in self.counts.most_common(most):
            try:
                found[source] = convert(source)
            except Exception:  # what a policy writes need not be LaTeX, and the library raises whatever it meets
                continue
        return found


def formulas_in(text: str) -> list[str]:
    r"""Return the sources of the formulas in a text, without their marks.

    Example:
        >>> formulas_in(r"It costs $5 and $7, so \(5 + 7\) dollars")
        ['5 + 7']
    """
    found: list[str] = []
    for match in _MARKED.finditer(text):
        source = next(group for group in match.groups() if group is not None).strip()
        is_priced = match[4] is not None and not _IS_MATHEMATICS.search(source)
        if 0 < len(source) <= _LONGEST and not is_priced:
            found.append(source)
    return found
