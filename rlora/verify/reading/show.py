"""A tree written out on one line, with every bracket that the reading rests on: what an explanation shows."""

from fractions import Fraction

from rlora.verify.reading.nodes import Node

_SIGNS = {"add": " + ", "mul": "*", "div": "/", "pow": "^"}
_STRENGTH = {"add": 1, "neg": 2, "mul": 3, "div": 3, "pow": 5}
_NAMES = {"inf": "infinity"}
_MAX_CHARACTERS = 400
_MAX_BITS = 13_000  # Python writes out at most 4,300 digits


def _integer(value: int) -> str:
    bits = value.bit_length()
    return str(value) if bits <= _MAX_BITS else f"a number of about {round(bits * 0.30103)} digits"


def _number(value: Fraction) -> str:
    top = _integer(value.numerator)
    return top if value.denominator == 1 else f"{top}/{_integer(value.denominator)}"


def _inside(node: Node, strength: int) -> str:
    text = _show(node)
    is_weak = _STRENGTH.get(node.op, 9) <= strength or (node.op == "num" and "/" in text and strength > 1)
    return f"({text})" if is_weak else text


def _joined(node: Node) -> str:
    return ", ".join(_show(child) for child in node.args)


def _relation(node: Node) -> str:
    first, *rest = (_show(side) for side in node.args)
    return first + "".join(f" {sign} {side}" for sign, side in zip(node.name.split(), rest, strict=True))


def _show(node: Node) -> str:
    match node.op:
        case "num":
            assert node.number is not None
            return _number(node.number) + ("" if node.places is None else f" [{node.places} decimals]")
        case "big":
            return f"{node.name} [{len(node.name)} digits, kept as text]"
        case "base":
            assert node.number is not None
            return f"{node.name} [in base {_number(node.number)}]"
        case "sym" | "const":
            return _NAMES.get(node.name, node.name)
        case "text":
            return f"the words {node.name!r}"
        case "add" if node.args[1].op == "neg":
            return f"{_inside(node.args[0], 0)} - {_inside(node.args[1].args[0], 1)}"
        case "add" | "mul" | "div" | "pow":
            left, right = node.args
            return _inside(left, _STRENGTH[node.op] - 1) + _SIGNS[node.op] + _inside(right, _STRENGTH[node.op])
        case "neg":
            return f"-{_inside(node.args[0], 2)}"
        case "fact":
            return f"{_inside(node.args[0], 8)}!"
        case "deg":
            return f"{_inside(node.args[0], 8)} degrees"
        case "unit":
            return f"{_inside(node.args[0], 8)} [{node.name}]"
        case "fn" | "apply":
            return f"{node.name}({_joined(node)})"
        case "rel":
            return _relation(node)
    return _structure(node)


def _structure(node: Node) -> str:
    match node.op:
        case "list":
            return f"the list {_joined(node)}"
        case "set":
            return f"the set {{{_joined(node)}}}"
        case "seq" if len(node.name) == 2:
            return f"{node.name[0]}{_joined(node)}{node.name[1]}"
        case "union":
            return " union ".join(_show(child) for child in node.args)
        case "matrix":
            return "matrix [" + "; ".join(_joined(row) for row in node.args) + "]"
        case "calculus":
            return f"a formula that is not computed: {node.name}"
    return f"{node.op} {node.name}({_joined(node)})"


def show(node: Node | None) -> str:
    """Return the tree as text of at most 400 characters; of None, that nothing was understood."""
    text = "nothing that can be read as an expression" if node is None else _show(node)
    return text if len(text) <= _MAX_CHARACTERS else f"{text[:_MAX_CHARACTERS]} ... ({len(text)} characters)"
