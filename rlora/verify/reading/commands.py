"""LaTeX commands and functions inside an expression: fractions, roots, logarithms, trigonometry, absolute values."""

from rlora.verify.reading.nodes import INFINITY, PI, Node, ParseError, contains, fn, num, op
from rlora.verify.reading.parse import ACCENTS, Parser

_TRIGONOMETRIC = frozenset(["sin", "cos", "tan", "cot", "sec", "csc"])
_INVERSE = {"sin": "arcsin", "cos": "arccos", "tan": "arctan", "cot": "arccot", "sinh": "arcsinh", "cosh": "arccosh",
            "tanh": "arctanh"}  # fmt: skip
_ALIASES = {"asin": "arcsin", "acos": "arccos", "atan": "arctan"}
_SAME_ACCENTS = {"\\bar": "\\overline", "\\widehat": "\\hat", "\\overrightarrow": "\\vec"}
_CALCULUS = frozenset({"\\sum", "\\prod", "\\int", "\\lim"})
_VARIADIC = frozenset({"gcd", "lcm", "max", "min"})


def command(parser: Parser, name: str) -> Node:
    """Parse the command that stands next; raises ParseError for one that is not known."""
    if name == "|":
        return _absolute(parser)
    if name in _CALCULUS:
        return _calculus(parser)
    parser.take()
    if name == "\\frac":
        top = parser.fraction_argument()
        return op("div", top, parser.fraction_argument())
    if name == "\\repeating":
        top, bottom = parser.argument(), parser.argument()
        if top.number is not None and bottom.number:
            return Node("num", name="repeating", number=top.number / bottom.number)
    if name == "\\sqrt":
        return _root(parser)
    if name == "\\pi":
        return PI
    if name == "\\infty":
        return INFINITY
    if name == "\\emptyset":
        return Node("set")
    if name in ("\\binom", "\\dbinom", "\\tbinom"):
        top = parser.fraction_argument()
        return fn("binom", top, parser.fraction_argument())
    if name in ("\\lfloor", "\\lceil"):
        inner = parser.expression()
        parser.take("\\rfloor" if name == "\\lfloor" else "\\rceil")
        return fn("floor" if name == "\\lfloor" else "ceil", inner)
    if name in ACCENTS:
        return Node("apply", (parser.argument(),), _SAME_ACCENTS.get(name, name))
    if name == "\\imath":
        return Node("const", name="i")
    raise ParseError(f"unknown command {name}")


def _absolute(parser: Parser) -> Node:
    parser.take("|")
    parser.bars += 1
    inner = parser.expression()
    parser.take("|")
    parser.bars -= 1
    return fn("abs", inner)


def _root(parser: Parser) -> Node:
    index: Node | None = None
    if parser.accept("["):
        index = parser.expression()
        parser.take("]")
    inner = parser.factor() if parser.token.text == "(" else parser.argument()
    return fn("sqrt", inner) if index is None or index.number == 2 else fn("root", inner, index)


def function(parser: Parser, name: str) -> Node:
    """Parse the power, base and argument of a function whose name was just read."""
    name = _ALIASES.get(name, name)
    if name in ("sqrt", "cbrt"):
        inner = parser.factor() if parser.token.text == "(" else parser.argument()
        return fn("sqrt", inner) if name == "sqrt" else fn("root", inner, num(3))
    base: Node | None = None
    power: Node | None = None
    while parser.token.text in ("_", "^"):
        if parser.take().text == "_":
            base = parser.argument()
        else:
            power = op("neg", parser.argument()) if parser.accept("-") else parser.argument()
    if power is not None and power in (num(-1), op("neg", num(1))) and name in _INVERSE:
        name, power = _INVERSE[name], None
    node = fn(name, *_several(parser)) if name in _VARIADIC else _applied(name, base, _argument(parser))
    return node if power is None else op("pow", node, power)


def _several(parser: Parser) -> tuple[Node, ...]:
    group = parser.argument()
    values = group.args if group.op in ("seq", "set", "list") else (group,)
    if not values:
        raise ParseError("a function of nothing")
    return values


def _applied(name: str, base: Node | None, argument: Node) -> Node:
    if argument.op in ("seq", "list", "set"):
        raise ParseError(f"{name} of several values")
    if name in _TRIGONOMETRIC and contains(argument, "deg"):
        argument = op("mul", argument, op("div", PI, num(180)))
    if name == "log" and base is not None:
        return op("div", fn("ln", argument), fn("ln", base))
    if name == "lg":
        return op("div", fn("ln", argument), fn("ln", num(10)))
    if name == "exp":
        return op("pow", Node("const", name="e"), argument)
    if name == "cis":
        degrees = op("mul", argument, op("div", PI, num(180))) if contains(argument, "deg") else argument
        return op("add", fn("cos", degrees), op("mul", Node("const", name="i"), fn("sin", degrees)))
    if base is not None:
        raise ParseError(f"{name} with a subscript")
    return fn(name, argument)


def _argument(parser: Parser) -> Node:
    """Parse a function's argument: a bracket, or factors up to the next sign, function or product sign."""
    if parser.token.text in ("(", "{", "[", "|"):
        return parser.factor() if parser.token.text == "|" else _bracketed(parser)
    if parser.token.kind == "fn":
        parser_token = parser.take()
        return function(parser, parser_token.text)
    node = parser.factor()
    while parser.starts_factor() and parser.token.kind != "fn" and parser.token.text not in ("(", "[", "\\{", "|"):
        node = op("mul", node, parser.factor())
    if contains(node, "const", "pi") and parser.token.text == "/" and parser.peek().kind == "num":
        parser.take()
        node = op("div", node, parser.factor())
    return node


def _bracketed(parser: Parser) -> Node:
    node = parser.primary()
    return op("deg", node) if parser.accept("\\deg@") else node


def _calculus(parser: Parser) -> Node:
    """Keep a sum, product, integral or limit as the tokens it was written with: it is not computed."""
    words: list[str] = []
    depth = 0
    while parser.token.kind != "end" and (depth or parser.token.text not in ("=", "\\approx", ",", ")", "}")):
        token = parser.take()
        depth += {"{": 1, "(": 1, "}": -1, ")": -1}.get(token.text, 0)
        words.append(token.text if token.kind != "text" else f"\\text{{{token.text}}}")
    return Node("calculus", name=" ".join(words))
