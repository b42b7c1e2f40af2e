"""From an answer's text to its tree: brackets, lists, sets, intervals, matrices, relations and plain words."""

import re
from functools import lru_cache

from rlora.verify.reading import commands
from rlora.verify.reading.lex import tokens
from rlora.verify.reading.nodes import REALS, Node, ParseError, is_structure, num, sym, symbols
from rlora.verify.reading.normalize import plain_latex, plain_words
from rlora.verify.reading.numerals import in_base_text, without_repeating
from rlora.verify.reading.parse import Parser
from rlora.verify.reading.signs import expand_signs
from rlora.verify.reading.units import is_product_of_letters

MAX_CHARACTERS = 20_000
MAX_TREE_DEPTH = 150
_SHORT = 200
_CLOSING = {"(": (")", "]"), "[": ("]", ")"), "\\{": ("\\}",), "{": ("}",), "\\langle": ("\\rangle",)}
_RELATIONS = {"=": "=", "<": "<", ">": ">", "\\le": "<=", "\\ge": ">=", "\\ne": "!=", "\\approx": "~", "\\in": "in",
              ":": ":", "\\sim": "~", "\\equiv": "=", "\\iff": "iff", "\\to": "to"}  # fmt: skip
_MEANINGS = {
    **dict.fromkeys(("all real numbers", "all reals", "real numbers", "all real x", "mathbb r"), REALS),
    **dict.fromkeys(("no solution", "no solutions", "no real solution", "no real solutions"), Node("set")),
    **dict.fromkeys(("empty set", "the empty set"), Node("set")),
}
_UNFONTED = re.compile(r"\\(?:text|mbox|textbf|mathrm)\s*\{([^{}]*)\}")
_WHOLE_TEXT = re.compile(
    r"\\(?:text|mbox|textbf|textit|textrm|texttt|emph)\s*\{((?![^{}]*\\)(?=\s*[^{}\s])[^{}]*)\}|(?:``|\"|'')([^`\"']+)(?:''|\"|``)"
)
_WORD_SIGN = re.compile(r"^(?:negative|minus)\s+(?=[\d.\\])", re.IGNORECASE)
_CLAUSE = re.compile(
    r"\\(?:text|mbox|textrm)\s?\{[\s,]{0,8}(?:for (?:all|every|each|any|some)|where)\b|\\forall|\bfor all\b"
)
_TRAILING = re.compile(r"(?:(?:(?<!\\)[.,;]|\\[,;:!]?)\s{0,8}){1,6}$")
_PREFIX = re.compile(r"^(?:option|choice|answer)\s+(?=\(?[A-Za-z]\)?$)", re.IGNORECASE)
_LEADING_SIGN = re.compile(r"^(?:=|\\approx|\\sim(?![a-z])|:|≈)\s*")
_SPACED = re.compile(r"^[-+]?\d{1,3}(?: \d{3})+(?=$|\.\d|\s*[a-zA-Z%\\])")  # thousands set off by spaces
_NUMBER_WORDS = "zero one two three four five six seven eight nine ten eleven twelve"
_MEANINGS |= {word: num(i) for i, word in enumerate(_NUMBER_WORDS.split())}
_PROSE = re.compile(r"(?:[A-Za-z0-9 .,;:'\"!?()/&%]|(?<=[A-Za-z])-(?=[A-Za-z]))*")  # no formula that words would hide
_ARTICLE = re.compile(r"^(?:an?|the) (?=[a-z]{3})")
_CLOCK = re.compile(r"(\d{1,2})(?:(:\d{2})\s*|\s+)([ap])\.?\s?m\.?", re.IGNORECASE)
_BASE = re.compile("_|base|nary|octal|decimal")
_MATRICES = frozenset(["matrix", "pmatrix", "bmatrix", "Bmatrix", "vmatrix", "smallmatrix", "array", "cases"])


def _bracket(parser: Parser) -> Node:
    if parser.token.text == "\\begin":
        return _matrix(parser)
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
            name = parser.take().text
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
            "if",
            "for",
            "when",
        ):
            return parser.expression()
        parser.position = start
    return parser.expression()


def _matrix(parser: Parser) -> Node:
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
        parser.accept(",")
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
    if name == "cases":  # a system of equations, or values with their conditions
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


def _read(text: str) -> Node:
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


def parse_answer(text: str) -> Node | None:
    """Return the tree of an answer, a `text` node for words, or None for what is neither.

    Never raises: a text that cannot be read is data, not an error.
    """
    if len(text) > MAX_CHARACTERS:
        stripped = text.strip().lstrip("+0")
        return Node("big", name=stripped) if stripped.isdigit() and stripped.isascii() else None
    return parsed(text) if len(text) <= _SHORT else parsed_long(text)


def _parse(text: str) -> Node | None:
    plain = plain_latex(text)
    if clause := _CLAUSE.search(plain):
        plain = plain[: clause.start()].rstrip(" ,;")
    plain = _WORD_SIGN.sub("-", _TRAILING.sub("", plain))
    if not plain or len(plain) > MAX_CHARACTERS:
        return None
    plain = without_repeating(
        _SPACED.sub(lambda m: m[0].replace(" ", ""), _LEADING_SIGN.sub("", _PREFIX.sub("", plain)))
    )
    while whole := _WHOLE_TEXT.fullmatch(plain):
        plain = _PREFIX.sub("", whole[1] or whole[2]).strip()
    if clock := _CLOCK.fullmatch(_UNFONTED.sub(r"\1", plain).strip()):
        return Node("text", name=f"{clock[1].lstrip('0')}{clock[2] or ':00'} {clock[3].lower()}m")
    try:
        based = in_base_text(_UNFONTED.sub(r"\1", plain).strip()) if _BASE.search(plain) else None
        return based or _read(plain)
    except (ParseError, RecursionError):
        words = plain_words(plain)
        if not _PROSE.fullmatch(_UNFONTED.sub(r"\1", plain)) or not any(c.isalpha() for c in words):
            return None
        return _MEANINGS.get(words) or Node("text", name=_ARTICLE.sub("", words))


parsed = lru_cache(maxsize=4096)(_parse)
parsed_long = lru_cache(maxsize=32)(_parse)  # a tree of 20,000 characters takes a megabyte
