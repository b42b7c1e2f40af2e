"""Show what a model is asked, what it says and how that is judged, before anything is trained on it."""

from collections.abc import Callable, Iterator, Sequence
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

from transformers.utils.logging import disable_progress_bar

from rlora.advice import check_layers, model_lines, plan_lines
from rlora.benchmark.config import EvalConfig
from rlora.benchmark.engine import Benchmark, open_sampler
from rlora.benchmark.run import load_benchmarks
from rlora.benchmark.subject import resolve
from rlora.commands.eval import parse
from rlora.config import cli, from_json
from rlora.errors import ConfigError
from rlora.models import empty_model, model_dir, model_title
from rlora.run_config import RunConfig
from rlora.run_dir import read_json
from rlora.sampler.base import EngineSpec, Sampler, build_sampler
from rlora.types import Completion, Problem, Prompt, SampleRequest, StopReason
from rlora.verify import JudgeRequest, Verifier

_FEW = ("--limit", "1", "--samples", "1")  # defaults; what is given behind them overrides
DESCRIPTION = """\
Print the prompt of a benchmark's first problems as the model gets it, completions, and why each is right or wrong, the
size of an adapter, and the learning rate to start from. `rlora check RECIPE.py [its options]` checks a training run's
configuration instead, and loads no weights.

Takes the options of `rlora eval`; --limit problems of each benchmark, --samples completions of each (one and one by
default). Nothing is kept."""


def main(arguments: Sequence[str]) -> None:
    """Run `rlora check`, which takes the options of `rlora eval`, or a recipe and its options."""
    if arguments and arguments[0].endswith(".py"):
        for line in check_recipe(Path(arguments[0]), arguments[1:]):
            print(line)
        return
    config = parse([*_FEW, *arguments], description=DESCRIPTION)
    disable_progress_bar()
    for line in check(config):
        print(line)


def check_recipe(path: Path, arguments: Sequence[str]) -> Iterator[str]:
    """Yield what a recipe's command would train and at which rate; ConfigError for a wrong value or for no recipe."""
    spec = spec_from_file_location(path.stem, path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise ConfigError(f"{path} is not a file; name a recipe, as in `rlora check recipes/gsm8k.py`.")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    presets = getattr(module, "PRESETS", {})
    if not presets or not all(isinstance(preset, RunConfig) for preset in presets.values()):
        raise ConfigError(f"{path} is not a recipe of a training run: it has no PRESETS of RunConfig.")
    config = cli(presets, description=module.__doc__ or "", arguments=arguments)
    config.check()
    folder = model_dir(config.model)
    check_layers(config, folder)
    yield from plan_lines(config, empty_model(folder, config.model))


def check(config: EvalConfig, *, make_sampler: Callable[[EngineSpec], Sampler] = build_sampler) -> Iterator[str]:
    """Yield the lines of the report."""
    config.check()
    subject = resolve(config)
    folder, benchmarks = load_benchmarks(config, subject)
    policy_file = subject.policy_file
    served = "without an adapter" if policy_file is None else f"with {policy_file.parent}"
    yield f"{model_title(subject.model)} {served}, temperature {config.temperature:g}, {config.max_tokens} tokens"
    model = empty_model(folder, subject.model)
    if config.run is not None and config.adapter is None:
        yield from plan_lines(from_json(RunConfig, read_json(Path(config.run) / "config.json")), model)
    else:
        yield from model_lines(subject.model, model, subject.lora)
    with (
        Verifier(config.verifier) as verifier,
        open_sampler(config, subject, folder, benchmarks, make_sampler) as (sampler, _, _),
    ):
        for benchmark in benchmarks:
            for problem in benchmark.problems:
                prompt = benchmark.renderer.render(problem)
                yield from _asked(benchmark, problem, prompt)
                request = SampleRequest(
                    token_ids=prompt.token_ids,
                    num_samples=config.samples,
                    key=("benchmark", problem.id),
                    policy=None if policy_file is None else 0,
                )
                for completion in sampler.sample([request], config.sampling, seed=config.seed)[0]:
                    yield from _judged(benchmark, problem, completion, verifier)


def _asked(benchmark: Benchmark, problem: Problem, prompt: Prompt) -> Iterator[str]:
    kind = "chat" if benchmark.renderer.is_chat else "plain"
    yield ""
    yield f"=== {problem.id}, {kind} template, {len(prompt.token_ids)} tokens, gold {problem.answer!r}"
    yield prompt.text


def _judged(benchmark: Benchmark, problem: Problem, completion: Completion, verifier: Verifier) -> Iterator[str]:
    yield f"--- {len(completion.token_ids)} tokens, ended by {completion.stop.value}"
    yield completion.text
    request = JudgeRequest(
        text=completion.text,
        gold=problem.answer,
        question=problem.question,
        is_truncated=completion.stop is StopReason.LENGTH,
        last_number=benchmark.task.last_number,
        is_number=benchmark.task.is_number,
    )
    yield "---"
    yield from verifier.explain(request).lines()
