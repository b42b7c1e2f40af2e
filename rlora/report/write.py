"""Runs -> one HTML file that opens anywhere: no network, no server, nothing beside it."""

import base64
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from rlora.diagnosis import Finding
from rlora.evaluation.intervals import mean_score
from rlora.evaluation.report import caption, table_rows
from rlora.report import charts
from rlora.report.panels import RL_PANELS, SUPERVISED_PANELS, Panel, Row
from rlora.report.rollouts import Pack, pack_runs, packed
from rlora.report.runs import ReportedRun, score_text, settings_of
from rlora.report.summary import forest_of, lead_of, scores_of, tiles_of, title_of
from rlora.system.files import write_atomically

MAX_ROLLOUTS = 64_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """A chart of the page: what it is called, what it shows, and how Bokeh draws it."""

    name: str
    title: str
    unit: str
    help: str
    alt: str
    item: Mapping[str, Any]
    legend: Sequence[tuple[str, str]] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """The HTML of a report, and the rollouts that are in it."""

    html: str
    pack: Pack


def write_report(page: Page, path: Path) -> None:
    """Write a page, whole or not at all."""
    with write_atomically(path) as temporary:
        temporary.write_text(page.html, encoding="utf-8", errors="backslashreplace")


def page_of(
    runs: Sequence[ReportedRun],
    findings: Mapping[str, Sequence[Finding]],
    *,
    adapter: Mapping[str, Any] | None = None,
    max_rollouts: int = MAX_ROLLOUTS,
    pack: Pack | None = None,
    watch: Mapping[str, str] | None = None,
) -> Page:
    """Return the page of runs of one kind, with the `findings` of each by name.

    `adapter` is what is drawn of the policies themselves (`rlora.report.of_adapter`). A live page has rollouts that are
    packed already, and in `watch` the address that it asks for more, and what it asks for next.
    """
    pack = pack or pack_runs(runs, limit=max_rollouts)
    rows = [with_intervals(run, number, pack) for number, run in enumerate(runs)]
    drawn = _charts(runs, rows)
    of_adapter = _adapter_charts(adapter) if adapter else []
    items = {one.name: one.item for one in (*drawn, *of_adapter)}
    head = {**pack.head(), "watch": watch}
    library, script = charts.library(), _text("report.js")
    parts = [("summary", "Summary"), ("learning", "Learning")]
    parts += [("rollouts", "Rollouts")] if len(pack) else []
    evaluations = [_evaluation(run, folder, results) for run in runs for folder, results in run.evaluations.items()]
    parts += [("evaluation", "Evaluation")] if evaluations else []
    parts += [("adapter", "Adapter")] if adapter else []
    parts += [("configuration", "Configuration")]
    frame = Environment(autoescape=True, undefined=StrictUndefined).from_string(_text("report.html"))
    html = frame.render(
        policy=_policy(library, script, is_live=watch is not None),
        css=Markup(_text("report.css")),
        title=title_of(runs),
        lead=lead_of(runs),
        parts=parts,
        tiles=tiles_of(runs),
        scores=scores_of(runs),
        forest=forest_of(runs),
        diagnosis=diagnosis_html(findings),
        runs=_runs_table(runs) if len(runs) > 1 else None,
        charts=drawn,
        has_rollouts=len(pack) > 0,
        evaluations=evaluations,
        adapter={**adapter, "charts": of_adapter} if adapter else None,
        configurations=[{"name": run.name, "text": json.dumps(run.config, indent=2)} for run in runs],
        footer=f"Written by rlora on {datetime.now(UTC):%Y-%m-%d %H:%M} UTC.",
        chart_data=_json(items),
        head=_json(head),
        formulas=Markup(packed(pack.formulas.typeset())),
        chunks=[Markup(chunk) for chunk in pack.chunks],
        library=Markup(library),
        script=Markup(script),
    )
    return Page(html=html, pack=pack)


def with_intervals(run: ReportedRun, number: int, pack: Pack) -> list[Row]:
    """Return a run's rows, those of steps whose rollouts are in the pack with the interval of their mean reward."""
    rewards: dict[int, dict[int, list[float]]] = {}
    is_training = [one.run == number and one.name.endswith(": training") for one in pack.sets]
    index = pack.index
    for place, step, problem, reward in zip(
        index["set"], index["step"], index["problem"], index["reward"], strict=True
    ):
        if is_training[place]:
            rewards.setdefault(step, {}).setdefault(problem, []).append(reward)
    rows: list[Row] = []
    for row in run.rows:
        groups = rewards.get(int(row["step"]))
        if groups:
            mean = mean_score([sum(group) / len(group) for group in groups.values()])
            row = {**row, "reward/low": mean.low, "reward/high": mean.high}
        rows.append(row)
    return rows


def panels_of(runs: Sequence[ReportedRun]) -> Sequence[Panel]:
    """Return the charts of runs of this kind, with scores in per cent where all have shares."""
    if runs[0].kind != "rl":
        return SUPERVISED_PANELS
    if all(run.has_shares for run in runs):
        return RL_PANELS
    return [replace(one, unit="", factor=1.0) if one.name == "held_out" else one for one in RL_PANELS]


