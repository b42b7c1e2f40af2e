"""GSM8K: grade-school word problems whose gold answer follows "#### " (Cobbe et al. 2021, arXiv 2110.14168)."""

from rlora.errors import DataError
from rlora.tasks.data import DataConfig
from rlora.tasks.fields import text_of
from rlora.tasks.select import refuse_filters
from rlora.tasks.source import read_rows
from rlora.types import Problem

INSTRUCTION = "Solve it step by step. End with the answer as \\boxed{number}."


def load(split: str, data: DataConfig) -> list[Problem]:
    """Return the 7,473 "train" or 1,319 "test" problems, of a local gsm8k/SPLIT.jsonl or the hub's openai/gsm8k."""
    rows = read_rows(f"gsm8k/{split}.jsonl", hub="openai/gsm8k", subset="main", split=split, data_dir=data.data_dir)
    refuse_filters(data, name="gsm8k")
    problems = []
    for number, row in enumerate(rows):
        where = f"row {number} of gsm8k {split}"
        marker, separator, gold = text_of(row, "answer", where=where).rpartition("#### ")
        if not separator:
            raise DataError(f"{where} has no '#### ' before its answer: {marker[-80:]!r}")
        problems.append(
            Problem(
                id=f"gsm8k/{split}/{number}",
                question=text_of(row, "question", where=where),
                answer=gold.strip().replace(",", ""),
                source="gsm8k",
            )
        )
    return problems
