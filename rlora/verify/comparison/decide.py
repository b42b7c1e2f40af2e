"""What makes two single values the same: cheap proofs in the parent, high precision in a worker.

A decision has three values; None means that the arithmetic at hand was not enough. Every rule has a name, and a
decision that keeps a trace records which rule decided what, so that a verdict explains itself by the code that made it.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction

from rlora.verify.comparison.enclose import enclose, is_different
from rlora.verify.comparison.exact import exact, is_rounded_gold, same_rational
from rlora.verify.reading.nodes import INFINITY, Node, contains, cost, op, symbols
from rlora.verify.reading.show import show

Ternary = bool | None


def rounded(value: Fraction, places: int) -> Fraction:
    """Return a number rounded half away from zero to `places` decimals, which may be negative."""
    scaled = abs(value) * Fraction(10) ** places
    result = Fraction(math.floor(scaled + Fraction(1, 2))) / Fraction(10) ** places
    return -result if value < 0 else result


def _apart(a: Node, b: Node) -> Ternary:
    return False if is_different(a, b) else None


def _terminates(value: Fraction) -> bool:
    bottom = value.denominator
    for prime in (2, 5):
        while bottom % prime == 0:
            bottom //= prime
    return bottom == 1


def _exactly_rounded(node: Node, gold: Fraction, places: int) -> Ternary:
    value = exact(node)
    if value is None or value == gold:
        return None if value is None else True
    return is_rounded_gold(gold, places) and not _terminates(value) and rounded(value, places) == gold


def roughly_rounded(node: Node, gold: Fraction, places: int) -> Ternary:
    """Return False for a value that is proven not to round to a decimal; never True."""
    found = enclose(node, 1)
    if found is None or symbols(node):
        return None
    v, error = found
    try:
        center, half = float(gold), float(Fraction(10) ** -places) / 2
    except OverflowError:  # a gold of 1.5e400
        return None
    return False if abs(v - center) > half + 2 * error + abs(center) * 1e-15 else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """A way to decide, under the name that an explanation gives it."""

    name: str
    decide: Callable[..., Ternary]


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What a rule found (None: undecided) on the way to a verdict, and what it compared, written out."""

    rule: str
    verdict: Ternary
    gold: str = ""
    answer: str = ""


CHEAP_VALUES = (
    Rule(name="rational functions: their values modulo a 96-bit prime at two points", decide=same_rational),
    Rule(name="proven apart by floating-point values with error bounds", decide=_apart),
)
CHEAP_DECIMALS = (
    Rule(name="the exact value, which if it has no end may round to the gold", decide=_exactly_rounded),
    Rule(name="proven not to round to the gold by a floating-point value with an error bound", decide=roughly_rounded),
)


class TooMuchError(ArithmeticError):
    """Two answers have more to compare than is done without a deadline."""


@dataclass(slots=True)
class Effort:
    """What comparing may still cost, in about microseconds, where no deadline ends it: a count, so that a busy machine
    does not change verdicts."""

    left: int = 50_000

    def spend(self, *nodes: Node) -> None:
        """Count a comparison of these trees; raises TooMuchError when all is spent."""
        self.left -= 20 + sum(map(cost, nodes))
        if self.left < 0:
            raise TooMuchError


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """How single values are compared: the rules for two values, and for a decimal gold (`is_rounding` allows it, and
    other forms that only an answer may have); each list is tried in order."""

    values: tuple[Rule, ...] = CHEAP_VALUES
    decimals: tuple[Rule, ...] = CHEAP_DECIMALS
    is_rounding: bool = False
    trace: list[Step] | None = None
    """Where the steps are recorded; None records nothing."""
    effort: Effort | None = None
    """What may be spent before it is too much; None bounds nothing."""

    def same(self, a: Node, b: Node) -> Ternary:
        """Decide whether two values are the same."""
        for rule in self.values:
            verdict = rule.decide(a, b)
            if verdict is not None:
                return self.by(rule.name, verdict, a, b)
        return None

    def rounds(self, node: Node, gold: Node, value: Fraction, places: int) -> Ternary:
        """Decide whether a value rounds to the decimal gold that has this value and so many decimals."""
        for rule in self.decimals:
            verdict = rule.decide(node, value, places)
            if verdict is not None:
                return self.by(rule.name, verdict, gold, node)
        return None

    def by(self, rule: str, verdict: Ternary, gold: Node | str = "", answer: Node | str = "") -> Ternary:
        """Return the verdict after recording the rule that made it."""
        if self.trace is not None:
            texts = [side if isinstance(side, str) else show(side) for side in (gold, answer)]
            self.trace.append(Step(rule=rule, verdict=verdict, gold=texts[0], answer=texts[1]))
        return verdict


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
        return decide.by("the same tree", True, gold, answer)
    special = ("big", "base")
    if gold.op in special or answer.op in special:
        same = (gold.op, gold.name, gold.number) == (answer.op, answer.name, answer.number)
        return decide.by("numerals in a base, or too long to convert: their digits", same, gold, answer)
    if contains(gold, "const", "inf") or contains(answer, "const", "inf"):
        same = _infinite(gold) is not None and _infinite(gold) == _infinite(answer)
        return decide.by("infinities: their signs", same, gold, answer)
    if contains(gold, "fn", "log") or contains(answer, "fn", "log"):
        readings = [(_with_log(gold, name), _with_log(answer, name)) for name in ("log10", "ln")]
        return any_of([same_value(a, b, decide) for a, b in readings])
    decimal = _decimal(gold) if decide.is_rounding else None
    if decimal is not None:
        return decide.rounds(answer, gold, *decimal)
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


def full_decision(is_rounding: bool, trace: list[Step] | None = None) -> Decision:
    """Return the decision of a worker, which uses high precision and may take long."""
    from rlora.verify.comparison.precise import agree, rounds_to  # mpmath, which the parent does without

    digits = "a worker, at 60 digits or more"
    return Decision(
        values=(*CHEAP_VALUES, Rule(name=f"{digits}: the same at every point", decide=agree)),
        decimals=(
            *CHEAP_DECIMALS,
            Rule(name=f"{digits}: a value without an end that rounds to the gold", decide=rounds_to),
        ),
        is_rounding=is_rounding,
        trace=trace,
    )
