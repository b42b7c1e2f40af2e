"""Run an evaluation: sample what is missing, score what is there, write and print it."""

import subprocess
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from rlora.config import differences as config_differences
from rlora.config import to_json, with_home
from rlora.errors import DataError, RunDirError
from rlora.evaluation import report
from rlora.evaluation.config import OF_RUN, EvalConfig, bound, title_of
from rlora.evaluation.engine import Benchmark, check_inputs, collect, engine_of, judge_of, load_renderer, open_sampler
from rlora.evaluation.lengths import fitted
from rlora.evaluation.progress import Display
from rlora.evaluation.samples import SampleFile
from rlora.evaluation.score import differences, estimate_json, score_arm
from rlora.evaluation.subject import Subject, dated, identified, known_task, resolve
from rlora.model.limits import longest_row
from rlora.model.sources import empty_model, model_dir
from rlora.rewards import Judge, measures_of, opened
from rlora.sampler.base import EngineSpec, Sampler
from rlora.sampler.build import build_sampler
from rlora.sampler.capabilities import check_gpu
from rlora.store.claim import CONFIG_FILE, claim
from rlora.store.environment import environment
from rlora.store.run_dir import read_json, write_json
from rlora.system.exactness import make_exact
from rlora.system.files import write_atomically
from rlora.system.lock import FolderLock
from rlora.system.memory import let_blocks_grow
from rlora.system.records import is_sealed, sealed
from rlora.system.screen import LOG_FILE, Diversion, say, screen
from rlora.system.stages import Screen
from rlora.tasks import DataConfig, task
from rlora.tasks.data import OWN
from rlora.tasks.fields import check_problems
from rlora.tasks.files import is_own
from rlora.tasks.overlap import drop_overlap
from rlora.tasks.sets.own import read_own
from rlora.text import printable
from rlora.types import Problem
from rlora.verify import Verifier


def evaluate_benchmarks(
    config: EvalConfig, *, make_sampler: Callable[[EngineSpec], Sampler] = build_sampler
) -> dict[str, Any]:
    """Evaluate what `config` names and return what `results.json` holds.

    Samples are kept batch by batch; the same command goes on where it was stopped, and one that scores other
    benchmarks adds them. Raises RunDirError when the output folder holds an evaluation that differs in anything that
    samples depend on. What libraries write meanwhile goes to `log.txt` in the output folder, unless `config.verbose`.
    """
    config = with_home(config)
    config.check()
    check_gpu(config.sampler)
    with Diversion(is_on=not config.verbose) as diversion:
        return _evaluate_benchmarks(config, make_sampler, diversion)


def _evaluate_benchmarks(
    config: EvalConfig, make_sampler: Callable[[EngineSpec], Sampler], diversion: Diversion
) -> dict[str, Any]:
    let_blocks_grow()
    if config.sampler.exact:
        make_exact()
    subject = resolve(config)
    output = Path(config.output) if config.output is not None else _default_output(config, subject)
    subject = dated(subject, config, output / CONFIG_FILE)
    folder, benchmarks = load_benchmarks(config, subject)
    subject = identified(subject, folder)
    config, cut = fitted(config, longest_row(empty_model(folder, subject.model).config))
    if config.preset == OF_RUN:
        say(
            f"As {config.run} sampled: temperature {config.temperature:g}, completions of at most {config.max_tokens} "
            f"tokens; prompts of at most {config.sampler.max_prompt_tokens}."
        )
    if cut:
        say(cut)
    check_inputs(config, subject, folder, benchmarks)
    if config.num_threads is not None:
        torch.set_num_threads(config.num_threads)
    lock = _claimed(output, {"config": config.identity(), "subject": subject.describe()})
    diversion.keep_in(output / LOG_FILE)
    try:
        return _evaluate(config, subject, folder, lock, benchmarks, make_sampler, diversion)
    finally:
        lock.release()


def load_benchmarks(config: EvalConfig, subject: Subject) -> tuple[Path, list[Benchmark]]:
    """Return the model's folder and the benchmarks, with what is cheap and may fail first."""
    problems = {name: load_problems(config, name) for name in config.benchmarks}
    folder = model_dir(subject.model)
    benchmarks = []
    for name in config.benchmarks:
        chosen = task(OWN if is_own(name) else name)
        renderer = load_renderer(folder, subject, name, chosen)
        benchmarks.append(Benchmark(name=name, task=chosen, problems=tuple(problems[name]), renderer=renderer))
    return folder, benchmarks


def load_problems(config: EvalConfig, name: str) -> list[Problem]:
    """Return the problems of a benchmark; DataError when there are none."""
    data = DataConfig(data_dir=config.data_dir, question_field=config.question_field, answer_field=config.answer_field)
    problems = read_own(name, data, split="test")[0] if is_own(name) else task(name).read("test", data)
    if not problems:
        raise DataError(f"{name} has no test problems.")
    check_problems(problems)
    return problems[: config.limit or None]


def _default_output(config: EvalConfig, subject: Subject) -> Path:
    if config.run is not None:
        return Path(config.run) / "eval" / f"v{subject.version:06d}"
    return Path("evals") / subject.name


def _claimed(output: Path, values: dict[str, Any]) -> FolderLock:
    """Take the folder for this evaluation; RunDirError names the fields in which it holds another one."""
    stored = output / CONFIG_FILE
    lock = claim(output, holds="the folder of an evaluation", option="--output")
    try:
        if stored.is_file() and (changed := _changed(read_json(stored), values)):
            raise RunDirError(
                f"{output} holds samples of another evaluation; it differs in\n  " + "\n  ".join(changed) + "\n"
                "Choose another --output."
            )
        write_json(stored, values)
    except BaseException:
        lock.release()
        raise
    return lock