def _charts(runs: Sequence[ReportedRun], rows: Sequence[Sequence[Row]]) -> list[Drawn]:
    drawn = []
    for panel in panels_of(runs):
        item = charts.chart(panel, rows, [run.name for run in runs])
        if item is not None:
            drawn.append(
                Drawn(
                    name=panel.name,
                    title=panel.title,
                    unit=panel.unit,
                    help=panel.help,
                    alt=_alt(panel, rows),
                    item=item,
                    legend=charts.legend(panel, rows, [run.name for run in runs]),
                )
            )
    points = [_point(run) for run in runs if run.accuracy is not None]
    are_shares = all(run.has_shares for run in runs)
    if len({point["rate"] for point in points}) > 1:
        drawn.insert(
            0,
            Drawn(
                name="rates",
                title="Score against learning rate",
                unit="%" if are_shares else "",
                help="A dot is a run with its 95 % interval; a line joins the means of one rank.",
                alt=f"Held-out scores of {len(points)} runs against their learning rates",
                item=charts.scatter(points, are_shares=are_shares),
            ),
        )
    return drawn


def _point(run: ReportedRun) -> dict[str, Any]:
    accuracy, config = run.accuracy, run.config
    assert accuracy is not None
    return {
        "name": run.name,
        "rate": config["optimizer"]["learning_rate"],
        "rank": "full" if config.get("method") == "full" else str(config["lora"]["rank"]),
        "accuracy": accuracy["accuracy"],
        "low": accuracy["ci95"][0],
        "high": accuracy["ci95"][1],
    }


def _alt(panel: Panel, rows: Sequence[Sequence[Row]]) -> str:
    """Return a chart in words: its first and its last value."""
    name = next((name for name in panel.metrics if any(name in row for row in rows[0])), None)
    values = [row[name] * panel.factor for row in rows[0] if name in row] if name else []
    if not values:
        return panel.title
    unit = f" {panel.unit}" if panel.unit else ""
    return f"{panel.title}: {panel.metrics[name or '']} from {values[0]:.3g} to {values[-1]:.3g}{unit}"


def _adapter_charts(adapter: Mapping[str, Any]) -> list[Drawn]:
    return [Drawn(**one) for one in adapter["charts"]]


def diagnosis_html(findings: Mapping[str, Sequence[Finding]]) -> Markup:
    """Return what was found of each run, and what to do, as HTML."""
    blocks = []
    for name, of_run in findings.items():
        heading = Markup("<h3>{}</h3>").format(name) if len(findings) > 1 else Markup()
        if not of_run:
            blocks.append(
                heading + Markup('<p class="healthy">{}</p>').format("Nothing that is known to go wrong was seen.")
            )
            continue
        items = Markup().join(
            Markup("<li><p><strong>{}</strong></p><p>{}</p>{}</li>").format(
                finding.what,
                finding.remedy,
                Markup("<pre>{}</pre>").format("\n".join(finding.examples)) if finding.examples else Markup(),
            )
            for finding in of_run
        )
        blocks.append(heading + Markup('<ul class="findings">{}</ul>').format(items))
    return Markup().join(blocks)


def _runs_table(runs: Sequence[ReportedRun]) -> dict[str, Any]:
    settings = settings_of(runs)
    names = list(settings[0])
    score = "held-out score" if runs[0].kind == "rl" else "held-out loss, nats"
    return {
        "head": ["run", *names, "steps", score],
        "rows": [
            {
                "name": run.name,
                "colour": charts.colour(number),
                "cells": [*(setting[name] for name in names), str(len(run.rows)), _score(run)],
            }
            for number, (run, setting) in enumerate(zip(runs, settings, strict=True))
        ],
    }


def _score(run: ReportedRun) -> str:
    if run.accuracy is not None:
        return score_text(run, run.accuracy["accuracy"], run.accuracy["ci95"])
    nats = run.summary.get("policy", {}).get("nats")
    return "" if nats is None else f"{nats['mean']:.4f} [{nats['ci95'][0]:.4f}, {nats['ci95'][1]:.4f}]"


def _evaluation(run: ReportedRun, folder: Path, results: Mapping[str, Any]) -> dict[str, Any]:
    head, *rows = table_rows(results)
    return {"title": f"{run.name}, {folder.name}", "head": head, "rows": rows, "caption": caption(results)}


def _policy(*scripts: str, is_live: bool) -> str:
    """Return the content security policy: these scripts run and no other, and nothing is fetched from elsewhere."""
    digests = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
    connect = "'self'" if is_live else "'none'"
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:; "
        f"connect-src {connect}; base-uri 'none'; form-action 'none'"
    )


def json_text(values: Any) -> str:
    """Return JSON in which what is no number is null."""
    return json.dumps(_finite(values), ensure_ascii=True, separators=(",", ":"), allow_nan=False)


def _json(values: Any) -> Markup:
    """Return JSON that may stand in a script element."""
    text = json_text(values)
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def _finite(values: Any) -> Any:
    if isinstance(values, float):
        return values if math.isfinite(values) else None
    if isinstance(values, Mapping):
        return {key: _finite(value) for key, value in values.items()}
    if isinstance(values, list | tuple):
        return [_finite(value) for value in values]
    return values


def _text(name: str) -> str:
    return (files("rlora.report.page") / name).read_text(encoding="utf-8")
