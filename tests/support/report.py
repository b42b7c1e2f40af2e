"""Runs as a report reads them, and rollouts that would break its page."""

import dataclasses
from pathlib import Path

from rlora.report.runs import ReportedRun, read_run
from rlora.store.rollouts import RolloutFolder
from rlora.store.run_dir import rollout_rows
from support.hostile import hostile_rollouts


def rollouts_of(run_dir: Path) -> list[tuple[int, dict]]:
    """Return the rollouts of a run in order, each with its step."""
    files = sorted((run_dir / "rollouts").glob("*.jsonl"))
    return [(step, row) for step, file in enumerate(files) for row in rollout_rows(file)]


def with_hostile_rollouts(trained: Path, folder: Path) -> ReportedRun:
    """Return a run under a hostile name whose rollouts are hostile too."""
    folder = folder / "hostile"
    rollouts = RolloutFolder(folder / "rollouts")
    rollouts.save(0, hostile_rollouts())
    rollouts.close()
    return dataclasses.replace(read_run(trained), path=folder, name="</title><script>window.hostileRan = 1</script>")
