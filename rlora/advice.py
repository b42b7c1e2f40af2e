"""What can be said of a training run from its configuration and its model's shape alone, before anything is trained."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rlora.lora.config import LoraConfig
from rlora.lora.inject import adapter_shapes, num_parameters
from rlora.lora.learning_rate import Method, Recommendation, recommend
from rlora.models import ModelConfig, empty_model, model_title
from rlora.run_config import RunConfig
from rlora.sampler.base import check_experts

_SOME_STEPS = 50  # length of run for which a rate is recommended where no run is named


def recommended_rate(
    model_config: ModelConfig, model: Any, *, method: Method, rank: int, alpha: float, num_steps: int = _SOME_STEPS
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
    )


def check_layers(config: RunConfig, folder: Path) -> None:
    """Raise ConfigError for layers that the model in `folder` does not have, or that cannot be adapted or served."""
    if config.adapters is not None:
        check_experts(adapter_shapes(empty_model(folder, config.model), config.adapters), config.sampler)


def rate_warning(config: RunConfig, model: Any) -> str | None:
    """Return a warning when the run's rate (of B) lies outside the known window; None when it is inside."""
    recommended = _recommended(config, model)
    warning = recommended.warning(_rate(config))
    return warning and f"{warning} To start from: {recommended}"


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
    rate, recommended = _rate(config), _recommended(config, model)
    yield f"learning rate {rate:.1e} (alpha x rate {recommended.alpha * rate:.1e}); to start from: {recommended}"
    if warning := recommended.warning(rate):
        yield f"Warning: {warning}"


def model_lines(model_config: ModelConfig, model: Any, lora: LoraConfig) -> Iterator[str]:
    """Yield the size of an adapter on a model that no run is named for, and the rates to train it with."""
    yield f"rank {lora.rank} on {lora.layers} layers: {num_parameters(model, lora):,} numbers"
    methods: tuple[tuple[Method, str], ...] = (("lora", "LoRA"), ("full", "full fine-tuning"))
    for method, name in methods:
        recommended = recommended_rate(model_config, model, method=method, rank=lora.rank, alpha=lora.effective_alpha)
        yield f"learning rate to start from, {name}, {_SOME_STEPS} updates: {recommended}"


def _recommended(config: RunConfig, model: Any) -> Recommendation:
    return recommended_rate(
        config.model,
        model,
        method=config.method,
        rank=config.lora.rank,
        alpha=config.lora.effective_alpha,
        num_steps=config.num_steps,
    )


def _rate(config: RunConfig) -> float:
    return config.optimizer.learning_rate * config.optimizer.b_rate_ratio
