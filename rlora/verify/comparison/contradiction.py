"""Equations that say of two different bare numbers that they are the same: no value can be taken from them.

A false sum such as 98 + 42 = 139 is not covered: its value is what it ends in, and what was asked for is the value.
Nor are numbers with a unit or a percent sign, which may be the same in another unit.
"""

import re
from fractions import Fraction

from rlora.verify.reading.normalize import plain_latex

_BARE = re.compile(r"([-+]?)\s*(?:(\d+(?:,\d{3})*(?:\.\d+)?|\.\d+)(?:\s*/\s*(\d+))?|\\frac\s*\{(\d+)\}\s*\{(\d+)\})")
_OTHER_RELATIONS = ("<", ">", "\\le", "\\ge", "\\ne", "\\approx", "\\equiv", "\\sim", "\\to")
_MAX_CHARACTERS = 2_000


def _bare(side: str) -> tuple[Fraction, Fraction] | None:
    """Return the value of a bare number and the place of its last digit (0 if it is exact); None for anything else."""
    match = _BARE.fullmatch(side.strip().rstrip("."))
    if match is None:
        return None
    sign, number, bottom, top, below = match.groups()
    value = Fraction((number or top).replace(",", ""))
    divisor = int(bottom or below or 1)
    if divisor == 0:
        return None
    decimals = len(number.partition(".")[2]) if number else 0
    step = Fraction(1, 10**decimals) if decimals and divisor == 1 else Fraction(0)
    return (-value if sign == "-" else value) / divisor, step


def contradicts_itself(text: str) -> bool:
    """Whether an equation or a chain of them has two different bare numbers as sides, such as 5 = 139.

    A decimal may be off by less than one in its last place: 2/3 = 0.67 is no contradiction.
    """
    if len(text) > _MAX_CHARACTERS:
        return False
    sides = plain_latex(text).split("=")
    if len(sides) < 2 or any(sign in text for sign in _OTHER_RELATIONS):
        return False
    found = list(dict.fromkeys(value for value in map(_bare, sides) if value is not None))  # 1 = 1 = 1 = ... once
    return any(
        abs(a - b) >= max(step, other) and a != b for i, (a, step) in enumerate(found) for b, other in found[i + 1 :]
    )
