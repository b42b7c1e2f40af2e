"""One answer for everything: is the score that of reading the question, or of knowing which answers are frequent?

The answers of a step are dealt out to its other problems. All pairings count alike, so that this is the expected score
of a random deal, without a draw.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from rlora.diagnosis.evidence import Evidence, Rollouts
from rlora.diagnosis.finding import Finding, per_cent
from rlora.diagnosis.statistics import mean
from rlora.text import shortened
from rlora.types import VerdictKind
from rlora.verify.comparison.equal import cheap_verdict
from rlora.verify.extraction.extract import gold_text

_FEWEST_PROBLEMS, _FEWEST_DISTINCT = 16, 8
_HALF, _READS = 0.5, 0.5
_MOST_COMPARED = 200  # different answers of a step; the others are compared by their texts alone
_WHOLE = re.compile(r"[-+]?\d{1,15}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Dealt:
    """What a problem's answers scored: as given, and dealt out to the other problems of the step; `top` is the share of
    them that is the run's most frequent answer.
    """

    given: float
    dealt: float
    top: float


def one_answer(evidence: Evidence) -> Finding | None:
    """The answers are as right when they are dealt out at random, or nearly all of them are the same."""
    if evidence.judge_of_answers is None or len(evidence.rows) < _FEWEST_DISTINCT:
        return None
    rollouts = _newest(evidence.rollouts())
    answers = Counter(str(one["extracted"]) for rows in rollouts.values() for one in rows if one["extracted"])
    if not answers:
        return None
    frequent = answers.most_common(1)[0][0]
    found = [dealt for rows in rollouts.values() for dealt in deal(rows, frequent)]
    golds = {str(one["problem"]): str(one["gold"]) for rows in rollouts.values() for one in rows}
    if len(found) < _FEWEST_PROBLEMS or len(golds) < _FEWEST_DISTINCT:
        return None
    given, dealt = (mean([getattr(one, name) for one in found]).mean for name in ("given", "dealt"))
    top, of_golds = mean([one.top for one in found]), sum(_is_right(gold, frequent) for gold in golds.values())
    is_chance = given > 0 and mean([one.dealt - _HALF * one.given for one in found]).low > 0
    reads = (given - dealt) / (1 - dealt) if dealt < 1 else 0.0
    is_one = top.low > _HALF and of_golds / len(golds) < _HALF * top.mean
    if not is_one and not (is_chance and reads < _READS):
        return None
    since = min(rollouts)
    begins = (
        f"nearly all answers are {shortened(frequent, 20)!r} since step {since}"
        if is_one
        else f"the answers are right about as often when they are dealt out at random since step {since}"
    )
    return Finding(
        name="one_answer",
        what=f"{begins}: {per_cent(given)} right as given, {per_cent(dealt)} dealt out to other problems of a step; "
        f"{per_cent(top.mean)} of the completions answer {shortened(frequent, 20)!r}, which is right for "
        f"{per_cent(of_golds / len(golds))} of the problems.",
        remedy="The reward pays for frequent answers, not for reading the question: let it reason "
        "(--prompt.instruction, a longer --sampling.max-tokens), lower --optimizer.learning-rate, push wrong consensus "
        "down (--consensus-penalty 0.5), or take a base that solves some problems.",
        since=since,
    )


def _newest(rollouts: Rollouts) -> Rollouts:
    """Return the rollouts of the newest quarter of the steps that are there, at least 8."""
    steps = sorted(rollouts)
    return {step: rollouts[step] for step in steps[-max(8, len(steps) // 4) :]}


def deal(rollouts: Sequence[Mapping[str, Any]], frequent: str = "") -> list[Dealt]:
    """Return, for each problem of a step, what its answers score as given and on average over the other problems."""
    by_problem: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for one in rollouts:
        by_problem[str(one["problem"])].append(one)
    golds = {problem: str(ones[0]["gold"]) for problem, ones in by_problem.items()}
    if len(golds) < 2:
        return []
    counts = Counter(str(one["extracted"]) for one in rollouts if one["extracted"])
    compared = {answer for answer, _ in counts.most_common(_MOST_COMPARED)}
    kinds = Counter(golds.values())
    right = {  # of all problems of the step, by answer
        answer: sum(
            number
            for gold, number in kinds.items()
            if (_is_right(gold, answer) if answer in compared else gold == answer)
        )
        for answer in counts
    }
    return [
        Dealt(
            given=_share(ones, lambda one: one["verdict"] == VerdictKind.CORRECT),
            dealt=sum(
                right[answer] - (_is_right(golds[problem], answer) if answer in compared else golds[problem] == answer)
                for answer in (str(one["extracted"]) for one in ones)
                if answer
            )
            / (len(golds) - 1)
            / len(ones),
            top=_share(ones, lambda one: str(one["extracted"]) == frequent),
        )
        for problem, ones in by_problem.items()
    ]


def _share(ones: Sequence[Mapping[str, Any]], is_one: Any) -> float:
    return sum(map(is_one, ones)) / len(ones)


@lru_cache(maxsize=1 << 16)
def _is_right(gold: str, answer: str) -> bool:
    """Return whether an answer equals a gold, as far as that is known without a worker."""
    left = gold_text(gold)
    if left == answer:
        return True
    if _WHOLE.fullmatch(left) and _WHOLE.fullmatch(answer):
        return int(left) == int(answer)
    try:
        return cheap_verdict(left, answer, is_rounding=True) is True
    except Exception:  # whatever a text makes of it, as in the verifier: then they are not known to be equal
        return False
