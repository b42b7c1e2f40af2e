"""A recursive-descent parser of single values: sums, products, powers, roots, fractions and functions.

Brackets, lists, sets, matrices and relations are in structure.py, which calls this parser and is called by it for
what stands in brackets. What is not understood raises ParseError; nothing is skipped, since a skipped part is a wrong
verdict.
"""

from typing import Protocol, final

from rlora.verify.reading.lex import Token
from rlora.verify.reading.nodes import Node, ParseError, fn, is_structure, letter, num, op, product, signed, sym, value
from rlora.verify.reading.numerals import in_base, mixed_number, numeral
from rlora.verify.reading.units import compound, is_product_of_letters, percent, unit

MAX_DEPTH = 60
_PRODUCT_SIGNS = frozenset({"*", "\\cdot", "\\times", "\\ast", "\\cdotp"})
_STARTS_FACTOR = frozenset({"(", "[", "{", "\\{", "\\sqrt", "\\frac", "\\binom", "\\lfloor", "\\lceil", "\\pi",
                            "\\infty", "\\repeating", "\\langle", "\\begin", "\\imath"})  # fmt: skip
_ACCENTS_WORDS = r"\overline \bar \vec \hat \widehat \tilde \overrightarrow \dot \angle \triangle"
ACCENTS = frozenset(_ACCENTS_WORDS.split())


class Readers(Protocol):
    """What the parser of single values calls for the rest of the grammar; see structure.py."""

    def bracket(self, parser: "Parser") -> Node:
        """Parse what an opening bracket begins."""
        ...

    def command(self, parser: "Parser", name: str) -> Node:
        """Parse the LaTeX command that stands next."""
        ...

    def function(self, parser: "Parser", name: str) -> Node:
        """Parse what follows the name of a function."""
        ...


