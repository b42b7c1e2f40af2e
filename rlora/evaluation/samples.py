"""The samples of one benchmark by one arm: a JSON Lines file that grows batch by batch and survives a kill.

A kill may leave a line cut short, or a problem with some of its samples; both are dropped when the file is opened, and
those problems are sampled again.
"""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from io import FileIO
from pathlib import Path
from typing import Any

from rlora.errors import RunDirError
from rlora.system.files import append_line, write_atomically
from rlora.types import Group, Problem, StopReason, Verdict, VerdictKind

TOO_LONG = "prompt"  # `stop` of a sample that was never drawn, since its prompt is too long

Row = Mapping[str, Any]


class SampleFile:
    """Samples by problem, `num_samples` each."""

    def __init__(self, path: Path, *, num_samples: int):
        """Read what is there, and drop what is not whole; RunDirError for a file that this class did not write."""
        self._path, self._num_samples = path, num_samples
        lines = path.read_text(encoding="utf-8").split("\n") if path.is_file() else []
        found: dict[str, list[Row]] = defaultdict(list)
        for number, line in enumerate(lines[:-1], start=1):  # what follows the last line feed was cut short
            try:
                row = json.loads(line)
                found[row["problem"]].append(row)
            except (ValueError, KeyError, TypeError) as error:
                raise RunDirError(f"{path}, line {number}, is not a sample: {error!r}. Remove the file.") from error
        self._rows = {problem: rows for problem, rows in found.items() if len(rows) == num_samples}
        if lines and (lines[-1] or len(self._rows) < len(found)):
            with write_atomically(path) as temporary:
                kept = [_line(row) + "\n" for rows in self._rows.values() for row in rows]
                temporary.write_text("".join(kept), encoding="utf-8")

    def __contains__(self, problem: Problem) -> bool:
        """Whether the samples of a problem are there; RunDirError if they were judged against another answer."""
        rows = self._rows.get(problem.id, [])
        if rows and rows[0]["gold"] != problem.answer:
            raise RunDirError(
                f"{self._path}: {problem.id} had the answer {rows[0]['gold']!r}, and has {problem.answer!r} now; the "
                "data changed, so choose another --output."
            )
        return bool(rows)

    def rows(self, problem: Problem) -> Sequence[Row]:
        """Return the samples of a problem; KeyError if they are not there."""
        return self._rows[problem.id]

    def verdicts(self, problem: Problem) -> list[Verdict]:
        """Return the verdicts on a problem's samples."""
        return [Verdict(kind=VerdictKind(row["verdict"]), extracted=row["extracted"]) for row in self._rows[problem.id]]

    def append(self, groups: Sequence[Group], strict: Sequence[Group], too_long: Sequence[Problem]) -> None:
        """Keep the samples of a batch and sync them; a problem with too long a prompt counts as wrong.

        `strict` holds the same samples judged by the strict rule.
        """
        rows = [row for pair in zip(groups, strict, strict=True) for row in _group_rows(*pair)]
        rows += [_row(problem, index) for problem in too_long for index in range(self._num_samples)]
        with FileIO(self._path, "a") as file:
            append_line(file, "\n".join(map(_line, rows)))
        for row in rows:
            self._rows.setdefault(row["problem"], []).append(row)


def _line(row: Row) -> str:
    return json.dumps(row, ensure_ascii=False)


def _group_rows(group: Group, strict: Group) -> list[Row]:
    rows = []
    for index, (rollout, again) in enumerate(zip(group.rollouts, strict.rollouts, strict=True)):
        completion, verdict = rollout.completion, rollout.verdict
        rows.append(
            _row(group.prompt.problem, index)
            | {
                "verdict": verdict.kind.value,
                "extracted": verdict.extracted,
                "strict_verdict": again.verdict.kind.value,
                "stop": completion.stop.value,
                "num_tokens": len(completion.token_ids),
                "version": completion.version,
                "text": completion.text,
            }
        )
    return rows


def _row(problem: Problem, index: int) -> dict[str, Any]:
    """Return the row of a sample that was not drawn."""
    return {
        "problem": problem.id,
        "sample": index,
        "gold": problem.answer,
        "verdict": VerdictKind.NO_ANSWER.value,
        "extracted": "",
        "strict_verdict": VerdictKind.NO_ANSWER.value,
        "stop": TOO_LONG,
        "num_tokens": 0,
        "version": None,
        "text": "",
    }


def is_truncated(row: Row) -> bool:
    """Whether the token limit cut a sample off."""
    return row["stop"] == StopReason.LENGTH.value
