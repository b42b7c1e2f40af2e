"""The samples of one benchmark by one arm: a JSON Lines file that grows batch by batch and survives a kill.

Samples come in blocks: the first that were asked for, and those by which more are asked for later. A kill may leave a
line cut short, or a part of a block; both are dropped when the file is opened, and drawn again.
"""

import math
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from io import FileIO
from pathlib import Path
from types import MappingProxyType
from typing import Any

from rlora.errors import RunDirError
from rlora.system.files import append_line, explained, write_atomically
from rlora.system.lock import FolderLock
from rlora.system.records import line_of, rows_in
from rlora.types import Group, Problem, StopReason, Verdict, VerdictKind

TOO_LONG = "prompt"  # `stop` of a sample that was never drawn, since its prompt is too long

Row = Mapping[str, Any]


class SampleFile:
    """Samples by problem, of which the first `num_samples` are looked at, judged also by the `measures` of their judge.

    `prompts` are digests of what the problems' prompts are now, by id: samples of other prompts are refused.
    """

    def __init__(
        self,
        path: Path,
        *,
        num_samples: int,
        measures: Collection[str] = (),
        prompts: Mapping[str, int] = MappingProxyType({}),
        lock: FolderLock | None = None,
    ):
        """Read what is there, and drop what is not whole; RunDirError, naming the line, for one that was changed,
        or that this class did not write.
        """
        self._path, self._num_samples, self._measures, self._lock = path, num_samples, tuple(measures), lock
        self._prompts = prompts
        rows, is_as_written = rows_in(path)
        found: dict[str, list[Row]] = defaultdict(list)
        for number, row in enumerate(rows, start=1):
            if wrong := _wrong_field(row, self._measures):
                raise RunDirError(f"{path}, line {number}, is not a sample: {wrong}. Remove the file.")
            found[row["problem"]].append(row)
        usual = max(map(len, found.values()), default=0)
        whole = {problem: _whole_blocks(rows, usual) for problem, rows in found.items()}
        self._rows = {problem: rows for problem, rows in whole.items() if rows}
        if path.exists() and not (is_as_written and sum(map(len, whole.values())) == len(rows)):
            with write_atomically(path) as temporary:
                kept = [line_of(row) + "\n" for rows in self._rows.values() for row in rows]
                temporary.write_text("".join(kept), encoding="utf-8")

    def __contains__(self, problem: Problem) -> bool:
        """Whether all samples of a problem are there; RunDirError as `num_there` raises it."""
        return self.num_there(problem) >= self._num_samples

    def num_there(self, problem: Problem) -> int:
        """Return how many samples of a problem are there; RunDirError if they answer another question, or were judged
        against another answer.
        """
        rows = self._rows.get(problem.id, [])
        if not rows:
            return 0
        if rows[0]["gold"] != problem.answer:
            raise RunDirError(
                f"{self._path}: {problem.id} had the answer {rows[0]['gold']!r}, and has {problem.answer!r} now; the "
                "data changed, so choose another --output."
            )
        if rows[0].get("prompt") not in (None, self._prompts.get(problem.id)):
            raise RunDirError(
                f"{self._path}: the samples of {problem.id} answer another prompt than it has now; the question or the "
                "instruction changed, so choose another --output."
            )
        return len(rows)

    def rows(self, problem: Problem) -> Sequence[Row]:
        """Return the samples of a problem; KeyError if they are not there."""
        return self._rows[problem.id][: self._num_samples]

    def verdicts(self, problem: Problem) -> list[Verdict]:
        """Return the verdicts on a problem's samples."""
        return [_verdict(row) for row in self.rows(problem)]

    def append(self, groups: Sequence[Group], too_long: Sequence[Problem]) -> None:
        """Keep the samples of a batch behind those that are there, and sync them; a problem with too long a prompt
        counts as wrong.
        """
        rows = [row for group in groups for row in self._group_rows(group)]
        rows += [
            self._missing(problem, index)
            for problem in too_long
            for index in range(self.num_there(problem), self._num_samples)
        ]
        if self._lock is not None:
            self._lock.check_in_place()
        with explained(self._path), FileIO(self._path, "a") as file:
            append_line(file, "\n".join(map(line_of, rows)))
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
            for index, rollout in enumerate(group.rollouts, start=self.num_there(group.prompt.problem))
        ]

    def _missing(self, problem: Problem, index: int) -> dict[str, Any]:
        """Return the row of a sample that was not drawn."""
        return {
            "problem": problem.id,
            "sample": index,
            "of": self._num_samples,
            "prompt": self._prompts.get(problem.id),
            "gold": problem.answer,
            "verdict": VerdictKind.NO_ANSWER.value,
            "extracted": "",
            **{f"{name}_verdict": VerdictKind.NO_ANSWER.value for name in self._measures},
            "stop": TOO_LONG,
            "num_tokens": 0,
            "version": None,
            "text": "",
        }


def _wrong_field(row: Row, measures: Sequence[str]) -> str:
    """Return what a row lacks to be a sample, "" where it is one: files of before had no checksums."""
    kinds: dict[str, type] = {
        "problem": str,
        "gold": str,
        "extracted": str,
        "stop": str,
        "text": str,
        "sample": int,
        "num_tokens": int,
    }
    for name, kind in kinds.items():
        if type(row.get(name)) is not kind:
            return f"{name} is {row.get(name)!r}"
    if not (row.get("of") is None or (type(row["of"]) is int and row["sample"] < row["of"])):
        return f"of is {row['of']!r}"
    for name in ("verdict", *(f"{measure}_verdict" for measure in measures)):
        if row.get(name) not in [kind.value for kind in VerdictKind]:
            return f"{name} is {row.get(name)!r}"
    reward = row.get("reward", 0.0)
    is_number = isinstance(reward, int | float) and math.isfinite(reward)
    return "" if is_number else f"reward is {reward!r}"


def _whole_blocks(rows: Sequence[Row], usual: int) -> list[Row]:
    """Return the samples of a problem in order, up to the first block of which one lacks. A row says in `of` where its
    block ends; those of before do not, and end where most do.
    """
    by_number = {row["sample"]: row for row in rows}
    whole: list[Row] = []
    while (row := by_number.get(len(whole))) is not None:
        block = range(len(whole), row.get("of") or usual)
        if not block or not all(number in by_number for number in block):
            break
        whole += [by_number[number] for number in block]
    return whole


def _judgement(verdict: Verdict) -> dict[str, Any]:
    """Return a verdict as fields of a row; its reward only where its kind does not say it, its reason if it has one."""
    values: dict[str, Any] = {"verdict": verdict.kind.value, "extracted": verdict.extracted}
    values |= {f"{name}_verdict": measure.kind.value for name, measure in verdict.measures.items()}
    if verdict.reward != float(verdict.is_correct):
        values["reward"] = verdict.reward
    if verdict.reason:
        values["reason"] = verdict.reason
    if verdict.parts:
        values["parts"] = dict(verdict.parts)
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
