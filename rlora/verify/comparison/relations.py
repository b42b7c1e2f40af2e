"""Equations and inequalities as answers: the value that one gives to a name, its set of solutions, and moved terms."""

from itertools import pairwise

from rlora.verify.comparison.enclose import enclose
from rlora.verify.reading.nodes import INFINITY, REALS, Node, is_structure, num, op, symbols

FLIPPED = {"<": ">", ">": "<", "<=": ">=", ">=": "<="}
_MINUS_INFINITY = op("neg", INFINITY)
_FUNCTION_LETTERS = frozenset("PEAVCNTSQRDLMpqny")
_NUMBER_SETS = frozenset({"\\mathbb{R}", "\\mathbbR", "\\mathbf{R}"})


def is_name(node: Node) -> bool:
    """Whether a side of an equation names what the other side is: x, f(x), P(A), AB, (x, y)."""
    if node.op in ("sym", "apply"):
        return True
    if node.op == "seq":
        return bool(node.args) and all(child.op == "sym" for child in node.args)
    if node.op == "fn" and node.name == "abs":
        return node.args[0].op == "apply" or (node.args[0].op == "sym" and len(node.args[0].name) > 1)
    if node.op == "div":  # dy/dx
        return all(side.op == "mul" and _is_differential(side.args[0]) for side in node.args)
    if node.op != "mul" or not all(is_name(child) for child in node.args):
        return False  # 2x = 10 names nothing, and xy = 6 is an equation
    return _is_application(node) or any(child.op == "apply" or child.name.isupper() for child in node.args)


def _is_differential(node: Node) -> bool:
    return (node.args[0] if node.op == "pow" else node).name in ("d", "\\partial")


def named_value(node: Node) -> Node | None:
    """Return the value that an equation gives to a name (or its own value, if it has no variables); else None."""
    if node.op != "rel" or set(node.name.split()) - {"=", "~"}:
        return None
    sides, signs = node.args, node.name.split()
    if "~" in signs and (signs.index("~") > 0 or not is_name(sides[0])):
        sides = sides[: signs.index("~") + 1]  # what stands before an approximation is the exact value
        if len(sides) == 1:
            return sides[0]
    left, right = sides[0], sides[-1]
    if is_name(left):
        is_plain = left.op in ("sym", "apply", "seq", "div") or not symbols(right) or _is_application(left)
        return right if is_plain else None
    if right.op == "sym" and not symbols(left):
        return left
    if len(sides) > 2 and not symbols(right):
        return right  # a chain of steps that ends in a value
    return right if not any(symbols(side) for side in sides) else None


def _is_application(node: Node) -> bool:
    return node.op == "mul" and node.args[0].op == "sym" and node.args[0].name in _FUNCTION_LETTERS


def solutions(node: Node) -> Node | None:
    """Return the set that a membership or an inequality in one variable describes; None for what describes none."""
    if node.op == "sym" and node.name in _NUMBER_SETS:
        return REALS
    if node.op == "list" and node.name == "or" and all(child.op == "rel" for child in node.args):
        are_values = all(child.name == "=" for child in node.args)
        parts = [_value_set(child) if child.name == "=" and not are_values else solutions(child) for child in node.args]
        known = [part for part in parts if part is not None]
        return Node("union", tuple(known)) if len(known) == len(parts) else None
    if node.op == "seq" and node.name == "\\setminus":
        hole = node.args[1]
        return _without(solutions(node.args[0]), hole if hole.op == "set" else Node("set", (hole,)))
    if node.op == "list" and node.args[0].op == "rel" and node.args[0].name == "!=":
        holes = [_excluded(child, node.args[0].args[0]) for child in node.args]
        known = [hole for hole in holes if hole is not None]
        return _without(REALS, Node("set", tuple(known))) if len(known) == len(holes) else None
    if node.op == "list" and node.name != "or" and len(node.args) == 2:
        return _both(*node.args)
    if node.op != "rel":
        return None
    signs = node.name.split()
    if signs == ["in"]:
        return solutions(node.args[1]) or node.args[1]
    if signs == ["!="]:
        left, right = node.args
        value = right if left.op == "sym" else left if right.op == "sym" else None
        return None if value is None or symbols(value) else _without(REALS, Node("set", (value,)))
    if len(signs) == 1:
        return _half_line(node.args[0], signs[0], node.args[1])
    return _segment(node.args, signs) if len(signs) == 2 else None


