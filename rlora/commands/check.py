"""Show what a model is asked, what it says and how that is judged, before anything is trained on it."""

import os
from argparse import ArgumentParser
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from transformers.utils.logging import disable_progress_bar

from rlora.advice import check_layers, memory_lines, model_lines, plan_lines
from rlora.commands.eval import parse
from rlora.config import cli, from_json, with_home
from rlora.evaluation.config import EvalConfig
from rlora.evaluation.engine import Benchmark, check_inputs, draw, engine_of, judge_of, open_sampler
from rlora.evaluation.lengths import fitted
from rlora.evaluation.run import load_benchmarks
from rlora.evaluation.subject import resolve
from rlora.lora.config import LoraConfig
from rlora.model.limits import longest_row
from rlora.model.sources import ModelConfig, config_dir, empty_model, model_title
from rlora.recipes import find_recipe
from rlora.rewards import Judge, doubts_of, explain
from rlora.run_config import RunConfig
from rlora.sampler.base import EngineSpec, Sampler, SamplerConfig
from rlora.sampler.build import build_sampler
from rlora.sampler.capabilities import check_gpu
from rlora.store.run_dir import read_json
from rlora.tasks.files import is_own
from rlora.text import printable, wrapped
from rlora.train.batching import BatchConfig
from rlora.types import Prompt, Sample, SamplingParams
from rlora.verify import Verifier

_FEW = ("--limit", "1", "--samples", "1")  # defaults; what is given behind them overrides
DESCRIPTION = """\
Print the prompt of a benchmark's first problems as the model gets it, completions, and why each is right or wrong, the
size of an adapter, and the learning rate to start from. `rlora check RECIPE [its options]` checks a training run's
configuration instead, and loads no weights. With --gpu GB it also prints where the memory of a GPU of that size would
go (24, 48, 80, 141, ...); `rlora check --gpu GB --model NAME` prints that alone, for runs like GSM8K's.

`rlora check --model NAME`, without --benchmark, reads the model's config.json alone and prints size and rates. `rlora
check RUN` and `rlora check FILE.csv` take a run directory, and problems of your own.

Takes the options of `rlora eval`; --limit problems of each benchmark, --samples completions of each (one and one by
default). Nothing is kept."""


def main(arguments: Sequence[str]) -> None:
    """Run `rlora check`, which takes the options of `rlora eval`, a run directory, or a recipe and its options."""
    gigabytes, arguments = _gpu_of(arguments)
    arguments = [*map(os.path.expanduser, arguments[:1]), *arguments[1:]]
    if arguments and (Path(arguments[0]) / "config.json").is_file():
        arguments = ["--run", *arguments]
    elif arguments and is_own(arguments[0]):
        arguments = ["--limit", "3", "--benchmark", *arguments]
    if arguments and not arguments[0].startswith("-"):
        lines = check_recipe(arguments[0], arguments[1:], gigabytes=gigabytes)
    elif gigabytes is not None:
        lines = check_memory(arguments, gigabytes)
    elif _is_model_alone(arguments):
        lines = check_model(parse(arguments, description=DESCRIPTION, program="rlora check"))
    else:
        disable_progress_bar()
        lines = check(parse([*_FEW, *arguments], description=DESCRIPTION, program="rlora check"))
    for line in lines:
        print(printable(line))


def _gpu_of(arguments: Sequence[str]) -> tuple[float | None, list[str]]:
    """Return what --gpu says, and the other arguments; ends the process with code 2 where it is no number."""
    parser = ArgumentParser(prog="rlora check", add_help=False, allow_abbrev=False)
    parser.add_argument("--gpu", type=float)
    known, rest = parser.parse_known_args(arguments)
    return known.gpu, rest


def _is_model_alone(arguments: Sequence[str]) -> bool:
    given = {argument.partition("=")[0] for argument in arguments}
    return "--model" in given and given.isdisjoint(("--run", "--adapter", "--benchmark"))


def check_model(config: EvalConfig) -> Iterator[str]:
    """Yield the size of an adapter of rank 1 on the model and the rates to start from; only its config.json is read."""
    model_config = resolve(config).model
    yield model_title(model_config)
    yield from wrapped(model_lines(model_config, empty_model(config_dir(model_config), model_config), LoraConfig()))
    yield "To see what it is asked, what it says and how that is judged, add --benchmark NAME."


