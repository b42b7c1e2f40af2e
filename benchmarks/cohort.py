"""Eight policies at once against one after another, on the quickstart's problems; prints one JSON line.

    python -m benchmarks.cohort sampling
    python -m benchmarks.cohort steps FOLDER [--num-steps 5]

`sampling` times the engine's calls in turns: one call for all, a call a policy, and one policy with as many rows.
`steps` times whole runs: eight of `rlora train`, one after another, and the cohort of the same eight, each in a process
of its own, with their starts and without; final scores are left out of both.
"""

import json
import statistics
import subprocess
import sys
import time
from argparse import ArgumentParser
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.sampling import MODEL, change, parts
from rlora.lora.peft.peft_format import served_modules
from rlora.model.sources import end_token_ids, load_tokenizer
from rlora.sampler.base import EngineSpec, SamplerConfig
from rlora.store.run_dir import metrics_rows
from rlora.types import SampleRequest, SamplingParams

NUM_POLICIES, NUM_PROBLEMS, NUM_SAMPLES, MAX_TOKENS, ROUNDS = 8, 8, 4, 24, 3
RATES, SEEDS = ("1.5e-4", "3e-4", "6e-4", "1e-3"), ("0", "1")


def sampling() -> dict[str, Any]:
    from rlora.sampler.vllm.engine import VllmSampler

    folder, policy, prompts = parts()
    sampler = VllmSampler(
        EngineSpec(
            folder=folder,
            model=MODEL,
            lora=policy.config,
            config=SamplerConfig(max_prompt_tokens=128),
            end_token_ids=end_token_ids(folder, load_tokenizer(folder, MODEL)),
            target_modules=tuple(served_modules(policy.snapshot())),
            max_length=256,
            num_policies=NUM_POLICIES,
        )
    )
    for number in range(NUM_POLICIES):
        change(policy, number)
        sampler.load([replace(policy.snapshot(), policy=number)])
    drawn = SamplingParams(max_tokens=MAX_TOKENS)

    def requests(number: int, *, num_problems: int = NUM_PROBLEMS) -> list[SampleRequest]:
        return [
            SampleRequest(token_ids=prompts[n % len(prompts)], num_samples=NUM_SAMPLES, key=(n,), policy=number)
            for n in range(num_problems)
        ]

    def timed(calls: list[list[SampleRequest]]) -> float:
        """Return seconds a token."""
        start, tokens = time.perf_counter(), 0
        for call in calls:
            tokens += sum(len(one.token_ids) for group in sampler.sample(call, drawn, seed=0) for one in group)
        return (time.perf_counter() - start) / tokens

    each = [requests(number) for number in range(NUM_POLICIES)]
    arms = {
        "together": [[request for call in each for request in call]],
        "one after another": each,
        "one policy, as many rows": [requests(0, num_problems=NUM_POLICIES * NUM_PROBLEMS)],
    }
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    alone = [group for call in each for group in sampler.sample(call, drawn, seed=0)]
    at_once = sampler.sample(arms["together"][0], drawn, seed=0)
    for _ in range(ROUNDS):
        for name, calls in arms.items():
            seconds[name].append(timed(calls))
    sampler.close()
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    pairs = [(one, other) for a, b in zip(alone, at_once, strict=True) for one, other in zip(a, b, strict=True)]
    return {
        "tokens_per_second": {name: 1 / value for name, value in medians.items()},
        "together / one after another": medians["together"] / medians["one after another"],
        "together / one policy": medians["together"] / medians["one policy, as many rows"],
        "completions": len(pairs),
        "with the tokens of a call alone": sum(one.token_ids == other.token_ids for one, other in pairs),
        "with the bits of a call alone": sum(one.logprobs == other.logprobs for one, other in pairs),
    }


def steps(folder: Path, num_steps: int) -> dict[str, Any]:
    common = [
        *("--problems-per-step", str(NUM_PROBLEMS), "--samples-per-problem", str(NUM_SAMPLES)),
        *("--num-steps", str(num_steps), "--evaluation.num-problems", "1", "--evaluation.every", "0"),
    ]
    alone: list[dict[str, float]] = []
    for rate in RATES:
        for seed in SEEDS:
            run_dir = folder / f"alone-lr{float(rate):g}-s{seed}"
            member = ["--optimizer.learning-rate", rate, "--seed", seed, "--data-seed", "0"]
            alone.append(_timed(["train", "arithmetic", *common, *member, "--run-dir", str(run_dir)], [run_dir]))
    cohort = folder / "cohort"
    members = ["--optimizer.learning-rate", *RATES, "--seed", *SEEDS]
    command = ["sweep", "arithmetic", *common, *members, "--run-dir", str(cohort)]
    together = _timed(command, sorted((cohort / "members").glob("*/")))
    return {
        "alone": alone,
        "cohort": together,
        "steps, without starts": together["steps"] / sum(one["steps"] for one in alone),
        "all, with starts": together["all"] / sum(one["all"] for one in alone),
        "bits": _equal(folder, num_steps),
    }


def _timed(arguments: list[str], run_dirs: list[Path]) -> dict[str, float]:
    """Return the seconds of a command, and those from its first step's begin to its last step's end."""
    start = time.time()
    done = subprocess.run([sys.executable, "-m", "rlora", *arguments], capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(done.stderr)
    total = time.time() - start
    parent = run_dirs[0].parent if run_dirs else Path(arguments[-1]) / "members"
    found = run_dirs or sorted(path.parent for path in parent.glob("*/metrics.jsonl"))
    rows = [metrics_rows(path) for path in found]
    return {"all": total, "steps": max(sum(row["seconds/step"] for row in each) for each in rows)}


def _equal(folder: Path, num_steps: int) -> dict[str, int]:
    """Return how many rollouts of the cohort's members are, token for token and number for number, those alone."""
    counts = {"rollouts": 0, "equal tokens": 0, "equal log-probabilities": 0, "equal adapters": 0}
    for run_dir in sorted(folder.glob("alone-*")):
        member = folder / "cohort" / "members" / run_dir.name.removeprefix("alone-")
        adapters = [path / "adapter" / "adapter_model.safetensors" for path in (run_dir, member)]
        counts["equal adapters"] += adapters[0].read_bytes() == adapters[1].read_bytes()
        for step in range(num_steps):
            files = [path / "rollouts" / f"step-{step:06d}.jsonl" for path in (run_dir, member)]
            lines = [[json.loads(line) for line in file.read_text().splitlines()] for file in files]
            for one, other in zip(*lines, strict=True):
                counts["rollouts"] += 1
                counts["equal tokens"] += one["token_ids"] == other["token_ids"]
                counts["equal log-probabilities"] += one["logprobs"] == other["logprobs"]
    return counts


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=("sampling", "steps"))
    parser.add_argument("folder", nargs="?", type=Path, default=Path("build/cohort"))
    parser.add_argument("--num-steps", type=int, default=5)
    options = parser.parse_args()
    print(json.dumps(sampling() if options.part == "sampling" else steps(options.folder, options.num_steps), indent=2))


if __name__ == "__main__":
    main()
