"""What a supervised run says at its start and at its end, and `summary.json`."""

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.table import Table

from rlora.evaluation.intervals import Estimate
from rlora.evaluation.log_loss import LogLoss, in_bits
from rlora.lora.inject import left_out
from rlora.model.sources import model_title
from rlora.supervised.advice import rate_warning, sizes_line
from rlora.supervised.config import SupervisedConfig
from rlora.supervised.data import Examples
from rlora.supervised.state import SupervisedRun
from rlora.tracking.metrics import peak_resident_bytes
from rlora.train.trainer import Trainer


def opening(config: SupervisedConfig, trainer: Trainer, examples: Examples) -> str:
    """Return what a run says before its first update: what is trained, on what, and into where."""
    policy, lora = trainer.policy, config.adapters
    what = "every weight" if lora is None else f"rank {lora.rank} on {lora.layers} layers"
    lines = [
        f"{model_title(config.model)}: supervised, {what}, {policy.flat.theta_D.numel():,} numbers, on "
        f"{policy.device}; run directory {config.run_dir}",
        sizes_line(config, examples),
    ]
    if warning := rate_warning(config, policy.model):
        lines.append(f"Warning: {warning}")
    if lora is not None and (names := left_out(policy.model, lora.layers)):
        lines.append(f"Without an update of their own: {', '.join(names)}.")
    return "\n".join(lines)


def summarize(run: SupervisedRun) -> dict[str, Any]:
    """Score base and policy on the held-out examples, and return what `summary.json` now holds.

    The policy becomes `adapter-best` unless an earlier one scored better.
    """
    config, policy, tally = run.config, run.trainer.policy, run.progress.tally
    with policy.adapter_off():
        base = run.held_out()
    trained = run.keep(run.held_out())
    snapshot = policy.snapshot()
    difference = trained.less(base)
    summary = {
        "kind": "supervised",
        "base": _both(base),
        "policy": _both(trained),
        "difference": {"nats": _values(difference), "bits": _values(in_bits(difference))},
        "best_nats": -run.progress.best,
        "num_examples": len(trained.nats_E),
        "num_tokens": sum(trained.tokens_E),
        "model": model_title(config.model),
        "data": config.data.title,
        "num_steps": tally.num_steps,
        "epochs": run.walk.position / len(run.examples.train),
        "train_seconds": tally.seconds.get("step", 0.0),
        "seconds_by_phase": {name: value for name, value in sorted(tally.seconds.items()) if name != "step"},
        "method": config.method,
        "policy_bytes": snapshot.num_bytes,
        "num_parameters": policy.flat.theta_D.numel(),
        "peak_resident_bytes": peak_resident_bytes(),
        "run_dir": str(run.folder.path),
    }
    run.folder.save_summary(summary)
    run.log.write_scores(
        {
            "loss/base": base.nats.mean,
            "loss/policy": trained.nats.mean,
            "loss/difference": difference.mean,
            "loss/difference_low": difference.low,
            "loss/difference_high": difference.high,
        }
    )
    name = "adapter" if config.method == "lora" else "model"
    run.log.write_policy(run.folder.path / name)
    run.log.write_policy(run.folder.path / f"{name}-best", is_best=True)
    title = f"Held-out loss of {len(base.nats_E)} examples of {config.data.title} (95 % intervals)"
    in_a_line = (
        f"{run.folder.path}: {summary['num_steps']} updates in {summary['train_seconds']:.1f} s; held-out nats "
        f"{_shown(trained.nats)}, base {_shown(base.nats)}, difference {_shown(difference)}"
    )
    lines = [title, *_footing(summary, run.folder.path)]
    run.log.display.closing(in_a_line, _table(base, trained, difference), lines)
    return summary


def _both(loss: LogLoss) -> dict[str, Any]:
    return {"nats": _values(loss.nats), "bits": _values(loss.bits)}


def _values(estimate: Estimate) -> dict[str, Any]:
    return {"mean": estimate.mean, "ci95": [estimate.low, estimate.high]}


def _table(base: LogLoss, policy: LogLoss, difference: Estimate) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("a token", "base", "policy", "difference"):
        table.add_column(column)
    table.add_row("nats", *map(_shown, (base.nats, policy.nats, difference)))
    table.add_row("bits", *map(_shown, (base.bits, policy.bits, in_bits(difference))))
    return table


def _shown(estimate: Estimate) -> str:
    return f"{estimate.mean:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]"


def _footing(summary: dict[str, Any], run_dir: Path) -> Iterator[str]:
    """Yield what a run cost, where its policy lies, and what may be done with it."""
    name = "adapter" if summary["method"] == "lora" else "model"
    folder, run = shlex.quote(f"{run_dir}/{name}"), shlex.quote(str(run_dir))
    yield (
        f"{summary['num_steps']} updates in {summary['train_seconds']:.1f} s; {name} of {summary['num_parameters']:,} "
        f"numbers, {summary['policy_bytes']:,} bytes, in {folder}"
    )
    if summary["best_nats"] < summary["policy"]["nats"]["mean"]:
        yield f"The best held-out loss was {summary['best_nats']:.4f} nats: {folder}-best."
    yield "Next:"
    yield f"  rlora eval --run {run} --benchmark gsm8k"
    if name == "adapter":
        yield f"  rlora train gsm8k --init-adapter {folder}      (at the same rank)"
        yield f"  rlora export {run} --merge --to {run}-merged   (then --model.name {run}-merged, at any rank)"
    else:
        yield f"  rlora train gsm8k --model.name {folder}"
