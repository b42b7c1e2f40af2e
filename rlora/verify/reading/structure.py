"""The grammar around single values: brackets, lists, sets, intervals, matrices and relations."""

from rlora.verify.reading import commands
from rlora.verify.reading.lex import tokens
from rlora.verify.reading.nodes import Node, ParseError, is_structure, sym, symbols
from rlora.verify.reading.normalize import plain_words
from rlora.verify.reading.parse import Parser
from rlora.verify.reading.signs import expand_signs
from rlora.verify.reading.units import is_product_of_letters

MAX_TREE_DEPTH = 150
_CLOSING = {"(": (")", "]"), "[": ("]", ")"), "\\{": ("\\}",), "{": ("}",), "\\langle": ("\\rangle",)}
_RELATIONS = {"=": "=", "<": "<", ">": ">", "\\le": "<=", "\\ge": ">=", "\\ne": "!=", "\\approx": "~", "\\in": "in",
              ":": ":", "\\sim": "~", "\\equiv": "=", "\\iff": "iff", "\\to": "to"}  # fmt: skip
_MATRICES = frozenset(["matrix", "pmatrix", "bmatrix", "Bmatrix", "vmatrix", "smallmatrix", "array", "cases"])


def _bracket(parser: Parser) -> Node:
    if parser.token.text == "\\begin":
        return _matrix(parser)
    if [parser.peek(i).text for i in range(4)] == ["\\{", "\\begin", "{", "array"]:
        parser.take()
        system = _matrix(parser, is_system=True)
        parser.accept("\\}")
        return system
    parser.depth += 1
    bars, parser.bars = parser.bars, 0
    opening = parser.take().text
    closing = _CLOSING[opening]
    condition = _condition(parser) if opening == "\\{" else None
    if condition is not None:
        parser.take("\\}")
        parser.depth, parser.bars = parser.depth - 1, bars
        return condition
    items: list[Node] = []
    if parser.token.text not in closing:
        items = _items(parser)
    end = parser.take().text
    if end not in closing:
        raise ParseError(f"{opening} closed by {end}")
    parser.depth -= 1
    parser.bars = bars
    if opening == "\\{" or (opening == "{" and len(items) != 1):  # bare braces around a list are meant as a set
        return Node("set", tuple(items))
    if len(items) == 1 and end == closing[0] and opening != "\\langle":
        return items[0]
    return Node("seq", tuple(items), "()" if opening == "\\langle" else opening + end)


def _condition(parser: Parser) -> Node | None:
    """Parse what stands in {x | x > 2} behind the bar: the values are those that it describes; None for other sets."""
    width = 3 if parser.peek().text == "\\in" else 1
    if parser.token.kind != "sym" or parser.peek(width).text not in ("|", ":"):
        return None
    parser.position += width + 1
    node = _listed(parser)
    if any(child.op != "rel" for child in node.args):
        raise ParseError("a set by a condition that is none")
    return node.args[0] if len(node.args) == 1 else node


def _items(parser: Parser) -> list[Node]:
    """Parse values between commas, semicolons or the words `and` and `or`."""
    return list(_listed(parser).args)


def _listed(parser: Parser) -> Node:
    """Parse values between separators into a list, whose name is "or" if that word separates them."""
    items = [_relation(parser)]
    words: set[str] = set()
    while parser.token.text in (",", ";") or parser.token.kind == "sep":
        words.add(parser.take().text)
        if parser.token.kind == "sep":
            words.add(parser.take().text)
        items.append(_relation(parser))
    return Node("list", tuple(items), "or" if "or" in words and "and" not in words else "")


def _relation(parser: Parser) -> Node:
    sides = [_union(parser)]
    signs: list[str] = []
    while parser.token.text in _RELATIONS and parser.token.kind != "text":
        sign = _RELATIONS[parser.take().text]
        is_label = sign == ":" and sides[0].op == "sym" and len(sides[0].name) > 1  # "Area: 5"
        signs.append("=" if is_label else sign)
        sides.append(_union(parser))
    return Node("rel", tuple(sides), " ".join(signs)) if signs else sides[0]


