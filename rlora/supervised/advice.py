"""What can be said of a supervised run from its configuration, its examples and its model's shape alone."""

from collections.abc import Iterator
from typing import Any

from rlora.lora.inject import num_parameters
from rlora.lora.learning_rate import Recommendation, recommend_supervised
from rlora.model.sources import model_title
from rlora.supervised.config import SupervisedConfig
from rlora.supervised.data import Examples


def recommended(config: SupervisedConfig, model: Any) -> Recommendation:
    """Return the rate to start from; `model` may be on the meta device, and `config` states the number of updates."""
    shape = model.config.get_text_config()
    return recommend_supervised(
        model_type=shape.model_type,
        hidden_size=shape.hidden_size,
        method=config.method,
        alpha=config.lora.effective_alpha,
        num_steps=config.num_steps,
    )


def rate_warning(config: SupervisedConfig, model: Any) -> str | None:
    """Return a warning when the run's rate (of B) lies outside the window of supervised training; None inside."""
    found = recommended(config, model)
    warning = found.warning(rate_of(config))
    return warning and f"{warning} To start from: {found.rate:.1e}; `rlora check` says where that is from."


def rate_of(config: SupervisedConfig) -> float:
    """Return the rate of a run, that of B."""
    return config.optimizer.learning_rate * config.optimizer.b_rate_ratio


def sizes_line(config: SupervisedConfig, examples: Examples) -> str:
    """Return how much is trained and tested on."""
    tokens = sum(len(example.token_ids) for example in examples.train)
    trained = sum(example.num_trained for example in examples.train)
    return (
        f"{config.data.title}: {len(examples.train):,} examples of {tokens:,} tokens, {trained:,} of them trained; "
        f"{config.num_steps:,} updates of {config.examples_per_step}; {len(examples.test):,} examples held out"
    )


def plan_lines(config: SupervisedConfig, model: Any, examples: Examples | None = None) -> Iterator[str]:
    """Yield what a run will train, on how much, and at which rate; `examples` None where they were not read."""
    lora, base = config.adapters, sum(parameter.numel() for parameter in model.parameters())
    if lora is None:
        yield f"{model_title(config.model)}: every weight, {base:,} numbers; a checkpoint is {12 * base / 1e6:.3g} MB"
    else:
        count = num_parameters(model, lora)
        yield (
            f"{model_title(config.model)}: supervised, rank {lora.rank} on {lora.layers} layers, alpha "
            f"{lora.alpha:g}, {lora.variant}: {count:,} numbers, {100 * count / base:.2g} % of the base's {base:,}"
        )
    if examples is not None:
        yield sizes_line(config, examples)
    found = recommended(config, model)
    rate = rate_of(config)
    yield f"learning rate {rate:.1e} (alpha x rate {found.alpha * rate:.1e}); to start from: {found}"
    if warning := found.warning(rate):
        yield f"Warning: {warning}"
