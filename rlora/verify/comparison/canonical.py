"""One spelling for trees that differ by trivial rewriting: what is said once more is recognised, whatever it is worth.

Rational numbers are folded, sums and products flattened and collected, roots become powers, and order is forgotten:
41 + 98, (98 + 41)\\cdot 1 and 0 + 98 + 41 are one, and so are 1/\\sqrt{3} and 3^{-1/2}. No identity of functions is
used, so \\sin 60^\\circ is not \\sqrt{3}/2.
"""

import math
from collections.abc import Hashable, Iterable
from fractions import Fraction

from rlora.verify.comparison.exact import exact_root
from rlora.verify.reading.nodes import Node

_MAX_BITS = 4_000
_SYMMETRIC = frozenset({"set", "list", "union"})
_ONE = Fraction(1)


def canonical(node: Node, seen: set[Hashable] | None = None) -> Hashable:
    """Return the tree's spelling; that of each part is added to `seen`, if given."""
    parts = [canonical(child, seen) for child in node.args]
    spelled = _spelled(node, parts)
    if seen is not None:
        seen.add(spelled)
    return spelled


def _spelled(node: Node, parts: list[Hashable]) -> Hashable:
    match node.op:
        case "num":
            return node.number
        case "deg" | "unit":
            return parts[0]
        case "neg":
            return _sum([(parts[0], -_ONE)])
        case "add":
            return _sum([(part, _ONE) for part in parts])
        case "mul":
            return _product([(part, _ONE) for part in parts])
        case "div":
            return _product([(parts[0], _ONE), (parts[1], -_ONE)])
        case "pow":
            return _power(parts[0], parts[1])
        case "fn" if node.name in ("sqrt", "root"):
            index = parts[1] if node.name == "root" else Fraction(2)
            return _power(parts[0], _power(index, -_ONE))
        case "rel" if set(node.name.split()) == {"="}:
            return ("rel", "=", frozenset(parts))
    ordered = frozenset(parts) if node.op in _SYMMETRIC else tuple(parts)
    return (node.op, node.name, node.number, ordered)


def _sum(terms: Iterable[tuple[Hashable, Fraction]]) -> Hashable:
    """Return the sum of multiples of values, like terms collected."""
    total: dict[Hashable, Fraction] = {}
    for term, factor in terms:
        for part, multiple in _terms(term):
            total[part] = total.get(part, Fraction(0)) + factor * multiple
    total = {part: multiple for part, multiple in total.items() if multiple}
    if not total.keys() - {_ONE}:
        return total.get(_ONE, Fraction(0))
    if len(total) == 1:
        ((part, multiple),) = total.items()
        return _product([(part, _ONE), (multiple, _ONE)])
    return ("add", frozenset(total.items()))


def _terms(value: Hashable) -> list[tuple[Hashable, Fraction]]:
    if isinstance(value, Fraction):
        return [(_ONE, value)]
    if isinstance(value, tuple) and value[0] == "add":
        return list(value[1])
    if isinstance(value, tuple) and value[0] == "mul":
        return [(_bare(value[2]), value[1])]
    return [(value, _ONE)]


def _bare(factors: frozenset[tuple[Hashable, Fraction]]) -> Hashable:
    """Return a product without a number in front, which is its only factor if there is one."""
    if len(factors) == 1:
        ((base, exponent),) = factors
        if exponent == 1:
            return base
    return ("mul", _ONE, factors)


def _product(powers: Iterable[tuple[Hashable, Fraction]]) -> Hashable:
    """Return the product of powers of values, powers of the same base collected and numbers multiplied."""
    number, factors = _ONE, dict[Hashable, Fraction]()
    for base, exponent in powers:
        inner: list[tuple[Hashable, Fraction]] = [(base, _ONE)]
        if isinstance(base, tuple) and base[0] == "mul" and exponent.denominator == 1:
            inner = [(base[1], _ONE), *base[2]]
        elif isinstance(base, tuple) and base[0] == "add" and exponent.denominator == 1:
            inner = _primitive(base[1])
        for part, power in inner:
            factors[part] = factors.get(part, Fraction(0)) + power * exponent
    for base, exponent in list(factors.items()):
        if isinstance(base, Fraction) and base > 0 and exponent.denominator > 1:
            del factors[base]
            root, power = _rooted(base, exponent)
            factors[root] = factors.get(root, Fraction(0)) + power
    for base, exponent in list(factors.items()):
        folded = _folded(base, exponent) if isinstance(base, Fraction) else None
        if folded is not None or not exponent:
            number *= _ONE if folded is None else folded
            del factors[base]
    if not number or not factors:
        return number
    bare = _bare(frozenset(factors.items()))
    if number == 1:
        return bare
    if isinstance(bare, tuple) and bare[0] == "add":
        return ("add", frozenset((part, multiple * number) for part, multiple in bare[1]))
    return ("mul", number, frozenset(factors.items()))


def _primitive(terms: frozenset[tuple[Hashable, Fraction]]) -> list[tuple[Hashable, Fraction]]:
    """Return a sum as a number times the sum of integer multiples without a common factor: 4t + 2 is 2 times 2t + 1."""
    top = math.gcd(*(multiple.numerator for _, multiple in terms))
    content = Fraction(top, math.lcm(*(multiple.denominator for _, multiple in terms)))
    return [(content, _ONE), (("add", frozenset((part, multiple / content) for part, multiple in terms)), _ONE)]


def _power(base: Hashable, exponent: Hashable) -> Hashable:
    return _product([(base, exponent)]) if isinstance(exponent, Fraction) else ("pow", base, exponent)


def _rooted(base: Fraction, exponent: Fraction) -> tuple[Fraction, Fraction]:
    """Return a root of a number as the root of the least number at least 1: the fourth root of 48^2 is that of 48."""
    if base < 1:
        base, exponent = 1 / base, -exponent
    for index in range(exponent.denominator, 1, -1):
        root = exact_root(base, index) if exponent.denominator % index == 0 else None
        if root is not None:
            return root, exponent * index
    return base, exponent


def _folded(base: Fraction, exponent: Fraction) -> Fraction | None:
    """Return a power of a number if it is a number of moderate size."""
    root = base if exponent.denominator == 1 else exact_root(base, exponent.denominator) if base >= 0 else None
    if root is None or (not root and exponent <= 0):
        return None
    bits = max(root.numerator.bit_length(), root.denominator.bit_length())
    return None if bits * abs(exponent.numerator) > _MAX_BITS else root**exponent.numerator
