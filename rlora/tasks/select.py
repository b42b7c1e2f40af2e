"""Parts of a data set: rows by difficulty and topic, and a held-out part that no filter moves."""

import math
from collections.abc import Sequence
from typing import Any, Protocol, TypeVar

from rlora.errors import DataError
from rlora.seeding import derive_seed
from rlora.tasks.data import DataConfig

HELD_OUT_SHARE = 10  # one problem in so many
MOST_HELD_OUT = 500

Row = dict[str, Any]


def selected(rows: Sequence[Row], data: DataConfig, *, name: str, difficulty: str = "", topic: str = "") -> list[bool]:
    """Return which rows the filters of `data` let through; `difficulty` and `topic` name the fields that they read.

    A row whose difficulty is not a number ("Level ?") passes no filter by difficulty. Raises DataError when a filter is
    asked for and no row has the field, and when nothing is left.
    """
    if not data.is_filtered:
        return [True] * len(rows)
    by_difficulty = data.min_difficulty is not None or data.max_difficulty is not None
    for is_asked, field, option in (
        (by_difficulty, difficulty, "difficulty"),
        (data.topic is not None, topic, "topic"),
    ):
        if is_asked and not any(field and row.get(field) is not None for row in rows):
            raise DataError(f"{name} was asked for by {option}, but its rows here have none; leave the option out.")
    low = -math.inf if data.min_difficulty is None else data.min_difficulty
    high = math.inf if data.max_difficulty is None else data.max_difficulty
    wanted = (data.topic or "").casefold()
    found = [
        (not by_difficulty or low <= as_number(row.get(difficulty)) <= high)
        and wanted in str(row.get(topic, "")).casefold()
        for row in rows
    ]
    if not any(found):
        bounds = (
            ("a difficulty of at least {}", data.min_difficulty, "--min-difficulty"),
            ("a difficulty of at most {}", data.max_difficulty, "--max-difficulty"),
            ("a topic with {!r}", data.topic, "--topic"),
        )
        given = [(text.format(value), option) for text, value, option in bounds if value is not None]
        raise DataError(
            f"no row of {name} has {' and '.join(text for text, _ in given)}; widen "
            f"{' or '.join(option for _, option in given)}."
        )
    return found


def refuse_filters(data: DataConfig, *, name: str) -> None:
    """Raise DataError where a data set without difficulties and topics is asked for by one."""
    if data.is_filtered:
        option = "topic" if data.topic is not None else "difficulty"
        raise DataError(f"{name} was asked for by {option}, but its rows here have none; leave the option out.")


def as_number(value: Any) -> float:
    """Return the number that a difficulty states ("Level 3" is 3), or NaN, which no filter lets through."""
    try:
        return float(str(value).removeprefix("Level "))
    except ValueError:
        return math.nan


def level_text(value: Any) -> str:
    """Return a difficulty as `Problem.level`: "3", "6.5", or "" where there is none."""
    number = as_number(value)
    return "" if math.isnan(number) else f"{number:g}"


class Named(Protocol):
    """What has an id: a problem, or an example."""

    @property
    def id(self) -> str:
        """The name that tells it from others."""
        ...


N = TypeVar("N", bound=Named)


def hold_out(problems: Sequence[N], *, name: str) -> tuple[list[N], list[N]]:
    """Return training and held-out problems (or examples): a tenth, at most `MOST_HELD_OUT`, chosen by a seed of each
    id alone.

    Chosen before any filter, so that the held-out part is the same whatever is trained on.
    """
    count = min(MOST_HELD_OUT, len(problems) // HELD_OUT_SHARE)
    ranked = sorted(problems, key=lambda problem: derive_seed(name, "held out", problem.id))
    held_out = {problem.id for problem in ranked[:count]}
    train = [problem for problem in problems if problem.id not in held_out]
    return train, [problem for problem in problems if problem.id in held_out]
