"""From the samples of a benchmark to its scores: avg@k, pass@k and maj@k with intervals, and paired differences."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rlora.evaluation.estimators import group_answers, majority_at_k, pass_at_k
from rlora.evaluation.intervals import Estimate, mean_score, paired_difference
from rlora.evaluation.samples import TOO_LONG, SampleFile, is_truncated
from rlora.rewards import AnswerJudge, Judge, measures_of
from rlora.types import Problem, VerdictKind


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmScores:
    """One arm on one benchmark: each measure's scores, one a problem in order, and what the samples looked like."""

    scores_P: dict[str, tuple[float, ...]]
    num_samples: int
    mean_tokens: float
    truncated_share: float
    num_too_long: int
    verdict_shares: dict[str, float]

    def estimate(self, measure: str) -> Estimate:
        """Return the mean of a measure with its interval."""
        return mean_score(self.scores_P[measure])

    def to_json(self) -> dict[str, Any]:
        """Return what `results.json` holds of the arm."""
        return {
            **{measure: estimate_json(self.estimate(measure)) for measure in self.scores_P},
            "mean_tokens": self.mean_tokens,
            "truncated_share": self.truncated_share,
            "num_prompts_too_long": self.num_too_long,
            "verdict_shares": self.verdict_shares,
        }


def score_arm(
    samples: SampleFile,
    problems: Sequence[Problem],
    *,
    num_samples: int,
    judge: Judge,
) -> ArmScores:
    """Score the samples of the problems, all of which must be there, as `judge` judged them.

    Its measures are added where they can differ from the score, and majorities where it says which answers are equal.
    """
    measures = [name for name, can_differ in measures_of(judge).items() if can_differ]
    found: dict[str, list[float]] = {}
    rows = [row for problem in problems for row in samples.rows(problem)]
    for problem in problems:
        verdicts = samples.verdicts(problem)
        num_correct = sum(verdict.is_correct for verdict in verdicts)
        average = sum(verdict.reward for verdict in verdicts) / num_samples
        found.setdefault(f"avg@{num_samples}", []).append(average)
        for name in measures:
            num_right = sum(row[f"{name}_verdict"] == VerdictKind.CORRECT.value for row in samples.rows(problem))
            found.setdefault(f"{name} avg@{num_samples}", []).append(num_right / num_samples)
        answers = group_answers(verdicts, judge.equal) if isinstance(judge, AnswerJudge) else None
        for k in subset_sizes(num_samples):
            found.setdefault(f"pass@{k}", []).append(pass_at_k(num_samples, num_correct, k))
            if answers is not None:
                found.setdefault(f"maj@{k}", []).append(majority_at_k(*answers, k))
    kinds = Counter(row["verdict"] for row in rows)
    return ArmScores(
        scores_P={measure: tuple(scores) for measure, scores in found.items()},
        num_samples=num_samples,
        mean_tokens=sum(row["num_tokens"] for row in rows) / len(rows),
        truncated_share=sum(map(is_truncated, rows)) / len(rows),
        num_too_long=sum(row["stop"] == TOO_LONG for row in rows) // num_samples,
        verdict_shares={kind.value: kinds[kind.value] / len(rows) for kind in VerdictKind},
    )


def subset_sizes(num_samples: int) -> tuple[int, ...]:
    """Return the k of pass@k and maj@k: 2, 4, 8, ... and the number of samples; none for one sample."""
    powers = {2**power for power in range(1, num_samples.bit_length()) if 2**power <= num_samples}
    return tuple(sorted(powers | ({num_samples} if num_samples > 1 else set())))


def differences(policy: ArmScores, base: ArmScores) -> dict[str, Estimate]:
    """Return policy minus base of each measure, paired by problem."""
    return {measure: paired_difference(policy.scores_P[measure], base.scores_P[measure]) for measure in policy.scores_P}


def estimate_json(estimate: Estimate) -> dict[str, Any]:
    """Return an estimate as JSON."""
    return {"mean": estimate.mean, "ci95": [estimate.low, estimate.high]}
