"""Runs as a user starts them: one that is killed and goes on, and the bundled model on real problems."""

import json
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gpu_stages.models import toy_model
from gpu_stages.stage import ROOT, CheckError, Clock, Context

_TOY = (sys.executable, "recipes/arithmetic.py", "--preset", "toy", "--problems-per-step", "12")
_TOY += ("--samples-per-problem", "64", "--evaluation.every", "0")  # so many that every step has something to train
_CLOCK = ("seconds/", "throughput/", "memory/", "crc")  # metrics that say how fast, not what; checksums
_FILES = ("rollouts/*.jsonl", "adapter/*", "checkpoints/*/tensors.safetensors")
_START_S = 150  # an engine's start and a last evaluation: what a bound on a run's hours does not count


def resume(context: Context) -> None:
    """The toy model on digits, straight and killed after two steps; CheckError when the two runs differ."""
    straight, killed = context.run_dir("straight"), context.run_dir("killed")
    _to_the_end(context, _start(context, straight))
    killed_at = _kill_after(_start(context, killed), killed, rows=2)
    _to_the_end(context, _start(context, killed))
    different = list(_differences(straight, killed))
    updates = sum(row["optimizer/is_empty_batch"] == 0 for row in _rows(straight))
    context.say(
        steps=len(_rows(straight)),
        updates=updates,
        killed_after_steps=killed_at,
        different=different,
        headline=f"killed after {killed_at} steps, {updates} updates in all: "
        + (f"{len(different)} DIFFERENCES" if different else "equal to the straight run"),
    )
    if different or not updates:
        raise CheckError(f"a run that went on differs in {', '.join(different) or 'nothing, but nothing was trained'}")


def _start(context: Context, run_dir: Path) -> subprocess.Popen:
    command = [*_TOY, "--run-dir", str(run_dir)]
    if not context.is_tiny:
        command += ["--model.name", str(toy_model(context)), "--model.dtype", "bfloat16"]
        command += ["--sampler.kind", "vllm", "--sampler.max-num-seqs", "64"]  # fewer CUDA graphs: three starts
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def _to_the_end(context: Context, process: subprocess.Popen) -> None:
    printed, _ = process.communicate()
    if process.returncode:
        print(printed, flush=True)
        raise CheckError(f"the run ended with {process.returncode}: see {context.stage}.log")


def _kill_after(process: subprocess.Popen, run_dir: Path, *, rows: int) -> int:
    """Kill the run once `rows` steps are finished; return how many were. CheckError when it ended before."""
    while len(_rows(run_dir)) < rows and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    printed, _ = process.communicate()
    if process.returncode != -signal.SIGKILL:
        print(printed, flush=True)
        raise CheckError(f"the run ended with {process.returncode} before it was killed")
    return len(_rows(run_dir))


def _rows(run_dir: Path) -> list[dict[str, Any]]:
    """Return the metrics of the finished steps; a last line that is being written is left out."""
    path = run_dir / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.is_file() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def _differences(straight: Path, other: Path) -> Iterator[str]:
    """Yield the metrics (times apart) and the files in which two runs differ."""
    pairs = list(zip(_rows(straight), _rows(other), strict=False))
    if not len(pairs) == len(_rows(straight)) == len(_rows(other)):
        yield "number of steps"
    for expected, row in pairs:
        names = [name for name in expected if not name.startswith(_CLOCK) and row.get(name) != expected[name]]
        yield from (f"step {expected['step']}: {name}" for name in names)
    for pattern in _FILES:
        expected_files, files = (
            {str(path.relative_to(run)): path.read_bytes() for path in run.glob(pattern)} for run in (straight, other)
        )
        if not expected_files:
            yield f"no {pattern}"
        names = sorted(expected_files.keys() | files.keys())
        yield from (name for name in names if expected_files.get(name) != files.get(name))


def gsm8k(context: Context) -> None:
    """The bundled model on GSM8K for as long as the stage may take; in a rehearsal, two steps of toy arithmetic."""
    run_dir, clock = context.run_dir("gsm8k"), Clock()
    command = [*_TOY, "--num-steps", "2"]
    if not context.is_tiny:
        hours = max(60.0, context.limit_s - _START_S) / 3600
        command = [sys.executable, "recipes/gsm8k.py", "--model.name", "bundled", "--sampling.max-tokens", "256"]
        command += ["--num-steps", "10000", "--stop-after-hours", str(hours)]
    process = subprocess.Popen(
        [*command, "--run-dir", str(run_dir)], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    with clock.timed("run"):
        _to_the_end(context, process)
    rows = _rows(run_dir)
    phases = sorted({name for row in rows for name in row if name.startswith("seconds/")})
    reward = [round(row["reward/mean"], 4) for row in rows]
    context.say(
        run_s=round(clock.seconds["run"], 1),
        steps=len(rows),
        median_seconds={name: round(statistics.median(row.get(name, 0.0) for row in rows), 3) for name in phases},
        reward=reward[:: max(1, len(rows) // 12)],
        k3=[rows[0].get("agreement/kl_k3"), rows[-1].get("agreement/kl_k3")],
        headline=f"{len(rows)} steps, reward {reward[0]:.3f} to {reward[-1]:.3f}",
    )
