"""The loop: sample, verify, train, swap, prove."""

import math
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from rlora.advice import check_layers
from rlora.assemble import Parts, assemble, load_problems
from rlora.config import to_json
from rlora.evaluation.held_out import evaluate
from rlora.lora.peft.peft_format import check_adapter
from rlora.model.sources import model_dir
from rlora.resume import (
    BranchPoint,
    Progress,
    branched,
    checkpoint_of,
    checkpoints_of,
    find_start,
    open_run_dir,
    restore,
)
from rlora.rollout import rollout_metrics
from rlora.run_config import RunConfig
from rlora.sampler.base import EngineSpec, Sampler
from rlora.sampler.build import build_sampler
from rlora.store.run_dir import RunDir
from rlora.summary import opening, summarize
from rlora.system.exactness import make_exact
from rlora.system.interrupts import Interrupts
from rlora.system.memory import let_blocks_grow
from rlora.system.screen import LOG_FILE, Diversion, say, stage
from rlora.tasks.stream import ProblemStream
from rlora.tracking import MetricsLog, StepMetrics
from rlora.train.advantages import advantages_of
from rlora.types import Group, Problem
from rlora.verify import Verifier


def run(config: RunConfig, *, make_sampler: Callable[[EngineSpec], Sampler] = build_sampler) -> Path:
    """Train until `config.num_steps` and return the run directory; a run that was stopped goes on where it was.

    `step` counts finished iterations and is the version of the policy that samples. Every update is handed to the
    sampler and proven there before the next sample; a sampler that serves anything else ends the run with
    StaleAdapterError. A signal raises Interrupted between two writes. What libraries write meanwhile goes to `log.txt`
    in the run directory, from the whole process, unless `config.tracking.verbose`.
    """
    config.check()
    config, point = branched(config.resolved())
    with Diversion(is_on=not config.tracking.verbose) as diversion:
        return _run(config, point, make_sampler, diversion)


