"""What is equal: structures element by element, values by a decision that the caller supplies.

`equal` is exact and symmetric; `matches` also lets a decimal gold stand for every value that rounds to it, and is not
symmetric. Verdicts have three values: None means that the decision (the cheap one of the parent) was not enough.
"""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

from rlora.verify.enclose import enclose, is_different
from rlora.verify.exact import exact, same_rational
from rlora.verify.nodes import INFINITY, Node, contains, is_structure, op, symbols
from rlora.verify.normalize import plain_words
from rlora.verify.relations import FLIPPED, ZERO, difference, named_value, ratio_sign, renamed, solutions
from rlora.verify.structure import parse_answer

Ternary = bool | None
MOVABLE = frozenset({"=", "<", ">", "<=", ">=", "!="})


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


def _all(verdicts: Sequence[Ternary]) -> Ternary:
    if any(verdict is False for verdict in verdicts):
        return False
    return None if any(verdict is None for verdict in verdicts) else True


def _any(verdicts: Sequence[Ternary]) -> Ternary:
    if any(verdict is True for verdict in verdicts):
        return True
    return None if any(verdict is None for verdict in verdicts) else False


def _scalar(gold: Node, answer: Node, decide: Decision) -> Ternary:
    if gold == answer:
        return True
    special = ("big", "base")
    if gold.op in special or answer.op in special:
        return (gold.op, gold.name, gold.number) == (answer.op, answer.name, answer.number)
    if contains(gold, "const", "inf") or contains(answer, "const", "inf"):
        return _infinite(gold) is not None and _infinite(gold) == _infinite(answer)
    if contains(gold, "fn", "log") or contains(answer, "fn", "log"):
        readings = [(_with_log(gold, name), _with_log(answer, name)) for name in ("log10", "ln")]
        return _any([_scalar(a, b, decide) for a, b in readings])
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
    """Return the value and the decimals of a gold that is a decimal numeral, with or without a sign or a power of ten."""
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


def _unordered(gold: Sequence[Node], answer: Sequence[Node], decide: Decision) -> Ternary:
    if len(gold) != len(answer):
        return False
    table = [[compare(a, b, decide) for b in answer] for a in gold]
    if any(all(cell is False for cell in row) for row in table):
        return False
    if any(all(row[j] is False for row in table) for j in range(len(answer))):
        return False
    free = set(range(len(answer)))
    for row in table:
        match = next((j for j in sorted(free) if row[j]), None)
        if match is None:
            return None if any(cell is None for line in table for cell in line) else False
        free.remove(match)
    return True


def _ordered(gold: Sequence[Node], answer: Sequence[Node], decide: Decision) -> Ternary:
    if len(gold) != len(answer):
        return False
    verdicts: list[Ternary] = []
    for a, b in zip(gold, answer, strict=True):
        verdicts.append(compare(a, b, decide))
        if verdicts[-1] is False:
            return False
    return _all(verdicts)


def _relation(gold: Node, answer: Node, decide: Decision) -> Ternary:
    signs, other_signs = (node.name.replace("~", "=").split() for node in (gold, answer))
    backwards = [FLIPPED.get(sign, sign) for sign in reversed(other_signs)]
    verdicts: list[Ternary] = []
    if signs == other_signs:
        verdicts.append(_ordered(gold.args, answer.args, decide))
    if signs == backwards and set(signs) <= MOVABLE:
        verdicts.append(_ordered(gold.args, answer.args[::-1], decide))
    if signs == other_signs == ["="] and {gold.args[0].op, answer.args[0].op} == {"apply", "sym"}:
        verdicts.append(compare(gold.args[1], answer.args[1], decide))  # y = 2x + 1 and f(x) = 2x + 1 define the same
    sides = gold.args + answer.args
    is_movable = len(signs) == len(other_signs) == 1 and signs[0] in MOVABLE and not any(map(is_structure, sides))
    if _any(verdicts) is not True and is_movable and other_signs[0] in MOVABLE:
        verdicts.append(_moved(gold, answer, signs[0], other_signs[0], decide))
    return _any(verdicts)


def _moved(gold: Node, answer: Node, sign: str, other_sign: str, decide: Decision) -> Ternary:
    """Decide whether one relation becomes the other when terms are moved over or both sides are scaled."""
    a, b = difference(gold), difference(answer)
    if not symbols(a) or symbols(a) != symbols(b):
        return False
    turns = {1: sign == other_sign, -1: sign == FLIPPED.get(other_sign, other_sign)}
    turn = ratio_sign(a, b)
    if not turns.get(turn, False) and (turn or not all(turns.values())):
        return False
    if any(decide.same(side, ZERO) is not False for side in (a, b)):
        return False
    return decide.same(op("mul", a, renamed(b)), op("mul", b, renamed(a)))


