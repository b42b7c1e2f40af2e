"""The pre-flight of a supervised run: its data as it will be trained on, its rate, and the time that it takes."""

import statistics
import time
from collections.abc import Iterator

import torch

from rlora.diagnosis import Finding
from rlora.diagnosis.finding import per_cent
from rlora.diagnosis.training import outside
from rlora.model.sources import empty_model, model_dir
from rlora.preflight.cost import hours
from rlora.preflight.versions import version_findings
from rlora.supervised import advice
from rlora.supervised.build import make_trainer, read_examples
from rlora.supervised.config import SupervisedConfig
from rlora.supervised.data import Examples
from rlora.text import wrapped

_MANY_CUT = 0.1


def check_supervised(config: SupervisedConfig, findings: list[Finding], *, is_measured: bool) -> Iterator[str]:
    """Yield what a supervised run would train, and add to `findings` what should be changed before.

    Its data is read; of its model no weights are, unless `is_measured`: then an update is made and thrown away. Raises
    ConfigError or DataError for settings that no run can have.
    """
    config.check()
    folder = model_dir(config.model)
    examples = read_examples(config, folder)
    config = config.with_updates(len(examples.train))
    model = empty_model(folder, config.model)
    yield from wrapped(advice.plan_lines(config, model, examples))
    found = outside(advice.recommended(config, model), advice.rate_of(config))
    findings += [each for each in (found, *version_findings(), _cut(config, examples)) if each is not None]
    yield from wrapped(_lengths(config, examples))
    if is_measured:
        yield from wrapped(_time(config, examples))


def _lengths(config: SupervisedConfig, examples: Examples) -> Iterator[str]:
    lengths = [len(example.token_ids) for example in examples.train]
    cut = _share_cut(config, examples)
    yield f"lengths: {statistics.median(lengths):.0f} tokens in the median, {max(lengths)} at most; " + (
        f"{per_cent(cut)} reach --max-tokens {config.max_tokens}"
    )


def _share_cut(config: SupervisedConfig, examples: Examples) -> float:
    return sum(len(example.token_ids) >= config.max_tokens for example in examples.train) / len(examples.train)


def _cut(config: SupervisedConfig, examples: Examples) -> Finding | None:
    cut = _share_cut(config, examples)
    if cut < _MANY_CUT:
        return None
    return Finding(
        name="truncation",
        what=f"{per_cent(cut)} of the examples reach the limit of {config.max_tokens} tokens: what they say behind it "
        "is never trained on, their end least of all.",
        remedy=f"Raise --max-tokens (now {config.max_tokens}), or leave long examples out.",
    )


def _time(config: SupervisedConfig, examples: Examples) -> Iterator[str]:
    """Yield the time of the run, by the second of two updates: the first compiles."""
    if config.num_threads is not None:
        torch.set_num_threads(config.num_threads)
    trainer = make_trainer(config, model_dir(config.model), is_new=True)
    chosen, seconds = examples.train[: config.examples_per_step], 0.0
    for _ in range(2):
        start = time.perf_counter()
        trainer.step_supervised(chosen)
        seconds = time.perf_counter() - start
    tokens = sum(len(example.token_ids) for example in chosen)
    yield f"training: {tokens / seconds:,.0f} tokens/s; about {hours(seconds * config.num_steps)} for " + (
        f"{config.num_steps:,} updates, without evaluations"
    )
