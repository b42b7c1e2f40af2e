"""What came out of a capacity study: the table, the picture, and where each rank leaves the curve."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlora.store.run_dir import write_json
from rlora.system.files import write_atomically

LEFT_BITS = 0.2  # above the best of all policies: a rank has left the curve there
_Curve = dict[int, float]


def best_curve(rows: Sequence[Mapping[str, Any]]) -> _Curve:
    """Return the lowest loss of any row at each step, bits a symbol.

    Example:
        >>> best_curve([{"losses": {"1": 6.0, "2": 5.0}}, {"losses": {"1": 5.5}}])
        {1: 5.5, 2: 5.0}
    """
    curve: _Curve = {}
    for row in rows:
        for step, loss in row["losses"].items():
            if math.isfinite(loss):
                curve[int(step)] = min(loss, curve.get(int(step), math.inf))
    return dict(sorted(curve.items()))


def leaves_at(curve: Mapping[int, float], envelope: Mapping[int, float]) -> int | None:
    """Return the step from which on a curve stays above the best of all by more than `LEFT_BITS`; None: it does not.

    Example:
        >>> leaves_at({1: 6.0, 2: 5.9, 4: 5.9}, {1: 6.0, 2: 5.0, 4: 3.0})
        2
    """
    left = None
    for step, loss in curve.items():
        is_above = loss > envelope[step] + LEFT_BITS
        left = (step if left is None else left) if is_above else None
    return left


def summary_of(rows: Sequence[Mapping[str, Any]], *, table_bits: float, num_keys: int) -> list[dict[str, Any]]:
    """Return a row a rank, full fine-tuning (rank 0) last: of its best rate what was stored, and for how long it was
    with the best.
    """
    envelope, found = best_curve(rows), []
    for rank in sorted({row["rank"] for row in rows}, key=lambda rank: rank or math.inf):
        of_rank = [row for row in rows if row["rank"] == rank]
        curve = best_curve(of_rank)
        loss, best = min((min(best_curve([row]).values()), index) for index, row in enumerate(of_rank))
        stored = max(0.0, table_bits - num_keys * loss)
        numbers = of_rank[best]["num_numbers"]
        found.append(
            {
                "rank": rank,
                "num_numbers": numbers,
                "rate": of_rank[best]["rate"],
                "loss_bits": loss,
                "stored_bits": stored,
                "stored_share": stored / table_bits,
                "bits_per_number": stored / numbers,
                "leaves_at_step": leaves_at(curve, envelope),
                "curve": {str(step): value for step, value in curve.items()},
            }
        )
    return found


def write_report(rows: Sequence[Mapping[str, Any]], folder: Path, *, table_bits: float, num_keys: int) -> str:
    """Write `table.json`, `table.txt`, `plot.png` and `plot.svg`, and return the table's text."""
    found = summary_of(rows, table_bits=table_bits, num_keys=num_keys)
    lines = [
        f"{table_bits:,.0f} bits to store; of each rank the best of its rates, and losses in bits a symbol",
        "policy    numbers  rate     loss   stored  bits a number  leaves the curve",
    ]
    for row in found:
        name = f"rank {row['rank']}" if row["rank"] else "full"
        left = f"at step {row['leaves_at_step']}" if row["leaves_at_step"] else "not"
        lines.append(
            f"{name:8} {row['num_numbers']:8,}  {row['rate']:<7g}  {row['loss_bits']:.3f}  {row['stored_share']:6.1%}  "
            f"{row['bits_per_number']:13.2f}  {left}"
        )
    text = "\n".join(lines)
    write_json(folder / "table.json", {"table_bits": table_bits, "ranks": found})
    with write_atomically(folder / "table.txt") as path:
        path.write_text(text + "\n", encoding="utf-8")
    _draw(found, folder)
    return text


def _draw(found: Sequence[Mapping[str, Any]], folder: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for row in found:
        curve = {int(step): loss for step, loss in row["curve"].items() if int(step) > 0}
        label, style = (f"rank {row['rank']}", "-") if row["rank"] else ("full", "--")
        axes.plot(list(curve), list(curve.values()), label=label, linestyle=style)
    axes.set_xscale("log", base=2)
    axes.set_xlabel("updates")
    axes.set_ylabel("loss, bits a symbol")
    axes.grid(visible=True, alpha=0.3)
    axes.legend(frameon=False)
    for name in ("plot.png", "plot.svg"):
        with write_atomically(folder / name) as path, path.open("wb") as file:
            if name.endswith("png"):
                FigureCanvasAgg(figure).print_png(file)
            else:
                FigureCanvasSVG(figure).print_svg(file)
