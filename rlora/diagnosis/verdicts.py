"""Completions that are not judged by what they say: cut off, not read, or compared with golds letter by letter."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rlora.diagnosis.evidence import Evidence, Row
from rlora.diagnosis.finding import Finding, per_cent
from rlora.diagnosis.statistics import change, mean, share
from rlora.evaluation.intervals import Estimate
from rlora.text import shortened
from rlora.types import Problem, StopReason, VerdictKind
from rlora.verify import JudgeRequest, Verifier, is_prose
from rlora.verify.judging import judge_cheaply

MUCH_CUT, MUCH_REFUSED = 0.25, 0.3
"""Shares of completions from which on a run is said to be cut off, and refused."""
_PASSING = 0.2  # relative fall, from the steps before to the newest, of what passes by itself
_REFUSED = (VerdictKind.NO_ANSWER, VerdictKind.UNPARSED)
_REFUSED_SHARES = tuple(f"verdict/{kind.value}_share" for kind in _REFUSED)
_SHOWN, _FEWEST_GOLDS, _MANY_GOLDS = 3, 8, 0.05


def truncation(evidence: Evidence) -> Finding | None:
    """Many completions hit the token limit, and it does not pass."""
    found, since = _lasting(("rollout/truncated_share",), evidence, MUCH_CUT)
    if found is None:
        return None
    return cut_off(found, limit=evidence.at("sampling", "max_tokens"), when=f" since step {since}", since=since)


def cut_off(found: Estimate, *, limit: Any, when: str = "", since: int | None = None) -> Finding:
    """Return the finding that a share of the completions is cut off."""
    at = f" of {limit} tokens" if isinstance(limit, int) else ""
    more = f" (now {limit}; try {2 * limit})" if isinstance(limit, int) else ""
    return Finding(
        name="truncation",
        what=f"{per_cent(found.mean)} of the completions are cut off{when}: they hit the limit{at} before they end, "
        "and earn 0 whatever they would have said.",
        remedy=f"Raise --sampling.max-tokens{more}, ask for shorter answers (--prompt.instruction), or, where the "
        "model goes on behind its answer, give it its chat template (--prompt.template chat).",
        since=since,
    )


def refused_format(evidence: Evidence) -> Finding | None:
    """In many completions the judge finds no answer, or one that it cannot read, and it does not pass."""
    found, since = _lasting(_REFUSED_SHARES, evidence, MUCH_REFUSED)
    if found is None:
        return None
    rollouts = [rollout for rows in reversed([*evidence.rollouts().values()]) for rollout in rows]
    return refused(
        found,
        refused_examples(rollouts, evidence.judge_of_answers),
        when=f" since step {since}",
        since=since,
    )


def refused(found: Estimate, examples: tuple[str, ...], *, when: str = "", since: int | None = None) -> Finding:
    """Return the finding that a share of the completions is refused for its form."""
    return Finding(
        name="refused_format",
        what=f"in {per_cent(found.mean)} of the completions the judge finds no answer that it can read{when}: they "
        "earn 0 for their form alone.",
        remedy="Ask for the form that is read (--prompt.instruction 'End with the answer as \\boxed{answer}.'), reward "
        "it (--reward correct=1.0 format=0.2), or take a judge that reads what is said (--reward last_number, or your "
        "own my_module:my_function).",
        since=since,
        examples=examples,
    )


def refused_examples(rollouts: Iterable[Mapping[str, Any]], judge: str | None) -> tuple[str, ...]:
    """Return up to three different completions that were refused, with the rule that refused each."""
    found: dict[str, str] = {}
    for rollout in rollouts:
        if len(found) < _SHOWN and rollout.get("verdict") in _REFUSED:
            found.setdefault(shortened(str(rollout["text"]), 60), why_refused(rollout, judge))
    return tuple(f"{text!r}: {why}" for text, why in found.items())


def why_refused(rollout: Mapping[str, Any], judge: str | None) -> str:
    """Return why a rollout, as it is stored, was refused: the judge's reason, or the rule that decided."""
    if rollout.get("reason") or judge is None:
        return str(rollout.get("reason") or rollout["verdict"])
    if not str(rollout["text"]).strip():
        return "nothing is said"
    request = JudgeRequest(
        text=str(rollout["text"]),
        gold=str(rollout["gold"]),
        question=str(rollout["question"]),
        is_truncated=rollout.get("stop") == StopReason.LENGTH,
        last_number=judge != "mathematics",
        is_number=judge == "number",
    )
    with Verifier() as verifier:
        return verifier.explain(request).rule


