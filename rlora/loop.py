"""The loop: sample, verify, train, swap, prove."""

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

from rlora.assemble import Problems, assemble
from rlora.config import to_json
from rlora.diagnosis import health
from rlora.inputs import check_inputs
from rlora.resume import BranchPoint, branched, dated, find_start, open_run_dir, restore, same_inputs, titled
from rlora.rewards import CORRECT, Judge, RewardFunction, doubts_of, is_share, open_judge, opened
from rlora.rollout import collect
from rlora.run_config import RunConfig
from rlora.sampler.base import EngineSpec, Sampler
from rlora.sampler.build import build_sampler
from rlora.site import Site, prepared, site_of
from rlora.state import Run, checkpoints_of
from rlora.summary import opening, summarize, without_update
from rlora.system.screen import LOG_FILE, Diversion, say
from rlora.system.stages import Screen
from rlora.tasks import task
from rlora.tracking import Health, MetricsLog, StepMetrics
from rlora.train.advantages import advantages_of

_FIRST_STEPS = 5  # after which a run that has made no update says so


def train(run: Run) -> Iterator[dict[str, float]]:
    """Iterate until a bound is reached, and yield each step's metrics.

    The version of the policy is the number of finished steps. Each version is handed to the sampler and proven there
    before it is sampled from, and its rollouts are checked again before they are trained on: a sampler that serves
    anything else ends the run with StaleAdapterError. A checkpoint is written before the step that may fail.
    """
    config, parts = run.config, run.parts
    with run.log.display.stage("Proving that the sampler serves the policy"):
        parts.hot_swap.swap()
    while not run.progress.has_reached_bound(config):
        metrics = StepMetrics(run.progress.step, run.log.display.phase)
        if run.is_due(config.checkpoint.every):
            with metrics.timed("save"):
                run.save()
        if run.is_due(config.evaluation.every):
            with metrics.timed("evaluate"):
                metrics.update(run.evaluate())

        groups = collect(parts.engine, run.stream, run.collection, metrics)
        with metrics.timed("save"):
            run.folder.save_rollouts(metrics.step, groups)
        with metrics.timed("swap"):
            parts.sampler.free_cache()
            metrics.update(parts.hot_swap.check(groups))
        with metrics.timed("train"):
            advantages = [
                advantages_of(group, config.advantage, consensus_penalty=config.consensus_penalty) for group in groups
            ]
            metrics.update(parts.trainer.step(groups, advantages, check_tokens=run.token_check(groups, advantages)))
        with metrics.timed("swap"):
            parts.sampler.restore_cache()
            metrics.update(parts.hot_swap.swap())

        values = metrics.finished()
        run.finish(values)
        if config.rollouts.stays(metrics.step):
            run.log.write_rollouts(metrics.step, groups)
        if run.progress.step == _FIRST_STEPS < config.num_steps:
            for line in without_update(run.folder.rows()):
                run.log.display.say(line)
        yield values
    run.save()


def train_to_the_end(run: Run) -> bool:
    """Train until a bound is reached; the run is to be scored then."""
    for _ in train(run):
        pass
    return True


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
    config, own_judge = prepared(config, reward)
    config, point = branched(config)
    config = titled(dated(config, point))
    with (
        Diversion(is_on=not config.tracking.verbose, is_quiet=config.tracking.quiet) as diversion,
        site_of(config, problems, own_judge, make_sampler) as site,
    ):
        same_inputs(config, point, site.inputs)
        is_new = point is None and not checkpoints_of(config).steps()
        check_inputs(config, site.folder, site.problems, base=site.base_digests, is_new=is_new)
        return carry_out(config, site, point=point, keep_log=diversion.keep_in, health=health)


def carry_out(
    config: RunConfig,
    site: Site,
    *,
    point: BranchPoint | None = None,
    keep_log: Callable[[Path], None] = lambda _: None,
    screen: Screen | None = None,
    drive: Callable[[Run], bool] = train_to_the_end,
    health: Health | None = None,
) -> Path:
    """Train one run from where it is to its end, score it, and return its directory.

    `keep_log` is told where the libraries' log goes, `screen` takes what the run says (the user's, when left out),
    `drive` trains it, and returns whether it is to be scored, and `health` says after each step what is off.
    """
    parent = None if point is None else str(point)
    renamed = same_inputs(config, point, site.inputs)
    with (
        closing(open_run_dir(config, parent=parent, inputs=site.inputs, renamed=renamed, sizes=site.sizes)) as run_dir,
        opened(site.judge or _judge_of(config, site)) as judge,
    ):
        if run_dir.is_finished:
            say(f"{run_dir.path} is finished: see its summary.json. To go on, raise --num-steps.")
            return run_dir.path
        keep_log(run_dir.path / LOG_FILE)
        with MetricsLog(
            run_dir.path,
            config.tracking,
            num_steps=config.num_steps,
            run_id=run_dir.run_id,
            run_config=to_json(config),
            screen=screen,
            health=health,
            has_shares=is_share(config.reward),
        ) as log:
            start = find_start(config, point, log)
            for line in doubts_of(judge, site.problems.train):
                log.display.say(line)
            parts = assemble(
                config,
                site.folder,
                site.problems.train,
                judge,
                site.make_sampler,
                start=start,
                base=site.base,
                peers=site.peers,
            )
            with closing(parts.sampler):
                log.display.opening(opening(config, parts, site.problems))
                parts.trainer.budget.say = log.display.say
                started = restore(
                    config, start, parts, site.problems, run_dir, log, site.interrupts, is_branch=point is not None
                )
                with run_dir.ending():
                    if drive(started):
                        log.display.phase("final evaluation")
                        summarize(started)
    return run_dir.path


def _judge_of(config: RunConfig, site: Site) -> Judge:
    own = task(config.data.task_name).judge
    return open_judge(config.reward or CORRECT, site.verifier, own=own, config=config.judge)
