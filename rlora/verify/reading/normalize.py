"""One spelling for the many ways people and models write the same mathematics; values are never changed here."""

import re
import unicodedata

_SUPER = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁼⁽⁾ⁿⁱˣʸᵏᵐᵃᵇᵗ", "0123456789+-=()nixykmabt", strict=True))
_SUB = dict(zip("₀₁₂₃₄₅₆₇₈₉₊₋₌₍₎ₐₑₓₙₖₘᵢⱼ", "0123456789+-=()aexnkmij", strict=True))
_SUPER_RUN = re.compile(f"[{''.join(_SUPER)}]+")
_SUB_RUN = re.compile(f"[{''.join(_SUB)}]+")
_ROOT = re.compile(r"([√∛∜])\s*(\d+(?:\.\d+)?|[A-Za-zπ](?![A-Za-z]))?")
_ROOT_INDEX = {"√": "", "∛": "[3]", "∜": "[4]"}
# Characters that NFKC would lose the meaning of, or leave alone.
_CHARACTERS = {
    **dict.fromkeys("−–—‒―﹣－➖", "-"), **dict.fromkeys("×⋅·∙•∗✕✖", r"\cdot "), **dict.fromkeys("÷∕⁄／", "/"),
    **dict.fromkeys("≤⩽≦", r"\le "), **dict.fromkeys("≥⩾≧", r"\ge "), **dict.fromkeys("≈≃≅", r"\approx "),
    **dict.fromkeys("°º˚", r"^\circ "), **dict.fromkeys("€£¥₹₩￥", r"\$"), **dict.fromkeys("∅⌀", r"\emptyset "),
    **dict.fromkeys("′’‘`´", "'"), **dict.fromkeys("“”″", '"'), **dict.fromkeys("、，", ","), "。": ".", "≠": r"\ne ",
    "±": r"\pm ", "∓": r"\mp ", "∞": r"\infty ", "∪": r"\cup ", "∩": r"\cap ", "∖": r"\setminus ", "∈": r"\in ",
    "ℝ": r"\mathbb{R}", "ℤ": r"\mathbb{Z}", "ℕ": r"\mathbb{N}", "ℚ": r"\mathbb{Q}", "ℂ": r"\mathbb{C}", "∧": r"\wedge ",
    "⟨": r"\langle ", "⟩": r"\rangle ", "⌊": r"\lfloor ", "⌋": r"\rfloor ", "⌈": r"\lceil ", "⌉": r"\rceil ",
    "∑": r"\sum ", "∏": r"\prod ", "∫": r"\int ", "…": r"\ldots ", "⋯": r"\ldots ", "∠": r"\angle ", "→": r"\to ",
    "ℵ": r"\aleph ", "ℓ": r"\ell ", "∨": r"\vee ", "∣": "|", "≡": r"\equiv ", "△": r"\triangle ", "¢": r"\text{ cents}",
}  # fmt: skip
_SMALL = """
    alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi pi rho sigma tau upsilon phi chi psi omega
"""
_CAPITAL = "Gamma Delta Theta Xi Pi Sigma Phi Psi Omega"
_GREEK = {
    name: unicodedata.lookup(f"GREEK SMALL LETTER {name.upper().replace('LAMBDA', 'LAMDA')}") for name in _SMALL.split()
}
_CHARACTERS |= {letter: f"\\{name} " for name, letter in _GREEK.items()}
_CHARACTERS |= {
    unicodedata.lookup(f"GREEK CAPITAL LETTER {name.upper()}"): f"\\{name} " for name in _CAPITAL.split()
} | {"Λ": r"\Lambda ", "ϕ": r"\phi ", "ϵ": r"\epsilon ", "ϑ": r"\theta "}
_TABLE = str.maketrans(_CHARACTERS)
_OVERLINED = re.compile("(?:[0-9A-Za-z][\u0304\u0305])+")
_NO_LINE = str.maketrans("", "", "\u0304\u0305")
INVISIBLE = re.compile(
    "[\u0000-\u0008\u000b\u000c\u000e-\u001f\u007f\u00ad\u200b-\u200f\u2060-\u2064\ufe0f\ufeff\ud800-\udfff]"
)
_WIDE_SPACE = re.compile("[\u00a0\u2000-\u200a\u202f\u205f\u3000]")
_THIN_THOUSANDS = re.compile("(?<=[0-9])[\u00a0\u2007-\u200a\u202f'’](?=[0-9]{3}(?![0-9]))")