def golds(evidence: Evidence) -> Finding | None:
    """Many problems have answers that only the same text equals, or that no completion can give."""
    judge = evidence.judge_of_answers
    if judge is None:
        return None
    asked = {
        str(one["problem"]): (str(one["question"]), str(one["gold"]))
        for rows in evidence.rollouts().values()
        for one in rows
    }
    return doubted([(id, question, gold) for id, (question, gold) in asked.items()], judge)


def doubted(asked: Sequence[tuple[str, str, str]], judge: str) -> Finding | None:
    """Return the finding that golds of problems (id, question, gold) can only be compared letter by letter; None where
    they are hardly any.
    """
    as_words = [f"{gold!r} of {id}" for id, question, gold in asked if _is_doubtful(question, gold, judge)]
    if len(asked) < _FEWEST_GOLDS or share(len(as_words), len(asked)).low < _MANY_GOLDS:
        return None
    return Finding(
        name="golds",
        what=f"{len(as_words)} of {len(asked)} problems have answers that are only compared letter by letter: words, "
        f"or what {judge} does not read, so that no other wording earns a reward.",
        remedy="Give answers that are expressions or single words, or judge by a function of your own (--reward "
        "my_module:my_function); `rlora verify --gold G --answer A` explains single ones.",
        examples=tuple(shortened(one, 80) for one in as_words[:_SHOWN]),
    )


def asked_of(problems: Iterable[Problem]) -> list[tuple[str, str, str]]:
    """Return what `doubted` looks at of problems."""
    return [(problem.id, problem.question, problem.answer) for problem in problems]


def _is_doubtful(question: str, gold: str, judge: str) -> bool:
    """Return whether a gold is words, or earns nothing even if it is given as it is, by what needs no worker."""
    if is_prose(gold):
        return True
    request = JudgeRequest(text=f"\\boxed{{{gold}}}", gold=gold, question=question, is_number=judge == "number")
    return judge_cheaply(request).kind not in (None, VerdictKind.CORRECT)


def _column(rows: Sequence[Row], names: Sequence[str]) -> list[tuple[int, float]]:
    """Return step and sum of some metrics, of the rows that have them."""
    return [(int(row["step"]), sum(row[name] for name in names)) for row in rows if all(name in row for name in names)]


def _lasting(names: Sequence[str], evidence: Evidence, much: float) -> tuple[Estimate | None, int]:
    """Return the mean of the newest steps, of the sum of some metrics, where it is surely above `much` and not falling
    by itself, and the step from which it is; None where it is not.
    """
    recent = evidence.recent
    newest = [value for _, value in _column(recent, names)]
    if not newest or (found := mean(newest)).low < much:
        return None, 0
    values = _column(evidence.rows, names)
    moved = change([value for _, value in values[: -len(newest)]], newest)
    is_passing = moved.high < 0 and found.mean < (1 - _PASSING) * (found.mean - moved.mean)
    return (None, 0) if is_passing else (found, _since(values, much))


def _since(values: Sequence[tuple[int, float]], much: float) -> int:
    """Return the step from which on the mean of every four steps is above `much`."""
    since = values[-1][0]
    for index in range(len(values) - 4, -1, -1):
        if sum(value for _, value in values[index : index + 4]) < 4 * much:
            break
        since = values[index][0]
    return since