def check_memory(arguments: Sequence[str], gigabytes: float) -> Iterator[str]:
    """Yield where a GPU's memory would go in a run of GSM8K's size (64 problems x 16 samples of at most 1,024 tokens)
    on the model that the arguments name.
    """
    parser = ArgumentParser(prog="rlora check --gpu GB", allow_abbrev=False)
    parser.add_argument("--model", required=True, help="a folder with a config.json, or a name on the Hugging Face hub")
    parser.add_argument("--max-tokens", type=int, default=1024, help="longest completion")
    parser.add_argument("--rank", type=int, default=1, help="of the adapter")
    options = parser.parse_args(arguments)
    config = RunConfig(
        run_dir="",
        problems_per_step=64,
        samples_per_problem=16,
        model=ModelConfig(name=os.path.expanduser(options.model)),
        lora=LoraConfig(rank=options.rank),
        sampling=SamplingParams(max_tokens=options.max_tokens),
        batch=BatchConfig(tokens_per_micro_batch=16384),
        sampler=SamplerConfig(kv_cache_gb=0, max_num_seqs=0),
    )
    yield from wrapped(memory_lines(config, empty_model(config_dir(config.model), config.model), gigabytes))


def check_recipe(name: str, arguments: Sequence[str], *, gigabytes: float | None = None) -> Iterator[str]:
    """Yield what a recipe's command would train and at which rate, and where the memory of a GPU would go; ConfigError
    for a wrong value or for no recipe.
    """
    recipe = find_recipe(name)
    program = f"rlora check {name}"
    config = with_home(cli(recipe.presets, description=recipe.description, arguments=arguments, program=program))
    config.check()
    folder = config_dir(config.model)
    check_layers(config, folder)
    model = empty_model(folder, config.model)
    yield from wrapped(plan_lines(config, model))
    if gigabytes is not None:
        yield from wrapped(memory_lines(config, model, gigabytes))


def check(config: EvalConfig, *, make_sampler: Callable[[EngineSpec], Sampler] = build_sampler) -> Iterator[str]:
    """Yield the lines of the report."""
    config.check()
    check_gpu(config.sampler)
    subject = resolve(config)
    folder, benchmarks = load_benchmarks(config, subject)
    model = empty_model(folder, subject.model)
    config, cut = fitted(config, longest_row(model.config))
    if cut:
        yield cut
    check_inputs(config, subject, folder, benchmarks)
    policy_file = subject.policy_file
    adapter = "without an adapter" if policy_file is None else f"with {policy_file.parent}"
    yield f"{model_title(subject.model)} {adapter}, temperature {config.temperature:g}, {config.max_tokens} tokens"
    if config.run is not None and config.adapter is None:
        yield from wrapped(plan_lines(from_json(RunConfig, read_json(Path(config.run) / "config.json")), model))
    else:
        yield from wrapped(model_lines(subject.model, model, subject.lora))
    with (
        Verifier(config.verifier) as verifier,
        open_sampler(config, subject, folder, benchmarks, make_sampler) as served,
    ):
        for benchmark in benchmarks:
            judge = judge_of(config, benchmark, verifier)
            engine = engine_of(config, benchmark, served, judge)
            yield from wrapped(doubts_of(judge, benchmark.problems))
            for problem in benchmark.problems:
                sampled = draw(config, engine, [problem], policy=None if policy_file is None else 0)
                if not sampled:
                    yield f"\n=== {problem.id}: its prompt is longer than {config.sampler.max_prompt_tokens} tokens"
                for asked in sampled:
                    yield from _asked(benchmark, asked.prompt)
                    for completion in asked.completions:
                        yield from _judged(judge, Sample(problem=problem, completion=completion))


def _asked(benchmark: Benchmark, prompt: Prompt) -> Iterator[str]:
    kind = "chat" if benchmark.renderer.is_chat else "plain"
    problem = prompt.problem
    yield ""
    yield f"=== {problem.id}, {kind} template, {len(prompt.token_ids)} tokens, gold {problem.answer!r}"
    yield prompt.text


def _judged(judge: Judge, sample: Sample) -> Iterator[str]:
    completion = sample.completion
    yield f"--- {len(completion.token_ids)} tokens, ended by {completion.stop.value}"
    yield completion.text
    yield "---"
    yield from explain(judge, sample)
