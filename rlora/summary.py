"""The end of a run: score base and policy on held-out problems, write `summary.json`, print the table."""

import itertools
import shlex
import shutil
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from rlora.advice import rate_warning, rollout_bytes
from rlora.assemble import Parts, Problems
from rlora.evaluation.held_out import Comparison, compare_with_base
from rlora.evaluation.intervals import Estimate
from rlora.lora.inject import left_out
from rlora.model.sources import model_title
from rlora.rewards import is_share
from rlora.run_config import RunConfig
from rlora.state import Run
from rlora.tasks.overlap import overlap_report
from rlora.text import shortened
from rlora.tracking.metrics import peak_resident_bytes
from rlora.tracking.tally import Tally
from rlora.train.memory_plan import MemoryPlan
from rlora.types import Problem


def opening(config: RunConfig, parts: Parts, problems: Problems) -> str:
    """Return what a run says before its first step: what is trained, sampled by what, on which device, into where."""
    policy, kind = parts.policy, config.sampler.resolved_kind
    lines = [
        f"{model_title(config.model)}: {_trained(config)}, "
        f"{policy.flat.theta_D.numel():,} numbers, on {policy.device}; data {config.data.title}; sampler {kind}; "
        f"run directory {config.run_dir}"
    ]
    if isinstance(parts.plan, MemoryPlan):
        lines.append(parts.plan.summary())
    elif policy.base.recompute_above is not None:
        above = f" of more than {policy.base.recompute_above} positions" if policy.base.recompute_above else ""
        lines.append(f"Layers of rows{above} are computed again in the backward pass, to save memory.")
    if warning := rate_warning(config, policy.model):
        lines.append(f"Warning: {warning}")
    free, needed = shutil.disk_usage(config.run_dir).free, rollout_bytes(config)
    if needed > free:
        lines.append(
            f"Warning: rollouts may take {needed / 1e9:.3g} GB, and {free / 1e9:.3g} GB are free in {config.run_dir}: "
            "--rollouts.keep-last and --rollouts.keep-every say which are kept."
        )
    if config.adapters is not None and (names := left_out(policy.model, config.adapters.layers)):
        lines.append(f"Without an update of their own: {', '.join(names)}.")
    if problems.overlap:
        lines.append(overlap_report(problems.overlap))
    if config.sampler.kind == "auto" and kind == "torch":
        lines.append("vLLM is not installed here: sampling with rlora's own PyTorch sampler, which is slow.")
    if policy.device.type == "cuda" and not config.sampler.exact:
        lines.append("On a GPU samples and gradients do not repeat bit for bit unless --sampler.exact is given.")
    if torch.cuda.device_count() > 1:
        lines.append(f"{torch.cuda.device_count()} GPUs are here; one is used.")
    return "\n".join(lines)


def summarize(run: Run) -> dict[str, Any]:
    """Evaluate greedily and at the training temperature, and return what `summary.json` now holds.

    The headline is the greedy score. The last policy becomes `adapter-best` unless an earlier one
    scored higher.
    """
    config, parts, run_dir = run.config, run.parts, run.folder
    sampling, test = config.evaluated_sampling, run.test
    count = itertools.count(1)

    def prove_served(policy: int | None) -> None:
        run.log.display.phase(f"final evaluation {next(count)}/4")
        parts.hot_swap.prove_served(policy)

    greedily = replace(sampling, temperature=0.0)
    greedy = compare_with_base(parts.engine, test, greedily, seed=config.seed, prove_served=prove_served)
    drawn = compare_with_base(parts.engine, test, sampling, seed=config.seed, prove_served=prove_served)
    held_out = greedy.policy.scores_P[: config.evaluation.num_problems_during_training]
    snapshot = parts.policy.snapshot()
    if sum(held_out) / len(held_out) >= run.progress.best:
        run_dir.save_policy(snapshot, is_best=True)
    tally = run.progress.tally
    summary = {
        "base": _score(greedy.base.accuracy),
        "policy": _score(greedy.policy.accuracy),
        "difference": {"mean": greedy.difference.mean, "ci95": _interval(greedy.difference)},
        "num_problems": len(greedy.policy.scores_P),
        "num_prompts_too_long": greedy.policy.num_too_long,
        "greedy": _comparison(greedy),
        "sampled": {"temperature": sampling.temperature, **_comparison(drawn)},
        "model": model_title(config.model),
        "data": config.data.title,
        "num_steps": tally.num_steps,
        "train_seconds": tally.seconds.get("step", 0.0),
        "seconds_by_phase": _seconds_by_phase(tally),
        "method": config.method,
        "policy_bytes": snapshot.num_bytes,
        "num_parameters": parts.policy.flat.theta_D.numel(),
        **_agreement(tally, run_dir.rows()),
        "peak_resident_bytes": peak_resident_bytes(),
        "run_dir": str(run_dir.path),
    }
    run_dir.save_summary(summary)
    run.log.write_scores(scores_of(summary))
    name = "adapter" if config.method == "lora" else "model"
    run.log.write_policy(run_dir.path / name)
    run.log.write_policy(run_dir.path / f"{name}-best", is_best=True)
    for line in without_update(run_dir.rows()):
        run.log.display.say(line)
    lines = [_title(summary), *_footing(summary), "", *_examples(test, greedy), *next_commands(run_dir.path)]
    text = partial(Estimate.text, is_share=is_share(config.reward))
    run.log.display.closing(_in_a_line(summary, greedy, text), _table(summary, greedy, drawn, text), lines)
    return summary


