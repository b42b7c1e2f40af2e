"""GSM8K: grade-school word problems whose gold answer follows "#### " (Cobbe et al. 2021, arXiv 2110.14168)."""

import re
from collections.abc import Mapping
from typing import Any

from rlora.errors import DataError
from rlora.tasks.data import DataConfig
from rlora.tasks.fields import text_of
from rlora.tasks.select import refuse_filters
from rlora.tasks.source import read_rows
from rlora.types import Problem

INSTRUCTION = "Solve it step by step. End with the answer as \\boxed{number}."
_CALCULATOR = re.compile(r"<<[^<>]*>>")


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


def solved(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row with its worked solution as `INSTRUCTION` asks for it: without the marks of the calculator
    (`<<48/2=24>>`), and the answer in a box. A row that is none of GSM8K's is returned as it is.

    Example:
        >>> solved({"question": "...", "answer": "She sold 48/2 = <<48/2=24>>24 clips.\\n#### 24"})["answer"]
        'She sold 48/2 = 24 clips.\\nThe answer is \\\\boxed{24}.'
    """
    steps, separator, gold = str(row.get("answer")).rpartition("\n#### ")
    if not separator:
        return dict(row)
    answer = gold.strip().replace(",", "")
    return {**row, "answer": f"{_CALCULATOR.sub('', steps).rstrip()}\nThe answer is \\boxed{{{answer}}}."}
