"""Plus-or-minus signs, each of which stands for two values: all signs of one value go together, those of a tuple's
entries do not, unless one is the opposite of another."""

import itertools
import math

from rlora.verify.reading.nodes import Node, contains, is_structure, op

_MAX_TUPLES = 64


def expand_signs(node: Node) -> Node:
    """Return the tree with a plus-or-minus value replaced by the list of both values."""
    if node.op in ("list", "set"):
        parts: list[Node] = []
        for child in node.args:
            expanded = expand_signs(child)
            parts.extend(expanded.args if expanded.op == "list" else (expanded,))
        return Node(node.op, tuple(parts), node.name)
    if node.op == "seq" and node.name == "()" and _has_sign(node) and not contains(node, "pm", "\\mp"):
        entries = [child.args if child.op == "list" else (child,) for child in map(expand_signs, node.args)]
        if math.prod(map(len, entries)) > _MAX_TUPLES:
            return node
        return Node("list", tuple(Node("seq", choice, "()") for choice in itertools.product(*entries)))
    if not _has_sign(node) or (is_structure(node) and node.op not in ("rel", "seq")):
        return node
    return Node("list", (_choose(node, False), _choose(node, True)))


def _has_sign(node: Node) -> bool:
    return node.op == "pm" or any(_has_sign(child) for child in node.args)


def _choose(node: Node, minus: bool) -> Node:
    if node.op == "pm":
        inner = _choose(node.args[0], minus)
        return op("neg", inner) if minus == (node.name == "\\pm") else inner
    if not node.args:
        return node
    return Node(node.op, tuple(_choose(child, minus) for child in node.args), node.name, node.number, node.places)