def scores_of(summary: Mapping[str, Any]) -> dict[str, float]:
    """Return the scores of a summary by name, greedy and drawn, each with the ends of its 95 % interval.

    Example:
        >>> scores_of(summary)["greedy/policy"]
        0.76
    """
    scores: dict[str, float] = {}
    for how in ("greedy", "sampled"):
        for name in ("base", "policy", "difference"):
            value = summary[how][name]
            low, high = value["ci95"]
            mean = value["mean" if name == "difference" else "accuracy"]
            scores |= {f"{how}/{name}": mean, f"{how}/{name}_low": low, f"{how}/{name}_high": high}
    return scores


def without_update(rows: Sequence[Mapping[str, float]]) -> Iterator[str]:
    """Yield that none of the steps in the log trained anything, with the shares of verdicts; nothing if one did."""
    if not rows or not all(row["optimizer/is_empty_batch"] for row in rows):
        return
    count = sum(row["rollout/num_completions"] for row in rows)
    shares = {
        name.removeprefix("verdict/").removesuffix("_share"): sum(
            row.get(name, 0.0) * row["rollout/num_completions"] for row in rows
        )
        / max(1, count)
        for name in rows[-1]
        if name.startswith("verdict/")
    }
    said = [f"{100 * share:.3g} % {kind}" for kind, share in sorted(shares.items(), key=lambda one: -one[1]) if share]
    yield (
        f"Warning: 0 of {len(rows)} updates were made: no group had rewards that differ, so nothing was trained. Of "
        f"{count:.0f} completions: {', '.join(said) or 'none'}. `rlora check` shows why single ones are right or wrong."
    )


def _trained(config: RunConfig) -> str:
    lora = config.adapters
    return "every weight" if lora is None else f"rank {lora.rank} on {lora.layers} layers"


def _interval(estimate: Estimate) -> list[float]:
    return [estimate.low, estimate.high]


def _score(estimate: Estimate) -> dict[str, Any]:
    return {"accuracy": estimate.mean, "ci95": _interval(estimate)}


def _comparison(comparison: Comparison) -> dict[str, Any]:
    base, policy = comparison.base, comparison.policy
    measures: dict[str, Any] = {}
    for name in policy.measures_P:
        measures |= {f"base_{name}": _score(base.measure(name)), f"policy_{name}": _score(policy.measure(name))}
    return {
        "base": _score(base.accuracy),
        "policy": _score(policy.accuracy),
        **measures,
        "difference": {"mean": comparison.difference.mean, "ci95": _interval(comparison.difference)},
        **{f"format_share_of_{name}_gain": comparison.format_share(name) for name in policy.measures_P},
        "base_truncated_share": comparison.base.truncated_share,
        "policy_truncated_share": comparison.policy.truncated_share,
    }


def _seconds_by_phase(tally: Tally) -> dict[str, float]:
    return {phase: seconds for phase, seconds in sorted(tally.seconds.items()) if phase != "step"}


