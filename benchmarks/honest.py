"""How often the proof accuses an honest engine: whole toy runs whose sampler serves what it is given, but rounds.

    python -m benchmarks.honest                    1,000 steps for each noise (nats) and seed
    python -m benchmarks.honest --noises 0.08 --seeds 1 2 3 --learning-rate 1e-3

One thread, some minutes a run. Each run says how many steps ended without an accusation, and how near the worst of them
came to a limit; at the end stands the rate, whose upper bound with no accusation in n steps is 3 / n (95 %).
"""

import argparse
import contextlib
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.figures import ROOT
from rlora.errors import ProofError
from rlora.loop import run
from rlora.recipes.arithmetic import PRESETS
from rlora.sampler.build import build_sampler
from rlora.store.run_dir import metrics_rows

NUM_STEPS = 1000
NOISES = (0.02, 0.05, 0.08)
_MORE_THAN_SURE = 3.0  # events that are missed with a probability of 5 %


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """Steps that an honest run made, its accusation (None: all steps), and the worst that it logged."""

    num_steps: int
    accusation: str | None
    worst: dict[str, float]


def honest_run(noise: float, *, seed: int, num_steps: int, learning_rate: float, run_dir: Path) -> Outcome:
    """Train the toy with an honest sampler whose log-probabilities have Gaussian noise (nats)."""
    sys.path.insert(0, str(ROOT / "tests"))
    from support.liars import rounds  # pyright: ignore[reportMissingImports] - of the tests

    preset = PRESETS["toy"]
    config = replace(
        preset,
        run_dir=str(run_dir),
        seed=seed,
        num_steps=num_steps,
        optimizer=replace(preset.optimizer, learning_rate=learning_rate),
        evaluation=replace(preset.evaluation, every=0),
        checkpoint=replace(preset.checkpoint, every=num_steps),
    )
    accusation = None
    try:
        with contextlib.redirect_stdout(sys.stderr):  # what a run says is not what is measured
            run(config, make_sampler=lambda spec: rounds(noise)(build_sampler(spec)))
    except ProofError as error:
        accusation = str(error)
    steps = metrics_rows(run_dir)
    return Outcome(num_steps=len(steps), accusation=accusation, worst=worst_of(steps, noise))


def worst_of(steps: Sequence[dict[str, float]], noise: float) -> dict[str, float]:
    """Return the largest value of each figure of the proof that has a limit; errors in units of the noise."""
    units = {"canary_error": noise, "rollouts_error": noise, "rollouts_deviations": 1.0, "rollouts_surprise": 1.0}
    return {
        name: round(max((abs(step[f"proof/{name}"]) / unit for step in steps), default=0.0), 2)
        for name, unit in units.items()
    }


def main() -> None:
    """Run what the command line asks for, and print the rate."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--noises", nargs="+", type=float, default=NOISES, help="nats")
    parser.add_argument("--seeds", nargs="+", type=int, default=(1,))
    parser.add_argument("--num-steps", type=int, default=NUM_STEPS)
    parser.add_argument("--learning-rate", type=float, default=1e-2)
    arguments = parser.parse_args()
    num_steps = num_accusations = 0
    for noise in arguments.noises:
        for seed in arguments.seeds:
            with tempfile.TemporaryDirectory() as folder:
                outcome = honest_run(
                    noise,
                    seed=seed,
                    num_steps=arguments.num_steps,
                    learning_rate=arguments.learning_rate,
                    run_dir=Path(folder) / "run",
                )
            num_steps += outcome.num_steps
            num_accusations += outcome.accusation is not None
            print(json.dumps({"noise": noise, "seed": seed, "steps": outcome.num_steps, **outcome.worst}), flush=True)
            if outcome.accusation is not None:
                print(outcome.accusation, flush=True)
    bound = f", at most {_MORE_THAN_SURE / num_steps:.1e} (95 %)" if num_steps and not num_accusations else ""
    print(f"{num_accusations} accusations in {num_steps} steps{bound}")


if __name__ == "__main__":
    main()
