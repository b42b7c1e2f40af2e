"""Words behind a number: units with their size, number words that multiply it, and nouns for what is counted.

Words that are none of these are not skipped, since they may change the value: "5 below zero" is not 5.
"""

import re
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING

from rlora.verify.reading.nodes import Node, ParseError, num, op

if TYPE_CHECKING:
    from rlora.verify.reading.parse import Parser

# Names: size in the base unit, base unit with its power. Plurals in -s and -es are understood.
_UNITS_TABLE = """
m meter metre: 1 m; cm centimeter centimetre: 1/100 m; mm millimeter millimetre: 1/1000 m; dm decimeter: 1/10 m
km kilometer kilometre: 1000 m; nm nanometer: 1/1000000000 m; in inch: 127/5000 m; ft foot feet: 381/1250 m
yd yard: 1143/1250 m; mi mile: 201168/125 m; acre: 316160658/78125 m 2; hectare ha: 10000 m 2
g gm gram: 1 g; kg kilogram kilo: 1000 g; mg milligram: 1/1000 g; tonne t: 1000000 g; lb pound: 45359237/100000 g
oz ounce: 45359237/1600000 g; ton: 1 ton
s sec second: 1 s; ms millisecond: 1/1000 s; min minute: 60 s; h hr hour: 3600 s; day: 86400 s; week: 604800 s
month: 1 month; year yr: 12 month; decade: 120 month; century centuries: 1200 month
l L liter litre: 1/1000 m 3; ml mL milliliter millilitre: 1/1000000 m 3; gallon gal: 473176473/125000000000 m 3
quart qt: 473176473/500000000000 m 3; pint: 473176473/1000000000000 m 3; cup: 473176473/2000000000000 m 3
mph: 1397/3125 m/s; kph kmph: 5/18 m/s; Hz hertz: 1 s -1; kHz: 1000 s -1; bpm: 1/60 s -1; rad radian: 1 rad
cent: 1 cent; dollar buck usd USD: 100 cent; euro: 1 euro; N newton: 1 N; J joule: 1 J; kJ: 1000 J; cal calorie: 1 cal
kcal: 1000 cal; W watt: 1 W; kW kw kilowatt: 1000 W; V volt: 1 V; A amp ampere: 1 A; K kelvin: 1 K; C celsius: 1 C
F fahrenheit: 1 F; byte: 1 byte; kb KB: 1000 byte; mb MB: 1000000 byte; gb GB: 1000000000 byte
percent pct: 1/100 %; unit each only apiece total altogether left remaining tall long wide high deep old: 1
"""
_Units = dict[str, tuple[Fraction, dict[str, int]]]


def _table() -> _Units:
    units: _Units = {}
    for line in re.split(r"[;\n]", _UNITS_TABLE.strip()):
        names, size = line.split(":")
        factor, *base = size.split()
        if base == ["m/s"]:
            powers = {"m": 1, "s": -1}
        else:
            powers = {base[0]: int(base[1]) if len(base) > 1 else 1} if base else {}
        units |= dict.fromkeys(names.split(), (Fraction(factor), powers))
    return units


_UNITS = _table()
_ORDINALS = """
    half third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth thirteenth fourteenth fifteenth sixteenth
    seventeenth eighteenth nineteenth twentieth
"""
_TENTHS = "thirtieth fortieth fiftieth sixtieth seventieth eightieth ninetieth"
_MULTIPLIERS = {
    **{"dozen": Fraction(12), "score": Fraction(20), "gross": Fraction(144), "quarter": Fraction(1, 4)},
    **{"halves": Fraction(1, 2)},
    **{name: Fraction(1, i) for i, name in enumerate(_ORDINALS.split(), 2)},
    **{name: Fraction(1, 10 * i) for i, name in enumerate(_TENTHS.split(), 3)},
}
for _power, _name in ((1, "ten"), (2, "hundred"), (3, "thousand"), (6, "million"), (9, "billion"), (12, "trillion")):
    _MULTIPLIERS |= {_name: Fraction(10**_power), f"{_name}th": Fraction(1, 10**_power)}
