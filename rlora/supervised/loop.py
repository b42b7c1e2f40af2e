"""The loop of supervised training: take examples, train, score, keep."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import torch

from rlora.config import to_json, with_home
from rlora.diagnosis import health
from rlora.model.identity import base_digests, sizes_of
from rlora.model.sources import model_dir, model_title
from rlora.resume import BranchPoint, begin_at, branched, dated, find_start, same_inputs
from rlora.state import checkpoints_of
from rlora.store.run_dir import RunDir
from rlora.supervised.build import check_adapters, make_trainer, read_examples, restored
from rlora.supervised.compared import save_compared
from rlora.supervised.config import SupervisedConfig
from rlora.supervised.data import Examples, Rows
from rlora.supervised.state import SupervisedRun
from rlora.supervised.summary import opening, summarize
from rlora.system.exactness import make_exact
from rlora.system.interrupts import Interrupts
from rlora.system.memory import let_blocks_grow
from rlora.system.screen import LOG_FILE, Diversion, say, stage
from rlora.tasks.stream import Walk
from rlora.tracking import MetricsLog, StepMetrics
from rlora.tracking.tracker import check_trackers

MAY_CHANGE = (
    *("run_dir", "preset", "data.data_dir", "num_steps", "stop_after_hours", "memory_budget", "batch.recompute"),
    *("branch", "tracking", "evaluation", "checkpoint"),
)
EXTENDS = ("num_steps", "stop_after_hours", "evaluation")


def train(run: SupervisedRun) -> Iterator[dict[str, float]]:
    """Train until a bound is reached, and yield each update's metrics.

    A checkpoint is written before the update that may fail; the version of the policy is the number of updates.
    """
    config = run.config
    while not run.has_reached_bound:
        metrics = StepMetrics(run.progress.step, run.log.display.phase)
        if run.is_due(config.checkpoint.every):
            with metrics.timed("save"):
                run.save()
        if run.is_due(config.evaluation.every) or run.progress.step == 0:
            with metrics.timed("evaluate"):
                metrics.update(run.evaluate())
        with metrics.timed("train"):
            metrics.update(run.trainer.step_supervised(run.take()))
        values = metrics.finished()
        run.finish(values)
        yield values
    run.save()


def run(config: SupervisedConfig, *, conversations: Rows | None = None, test: Rows | None = None) -> Path:
    """Train until the last update and return the run directory; a run that was stopped goes on where it was.

    `conversations` and `test` take the place of the files that the configuration names. Everything cheap and fallible
    comes first. A signal raises Interrupted between two writes. What libraries write meanwhile goes to `log.txt` in the
    run directory, unless `config.tracking.verbose`.
    """
    config = with_home(config)
    config.check()
    check_trackers(config.tracking)
    config, point = branched(config.resolved())
    config = dated(config, point)
    quiet, verbose = config.tracking.quiet, config.tracking.verbose
    with Diversion(is_on=not verbose, is_quiet=quiet) as diversion, Interrupts() as interrupts:
        let_blocks_grow()
        if config.exact:
            make_exact()
        folder = model_dir(config.model)
        examples = read_examples(config, folder, given=None if conversations is None else (conversations, test))
        config = config.with_updates(len(examples.train))
        inputs = {"base": base_digests(folder), "data": examples.digests}
        is_new = point is None and not checkpoints_of(config).steps()
        check_adapters(config, folder, inputs["base"], is_new=is_new)
        renamed = same_inputs(config, point, inputs)
        sizes = sizes_of(folder, num_train=len(examples.train))
        with closing(_open(config, point, inputs, renamed, sizes)) as run_dir:
            if run_dir.is_finished:
                say(f"{run_dir.path} is finished: see its summary.json. To go on, raise --num-steps.")
                return run_dir.path
            diversion.keep_in(run_dir.path / LOG_FILE)
            with run_dir.ending():
                _carry_out(config, folder, examples, run_dir, point, interrupts)
    return run_dir.path


def _open(
    config: SupervisedConfig,
    point: BranchPoint | None,
    inputs: Mapping[str, Mapping[str, str]],
    renamed: Sequence[str],
    sizes: Mapping[str, Any],
) -> RunDir:
    return RunDir(
        Path(config.run_dir),
        to_json(config),
        may_change=(*MAY_CHANGE, *renamed),
        extends=EXTENDS,
        parent=None if point is None else str(point),
        defaults=to_json(SupervisedConfig(run_dir=config.run_dir).resolved()),
        inputs=inputs,
        sizes=sizes,
    )


def _carry_out(
    config: SupervisedConfig,
    folder: Path,
    examples: Examples,
    run_dir: RunDir,
    point: BranchPoint | None,
    interrupts: Interrupts,
) -> None:
    """Train the run of a directory from where it is to its end, and score it."""
    with MetricsLog(
        run_dir.path,
        config.tracking,
        num_steps=config.num_steps,
        run_id=run_dir.run_id,
        run_config=to_json(config),
        health=health,
    ) as log:
        start = find_start(config, point, log)
        if config.num_threads is not None:
            torch.set_num_threads(config.num_threads)
        with stage(f"Loading {model_title(config.model)}"):
            trainer = make_trainer(config, folder, is_new=start is None)
        trainer.budget.say = log.display.say
        log.display.opening(opening(config, trainer, examples))
        progress, position = restored(config, trainer, examples, start, is_branch=point is not None)
        if start is not None:
            run_dir.save_policy(trainer.policy.snapshot())
        begin_at(config, progress.step, run_dir, log)
        started = SupervisedRun(
            config=config,
            trainer=trainer,
            examples=examples,
            walk=Walk(len(examples.train), seed=config.order_seed, position=position),
            progress=progress,
            folder=run_dir,
            log=log,
            interrupts=interrupts,
        )
        save_compared(run_dir.path, started.tested)
        for _ in train(started):
            pass
        log.display.phase("final evaluation")
        summarize(started)
