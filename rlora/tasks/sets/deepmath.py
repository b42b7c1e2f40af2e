"""DeepMath-103K: hard problems with a final answer, a difficulty and a topic (He et al. 2025, arXiv 2504.11456).

It has no test split of its own: 500 problems (a tenth of a smaller copy) are held out by a seed of their text, the same
ones whatever is filtered. Left out: its three solutions by a reasoning model, which training by reward does not need.
"""

from itertools import compress

from rlora.tasks.data import DataConfig
from rlora.tasks.fields import text_of
from rlora.tasks.select import Row, hold_out, level_text, selected
from rlora.tasks.source import read_rows
from rlora.types import Problem

INSTRUCTION = "Solve it step by step. End with the answer as \\boxed{answer}."
HUB = "zwhe99/DeepMath-103K"
_COLUMNS = ("id", "question", "final_answer", "difficulty", "topic")


def load(split: str, data: DataConfig) -> list[Problem]:
    """Return the "train" problems, as far as the filters go, or the held-out ones as "test".

    From a local deepmath/sample.jsonl (or deepmath/train.jsonl, if that is there), or the hub's zwhe99/DeepMath-103K.
    """
    rows = read_rows(
        ("deepmath/train.jsonl", "deepmath/sample.jsonl"),
        hub=HUB,
        split="train",
        columns=_COLUMNS,
        data_dir=data.data_dir,
    )
    problems = [_problem(row, index) for index, row in enumerate(rows)]
    train, test = hold_out(problems, name="deepmath")
    if split == "test":
        return test
    is_chosen = selected(rows, data, name="deepmath", difficulty="difficulty", topic="topic")
    chosen = {problem.id for problem in compress(problems, is_chosen)}
    return [problem for problem in train if problem.id in chosen]


def _problem(row: Row, index: int) -> Problem:
    where = f"row {index} of deepmath"
    number = str(row.get("id", index)).removeprefix("deepmath:")
    return Problem(
        id=f"deepmath/{number}",
        question=text_of(row, "question", where=where),
        answer=text_of(row, "final_answer", where=where),
        source="deepmath",
        level=level_text(row.get("difficulty")),
    )
