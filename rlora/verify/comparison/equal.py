"""What is equal: structures element by element, values by a decision that the caller supplies.

`equal` is exact and symmetric; `matches` also lets a decimal gold stand for every value that rounds to it, and is not
symmetric. Verdicts have three values: None means that the decision (the cheap one of the parent) was not enough.
"""

import re
from collections.abc import Sequence

from rlora.verify.comparison.contradiction import contradicts_itself
from rlora.verify.comparison.decide import (
    Decision,
    Effort,
    Step,
    Ternary,
    TooMuchError,
    all_of,
    any_of,
    full_decision,
    roughly_rounded,
    same_value,
)
from rlora.verify.comparison.moved import moved
from rlora.verify.comparison.names import body, by_name, quantity, with_same_parameter
from rlora.verify.comparison.relations import FLIPPED, named_value, solutions
from rlora.verify.comparison.units import in_units
from rlora.verify.reading.answer import parse_answer
from rlora.verify.reading.nodes import Node, contains, is_structure, symbols
from rlora.verify.reading.normalize import plain_words

MOVABLE = frozenset({"=", "<", ">", "<=", ">=", "!="})


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
    return all_of(verdicts)


def _relation(gold: Node, answer: Node, decide: Decision) -> Ternary:
    signs, other_signs = (node.name.replace("~", "=").split() for node in (gold, answer))
    backwards = [FLIPPED.get(sign, sign) for sign in reversed(other_signs)]
    verdicts: list[Ternary] = []
    if signs == other_signs:
        verdicts.append(_ordered(gold.args, answer.args, decide))
    if signs == backwards and set(signs) <= MOVABLE:
        verdicts.append(_ordered(gold.args, answer.args[::-1], decide))
    if signs == other_signs == ["="]:
        if {gold.args[0].op, answer.args[0].op} == {"apply", "sym"}:
            verdicts.append(compare(gold.args[1], answer.args[1], decide))  # y = 2x + 1 and f(x) = 2x + 1
        left, right = body(gold), body(answer)
        if left is not None and right is not None and left[0] == right[0]:
            verdicts.append(compare(left[1], right[1], decide))  # f(x) = x and f(z) = z
    sides = gold.args + answer.args
    is_movable = len(signs) == len(other_signs) == 1 and signs[0] in MOVABLE and not any(map(is_structure, sides))
    if any_of(verdicts) is not True and is_movable and other_signs[0] in MOVABLE:
        verdicts.append(moved(gold, answer, signs[0], other_signs[0], decide))
    return any_of(verdicts)


def _approximated(gold: Node, answer: Node) -> Node | None:
    """Return the decimal that an answer such as 1/3 \\approx 0.33 ends in, if it is the gold's and may be right."""
    if gold.op != "num" or gold.places is None or gold.number is None or answer.op != "rel":
        return None
    signs, last = answer.name.split(), answer.args[-1]
    exact = answer.args[signs.index("~")] if "~" in signs else None
    if exact is None or last.number != gold.number or symbols(exact):
        return None
    return None if roughly_rounded(exact, gold.number, gold.places) is False else last


def _unwrapped(gold: Node, answer: Node, decide: Decision) -> tuple[Node, Node] | None:
    """Return the pair with one side reduced to the other's kind: an equation to its value, an inequality to its set."""
    if decide.is_rounding and answer.op == "rel" and not is_structure(gold):
        told = _approximated(gold, answer) or (None if symbols(gold) else quantity(answer))
        if told is not None:
            return gold, told
    for a, b, is_swapped in ((gold, answer, False), (answer, gold, True)):
        inner = None
        if a.op == "rel" and b.op != "rel":
            inner = named_value(a)
        is_set_wanted = b.op in ("seq", "union", "set") or a.op in ("sym", "seq") or "or" in (a.name, b.name)
        is_set_wanted = is_set_wanted or {a.op, b.op} <= {"rel", "list"}
        if inner is None and is_set_wanted:
            inner = solutions(a)
        if inner is None and a.op in ("set", "list") and len(a.args) == 1 and b.op not in ("set", "list"):
            inner = a.args[0]
        if inner is not None and inner != a:
            return (b, inner) if is_swapped else (inner, b)
    return None


def compare(gold: Node, answer: Node, decide: Decision) -> Ternary:
    """Decide whether two trees are the same answer."""
    if gold == answer:
        return decide.by("the same tree", True, gold, answer)
    if decide.effort is not None:
        decide.effort.spend(gold, answer)
    named = by_name(gold, answer)
    if named is not None:
        decide.by("entries by their names, in the order of these", None, *named)
        return compare(*named, decide)
    kinds = {gold.op, answer.op}
    if kinds == {"rel"}:
        verdict = _relation(gold, answer, decide)
        if verdict is not False or {"=", "~"} & {*gold.name.split(), *answer.name.split()}:
            return decide.by("relations: their sides, swapped, moved over or scaled", verdict, gold, answer)
        if symbols(gold) != symbols(answer):
            return decide.by("relations in different variables", False, gold, answer)
    reduced = _unwrapped(gold, answer, decide)
    if reduced is not None:
        decide.by("an equation stands for its value, an inequality for its set, one element for itself", None, *reduced)
        return compare(*reduced, decide)
    if "text" in kinds:
        return decide.by("words: letter by letter", gold.op == answer.op and gold.name == answer.name, gold, answer)
    if kinds <= {"set", "list"} or kinds == {"union"}:
        verdict = _unordered(gold.args, answer.args, decide)
        return decide.by("several values, order does not count: each has its partner", verdict, gold, answer)
    if kinds <= {"seq", "list", "matrix"}:
        verdict = _sequences(gold, answer, decide)
        return decide.by("tuples, intervals or matrices: brackets, and values in order", verdict, gold, answer)
    if any(is_structure(node) for node in (gold, answer)):
        return decide.by("answers of different kinds", False, gold, answer)
    if kinds <= {"sym", "const"} and len(gold.name) == len(answer.name) == 1:
        return decide.by("single letters ignore case", gold.name.casefold() == answer.name.casefold(), gold, answer)
    if contains(gold, "unit") or contains(answer, "unit"):
        if (converted := in_units(gold, answer)) is None:
            return decide.by("values in several units", False, gold, answer)
        gold, answer = converted
        decide.by("units are converted, or dropped where one side has none", None, gold, answer)
    return same_value(gold, answer, decide)


