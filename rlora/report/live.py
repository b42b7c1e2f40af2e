"""A run that goes on, as a page that grows: what is new of it since a reader last asked."""

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlora.diagnosis import Finding, diagnose
from rlora.report.panels import columns_of
from rlora.report.rollouts import RolloutSet, pack_runs, packed
from rlora.report.runs import ReportedRun, read_run
from rlora.report.write import MAX_ROLLOUTS, page_of, panels_of, with_intervals

_MOST_STEPS = 40  # of rollouts in one answer; what is behind comes with the next
_REST = 50  # times as long as a diagnosis took pass before the next one
_GROWING = ("metrics.jsonl", "summary.json", "eval")


class LiveRun:
    """The run in a folder as it is shown to any number of readers: a page, then answers with what has come since.

    What a reader has is named by five numbers: how often the run went back to an earlier step, then rows, rollouts,
    problems and chunks. A reader of before the run went back is told to begin anew.
    """

    def __init__(self, path: Path, *, max_rollouts: int = MAX_ROLLOUTS):
        """Read what is there; RunDirError where there is no run."""
        self.path, self._max_rollouts, self._num_starts = path, max_rollouts, 0
        self._findings: Sequence[Finding] = ()
        self._next_diagnosis = 0.0  # on the monotonic clock
        self._diagnosed: tuple[tuple[int, int], ...] | None = None
        self._seen = self._signature()
        self._run = read_run(path)
        self._begin(self._run)

    def _signature(self) -> tuple[tuple[int, int], ...]:
        """Return what changes with what a run writes behind each step, its metrics last."""
        found = (os.stat(self.path / name) for name in _GROWING if (self.path / name).exists())
        return tuple((each.st_size, each.st_mtime_ns) for each in found)

    def _diagnosis(self) -> Sequence[Finding]:
        """Return what is found in the run: anew where it has changed, but in a small part of the time alone."""
        start = time.monotonic()
        if start >= self._next_diagnosis and self._diagnosed != self._seen:
            self._findings, self._diagnosed = diagnose(self.path), self._seen
            self._next_diagnosis = time.monotonic() + _REST * (time.monotonic() - start)
        return self._findings

    def _begin(self, run: ReportedRun) -> None:
        self._first, self._num_rows = _first(run), len(run.rows)
        there = set(run.rollouts.steps())  # before they are packed: a step may come meanwhile
        self._pack = pack_runs([run], limit=self._max_rollouts)
        self._packed_steps = there | set(self._pack.index["step"])
        self._has_more_steps = False

    def _read(self) -> ReportedRun:
        seen = self._signature()
        if seen == self._seen and not self._has_more_steps:
            return self._run
        run = self._run = read_run(self.path)
        self._seen = seen
        if len(run.rows) < self._num_rows or (self._num_rows and _first(run) != self._first):
            self._num_starts += 1
            self._begin(run)
        else:
            self._first, self._num_rows = _first(run), len(run.rows)
            self._take_in(run)
        return run

    def page(self, address: str) -> str:
        """Return the whole page as it is now; it asks `address` for more."""
        run = self._read()
        watch = {"address": address, "next": self._next(run)}
        return page_of([run], {run.name: self._diagnosis()}, pack=self._pack, watch=watch).html

    def more(self, after: str) -> dict[str, Any]:
        """Return what has come since `after`, which the page or the answer before named as `next`."""
        run = self._read()
        place = _place(after)
        answer = {
            "isNew": place is None or place[0] != self._num_starts,
            "isRunning": run.is_running,
            "step": len(run.rows),
            "hasMore": False,
            "next": self._next(run),
            "diagnosis": [f"{one.what} {one.remedy}" for one in self._diagnosis()]
            or ["Nothing known to go wrong was seen."],
        }
        if place is None or answer["isNew"]:
            return answer
        _, num_rows, num_rollouts, num_problems, num_chunks = place
        rows, chunks = with_intervals(run, 0, self._pack)[num_rows:], self._pack.chunks[num_chunks:]
        if not rows and not chunks:
            return answer
        answer |= {
            "hasMore": True,
            "rows": {panel.name: {"run:0": columns_of(panel, rows)} for panel in panels_of([run])},
        }
        if chunks:
            head = self._pack.head(first=num_rollouts, first_problem=num_problems)
            shown = {name: head[name] for name in ("sets", "problems", "index", "stops")}
            ends = self._pack.chunk_ends[num_chunks:]
            formulas = packed(self._pack.formulas.typeset())
            answer["rollouts"] = {**shown, "chunks": chunks, "chunkEnds": ends, "formulas": formulas}
        return answer

    def _take_in(self, run: ReportedRun) -> None:
        """Pack the rollouts of finished steps that are not packed yet."""
        steps = [step for step in run.rollouts.steps() if step not in self._packed_steps and step < len(run.rows)]
        self._has_more_steps = len(steps) > _MOST_STEPS
        if not steps:
            return
        if not self._pack.sets:
            self._pack.sets.append(RolloutSet(name=f"{run.name}: training", run=0, arms=("policy",)))
        self._pack.add_steps(0, run, steps[:_MOST_STEPS])
        self._pack.seal_chunk()
        self._packed_steps.update(steps[:_MOST_STEPS])

    def _next(self, run: ReportedRun) -> str:
        pack = self._pack
        counts = (self._num_starts, len(run.rows), len(pack), len(pack.problems), len(pack.chunks))
        return ".".join(map(str, counts))


def _place(after: str) -> tuple[int, ...] | None:
    parts = after.split(".")
    return tuple(map(int, parts)) if len(parts) == 5 and all(part.isdecimal() for part in parts) else None


def _first(run: ReportedRun) -> Mapping[str, Any]:
    """Return what tells one start of a run from another: its first row."""
    return run.rows[0] if run.rows else {}
