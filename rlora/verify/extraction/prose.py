"""What a sentence concludes: an expression, a choice, a few words, or what bold, code or mathematics in it says."""

import re
from itertools import islice

from rlora.verify.extraction.last_number import CONNECTOR
from rlora.verify.extraction.markers import HEDGE
from rlora.verify.extraction.scan import Scan, unwrapped
from rlora.verify.reading.answer import parse_answer
from rlora.verify.reading.lex import FUNCTIONS

_PLAIN_LABELS = "text txt plaintext latex tex math markdown md output stdout console result"
_PLAIN_FENCES = frozenset(_PLAIN_LABELS.split())
_LEAD = re.compile(
    r"^(?:(?:so|thus|therefore|hence|finally|then|that is|i\.e\.|∴|we (?:get|have|find|obtain)|it's|(?:it|this|that)"
    r" (?:is|(?:must|should) be)|(?:the )?(?:final )?result(?: is)?|solution|ans"
    r"|(?:i|we) (?:choose|pick|select))\b[\s,:]*)+",
    re.IGNORECASE,
)
_CONTINUED = re.compile(r"^(?:&|=|\\q?quad|\s)+")
_IMPLIES = re.compile(r"\\(?:Longr|R|r|longr)ightarrow|\\implies|[⇒⟹→]|=>")
_PROSE = re.compile(r"\b[A-Za-z]{2,}(?:\s+[A-Za-z]{2,}){4,}")
_TOLD = re.compile(r"(?:[A-Za-z][A-Za-z'’-]*[,.]?\s{1,9}){1,99}[(]?[\d$]")
_LEADING_WORDS = """
    about approximately approx exactly total when number value negative minus option choice answer infinity union base
"""
_NOT_TOLD = FUNCTIONS.union(_LEADING_WORDS.split())
_SENTENCES = re.compile(r"(?<=[.!?])\s+(?=[A-Z\\$*`(])")
_TWO_WORDS = re.compile(r"[A-Za-z]{2,}\s+[A-Za-z]{2,}")
_NOT_ANOTHER = re.compile(r",?\s+(?:and\s+not|not|rather\s+than|instead\s+of)\s")
_CLAUSE = re.compile(
    r",?\s+(?:because|since|as\b|so\b|which|where|when|for\b|after|but|by\b|given|in\b|of\b(?!\s*[$\\]*\d)"
    r"|(?:and\s+)?not\b|rather\b|instead\b)(?=\s)|[;—]",
    re.IGNORECASE,
)
_OPERATION = re.compile(r"[\w)}\]$]\s*(?:[-+*/^]|\\(?:cdot|times|pm|div))\s*$")
_CONTINUES = re.compile(r"\s*(?:[+/×·÷]\s*\S|\\(?:cdot|times|pm|div)\b)")
_INSIDE = re.compile(r"\s*[{}^_)\]]")
_NAMED = re.compile(r"[A-Za-z](?:_\w|_\{\w+\})?\s*=")
YES_OR_NO = re.compile(
    r"(yes|no|true|false)\b(?!.*\b(?:or|and)\s+(?:yes|no|true|false|not)\b)[,.!:;]?(?:\s[^\d]*)?$", re.IGNORECASE
)
CHOICE = re.compile(
    r"(?!\(?[A-H][).:]\s+(?:is\s+(?:\w+ly\s+)?(?:wrong|incorrect|false|not|invalid|impossible)|isn't|can(?:not|'t)))"
    r"(?:\(?[A-H]\)\s*[^\s,.;]|[A-H][.:]\s+\S)"
)
_STATED = re.compile(
    r"(?:(?:option|choice|answer)\s+)?(\S{1,40})\s+is\s+(?:the\s+)?(?:(?:final|correct|right|best)\b\s*)?"
    r"(?:answer|option|choice|solution)?\.?",
    re.IGNORECASE,
)
_SPELLED = re.compile(  # 16 + 59 equals 75; "3 + 4 is 7" stays prose, and so does "5 equals 139"
    r"([-+]?[\d.,]*\d(?:\s*[-+*/×÷−]\s*[\d.,]*\d)+)\s+(?:equals|is\s+equal\s+to)\s+([-−]?[\d.,]*\d)\.?",
    re.IGNORECASE,
)
_GLOSS = re.compile(  # a remark in brackets behind an answer: 12 (twelve), 12 (since 3 * 4 = 12), 12 (not 13)
    r"(?<=\S)\s*\((?!(?:is |that's |clearly )?(?:or|wrong|incorrect|false|invalid|rejected|extraneous|alternatively"
    r"|perhaps|maybe|possibly|otherwise|guess|not [a-z]+)\b)(?:[A-Za-z][A-Za-z ,]{2,}"
    r"|(?:since|because|as|not|i\.e\.|which|where|rounded)\b[^()\n]*)\)\.?$"
)
_EXCLAIMED = re.compile(r"(?<=[$*])!+\s*$")
_ASIDE = re.compile(
    r"\((?:since|because|as|note|check|where|here|that is|i\.e\.|we)\b[^\n]*\)\.?"
    r"|(?:i )?hope (?:this|that|it) \w+[^\d\n]*"
    r"|(?:please )?let me know\b[^\n]*|(?:have|good|great|feel free|thank)\b[^\d\n]*[.!]",
    re.IGNORECASE,
)
_DANGLING = """
    and or is are the an of to so then that we with by if because plus gives get have has need which where when since
    for from as be can will must let now next therefore thus hence find using into you it this there their his her its
"""
_UNFINISHED = re.compile(
    rf"(?:[=+\-*/^_({{\[,:<>&\\]|(?<!\d )\btimes|\b[A-Za-z]+ a|\bI|\b(?:{'|'.join(_DANGLING.split())}))\s*$"
)
_MAX_UNFINISHED = 24  # characters at the end of a text that tell whether it breaks off


