"""The first panel of a report: what was run, and what came out, beside the base."""

from collections.abc import Mapping, Sequence
from typing import Any

from rlora.report.charts import COLOURS
from rlora.report.runs import ReportedRun, score_text

_LEFT, _RIGHT = 170, 620  # of the axis, in the picture's own pixels


def title_of(runs: Sequence[ReportedRun]) -> str:
    """Return the page's title."""
    return runs[0].name if len(runs) == 1 else f"{len(runs)} runs: {runs[0].name} and others"


def lead_of(runs: Sequence[ReportedRun]) -> str:
    """Return what was run, in a sentence."""
    run = runs[0]
    config, kind = run.config, "reinforcement learning" if run.kind == "rl" else "supervised training"
    data, model = config["data"], str(config["model"]["name"])
    named = str(data.get("train") or data.get("name"))
    if len(runs) > 1:
        return f"{kind.capitalize()} on {named}, base {model}; lines are coloured by run."
    lora = config["lora"]
    is_full = config.get("method") == "full"
    trained = "every weight" if is_full else f"rank {lora['rank']} on {lora['layers']} layers"
    rate = config["optimizer"]["learning_rate"]
    return f"{kind.capitalize()} on {named}: {trained} of {model}, learning rate {rate:g}, seed {config['seed']}."


def tiles_of(runs: Sequence[ReportedRun]) -> list[dict[str, str]]:
    """Return the figures at the head of a page of one run, nothing for several."""
    if len(runs) > 1:
        return []
    run, rows = runs[0], runs[0].rows
    tiles = [_tile("Steps", f"{len(rows)} / {run.config['num_steps']}", _state(run))]
    if not rows:
        return tiles
    if run.kind == "rl":
        few = rows[-5:]
        mean = sum(row["reward/mean"] for row in few) / len(few)
        tiles.append(_tile("Reward", f"{mean:.3f}", f"last {len(few)} steps; {rows[0]['reward/mean']:.3f} at first"))
        tiles.append(_tile("Groups with signal", f"{100 * _mean(few, 'groups/mixed_share'):.0f} %", "last steps"))
        tiles.append(_tile("Cut off", f"{100 * _mean(few, 'rollout/truncated_share'):.0f} %", "last steps"))
        speed = _mean(rows, "throughput/sampled_tokens_per_second")
        tiles.append(_tile("Sampling", f"{speed:,.0f}", "tokens a second"))
    else:
        tiles.append(_tile("Loss", f"{rows[-1]['loss/value']:.4f}", f"nats; {rows[0]['loss/value']:.4f} at first"))
        speed = _mean(rows, "throughput/trained_tokens_per_second")
        tiles.append(_tile("Training", f"{speed:,.0f}", "trained tokens a second"))
    tiles.append(_tile("Time", _duration(sum(row["seconds/step"] for row in rows)), "in steps"))
    if size := run.summary.get("policy_bytes"):
        tiles.append(_tile("Policy", _size(size), f"{run.summary['num_parameters']:,} numbers"))
    return tiles


def _tile(name: str, value: str, note: str = "") -> dict[str, str]:
    return {"name": name, "value": value, "note": note}


def _state(run: ReportedRun) -> str:
    return "finished" if run.summary else "running" if run.is_running else "stopped"


def _mean(rows: Sequence[Mapping[str, float]], name: str) -> float:
    values = [row[name] for row in rows if name in row]
    return sum(values) / max(1, len(values))


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _size(num_bytes: float) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if num_bytes >= size:
            return f"{num_bytes / size:.3g} {unit}"
    return f"{num_bytes} bytes"


def scores_of(runs: Sequence[ReportedRun]) -> dict[str, Any] | None:
    """Return the scores of base and policy and their paired difference as a table; None where none was scored."""
    scored = [run for run in runs if run.summary]
    if not scored:
        return None
    first = ["run"] if len(runs) > 1 else ["loss" if runs[0].kind == "supervised" else "sampling"]
    if runs[0].kind == "supervised":
        rows = [_loss_row(run, "nats a token" if len(runs) == 1 else run.name) for run in scored]
        return {
            "head": [*first, "base", "policy", "difference"],
            "rows": rows,
            "caption": f"Held-out loss of {scored[0].summary['num_examples']} examples, with 95 % intervals.",
        }
    rows = []
    for run in scored:
        for how, words in (("greedy", "greedy"), ("sampled", "drawn")):
            if len(runs) > 1 and how == "sampled":
                continue
            one = run.summary[how]
            rows.append([words if len(runs) == 1 else run.name, *_cells(run, one)])
    return {
        "head": [*first, "base", "policy", "difference"],
        "rows": rows,
        "caption": f"Held-out scores on {scored[0].summary['num_problems']} problems, 95 % intervals over problems; "
        "differences are paired by problem.",
    }


def _cells(run: ReportedRun, one: Mapping[str, Any]) -> list[str]:
    texts = []
    for name in ("base", "policy", "difference"):
        value = one[name]
        texts.append(score_text(run, value["mean" if name == "difference" else "accuracy"], value["ci95"]))
    return texts


def _loss_row(run: ReportedRun, name: str) -> list[str]:
    values = [run.summary["base"]["nats"], run.summary["policy"]["nats"], run.summary["difference"]["nats"]]
    return [name, *(f"{one['mean']:.4f} [{one['ci95'][0]:.4f}, {one['ci95'][1]:.4f}]" for one in values)]


def forest_of(runs: Sequence[ReportedRun]) -> dict[str, Any] | None:
    """Return scores with their intervals as points on one axis: base and policy, greedy and drawn; None where a page
    has several runs, or none that was scored in shares.
    """
    if len(runs) > 1 or not runs[0].summary or runs[0].kind != "rl" or not runs[0].has_shares:
        return None
    arms = [
        (f"{arm}, {words}", runs[0].summary[how][arm])
        for how, words in (("greedy", "greedy"), ("sampled", "drawn"))
        for arm in ("base", "policy")
    ]
    ends = [end for _, arm in arms for end in arm["ci95"]]
    low, high = _axis(min(ends), max(ends))

    def at(value: float) -> float:
        return round(_LEFT + (_RIGHT - _LEFT) * (value - low) / (high - low), 1)

    ticks = [low + (high - low) * part / 4 for part in range(5)]
    return {
        "height": 34 + 26 * len(arms),
        "label": "; ".join(f"{name} {100 * arm['accuracy']:.1f} %" for name, arm in arms),
        "ticks": [{"x": at(tick), "text": f"{100 * tick:.3g} %"} for tick in ticks],
        "arms": [
            {
                "name": name,
                "y": 20 + 26 * number,
                "mean": at(arm["accuracy"]),
                "low": at(arm["ci95"][0]),
                "high": at(arm["ci95"][1]),
                "colour": COLOURS[0] if "policy" in name else "#7b8794",
            }
            for number, (name, arm) in enumerate(arms)
        ],
    }


def _axis(low: float, high: float) -> tuple[float, float]:
    """Return an axis around scores that begins and ends at round ones."""
    for step in (0.04, 0.2, 0.4, 1.0):
        start = int(low / (step / 4)) * (step / 4)
        if start + step >= high:
            return start, start + step
    return 0.0, 1.0
