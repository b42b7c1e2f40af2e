"""Score a run's policy, an adapter or a model on benchmarks, beside its base."""

import sys
from argparse import ArgumentError, ArgumentParser
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from transformers.utils.logging import disable_progress_bar

from rlora.config import cli, filled, from_json, to_json, with_home
from rlora.errors import RunDirError
from rlora.evaluation.config import MAX_PROMPT_TOKENS, OF_RUN, PRESETS, EvalConfig
from rlora.evaluation.run import evaluate_benchmarks
from rlora.run_config import RunConfig
from rlora.store.cohort_dir import member_dir
from rlora.store.origin import is_supervised
from rlora.store.run_dir import read_json
from rlora.supervised.config import SupervisedConfig
from rlora.tasks.source import data_folder

DESCRIPTION = """\
Score a run's newest policy (--run), a LoRA adapter (--adapter) or a model alone (--model) on benchmarks.

Every problem is answered several times, by the policy and by the base with the same seeds: avg@k, unbiased pass@k,
maj@k, each with a 95 % interval over problems, and the paired difference with its own. Samples are kept as they come:
the same command goes on where it was stopped. results.json, results.md and the samples are in --output."""


def main(arguments: Sequence[str]) -> None:
    """Run `rlora eval`."""
    config = parse(arguments)
    disable_progress_bar()  # of Transformers, whose bars for loading weights would break up the display
    try:
        evaluate_benchmarks(config)
    except KeyboardInterrupt:
        print("What was sampled is kept; the same command goes on from there.", file=sys.stderr)
        raise


def parse(arguments: Sequence[str], *, description: str = DESCRIPTION, program: str = "rlora eval") -> EvalConfig:
    """Return the configuration that the arguments ask for; a preset's model gives way to --run and --adapter.

    Beside --run the defaults are what the run did; RunDirError or ConfigError where its config.json cannot be read.
    """
    presets, given = dict(PRESETS), {argument.partition("=")[0] for argument in arguments}
    if given & {"--run", "--adapter"}:
        presets = {name: replace(preset, model=None) for name, preset in presets.items()}
    run = _run_of(arguments)
    if run is not None and ((run / "config.json").is_file() or not given & {"-h", "--help", "--preset"}):
        presets = {OF_RUN: run_defaults(run), **presets}
    config = with_home(cli(presets, description=description, arguments=arguments, program=program))
    return config if config.run is None else replace(config, run=str(member_dir(config.run)))


def _run_of(arguments: Sequence[str]) -> Path | None:
    parser = ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--run", type=Path)
    try:
        run = parser.parse_known_args(arguments)[0].run
    except ArgumentError:  # without a value, which the parser of all options says better
        return None
    return None if run is None else member_dir(run.expanduser())


def run_defaults(run: Path) -> EvalConfig:
    """Return the defaults of an evaluation of a run: its sampler, temperature, lengths and threads.

    A supervised run has sampled nothing, and only its threads and its folder of data are taken over. Prompts may be
    longer than in training, since a benchmark's often are. The number of samples is that of the preset
    that is called as the run's. Raises RunDirError or ConfigError where there is no config.json that can be read.
    """
    if not (run / "config.json").is_file():
        raise RunDirError(f"{run} is not a run directory: it holds no config.json.")
    stored, has_gpu = read_json(run / "config.json"), torch.cuda.is_available()
    if is_supervised(stored):
        trained = from_json(SupervisedConfig, stored)
        preset = PRESETS.get(trained.preset, PRESETS["gpu" if has_gpu else "cpu"])
        return replace(
            preset, preset=OF_RUN, model=None, data_dir=trained.data.data_dir, num_threads=trained.num_threads
        )
    config = from_json(RunConfig, filled(stored, to_json(RunConfig(run_dir=str(run)))))
    sampler = replace(
        config.sampler,
        max_prompt_tokens=max(MAX_PROMPT_TOKENS, config.sampler.max_prompt_tokens),
        share_base="auto",  # nothing is trained
        kv_cache_gb=config.sampler.kv_cache_gb or (0 if has_gpu else 1),
    )
    return replace(
        PRESETS.get(config.preset, PRESETS["gpu" if has_gpu else "cpu"]),
        preset=OF_RUN,
        model=None,
        data_dir=config.data.data_dir if data_folder() is None else None,
        question_field=config.data.question_field,
        answer_field=config.data.answer_field,
        temperature=config.sampling.temperature,
        max_tokens=config.evaluated_sampling.max_tokens,
        num_threads=config.num_threads,
        sampler=sampler,
        verifier=config.verifier,
    )
