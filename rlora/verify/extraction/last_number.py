"""The last number of a text, where nothing marks an answer and the task accepts it."""

import re

from rlora.verify.reading.normalize import SPACED_THOUSANDS

_NUMBER = re.compile(
    r"(?<![\w.\\^_])(?P<sign>[-+−]\s?)?(?:\\?\$\s?)?(?P<body>\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)(?P<bottom>\s?/\s?\d+)?"
)
_NEGATED = re.compile(
    r"(?:(?:\b(?:not|never)|n't)\s+(?:[a-z]+\s+){0,2}|\b(?:less|more|fewer|greater|larger|smaller|higher|lower)\s+than\s+"
    r"|^\W*at\s+(?:least|most)\s+)[$*`]*$",
    re.IGNORECASE,
)
_OPEN_ENDED = re.compile(r"[\s$*]*\b(?:or|and)\s+(?:higher|lower|more|less|fewer|greater|above|below|over|up|none)\b")
_WORD_SIGN = re.compile(r"(?<![\d)\]}$])(\s|^)(?:negative|minus)\s+(?=[$*`\\(]{0,3}\d)", re.IGNORECASE)
_OPERATOR_BEFORE = re.compile(  # words that make another number of the one behind them
    r"\b(?:roots?|half|third|quarter|twice|double|triple|thrice|reciprocal|inverse|opposite|log(?:arithm)?|square|cube|power"
    r"|multiples?|factors?|divisors?|divisible|times|plus|minus|divided|multiplied|choose|raised|sqrt|mod|modulo"
    r"|\d to)\s+(?:(?:of|by|to|the)\s+){0,2}[$*`]*$",
    re.IGNORECASE,
)
_OPERATOR_AFTER = re.compile(
    r"[$*`]*\s+(?:squared|cubed|factorial|halves|thirds|quarters|fifths|plus|minus|divided|multiplied"
    r"|(?:less|more) than\s+[$\\]*(?:\d+|[b-z]\b)|modulo|mod|raised|to the power|choose|unless"
    r"|except|and a (?:half|third|quarter))\b",
    re.IGNORECASE,
)
_ENDED = re.compile(r"[.!?)\]}*`\"'$%\d>✓✅🎉]\s*$|\.\s*\S{0,2}\s*$")
CONNECTOR = re.compile(
    r"\s*(?:,\s*(?:and|or)?|;|\band\b|\bor\b|&|~)(?:\s+(?:maybe|perhaps|possibly|even|also|alternatively))?\s*"
    r"(?:[A-Za-z](?:_\w)?\s*=\s*)?",
    re.IGNORECASE,
)


def last_number(text: str) -> str | None:
    """Return the last number of a text; the whole list where it ends one, None where it is part of a larger formula."""
    text = text[-4000:]
    if "{,}" in text or "\\" in text:
        text = SPACED_THOUSANDS.sub("", text)
    lowered = text.lower()
    if "negative" in lowered or "minus" in lowered:
        text = _WORD_SIGN.sub(r"\1-", text)
    matches = list(_NUMBER.finditer(text))
    if not matches:
        return None
    group, is_row = [matches[-1]], False
    for previous in reversed(matches[:-1]):
        between = text[previous.end() : group[0].start()].replace("$", "").replace("*", "")
        if "\n" in between or (between.strip() and not CONNECTOR.fullmatch(between)):
            break
        is_row = is_row or not between.strip()
        group.insert(0, previous)
    after = text[group[-1].end() :]
    if re.match(r"\s?[\\^_({]|[A-Za-z]\b|\s?[*+/=<>]\s?[\w\\(]", after) and not after.startswith(
        ("\\)", "\\]", "\\%", "**", "\\text")
    ):
        return None
    if not _ENDED.search(text) and (len(after.split()) > 6 or re.search(r"[,;:]\s|[.!?]\s", after)):
        return None  # the text breaks off in a later clause or sentence
    left, right = text[: group[0].start()].rstrip(" $")[-2:], after.lstrip(" $")[:1]
    is_open, is_closed = left[-1:] in ("(", "[", "{"), right in (")", "]", "}")
    if is_open != is_closed or (is_open and (left[-1] == "{" or left[:1].isalnum())):
        return None
    before = text[max(0, group[0].start() - 60) : group[0].start()]
    if _OPEN_ENDED.match(after) or _OPERATOR_AFTER.match(after):
        return None
    is_told = before.rstrip("$*` \n")[-1:].isalpha() and (_NEGATED.search(before) or _OPERATOR_BEFORE.search(before))
    if is_told or text.rstrip().endswith("?"):
        return None
    if is_row:  # 1 2 3, or 6 3/4
        return text[group[0].start() : group[-1].end()]
    values = [_number_text(match, text) for match in group]
    return ", ".join(values) if len(set(values)) > 1 else values[0]


def _number_text(match: re.Match[str], text: str) -> str:
    before = text[: match.start()].rstrip()
    is_minus = match["sign"] is not None and match["sign"].strip() in "-−" and not re.search(r"[\w)\]}]$", before)
    return ("-" if is_minus else "") + match["body"] + (match["bottom"] or "").replace(" ", "")
