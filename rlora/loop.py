"""The loop: sample, verify, train, swap, prove."""

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from rlora.advice import check_layers
from rlora.assemble import Problems, assemble, load_problems
from rlora.config import to_json, with_home
from rlora.inputs import check_inputs
from rlora.model.identity import base_digests
from rlora.model.sources import model_dir
from rlora.resume import BranchPoint, branched, dated, find_start, open_run_dir, restore, same_inputs
from rlora.rewards import Judge, RewardFunction, as_judge, name_of, open_judge
from rlora.rollout import collect
from rlora.run_config import RunConfig
from rlora.sampler.base import EngineSpec, Sampler
from rlora.sampler.build import build_sampler
from rlora.sampler.capabilities import check_gpu
from rlora.state import Run, checkpoints_of
from rlora.summary import opening, summarize, without_update
from rlora.system.exactness import make_exact
from rlora.system.interrupts import Interrupts
from rlora.system.memory import let_blocks_grow
from rlora.system.screen import LOG_FILE, Diversion, say, stage
from rlora.tasks import task
from rlora.tracking import MetricsLog, StepMetrics
from rlora.train.advantages import advantages_of
from rlora.verify import Verifier

_FIRST_STEPS = 5  # after which a run that has made no update says so


def train(run: Run) -> Iterator[dict[str, float]]:
    """Iterate until a bound is reached, and yield each step's metrics.

    The version of the policy is the number of finished steps. Each version is handed to the sampler and proven there
    before it is sampled from, and its rollouts are checked again before they are trained on: a sampler that serves
    anything else ends the run with StaleAdapterError. A checkpoint is written before the step that may fail.
    """
    config, parts = run.config, run.parts
    with stage("Proving that the sampler serves the policy"):
        parts.hot_swap.swap()
    while not run.progress.has_reached_bound(config):
        metrics = StepMetrics(run.progress.step, run.log.display.phase)
        if run.is_due(config.checkpoint.every):
            with metrics.timed("save"):
                run.save()
        if run.is_due(config.evaluation.every):
            with metrics.timed("evaluate"):
                metrics.update(run.evaluate())

        groups = collect(parts.engine, run.stream, config.collection, metrics)
        with metrics.timed("save"):
            run.folder.save_rollouts(metrics.step, groups)
        with metrics.timed("swap"):
            parts.sampler.free_cache()
            metrics.update(parts.hot_swap.check(groups))
        with metrics.timed("train"):
            advantages = [
                advantages_of(group, config.advantage, consensus_penalty=config.consensus_penalty) for group in groups
            ]
            metrics.update(parts.trainer.step(groups, advantages, check_tokens=parts.hot_swap.check_tokens))
        with metrics.timed("swap"):
            parts.sampler.restore_cache()
            metrics.update(parts.hot_swap.swap())

        values = metrics.finished()
        run.finish(values)
        if run.progress.step == _FIRST_STEPS < config.num_steps:
            for line in without_update(run.folder.rows()):
                run.log.display.say(line)
        yield values
    run.save()


def run(
    config: RunConfig,
    *,
    problems: Problems | None = None,
    reward: RewardFunction | Judge | None = None,
    make_sampler: Callable[[EngineSpec], Sampler] = build_sampler,
) -> Path:
    """Train until `config.num_steps` and return the run directory; a run that was stopped goes on where it was.

    `problems` and `reward` take the place of those that the configuration names. Everything cheap and fallible comes
    first. A signal raises Interrupted between two writes. What libraries write meanwhile goes to `log.txt` in the run
    directory, from the whole process, unless `config.tracking.verbose`.
    """
    config = with_home(config)
    config.check()
    check_gpu(config.sampler)
    own_judge = None if reward is None else as_judge(reward, name=name_of(reward))
    if reward is not None:
        config = replace(config, reward=name_of(reward))
    config, point = branched(config.resolved())
    config = dated(config, point)
    with Diversion(is_on=not config.tracking.verbose) as diversion:
        return _run(config, point, problems, own_judge, make_sampler, diversion)


def _run(
    config: RunConfig,
    point: BranchPoint | None,
    problems: Problems | None,
    own_judge: Judge | None,
    make_sampler: Callable[[EngineSpec], Sampler],
    diversion: Diversion,
) -> Path:
    if not config.sampler.shares_base:  # vLLM's allocator for a cache that gives way refuses such blocks
        let_blocks_grow()
    if config.sampler.exact:
        make_exact()
    is_new = point is None and not checkpoints_of(config).steps()
    problems = problems or load_problems(config)
    folder = model_dir(config.model)
    check_layers(config, folder)
    inputs = {"base": base_digests(folder), "data": problems.digests}
    renamed = same_inputs(config, point, inputs)
    check_inputs(config, folder, problems, base=inputs["base"], is_new=is_new)
    parent = None if point is None else str(point)
    with (
        closing(open_run_dir(config, parent=parent, inputs=inputs, renamed=renamed)) as run_dir,
        Interrupts() as interrupts,
        Verifier(config.verifier) as verifier,
    ):
        if run_dir.is_finished:
            say(f"{run_dir.path} is finished: see its summary.json. To go on, raise --num-steps.")
            return run_dir.path
        diversion.keep_in(run_dir.path / LOG_FILE)
        with MetricsLog(
            run_dir.path, config.tracking, num_steps=config.num_steps, run_id=run_dir.run_id, run_config=to_json(config)
        ) as log:
            start = find_start(config, point, log)
            judge = own_judge or open_judge(config.reward or task(config.data.task_name).judge, verifier)
            parts = assemble(config, folder, problems.train, judge, make_sampler, start=start)
            with closing(parts.sampler):
                log.display.say(opening(config, parts, problems))
                parts.trainer.budget.say = log.display.say
                started = restore(config, start, parts, problems, run_dir, log, interrupts, is_branch=point is not None)
                for _ in train(started):
                    pass
                log.display.phase("final evaluation")
                summarize(started)
    return run_dir.path
