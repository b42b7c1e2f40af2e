"""Words that stand behind a number without changing its value."""

import re
from typing import TYPE_CHECKING

from rlora.verify.reading.lex import Token

if TYPE_CHECKING:
    from rlora.verify.reading.parse import Parser

_UNITS_WORDS = """
    pct mm cm dm km nm ft in yd mi mph kph kmph km kg mg lb lbs oz ml mL hr hrs min mins sec secs ms sq cu deg
    degree degrees rad radians meter meters metre metres foot feet inch inches yard yards mile miles unit
    units square cubic cent cents dollar dollars pound pounds euro euros gram grams kilogram kilograms
    kilometer kilometers centimeter centimeters millimeter millimeters liter liters litre litres gallon
    gallons ounce ounces second seconds minute minutes hour hours day days week weeks month months year years
    percent per time times way ways ton tons Hz kHz cal kcal bpm usd USD gb GB mb MB kb KB kw kW
"""
_UNITS = frozenset(_UNITS_WORDS.split())
_NOT_UNITS_WORDS = """
    is are not or and if then because since so but equals equal wait than less more least most at when where
    for mod yes no true false none with to from plus minus over by squared cubed
    factorial half halves third thirds quarter quarters fifths sixths sevenths eighths ninths tenths hundredths
    thousandths divided multiplied modulo choose unless except
"""
_NOT_UNITS = frozenset(_NOT_UNITS_WORDS.split())
_ENGLISH = """
    is are the to of in at by so we if no yes not and or on as an be he it up was has had can get all one two
    ten six odd any but for its per add sum let set see new old now our out day she his her him you who why
    how may too use way did got do go me my us am none even true dne nan na ok
"""
_SHORT_WORDS = frozenset(_ENGLISH.split())
_LETTERS = frozenset("msghLltJNWVAKCF")


def is_unit(word: str) -> bool:
    """Whether a word behind a number may be dropped: a known unit, or a long word that is no logical or verbal one."""
    return word in _UNITS or (len(word) > 3 and word.isalpha() and word.lower() not in _NOT_UNITS)


def is_product_of_letters(word: str) -> bool:
    """Whether a run of letters is read as variables multiplied (or one name, in capitals) rather than as a word."""
    is_short = (len(word) <= 3 and word.islower()) or (len(word) <= 4 and word.isupper())
    return is_short and not is_unit(word) and word.lower() not in _SHORT_WORDS


def _is_droppable(token: Token) -> bool:
    if token.kind == "text":
        return not any(word in _NOT_UNITS for word in re.findall(r"[a-z]+", token.text.lower()))
    return token.kind == "word" and is_unit(token.text)


def skip_unit(parser: "Parser") -> bool:
    """Read a unit or a word behind a value, which changes nothing."""
    token = parser.token
    if parser.position == 1 and parser.tokens[0].text in ("a", "A") and token.kind == "word":
        return False  # "a circle": an article, not a variable
    is_minutes = token.kind == "fn" and token.text == "min" and parser.peek().text not in ("(", "{", "\\{", "^", "_")
    if parser.position == 0 or not (_is_droppable(token) or is_minutes or _is_final_letter(parser)):
        return False
    parser.take()
    while True:
        token = parser.token
        if token.text == "^" and token.kind == "sign":
            parser.take()
            parser.argument()
        elif token.text == "/" and parser.peek().kind in ("text", "word", "sym"):
            parser.take()
            parser.take()
        elif _is_droppable(token):
            parser.take()
        else:
            return True


def _is_final_letter(parser: "Parser") -> bool:
    """Whether a letter set off by a space behind a numeral ends the text, as in 5 m or 5 m/s: then it is a unit."""
    token, after = parser.token, parser.peek()
    behind_numeral = parser.tokens[parser.position - 1].kind == "num"
    is_last = after.kind == "end" or (after.text in ("/", "^") and parser.peek(3).kind == "end")
    return behind_numeral and token.spaced and token.kind == "sym" and token.text in _LETTERS and is_last