def _value_set(node: Node) -> Node | None:
    """Return the set of the one value that x = 2 gives."""
    return Node("set", (node.args[1],)) if node.args[0].op == "sym" and not symbols(node.args[1]) else None


def _excluded(node: Node, name: Node) -> Node | None:
    """Return the value that x != 2 excludes, or a bare value that goes on with such a list; None for anything else."""
    if node.op == "rel":
        is_same = node.name == "!=" and node.args[0] == name
        node = node.args[1] if is_same else node
    return None if is_structure(node) or symbols(node) else node


def _half_line(left: Node, sign: str, right: Node) -> Node | None:
    if right.op == "sym" and left.op != "sym":
        left, sign, right = right, FLIPPED.get(sign, sign), left
    if left.op != "sym" or symbols(right) or sign not in FLIPPED:
        return None
    match sign:
        case ">":
            return Node("seq", (right, INFINITY), "()")
        case ">=":
            return Node("seq", (right, INFINITY), "[)")
        case "<":
            return Node("seq", (_MINUS_INFINITY, right), "()")
    return Node("seq", (_MINUS_INFINITY, right), "(]")


def _both(first: Node, second: Node) -> Node | None:
    """Return the interval that two inequalities leave, one from below and one from above: x > 2 and x <= 7."""
    ends = [_half_line(child.args[0], child.name, child.args[1]) for child in (first, second) if child.name in FLIPPED]
    names = {side.name for child in (first, second) for side in child.args if side.op == "sym"}
    known = sorted((end for end in ends if end is not None), key=lambda end: end.args[0] == _MINUS_INFINITY)
    if len(known) != 2 or len(names) != 1 or known[0].args[1] != INFINITY or known[1].args[0] != _MINUS_INFINITY:
        return None
    return Node("seq", (known[0].args[0], known[1].args[1]), known[0].name[0] + known[1].name[1])


def _segment(sides: tuple[Node, ...], signs: list[str]) -> Node | None:
    if all(sign in (">", ">=") for sign in signs):
        sides, signs = sides[::-1], [FLIPPED[sign] for sign in reversed(signs)]
    low, middle, high = sides
    if middle.op != "sym" or symbols(low) or symbols(high) or not all(sign in ("<", "<=") for sign in signs):
        return None
    return Node("seq", (low, high), ("[" if signs[0] == "<=" else "(") + ("]" if signs[1] == "<=" else ")"))


def _without(whole: Node | None, holes: Node) -> Node | None:
    """Return the real line without finitely many points, as a union of open intervals in order."""
    if whole != REALS or holes.op != "set" or not holes.args:
        return None
    placed: list[tuple[float, Node]] = []
    for point in holes.args:
        value = None if symbols(point) else enclose(point, 1)
        if value is None or value[0].imag:
            return None
        placed.append((value[0].real, point))
    ends = [_MINUS_INFINITY, *(point for _, point in sorted(placed, key=lambda pair: pair[0])), INFINITY]
    return Node("union", tuple(Node("seq", (a, b), "()") for a, b in pairwise(ends)))


def difference(node: Node) -> Node:
    """Return left side minus right side of a relation between two values."""
    return op("add", node.args[0], op("neg", node.args[1]))


def renamed(node: Node) -> Node:
    """Return the tree with every variable replaced by a new one, to ask whether two expressions are proportional."""
    if node.op == "sym":
        return Node("sym", name=node.name + "*")
    args = tuple(renamed(child) for child in node.args)
    return Node(node.op, args, node.name, node.number, node.places) if args else node


def ratio_sign(a: Node, b: Node) -> int:
    """Return the sign of a / b at a point, 0 where it cannot be told."""
    value = enclose(op("div", a, b), 1)
    if value is None or value[0].imag or abs(value[0].real) <= 2 * value[1]:
        return 0
    return 1 if value[0].real > 0 else -1


ZERO = num(0)