def _changed(before: dict[str, Any], values: dict[str, Any]) -> list[str]:
    """Return where two evaluations differ. The base may have another name if it is the same, and an older rlora stated
    no digests of it.
    """
    before["config"] = bound(before["config"])  # an older rlora bound more
    base, same = before["subject"].setdefault("base", values["subject"]["base"]), values["subject"]["base"]
    before["config"].setdefault("judge", values["config"]["judge"])
    before["subject"]["prompt"].setdefault("date", values["subject"]["prompt"]["date"])
    free = ("subject.model.name", "subject.model.revision", "subject.model_title") if base == same else ()
    return [line for line in config_differences(before, values) if line.partition(":")[0] not in free]


def _evaluate(
    config: EvalConfig,
    subject: Subject,
    folder: Path,
    lock: FolderLock,
    benchmarks: list[Benchmark],
    make_sampler: Callable[[EngineSpec], Sampler],
    diversion: Diversion,
) -> dict[str, Any]:
    arms = subject.arms if config.base or len(subject.arms) == 1 else ("policy",)
    console = screen().console
    output, stored = lock.folder, lock.folder / "results.json"
    results = read_json(stored) if stored.is_file() else {"benchmarks": {}}
    if not isinstance(results.get("benchmarks"), dict):
        raise RunDirError(f"{stored} holds no results. Remove it: samples that are there are scored again.")
    if not is_sealed(results):
        raise RunDirError(
            f"{stored} was changed since it was written, its checksum (sha256) is of other values. Remove it: samples "
            "that are there are scored again."
        )
    results |= {
        "config": to_json(config),
        "subject": subject.describe(),
        "template": "chat" if benchmarks[0].renderer.is_chat else "plain",
        "commit": _commit(),
        "environment": environment(),
    }
    with Verifier(config.verifier) as verifier, ExitStack() as stack:
        judges = {one.name: stack.enter_context(opened(judge_of(config, one, verifier))) for one in benchmarks}
        prompts = {one.name: one.prompt_digests() for one in benchmarks}
        files = {
            (one.name, arm): SampleFile(
                output / f"samples-{title_of(one.name)}-{arm}.jsonl",
                num_samples=config.samples,
                measures=measures_of(judges[one.name]),
                prompts=prompts[one.name],
                lock=lock,
            )
            for one in benchmarks
            for arm in arms
        }
        if any(problem not in files[one.name, arm] for one in benchmarks for arm in arms for problem in one.problems):
            with open_sampler(config, subject, folder, benchmarks, make_sampler) as served:
                results["proof"] = dict(served.proof)
                for one in benchmarks:
                    engine = engine_of(config, one, served, judges[one.name])
                    for arm in arms:
                        samples = files[one.name, arm]
                        with Display(console, one, arm, samples) as progress:
                            policy = None if arm == "base" else 0
                            served.prove(policy)
                            collect(config, one, samples, engine, served, policy=policy, after_batch=progress.advance)
        trained = training_problems(subject)
        for one in benchmarks:
            of_arm = {arm: files[one.name, arm] for arm in arms}
            num_trained_on = count_trained_on(trained, one.problems)
            results["benchmarks"][one.name] = _score(config, one, of_arm, judges[one.name], num_trained_on)
    lock.check_in_place()
    results = sealed(results)
    write_json(stored, results)
    with write_atomically(output / "results.md") as path:
        path.write_text(report.markdown(results), encoding="utf-8")
    tables = Screen(diversion.output).console
    if not diversion.output.isatty():
        tables.width = 120  # a file has no width; rich would take 80 and break the cells
    tables.print(report.terminal_tables(results), soft_wrap=False)
    for warning in report.warnings(results):
        console.print(printable(warning), markup=False)
    console.print(printable(f"Results and samples: {output}"), markup=False)
    return results


def count_trained_on(trained: Sequence[Problem] | None, problems: Sequence[Problem]) -> int | None:
    """Return how many problems of a benchmark the run was trained on, compared on normalised text."""
    return None if trained is None else len(drop_overlap(problems, trained)[1])


def training_problems(subject: Subject) -> list[Problem] | None:
    """Return what the run was trained on, or None where there is no run or its data cannot be had here."""
    trained_on = None if subject.data is None else known_task(subject.trained_on)
    if subject.data is None or trained_on is None:
        return None
    try:
        train, test = (trained_on.read(split, subject.data) for split in ("train", "test"))
    except DataError:
        return None
    return drop_overlap(train, test)[0]


def _score(
    config: EvalConfig,
    benchmark: Benchmark,
    files: dict[str, SampleFile],
    judge: Judge,
    num_trained_on: int | None,
) -> dict[str, Any]:
    scores = {
        arm: score_arm(samples, benchmark.problems, num_samples=config.samples, judge=judge)
        for arm, samples in files.items()
    }
    values: dict[str, Any] = {
        "num_problems": len(benchmark.problems),
        "samples": config.samples,
        "instruction": benchmark.renderer.instruction,
        "num_trained_on": num_trained_on,
        "arms": {arm: one.to_json() for arm, one in scores.items()},
    }
    if len(scores) == 2:
        found = differences(scores["policy"], scores["base"])
        values["difference"] = {measure: estimate_json(estimate) for measure, estimate in found.items()}
    return values


def _commit() -> str | None:
    """Return the commit of the code, marked if it has changes, or None where it is no git checkout."""
    folder = Path(__file__).resolve().parent
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=12", "--exclude", "*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None
