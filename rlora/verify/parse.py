"""A recursive-descent parser of single values: sums, products, powers, roots, fractions and functions.

Brackets, lists, sets, matrices and relations are in structure.py, which calls this parser and is called by it for what
stands in brackets. What is not understood raises ParseError; nothing is skipped, since a skipped part is a wrong verdict.
"""

from collections.abc import Callable
from fractions import Fraction

from rlora.verify.lex import Token
from rlora.verify.nodes import PI, Node, ParseError, fn, is_structure, num, op, sym
from rlora.verify.units import is_short_word, is_unit, is_unit_letter

MAX_DEPTH = 60
MAX_DIGITS = 2000
_PRODUCT_SIGNS = frozenset({"*", "\\cdot", "\\times", "\\ast", "\\cdotp"})
_STARTS_FACTOR = frozenset({"(", "[", "{", "\\{", "\\sqrt", "\\frac", "\\binom", "\\lfloor", "\\lceil", "\\pi", "\\infty",
                            "\\langle", "\\begin", "\\overline", "\\bar", "\\imath", "\\exp@"})  # fmt: skip
_ACCENTS = frozenset("\\overline \\bar \\vec \\hat \\widehat \\tilde \\overrightarrow \\dot \\mathop \\angle \\triangle".split())
_CALCULUS = frozenset({"\\sum", "\\prod", "\\int", "\\lim", "\\iint", "\\oint"})
_BASE_WORDS = {word: i for i, word in enumerate("two three four five six seven eight nine ten eleven twelve".split(), 2)}
_INVERSE = {"sin": "arcsin", "cos": "arccos", "tan": "arctan", "cot": "arccot"}
_ALIASES = {"asin": "arcsin", "acos": "arccos", "atan": "arctan", "lg": "log10"}