@final
class Parser:
    """Reads tokens from left to right, each method one level of the grammar; raises ParseError."""

    def __init__(self, tokens: list[Token], readers: Readers) -> None:
        """Start at the first of `tokens`, the last of which must be the end token."""
        self.tokens = tokens
        self.position = 0
        self.depth = 0
        self.bars = 0
        self._ahead: tuple[int, int, Node] | None = None  # a bracket read already: from, to, value
        self._readers = readers

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
            node = op("add", node, signed(sign, self._term()))
        self.depth -= 1
        return node

    def _term(self) -> Node:
        """Parse a product with its sign; adjacent factors are multiplied, after units are dropped."""
        if self.token.text in ("+", "-", "\\pm", "\\mp") and self.token.kind != "text":
            self.depth += 1
            if self.depth > MAX_DEPTH:
                raise ParseError("nested too deeply")
            node = signed(self.take().text, self._term())
            self.depth -= 1
            return node
        node = mixed_number(self) or self.factor()
        while True:
            if self.token.text in _PRODUCT_SIGNS:
                self.take()
                node = product(node, self._signed_factor())
            elif self.token.text in ("/", "\\div", "\\over"):
                self.take()
                node = op("div", value(node), value(self._signed_factor()))
            elif self.token.text == "of" and node.op == "div":  # 5% of 40
                self.take()
                node = product(node, self.factor())
            elif (found := unit(self, node)) is not None:
                node = compound(found, self._term()) if self.starts_factor() else found
            elif self.starts_factor():
                if self.token.kind == "num" and self.tokens[self.position - 1].kind == "num":
                    raise ParseError("two numerals side by side")
                node = product(node, self.factor())
            else:
                return node

    def _signed_factor(self) -> Node:
        if self.token.text in ("+", "-"):
            return signed(self.take().text, self._signed_factor())
        return self.factor()

    def is_applied_name(self) -> bool:
        """Whether the next token and the bracket behind it are the whole left side of an equation."""
        depth, offset = 0, 1
        while self.peek(offset).kind != "end":
            depth += {"(": 1, ")": -1}.get(self.peek(offset).text, 0)
            offset += 1
            if depth == 0:
                return self.peek(offset).text in ("=", "\\approx")
        return False

    def starts_factor(self) -> bool:
        """Whether the next token begins a factor, so that a product is meant."""
        token = self.token
        if token.kind in ("num", "sym", "fn"):
            return True
        if token.kind == "word":
            return is_product_of_letters(token.text)
        if token.text == "|":
            return self.bars == 0
        return token.text in _STARTS_FACTOR or token.text in ACCENTS

    def factor(self) -> Node:
        """Parse a value with its powers, factorials, degree and percent signs."""
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise ParseError("nested too deeply")
        node = self.primary()
        while True:
            if self.token.text == "^":
                self.take()
                node = self._power(node)
            elif self.accept("!"):
                node = fn("fact2", value(node)) if self.accept("!") else op("fact", value(node))
            elif self.accept("\\deg@"):
                node = op("deg", value(node))
                if self.token.text in ("C", "F") and self.peek().kind == "end":
                    self.take()  # Celsius or Fahrenheit, a unit
            elif self.accept("%", "\\%"):
                is_factor = self.token.text in (*_PRODUCT_SIGNS, "of")  # else it is a unit
                node = op("div", value(node), num(100)) if is_factor else percent(value(node))
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
            exponent = signed(self.take().text, self._power_operand())
        else:
            exponent = self._power_operand()
        return op("pow", value(node), value(exponent))

    def _power_operand(self) -> Node:
        node = self.argument()
        return self._power(node) if self.accept("^") else node

    def argument(self) -> Node:
        """Parse what stands in braces, or one token, as TeX does for an argument."""
        if self.accept("{"):
            node = self.expression()
            self.take("}")
            return node
        return self.primary()

    def fraction_argument(self) -> Node:
        """Parse an argument of a fraction: unbraced digits count one by one, so that \\frac47 is four sevenths."""
        token = self.token
        if token.kind == "num" and token.text.isdigit() and len(token.text) > 1:
            self.tokens[self.position] = Token("num", token.text[1:], False)
            return num(int(token.text[0]))
        return self.argument()

    def primary(self) -> Node:
        """Parse a numeral, a name, a function, a bracket or a command."""
        token = self.token
        if token.kind == "num":
            self.take()
            return self._numeral(token.text)
        if token.kind == "sym":
            self.take()
            return self._symbol(token.text)
        if token.kind == "fn":
            self.take()
            return self._readers.function(self, token.text)
        if token.kind == "word" and is_product_of_letters(token.text):
            if token.text.isupper():
                self.take()
                return sym(token.text)
            letters = [Token("sym", c, token.spaced and i == 0) for i, c in enumerate(token.text)]
            self.tokens[self.position : self.position + 1] = letters  # one by one, so that xy^2 squares y alone
            return self.primary()
        if self._ahead is not None and self._ahead[0] == self.position:
            _, self.position, node = self._ahead
            return node
        if token.text in ("(", "[", "{", "\\{", "\\langle", "\\begin"):
            return self._readers.bracket(self)
        if token.kind == "cmd" or token.text == "|":
            return self._readers.command(self, token.text)
        raise ParseError(f"unexpected {token.text!r}")

    def _numeral(self, text: str) -> Node:
        if self.token.text == "_":
            self.take()
            return in_base(text, self._subscript())
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
        if name in ("P", "E") and self.token.text == "(" and not self.token.spaced:  # P(X = 2), but P(A) stays as it is
            start = self.position
            inner = self._readers.bracket(self)
            if inner.op == "rel":
                return Node("apply", (inner,), name)
            self._ahead, self.position = (start, self.position, inner), start  # twice at each level is 2^levels times
        while is_function and self.token.text == "'":
            self.take()
            name += "'"
        inverse = [token.text for token in self.tokens[self.position : self.position + 6]]
        if is_function and inverse == ["^", "{", "-", "1", "}", "("]:
            self.position += 5
            name += "^{-1}"
        if is_function and self.token.text == "(" and not self.token.spaced:
            inner = self._readers.bracket(self)
            return Node("apply", inner.args if is_structure(inner) else (inner,), name)
        return letter(name)
