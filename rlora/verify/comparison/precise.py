"""Values at high precision (mpmath), in the worker: decides what is not rational.

A subexpression as small or large as 10^m is answered with 2m more digits, so that a tiny term that is added to a
large one is seen. Variables run over fixed real points of several scales, positive, negative and integer, since
|x - 100| is 100 - x near 0; a point where either side is not a real number does not count, unless i occurs. Agreement
at every point to (40 + m) digits is taken as equality.
"""

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import mpmath
from mpmath import mp

from rlora.verify.comparison.enclose import point
from rlora.verify.comparison.exact import is_rounded_gold
from rlora.verify.reading.nodes import Node, contains, symbols

Number = Any  # mpmath has no types: an mpf, or an mpc whose imaginary part is not 0

MAX_MAGNITUDE = 3_000  # decimal digits of the largest and smallest value that is evaluated
_DIGITS = 60
_SCALES = (1, mpmath.mpf(1) / 8, mpmath.mpf(1) / 4, 25, 10_000)
_POINTS = tuple((scale, sign) for sign in (1, -1, 1, 0) for scale in _SCALES)  # 0: each variable has its own sign
_NUM_POINTS, _NUM_INTEGER_POINTS, _LEAST = len(_POINTS), 12, 3
_POINTS += ((1, 1),) * 24  # more, where both are real at few


class UndefinedError(ArithmeticError):
    """An expression has no value at a point."""


class TooLargeError(ArithmeticError):
    """An expression's value is too large or too small to be evaluated."""


@dataclass(slots=True)
class Evaluator:
    """Evaluates trees at one point; `magnitude` records the largest |log10| of any part."""

    salt: int
    is_complex: bool
    is_integer: bool
    magnitude: float = 0.0

    def value(self, node: Node) -> Number:
        """Return the value of a tree; raises UndefinedError and TooLargeError."""
        result = mpmath.mpmathify(self._value(node))
        if not mpmath.isfinite(result):
            raise UndefinedError(node.op)
        if not self.is_complex and mpmath.im(result) != 0:
            raise UndefinedError("not a real number")
        if result != 0:
            self.magnitude = max(self.magnitude, abs(float(mpmath.mag(result))) * 0.30103)
            if self.magnitude > MAX_MAGNITUDE:
                raise TooLargeError(node.op)
        return result if mpmath.im(result) != 0 else mpmath.re(result)

    def _symbol(self, name: str) -> Number:
        base = point(name, self.salt)
        if self.is_integer:
            return mpmath.mpf(2 + int((base - 1) * 6) + self.salt % 5)
        scale, sign = _POINTS[self.salt]
        return mpmath.mpf(base) * scale * (sign or (1 if int(base * 1e6) % 2 else -1))

    def _value(self, node: Node) -> Number:
        match node.op:
            case "num":
                assert node.number is not None
                return mpmath.mpf(node.number.numerator) / node.number.denominator
            case "sym":
                return self._symbol(node.name)
            case "const":
                if node.name == "inf":
                    raise UndefinedError("infinity")
                return {"pi": +mp.pi, "e": +mp.e, "i": mpmath.mpc(0, 1)}[node.name]
            case "apply":
                return self._unknown(node)
        values = [self.value(child) for child in node.args]
        match node.op:
            case "deg" | "unit":
                return values[0]
            case "neg":
                return -values[0]
            case "add":
                return values[0] + values[1]
            case "mul":
                return values[0] * values[1]
            case "div":
                if values[1] == 0:
                    raise UndefinedError("division by zero")
                return values[0] / values[1]
            case "pow":
                return self._power(values[0], values[1])
            case "fact":
                return self._factorial(values[0])
            case "fn":
                return self._function(node.name, values)
        raise UndefinedError(node.op)

    def _unknown(self, node: Node) -> Number:
        """Return a generic smooth function of the arguments, so that f(1 + x) equals f(x + 1) and no more."""
        total = mpmath.mpf(point(f"function {node.name}", 0))
        for i, child in enumerate(node.args):
            total += mpmath.sin(self.value(child) * mpmath.mpf(point(f"function {node.name}", i + 1)) + i)
        return total * mpmath.mpf(point(f"scale {node.name}", 0))

    def _power(self, base: Number, exponent: Number) -> Number:
        if base == 0:
            if mpmath.re(exponent) > 0:
                return mpmath.mpf(0)
            raise UndefinedError("0 to a power that is not positive")
        if abs(exponent) * (abs(mpmath.log(abs(base))) + 4) > 8000:
            if base == 1:
                return base
            raise TooLargeError("power")
        if mpmath.isint(exponent):
            return base ** int(mpmath.re(exponent))
        if not self.is_complex and base < 0:
            return self._odd_root(base, exponent)
        return mpmath.power(base, exponent)

    def _odd_root(self, base: Number, exponent: Number) -> Number:
        """Return the real power of a negative number whose exponent has a small odd denominator."""
        for bottom in (3, 5, 7, 9):
            top = exponent * bottom
            nearest = mpmath.nint(top)
            if abs(top - nearest) < mpmath.mpf(10) ** (10 - mp.dps):
                return (-1) ** int(nearest) * mpmath.power(-base, exponent)
        raise UndefinedError("power of a negative number")

    def _factorial(self, n: Number) -> Number:
        if mpmath.im(n) != 0:
            raise UndefinedError("factorial")
        if abs(n) > 1200:
            raise TooLargeError("factorial")
        if mpmath.isint(n) and n < 0:
            raise UndefinedError("factorial")
        return mpmath.gamma(n + 1)

    def _function(self, name: str, values: list[Number]) -> Number:
        x = values[0]
        match name:
            case "sqrt":
                return mpmath.sqrt(x)
            case "root":
                if x == 0:
                    return x
                return self._power(x, 1 / values[1])
            case "abs":
                return abs(x)
            case "ln" | "log" | "log10":
                if x == 0:
                    raise UndefinedError(name)
                return mpmath.log(x) if name == "ln" else mpmath.log(x) / mpmath.log(10)
            case "binom":
                return mpmath.binomial(x, values[1])
            case "fact2":
                return mpmath.fac2(x)
            case "floor" | "ceil":
                return mpmath.floor(x) if name == "floor" else mpmath.ceil(x)
            case "max" | "min" if not any(mpmath.im(value) for value in values):
                return (max if name == "max" else min)(values)
            case "Re" | "Im" | "conj" | "arg" | "sgn":
                return {"Re": mpmath.re, "Im": mpmath.im, "conj": mpmath.conj, "arg": mpmath.arg, "sgn": mpmath.sign}[
                    name
                ](x)
        function = _NAMED.get(name)
        if function is None or abs(x) > 10**6:
            raise UndefinedError(name)
        try:
            return function(x)
        except ZeroDivisionError as error:
            raise UndefinedError(name) from error


