"""Rate against held-out score, a line a rank, as PNG and SVG."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlora.system.files import write_atomically


def draw(rows: Sequence[Mapping[str, Any]], folder: Path, *, is_share: bool = True) -> None:
    """Write `plot.png` and `plot.svg` of members that were scored at their end; nothing where there are none.

    A dot is a member, its bar the 95 % interval; the line joins the means over seeds of one rank. A hollow one was
    stopped early, and stands at the score that it was stopped by, which is of an earlier step. Scores that are shares
    are drawn in per cent.
    """
    scored = [row for row in rows if row["ci95"] is not None]
    stopped = [row for row in rows if row["ci95"] is None and row["score"] is not None]
    if not scored:
        return
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    scale = 100 if is_share else 1
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for rank in sorted({row["rank"] for row in scored}):
        of_rank = [row for row in scored if row["rank"] == rank]
        rates = sorted({row["learning_rate"] for row in of_rank})
        means = [scale * statistics.fmean(r["score"] for r in of_rank if r["learning_rate"] == rate) for rate in rates]
        (line,) = axes.plot(rates, means, label=f"rank {rank}")
        scores = [scale * row["score"] for row in of_rank]
        low = [max(0.0, scale * (row["score"] - row["ci95"][0])) for row in of_rank]
        high = [max(0.0, scale * (row["ci95"][1] - row["score"])) for row in of_rank]
        axes.errorbar(
            [row["learning_rate"] for row in of_rank],
            scores,
            yerr=[low, high],
            fmt="o",
            color=line.get_color(),
            capsize=3,
            alpha=0.7,
        )
    if stopped:
        axes.plot(
            [row["learning_rate"] for row in stopped],
            [scale * row["score"] for row in stopped],
            linestyle="none",
            marker="o",
            markerfacecolor="none",
            color="gray",
            label="stopped early",
        )
    axes.set_xscale("log")
    axes.set_xlabel("learning rate")
    axes.set_ylabel("held-out score, %" if is_share else "held-out reward")
    axes.grid(visible=True, alpha=0.3)
    axes.legend(frameon=False)
    for name, canvas in (("plot.png", FigureCanvasAgg), ("plot.svg", FigureCanvasSVG)):
        with write_atomically(folder / name) as path, path.open("wb") as file:
            if name.endswith("png"):
                canvas(figure).print_png(file)  # type: ignore[attr-defined]
            else:
                canvas(figure).print_svg(file)  # type: ignore[attr-defined]
