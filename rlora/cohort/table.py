"""What a cohort has found out: its members ranked by held-out score, and conditions compared over seeds."""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlora.cohort.fates import Fate, fate_of
from rlora.cohort.plot import draw
from rlora.config import differences
from rlora.errors import RunDirError
from rlora.evaluation.intervals import mean_difference
from rlora.rewards import is_share
from rlora.store.cohort_dir import MEMBERS
from rlora.store.run_dir import metrics_rows, read_json, write_json
from rlora.system.files import write_atomically
from rlora.text import shown_score

TABLE_FILE = "table.json"
_NOT_SETTINGS = ("run_dir", "data", "preset")
_SEED = "seed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """The members' `rows`, best first, and the `conditions`: members that differ in their seed alone, taken together.

    A row has the member's `name`, `state`, `step`, `score` and `ci95` (None where it was not scored at its end),
    `reward` of its last step, its `settings` (what it differs from others in) and `why` it ended early. `is_share` says
    that scores are shares of problems, and so are written in per cent.
    """

    folder: Path
    rows: Sequence[Mapping[str, Any]]
    conditions: Sequence[Mapping[str, Any]]
    is_share: bool = True

    @property
    def best(self) -> str | None:
        """The name of the member with the highest held-out score; None where none was scored."""
        return next((row["name"] for row in self.rows if row["ci95"] is not None), None)

    def save(self) -> None:
        """Write `table.json`, `table.txt`, `plot.png` and `plot.svg` into the cohort's folder."""
        write_json(self.folder / TABLE_FILE, {"members": list(self.rows), "conditions": list(self.conditions)})
        with write_atomically(self.folder / "table.txt") as path:
            path.write_text("\n".join(self.lines()) + "\n", encoding="utf-8")
        draw(self.rows, self.folder, is_share=self.is_share)

    def lines(self) -> Iterator[str]:
        """Yield the table as text."""
        head = ["", "member", "held-out", "95 %", "reward", "steps", "state"]
        cells = [_cells(number, row, self.is_share) for number, row in enumerate(self.rows, start=1)]
        yield from _aligned([head, *cells])
        for row in self.rows:
            if row["why"]:
                yield f"{row['name']} {row['state']}: {row['why']}"
        if len(self.conditions) > 1 and any(one["num_seeds"] > 1 for one in self.conditions):
            yield ""
            yield "Over seeds, each condition against the best, on the same seeds:"
            rows = [_of(condition, self.is_share) for condition in self.conditions]
            yield from _aligned([["condition", "held-out", "seeds", "difference", "95 %"], *rows])


def table_of(folder: Path) -> Table:
    """Return the table of the cohort in `folder` as it is now; RunDirError where there is none."""
    runs = sorted(path.parent for path in (folder / MEMBERS).glob("*/config.json"))
    if not runs:
        raise RunDirError(f"{folder} holds no cohort: there is nothing in {folder / MEMBERS}.")
    configs = [read_json(run / "config.json") for run in runs]
    settings = _settings(configs)
    rows = [_row(run, setting) for run, setting in zip(runs, settings, strict=True)]
    rows.sort(key=_rank)
    shares = all(is_share(config.get("reward")) for config in configs)
    return Table(folder=folder, rows=rows, conditions=_conditions(rows), is_share=shares)


def _rank(row: Mapping[str, Any]) -> tuple[bool, float, str]:
    """Order members that were scored at their end by score, then those that were stopped, last those without any."""
    score = row["score"]
    return (row["ci95"] is None, -(score if score is not None else -1e300), row["name"])


def _settings(configs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return what each configuration has in the fields in which some differ, by dotted name."""
    fields = dict.fromkeys(
        field
        for other in configs[1:]
        for line in differences(configs[0], other)
        if (field := line.partition(":")[0]).partition(".")[0] not in _NOT_SETTINGS
    )
    return [{field: _at(config, field) for field in fields} for config in configs]


def _at(config: Mapping[str, Any], field: str) -> Any:
    value: Any = config
    for key in field.split("."):
        value = value[key]
    return value


def _row(run: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    steps, fate = metrics_rows(run), fate_of(run)
    is_scored = (run / "summary.json").is_file()
    policy = read_json(run / "summary.json")["policy"] if is_scored else {}
    score, interval = policy.get("accuracy"), policy.get("ci95")
    if fate is not None and not is_scored:
        score = fate.score
    config = read_json(run / "config.json")
    return {
        "name": run.name,
        "state": fate.kind if fate is not None else "finished" if is_scored else "unfinished",
        "step": len(steps),
        "score": score,
        "ci95": interval,
        "reward": steps[-1]["reward/mean"] if steps else None,
        "learning_rate": config["optimizer"]["learning_rate"],
        "rank": config["lora"]["rank"],
        "settings": dict(settings),
        "why": _why(fate),
    }


def _why(fate: Fate | None) -> str:
    return "" if fate is None else f"after step {fate.step}, at version {fate.version}: {fate.why}"


def _conditions(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return members that differ in their seed alone as one, best first, each with its difference to the best."""
    found: dict[tuple[Any, ...], dict[Any, float]] = {}
    for row in rows:
        if row["ci95"] is not None:
            condition = tuple((name, value) for name, value in row["settings"].items() if name != _SEED)
            found.setdefault(condition, {})[row["settings"].get(_SEED)] = row["score"]
    ranked = sorted(found, key=lambda condition: -statistics.fmean(found[condition].values()))
    conditions = []
    for condition in ranked:
        seeds = [seed for seed in found[condition] if seed in found[ranked[0]]]
        pairs = [(found[condition][seed], found[ranked[0]][seed]) for seed in seeds]
        difference = mean_difference(pairs) if condition != ranked[0] and len(pairs) > 1 else None
        conditions.append(
            {
                "settings": dict(condition),
                "score": statistics.fmean(found[condition].values()),
                "num_seeds": len(found[condition]),
                "difference": None if difference is None else difference.mean,
                "ci95": None if difference is None else [difference.low, difference.high],
            }
        )
    return conditions


def _cells(number: int, row: Mapping[str, Any], is_share: bool) -> list[str]:
    return [
        str(number),
        row["name"],
        "" if row["score"] is None else shown_score(row["score"], is_share=is_share),
        _interval(row["ci95"], is_share),
        "" if row["reward"] is None else f"{row['reward']:.3f}",
        str(row["step"]),
        row["state"],
    ]


def _of(condition: Mapping[str, Any], is_share: bool) -> list[str]:
    names = ", ".join(f"{name.rpartition('.')[2]} {value}" for name, value in condition["settings"].items())
    difference = condition["difference"]
    return [
        names or "all",
        shown_score(condition["score"], is_share=is_share),
        str(condition["num_seeds"]),
        "" if difference is None else f"{100 * difference:+.1f}" if is_share else f"{difference:+.3f}",
        _interval(condition["ci95"], is_share, sign="+"),
    ]


def _interval(ends: Sequence[float] | None, is_share: bool, *, sign: str = "") -> str:
    if ends is None:
        return ""
    return f"[{', '.join(f'{100 * end:{sign}.1f}' if is_share else f'{end:{sign}.3f}' for end in ends)}]"


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
