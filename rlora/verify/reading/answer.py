"""From an answer's text to its tree: what surrounds a formula is dropped, and words that mean one are read."""

import re
from functools import lru_cache

from rlora.verify.reading.nodes import INFINITY, REALS, Node, ParseError, num, op
from rlora.verify.reading.normalize import plain_latex, plain_words
from rlora.verify.reading.numerals import in_base_text, numeral, without_repeating
from rlora.verify.reading.structure import read

MAX_CHARACTERS = 20_000
_SHORT = 200
_UNFONTED = re.compile(r"\\(?:text|mbox|textbf|mathrm)\s*\{([^{}]*)\}")
_WHOLE_TEXT = re.compile(
    r"\\(?:text|mbox|textbf|textit|textrm|texttt|emph)\s*\{((?![^{}]*\\)(?=\s*[^{}\s])[^{}]*)\}|(?:``|\"|'')([^`\"']+)(?:''|\"|``)"
)
_WORD_SIGN = re.compile(
    r"^(?:(?:negative|minus)\s+|\\(?:text|mbox)\s?\{\s?(?:negative|minus)\s?\}\s*)(?=[\d.\\])", re.IGNORECASE
)
_MONEY = re.compile(r"\\\$\s?(\d[\d,]*(?:\.\d+)?)\.?")
_RATIO = re.compile(r"(\d+(?:\.\d+)?)\s*(?:\\text\s?\{\s*to\s*\}|to)\s*(\d+(?:\.\d+)?)")
_POINT = re.compile(r"^[ABD-Z]\s?(?=\([^(),]{1,40}(?:,[^(),]{1,40}){1,2}\)$)")  # the point P(4, 7)
_OPAQUE = re.compile(  # names of values that are no expression: P(A|B), (f \\circ g)(x), \\det(A), \\text{Var}(X)
    r"^(?:\([A-Za-z]\s*\\circ\s*[A-Za-z]\)\s*\(\w+\)|(?:\\(?:det|deg|dim|Pr)|\\(?:text|mathrm|operatorname)\s?\{[A-Za-z]+\})"
    r"\s*(?:\([^()=]{1,40}\)|\[[^\]=]{1,40}\])|[A-Z]\s?\([^()=|]{1,40}\|[^()=|]{1,40}\)|\\#\s?[A-Z])\s*(?==)"
)
_CLAUSE = re.compile(
    r"\\(?:text|mbox|textrm)\s?\{[\s,]{0,8}(?:for (?:all|every|each|any|some)|where)\b|\\forall|\bfor all\b"
)
_TRAILING = re.compile(r"(?:(?:(?<!\\)[.,;]|\\[,;:!]?)\s{0,8}){1,6}$")
_PREFIX = re.compile(r"^(?:option|choice|answer)\s+(?=\(?[A-Za-z]\)?$)", re.IGNORECASE)
_LEADING_SIGN = re.compile(r"^(?:=|\\approx|\\sim(?![a-z])|:|≈)\s*")
_SPACED = re.compile(r"^[-+]?\d{1,3}(?: \d{3})+(?=$|\.\d|\s*[a-zA-Z%\\])")  # thousands set off by spaces
_PROSE = re.compile(r"(?:[A-Za-z0-9 .,;:'\"!?()/&%]|(?<=[A-Za-z])-(?=[A-Za-z]))*")  # no formula that words would hide
_ARTICLE = re.compile(r"^(?:an?|the) (?=[a-z]{3})")
_NOT_WORD = re.compile(r"[^\w|]")
_CLOCK = re.compile(r"(\d{1,2})(?:(:\d{2})\s*|\s+)([ap])\.?\s?m\.?", re.IGNORECASE)
_BASE = re.compile("_|base|nary|octal|decimal")
_MEANINGS = {
    **dict.fromkeys(("all real numbers", "all reals", "real numbers", "all real x", "mathbb r"), REALS),
    **dict.fromkeys(("the set of all real numbers", "the real numbers", "the reals"), REALS),
    **dict.fromkeys(("negative infinity", "minus infinity"), op("neg", INFINITY)),
    **dict.fromkeys(("no solution", "no solutions", "no real solution", "no real solutions"), Node("set")),
    **dict.fromkeys(("empty set", "the empty set"), Node("set")),
}
_NUMBER_WORDS = """
    zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen
    eighteen nineteen
"""
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_MEANINGS |= {word: num(i) for i, word in enumerate(_NUMBER_WORDS.split())}
_MEANINGS |= {ten: num(10 * i) for i, ten in enumerate(_TENS, 2)}
_MEANINGS |= {
    f"{a} {b}": num(10 * i + j) for i, a in enumerate(_TENS, 2) for j, b in enumerate(_NUMBER_WORDS.split()[:10]) if j
}
_MEANINGS |= {"one hundred": num(100), "one thousand": num(1000)}


def parse_answer(text: str) -> Node | None:
    """Return the tree of an answer, a `text` node for words, or None for what is neither.

    Never raises: a text that cannot be read is data, not an error.
    """
    if len(text) > MAX_CHARACTERS:
        stripped = text.strip().lstrip("+0")
        return Node("big", name=stripped) if stripped.isdigit() and stripped.isascii() else None
    return parsed(text) if len(text) <= _SHORT else parsed_long(text)


def _parse(text: str) -> Node | None:
    if text.isascii() and text.isdigit():
        return numeral(text)
    money = _MONEY.fullmatch(text.strip()) if "\\$" in text else None
    plain = plain_latex(rf"{money[1]}\text{{ dollars}}" if money else text)
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
    plain = _POINT.sub("", plain)
    if ratio := _RATIO.fullmatch(plain):
        plain = f"{ratio[1]}:{ratio[2]}"
    if "=" in plain:
        plain = _OPAQUE.sub(lambda m: rf"\mathbb{{{_NOT_WORD.sub('', m[0])}}}", plain)
    if clock := _CLOCK.fullmatch(_UNFONTED.sub(r"\1", plain).strip()):
        return Node("text", name=f"{clock[1].lstrip('0')}{clock[2] or ':00'} {clock[3].lower()}m")
    try:
        based = in_base_text(_UNFONTED.sub(r"\1", plain).strip()) if _BASE.search(plain) else None
        return based or read(plain)
    except (ParseError, RecursionError):
        words = plain_words(plain)
        if not _PROSE.fullmatch(_UNFONTED.sub(r"\1", plain)) or not any(c.isalpha() for c in words):
            return None
        return _MEANINGS.get(words) or Node("text", name=_ARTICLE.sub("", words).replace(" and ", " "))


parsed = lru_cache(maxsize=4096)(_parse)
parsed_long = lru_cache(maxsize=32)(_parse)  # a tree of 20,000 characters takes a megabyte