_POWERS = {"square": 2, "sq": 2, "cubic": 3, "cu": 3, "squared": 2, "cubed": 3}
_MAX_CHARACTERS, _MAX_POWER = 100, 9
_IRREGULAR_PLURALS = "people children men women teeth mice geese fish sheep dice deer"
_IRREGULAR = frozenset(_IRREGULAR_PLURALS.split())
_GRAMMAR_WORDS = """
    than less more fewer below above under over not plus minus times from off out and but for with without except choose
    mod modulo this does equals always perhaps other another where when then because since unless divided multiplied
    backwards forwards upwards downwards afterwards sometimes
"""
_GRAMMAR = frozenset(_GRAMMAR_WORDS.split())
_ENGLISH = """
    is are the to of in at by so we if no yes not and or on as an be he it up was has had can get all one two
    ten six odd any but for its per add sum let set see new old now our out day she his her him you who why
    how may too use way did got do go me my us am none even true dne nan na ok
"""
_SHORT_WORDS = frozenset(_ENGLISH.split())
_LETTERS = frozenset("msghLltNJWVAKCF")
_PIECE = re.compile(r"[A-Za-z]+|\^\s*-?\d+|/|[^\s.]")
_POWER = re.compile(r"\^-?\d+")
_MARKUP = re.compile(r"\\[,;:! ]|\\cdot(?![a-zA-Z])|[{}.~]")


def _named(word: str, table: Mapping[str, object]) -> str | None:
    """Return the name in a table that a word is, in the plural or not, in capitals or not."""
    names = [word, word.lower()]
    if len(word) > 2:
        names += [word.lower().removesuffix("s"), word.lower().removesuffix("es")]
    return next((name for name in names if name in table), None)


def is_product_of_letters(word: str) -> bool:
    """Whether a run of letters is read as variables multiplied (or one name, in capitals) rather than as a word."""
    is_short = (len(word) <= 3 and word.islower()) or (len(word) <= 4 and word.isupper())
    return is_short and word not in _UNITS and word not in _POWERS and word.lower() not in _SHORT_WORDS


def measured(value: Node, phrase: str) -> Node | None:
    """Return a value with the words behind it: multiplied, in a unit, or as it is behind a noun; None for others."""
    pieces = (
        [piece.replace(" ", "") for piece in _PIECE.findall(_MARKUP.sub(" ", phrase).replace("per cent", "percent"))]
        if len(phrase) <= _MAX_CHARACTERS
        else []
    )
    while pieces and (name := _named(pieces[0], _MULTIPLIERS)):
        factor = _MULTIPLIERS[name]
        value = num(value.number * factor) if value.number is not None else op("mul", value, num(factor))
        pieces.pop(0)
        if not pieces:
            return value
    if pieces and pieces[0].lower() in ("degree", "degrees", "deg"):
        if pieces[1:] and pieces[1].upper() not in ("C", "F", "CELSIUS", "FAHRENHEIT"):
            return None
        return op("deg", value) if len(pieces) < 3 else None
    top, *bottoms = " ".join("/" if piece == "per" else piece for piece in ("", *pieces)).split(" / ")
    measures = [_measure(top.split(), value) if top or not bottoms else (Fraction(1), {})]
    measures += [_measure(bottom.split(), num(1)) for bottom in bottoms]
    size, powers = Fraction(1), dict[str, int]()
    for sign, measure in zip((1, *[-1] * len(measures)), measures, strict=False):
        if measure is None:
            return None
        size *= measure[0] ** sign
        for base, power in measure[1].items():
            powers[base] = powers.get(base, 0) + sign * power
    name = " ".join(f"{base}^{power}" for base, power in sorted(powers.items()) if power)
    return Node("unit", (value,), name, size) if name else value


def percent(value: Node) -> Node:
    """Return a value with a percent sign."""
    return Node("unit", (value,), "%^1", Fraction(1, 100))


def is_unit(phrase: str) -> bool:
    """Whether words are a product of units and nothing else."""
    found = measured(num(2), phrase)
    return found is not None and found.op == "unit"


