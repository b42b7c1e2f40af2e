"""Names in answers: entries that are given one by one, functions of a variable of any name, parameters, quantities."""

from collections.abc import Iterable
from itertools import pairwise

from rlora.verify.comparison.relations import is_name
from rlora.verify.reading.nodes import Node, contains, is_structure, sym, symbols

_PARAMETERS = frozenset("klmnj")


def by_name(gold: Node, answer: Node) -> tuple[Node, Node] | None:
    """Return two answers without the names of their entries, in the same order; None where neither names them, or the
    names differ."""
    left, right = _entries(gold), _entries(answer)
    if left is not None and right is not None:
        if left.keys() != right.keys():
            return None
        return _tuple(left.values()), _tuple(right[name] for name in left)
    if left is not None and answer.op in ("seq", "list", "matrix"):
        return _unnamed(left, answer), answer
    if right is not None and gold.op in ("seq", "list", "matrix"):
        return gold, _unnamed(right, gold)
    return None


def _tuple(values: Iterable[Node]) -> Node:
    return Node("seq", tuple(values), "()")


def _unnamed(entries: dict[Node, Node], other: Node) -> Node:
    """Return the values alone; those of x_1, x_2 are solutions, which have any order."""
    are_roots = len({name.name.partition("_")[0] for name in entries}) == 1 and all(
        name.op == "sym" for name in entries
    )
    return Node("list", tuple(entries.values())) if are_roots and other.op == "list" else _tuple(entries.values())


def _entries(node: Node) -> dict[Node, Node] | None:
    """Return the values of y = 4, x = 3 or of (x, y) = (3, 4) by their names, in their order; None for other answers.

    Letters that follow one another in the alphabet have an order of their own, other names that of the answer.
    """
    if node.op == "rel" and node.name == "=" and all(side.op == "seq" for side in node.args):
        names, values = (side.args for side in node.args)
    elif (
        node.op in ("list", "set")
        and node.args
        and node.name != "or"
        and all(child.op == "rel" and child.name == "=" for child in node.args)
    ):
        names, values = zip(*(child.args for child in node.args if len(child.args) == 2), strict=True)
    else:
        return None
    if len(set(names)) != len(values) or len(values) < 2 or not all(name.op in ("sym", "apply") for name in names):
        return None
    entries = dict(zip(names, values, strict=True))
    letters = sorted(entries, key=lambda name: name.name)
    if all(len(name.name) == 1 for name in letters) and all(
        ord(b.name) - ord(a.name) == 1 for a, b in pairwise(letters)
    ):
        return {name: entries[name] for name in letters}
    return entries


def replaced(node: Node, names: dict[str, Node]) -> Node:
    """Return the tree with variables replaced by name, all at once."""
    if node.op == "sym":
        return names.get(node.name, node)
    args = tuple(replaced(child, names) for child in node.args)
    return Node(node.op, args, node.name, node.number, node.places) if args else node


def body(node: Node) -> tuple[str, Node] | None:
    """Return what f(x, y) = x + y or a_n = 2n says of its arguments or its index, whatever they are called."""
    function = node.args[0]
    sequence, _, index = function.name.partition("_")
    if function.op == "sym" and index in symbols(node.args[-1]) and len(node.args) == 2:
        return sequence, replaced(node.args[1], {index: sym(" 0")})
    names = [child.name for child in function.args if child.op == "sym"]
    if function.op != "apply" or len(set(names)) != len(function.args) or len(node.args) != 2:
        return None
    return function.name, replaced(node.args[1], {name: sym(f" {i}") for i, name in enumerate(names)})


def with_same_parameter(gold: Node, answer: Node) -> Node:
    """Return the answer with the gold's letter for an integer where both are periodic, as n\\pi and k\\pi are, and with
    its constant of integration."""
    if symbols(gold) ^ symbols(answer) == {"C", "c"}:
        return replaced(answer, {"c": sym("C"), "C": sym("c")})
    letters = [symbols(node) & _PARAMETERS for node in (gold, answer)]
    is_periodic = all(contains(node, "const", "pi") or contains(node, "deg") for node in (gold, answer))
    if not is_periodic or any(len(found) != 1 for found in letters) or letters[0] == letters[1]:
        return answer
    (new,), (old,) = letters
    return replaced(answer, {old: sym(new)})


def quantity(node: Node) -> Node | None:
    """Return the value that an equation gives to a sum, a quotient or the like of names, as m + n = 12 does."""
    if node.op != "rel" or set(node.name.split()) != {"="} or is_structure(node.args[-1]) or symbols(node.args[-1]):
        return None
    return node.args[-1] if _is_combination(node.args[0]) else None


def _is_combination(node: Node) -> bool:
    if node.op == "div":
        return all(child.op == "sym" for child in node.args)
    is_made_of = node.op in ("add", "neg") or node.name in ("abs", "floor", "ceil", "gcd", "lcm", "max", "min")
    return is_name(node) or (is_made_of and all(map(_is_combination, node.args)))
