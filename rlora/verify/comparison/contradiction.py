"""Equations that say of two different bare numbers that they are the same: no value can be taken from them.

A false sum such as 98 + 42 = 139 is not covered: its value is what it ends in, and what was asked for is the value.
Nor are numbers with a unit or a percent sign, which may be the same in another unit.
"""

from fractions import Fraction
from itertools import combinations

from rlora.verify.comparison.exact import exact
from rlora.verify.reading.nodes import Node, is_worked_out

_MAX_NUMBERS = 20


def contradicts_itself(node: Node) -> bool:
    """Whether an equation or a chain of them has two different bare numbers as sides, such as 5 = 139.

    A decimal may be off by less than one in its last place, and so may an integer that approximates: 2/3 = 0.67 is no
    contradiction, nor is 1198 \\approx 1200, but 7 \\approx 8 is one.
    """
    signs = set(node.name.split())
    if node.op != "rel" or not signs <= {"=", "~"}:
        return False
    numbers = ((exact(side), _step(side, "~" in signs)) for side in node.args if _is_bare(side))
    bare = dict.fromkeys(numbers)  # 1 = 1 = 1 = ... once
    found = [(value, step) for value, step in bare if value is not None][:_MAX_NUMBERS]
    return any(a != b and abs(a - b) >= max(step, other) for (a, step), (b, other) in combinations(found, 2))


def _is_bare(node: Node) -> bool:
    node = node.args[0] if node.op == "neg" else node
    return node.op in ("num", "div") and is_worked_out(node)


def _step(node: Node, is_rough: bool) -> Fraction:
    """Return the place of a decimal's last digit, and of an integer's that `is_rough`; 0 for an exact number."""
    node = node.args[0] if node.op == "neg" else node
    if node.places or not is_rough or node.op != "num" or not node.number:
        return Fraction(10) ** -node.places if node.places else Fraction(0)
    digits = str(node.number.numerator)
    return Fraction(10) ** (len(digits) - len(digits.rstrip("0")))