def _agreement(tally: Tally, rows: Sequence[Mapping[str, float]]) -> dict[str, float | None]:
    """Return how far trainer and sampler were apart: the first trained step, the median and the maximum over steps.

    The median is that of the steps whose rows the log still has.
    """
    found: dict[str, float | None] = {}
    for short, name in (
        ("kl_k3", "agreement/kl_k3"),
        ("mean_abs_logprob_difference", "agreement/mean_abs_logprob_difference"),
    ):
        values = [row[name] for row in rows if name in row]
        found[f"first_{short}"] = tally.first.get(name)
        found[f"median_{short}"] = statistics.median(values) if values else None
        found[f"max_{short}"] = tally.largest.get(name)
    return found


def _title(summary: dict[str, Any]) -> str:
    too_long = summary["num_prompts_too_long"]
    about = f"{summary['num_problems']} held-out problems" + (
        f", {too_long} of them too long and so wrong" if too_long else ""
    )
    return f"{summary['data']}, {about}, {summary['model']} (95 % intervals)"


def _in_a_line(summary: dict[str, Any], greedy: Comparison, text: Callable[[Estimate], str]) -> str:
    return (
        f"{summary['run_dir']}: {summary['num_steps']} steps in {summary['train_seconds']:.1f} s; held-out, greedy: "
        f"{text(greedy.policy.accuracy)}, base {text(greedy.base.accuracy)}, difference {text(greedy.difference)}"
    )


def _table(summary: dict[str, Any], greedy: Comparison, drawn: Comparison, text: Callable[[Estimate], str]) -> Table:
    """Return the scores of base and policy as `text` writes them; those of measures, which are shares, in per cent."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("", "base", "policy", "difference"):
        table.add_column(column)
    temperature = summary["sampled"]["temperature"]
    for name, comparison in (("greedy", greedy), (f"temperature {temperature:g}", drawn)):
        scores = (comparison.base.accuracy, comparison.policy.accuracy, comparison.difference)
        table.add_row(name, *map(text, scores))
        for measure in comparison.policy.measures_P:
            base, policy = comparison.base.measure(measure), comparison.policy.measure(measure)
            table.add_row(f"  {measure}", str(base), str(policy), "")
    return table


def _footing(summary: dict[str, Any]) -> Iterator[str]:
    """Yield what a run cost and how near the two computations were, beneath the table."""
    name = "adapter" if summary["method"] == "lora" else "model"
    yield (
        f"{summary['num_steps']} steps in {summary['train_seconds']:.1f} s; {name} of {summary['num_parameters']:,} "
        f"numbers, {summary['policy_bytes']:,} bytes, in {summary['run_dir']}/{name}"
    )
    if summary["max_kl_k3"] is not None:
        yield (
            f"trainer against sampler, at most: KL {summary['max_kl_k3']:.1e}, "
            f"{summary['max_mean_abs_logprob_difference']:.4f} nats a token"
        )


def _examples(problems: Sequence[Problem], greedy: Comparison, *, num_shown: int = 2) -> Iterator[str]:
    """Yield what base and policy said to some problems, those first to which the policy's answer is better."""
    before, after = greedy.base, greedy.policy
    gains = [new - old for new, old in zip(after.scores_P, before.scores_P, strict=True)]
    for index in sorted(range(len(problems)), key=lambda index: (-gains[index], index))[:num_shown]:
        problem = problems[index]
        yield f"{shortened(problem.question)}  (gold {shortened(problem.answer, 20)})"
        for name, each in (("before", before), ("after", after)):
            yield f"  {name:<6}  reward {each.scores_P[index]:g}: {shortened(each.texts_P[index]) or '(nothing)'}"


def next_commands(run_dir: Path) -> Iterator[str]:
    """Yield what may be done with a finished run, and how its commands are found where they are not on the path."""
    run = shlex.quote(str(run_dir))
    yield "Next:"
    if shutil.which("rlora") is None and (activate := Path(sys.prefix) / "bin" / "activate").is_file():
        yield f"  source {shlex.quote(_from_here(activate))}"
    yield f"  rlora eval --run {run} --benchmark aime2024,aime2025,aime2026"
    yield f"  rlora export {run} --to {run}-adapter"
    yield f"  rlora check {run}"


def _from_here(path: Path) -> str:
    """Return a path as one types it in the current folder."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