SPACED_THOUSANDS = re.compile(r"(?<=\d)(?:\{,\}|,\\!|\\[,;:])\s*(?=\d{3}(?!\d))")
_GAP = re.compile(r"\s{9,}")  # patterns that begin with spaces would try every one of them
_EIGHT_SPACES = " " * 8
_NO_SPACE = re.compile(r"\\!|(?<=[\d)])\{\}")
_SIZES = re.compile(
    r"\\(?:left|right|[bB]igg?[lrm]?|middle)(?![a-zA-Z])\.?(?:\s{0,8}(?=[\[(|{\])}]|\\[{}]))?"
    r"|\\(?:(?:display|text|script)style|(?:no)?limits|rm|bf|it|sf|tt|sc|bfseries|itshape|tiny|scriptsize|footnotesize"
    r"|small|normalsize|[lL]arge|LARGE|[hH]uge|hfill|nonumber|notag|blacksquare|noindent|centering|(?:math)?strut)(?![a-zA-Z])"
    r"|\\(?:(?:text)?color(?:box)?|[hv]space\*?)\s?\{[^{}]{0,40}\}"
    r"|\\(?:kern|hskip|mkern|mskip)\s?-?[\d.]{1,9}\s?(?:pt|em|ex|mm|cm|mu|in)(?![a-zA-Z])"
)
_FRACTIONS = re.compile(r"\\(?:[dtcs]|nice)frac(?![a-zA-Z])")
_TIMES_TEN = re.compile(r"(?<=\d) {1,8}x {1,8}(?=10\s?\^)")  # 3 x 10^8
_MATH_MARKS = re.compile(r"\\[()\[\]]|(?<!\\)\$|\\\$|\\[hv]?phantom\s*(?:\{[^{}]*\}|-)|\\(?:label|tag\*?)\s?\{[^{}]*\}")
_REPLACED = [
    (re.compile(r"\\(?:leq|leqslant)(?![a-zA-Z])|<="), r"\\le "),
    (re.compile(r"\\(?:geq|geqslant)(?![a-zA-Z])|>="), r"\\ge "),
    (re.compile(r"\\neq(?![a-zA-Z])|!="), r"\\ne "),
    (re.compile(r"\\lt(?![a-zA-Z])"), "<"),
    (re.compile(r"\\gt(?![a-zA-Z])"), ">"),
    (re.compile(r"\*\*"), "^"),
    (re.compile(r"\^\s*(?:\{\s*)?\\circ\s*\}?|\\degree(?![a-zA-Z])"), r"\\deg@ "),
    (re.compile(r"\\(?:[lr]?vert|mid)(?![a-zA-Z])"), "|"),
    (re.compile(r"\\[lr]brace(?![a-zA-Z])"), lambda m: r"\{" if m[0][1] == "l" else r"\}"),
    (re.compile(r"\\[lr]brack(?![a-zA-Z])"), lambda m: "[" if m[0][1] == "l" else "]"),
    (re.compile(r"\\(?:cdots|dots|ldots|dotsc)(?![a-zA-Z])|\.\.\.+"), r"\\ldots "),
    (re.compile(r"\(\s*(?:mod|\\mod|\\bmod)\s+(\w+)\s*\)"), r"\\pmod{\1}"),
    (re.compile(r"\{([^{}]{0,200})\\choose(?![a-zA-Z])([^{}]{0,200})\}"), r"\\binom{\1}{\2}"),
    (re.compile(r"(\\mathbb\s?(?:\{R\}|R))\s?-\s?(?=\\\{)"), r"\1\\setminus "),
    (re.compile(r"\\varnothing(?![a-zA-Z])"), r"\\emptyset "),
    (re.compile(r"\\var(epsilon|theta|phi|rho|sigma|pi)(?![a-zA-Z])"), r"\\\1"),
]


def _fraction_characters(text: str) -> str:
    for character in set(text):
        decomposed = unicodedata.decomposition(character)
        if decomposed.startswith("<fraction>"):
            top, bottom = "".join(chr(int(code, 16)) for code in decomposed.split()[1:]).split("⁄")
            if top and bottom:
                text = text.replace(character, rf"\frac{{{top}}}{{{bottom}}}")
    return text


def plain_characters(text: str) -> str:
    """Return `text` with Unicode mathematics in LaTeX and ASCII, without control characters and surrogates."""
    if text.isascii():
        return INVISIBLE.sub("", text)
    text = _THIN_THOUSANDS.sub("", text)
    text = _WIDE_SPACE.sub(" ", INVISIBLE.sub("", text))
    text = _OVERLINED.sub(lambda m: rf"\overline{{{m[0].translate(_NO_LINE)}}}", text)
    text = text.replace("³√", "∛").replace("⁴√", "∜")
    text = _SUPER_RUN.sub(lambda m: "^{" + "".join(_SUPER[c] for c in m[0]) + "}", text)
    text = _SUB_RUN.sub(lambda m: "_{" + "".join(_SUB[c] for c in m[0]) + "}", text)
    text = _ROOT.sub(lambda m: rf"\sqrt{_ROOT_INDEX[m[1]]}" + (f"{{{m[2]}}}" if m[2] else ""), text)
    text = _fraction_characters(text).translate(_TABLE)
    text = unicodedata.normalize("NFKC", text).translate(_TABLE)
    digits = {ord(c): str(unicodedata.decimal(c)) for c in set(text) if c.isdecimal()}
    return text.translate(digits)


def _without_size(match: re.Match[str]) -> str:
    """Return what stands for a size: nothing before a bracket, so that f\\left(x\\right) stays an application."""
    return "" if match.string[match.end() : match.end() + 2].lstrip("\\")[:1] in tuple("[({|])}") else " "


def plain_latex(text: str) -> str:
    """Return `text` in plain characters, without the LaTeX that only sets sizes, spaces and fonts of whole formulas."""
    text = _GAP.sub(_EIGHT_SPACES, plain_characters(text))
    text = _NO_SPACE.sub("", SPACED_THOUSANDS.sub("", text))
    if " x " in text:
        text = _TIMES_TEN.sub(r" \\cdot ", text)
    if any(mark in text for mark in ("\\", "$", "*", "=", "...", "mod")):
        text = _GAP.sub(_EIGHT_SPACES, _MATH_MARKS.sub(" ", _SIZES.sub(_without_size, text)))
        text = _FRACTIONS.sub(r"\\frac", text)
        for pattern, replacement in _REPLACED:
            text = pattern.sub(replacement, text)
    return text.strip()


_FONT = re.compile(
    r"\\(?:text|mbox|mathrm|textrm|textbf|mathbf|textit|mathit|textsf|mathsf|texttt|boldsymbol|bm|emph|underline)\s*(?=\{)"
)
_NOT_WORD = re.compile(r"[^0-9a-z]+")


def plain_words(text: str) -> str:
    """Return the words of a text answer, for comparing: no fonts, brackets, punctuation or capitals."""
    return _NOT_WORD.sub(" ", _FONT.sub("", plain_latex(text)).casefold()).strip()
