"""Numerals: decimals, repeating decimals, digits in a base."""

import re
from fractions import Fraction
from typing import TYPE_CHECKING

from rlora.verify.reading.nodes import Node, ParseError, num, op

if TYPE_CHECKING:
    from rlora.verify.reading.parse import Parser

MAX_DIGITS = 2000
_NAMES = "two three four five six seven eight nine ten eleven twelve"
_BASE_WORDS = {word: i for i, word in enumerate(_NAMES.split(), 2)}
_DOTTED = re.compile(r"(?<=[\d.])\\dot\s*\{?(\d)\}?(?:(\d{0,40})\\dot\s*\{?(\d)\}?)?")
_REPEATING = re.compile(r"(\d{0,40})\.(\d{0,40})\\(?:overline|bar)\s*\{(\d{1,40})\}")
_BASE_WORDS |= {"binary": 2, "ternary": 3, "octal": 8, "decimal": 10, "hexadecimal": 16}
_BASED = re.compile(
    r"\(?\s*([0-9A-Za-z]+(?:\.[0-9A-Za-z]+)?)\s*(?:\)\s*)?"  # never two \s* side by side: that is quadratic
    r"(?:_\s*(?:\{([^{}]*)\}|(\d))|(?:,\s*)?(?:\(\s*)?(?:in\s+)?(?:base[\s-]+(\w+)|((?:bi|ter)nary|octal|(?:hexa)?decimal))\s*\)?)"
)
_SHAPE = {"\\frac": "F", "{": "{", "}": "}", "/": "/"}
_MIXED = (("nF{n}{n}", 3, 6), ("nFn{n}", 2, 4), ("nF{n}n", 3, 5), ("nFnn", 2, 3), ("nFn", 2, 2), ("nn/n", 1, 3))


def numeral(text: str) -> Node:
    """Return the node of a decimal numeral; one of very many digits stays text, since converting it is slow."""
    if len(text) > MAX_DIGITS:
        return Node("big", name=text.lstrip("0")) if text.isdigit() else Node("big", name=text)
    if text.isdigit():
        return num(int(text))
    mantissa, _, exponent = text.lower().partition("e")
    if len(exponent) > 4:
        raise ParseError("exponent out of range")
    shift = int(exponent or 0)
    places = len(mantissa.partition(".")[2]) if "." in mantissa else None
    value = Fraction(mantissa) * Fraction(10) ** shift
    return Node("num", number=value, places=None if places is None else places - shift)


def _is_proper(top: str, bottom: str) -> bool:
    is_short = top.isdigit() and bottom.isdigit() and len(top) < 50 and len(bottom) < 50
    return is_short and 0 < int(top) < int(bottom)


def mixed_number(parser: "Parser") -> Node | None:
    """Parse 6 3/4 or 6\\frac{3}{4} as a sum; None if the next tokens are not a mixed number."""
    whole = parser.token
    if whole.kind != "num" or not whole.text.isdigit() or len(whole.text) > MAX_DIGITS:
        return None
    kinds = "".join(
        _SHAPE.get(token.text, token.kind[0]) for token in parser.tokens[parser.position : parser.position + 8]
    )
    for shape, top_at, bottom_at in _MIXED:
        if kinds.startswith(shape) and (shape[1] == "F" or parser.peek().spaced):
            top, bottom = parser.peek(top_at).text, parser.peek(bottom_at).text
            if shape == "nFn" and len(top) == 2:  # \\frac34: the digits count one by one
                top, bottom = top[0], top[1]
            if _is_proper(top, bottom):
                parser.position += len(shape)
                return op("add", num(int(whole.text)), num(Fraction(int(top), int(bottom))))
    return None


def base_value(subscript: str) -> int:
    """Return the base that a subscript names in digits or in words; 0 for none."""
    subscript = subscript.removeprefix("base").strip()
    is_short = subscript.isascii() and subscript.isdigit() and len(subscript) < 3  # ❶ is a digit that int refuses
    return int(subscript) if is_short else _BASE_WORDS.get(subscript.lower(), 0)


def in_base(digits: str, subscript: str) -> Node:
    """Return the node of digits with a base as their subscript; raises ParseError for an impossible one."""
    base = base_value(subscript)
    if not 2 <= base <= 36 or not digits.isdigit() or any(int(c) >= base for c in digits):
        raise ParseError(f"not a numeral in base {subscript!r}")
    return numeral(digits) if base == 10 else Node("base", name=digits.lstrip("0") or "0", number=Fraction(base))


def in_base_text(text: str) -> Node | None:
    """Return the node of a whole text such as A2F_{16} or (52)_8; None for any other text."""
    match = _BASED.fullmatch(text)
    if match is None:
        return None
    subscript = (match[2] or match[3] or match[4] or match[5] or "").strip().removeprefix("(").removesuffix(")")
    base = base_value(subscript.strip())
    digits = match[1].replace(".", "")
    is_number = any(c.isdigit() for c in digits) or (base == 16 and len(digits) > 1)  # x_{12} is a variable
    if not is_number or not 2 <= base <= 36 or any(int(c, 36) >= base for c in digits):
        return None
    if base == 10:
        return numeral(match[1])
    return Node("base", name=match[1].upper().lstrip("0") or "0", number=Fraction(base))


def without_repeating(text: str) -> str:
    """Return the text with decimals whose last digits repeat, as in 0.1\\overline{6}, written as their fraction behind
    a command of our own, so that their form is not lost."""
    if "\\dot" in text:
        text = _DOTTED.sub(lambda m: rf"\overline{{{m[1]}{m[2] or ''}{m[3] or ''}}}", text)
    return _REPEATING.sub(_fraction, text)


def _fraction(match: re.Match[str]) -> str:
    whole, fixed, block = match[1] or "0", match[2], match[3]
    value = Fraction(int(whole + fixed), 10 ** len(fixed))
    value += Fraction(int(block), 10 ** len(fixed) * (10 ** len(block) - 1))
    return rf"\repeating{{{value.numerator}}}{{{value.denominator}}}"