def _measure(pieces: Sequence[str], value: Node) -> tuple[Fraction, dict[str, int]] | None:
    """Return the size and the powers of base units of a product of units, nothing of a noun; None for other words."""
    size, powers = Fraction(1), dict[str, int]()
    rest = list(pieces)
    while rest:
        power = 1
        if rest[0].lower() in _POWERS:
            power = _POWERS[rest.pop(0).lower()]
        name = _named(rest.pop(0), _UNITS) if rest else None
        if name is None:
            return (Fraction(1), {}) if _is_noun(pieces, value) else None
        if rest and (_POWER.fullmatch(rest[0]) or rest[0] in _POWERS):
            power *= int(rest[0][1:]) if rest[0][0] == "^" else _POWERS[rest[0]]
            rest.pop(0)
        if abs(power) > _MAX_POWER:
            return None
        size *= _UNITS[name][0] ** power
        for base, exponent in _UNITS[name][1].items():
            powers[base] = powers.get(base, 0) + power * exponent
    return (size, powers) if pieces else None


def _is_noun(pieces: Sequence[str], value: Node) -> bool:
    """Whether words name what is counted: a plural with words before it, or any word behind 1, and "of" more words."""
    words = [piece.lower() for piece in pieces]
    if not all(word.isalpha() for word in words) or _GRAMMAR & set(words):
        return False
    last = words[: words.index("of")][-1:] if "of" in words else words[-1:]
    if not last:
        return False
    is_plural = len(last[0]) > 3 and last[0][-1] == "s" and last[0][-2] not in "sui"
    is_number = _named(last[0], _MULTIPLIERS) is not None
    return not is_number and (is_plural or last[0] in _IRREGULAR or (value.number == 1 and len(last[0]) > 2))


def unit(parser: "Parser", value: Node) -> Node | None:
    """Read the words behind a value and return it with them; None where none stand. Raises ParseError for words that
    are neither units nor nouns, which may change the value."""
    token, start = parser.token, parser.position
    if start == 0 or (start == 1 and parser.tokens[0].text in ("a", "A") and token.kind == "word"):
        return None  # "a circle": an article, not a variable
    is_minutes = token.kind == "fn" and token.text == "min" and parser.peek().text not in ("(", "{", "\\{", "^", "_")
    is_word = token.kind == "text" or (token.kind == "word" and not is_product_of_letters(token.text))
    if not (is_word or is_minutes or _is_final_letter(parser)):
        return None
    phrase = parser.take().text
    while parser.token.kind != "end":
        token = parser.token
        if token.kind in ("text", "word"):
            phrase += f" {parser.take().text}"
        elif token.text == "^":
            parser.take()
            phrase += f" ^{_exponent(parser)}"
        elif token.text in ("/", "\\cdot") and parser.peek().kind in ("text", "word", "sym"):
            phrase += f" {parser.take().text} {parser.take().text}"
        else:
            break
    found = measured(value, phrase)
    if found is None:
        raise ParseError(f"words behind a value: {phrase!r}")
    return found


def _exponent(parser: "Parser") -> int:
    sign = -1 if parser.accept("-") else 1
    node = parser.argument()
    if node.op == "neg":
        node, sign = node.args[0], -sign
    if node.number is None or node.number.denominator > 1:
        raise ParseError("a power of a unit that is no integer")
    return sign * node.number.numerator


def compound(first: Node, second: Node) -> Node:
    """Return 2 hours 30 minutes as one value in the second's unit; raises ParseError for others."""
    if first.op != "unit" or second.op != "unit" or first.name != second.name:
        raise ParseError("a value behind a unit")
    (whole,), (part,) = first.args, second.args
    if first.number is None or second.number is None or whole.number is None or part.number is None:
        raise ParseError("a value behind a unit")
    return Node("unit", (num(whole.number * first.number / second.number + part.number),), second.name, second.number)


def _is_final_letter(parser: "Parser") -> bool:
    """Whether a letter set off by a space behind a numeral ends the text, as in 5 m or 5 m/s: then it is a unit."""
    token, after, start = parser.token, parser.peek(), parser.position
    if token.kind != "sym" or not token.spaced or token.text not in _LETTERS or parser.tokens[start - 1].kind != "num":
        return False
    is_alone = (
        start == 1
        or parser.tokens[start - 2].text in ("=", "\\approx", ",", "(")
        or (parser.tokens[start - 2].text == "-" and start == 2)
    )  # a letter at the end of 2 + 5 h is a variable
    return is_alone and (after.kind == "end" or (after.text in ("/", "^") and parser.peek(3).kind == "end"))