def without_gloss(text: str) -> str:
    """Return a text without a remark in brackets at its end."""
    return _GLOSS.sub("", text) if text.endswith((")", ").")) else text


def is_mathematics(text: str) -> bool:
    """Whether a text reads as an expression (not as words)."""
    node = parse_answer(text)
    return node is not None and node.op != "text"


def last_line(scan: Scan) -> str:
    """Return the last line that says something, of a block of code or displayed mathematics its last row; "" for none.

    A line that goes on with the formula of the line above it, as in x^2 and + 4, is one with it.
    """
    lines = (line.strip() for line in islice(scan.lines(), 60))
    last = ""
    for last in lines:
        if last and not _ASIDE.fullmatch(last):
            break
    above = next(lines, "")
    if CHOICE.match(last) and CHOICE.match(above):
        return ""  # the options, told once more
    if last.startswith("```"):
        label, *rows = last.strip("`").split("\n")
        return (
            next((row for row in reversed(rows) if row.strip()), label if not rows else "")
            if (not rows or not label.strip() or label.strip().lower() in _PLAIN_FENCES)
            else ""
        )
    rows = [" ".join(row.split()) for row in re.split(r"\n[^\S\n]*\n", unwrapped(last)) if row.strip()] or [""]
    row = last if _CONTINUES.match(last) else rows[-1]
    above = (" ".join(rows[-2:-1]) or unwrapped(above)).rstrip("\\ ")
    is_one = _OPERATION.search(above) or _INSIDE.match(row) or (_CONTINUES.match(row) and is_mathematics(above))
    if above and is_one:
        return f"{above} {row}"
    return row if len(rows) > 1 or last[:2] in ("$$", "\\[") else last


_RESTATED = re.compile(r",?\s+(?:that is|i\.e\.|which (?:is|equals|gives)),?\s+", re.IGNORECASE)


def restated(content: str) -> str:
    """Return what is said in the end of "17% of 50, that is 8.5", or all of a text that says one thing."""
    last = _RESTATED.split(content)[-1]
    return last if is_mathematics(last) else content


def last_sentence(line: str) -> str:
    """Return the last sentence of a line."""
    return _SENTENCES.split(line.strip())[-1]


