"""Tokens of a normalised answer: numerals, variables, words, LaTeX commands and signs."""

import re
from dataclasses import dataclass

from rlora.verify.reading.nodes import ParseError
from rlora.verify.reading.units import is_unit

_FUNCTIONS_WORDS = """
    sin cos tan cot sec csc arcsin arccos arctan arccot asin acos atan sinh cosh tanh coth arcsinh arccosh
    arctanh ln log lg exp sqrt cbrt abs floor ceil gcd lcm max min det cis sgn Re Im arg conj mod
"""
FUNCTIONS = frozenset(_FUNCTIONS_WORDS.split())
_GREEK_WORDS = """
    alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi rho sigma tau upsilon phi chi psi
    omega partial Gamma Delta Theta Lambda Xi Pi Sigma Phi Psi Omega ell aleph hbar
"""
GREEK = frozenset(_GREEK_WORDS.split())
_WORDS_AS_COMMANDS = {
    **dict.fromkeys(("infinity", "inf", "oo", "infty"), "\\infty"),
    **dict.fromkeys(("cup", "union", "U"), "\\cup"),
    **{"pi": "\\pi", "frac": "\\frac", "or": "or", "and": "and"},
}
_FONTS_WORDS = """
    text mbox mathrm textrm textbf mathbf textit mathit textsf mathsf texttt boldsymbol bm emph operatorname
    textnormal textup textsc hbox underline ensuremath pmb mathtt mathop mathbin mathord mathup
"""
_PROSE_FONTS = frozenset({"text", "mbox", "textrm", "textbf", "textit", "emph", "hbox", "texttt", "textsf", "textsc"})
_WORD = re.compile(r"[A-Za-z]{2}")
_JOINT = re.compile(r"(?<=\S)\s+(and|or)\s*$")
_UPRIGHT = frozenset({"text", "mbox", "textrm", "mathrm"})
_FONTS = frozenset(_FONTS_WORDS.split())
_TOKEN = re.compile(
    r"(?P<space>(?:\s|~|\\[,;: ]|\\q?quad(?![a-zA-Z])|\\\\(?=\s*$))+)"
    r"|(?P<num>\d+(?:\.\d+)?(?:[eE][+-]?\d+(?![\d.a-zA-Z^]))?|\.\d+)"
    r"|(?P<row>\\\\(?:\[[^\]]{0,40}\])?)"
    r"|(?P<cmd>\\(?:deg@|[a-zA-Z]+\*?|[{}|%$#&_]))"
    r"|(?P<word>[A-Za-z]+)"
    r"|(?P<sign>.)",
    re.DOTALL,
)
_THOUSANDS = re.compile(r"\d{1,3}(?:,\d{3})+(?:\.\d+)?(?![\d])(?!,\d)")
_OPEN, _CLOSE = frozenset({"(", "[", "\\{", "\\langle"}), frozenset({")", "]", "\\}", "\\rangle"})
_PLAIN = re.compile(
    r"[\s\d.,+\-*/^(){}=\[\]]*|\(?[A-Za-z]\)?(?:\s*,\s*(?:and\s+)?\(?[A-Za-z]\)?)*\s*[.:]?|.*[\\^_].*", re.DOTALL
)
_GLUED = re.compile(r"[a-z]?(?:(?:sin|cos|tan|cot|sec|csc|ln|log|exp)[xyzabcnkt])+")  # 2sinx, xlnx
_GLUED_PART = re.compile(r"sin|cos|tan|cot|sec|csc|ln|log|exp|[a-z]")
_NOT_GLUED = frozenset({"cost", "tank", "tang", "sect", "tana", "tant", "cosa", "expt", "seca"})
MAX_TOKENS = 4000


@dataclass(frozen=True, slots=True)
class Token:
    """A token: its kind (num, sym, word, fn, cmd, text, sep, sign, row, end), text, and whether a space precedes it."""

    kind: str
    text: str
    spaced: bool = False


def matching_brace(text: str, start: int) -> int:
    """Return the index of the brace that closes the one at `start`, or -1."""
    depth = 0
    i = start
    while i < len(text):
        c = text[i]
        if c == "\\":
            i += 2
            continue
        if c == "{":
            depth += 1
        elif c == "}":
            depth -= 1
            if depth == 0:
                return i
        i += 1
    return -1


