"""What can be said of a training run from its configuration and its model's shape alone, before anything is trained."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from rlora.errors import OutOfMemoryError
from rlora.lora.config import LoraConfig
from rlora.lora.inject import adapter_shapes, num_parameters
from rlora.lora.learning_rate import Method, Recommendation, recommend
from rlora.model.logprobs import chunk_tokens
from rlora.model.sources import DTYPES, ModelConfig, empty_model, model_title, num_weights
from rlora.run_config import RunConfig
from rlora.sampler.capabilities import capabilities_of, check_experts
from rlora.train.batch_memory import DecoderSizes, expected_batch_memory
from rlora.train.card import GIB, Card
from rlora.train.memory_plan import MemoryPlan, Workload, plan_memory

_SOME_STEPS = 50  # length of run for which a rate is recommended where no run is named
ROLLOUT_BYTES = 34
"""Of a token in rollouts/: its id, its log-probability and its text; measured on GSM8K."""
_TRAINED_BYTES = 16  # of an adapter's number: vector, gradient and AdamW's two moments
_FULL_BYTES = (
    20  # of a weight that is trained: those, the model's rounded copy and the base's (rlora/full/parameters.py)
)
_LEAST_TOKENS, _LEAST_TOKENS_OF_GPU = 128, 1024  # of a micro-batch, on the CPU and on a GPU


def recommended_rate(
    model_config: ModelConfig,
    model: Any,
    *,
    method: Method,
    rank: int,
    alpha: float,
    num_steps: int = _SOME_STEPS,
    data: str | None = None,
) -> Recommendation:
    """Return the learning rate to start from for a loaded model, or one on the meta device."""
    shape = model.config.get_text_config()
    return recommend(
        model_name=model_config.name,
        model_type=shape.model_type,
        hidden_size=shape.hidden_size,
        method=method,
        rank=rank,
        alpha=alpha,
        num_steps=num_steps,
        data=data,
    )


def workload_of(config: RunConfig) -> Workload:
    """Return what a run asks of the memory."""
    completions, sampler = (
        round(config.oversample * config.problems_per_step) * config.samples_per_problem,
        config.sampler,
    )
    row_tokens = sampler.max_prompt_tokens + config.sampling.max_tokens
    return Workload(
        row_tokens=row_tokens,
        max_length=max(row_tokens, sampler.max_prompt_tokens + config.evaluation.max_tokens),
        micro_batch_tokens=config.batch.tokens_per_micro_batch,
        num_sequences=sampler.max_num_seqs,
        num_completions=completions,
        cache_bytes=int(sampler.kv_cache_gb * GIB) or None,
        batch_bytes=None if config.memory_budget is None else int(config.memory_budget * GIB),
        is_recomputed=config.batch.recompute,
        least_tokens=_LEAST_TOKENS_OF_GPU if torch.cuda.is_available() or sampler.kv_cache_gb == 0 else _LEAST_TOKENS,
    )


def plan_on_paper(
    config: RunConfig, model: Any, card: Card, *, engine: Mapping[str, int] = MappingProxyType({})
) -> MemoryPlan:
    """Return where the memory of an empty card would go in a run; `model` may be on the meta device.

    `engine` holds sizes that the engine had before and keeps. Raises OutOfMemoryError where the run would not fit.
    """
    sizes, dtype = DecoderSizes.of(model.config), DTYPES[config.model.dtype]
    options = {
        "itemsize": dtype.itemsize,
        "chunk_tokens": chunk_tokens(torch.device("cuda")),
        "score_block": 0,
        "is_compiled": config.model.compile == "on",
    }
    plain = expected_batch_memory(sizes, is_recomputed=False, **options)
    recomputed = expected_batch_memory(sizes, is_recomputed=True, **options)
    base = num_weights(model)
    trained = base * _FULL_BYTES if config.adapters is None else num_parameters(model, config.adapters) * _TRAINED_BYTES
    taken = trained + (0 if config.adapters is None else base * dtype.itemsize)
    return plan_memory(
        Card(total=card.total, free=card.free - taken),
        sizes,
        replace(workload_of(config), **engine),
        batch_memory=(plain, recomputed),
        weight_bytes=base * dtype.itemsize,
        itemsize=dtype.itemsize,
        is_shared=config.sampler.shares_base,
    )


def memory_lines(config: RunConfig, model: Any, gigabytes: float) -> Iterator[str]:
    """Yield where the memory of a card of so many GB would go, or why the run does not fit on it."""
    if not capabilities_of(config.sampler).is_planned:
        config = replace(config, sampler=replace(config.sampler, kind="vllm"))
    yield f"Memory of a GPU of {gigabytes:g} GB, in GiB (calculated):"
    try:
        plan = plan_on_paper(config, model, Card.named(gigabytes))
    except OutOfMemoryError as error:
        yield f"  does not fit: {error}"
    else:
        yield from (f"  {line}" for line in plan.lines())


def check_layers(config: RunConfig, folder: Path) -> None:
    """Raise ConfigError for layers that the model in `folder` does not have, or that cannot be adapted or served."""
    if config.adapters is not None:
        check_experts(adapter_shapes(empty_model(folder, config.model), config.adapters), config.sampler)


def rate_warning(config: RunConfig, model: Any) -> str | None:
    """Return a warning when the run's rate (of B) lies outside the known window; None when it is inside."""
    found, rate = recommended(config, model)
    warning = found.warning(rate)
    return warning and f"{warning} To start from: {found.rate:.1e}; `rlora check` says where that is from."


