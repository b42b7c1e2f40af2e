"""AIME 2024, 2025 and 2026: 30 problems each, the answer an integer from 0 to 999; for tests alone.

Hub: HuggingFaceH4/aime_2024, math-ai/aime25, MathArena/aime_2026.
"""

from rlora.errors import DataError
from rlora.tasks.data import DataConfig
from rlora.tasks.fields import text_of
from rlora.tasks.select import Row
from rlora.tasks.source import read_rows
from rlora.types import Problem

INSTRUCTION = "Solve it step by step. The answer is an integer from 0 to 999; end with it as \\boxed{integer}."
_HUB = {
    2024: ("HuggingFaceH4/aime_2024", "train"),
    2025: ("math-ai/aime25", "test"),
    2026: ("MathArena/aime_2026", "train"),
}


def load_2024(split: str, data: DataConfig) -> list[Problem]:
    """Return the 30 problems of 2024; there is no training split."""
    return _load(2024, split, data)


def load_2025(split: str, data: DataConfig) -> list[Problem]:
    """Return the 30 problems of 2025; there is no training split."""
    return _load(2025, split, data)


def load_2026(split: str, data: DataConfig) -> list[Problem]:
    """Return the 30 problems of 2026; there is no training split."""
    return _load(2026, split, data)


def _load(year: int, split: str, data: DataConfig) -> list[Problem]:
    if split != "test":
        raise DataError(f"aime{year} is for tests alone; train on math, deepmath or your own file.")
    hub, hub_split = _HUB[year]
    rows = read_rows(f"aime/aime{year}.jsonl", hub=hub, split=hub_split, data_dir=data.data_dir)
    return [
        Problem(
            id=f"aime{year}/{_number(row, index)}",
            question=text_of(row, "problem", where=f"row {index} of aime{year}"),
            answer=_integer(row, where=f"row {index} of aime{year}"),
            source=f"aime{year}",
        )
        for index, row in enumerate(rows)
    ]


def _number(row: Row, index: int) -> str:
    """Return "I-7" where the row says so, else its place."""
    stated = str(row.get("id", ""))
    return stated.partition("-")[2] if "-I" in stated else str(row.get("problem_idx", index + 1))


def _integer(row: Row, *, where: str) -> str:
    stated = text_of(row, "answer", where=where)
    digits = stated.removesuffix("^\\circ")  # of 2025-I, in one copy
    if not digits.isdecimal() or int(digits) > 999:
        raise DataError(f"{where} has the answer {stated!r}; an AIME answer is an integer from 0 to 999.")
    return str(int(digits))
