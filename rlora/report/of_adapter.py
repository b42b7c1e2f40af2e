"""The study of adapters as charts: which layers move, which way, and how well the first steps foretold it."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from rlora.errors import CheckpointError, RloraError
from rlora.report import charts
from rlora.report.adapter import AdapterStudy, cosines, lines, study
from rlora.report.runs import ReportedRun


def adapter_part(runs: Sequence[ReportedRun]) -> dict[str, Any] | None:
    """Return the sentences, the charts and, of several runs, the cosines between their policies; None where no run has
    a low-rank policy. What cannot be read is said in a sentence.
    """
    said: list[str] = []
    drawn: list[dict[str, Any]] = []
    for number, run in enumerate(runs):
        try:
            found = study(run.path)
        except CheckpointError as error:
            said.append(f"{run.name}: {error}")
            continue
        if found is None:
            continue
        name = f"{run.name}: " if len(runs) > 1 else ""
        said += [f"{name}{line}" for line in lines(found)]
        if number == 0:
            drawn = _charts(found, name)
    table = _cosine_table(runs) if len(runs) > 1 else None
    return {"lines": said, "charts": drawn, "table": table} if said else None


def _charts(found: AdapterStudy, name: str) -> list[dict[str, Any]]:
    steps, figures = found.steps, itertools.count()

    def drawn(title: str, text: str, item: Mapping[str, Any], legend: Sequence[tuple[str, str]] = ()) -> dict[str, Any]:
        heading = f"{name}{title}"
        shown = {"name": f"adapter-{next(figures)}", "title": heading, "unit": "", "help": text, "alt": heading}
        return {**shown, "item": item, "legend": legend}

    parts = [
        drawn(
            "Norm of the update by layer",
            "Darker is larger. The update is B A, scaled as it is served.",
            charts.heat(steps, found.layer_norms),
        ),
        drawn(
            "Norm of the update by kind of matrix",
            "The same by what a matrix is for.",
            *_lines(steps, found.kind_norms),
        ),
        drawn(
            "Direction",
            "Cosine of each version's update with that of the last, and with that of the version before.",
            *_lines(steps, {"with the last": found.cosines_to_last, "with the one before": found.cosines_to_previous}),
        ),
    ]
    if found.effective_ranks is not None:
        parts.append(
            drawn(
                "Effective rank",
                f"How many directions the matrices use of {found.rank}, in the mean by squared norm.",
                *_lines(steps, {"effective rank": found.effective_ranks}),
            )
        )
    if (line := found.line) is not None:
        errors = {"foretold by the line": line.errors, "if nothing moved any more": line.errors_if_still}
        parts.append(
            drawn(
                "What the first steps foretell",
                f"The line through the versions up to step {line.seen[-1]}, extended: the norm of its error over that "
                "of the update. Below the second curve it says something.",
                *_lines(line.steps, errors),
            )
        )
    return parts


def _lines(
    steps: Sequence[int], values: Mapping[str, Sequence[float | None]]
) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    legend = [(charts.colour(number), label) for number, label in enumerate(values)]
    return charts.lines(steps, values), legend if len(values) > 1 else []


def _cosine_table(runs: Sequence[ReportedRun]) -> dict[str, Any] | None:
    """Return the cosines between the newest policies of runs on one base; None where they cannot be compared."""
    try:
        table = cosines([run.path for run in runs])
    except RloraError:
        return None
    if all(value is None for row, values in enumerate(table) for column, value in enumerate(values) if row != column):
        return None
    return {
        "head": ["cosine", *(run.name for run in runs)],
        "rows": [
            [run.name, *("" if value is None else f"{value:.3f}" for value in values)]
            for run, values in zip(runs, table, strict=True)
        ],
    }
