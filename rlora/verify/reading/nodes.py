"""The tree that an answer is parsed into: one small node type for numbers, expressions, sets, relations and text.

Operations, by kind:
    leaves     num, big (a numeral too long to convert), base (digits in a base), sym, const (pi, e, i, inf), text
    scalars    add, mul, div, neg, pow, fact, deg (a degree sign), fn (name: sin, ...), apply (an unknown function),
               unit (a value in a unit; name: its base units, number: its size in them)
    structures list (no brackets), set, seq (name: its brackets), matrix (children: rows), union, rel (name: operators),
               pm (a value of either sign), calculus (a sum, integral or limit that is not computed; name: the source)
"""

from dataclasses import dataclass
from fractions import Fraction

_GROWING = frozenset({"pow", "fact", "fn"})
STRUCTURES = frozenset({"list", "set", "seq", "matrix", "union", "rel", "text", "calculus"})


class ParseError(ValueError):
    """A text is not an expression that this package reads."""


@dataclass(frozen=True, slots=True)
class Node:
    """A node of an answer's tree; `places` counts the decimals that a numeral was written with (None: an integer)."""

    op: str
    args: "tuple[Node, ...]" = ()
    name: str = ""
    number: Fraction | None = None
    places: int | None = None


ONE = Node("num", number=Fraction(1))
INFINITY = Node("const", name="inf")
PI = Node("const", name="pi")


def num(value: int | Fraction) -> Node:
    """Return the node of an exact number."""
    return Node("num", number=Fraction(value))


def sym(name: str) -> Node:
    """Return the node of a variable."""
    return Node("sym", name=name)


def op(kind: str, *args: Node) -> Node:
    """Return a node of `kind` over `args`."""
    return Node(kind, args)


REALS = Node("seq", (op("neg", INFINITY), INFINITY), "()")


def fn(name: str, *args: Node) -> Node:
    """Return a known function applied to `args`."""
    return Node("fn", args, name)


def is_structure(node: Node) -> bool:
    """Whether the node is not a single value, so that arithmetic on it has no meaning here."""
    return node.op in STRUCTURES


def contains(node: Node, kind: str, name: str | None = None) -> bool:
    """Whether a node of this kind (and name) occurs in the tree."""
    if node.op == kind and (name is None or node.name == name):
        return True
    return any(contains(child, kind, name) for child in node.args)


def cost(node: Node) -> int:
    """Return about how many microseconds evaluating the tree may take: most where numbers grow."""
    total, nodes = 0, [node]
    while nodes:
        node = nodes.pop()
        total += 100 if node.op in _GROWING else 1
        nodes.extend(node.args)
    return total


def is_worked_out(node: Node) -> bool:
    """Whether the node is a number with nothing left to compute: a numeral, a fraction of two integers, a mixed number,
    or a numeral times a power of ten, each with a sign or a degree sign."""
    if node.op in ("neg", "deg", "unit"):
        return is_worked_out(node.args[0])
    if node.op == "div":
        return all(map(_is_integer, node.args))
    if node.op == "mul":
        return node.args[0].op == "num" and node.args[1].op == "pow" and is_worked_out(node.args[1])
    if node.op == "pow":
        return node.args[0].number == 10 and _is_integer(node.args[1])
    if node.op == "add":  # 6 3/4, whose second part the parser makes a fraction
        whole, part = node.args
        is_whole = whole.op == "num" and whole.number != 0 and part.op == "num"
        return is_whole and part.places is None and not part.name and part.number is not None and 0 < part.number < 1
    if node.op == "rel":  # x = 5, 2 + 3 = 5
        return set(node.name.split()) == {"="} and is_worked_out(node.args[-1])
    return node.op in ("num", "big")


def _is_integer(node: Node) -> bool:
    number = node.args[0].number if node.op == "neg" else node.number
    return number is not None and number.denominator == 1 and node.places is None


def symbols(node: Node) -> frozenset[str]:
    """Return the names of the variables in the tree."""
    if node.op == "sym":
        return frozenset((node.name,))
    return frozenset().union(*(symbols(child) for child in node.args)) if node.args else frozenset()


def letter(name: str) -> Node:
    """Return the node of a letter: e and i are constants, all others variables."""
    return Node("const", name=name) if name in ("e", "i") else sym(name)


def value(node: Node) -> Node:
    """Return the node if arithmetic on it has a meaning; raises ParseError for a structure."""
    if is_structure(node):
        raise ParseError(f"arithmetic on a {node.op}")
    return node


def signed(sign: str, node: Node) -> Node:
    """Return the value with a sign in front: +, -, or either of both."""
    if sign in ("\\pm", "\\mp"):
        return Node("pm", (value(node),), sign)
    return node if sign != "-" else product(num(-1), node) if node.op == "matrix" else op("neg", value(node))


def product(left: Node, right: Node) -> Node:
    """Return the product of two values, of which one may be a matrix; raises ParseError for another structure."""
    for factor, other in ((left, right), (right, left)):
        if other.op == "matrix" and not other.name and not is_structure(factor):
            rows = (Node("list", tuple(op("mul", factor, entry) for entry in row.args)) for row in other.args)
            return Node("matrix", tuple(rows))
    return op("mul", value(left), value(right))
