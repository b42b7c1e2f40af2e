"""The samples of one benchmark by one arm: a JSON Lines file that grows batch by batch and survives a kill.

A kill may leave a line cut short, or a problem with some of its samples; both are dropped when the file is opened, and
those problems are sampled again.
"""

import json
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from io import FileIO
from pathlib import Path
from typing import Any

from rlora.errors import RunDirError
from rlora.system.files import append_line, write_atomically
from rlora.types import Group, Problem, StopReason, Verdict, VerdictKind

TOO_LONG = "prompt"  # `stop` of a sample that was never drawn, since its prompt is too long

Row = Mapping[str, Any]


class SampleFile:
    """Samples by problem, `num_samples` each, judged also by the `measures` of their judge."""

    def __init__(self, path: Path, *, num_samples: int, measures: Collection[str] = ()):
        """Read what is there, and drop what is not whole; RunDirError for a file that this class did not write."""
        self._path, self._num_samples, self._measures = path, num_samples, tuple(measures)
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
        return [_verdict(row) for row in self._rows[problem.id]]

    def append(self, groups: Sequence[Group], too_long: Sequence[Problem]) -> None:
        """Keep the samples of a batch and sync them; a problem with too long a prompt counts as wrong."""
        rows = [row for group in groups for row in self._group_rows(group)]
        rows += [self._missing(problem, index) for problem in too_long for index in range(self._num_samples)]
        with FileIO(self._path, "a") as file:
            append_line(file, "\n".join(map(_line, rows)))
        for row in rows:
            self._rows.setdefault(row["problem"], []).append(row)

    def _group_rows(self, group: Group) -> list[Row]:
        return [
            self._missing(group.prompt.problem, index)
            | _judgement(rollout.verdict)
            | {
                "stop": rollout.completion.stop.value,
                "num_tokens": len(rollout.completion.token_ids),
                "version": rollout.completion.version,
                "text": rollout.completion.text,
            }
            for index, rollout in enumerate(group.rollouts)
        ]

    def _missing(self, problem: Problem, index: int) -> dict[str, Any]:
        """Return the row of a sample that was not drawn."""
        return {
            "problem": problem.id,
            "sample": index,
            "gold": problem.answer,
            "verdict": VerdictKind.NO_ANSWER.value,
            "extracted": "",
            **{f"{name}_verdict": VerdictKind.NO_ANSWER.value for name in self._measures},
            "stop": TOO_LONG,
            "num_tokens": 0,
            "version": None,
            "text": "",
        }


def _line(row: Row) -> str:
    return json.dumps(row, ensure_ascii=False)


def _judgement(verdict: Verdict) -> dict[str, Any]:
    """Return a verdict as fields of a row; its reward only where its kind does not say it, its reason if it has one."""
    values: dict[str, Any] = {"verdict": verdict.kind.value, "extracted": verdict.extracted}
    values |= {f"{name}_verdict": measure.kind.value for name, measure in verdict.measures.items()}
    if verdict.reward != float(verdict.is_correct):
        values["reward"] = verdict.reward
    if verdict.reason:
        values["reason"] = verdict.reason
    return values


def _verdict(row: Row) -> Verdict:
    kind = VerdictKind(row["verdict"])
    return Verdict(
        kind=kind,
        reward=row.get("reward", float(kind is VerdictKind.CORRECT)),
        extracted=row["extracted"],
        reason=row.get("reason", ""),
    )


def is_truncated(row: Row) -> bool:
    """Whether the token limit cut a sample off."""
    return row["stop"] == StopReason.LENGTH.value
