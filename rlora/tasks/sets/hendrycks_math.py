"""MATH: competition problems whose gold answer is in the solution's last box (Hendrycks et al. 2021, arXiv 2103.03874).

Training takes all 12,500 problems but the 500 of MATH-500, and the test is MATH-500 (Lightman et al. 2023, arXiv
2305.20050), as reinforcement learning on MATH commonly does.
"""

from itertools import compress

from rlora.errors import DataError
from rlora.tasks.data import DataConfig
from rlora.tasks.fields import text_of
from rlora.tasks.select import Row, level_text, selected
from rlora.tasks.source import read_rows
from rlora.types import Problem
from rlora.verify.extraction.scan import boxes

INSTRUCTION = "Solve it step by step. End with the answer as \\boxed{answer}."
HUB, HUB_TEST = "EleutherAI/hendrycks_math", "HuggingFaceH4/MATH-500"
_SUBJECTS = (
    "algebra",
    "counting_and_probability",
    "geometry",
    "intermediate_algebra",
    "number_theory",
    "prealgebra",
    "precalculus",
)


def load(split: str, data: DataConfig) -> list[Problem]:
    """Return the 12,000 "train" problems, as far as the filters go, or MATH-500 as "test".

    From a local math/train.jsonl, math/test.jsonl and math/math500.jsonl, or the hub. Two rows of the hub's copy end in
    an empty box and are left out there.
    """
    if split == "test":
        return load_500(split, data)
    tested = {_question(row) for row in _rows_500(data)}
    rows: list[Row] = []
    problems: list[Problem] = []
    for part in ("train", "test"):
        part_rows = read_rows(f"math/{part}.jsonl", hub=HUB, subset=_SUBJECTS, split=part, data_dir=data.data_dir)
        for index, row in enumerate(part_rows):
            answer = _answer(row, where=f"row {index} of math {part}")
            if answer and _question(row) not in tested:
                rows.append(row)
                problems.append(_problem(row, f"math/{row.get('id', f'{part}/{index}')}", answer, source="math"))
    is_chosen = selected(rows, data, name="math", difficulty="level", topic="type")
    return list(compress(problems, is_chosen))


def load_500(split: str, data: DataConfig) -> list[Problem]:
    """Return MATH-500; there is no training split."""
    if split != "test":
        raise DataError("math500 is for tests alone; --data math trains on the 12,000 other problems of MATH.")
    return [
        _problem(
            row,
            f"math500/{row.get('unique_id', index)}".removesuffix(".json"),
            text_of(row, "answer", where=f"row {index} of math500"),
            source="math500",
        )
        for index, row in enumerate(_rows_500(data))
    ]


def _rows_500(data: DataConfig) -> list[Row]:
    return read_rows("math/math500.jsonl", hub=HUB_TEST, split="test", data_dir=data.data_dir)


def _question(row: Row) -> str:
    return text_of(row, "problem", where="a row of math")


def _problem(row: Row, problem_id: str, answer: str, *, source: str) -> Problem:
    level = level_text(row.get("level"))
    return Problem(id=problem_id, question=_question(row), answer=answer, source=source, level=level)


def _answer(row: Row, *, where: str) -> str:
    """Return the stated answer, or the content of the solution's last box; "" for an empty box."""
    if row.get("answer"):
        return str(row["answer"])
    found, _ = boxes(text_of(row, "solution", where=where))
    if not found:
        raise DataError(f"{where} has neither an answer nor a box in its solution.")
    return found[-1].content.strip()
