"""Say what is wrong: with a run that was trained, with one before it is, or with what a model answers."""

import itertools
import os
from argparse import ArgumentParser
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

from transformers.utils.logging import disable_progress_bar

from rlora.advice import memory_lines, model_lines, plan_lines
from rlora.commands.eval import parse
from rlora.config import cli, from_json, with_home
from rlora.diagnosis import Finding, diagnose
from rlora.diagnosis.evidence import YOUNG
from rlora.errors import ConfigError
from rlora.evaluation.config import EvalConfig
from rlora.evaluation.engine import check_inputs, draw, engine_of, judge_of, open_sampler
from rlora.evaluation.lengths import fitted
from rlora.evaluation.run import load_benchmarks
from rlora.evaluation.subject import resolve
from rlora.lora.config import LoraConfig
from rlora.model.limits import longest_row
from rlora.model.sources import ModelConfig, config_dir, empty_model, model_title
from rlora.preflight import check_run, check_supervised
from rlora.preflight.shown import asked, judged
from rlora.recipes import Recipe, find_any_recipe
from rlora.rewards import doubts_of, opened
from rlora.run_config import RunConfig
from rlora.sampler.base import EngineSpec, Sampler, SamplerConfig
from rlora.sampler.build import build_sampler
from rlora.sampler.capabilities import check_gpu
from rlora.store.cohort_dir import MEMBERS, member_dir
from rlora.store.origin import is_supervised
from rlora.store.run_dir import METRICS_FILE, metrics_rows, read_json
from rlora.supervised import advice as supervised
from rlora.supervised.config import SupervisedConfig
from rlora.tasks.files import is_own
from rlora.text import printable, wrapped
from rlora.train.batching import BatchConfig
from rlora.types import Sample, SamplingParams
from rlora.verify import Verifier

_FEW = ("--limit", "1", "--samples", "1")  # defaults; what is given behind them overrides
_SAMPLED = 8  # problems of a pre-flight
DESCRIPTION = """\
rlora check RUN: why a run does not learn, in words, and what to do; its directory alone is read. Exit code 0 where
nothing known is wrong, 1 with findings. `rlora check RUN --benchmark NAME` samples from its policy besides.

rlora check RECIPE [its options]: before an hour of a GPU is spent. Versions, memory, learning rate, and 8 of its
problems sampled as the run would sample them (--sample N, --no-sample: load no weights): what is cut off, which groups
have signal, one prompt with a completion and its verdict, time and disk of the whole run. It ends with OK, or with what
to change and exit code 1. With --gpu GB the memory of a GPU of that size is planned (24, 48, 80, 141, ...).

rlora check --model NAME reads a model's config.json alone and prints the size of an adapter and the rates to start
from; with --gpu GB, where the memory would go in a run like GSM8K's.

rlora check --benchmark NAME, or FILE.csv (problems of your own): print the prompt of the first problems as the model
gets it, completions, and why each is right or wrong. Takes the options of `rlora eval`; --limit problems of each
benchmark, --samples completions of each (one and one by default). Nothing is kept."""


def main(arguments: Sequence[str]) -> None:
    """Run `rlora check`, which takes a run directory, a recipe and its options, or the options of `rlora eval`."""
    gigabytes, num_sampled, arguments = _own_options(arguments)
    arguments = [*map(os.path.expanduser, arguments[:1]), *arguments[1:]]
    findings: list[Finding] = []
    run = None if not arguments or arguments[0].startswith("-") else member_dir(arguments[0])
    if run is not None and (run / "config.json").is_file():
        lines = check_runs([run], findings)
        if arguments[1:]:
            disable_progress_bar()
            config = parse([*_FEW, "--run", *arguments], description=DESCRIPTION, program="rlora check")
            lines = itertools.chain(lines, [""], check(config))
    elif run is not None and (members := members_in(run)):
        lines = check_runs(members, findings)
    elif run is not None and is_own(arguments[0]):
        disable_progress_bar()
        own = [*_FEW, "--limit", "3", "--benchmark", *arguments]
        lines = check(parse(own, description=DESCRIPTION, program="rlora check"))
    elif run is not None:
        disable_progress_bar()
        lines = check_recipe(
            arguments[0], arguments[1:], gigabytes=gigabytes, num_sampled=num_sampled, findings=findings
        )
    elif gigabytes is not None:
        lines = check_memory(arguments, gigabytes)
    elif _is_model_alone(arguments):
        lines = check_model(parse(arguments, description=DESCRIPTION, program="rlora check"))
    else:
        disable_progress_bar()
        lines = check(parse([*_FEW, *arguments], description=DESCRIPTION, program="rlora check"))
    for line in lines:
        print(printable(line))
    if findings:
        raise SystemExit(1)