def is_unfinished(scan: Scan) -> bool:
    """Whether a text breaks off: in the middle of a formula, at a sign, or at a word that something must follow."""
    tail = scan.text.rstrip()[-2000:].split("\n")[-1]
    if re.search(r"[\w)}] \*$", tail[-3:]):
        return True
    if not tail.endswith(("**", "__", "`", "!", "$", ".")) and _UNFINISHED.search(tail.rstrip("* ")[-_MAX_UNFINISHED:]):
        return True
    is_open = (tail.count("$") - tail.count("\\$")) % 2 == 1 and not re.search(r"\$\s?\d|\$\$$", tail)
    return is_open or tail.count("\\(") > tail.count("\\)")


def spans(sentence: str) -> str | None:
    """Return what bold, code or mathematics ends the sentence; several joined by commas or words count as one list."""
    sentence = sentence[-4000:]
    found = Scan(sentence).outer()
    if not found:
        return None
    tail = sentence[found[-1].end :].strip(" .!*_)\"'")
    if tail and (not re.fullmatch(r"[a-z%°]+(?:\s[A-Za-z]+){0,3}", tail) or tail.split()[-1] in _DANGLING.split()):
        return None
    group = [found.pop()]
    while found and CONNECTOR.fullmatch(sentence[found[-1].end : group[0].start]):
        group.insert(0, found.pop())
    if found and HEDGE.search(sentence[found[-1].end : group[0].start]):
        return None  # one of several
    contents = [unwrapped(span.content) for span in group]
    if any("=" in content for content in contents) and not all(_NAMED.match(content) for content in contents):
        return contents[-1]  # steps of a computation, of which the last is the result
    return ", ".join(contents) if len(set(contents)) > 1 else contents[0]


def clause(content: str) -> str:
    """Return the first clause of what follows "the answer is"."""
    return unwrapped(_CLAUSE.split(content, maxsplit=1)[0].strip(" ,:"))


def _is_told(text: str) -> bool:
    """Whether a sentence goes from words on to a number, as in "so she ate 5", which is no expression."""
    words = _TOLD.match(text)
    return words is not None and any(len(word) > 3 and word not in _NOT_TOLD for word in words[0].lower().split()[:-1])


def expression(line: str) -> str | None:
    """Return the expression that a line is, but for a word that leads to it, an equals sign, or what it denies."""
    return _expression(_bare(line))


def _bare(line: str) -> str:
    """Return a line without marks around all of it, a remark behind it, and the lead of "so it is B"."""
    bare = without_gloss(unwrapped(_EXCLAIMED.sub("", line) if line.endswith("!") else line))
    stated = _STATED.fullmatch(_LEAD.sub("", bare))
    return stated[1] if stated else bare


def _expression(bare: str) -> str | None:
    if spelled := _SPELLED.fullmatch(bare):
        bare = f"{spelled[1]} = {spelled[2]}"
    said = _NOT_ANOTHER.split(bare, maxsplit=1)[0] if "not" in bare or "of" in bare or "than" in bare else bare
    candidates = (bare, said, _LEAD.sub("", bare), _CONTINUED.sub("", bare), _IMPLIES.split(bare)[-1])
    for candidate in dict.fromkeys(candidate.strip() for candidate in candidates):
        if candidate and not (_is_told(candidate) or _PROSE.search(candidate)) and is_mathematics(candidate):
            return candidate
    return None


def is_value(sentence: str) -> bool:
    """Whether a sentence says an expression and nothing else."""
    found = expression(sentence)
    return found is not None and not _TWO_WORDS.search(found)


def plain_final(line: str) -> str | None:
    """Return the answer of a last line that is an expression or a few words, or that ends in marked text."""
    bare = _bare(line)
    if (found := _expression(bare)) is not None:
        return found
    if word := YES_OR_NO.match(bare.replace("*", "")):
        return word[1]
    if CHOICE.match(bare):
        return bare
    sentence = last_sentence(line)
    found = spans(sentence)
    is_symbol = found is not None and re.fullmatch(r"[a-z]\.?", found) and re.search(r"\d", sentence)
    if found is not None and not is_symbol and (is_mathematics(found) or len(found.split()) <= 4):
        return found
    is_short = len(bare.split()) <= 3 and not re.search(r"\d", bare) and not bare.endswith((":", "?", ","))
    return bare if bare and is_short else None
