"""The loop: sample, verify, train, swap, prove."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from rlora.advantages import ADVANTAGES
from rlora.assemble import Parts, assemble, load_problems
from rlora.batching import build_batch
from rlora.config import to_json
from rlora.evaluate import evaluate
from rlora.lora.peft_format import check_adapter
from rlora.models import model_dir
from rlora.rollout import rollout_metrics
from rlora.run_config import RunConfig
from rlora.run_dir import RunDir
from rlora.sampler.base import EngineSpec, Sampler, build_sampler
from rlora.summary import opening, summarize
from rlora.tasks.stream import ProblemStream
from rlora.tracking import MetricsLog, StepMetrics
from rlora.types import Problem
from rlora.verify import Verifier


def run(config: RunConfig, *, make_sampler: Callable[[EngineSpec], Sampler] = build_sampler) -> Path:
    """Train until `config.num_steps` and return the run directory.

    `step` counts finished iterations and is the version of the policy that samples. Every update is handed to the
    sampler and proven there before the next sample; a sampler that serves anything else ends the run with
    StaleAdapterError.
    """
    config.check()
    if config.init_adapter is not None:
        check_adapter(Path(config.init_adapter), config.lora)
    train, test = load_problems(config)
    folder = model_dir(config.model)
    run_dir = RunDir(Path(config.run_dir), to_json(config))
    with (
        Verifier(config.verifier) as verifier,
        MetricsLog(run_dir.path, config.tracking, num_steps=config.num_steps, run_config=to_json(config)) as log,
    ):
        parts = assemble(config, folder, train, verifier, make_sampler)
        log.display.say(opening(config, parts))
        with closing(parts.sampler):
            problems = ProblemStream(train, seed=config.seed)
            step, best, started, is_done = 0, -1.0, time.monotonic(), False
            parts.hot_swap.swap()
            while step < config.num_steps and not is_done:
                metrics = StepMetrics(step, log.display.phase)
                if config.evaluation.every and step % config.evaluation.every == 0:
                    with metrics.timed("evaluate"):
                        best = keep_best(config, parts, test, run_dir, best, metrics)
                chosen = problems.take(config.problems_per_step)
                with metrics.timed("sample"):
                    sampled = parts.engine.sample(
                        chosen,
                        config.sampling,
                        num_samples=config.samples_per_problem,
                        seed=config.seed,
                        key=("train", step),
                    )
                with metrics.timed("verify"):
                    groups = parts.engine.judge(sampled)
                metrics.update(rollout_metrics(groups, num_problems=len(chosen)))
                with metrics.timed("save"):
                    run_dir.save_rollouts(step, groups)
                with metrics.timed("swap"):
                    metrics.update(parts.hot_swap.check(groups))
                with metrics.timed("train"):
                    advantages = [ADVANTAGES[config.advantage]([r.reward for r in group.rollouts]) for group in groups]
                    has_kl = config.loss.kl_coefficient > 0
                    batch = build_batch(groups, advantages, config.batch, version=step, keep_all=has_kl)
                    metrics.update(parts.trainer.step(batch))
                step += 1
                with metrics.timed("swap"):
                    metrics.update(parts.hot_swap.swap())
                with metrics.timed("save"):
                    run_dir.save_adapter(parts.policy.adapter())
                values = metrics.finished()
                log.write(values)
                is_done = has_reached_bound(config, values, seconds=time.monotonic() - started)
            log.display.phase("final evaluation")
            summarize(config, parts, test, run_dir, log, best)
    return run_dir.path


def keep_best(
    config: RunConfig, parts: Parts, test: Sequence[Problem], run_dir: RunDir, best: float, metrics: StepMetrics
) -> float:
    """Score the policy greedily on a held-out part, keep its adapter if it is the best so far, and return the best
    score.
    """
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
        run_dir.save_adapter(parts.policy.adapter(), name="adapter-best")
    return max(best, accuracy.mean)


def has_reached_bound(config: RunConfig, values: Mapping[str, float], *, seconds: float) -> bool:
    """Return whether the run's bound on hours or on reward ends it after this step."""
    is_late = config.stop_after_hours is not None and seconds >= 3600 * config.stop_after_hours
    return is_late or (config.stop_at_reward is not None and values["reward/mean"] >= config.stop_at_reward)
