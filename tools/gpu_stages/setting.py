"""A run's own parts, on a made model and made-up problems: what the stages measure is what a run does."""

import importlib.util
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from gpu_stages.stage import GIB, ROOT, Clock, Context, used_memory

_TEXT = "a train leaves with apples and pays each friend half of what remains after the price rises by"
_PROMPT_WORDS = 70  # some 100 tokens, as a problem of GSM8K has


def recipe(name: str) -> Any:
    """Return the GPU defaults of a recipe."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "recipes" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.PRESETS["gpu"]


def run_config(context: Context, folder: Path, name: str = "gsm8k", **changes: Any) -> Any:
    """Return a recipe's GPU defaults with the model in `folder`; in a rehearsal small, with the torch sampler."""
    preset = recipe(name)
    model = replace(preset.model, name=str(folder), compile="off")
    config = replace(preset, run_dir=str(context.out / "run"), model=model, optimizer=_quick(preset.optimizer))
    config = replace(config, **changes)
    if context.is_tiny:
        config = replace(
            config,
            num_threads=1,
            problems_per_step=4,
            samples_per_problem=4,
            model=replace(config.model, dtype="float32"),
            sampling=replace(config.sampling, max_tokens=8),
            batch=replace(config.batch, tokens_per_micro_batch=512, tokens_per_row=256),
            sampler=replace(config.sampler, kind="torch", kv_cache_gb=1.0),
        )
    config.check()
    return config


def _quick(optimizer: Any) -> Any:
    """A rate at which one update of random weights can be told from none, so that the proof has something to say."""
    return replace(optimizer, learning_rate=1e-3)


def problems(count: int) -> list[Any]:
    """Return made-up problems of GSM8K's length."""
    from rlora.types import Problem

    words = _TEXT.split()
    texts = (
        " ".join(words[(index * 7 + place * (index % 5 + 1)) % len(words)] for place in range(_PROMPT_WORDS))
        for index in range(count)
    )
    return [
        Problem(id=f"made/{index}", question=f"{text}? ({index})", answer="7", source="made")
        for index, text in enumerate(texts)
    ]


def rewarded(groups: Sequence[Any]) -> list[Any]:
    """Reward every third completion of a group: random weights solve nothing, and every group has to train."""
    return [
        replace(
            group,
            rollouts=tuple(
                replace(rollout, verdict=replace(rollout.verdict, reward=float(n % 3 == 0)))
                for n, rollout in enumerate(group.rollouts)
            ),
        )
        for group in groups
    ]


@contextmanager
def assembled(context: Context, config: Any, folder: Path, *, ballast: int = 0) -> Iterator[Any]:
    """Yield a run's parts, with the first version swapped in and proven; say how long that took and what it took."""
    from rlora.assemble import assemble
    from rlora.rewards import open_judge
    from rlora.sampler.build import build_sampler
    from rlora.verify import Verifier

    clock = Clock(ballast)
    verifier = Verifier(config.verifier)
    try:
        with clock.timed("start"):
            parts = assemble(config, folder, problems(16), open_judge("number", verifier), build_sampler)
        try:
            with clock.timed("first_swap"):
                parts.hot_swap.swap()
            context.say(
                started=True,
                start_s=round(clock.seconds["start"], 1),
                first_swap_s=round(clock.seconds["first_swap"], 2),
                tokens_allowed=parts.trainer.budget.tokens,
                planned_gib=planned_gib(parts),
                peak_gib=clock.peak_gib,
                **used_memory(),
            )
            yield parts
        finally:
            parts.sampler.close()
    finally:
        verifier.close()


def planned_gib(parts: Any) -> dict[str, float] | None:
    """Return what the run planned to take of the card, in GiB by part; None where memory did not decide (the CPU)."""
    from rlora.train.memory_plan import MemoryPlan

    if not isinstance(parts.plan, MemoryPlan):
        return None
    names = ("total", "taken", "engine_weights", "reserved", "batches", "cache", "peak")
    return {name: round(getattr(parts.plan, name) / GIB, 2) for name in names}
