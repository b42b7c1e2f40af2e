"""Exact rational values, and exact comparison of rational functions modulo a prime: cheap enough for the parent
process.

Modulo the prime, variables, pi and e take fixed pseudo-random values and i a square root of -1. Values that differ
prove two expressions different; equal values prove nothing but are wrong with probability about degree / 2^96
(Schwartz 1980, Zippel 1979). None means that the expression is not rational, or too large to evaluate here.
"""

import hashlib
import math
from fractions import Fraction
from functools import lru_cache

from rlora.verify.reading.nodes import Node

PRIME = 2**96 - 87  # 1 modulo 4, so that -1 has a square root
_ROOT_OF_MINUS_ONE = 64928858663283645567976659563
_MAX_BITS = 20_000
_MAX_FACTORIAL = 3_000
_MAX_EXPONENT = 10**30


def _bits(value: Fraction) -> int:
    return max(value.numerator.bit_length(), value.denominator.bit_length())


def _small(value: Fraction) -> Fraction | None:
    return value if _bits(value) <= _MAX_BITS else None


def _integer(value: Fraction | None) -> int | None:
    return value.numerator if value is not None and value.denominator == 1 else None


def exact_root(value: Fraction, index: int) -> Fraction | None:
    """Return the real root of a rational number if it is rational."""
    if value < 0:
        root = exact_root(-value, index) if index % 2 else None
        return None if root is None else -root
    if not 2 <= index <= 64:
        return None
    top, bottom = _integer_root(value.numerator, index), _integer_root(value.denominator, index)
    return None if top is None or bottom is None else Fraction(top, bottom)


def _integer_root(n: int, index: int) -> int | None:
    if n < 2:
        return n
    if index == 2:
        root = math.isqrt(n)
    else:
        root = 1 << -(-n.bit_length() // index)
        while (step := ((index - 1) * root + n // root ** (index - 1)) // index) < root:
            root = step
    return root if root**index == n else None


def is_rounded_gold(gold: Fraction, places: int) -> bool:
    """Whether a decimal has three figures or more, so that a value without an end may round to it."""
    return abs(gold) * Fraction(10) ** places >= 100


def exact(node: Node) -> Fraction | None:
    """Return the rational value of a tree without variables, or None."""
    if node.op == "num":
        return node.number
    if not node.args or node.op not in ("neg", "add", "mul", "div", "pow", "fact", "deg", "unit", "fn"):
        return None
    values = [exact(child) for child in node.args]
    known = [value for value in values if value is not None]
    return _apply(node, known) if len(known) == len(values) else None


def _apply(node: Node, values: list[Fraction]) -> Fraction | None:
    first = values[0]
    match node.op:
        case "deg" | "unit":
            return first
        case "neg":
            return -first
        case "add":
            return _small(first + values[1])
        case "mul":
            return _small(first * values[1])
        case "div":
            return _small(first / values[1]) if values[1] else None
        case "pow":
            return _power(first, values[1])
        case "fact":
            n = _integer(first)
            return Fraction(math.factorial(n)) if n is not None and 0 <= n <= _MAX_FACTORIAL else None
    return _function(node.name, values)


def _power(base: Fraction, exponent: Fraction) -> Fraction | None:
    if exponent.denominator != 1:
        root = exact_root(base, exponent.denominator) if base >= 0 else None
        return None if root is None else _power(root, Fraction(exponent.numerator))
    if base == 0:
        return Fraction(0) if exponent > 0 else None
    if abs(exponent) * _bits(base) > _MAX_BITS:
        return base if base == 1 else None
    return base**exponent.numerator


def _function(name: str, values: list[Fraction]) -> Fraction | None:
    integers = [value.numerator for value in values if value.denominator == 1]
    match name:
        case "sqrt":
            return exact_root(values[0], 2)
        case "root":
            return exact_root(values[0], values[1].numerator) if values[1].denominator == 1 else None
        case "abs":
            return abs(values[0])
        case "floor":
            return Fraction(math.floor(values[0]))
        case "ceil":
            return Fraction(math.ceil(values[0]))
        case "max":
            return max(values)
        case "min":
            return min(values)
    if len(integers) != len(values):
        return None
    match name:
        case "gcd":
            return Fraction(math.gcd(*integers))
        case "lcm":
            return Fraction(math.lcm(*integers))
        case "binom":
            n, k = integers
            return Fraction(math.comb(n, k)) if 0 <= k <= n <= _MAX_FACTORIAL else None
        case "fact2":
            n = integers[0]
            return Fraction(math.prod(range(n, 0, -2))) if 0 <= n <= _MAX_FACTORIAL else None
    return None


@lru_cache(maxsize=4096)
def _point(name: str, salt: int) -> int:
    digest = hashlib.blake2b(f"{salt}/{name}".encode(), digest_size=16).digest()
    return int.from_bytes(digest, "big") % PRIME


def residue(node: Node, salt: int = 0) -> int | None:
    """Return the value modulo PRIME at the point that `salt` chooses, or None for what is not rational."""
    match node.op:
        case "num":
            assert node.number is not None
            bottom = node.number.denominator % PRIME
            return None if bottom == 0 else node.number.numerator * pow(bottom, -1, PRIME) % PRIME
        case "sym":
            return _point(node.name, salt)
        case "const":
            if node.name == "inf":
                return None
            return _ROOT_OF_MINUS_ONE if node.name == "i" else _point(f"const {node.name}", salt)
        case "neg" | "deg" | "unit" | "add" | "mul" | "div":
            return _arithmetic(node, salt)
        case "pow":
            return _residue_power(node, salt)
    value = exact(node)
    return None if value is None else residue(Node("num", number=value), salt)


def _arithmetic(node: Node, salt: int) -> int | None:
    first = residue(node.args[0], salt)
    if first is None or node.op in ("deg", "unit"):
        return first
    if node.op == "neg":
        return -first % PRIME
    second = residue(node.args[1], salt)
    if second is None:
        return None
    if node.op == "add":
        return (first + second) % PRIME
    if node.op == "mul":
        return first * second % PRIME
    return None if second == 0 else first * pow(second, -1, PRIME) % PRIME


def _residue_power(node: Node, salt: int) -> int | None:
    exponent = exact(node.args[1])
    if exponent is None:
        return None
    if exponent.denominator != 1:
        value = exact(node)
        return None if value is None else residue(Node("num", number=value), salt)
    base = residue(node.args[0], salt)
    if base is None or abs(exponent) > _MAX_EXPONENT or (base == 0 and exponent <= 0):
        return None
    return pow(base, exponent.numerator, PRIME)


def same_rational(a: Node, b: Node) -> bool | None:
    """Whether two rational functions are identical, or None if either is not one."""
    for salt in (1, 2):
        left, right = residue(a, salt), residue(b, salt)
        if left is None or right is None:
            return None
        if left != right:
            return False
    return True