def _sequences(gold: Node, answer: Node, decide: Decision) -> Ternary:
    """Decide tuples, intervals, vectors and lists written without brackets, in which order counts."""
    if gold.op == answer.op == "matrix":
        if gold.name != answer.name or len(gold.args) != len(answer.args):
            return False
        rows = [_ordered(a.args, b.args, decide) for a, b in zip(gold.args, answer.args, strict=True)]
        return all_of(rows)
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


_MARKUP = re.compile(r"\\(?:text|mathrm|mathbf|mbox)(?:bf|rm)?|\\[ ,;:]|[{}$*]")
_OTHER_CHOICE = re.compile(r"^(?:is|isn't|cannot|can't)\b|\([A-Ha-h]\)|\b[A-H]\s?[).:]|\b(?:or|and)\b")
_CHOICE = re.compile(r"(?:\(([A-Ha-h])\)|([A-H])\s{0,8}[).:])\s*([^\s+\-*/^=<>_!|,].*)", re.DOTALL)


def _choice(text: str) -> tuple[str, str] | None:
    """Return the letter and the rest of an answer such as "(C) 42"; None for any other."""
    match = _CHOICE.fullmatch(_MARKUP.sub(" ", text).strip())
    return (match[1] or match[2], match[3]) if match and not _OTHER_CHOICE.search(match[3]) else None


def compare_texts(gold: str, answer: str, decide: Decision) -> Ternary:
    """Decide whether two texts are the same answer; words are compared as words, a decimal comma as a point."""
    left, right = parse_answer(gold), parse_answer(answer)
    if left is None or right is None:
        return decide.by("a text that is no expression", False, gold, answer)
    if gold != answer and any(map(contradicts_itself, (left, right))):
        return decide.by("an equation of two different numbers has no value", False, gold, answer)
    for tree, text in ((left, answer), (right, gold)):
        if tree.op == "sym" and len(tree.name) == 1 and tree.name.isupper() and (choice := _choice(text)):
            return decide.by("multiple choice: the letter", choice[0].upper() == tree.name, gold, answer)
    chosen = [_choice(text) for text in (gold, answer)]
    if (chosen[0] is None) != (chosen[1] is None) and {left.op, right.op} & {"num", "div", "neg"}:
        values = [text if choice is None else choice[1] for choice, text in zip(chosen, (gold, answer), strict=True)]
        return compare_texts(values[0], values[1], decide)  # "(C) 42" and 42
    if (left.op == "text") != (right.op == "text"):
        words, other = plain_words(gold), plain_words(answer)
        is_same = words == other and words.replace(" ", "").isalpha()
        return decide.by("words against an expression: letter by letter", is_same, gold, answer)
    verdict = compare(left, right if left == right else with_same_parameter(left, right), decide)
    if verdict is False and (left.op == "list") != (right.op == "list"):
        texts = [_with_decimal_point(text) for text in (gold, answer)]
        if texts != [gold, answer]:
            decide.by("a decimal comma is read as a point", None, *texts)
            left, right = parse_answer(texts[0]), parse_answer(texts[1])
            return False if left is None or right is None else compare(left, right, decide)
    return verdict


_DECIMAL_COMMA = re.compile(r"(?<![\d,.])(\d+),(\d{1,2}|\d{4,})(?![\d,.])")


def _with_decimal_point(text: str) -> str:
    stripped = text.strip().lstrip("-+$ ")
    return text.replace(",", ".") if _DECIMAL_COMMA.match(stripped) and text.count(",") == 1 else text


def cheap_verdict(
    gold: str, answer: str, *, is_rounding: bool, trace: list[Step] | None = None, effort: Effort | None = None
) -> Ternary:
    """Decide an answer against its gold without a worker, or None; the rules that decided are added to `trace`.

    Long lists and the like, which `effort` does not suffice for, are left to a worker's deadline.
    """
    decide = Decision(is_rounding=is_rounding, trace=trace, effort=effort or Effort())
    try:
        return compare_texts(gold, answer, decide)
    except TooMuchError:
        return decide.by("more to compare than is done without a worker", None, gold, answer)


def full_verdict(gold: str, answer: str, *, is_rounding: bool, trace: list[Step] | None = None) -> Ternary:
    """Decide with high-precision arithmetic; None for what even that cannot compare. Without a deadline."""
    return compare_texts(gold, answer, full_decision(is_rounding, trace))


def equal(a: str, b: str) -> bool:
    """Whether two answers are the same, exactly and symmetrically; without a deadline, so for trusted texts."""
    return bool(full_verdict(a, b, is_rounding=False))


def matches(gold: str, answer: str) -> bool:
    """Whether an answer is right for its gold, a decimal gold at its own precision; without a deadline."""
    return bool(full_verdict(gold, answer, is_rounding=True))