class Parser:
    """Reads tokens from left to right; `bracket` parses what an opening bracket begins (given by structure.py)."""

    def __init__(self, tokens: list[Token], bracket: "Callable[[Parser], Node]") -> None:
        self.tokens = tokens
        self.position = 0
        self.depth = 0
        self.units: list[str] = []
        self.bars = 0
        self._bracket = bracket

    @property
    def token(self) -> Token:
        """The token to be read next."""
        return self.tokens[self.position]

    def peek(self, offset: int = 1) -> Token:
        """Return the token `offset` after the next."""
        return self.tokens[min(self.position + offset, len(self.tokens) - 1)]

    def take(self, text: str | None = None) -> Token:
        """Read a token, which must be `text` if given; raises ParseError."""
        token = self.token
        if (text is not None and token.text != text) or token.kind == "end":
            raise ParseError(f"expected {text!r}, found {token.text!r}")
        self.position += 1
        return token

    def accept(self, *texts: str) -> bool:
        """Read the next token if it is one of `texts`."""
        if self.token.text in texts and self.token.kind != "text":
            self.position += 1
            return True
        return False

    def expression(self) -> Node:
        """Parse a sum."""
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise ParseError("nested too deeply")
        node = self._term()
        while self.token.text in ("+", "-", "\\pm", "\\mp") and self.token.kind != "text":
            sign = self.take().text
            node = op("add", node, _signed(sign, self._term()))
        self.depth -= 1
        return node

    def _term(self) -> Node:
        """Parse a product with its sign; adjacent factors are multiplied, after units are dropped."""
        if self.token.text in ("+", "-", "\\pm", "\\mp") and self.token.kind != "text":
            self.depth += 1
            if self.depth > MAX_DEPTH:
                raise ParseError("nested too deeply")
            node = _signed(self.take().text, self._term())
            self.depth -= 1
            return node
        node = self._mixed_number() or self.factor()
        while True:
            if self.token.text in _PRODUCT_SIGNS:
                self.take()
                node = _product(node, self._signed_factor())
            elif self.token.text in ("/", "\\div", "\\over"):
                self.take()
                node = op("div", _value(node), _value(self._signed_factor()))
            elif self.drop_unit():
                continue
            elif self.starts_factor():
                if self.token.kind == "num" and self.tokens[self.position - 1].kind == "num":
                    raise ParseError("two numerals side by side")
                node = _product(node, self.factor())
            else:
                return node

    def _signed_factor(self) -> Node:
        if self.token.text in ("+", "-"):
            return _signed(self.take().text, self._signed_factor())
        return self.factor()

    def starts_factor(self) -> bool:
        """Whether the next token begins a factor, so that a product is meant."""
        token = self.token
        if token.kind in ("num", "sym", "fn"):
            return True
        if token.kind == "word":
            return _is_product_of_letters(token.text)
        if token.text == "|":
            return self.bars == 0
        return token.text in _STARTS_FACTOR or token.text in _ACCENTS or token.text in _CALCULUS

    def drop_unit(self) -> bool:
        """Read a unit or a word behind a number, which carries no value; the words are kept in `units`."""
        token = self.token
        behind_number = self.position > 0
        if not behind_number or not (token.kind == "text" or self._is_minutes(token) or (token.kind == "word" and is_unit(token.text))
                                     or (token.spaced and is_unit_letter(token.text) and self.peek().kind == "end"
                                         and self.tokens[self.position - 1].kind == "num")):  # fmt: skip
            return False
        self.units.append(self.take().text)
        while self.token.text in ("^", "/", "'") or self.token.kind in ("text", "word"):
            if self.token.text == "^":
                self.take()
                self.argument()
            elif self.token.text == "/":
                if self.peek().kind not in ("text", "word", "sym"):
                    break
                self.take()
                self.units.append(self.take().text)
            elif self.token.kind == "word" and _is_product_of_letters(self.token.text) and not is_unit(self.token.text):
                break
            else:
                self.units.append(self.take().text)
        return True

    def _is_minutes(self, token: Token) -> bool:
        return token.text in ("min", "sec") and token.kind == "fn" and self.peek().text not in ("(", "{", "^", "_", "\\{")

    def _mixed_number(self) -> Node | None:
        """Parse 6 3/4 or 6\\frac{3}{4} as a sum; None if the next tokens are not a mixed number."""
        whole, after = self.token, self.peek()
        if whole.kind != "num" or not whole.text.isdigit() or len(whole.text) > MAX_DIGITS:
            return None
        start = self.position
        if after.text == "\\frac":
            self.take()
            part = self.factor()
            top, bottom = part.args if part.op == "div" else (part, part)
            integers = top.op == bottom.op == "num" and top.places is None and bottom.places is None
            if integers and 0 < (top.number or 0) < (bottom.number or 0):
                return op("add", num(int(whole.text)), part)
        elif after.kind == "num" and after.spaced and self.peek(2).text == "/" and self.peek(3).kind == "num":
            top_text, bottom_text = after.text, self.peek(3).text
            if (top_text + bottom_text).isdigit() and len(top_text) < 50 and len(bottom_text) < 50:
                if 0 < int(top_text) < int(bottom_text):
                    self.position += 4
                    return op("add", num(int(whole.text)), num(Fraction(int(top_text), int(bottom_text))))
        self.position = start
        return None

    def factor(self) -> Node:
        """Parse a value with its powers, factorials, degree and percent signs."""
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise ParseError("nested too deeply")
        node = self._primary()
        while True:
            if self.token.text == "^":
                self.take()
                node = self._power(node)
            elif self.accept("!"):
                node = fn("fact2", _value(node)) if self.accept("!") else op("fact", _value(node))
            elif self.accept("\\deg@"):
                node = op("deg", _value(node))
            elif self.accept("%", "\\%"):
                self.units.append("%")
            elif self.token.text == "'" and node.op == "sym":
                self.take()
                node = sym(node.name + "'")
            else:
                self.depth -= 1
                return node

    def _power(self, node: Node) -> Node:
        if self.token.text in ("'", "\\prime"):
            self.take()
            return sym(node.name + "'")
        if self.token.text in ("+", "-"):
            exponent = _signed(self.take().text, self._power_operand())
        else:
            exponent = self._power_operand()
        return op("pow", _value(node), _value(exponent))

    def _power_operand(self) -> Node:
        node = self.argument()
        return self._power(node) if self.accept("^") else node

    def argument(self) -> Node:
        """Parse what stands in braces, or one token, as TeX does for an argument."""
        if self.accept("{"):
            node = self.expression()
            self.take("}")
            return node
        return self._primary()

    def _fraction_argument(self) -> Node:
        """Parse an argument of a fraction: unbraced digits count one by one, so that \\frac47 is four sevenths."""
        token = self.token
        if token.kind == "num" and token.text.isdigit() and len(token.text) > 1:
            self.tokens[self.position] = Token("num", token.text[1:], False)
            return num(int(token.text[0]))
        return self.argument()

    def _primary(self) -> Node:
        token = self.token
        if token.kind == "num":
            self.take()
            return self._numeral(token.text)
        if token.kind == "sym":
            self.take()
            return self._symbol(token.text)
        if token.kind == "fn":
            self.take()
            return self._function(token.text)
        if token.kind == "word" and _is_product_of_letters(token.text):
            self.take()
            letters = [sym(token.text)] if token.text.isupper() else [_letter(c) for c in token.text]
            node = letters[0]
            for letter in letters[1:]:
                node = op("mul", node, letter)
            return node
        if token.text in ("(", "[", "\\{", "\\langle", "\\begin"):
            return self._bracket(self)
        if token.text == "{":
            return self.argument()
        if token.kind == "cmd" or token.text == "|":
            return self._command(token.text)
        raise ParseError(f"unexpected {token.text!r}")

    def _numeral(self, text: str) -> Node:
        if self.token.text == "_":
            self.take()
            return _in_base(text, self._subscript())
        return numeral(text)

    def _subscript(self) -> str:
        """Read a subscript as plain text, braces dropped."""
        if not self.accept("{"):
            return self.take().text
        parts: list[str] = []
        while not self.accept("}"):
            parts.append(self.take().text)
        return "".join(parts)

    def _symbol(self, name: str) -> Node:
        if self.token.text == "_":
            self.take()
            return sym(f"{name}_{self._subscript()}")
        is_function = name in ("f", "g", "h", "\\phi", "\\psi", "F", "G")
        while is_function and self.token.text == "'":
            self.take()
            name += "'"
        inverse = [token.text for token in self.tokens[self.position : self.position + 6]]
        if is_function and inverse == ["^", "{", "-", "1", "}", "("]:
            self.position += 5
            name += "^{-1}"
        if is_function and self.token.text == "(" and not self.token.spaced:
            inner = self._bracket(self)
            return Node("apply", inner.args if is_structure(inner) else (inner,), name)
        return _letter(name)

    def _command(self, name: str) -> Node:
        from rlora.verify import commands

        return commands.parse(self, name)

    def _function(self, name: str) -> Node:
        from rlora.verify import commands

        return commands.function(self, name)