def _run(
    config: RunConfig,
    point: BranchPoint | None,
    make_sampler: Callable[[EngineSpec], Sampler],
    diversion: Diversion,
) -> Path:
    if not config.sampler.shares_base:  # vLLM's allocator for a cache that gives way refuses such blocks
        let_blocks_grow()
    if config.sampler.exact:
        make_exact()
    is_new = point is None and not checkpoints_of(config).steps()
    if is_new and config.init_adapter is not None:
        check_adapter(Path(config.init_adapter), config.lora)
    problems = load_problems(config)
    folder = model_dir(config.model)
    check_layers(config, folder)
    parent = None if point is None else str(point)
    with (
        closing(open_run_dir(config, parent=parent)) as run_dir,
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
            parts = assemble(config, folder, problems.train, verifier, make_sampler, start=start)
            with closing(parts.sampler):
                log.display.say(opening(config, parts, problems))
                parts.budget.say = log.display.say
                progress, stream = restore(
                    config, start, parts, problems.train, run_dir, log, is_branch=point is not None
                )
                advance(config, parts, progress, stream, problems.test, run_dir, log, interrupts)
                log.display.phase("final evaluation")
                summarize(config, parts, problems.test, run_dir, log, progress.best)
    return run_dir.path


def advance(
    config: RunConfig,
    parts: Parts,
    progress: Progress,
    stream: ProblemStream,
    test: Sequence[Problem],
    run_dir: RunDir,
    log: MetricsLog,
    interrupts: Interrupts,
) -> None:
    """Iterate until a bound is reached: checkpoint, evaluate if it is time, iterate, log; and a last checkpoint."""
    with stage("Proving that the sampler serves the policy"):
        parts.hot_swap.swap()
    while not progress.has_reached_bound(config):
        metrics = StepMetrics(progress.step, log.display.phase)
        if progress.step % (config.checkpoint.every or 1) == 0:
            with metrics.timed("save"), interrupts.held_back():
                save(config, progress, parts, stream, run_dir)
        if config.evaluation.every and progress.step % config.evaluation.every == 0:
            with metrics.timed("evaluate"):
                progress.best = keep_best(config, parts, test, run_dir, progress.best, metrics)
        values = iterate(config, parts, stream, run_dir, metrics)
        with interrupts.held_back():
            log.write(values)
        progress.step += 1
        progress.reward, progress.seconds = values["reward/mean"], progress.seconds + values["seconds/step"]
    with interrupts.held_back():
        save(config, progress, parts, stream, run_dir)


def save(config: RunConfig, progress: Progress, parts: Parts, stream: ProblemStream, run_dir: RunDir) -> None:
    """Write a checkpoint, and the policy in the form that servers read."""
    checkpoints_of(config).save(checkpoint_of(config, progress, parts, stream))
    run_dir.save_policy(parts.policy.snapshot())


def iterate(
    config: RunConfig, parts: Parts, stream: ProblemStream, run_dir: RunDir, metrics: StepMetrics
) -> dict[str, float]:
    """Sample, verify, train, swap and prove once, and return the step's metrics."""
    groups = collect(config, parts, stream, metrics)
    with metrics.timed("save"):
        run_dir.save_rollouts(metrics.step, groups)
    with metrics.timed("swap"):
        parts.sampler.free_cache()
        metrics.update(parts.hot_swap.check(groups))
    with metrics.timed("train"):
        advantages = [
            advantages_of(group, config.advantage, consensus_penalty=config.consensus_penalty) for group in groups
        ]
        has_kl = config.loss.kl_coefficient > 0
        metrics.update(parts.budget.step(parts.trainer, groups, advantages, keep_all=has_kl))
    with metrics.timed("swap"):
        parts.sampler.restore_cache()
        metrics.update(parts.hot_swap.swap())
    return metrics.finished()


def collect(config: RunConfig, parts: Parts, stream: ProblemStream, metrics: StepMetrics) -> list[Group]:
    """Return the step's judged groups; with `oversample`, of further problems too while groups with signal are lacking.

    All that is sampled is returned, logged and counted: a step of three rounds is a step with three times the problems.
    """
    wanted, limit = config.problems_per_step, round(config.oversample * config.problems_per_step)
    groups: list[Group] = []
    num_taken = num_rounds = num_useful = 0
    start = stream.position
    while num_taken < limit and num_useful < wanted:
        lacking = math.ceil((wanted - num_useful) * num_taken / max(1, num_useful)) if num_taken else wanted
        chosen = stream.take(min(lacking, wanted, limit - num_taken))
        with metrics.timed("sample"):
            sampled = parts.engine.sample(
                chosen,
                config.sampling,
                num_samples=config.samples_per_problem,
                seed=config.seed,
                key=("train", metrics.step, num_rounds) if num_rounds else ("train", metrics.step),
            )
        with metrics.timed("verify"):
            judged = parts.engine.judge(sampled)
        stream.observe(judged)
        groups += judged
        num_taken, num_rounds = num_taken + len(chosen), num_rounds + 1
        num_useful += sum(group.has_signal for group in judged)
    metrics.update(rollout_metrics(groups, num_problems=num_taken))
    metrics.update({"rollout/num_rounds": num_rounds})
    if stream.solve_rates is not None:
        metrics.update({"rollout/num_passed_over": stream.position - start - num_taken})
    return groups


def keep_best(
    config: RunConfig, parts: Parts, test: Sequence[Problem], run_dir: RunDir, best: float, metrics: StepMetrics
) -> float:
    """Score the policy greedily on a held-out part, keep it if it is the best so far, and return the best score."""
    sampling = replace(
        config.sampling, temperature=0.0, max_tokens=config.evaluation.max_tokens or config.sampling.max_tokens
    )
    part = test[: config.evaluation.num_problems_during_training]
    result = evaluate(parts.engine, part, sampling, seed=config.seed)
    accuracy = result.accuracy
    metrics.update(
        {
            "evaluation/accuracy": accuracy.mean,
            "evaluation/accuracy_low": accuracy.low,
            "evaluation/accuracy_high": accuracy.high,
            "evaluation/truncated_share": result.truncated_share,
        }
    )
    if accuracy.mean > best:
        run_dir.save_policy(parts.policy.snapshot(), is_best=True)
    return max(best, accuracy.mean)
