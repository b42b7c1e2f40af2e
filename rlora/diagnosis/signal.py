"""Rewards from which nothing can be learned: groups without signal, and too few problems."""

from collections.abc import Sequence

from rlora.diagnosis.evidence import Evidence, Row
from rlora.diagnosis.finding import Finding, per_cent
from rlora.diagnosis.statistics import share
from rlora.evaluation.intervals import Estimate

_FEWEST_STEPS, _FEWEST_GROUPS = 5, 20  # without any signal; of so many, a share above 14 % had shown some
LEAST_SIGNAL = 0.1
"""Share of groups with signal below which a run hardly learns."""
_SOLVED_STEPS = 10  # of groups that are all right: a run may well end by them
_FEW, _MANY_WALKS = 64, 10

HARDER = "take harder problems (--min-difficulty), let --curriculum True pass over what is solved, or end the run here"
EASIER = (
    "see what is said and why it is wrong (`rlora check RECIPE`), take easier problems (--max-difficulty), more "
    "samples of each (--samples-per-problem), or teach the form of an answer first (`rlora train sft`)"
)


def no_signal(evidence: Evidence) -> Finding | None:
    """No group has rewards that differ, or hardly one: all are right, or all are wrong."""
    if evidence.at("advantage") == "raw":
        return None
    silent = _without_any(evidence.rows)
    if len(silent) >= _FEWEST_STEPS and _count(silent, evidence) >= _FEWEST_GROUPS:
        since = int(silent[0]["step"])
        return _found(f"no group has rewards that differ since step {since}", silent, evidence, since)
    recent = [row for row in evidence.recent if "groups/mixed_share" in row]
    number = _count(recent, evidence)
    mixed = share(_sum("mixed", recent, evidence), number)
    if not recent or mixed.high >= LEAST_SIGNAL or number < _FEWEST_GROUPS:
        return None
    since = int(recent[0]["step"])
    return _found(f"{signal_words(mixed)} since step {since}", recent, evidence, since)


def signal_words(mixed: Estimate) -> str:
    """Return how few groups have signal, with the interval."""
    return f"only {per_cent(mixed.mean)} of the groups (at most {per_cent(mixed.high)}) have rewards that differ"


def without_signal(what: str, *, right: float, wrong: float, number: float, since: int | None = None) -> Finding:
    """Return the finding that too few of a number of groups have signal."""
    remedy = HARDER if right > wrong else EASIER
    return Finding(
        name="no_signal",
        what=f"{what}: of {number:.0f} groups {right:.0f} are all right and {wrong:.0f} all wrong.",
        remedy=f"{remedy[0].upper()}{remedy[1:]}.",
        since=since,
    )


def _found(what: str, rows: Sequence[Row], evidence: Evidence, since: int) -> Finding | None:
    right, wrong = _sum("all_right", rows, evidence), _sum("all_wrong", rows, evidence)
    if right > wrong and len(rows) < _SOLVED_STEPS:
        return None
    return without_signal(what, right=right, wrong=wrong, number=_count(rows, evidence), since=since)


def _without_any(rows: Sequence[Row]) -> Sequence[Row]:
    """Return the newest rows, as far back as no group had signal."""
    first = len(rows)
    while first > 0 and rows[first - 1].get("groups/mixed_share") == 0:
        first -= 1
    return rows[first:]


def groups_in(row: Row, evidence: Evidence) -> float:
    """Return the number of groups of a step: what its completions make, or those without signal where all are."""
    samples = evidence.at("samples_per_problem")
    if isinstance(samples, int) and samples > 0:
        return row.get("rollout/num_completions", 0) / samples
    mixed = row.get("groups/mixed_share", 0.0)
    return row.get("groups/num_without_signal", 0) / (1 - mixed) if mixed < 1 else 1.0


def _count(rows: Sequence[Row], evidence: Evidence) -> float:
    return sum(groups_in(row, evidence) for row in rows)


def _sum(kind: str, rows: Sequence[Row], evidence: Evidence) -> float:
    return sum(row.get(f"groups/{kind}_share", 0.0) * groups_in(row, evidence) for row in rows)


def few_problems(evidence: Evidence) -> Finding | None:
    """A small training set was walked through many times."""
    number = evidence.sizes.get("num_train")
    if evidence.is_supervised or not isinstance(number, int) or number < 1 or number >= _FEW:
        return None
    walks = _count(evidence.rows, evidence) / number
    if walks <= _MANY_WALKS:
        return None
    return Finding(
        name="few_problems",
        what=f"the {number} training problems were asked {walks:.0f} times each: what is learned is these.",
        remedy="Train on more problems (--train with more rows, a wider --min-difficulty to --max-difficulty), or stop "
        "earlier (--num-steps) and keep adapter-best.",
    )
