"""What must hold on one GPU, as stages of falling value that each fit a short time (docs/gpu-check.md).

    python tools/gpu_check.py --out DIR [--budget 430] [--only iterate-1.7b,long] [--tiny]

Each stage is a process of its own with a limit; what it measures is written to DIR/gpu.jsonl at once, so a stage that
is killed, or time that ends, loses only what was not reached. A stage that does not fit what is left of the budget is
skipped, and the next is tried. A table ends the check; it exits with 1 when a stage failed.

`--tiny` rehearses every stage on a CPU: a model of a few thousand weights, the torch sampler, seconds each. It must
pass before a GPU is asked for.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tools"), str(ROOT / "tests")]  # tests: their samplers that lie

from gpu_stages import engines, environment, exactness, iterate, long_rows, pytest_runs, runs  # noqa: E402
from gpu_stages.runner import main  # noqa: E402
from gpu_stages.stage import Stage  # noqa: E402

STAGES = {
    "environment": Stage(
        run=environment.environment, limit_s=60, least_s=10, why="versions that meet, and the card's ceiling"
    ),
    "iterate-1.7b": Stage(
        run=iterate.of_1_7b,
        limit_s=320,
        least_s=150,
        why="does the named model run at all; seconds, memory and MFU by phase; the proof; bits; a profile",
    ),
    "long": Stage(
        run=long_rows.long_rows, limit_s=120, least_s=40, why="rows of 2k to 32k positions; dense mask beside blocks"
    ),
    "iterate-1.7b-compiled": Stage(
        run=iterate.of_1_7b_compiled, limit_s=240, least_s=90, why="compiled kernels; samples of another process"
    ),
    "iterate-8b-8k": Stage(
        run=iterate.of_8b, limit_s=300, least_s=120, why="8B with completions of 8,192 tokens on one card"
    ),
    "small-card-24gb": Stage(
        run=iterate.on_24_gb, limit_s=240, least_s=120, why="1.7B where only the memory of a 24 GB card is left"
    ),
    "small-card-48gb": Stage(
        run=iterate.on_48_gb, limit_s=280, least_s=120, why="8B where only the memory of a 48 GB card is left"
    ),
    "shared-8b-24gb": Stage(
        run=iterate.shared_on_24_gb,
        limit_s=280,
        least_s=120,
        why="8B on a 24 GB card's memory: one copy of the base, a cache that gives way",
    ),
    "exact": Stage(
        run=exactness.exact,
        limit_s=220,
        least_s=120,
        why="the same bits again, cold, warm and beside others, with batch-invariant kernels",
        environment=exactness.INVARIANT,
    ),
    "resume": Stage(
        run=runs.resume,
        limit_s=360,
        least_s=150,
        why="killed and gone on equals straight, with batch-invariant kernels",
        environment=exactness.INVARIANT,
    ),
    "unit": Stage(run=pytest_runs.unit, limit_s=120, least_s=30, why="the tests marked gpu that need no engine"),
    "engine-tests": Stage(
        run=engines.engine_tests, limit_s=320, least_s=150, why="lies are caught; the tests marked gpu with an engine"
    ),
    "full": Stage(run=iterate.full, limit_s=240, least_s=120, why="every weight trained, handed over and proven"),
    "gsm8k": Stage(run=runs.gsm8k, limit_s=400, least_s=240, why="the bundled model on real problems"),
    "cohort": Stage(run=engines.cohort, limit_s=180, least_s=60, why="several policies in one engine, none mixed up"),
}

if __name__ == "__main__":
    main(STAGES, __doc__)
