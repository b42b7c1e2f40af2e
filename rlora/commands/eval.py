"""Score a run's policy, an adapter or a model on benchmarks, beside its base."""

import sys
from collections.abc import Sequence
from dataclasses import replace

from transformers.utils.logging import disable_progress_bar

from rlora.config import cli
from rlora.evaluation.config import PRESETS, EvalConfig
from rlora.evaluation.run import evaluate_benchmarks

DESCRIPTION = """\
Score a run's newest policy (--run), a LoRA adapter (--adapter) or a model alone (--model) on benchmarks.

Every problem is answered several times, by the policy and by the base with the same seeds: avg@k, unbiased pass@k,
maj@k, each with a 95 % interval over problems, and the paired difference with its own. Samples are kept as they come:
the same command goes on where it was stopped. results.json, results.md and the samples are in --output."""


def main(arguments: Sequence[str]) -> None:
    """Run `rlora eval`."""
    config = parse(arguments)
    disable_progress_bar()  # of Transformers, whose bars for loading weights would break up the display
    try:
        evaluate_benchmarks(config)
    except KeyboardInterrupt:
        print("What was sampled is kept; the same command goes on from there.", file=sys.stderr)
        raise


def parse(arguments: Sequence[str], *, description: str = DESCRIPTION) -> EvalConfig:
    """Return the configuration that the arguments ask for; a preset's model gives way to --run and --adapter."""
    given = [
        part for argument in arguments for part in (("--base", "False") if argument == "--no-base" else (argument,))
    ]
    presets = dict(PRESETS)
    if any(argument.partition("=")[0] in ("--run", "--adapter") for argument in given):
        presets = {name: replace(preset, model=None) for name, preset in presets.items()}
    return cli(presets, description=description, arguments=given)
