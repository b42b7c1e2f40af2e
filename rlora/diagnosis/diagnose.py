"""Every disease that is looked for, and the two questions: what has a run, and what is off right now?"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from rlora.diagnosis.answers import one_answer
from rlora.diagnosis.evidence import Evidence, read
from rlora.diagnosis.finding import Finding
from rlora.diagnosis.held_out import overfitting
from rlora.diagnosis.served import ended, part_served
from rlora.diagnosis.signal import few_problems, no_signal
from rlora.diagnosis.training import (
    below_precision,
    entropy_collapse,
    kl_growing,
    length_without_reward,
    rate,
    reward_fell,
)
from rlora.diagnosis.verdicts import golds, refused_format, truncation

Disease = Callable[[Evidence], Finding | None]
DISEASES: tuple[Disease, ...] = (  # causes before what they lead to
    part_served,
    ended,
    truncation,
    refused_format,
    golds,
    rate,
    no_signal,
    one_answer,
    below_precision,
    reward_fell,
    entropy_collapse,
    kl_growing,
    length_without_reward,
    overfitting,
    few_problems,
)
_SEEN_IN_ROWS: tuple[Disease, ...] = (
    *(no_signal, truncation, refused_format, below_precision, part_served),
    overfitting,
)


def diagnose(run_dir: Path) -> list[Finding]:
    """Return what keeps the run in `run_dir` from learning, causes before what they lead to; [] where nothing does.

    The run directory alone is read, whether the run goes on or has ended. A run of a few steps is too young for most.
    Raises RunDirError for a folder that is no run directory, and for files in it that are damaged.
    """
    evidence = read(run_dir)
    return [found for disease in DISEASES if (found := disease(evidence)) is not None]


def health(rows: Sequence[Mapping[str, float]]) -> str | None:
    """Return what is off in a run by its rows so far, in one clause, None where nothing is: for a line on a terminal.

    Example:
        >>> health(rows)
        'no group has rewards that differ since step 4'
    """
    evidence = Evidence(rows=rows)
    return next((found.headline for disease in _SEEN_IN_ROWS if (found := disease(evidence)) is not None), None)
