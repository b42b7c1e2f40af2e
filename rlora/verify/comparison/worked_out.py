"""An answer must be worked out: one that leaves to do what its gold has done, or that the question said, is none.

A policy that is paid for a formula of the question learns to repeat it. The gold's own form decides what is worked
out: to a gold of 2/3 the answer 36/54 is the question's if the question has it, to a gold of 36/54 it is right.
"""

import math
import re
from collections import Counter
from collections.abc import Hashable, Iterator
from fractions import Fraction
from functools import lru_cache

from rlora.verify.comparison.canonical import canonical
from rlora.verify.comparison.exact import exact
from rlora.verify.reading.answer import parse_answer
from rlora.verify.reading.nodes import ONE, STRUCTURES, Node, is_worked_out, symbols
from rlora.verify.reading.normalize import plain_latex

_FORMULA = re.compile(r"\$\$?([^$]{1,2000})\$|\\\[(.{1,2000}?)\\\]|\\\((.{1,2000}?)\\\)", re.DOTALL)
_SUM_IN_PROSE = re.compile(r"[(\d.-][\d\s.,+\-*/^()!%]{0,200}[\d)!%]")
_MAX_FORMULAS, _MAX_CHARACTERS = 64, 2_000
_MINUS = "-"
_SIMPLE = frozenset({"sym", "const", "text", "base", "big"})
_FAMILIES = {
    **dict.fromkeys(("sin", "cos", "tan", "cot", "sec", "csc"), "trigonometric"),
    **dict.fromkeys(("arcsin", "arccos", "arctan", "arccot"), "inverse"), **dict.fromkeys(("ln", "log"), "logarithm"),
}  # fmt: skip


def is_left_to_work_out(answer: Node, gold: Node, question: str) -> bool:
    """Whether an answer is less worked out than its gold: a formula where the gold is a number, a function of numbers
    that the gold does not need, or what the question says in another form than the gold's."""
    golds = list(_leaves(gold))
    known = {_form_of(leaf) for leaf in (gold, *golds)}
    allowed = {family for leaf in golds for family in _unworked(leaf)}
    are_simple = all(map(_is_simple, golds))
    for leaf in _leaves(answer):
        if not allowed.issuperset(_unworked(leaf)):
            return True
        if _form_of(leaf) in known or leaf.op in _SIMPLE:
            continue
        if are_simple and not _is_simple(leaf):
            return True
        if _key(leaf) in _said(question):
            return True
    if answer.op != "rel" or _form_of(answer) in known:
        return False
    is_solved = gold.op == "rel" and gold.args[0].op == "sym" and not symbols(gold.args[-1])  # x = 2, but 2x = 4
    return (is_solved and all(side.op != "sym" for side in answer.args)) or _key(answer) in _said(question)


def _leaves(node: Node) -> Iterator[Node]:
    """Yield the single values of an answer; of an equation, the side that it ends in."""
    if node.op == "rel" and set(node.name.split()) <= {"=", "~", ":"}:
        is_turned = is_worked_out(node.args[0]) and not is_worked_out(node.args[-1])  # 42 = 6 \cdot 7
        yield from _leaves(node.args[0 if is_turned else -1])
    elif node.op in STRUCTURES and node.args:
        for child in node.args:
            yield from _leaves(child)
    else:
        yield node


def _is_simple(node: Node) -> bool:
    inner = node.args[0] if node.op in ("neg", "deg", "unit") else node
    return is_worked_out(inner) or inner.op in _SIMPLE


def _unworked(node: Node) -> Iterator[str]:
    """Yield the kinds of functions and arithmetic that the tree applies to numbers, so that one is left to compute."""
    if node.op in ("add", "mul", "pow") and not is_worked_out(node) and all(map(_is_plain, node.args)):
        yield "arithmetic"
    if node.op == "fn" and node.name in ("sqrt", "root") and exact(node) is not None:
        yield "root"
    if node.op in ("fn", "fact") and node.name not in ("sqrt", "root") and not symbols(node):
        yield _FAMILIES.get(node.name, node.name or node.op)
    for child in node.args:
        yield from _unworked(child)


def _is_plain(node: Node) -> bool:
    node = node.args[0] if node.op == "neg" else node
    return node.op == "num" and node.number is not None and node.number.denominator == 1