_NAMED = {
    "sin": mpmath.sin, "cos": mpmath.cos, "tan": mpmath.tan, "cot": mpmath.cot, "sec": mpmath.sec, "csc": mpmath.csc,
    "arcsin": mpmath.asin, "arccos": mpmath.acos, "arctan": mpmath.atan, "arccot": mpmath.acot, "sinh": mpmath.sinh,
    "cosh": mpmath.cosh, "tanh": mpmath.tanh, "coth": mpmath.coth, "arcsinh": mpmath.asinh, "arccosh": mpmath.acosh,
    "arctanh": mpmath.atanh,
}  # fmt: skip


def values_at(nodes: tuple[Node, ...], salt: int, is_complex: bool, is_integer: bool) -> tuple[list[Number], Number]:
    """Return the trees' values at a point, and the difference below which two of them are equal."""
    with mp.workdps(_DIGITS):
        rough = Evaluator(salt, is_complex, is_integer)
        for node in nodes:
            rough.value(node)
    magnitude = int(rough.magnitude) + 1
    with mp.workdps(_DIGITS + 2 * magnitude):
        evaluator = Evaluator(salt, is_complex, is_integer)
        return [evaluator.value(node) for node in nodes], mpmath.mpf(10) ** -(40 + magnitude)


def agree(a: Node, b: Node) -> bool | None:
    """Whether two values are the same at every point where both are defined; None if there is no such point,
    or where a value is too large."""
    names = symbols(a) | symbols(b)
    with_i = any(contains(node, "const", "i") for node in (a, b))
    passes = [(False, False), (False, True), (True, False)] if names and not with_i else [(with_i, False)]
    if not names and not with_i:
        passes.append((True, False))
    num_agreed = 0
    for is_complex, is_integer in passes:
        if is_complex and not with_i and num_agreed:
            break
        for salt in range(_NUM_INTEGER_POINTS if is_integer else len(_POINTS)) if names else (0,):
            if salt >= _NUM_POINTS and num_agreed >= _LEAST:
                break
            try:
                (left, right), tolerance = values_at((a, b), salt, is_complex, is_integer)
            except UndefinedError:
                continue
            except TooLargeError:
                if not names:
                    return None
                continue
            if abs(left - right) > tolerance:
                return False
            num_agreed += 1
    return True if num_agreed >= (_LEAST if names else 1) else None


def rounds_to(node: Node, gold: Fraction, places: int) -> bool | None:
    """Whether a value is a decimal gold, or has no end (in 20 decimals) and rounds to its at least three figures, half
    away from zero; None if it is not a real number."""
    if symbols(node):
        return None
    try:
        (value,), tolerance = values_at((node,), 0, False, False)
    except (UndefinedError, TooLargeError):
        return None
    with mp.workdps(_DIGITS):
        if abs(value - mpmath.mpf(gold.numerator) / gold.denominator) <= tolerance:
            return True
        decimals = value * mpmath.mpf(10) ** 20
        has_end = abs(decimals - mpmath.nint(decimals)) < mpmath.mpf(10) ** -15
        scaled = abs(value) * mpmath.mpf(10) ** places
        rounded = int(mpmath.floor(scaled + mpmath.mpf(1) / 2)) * (-1 if value < 0 else 1)
    return is_rounded_gold(gold, places) and not has_end and Fraction(rounded) == gold * Fraction(10) ** places