def numeral(text: str) -> Node:
    """Return the node of a decimal numeral; one of very many digits stays text, since converting it is slow."""
    if len(text) > MAX_DIGITS:
        return Node("big", name=text.lstrip("0")) if text.isdigit() else Node("big", name=text)
    mantissa, _, exponent = text.lower().partition("e")
    if len(exponent) > 4:
        raise ParseError("exponent out of range")
    shift = int(exponent or 0)
    places = len(mantissa.partition(".")[2]) if "." in mantissa else None
    value = Fraction(mantissa) * Fraction(10) ** shift
    return Node("num", number=value, places=None if places is None else places - shift)


def _in_base(digits: str, subscript: str) -> Node:
    base = int(subscript) if subscript.isdigit() and len(subscript) < 3 else _BASE_WORDS.get(subscript.lower(), 0)
    if not 2 <= base <= 36 or not digits.isdigit() or any(int(c) >= base for c in digits):
        raise ParseError(f"not a numeral in base {subscript!r}")
    return numeral(digits) if base == 10 else Node("base", name=digits.lstrip("0") or "0", number=Fraction(base))


def _letter(name: str) -> Node:
    return Node("const", name=name) if name in ("e", "i") else sym(name)


def _is_product_of_letters(word: str) -> bool:
    return not is_unit(word) and not is_short_word(word) and ((len(word) <= 3 and word.islower()) or (len(word) <= 4 and word.isupper()))


def _signed(sign: str, node: Node) -> Node:
    if sign in ("\\pm", "\\mp"):
        return Node("pm", (_value(node),), sign)
    return op("neg", _value(node)) if sign == "-" else node


def _value(node: Node) -> Node:
    if is_structure(node) and node.op != "calculus":
        raise ParseError(f"arithmetic on a {node.op}")
    return node


def _product(left: Node, right: Node) -> Node:
    return op("mul", _value(left), _value(right))


def is_pi(node: Node) -> bool:
    """Whether the node is pi itself."""
    return node == PI