def _key(node: Node) -> Hashable:
    """Return the form and the value of a worked-out number, of another tree its spelling."""
    return ("number", _form(node), canonical(node)) if is_worked_out(node) else canonical(node)


def _form_of(node: Node) -> Hashable:
    """Return what two answers in the same form share: a worked-out number its form and value, another tree its terms
    and factors as they are written, in any order."""
    return _key(node) if is_worked_out(node) else _written(node)


def _written(node: Node) -> Hashable:
    total: Counter[Hashable] = Counter()
    for sign, term in _terms(node, 1):
        factors = Counter(_factors(term, Fraction(1)))
        minus = sum(count for (base, _), count in factors.items() if base == _MINUS)
        total[sign * (-1) ** minus, frozenset((key, n) for key, n in factors.items() if key[0] != _MINUS)] += 1
    return frozenset(total.items())


def _terms(node: Node, sign: int) -> Iterator[tuple[int, Node]]:
    match node.op:
        case "add":
            for child in node.args:
                yield from _terms(child, sign)
        case "neg":
            yield from _terms(node.args[0], -sign)
        case _:
            yield sign, node


def _factors(node: Node, power: Fraction) -> Iterator[tuple[Hashable, Fraction]]:
    if node.op in ("mul", "div", "pow") and (node.args[1] == ONE or (node.op == "mul" and node.args[0] == ONE)):
        yield "1", Fraction(1)  # nobody writes x \cdot 1 who has not copied x
    match node.op:
        case "mul":
            for child in node.args:
                yield from _factors(child, power)
        case "div":
            yield from _factors(node.args[0], power)
            yield from _factors(node.args[1], -power)
        case "neg":
            yield _MINUS, Fraction(1)
            yield from _factors(node.args[0], power)
        case "num" if node.number is not None:
            top, bottom = node.number.as_integer_ratio()
            yield from ((value, exponent) for value, exponent in ((top, power), (bottom, -power)) if value != 1)
        case "pow" if isinstance(raised := canonical(node.args[1]), Fraction):
            yield _atom(node.args[0]), power * raised
        case "fn" if node.name == "sqrt":
            yield _atom(node.args[0]), power / 2
        case _:
            yield _atom(node), power


def _atom(node: Node) -> Hashable:
    is_power = node.op == "pow" and isinstance(canonical(node.args[1]), Fraction)
    is_compound = node.op in ("add", "neg", "mul", "div") or is_power
    return _written(node) if is_compound else (node.op, node.name, node.number, tuple(map(_written, node.args)))


def _form(node: Node) -> str:
    match node.op:
        case "neg" | "deg" | "unit":
            return _form(node.args[0])
        case "num" if node.number is not None and node.number.denominator > 1:
            return node.name or ("fraction" if node.places is None else "decimal")
        case "div":
            top, bottom = (abs(value) if value else 0 for value in map(_whole, node.args))
            return "fraction" if bottom > 1 and math.gcd(top, bottom) == 1 else "fraction that can be reduced"
        case "add":
            return "mixed"
    if node.op in ("mul", "pow"):
        value = canonical(node)
        return "power of ten" if isinstance(value, Fraction) and value.denominator == 1 else "decimal"
    return "integer"


def _whole(node: Node) -> int | None:
    node = node.args[0] if node.op == "neg" else node
    return node.number.numerator if node.number is not None and node.number.denominator == 1 else None


@lru_cache(maxsize=256)
def _said(question: str) -> frozenset[Hashable]:
    """Return the keys of the formulas in a question, and of their parts."""
    keys: set[Hashable] = set()
    prose = question[:20_000]
    formulas = ["".join(filter(None, match.groups())) for match in _FORMULA.finditer(prose)]
    formulas += [match[0] for match in _SUM_IN_PROSE.finditer(plain_latex(_FORMULA.sub(" ", prose)))]
    for text in formulas[:_MAX_FORMULAS]:
        tree = parse_answer(text.rstrip(" \n.,;:?")) if len(text) <= _MAX_CHARACTERS else None
        if tree is not None:
            canonical(tree, keys)
            keys.update(_key(part) for part in _parts(tree) if is_worked_out(part))
    return frozenset(keys)


def _parts(node: Node) -> Iterator[Node]:
    yield node
    for child in node.args:
        yield from _parts(child)
