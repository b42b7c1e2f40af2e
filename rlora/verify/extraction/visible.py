"""What a completion says in the end: without its thinking, other turns, special tokens, programs and figures."""

import re
from functools import lru_cache

from rlora.verify.reading.normalize import INVISIBLE

_THINKING = r"(?:seed:)?(?:think(?:ing)?|thought|reasoning)"
_THINK_OPEN = re.compile(rf"<{_THINKING}>|◁think▷|\[think\]|<\|begin_of_thought\|>", re.IGNORECASE)
_THINK_CLOSE = re.compile(rf"</{_THINKING}>|◁/think▷|\[/think\]|<\|end_of_thought\|>", re.IGNORECASE)
_CHANNEL = re.compile(r"<\|channel\|>\s*(\w+)[^<\n]{0,40}<\|message\|>")  # of harmony, whose last one must be `final`
_PROGRAM = re.compile(
    r"(?m)^([ \t]*```[ \t]*(?:python|py|cpp|c\+\+|c|java|javascript|js|typescript|bash|sh|shell|sql|julia|matlab|rust"
    r"|go|r|haskell|sage|mathematica)\w*[ \t]*\n)(?:(?![ \t]*```).*\n)*?(?=[ \t]*```)",
    re.IGNORECASE,
)
_TURN_END = re.compile(
    r"<\|(?:im_start|im_end|endoftext|eot_id|end_of_text|end|user)\|>|</s>|<eos>|<end_of_turn>", re.IGNORECASE
)
_NOISE = re.compile(r"<<[^<>\n]{0,200}>>|<\|[a-z_]{1,30}\|>", re.IGNORECASE)  # GSM8K's calculator marks; other tokens
_REMARK = re.compile(r"<!--(?:(?!<!--).)*?-->", re.DOTALL)
_FIGURE = re.compile(r"\[asy\](?:(?!\[asy\]).)*?\[/asy\]", re.DOTALL)
_ALIGNED = r"(?:align|gather|eqnarray|equation|multline|split|aligned|gathered)\*?"
_ROWS = re.compile(  # innermost ones: a body with another beginning would cost quadratic time
    rf"\\begin\{{({_ALIGNED})\}}((?:(?!\\begin\{{{_ALIGNED}\}}).)*?)\\end\{{\1\}}", re.DOTALL
)
_GAP = re.compile(r"[^\S\n]{9,}")  # patterns that begin with spaces would try every one of them
_ROW_MARK = re.compile(r"(\\\\(?:\[[^\]]{0,40}\])?|&|\\(?:begin|end)\{)")
_NO_LETTER = re.compile(r"[\W_]+")
_NO_LETTERS = {i: None for i in range(128) if not chr(i).isalnum()}  # the same for ASCII, and ten times as fast
_MAX_CHARACTERS = 400_000


def visible(text: str) -> tuple[str, bool]:
    """Return what a completion says after its thinking, and whether the thinking never ended."""
    text = INVISIBLE.sub("", text[-_MAX_CHARACTERS:])
    if "<|channel|>" in text and (channels := list(_CHANNEL.finditer(text))):
        if channels[-1][1] != "final":
            return "", True
        text = text[channels[-1].end() :]
    closes = list(_THINK_CLOSE.finditer(text))
    if closes:
        text = text[closes[-1].end() :]
    opened = _THINK_OPEN.search(text)
    said = _before_next_turn(text[: opened.start()] if opened else text)
    said = _PROGRAM.sub(r"\1", said) if "```" in said else said
    return _GAP.sub("        ", said), opened is not None


def _before_next_turn(text: str) -> str:
    """Return the text up to the first end-of-turn token behind something said, without figures and noise."""
    for match in _TURN_END.finditer(text) if "<" in text else ():
        if text[: match.start()].strip():
            text = text[: match.start()]
            break
    text = _NOISE.sub("", text) if "<" in text else text
    text = _REMARK.sub(" ", text) if "<!--" in text else text
    text = _FIGURE.sub(" ", text) if "[asy]" in text else text
    for _ in range(2 if "\\begin{" in text else 0):
        text = _ROWS.sub(_lines, text)
    return text


def _lines(match: re.Match[str]) -> str:
    """Return the rows of an aligned formula as lines of their own; those of a matrix within it stay as they are."""
    rows, depth = [""], 0
    for part in _ROW_MARK.split(match[2]):
        depth += part.startswith("\\begin") - part.startswith("\\end")
        is_mark = depth == 0 and (part == "&" or part.startswith("\\\\"))
        if is_mark and part != "&":
            rows.append("")
        else:
            rows[-1] += " " if is_mark else part
    rows = [row.strip() for row in rows]
    return "\n" + "\n".join(row for row in rows if row) + "\n"


def is_repetition(text: str, question: str) -> bool:
    """Whether a text only says what the question says, but for spaces and punctuation."""
    if len(text) > 4 * len(question) + 1000:
        return False
    asked = _asked(question)
    return _letters(text[:200]) in asked and len(said := _letters(text)) >= 8 and said in asked


@lru_cache(maxsize=256)
def _asked(question: str) -> str:
    return _letters(question)


def _letters(text: str) -> str:
    return text.casefold().translate(_NO_LETTERS) if text.isascii() else _NO_LETTER.sub("", text.casefold())
