"""What makes two single values the same: cheap proofs in the parent, high precision in a worker.

A decision has three values; None means that the arithmetic at hand was not enough.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

from rlora.verify.enclose import enclose, is_different
from rlora.verify.exact import exact, same_rational
from rlora.verify.nodes import INFINITY, Node, contains, op, symbols

Ternary = bool | None


def rounded(value: Fraction, places: int) -> Fraction:
    """Return a number rounded half away from zero to `places` decimals, which may be negative."""
    scaled = abs(value) * Fraction(10) ** places
    result = Fraction(math.floor(scaled + Fraction(1, 2))) / Fraction(10) ** places
    return -result if value < 0 else result


def cheap_same(a: Node, b: Node) -> Ternary:
    """Decide two values without a worker: identical trees, rational functions, or values proven apart."""
    verdict = same_rational(a, b)
    if verdict is not None:
        return verdict
    return False if is_different(a, b) else None


def cheap_rounds(node: Node, gold: Fraction, places: int) -> Ternary:
    """Decide without a worker whether a value rounds to a decimal gold."""
    value = exact(node)
    if value is not None:
        return rounded(value, places) == gold
    found = enclose(node, 1)
    if found is None or symbols(node):
        return None
    v, error = found
    half = float(Fraction(10) ** -places) / 2
    if abs(v - float(gold)) > half + 2 * error + abs(float(gold)) * 1e-15:
        return False
    return True if abs(v - float(gold)) < half - 2 * error - abs(float(gold)) * 1e-15 else None


def undecided(a: str, b: str) -> Ternary:
    """Leave a comparison that needs SymPy to a worker."""
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """How two values are compared: exactly, and against a decimal gold; `is_rounding` allows the latter."""

    same: Callable[[Node, Node], Ternary] = cheap_same
    rounds: Callable[[Node, Fraction, int], Ternary] = cheap_rounds
    symbolic: Callable[[str, str], Ternary] = undecided
    is_rounding: bool = field(default=False)


def all_of(verdicts: Sequence[Ternary]) -> Ternary:
    """Return False if any is False, else None if any is undecided."""
    if any(verdict is False for verdict in verdicts):
        return False
    return None if any(verdict is None for verdict in verdicts) else True


def any_of(verdicts: Sequence[Ternary]) -> Ternary:
    """Return True if any is True, else None if any is undecided."""
    if any(verdict is True for verdict in verdicts):
        return True
    return None if any(verdict is None for verdict in verdicts) else False


def same_value(gold: Node, answer: Node, decide: Decision) -> Ternary:
    """Decide two single values; a decimal gold at its own precision where the decision rounds."""
    if gold == answer:
        return True
    special = ("big", "base")
    if gold.op in special or answer.op in special:
        return (gold.op, gold.name, gold.number) == (answer.op, answer.name, answer.number)
    if contains(gold, "const", "inf") or contains(answer, "const", "inf"):
        return _infinite(gold) is not None and _infinite(gold) == _infinite(answer)
    if contains(gold, "fn", "log") or contains(answer, "fn", "log"):
        readings = [(_with_log(gold, name), _with_log(answer, name)) for name in ("log10", "ln")]
        return any_of([same_value(a, b, decide) for a, b in readings])
    decimal = _decimal(gold) if decide.is_rounding else None
    if decimal is not None:
        return decide.rounds(answer, *decimal)
    return decide.same(gold, answer)


def _infinite(node: Node) -> int | None:
    if node == INFINITY:
        return 1
    return -1 if node == op("neg", INFINITY) else None


def _with_log(node: Node, name: str) -> Node:
    args = tuple(_with_log(child, name) for child in node.args)
    return Node(node.op, args, name if (node.op, node.name) == ("fn", "log") else node.name, node.number, node.places)


def _decimal(gold: Node) -> tuple[Fraction, int] | None:
    """Return the value and the decimals of a gold that is a decimal numeral, signed or times a power of ten."""
    sign = 1
    if gold.op == "neg":
        gold, sign = gold.args[0], -1
    shift = 0
    if gold.op == "mul" and gold.args[1].op == "pow" and exact(gold.args[1].args[0]) == 10:
        power = exact(gold.args[1].args[1])
        if power is None or power.denominator != 1 or abs(power) > 100:
            return None
        gold, shift = gold.args[0], power.numerator
    if gold.op != "num" or gold.places is None or gold.number is None:
        return None
    return sign * gold.number * Fraction(10) ** shift, gold.places - shift


def full_decision(is_rounding: bool) -> Decision:
    """Return the decision of a worker, which uses high precision and SymPy and may take long."""
    from rlora.verify.precise import TooLargeError, agree, rounds_to  # mpmath, which the parent does without

    def same(a: Node, b: Node) -> Ternary:
        verdict = cheap_same(a, b)
        if verdict is not None:
            return verdict
        try:
            return agree(a, b)
        except TooLargeError:
            return None

    def rounds(node: Node, gold: Fraction, places: int) -> Ternary:
        verdict = cheap_rounds(node, gold, places)
        return rounds_to(node, gold, places) if verdict is None and not symbols(node) else verdict

    def symbolic(a: str, b: str) -> Ternary:
        from rlora.verify.calculus import same_closed_form  # SymPy

        return same_closed_form(a, b)

    return Decision(same=same, rounds=rounds, symbolic=symbolic, is_rounding=is_rounding)
