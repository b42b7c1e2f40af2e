"""`make bench`: measure every figure the project states, as ratios within one run, print them and write bench.json.

Each part runs in a process of its own, one after the other. About ten minutes on two cores, most of it TRL's.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
NUM_UPDATES = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One measured figure beside its target; `at_most` says on which side of the target it should lie."""

    name: str
    value: float
    unit: str
    target: float
    against: str
    note: str
    at_most: bool = True

    @property
    def met(self) -> bool:
        return self.value <= self.target if self.at_most else self.value >= self.target

    def row(self) -> dict[str, Any]:
        values = asdict(self)
        values["target"] = f"{'<=' if values.pop('at_most') else '>='} {self.target:g}"
        return values | {"met": self.met}


def child(*arguments: str) -> dict[str, Any]:
    """Run a part and return the JSON that it prints."""
    print(f"running {' '.join(arguments)} ...", file=sys.stderr, flush=True)
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, env=os.environ)
    line = next((line for line in done.stdout.splitlines() if line.startswith("RESULT")), None)
    if done.returncode or line is None:
        raise SystemExit(f"{' '.join(arguments)} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return json.loads(line.removeprefix("RESULT"))


def quickstart(num_steps: int) -> tuple[list[dict[str, float]], dict[str, Any]]:
    """Run the quickstart's first steps and return its metrics and summary."""
    print(f"running {num_steps} steps of the quickstart ...", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder) / "run"
        command = [sys.executable, "recipes/arithmetic.py", "--run-dir", str(run_dir), "--num-steps", str(num_steps)]
        done = subprocess.run([*command, "--evaluation.every", "0"], cwd=ROOT, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"the quickstart failed:\n{done.stderr[-4000:]}")
        rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
        return rows, json.loads((run_dir / "summary.json").read_text())


def measure() -> list[Figure]:
    rows, summary = quickstart(6)
    exact, default = child("-m", "benchmarks.sampling", "exact"), child("-m", "benchmarks.sampling", "default")
    trl = child("-m", "benchmarks.trl_iteration", str(NUM_UPDATES))
    iteration = statistics.median(row["seconds/step"] for row in rows[:NUM_UPDATES])
    trl_iteration = statistics.median(trl["seconds"])
    typical = statistics.median(row["seconds/step"] for row in rows)
    positions = sum(row["batch/num_positions"] for row in rows)
    padding = sum(row["batch/padding_share"] * row["batch/num_positions"] for row in rows) / positions
    ours, theirs = exact["ours_tokens_per_second"], exact["theirs_tokens_per_second"]
    return [
        Figure(
            name="iteration",
            value=iteration / trl_iteration,
            unit="ratio",
            target=0.25,
            against="TRL GRPOTrainer with PEFT rank 1",
            note=f"{iteration:.1f} s against {trl_iteration:.1f} s, 32 problems x 8 samples, first {NUM_UPDATES} "
            "updates",
        ),
        Figure(
            name="sampling",
            value=ours / theirs,
            unit="ratio",
            target=0.95,
            at_most=False,
            against="vLLM's generate, same engine, requests and adapter",
            note=f"{ours:.0f} against {theirs:.0f} tokens/s",
        ),
        Figure(
            name="exact sampling",
            value=ours / default["tokens_per_second"],
            unit="ratio",
            target=0.85,
            at_most=False,
            against="vLLM's default setting (own process, unseeded)",
            note=f"{ours:.0f} against {default['tokens_per_second']:.0f} tokens/s",
        ),
        Figure(
            name="swap with proof",
            value=exact["swap_seconds"] / typical,
            unit="ratio",
            target=0.03,
            against="a typical iteration of the quickstart",
            note=f"{1000 * exact['swap_seconds']:.0f} ms of {typical:.1f} s (median of {len(rows)} iterations)",
        ),
        Figure(
            name="adapter load",
            value=1000 * exact["load_seconds"],
            unit="ms",
            target=30,
            against="",
            note="files and engine",
        ),
        Figure(
            name="peak memory",
            value=summary["peak_resident_bytes"] / 1e9,
            unit="GB",
            target=5,
            against="",
            note="whole quickstart process, 1 GiB KV cache included",
        ),
        Figure(
            name="padding",
            value=padding,
            unit="share",
            target=0.05,
            against="positions computed in training",
            note="",
        ),
    ]


def main() -> None:
    figures = measure()
    (ROOT / "bench.json").write_text(json.dumps([figure.row() for figure in figures], indent=2) + "\n")
    table = Table("figure", "value", "target", "met", "against", "note")
    for row in (figure.row() for figure in figures):
        met = "yes" if row["met"] else "NO"
        table.add_row(row["name"], f"{row['value']:.3g} {row['unit']}", row["target"], met, row["against"], row["note"])
    Console(width=160).print(table)


if __name__ == "__main__":
    main()