def _font_tokens(
    command: str, content: str, spaced: bool, depth: int, is_behind: bool, *, is_joined: bool = False
) -> list[Token]:
    """Return the tokens of a font or text command's content: mathematics is read on, prose stays one token, and so do
    units, if it `is_behind` a value."""
    stripped = content.strip()
    lowered = stripped.strip(" ,").lower()
    if lowered in ("and", "or"):
        return [Token("sep", lowered, True)]
    if not is_joined and (joint := _JOINT.search(content)):  # "\\text{ goats and }"
        halves = content[: joint.start()], content[joint.end() :]
        first, last = (_font_tokens(command, half, spaced, depth, is_behind, is_joined=True) for half in halves)
        return [*first, Token("sep", joint[1], True), *last]
    if stripped in FUNCTIONS and command in ("operatorname", "mathrm", "rm"):
        return [Token("fn", stripped, spaced)]
    if not stripped:
        return []
    if stripped[-1] == ":":  # "\\text{Minimum: }1"
        name = [Token("text", stripped[:-1].rstrip(), spaced)] if len(stripped) > 1 else []
        return [*name, Token("sign", ":")]
    if is_behind and command in _UPRIGHT and is_unit(stripped):
        return [Token("text", stripped, spaced)]  # "\\text{ m}" behind a number is metres, not a variable
    is_formula = command not in _PROSE_FONTS and not _WORD.search(stripped)
    if (is_formula or _PLAIN.fullmatch(stripped)) and depth < 8:
        return _tokens(stripped, depth + 1)
    return [Token("text", stripped, spaced)]


def _word_token(word: str, spaced: bool) -> Token:
    if word in _WORDS_AS_COMMANDS and (word != "U" or spaced):
        command = _WORDS_AS_COMMANDS[word]
        return Token("cmd" if command[0] == "\\" else "sep", command, spaced)
    if word.lower() in ("infinity", "or", "and"):
        return _word_token(word.lower(), spaced)
    if word in FUNCTIONS:
        return Token("fn", word, spaced)
    return Token("sym" if len(word) == 1 else "word", word, spaced)


def _command_token(
    text: str, end: int, name: str, spaced: bool, depth: int, is_behind: bool
) -> tuple[list[Token], int]:
    """Return the tokens of the command `name` whose arguments begin at `end`, and where to go on."""
    bare = name[1:].rstrip("*")
    if bare in _FONTS or bare in ("mathbb", "mathcal", "mathfrak", "mathscr"):
        start = end
        while start < len(text) and text[start] == " ":
            start += 1
        if start < len(text) and text[start] == "{":
            close = matching_brace(text, start)
            if close < 0:
                raise ParseError("unbalanced braces")
            content = text[start + 1 : close]
            if bare in _FONTS:
                return _font_tokens(bare, content, spaced, depth, is_behind), close + 1
            return [Token("sym", f"\\{bare}{{{content.strip()}}}", spaced)], close + 1
        if bare.startswith("math") and start < len(text) and text[start].isalpha():
            name = text[start] if bare in _FONTS else f"\\{bare}{text[start]}"
            return [Token("sym", name, spaced)], start + 1
        return [], end
    if bare in FUNCTIONS and bare != "sqrt":
        return [Token("fn", bare, spaced)], end
    if bare in GREEK:
        return [Token("sym", f"\\{bare}", spaced)], end
    return [Token("cmd", name, spaced)], end


def _tokens(text: str, depth: int) -> list[Token]:
    out: list[Token] = []
    position, brackets, spaced = 0, 0, False
    while position < len(text):
        if brackets == 0 and text[position].isdigit() and (match := _THOUSANDS.match(text, position)):
            out.append(Token("num", match[0].replace(",", ""), spaced))
            position, spaced = match.end(), False
            continue
        match = _TOKEN.match(text, position)
        assert match is not None
        kind, value, position = match.lastgroup or "", match[0], match.end()
        if kind == "space":
            spaced = True
            continue
        if kind == "cmd":
            is_behind = bool(out) and (out[-1].kind in ("num", "sym", "text") or out[-1].text in (")", "}", "\\pi"))
            found, position = _command_token(text, position, value, spaced, depth, is_behind)
            out.extend(found)
        elif kind == "word" and _GLUED.fullmatch(value) and value not in _NOT_GLUED:
            out.extend(_word_token(part, spaced) for part in _GLUED_PART.findall(value))
        elif kind == "word":
            out.append(_word_token(value, spaced))
        else:
            out.append(Token(kind, value, spaced))
        brackets = max(0, brackets + (value in _OPEN) - (value in _CLOSE))
        spaced = False
        if len(out) > MAX_TOKENS:
            raise ParseError(f"more than {MAX_TOKENS} tokens")
    return out


def tokens(text: str) -> list[Token]:
    """Return the tokens of a normalised text, an `end` token last; raises ParseError on unbalanced text commands."""
    return [*_tokens(text, 0), Token("end", "", True)]