def _own_options(arguments: Sequence[str]) -> tuple[float | None, int, list[str]]:
    """Return what --gpu and --sample say, and the other arguments; code 2 where one is no number."""
    parser = ArgumentParser(prog="rlora check", add_help=False, allow_abbrev=False)
    parser.add_argument("--gpu", type=float)
    parser.add_argument("--sample", type=int, default=_SAMPLED)
    parser.add_argument("--no-sample", dest="sample", action="store_const", const=0)
    known, rest = parser.parse_known_args(arguments)
    if known.sample < 0:
        raise ConfigError(f"--sample is {known.sample}; it must be at least 0 problems, and 0 samples none.")
    return known.gpu, known.sample, rest


def members_in(folder: Path) -> list[Path]:
    """Return the run directories of a cohort's members; none of a folder that is no cohort."""
    return sorted(config.parent for config in (folder / MEMBERS).glob("*/config.json"))


def check_runs(runs: Sequence[Path], findings: list[Finding]) -> Iterator[str]:
    """Yield what is wrong with each run, and add it to `findings`; their directories alone are read."""
    for run in runs:
        found, number = diagnose(run), len(metrics_rows(run)) if (run / METRICS_FILE).is_file() else 0
        findings += found
        young = "; most signs want 8 steps or more" if number < YOUNG else ""
        yield f"{run}: {number} steps, {_numbered(len(found))}{young}"
        for each in found:
            yield ""
            yield from wrapped(each.lines())


def _numbered(number: int) -> str:
    return "nothing known is wrong" if not number else f"{number} finding{'s' if number > 1 else ''}"


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


def check_recipe(
    name: str,
    arguments: Sequence[str],
    *,
    gigabytes: float | None = None,
    num_sampled: int = 0,
    findings: list[Finding] | None = None,
) -> Iterator[str]:
    """Yield what a recipe's command would train, use and see, and whether that is OK, and add to `findings` what to
    change; ConfigError for a wrong value or for no recipe. With `num_sampled` 0 no weights are loaded.
    """
    findings = [] if findings is None else findings
    recipe = find_any_recipe(name)
    arguments = [f"--model.name{each[7:]}" if each.partition("=")[0] == "--model" else each for each in arguments]
    options = {"description": recipe.description, "arguments": arguments, "program": f"rlora check {name}"}
    if isinstance(recipe, Recipe):
        yield from check_run(
            with_home(cli(recipe.presets, **options)), findings, num_problems=num_sampled, gigabytes=gigabytes
        )
    else:
        yield from check_supervised(with_home(cli(recipe.presets, **options)), findings, is_measured=num_sampled > 0)
    yield ""
    if not findings:
        yield "OK" if num_sampled else "OK, as far as it is known without a sample"
    else:
        yield f"{_numbered(len(findings))}:"
    for each in findings:
        yield from wrapped(each.lines())


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
        stored = read_json(Path(config.run) / "config.json")
        if is_supervised(stored):
            yield from wrapped(supervised.plan_lines(from_json(SupervisedConfig, stored), model))
        else:
            yield from wrapped(plan_lines(from_json(RunConfig, stored), model))
    else:
        yield from wrapped(model_lines(subject.model, model, subject.lora))
    with (
        ExitStack() as stack,
        Verifier(config.verifier) as verifier,
        open_sampler(config, subject, folder, benchmarks, make_sampler) as served,
    ):
        for benchmark in benchmarks:
            judge = stack.enter_context(opened(judge_of(config, benchmark, verifier)))
            engine = engine_of(config, benchmark, served, judge)
            yield from wrapped(doubts_of(judge, benchmark.problems))
            for problem in benchmark.problems:
                sampled = draw(config, engine, [problem], policy=None if policy_file is None else 0)
                if not sampled:
                    yield f"\n=== {problem.id}: its prompt is longer than {config.sampler.max_prompt_tokens} tokens"
                for each in sampled:
                    yield from asked(benchmark, each.prompt)
                    for completion in each.completions:
                        yield from judged(judge, Sample(problem=problem, completion=completion))