def _unwrapped(gold: Node, answer: Node) -> tuple[Node, Node] | None:
    """Return the pair with one side reduced to the other's kind: an equation to its value, an inequality to its set."""
    for a, b, is_swapped in ((gold, answer, False), (answer, gold, True)):
        inner = None
        if a.op == "rel" and b.op != "rel":
            inner = named_value(a)
        if inner is None and (b.op in ("seq", "union", "set") or a.op in ("sym", "seq") or (a.op == b.op == "rel")):
            inner = solutions(a)
        if inner is None and a.op in ("set", "list") and len(a.args) == 1 and b.op not in ("set", "list"):
            inner = a.args[0]
        if inner is not None and inner != a:
            return (b, inner) if is_swapped else (inner, b)
    return None


def compare(gold: Node, answer: Node, decide: Decision) -> Ternary:
    """Decide whether two trees are the same answer."""
    if gold == answer:
        return True
    kinds = {gold.op, answer.op}
    if kinds == {"rel"}:
        verdict = _relation(gold, answer, decide)
        if verdict is not False or {"=", "~"} & {*gold.name.split(), *answer.name.split()}:
            return verdict
        if symbols(gold) != symbols(answer):
            return False
    reduced = _unwrapped(gold, answer)
    if reduced is not None:
        return compare(*reduced, decide)
    if "text" in kinds:
        return gold.op == answer.op and gold.name == answer.name
    if kinds <= {"set", "list"} or kinds == {"union"}:
        return _unordered(gold.args, answer.args, decide)
    if kinds <= {"seq", "list", "matrix"}:
        return _sequences(gold, answer, decide)
    if any(is_structure(node) for node in (gold, answer)):
        return False
    if gold.op == answer.op == "sym" and len(gold.name) == len(answer.name) == 1:
        return gold.name.casefold() == answer.name.casefold()
    return _scalar(gold, answer, decide)


def _sequences(gold: Node, answer: Node, decide: Decision) -> Ternary:
    """Decide tuples, intervals, vectors and lists written without brackets, in which order counts."""
    if gold.op == answer.op == "matrix":
        return _ordered(gold.args, answer.args, decide) if gold.name == answer.name else False
    if gold.op == answer.op:
        is_same = gold.name == answer.name or (len(gold.args) > 2 and {gold.name, answer.name} == {"()", "[]"})
        return _ordered(gold.args, answer.args, decide) if is_same else False
    left, right = _tuple(gold), _tuple(answer)
    return False if left is None or right is None else _ordered(left, right, decide)


def _tuple(node: Node) -> tuple[Node, ...] | None:
    """Return the entries of a tuple, an unbracketed list or a vector; None for intervals and true matrices."""
    if node.op != "matrix":
        return node.args if node.op == "list" or node.name == "()" else None
    if len(node.args) == 1:
        return node.args[0].args
    return tuple(row.args[0] for row in node.args) if all(len(row.args) == 1 for row in node.args) else None


def compare_texts(gold: str, answer: str, decide: Decision) -> Ternary:
    """Decide whether two texts are the same answer; words are compared as words, a decimal comma as a point."""
    left, right = parse_answer(gold), parse_answer(answer)
    if left is None or right is None:
        return False
    if (left.op == "text") != (right.op == "text"):
        words, other = plain_words(gold), plain_words(answer)
        return words == other and words.replace(" ", "").isalpha()
    if left != right and (contains(left, "calculus") or contains(right, "calculus")):
        is_value = all(node.op not in ("list", "set", "seq", "union", "matrix", "text") for node in (left, right))
        return decide.symbolic(gold, answer) if is_value else False
    verdict = compare(left, right, decide)
    if verdict is False and (left.op == "list") != (right.op == "list"):
        texts = [_with_decimal_point(text) for text in (gold, answer)]
        if texts != [gold, answer]:
            left, right = parse_answer(texts[0]), parse_answer(texts[1])
            return False if left is None or right is None else compare(left, right, decide)
    return verdict


_DECIMAL_COMMA = re.compile(r"(?<![\d,.])(\d+),(\d{1,2}|\d{4,})(?![\d,.])")


def _with_decimal_point(text: str) -> str:
    stripped = text.strip().lstrip("-+$ ")
    return text.replace(",", ".") if _DECIMAL_COMMA.match(stripped) and text.count(",") == 1 else text


def cheap_verdict(gold: str, answer: str, *, is_rounding: bool) -> Ternary:
    """Decide an answer against its gold without a worker, or None."""
    return compare_texts(gold, answer, Decision(is_rounding=is_rounding))


def _full(is_rounding: bool) -> Decision:
    from rlora.verify.precise import TooLargeError, agree, rounds_to

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
        from rlora.verify.calculus import same_value

        return same_value(a, b)

    return Decision(same=same, rounds=rounds, symbolic=symbolic, is_rounding=is_rounding)


def full_verdict(gold: str, answer: str, *, is_rounding: bool) -> Ternary:
    """Decide with high-precision arithmetic; None for what even that cannot compare. Without a deadline."""
    return compare_texts(gold, answer, _full(is_rounding))


def equal(a: str, b: str) -> bool:
    """Whether two answers are the same, exactly and symmetrically; without a deadline, so for trusted texts."""
    return bool(full_verdict(a, b, is_rounding=False))


def matches(gold: str, answer: str) -> bool:
    """Whether an answer is right for its gold, a decimal gold at its own precision; without a deadline."""
    return bool(full_verdict(gold, answer, is_rounding=True))
