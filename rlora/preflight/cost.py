"""What a whole run takes, from a few completions: hours and gigabytes."""

import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from rlora.advice import ROLLOUT_BYTES
from rlora.diagnosis import Finding
from rlora.lora.inject import num_parameters
from rlora.model.base import Base
from rlora.model.sources import empty_model, model_dir
from rlora.run_config import RunConfig
from rlora.seeding import derive_seed
from rlora.train.policy import Policy
from rlora.train.trainer import Trainer
from rlora.train.warm_up import warm_up
from rlora.types import Group

_CHECKPOINT_BYTES = 12  # of a number of the policy: itself and AdamW's two moments


def completions_of(config: RunConfig) -> int:
    """Return how many completions a run samples, without further rounds."""
    return config.num_steps * config.problems_per_step * config.samples_per_problem


def seconds_of_training(config: RunConfig, folder: Path, groups: Sequence[Group]) -> float:
    """Return the seconds that training on the groups takes once everything is compiled; nothing is kept of it.

    All completions are trained on, as if every group had signal.
    """
    policy = Policy.on(Base.load(folder, config.model), config.adapters, seed=derive_seed(config.seed, "policy", 0))
    warm_up(policy)
    trainer = Trainer(policy, config.optimizer, config.loss, config.batch, temperature=config.sampling.temperature)
    seconds = 0.0
    for version in range(2):  # the first time compiles
        own = [_of_version(group, version) for group in groups]
        advantages = [[(-1.0) ** number for number in range(len(group.rollouts))] for group in own]
        start = time.perf_counter()
        trainer.step(own, advantages)
        seconds = time.perf_counter() - start
    return seconds


def _of_version(group: Group, version: int) -> Group:
    rollouts = [replace(one, completion=replace(one.completion, policy=0, version=version)) for one in group.rollouts]
    return replace(group, rollouts=tuple(rollouts))


def cost_lines(
    config: RunConfig, num_tokens: int, groups: Sequence[Group], sampling: float, training: float | None
) -> Iterator[str]:
    """Yield tokens a second, and the time and the disk of the whole run; `sampling` and `training` are the seconds that
    the groups took, None where that was not measured.
    """
    count = sum(len(group.rollouts) for group in groups)
    times = completions_of(config) / max(1, count)
    yield f"sampling: {num_tokens / max(sampling, 1e-9):,.0f} tokens/s; more at once are faster"
    parts = f"{hours(times * sampling)} sampling"
    if training is None:
        yield f"time: at most {parts} for {config.num_steps} steps; training was not measured beside an engine on a GPU"
    else:
        total = hours(times * (sampling + training))
        parts = f"{parts}, {hours(times * training)} training if every group has signal"
        yield f"time: about {total} for {config.num_steps} steps ({parts}), without evaluations"
    free = shutil.disk_usage(_existing(Path(config.run_dir))).free
    yield f"disk: about {size(disk_bytes(config, groups))} ({size(free)} free)"


def disk_bytes(config: RunConfig, groups: Sequence[Group]) -> float:
    """Return what rollouts of the sampled length and checkpoints take on disk."""
    lengths = [len(one.completion.token_ids) for group in groups for one in group.rollouts]
    kept = config.rollouts.num_kept(config.num_steps)
    rollouts = kept * completions_of(config) / config.num_steps * sum(lengths) / max(1, len(lengths)) * ROLLOUT_BYTES
    model = empty_model(model_dir(config.model), config.model)
    adapters, checkpoint = config.adapters, config.resolved().checkpoint
    numbers = num_parameters(model, adapters) if adapters else sum(each.numel() for each in model.parameters())
    number = (checkpoint.keep_last or 1) + (config.num_steps // checkpoint.keep_every if checkpoint.keep_every else 0)
    return rollouts + number * numbers * _CHECKPOINT_BYTES


def disk_finding(config: RunConfig, groups: Sequence[Group]) -> Iterator[Finding]:
    """Yield a finding where the run would fill the disk."""
    needed, free = disk_bytes(config, groups), shutil.disk_usage(_existing(Path(config.run_dir))).free
    if needed > free:
        yield Finding(
            name="disk",
            what=f"the run takes about {size(needed)}, and {size(free)} are free in {config.run_dir}.",
            remedy="Keep fewer rollouts (--rollouts.keep-last, --rollouts.keep-every) and checkpoints "
            "(--checkpoint.keep-last, --checkpoint.keep-every), or name another disk (--run-dir).",
        )


def hours(seconds: float) -> str:
    """Return a time as one says it.

    Example:
        >>> hours(90), hours(5400)
        ('1.5 min', '1.5 h')
    """
    if seconds < 60:
        return f"{seconds:.2g} s"
    return f"{seconds / 60:.2g} min" if seconds < 3600 else f"{seconds / 3600:,.1f} h"


def size(number: float) -> str:
    """Return a number of bytes as one says it."""
    return f"{number / 1e6:.2g} MB" if number < 1e9 else f"{number / 1e9:,.3g} GB"


def _existing(path: Path) -> Path:
    """Return the path, or the nearest folder above it that is there."""
    return next(each for each in (path.absolute(), *path.absolute().parents) if each.exists())
