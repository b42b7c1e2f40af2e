"""Charts as Bokeh draws them in a browser: made here, drawn there when they are scrolled to.

Bokeh's Python package brings its JavaScript along, 1.3 MB; Plotly's is 4.8 MB, which a browser must read before
anything is drawn.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

from bokeh.embed import json_item
from bokeh.models import ColumnDataSource, HoverTool, LinearColorMapper, Range1d
from bokeh.plotting import figure
from bokeh.resources import INLINE

from rlora.report.panels import Axis, Panel, Row, columns_of

INK, FAINT = "#1f2933", "#d5dbe1"
COLOURS = ("#0b6bcb", "#c2410c", "#15803d", "#7e22ce", "#b91c1c", "#0e7490", "#a16207", "#be185d")
_SHADES = ("#f4f8fc", "#d6e6f5", "#b3d0ec", "#86b4df", "#5794ce", "#2f74b8", "#12559a", "#083a70")
Columns = Mapping[str, Sequence[float]]
_HEIGHT, _DOTS_UP_TO = 230, 60  # pixels; steps up to which each is a dot


def library() -> str:
    """Return the JavaScript that draws the charts."""
    return INLINE.js_raw[0]


def colour(number: int) -> str:
    """Return the colour of the run, or the metric, of this number; after eight they come again."""
    return COLOURS[number % len(COLOURS)]


def legend(panel: Panel, rows: Sequence[Sequence[Row]], names: Sequence[str]) -> list[tuple[str, str]]:
    """Return the colours of a chart and what they stand for: runs, or metrics; none where there is one line."""
    if len(rows) > 1:
        return [(colour(number), name) for number, name in enumerate(names)]
    if panel.style == "band":
        return []
    shown = _shown(panel, columns_of(panel, rows[0]))
    return [(_colour_of(panel, name), panel.metrics[name]) for name in shown] if len(shown) > 1 else []


def _shown(panel: Panel, columns: Mapping[str, Sequence[float]]) -> list[str]:
    """Return the metrics that are drawn of one run: of a stack those that are not nothing throughout."""
    there = [name for name in panel.metrics if name in columns]
    return [name for name in there if any(columns[name])] if panel.style == "stack" else there


def _colour_of(panel: Panel, name: str) -> str:
    number = list(panel.metrics).index(name)
    return panel.colours[number] if panel.colours else colour(number)


def chart(panel: Panel, rows: Sequence[Sequence[Row]], names: Sequence[str]) -> dict[str, Any] | None:
    """Return a chart of runs, as JSON that Bokeh embeds; None where no run has what it draws.

    Its sources are called `run:0`, `run:1` and so on, so that rows can be appended in a browser.
    """
    columns = [columns_of(panel, of_run) for of_run in rows]
    if not any(_has_numbers(panel, of_run) for of_run in columns):
        return None
    plot = _figure(panel)
    for number, of_run in enumerate(columns):
        source = ColumnDataSource(data=dict(of_run), name=f"run:{number}")
        if len(rows) > 1:
            _compare(plot, panel, source, of_run, label=names[number], line=colour(number))
        elif panel.style == "stack":
            _stack(plot, panel, source, of_run)
        else:
            _lines(plot, panel, source, of_run)
    return dict(json_item(plot))


def scatter(points: Sequence[Mapping[str, Any]], *, are_shares: bool) -> dict[str, Any]:
    """Return held-out score against learning rate, a line a rank; `points` have rate, rank, accuracy, low, high, name.

    Scores that are shares are drawn in per cent.
    """
    factor, unit = (100, "held-out score, %") if are_shares else (1, "held-out reward")
    plot = _figure(Panel(name="rates", title="", help="", metrics={}, unit=unit), x="learning rate", x_axis="log")
    for number, rank in enumerate(sorted({point["rank"] for point in points})):
        of_rank = sorted((point for point in points if point["rank"] == rank), key=lambda point: point["rate"])
        rates = sorted({point["rate"] for point in of_rank})
        means = [
            factor * sum(p["accuracy"] for p in of_rank if p["rate"] == rate) / sum(p["rate"] == rate for p in of_rank)
            for rate in rates
        ]
        source = ColumnDataSource(
            data={
                "rate": [point["rate"] for point in of_rank],
                "name": [point["name"] for point in of_rank],
                **{key: [factor * point[key] for point in of_rank] for key in ("accuracy", "low", "high")},
            }
        )
        plot.line(rates, means, line_color=colour(number), line_width=2, legend_label=f"rank {rank}")
        plot.segment("rate", "low", "rate", "high", source=source, line_color=colour(number), line_alpha=0.5)
        dots = plot.scatter("rate", "accuracy", source=source, size=7, fill_color=colour(number), line_color=None)
        score = "@accuracy{0.0} %" if are_shares else "@accuracy{0.000}"
        plot.add_tools(HoverTool(renderers=[dots], tooltips=[("run", "@name"), ("score", score)]))
    return dict(json_item(plot))


def lines(steps: Sequence[int], values: Mapping[str, Sequence[float | None]]) -> dict[str, Any]:
    """Return curves over steps, by their labels; where there is no value a curve has a gap."""
    plot = _figure(Panel(name="lines", title="", help="", metrics={}))
    for number, (label, of_label) in enumerate(values.items()):
        source = ColumnDataSource(data={"step": list(steps), "value": [_or_nan(value) for value in of_label]})
        drawn = plot.line("step", "value", source=source, line_color=colour(number), line_width=2)
        plot.scatter("step", "value", source=source, size=4, fill_color=colour(number), line_color=None)
        tips = [("", label), ("step", "@step"), ("value", "@value{0.0000}")]
        plot.add_tools(HoverTool(renderers=[drawn], tooltips=tips))
    return dict(json_item(plot))


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value


def heat(steps: Sequence[int], values: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """Return a map of values by step and by row, whose names stand from below in the order given; darker is larger."""
    names = list(values)
    ends = [*((a + b) / 2 for a, b in itertools.pairwise(steps)), steps[-1] + 0.5]
    starts = [steps[0] - 0.5, *ends[:-1]]
    cells = [(start, end, name, value, step) for name in names
             for start, end, step, value in zip(starts, ends, steps, values[name], strict=True)]  # fmt: skip
    source = ColumnDataSource(
        data={
            "left": [cell[0] for cell in cells],
            "right": [cell[1] for cell in cells],
            "name": [cell[2] for cell in cells],
            "value": [cell[3] for cell in cells],
            "step": [cell[4] for cell in cells],
            "bottom": [names.index(cell[2]) for cell in cells],
            "top": [names.index(cell[2]) + 1 for cell in cells],
        }
    )
    largest = max(cell[3] for cell in cells) or 1.0
    mapper = LinearColorMapper(palette=_SHADES, low=0, high=largest)
    plot = _figure(Panel(name="heat", title="", help="", metrics={}))
    drawn = plot.quad(
        left="left", right="right", bottom="bottom", top="top", source=source,
        fill_color={"field": "value", "transform": mapper}, line_color=None,
    )  # fmt: skip
    every = max(1, -(-len(names) // 10))
    plot.yaxis.ticker = [place + 0.5 for place in range(0, len(names), every)]
    plot.yaxis.major_label_overrides = {place + 0.5: names[place] for place in range(0, len(names), every)}
    plot.add_tools(
        HoverTool(renderers=[drawn], tooltips=[("", "@name"), ("step", "@step"), ("norm", "@value{0.000e}")])
    )
    return dict(json_item(plot))


def _figure(panel: Panel, *, x: str = "step", x_axis: Axis = "linear") -> Any:
    plot = figure(
        height=_HEIGHT,
        sizing_mode="stretch_width",
        x_axis_label=x,
        y_axis_type=panel.axis,
        x_axis_type=x_axis,
        tools="xpan,xwheel_zoom,xbox_zoom,reset",
        toolbar_location=None,
        active_drag=None,
        active_scroll=None,
        output_backend="canvas",
    )
    if panel.is_share and panel.style == "stack":
        plot.y_range = Range1d(start=0, end=panel.factor)
    plot.outline_line_color = None
    plot.min_border_left, plot.min_border_right = 56, 8
    for axis in (*plot.xaxis, *plot.yaxis):
        axis.axis_label_text_font_style = "normal"
        axis.axis_label_text_font_size = axis.major_label_text_font_size = "12px"
        axis.axis_label_text_color = axis.major_label_text_color = INK
        axis.axis_line_color = axis.major_tick_line_color = FAINT
        axis.minor_tick_line_color = None
    plot.grid.grid_line_color = FAINT
    plot.grid.grid_line_alpha = 0.6
    return plot


def _has_numbers(panel: Panel, columns: Mapping[str, Sequence[float]]) -> bool:
    return any(value == value for name in panel.metrics for value in columns.get(name, ()))  # NaN is not itself


def _lines(plot: Any, panel: Panel, source: ColumnDataSource, columns: Columns) -> None:
    names = _shown(panel, columns)
    if panel.style == "band":
        first, low, high = panel.metrics
        plot.segment("step", low, "step", high, source=source, line_color=colour(0), line_alpha=0.35, line_width=2)
        names = [first]
    drawn = []
    for name in names:
        line = _colour_of(panel, name)
        drawn.append(plot.line("step", name, source=source, line_color=line, line_width=2))
        if len(columns["step"]) <= _DOTS_UP_TO:
            plot.scatter("step", name, source=source, size=5, fill_color=line, line_color=None)
    shown = [*panel.metrics] if panel.style == "band" else names
    tips = [("step", "@step"), *((panel.metrics[name], f"@{{{name}}}{{0.0000}}") for name in shown)]
    plot.add_tools(HoverTool(renderers=drawn[:1], tooltips=tips, mode="vline"))


def _stack(plot: Any, panel: Panel, source: ColumnDataSource, columns: Columns) -> None:
    names = _shown(panel, columns)
    colours = [_colour_of(panel, name) for name in names]
    plot.varea_stack(names, x="step", source=source, fill_color=colours, fill_alpha=0.75)
    top = plot.vline_stack(names, x="step", source=source, line_color=colours, line_width=1)
    tips = [("step", "@step"), *((panel.metrics[name], f"@{{{name}}}{{0.0}} {panel.unit}") for name in names)]
    plot.add_tools(HoverTool(renderers=top[-1:], tooltips=tips, mode="vline"))


def _compare(plot: Any, panel: Panel, source: ColumnDataSource, columns: Columns, *, label: str, line: str) -> None:
    name = (panel.compared if panel.style == "stack" else None) or next(iter(panel.metrics))
    if name not in columns:
        return
    drawn = plot.line("step", name, source=source, line_color=line, line_width=2)
    if len(columns["step"]) <= _DOTS_UP_TO:
        plot.scatter("step", name, source=source, size=4, fill_color=line, line_color=None)
    title = name.rpartition("/")[2].replace("_", " ")
    tips = [("run", label), ("step", "@step"), (title, f"@{{{name}}}{{0.0000}}")]
    plot.add_tools(HoverTool(renderers=[drawn], tooltips=tips))