def rollout_bytes(config: RunConfig) -> int:
    """Return what the rollouts that a run keeps take on disk, if every completion is as long as it may be."""
    completions = round(config.oversample * config.problems_per_step) * config.samples_per_problem
    num_steps = config.rollouts.num_kept(config.num_steps)
    return num_steps * completions * config.sampling.max_tokens * ROLLOUT_BYTES


def plan_lines(config: RunConfig, model: Any) -> Iterator[str]:
    """Yield what a run will train, on how much, and at which rate; `model` may be on the meta device."""
    lora, base = config.adapters, sum(parameter.numel() for parameter in model.parameters())
    if lora is None:
        yield f"{model_title(config.model)}: every weight, {base:,} numbers; a checkpoint is {12 * base / 1e6:.3g} MB"
    else:
        count = num_parameters(model, lora)
        yield (
            f"{model_title(config.model)}: rank {lora.rank} on {lora.layers} layers, alpha {lora.alpha:g}, "
            f"{lora.variant}: {count:,} numbers, {100 * count / base:.2g} % of the base's {base:,}; "
            f"{4 * count / 1e6:.3g} MB"
        )
    yield (
        f"{config.data.title}: {config.num_steps} iterations of {config.problems_per_step} problems x "
        f"{config.samples_per_problem} samples of at most {config.sampling.max_tokens} tokens"
    )
    megabytes = rollout_bytes(config) / 1e6
    size = f"{megabytes:.2g} MB" if megabytes < 1000 else f"{megabytes / 1000:.3g} GB"
    yield f"rollouts on disk: at most {size}, if every completion has {config.sampling.max_tokens} tokens"
    found, rate = recommended(config, model)
    yield f"learning rate {rate:.1e} (alpha x rate {found.alpha * rate:.1e}); to start from: {found}"
    if warning := found.warning(rate):
        yield f"Warning: {warning}"


def model_lines(model_config: ModelConfig, model: Any, lora: LoraConfig) -> Iterator[str]:
    """Yield the size of an adapter on a model that no run is named for, and the rates to train it with."""
    yield f"rank {lora.rank} on {lora.layers} layers: {num_parameters(model, lora):,} numbers"
    methods: tuple[tuple[Method, str], ...] = (("lora", "LoRA"), ("full", "full fine-tuning"))
    for method, name in methods:
        sums, words = (
            recommended_rate(model_config, model, method=method, rank=lora.rank, alpha=lora.effective_alpha, data=data)
            for data in (None, "gsm8k")
        )
        yield f"learning rate to start from, {name}, {_SOME_STEPS} updates: {sums}"
        if words != sums:
            yield f"the same on problems that it hardly solves: {words}"


def recommended(config: RunConfig, model: Any) -> tuple[Recommendation, float]:
    """Return the rate to start a run from, with its window, and the rate (of B) that the run has."""
    found = recommended_rate(
        config.model,
        model,
        method=config.method,
        rank=config.lora.rank,
        alpha=config.lora.effective_alpha,
        num_steps=config.num_steps,
        data=config.data.task_name,
    )
    return found, config.optimizer.learning_rate * config.optimizer.b_rate_ratio