def _union(parser: Parser) -> Node:
    first = _side(parser)
    parts = [first]
    while parser.accept("\\cup"):
        parts.append(_side(parser))
    if len(parts) == 1:
        if parser.accept("\\pmod", "\\bmod", "\\mod"):
            return Node("seq", (first, parser.argument()), "\\pmod")
        if parser.token.text in ("\\setminus", "\\cap", "\\backslash"):
            name = parser.take().text.replace("backslash", "setminus")
            return Node("seq", (first, _side(parser)), name)
        return first
    return Node("union", tuple(part if is_structure(part) else Node("set", (part,)) for part in parts))


def _side(parser: Parser) -> Node:
    """Parse a side of a relation; words or an applied letter may name it, as in "Area = 5" and u(x, y) = 5."""
    token = parser.token
    if token.kind == "sym" and parser.peek().text == "(" and not parser.peek().spaced and parser.is_applied_name():
        parser.take()
        inner = _bracket(parser)
        return Node("apply", inner.args if inner.op == "seq" else (inner,), token.text)
    is_variables = token.kind == "word" and token.text.islower() and is_product_of_letters(token.text)
    if token.kind in ("text", "word") and not is_variables:
        start = parser.position
        words: list[str] = []
        while parser.token.kind in ("text", "word"):
            words.append(parser.take().text)
        if parser.token.text in ("=", ":", "\\approx"):
            return sym(" ".join(words))
        if plain_words(" ".join(words)) in (
            "about",
            "approximately",
            "approx",
            "exactly",
            "a total of",
            "total",
            "the number",
            "only",
            "the value",
            "if",
            "for",
            "when",
        ):
            return parser.expression()
        parser.position = start
    return parser.expression()


def _matrix(parser: Parser, is_system: bool = False) -> Node:
    parser.take("\\begin")
    name = _environment(parser)
    if name not in _MATRICES:
        raise ParseError(f"environment {name}")
    if name == "array" and parser.accept("{"):
        while not parser.accept("}"):
            parser.take()
    rows: list[Node] = []
    cells: list[Node] = []
    while parser.token.text != "\\end":
        if parser.accept("\\hline"):
            continue
        cells.append(sym(parser.take().text) if parser.token.text in ("otherwise", "else") else _relation(parser))
        parser.accept(",", ".")
        if parser.accept("&"):
            continue
        if parser.token.kind == "row" or parser.token.text == "\\end":
            rows.append(Node("list", tuple(cells)))
            cells = []
            if parser.token.kind == "row":
                parser.take()
            continue
        raise ParseError(f"unexpected {parser.token.text!r} in a matrix")
    parser.take("\\end")
    if _environment(parser) != name or not rows or cells:
        raise ParseError("unfinished matrix")
    if name == "array" and len(rows) == len(rows[0].args) == 1:
        return rows[0].args[0]
    if name == "cases" or is_system:  # a system of equations, or values with their conditions
        return Node(
            "list", tuple(row.args[0] if len(row.args) == 1 else Node("seq", row.args, "cases") for row in rows)
        )
    return Node("matrix", tuple(rows), "det" if name == "vmatrix" else "")


def _environment(parser: Parser) -> str:
    parser.take("{")
    name = ""
    while not parser.accept("}"):
        name += parser.take().text
    return name


class _Readers:
    """The grammar around single values, as the parser calls it."""

    def bracket(self, parser: Parser) -> Node:
        return _bracket(parser)

    def command(self, parser: Parser, name: str) -> Node:
        return commands.command(parser, name)

    def function(self, parser: Parser, name: str) -> Node:
        return commands.function(parser, name)


def read(text: str) -> Node:
    """Return the tree of a normalised text; raises ParseError and RecursionError."""
    parser = Parser(tokens(text), _Readers())
    node = _listed(parser)
    if parser.token.kind != "end":
        raise ParseError(f"unexpected {parser.token.text!r}")
    last = node.args[-1]
    if len(node.args) > 1 and last.op == "rel" and last.name == "in" and last.args[0].name in symbols(node.args[-2]):
        node = Node("list", node.args[:-1], node.name)  # k\\pi, k \\in \\mathbb{Z}
    node = node.args[0] if len(node.args) == 1 else node
    if _depth(node) > MAX_TREE_DEPTH:
        raise ParseError("too many terms or levels")
    return expand_signs(node)


def _depth(node: Node) -> int:
    """Return the levels of a tree, without recursion, so that a long sum cannot exhaust the stack."""
    level, nodes = 0, [node]
    while nodes:
        level += 1
        nodes = [child for parent in nodes for child in parent.args]
    return level
