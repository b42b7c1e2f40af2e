"""Training problems that are also in the test, found on normalised text and dropped."""

import re
from collections.abc import Sequence

from rlora.types import Problem

_BETWEEN = re.compile(r"(?<=\d)[\W_]+(?=\d)|[\W_]+")
_THOUSANDS = re.compile(r"(?<=\d)(?:,|\{,\}|,\\!)(?=\d{3}(?!\d))")


def normalized(text: str) -> str:
    """Return the letters and digits of a text in lower case, with numbers kept apart.

    Spacing, punctuation and the signs of LaTeX do not count; "2 + 23" and "22 + 3" stay two texts.
    """
    return _BETWEEN.sub(lambda match: " " if _is_between_numbers(match) else "", _THOUSANDS.sub("", text.casefold()))


def _is_between_numbers(match: re.Match[str]) -> bool:
    text, start, end = match.string, match.start(), match.end()
    return start > 0 and end < len(text) and text[start - 1].isdigit() and text[end].isdigit()


def drop_overlap(train: Sequence[Problem], test: Sequence[Problem]) -> tuple[list[Problem], list[Problem]]:
    """Return the training problems whose question is not in the test, and those dropped because it is.

    The question of a conversation is all that was said, but for a system message.
    """
    tested = {_asked(problem) for problem in test}
    kept: list[Problem] = []
    dropped: list[Problem] = []
    for problem in train:
        (dropped if _asked(problem) in tested else kept).append(problem)
    return kept, dropped


def _asked(problem: Problem) -> str:
    turns = [message.content for message in problem.messages if message.role != "system"]
    return normalized("\n".join(turns) if turns else problem.question)


def overlap_report(dropped: Sequence[Problem], *, shown: int = 3) -> str:
    """Return a line that says how many problems were dropped and names the first ones; "" when there are none."""
    if not dropped:
        return ""
    names = ", ".join(problem.id for problem in dropped[:shown]) + (", ..." if len(dropped) > shown else "")
    return f"{len(dropped)} training problems are also in the test and were dropped: {names}"
