"""What a checkpoint costs, and how much longer a run that goes on takes to its first new sample than a fresh one."""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from benchmarks.figures import ROOT, Figure, PartError

NUM_STEPS = 4
NUM_SAVES = 30


def start(run_dir: Path, num_steps: int) -> float:
    """Run the quickstart up to `num_steps` and return when its process was started (Unix time)."""
    began = time.time()
    command = [sys.executable, "recipes/arithmetic.py", "--run-dir", str(run_dir), "--num-steps", str(num_steps)]
    options = ["--evaluation.every", "0", "--evaluation.num-problems", "8"]
    done = subprocess.run([*command, *options], cwd=ROOT, capture_output=True, text=True, env=os.environ)
    if done.returncode:
        raise PartError(f"the quickstart failed:\n{done.stderr[-4000:]}")
    return began


def measure() -> Iterator[Figure]:
    from rlora.store.checkpoint import CheckpointConfig, CheckpointFolder

    print(f"running {NUM_STEPS} steps of the quickstart and resuming it ...", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder) / "run"
        began = start(run_dir, NUM_STEPS)
        fresh = (run_dir / "rollouts" / "step-000000.jsonl").stat().st_mtime - began
        began = start(run_dir, NUM_STEPS + 1)
        resumed = (run_dir / "rollouts" / f"step-{NUM_STEPS:06d}.jsonl").stat().st_mtime - began
        rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
        checkpoint = CheckpointFolder(run_dir / "checkpoints").newest()
        assert checkpoint is not None
        target = CheckpointFolder(Path(folder) / "saves", CheckpointConfig())
        seconds = []
        for step in range(NUM_SAVES):
            before = time.perf_counter()
            target.save(replace(checkpoint, step=step))
            seconds.append(time.perf_counter() - before)
    save, iteration = statistics.median(seconds), statistics.median(row["seconds/step"] for row in rows)
    yield Figure(
        name="checkpoint every step",
        value=save / iteration,
        unit="ratio",
        target=0.01,
        against="the quickstart's iteration",
        note=f"{1000 * save:.0f} ms of {iteration:.1f} s, hashed, synced and pruned, median of {NUM_SAVES}",
    )
    yield Figure(
        name="resuming",
        value=resumed - fresh,
        unit="s",
        target=5,
        against="a fresh start",
        note=f"to the first new rollouts on disk: {resumed:.1f} s against {fresh:.1f} s",
    )
