"""What n samples of one problem say about k: pass@k and maj@k, exact expectations over all subsets of k samples.

The mean over problems and its interval are `rlora.evaluation.intervals`'s; avg@k is the mean of the rewards.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import comb

from rlora.types import Verdict, VerdictKind


def pass_at_k(num_samples: int, num_correct: int, k: int) -> float:
    """Return the chance that k of the samples, drawn without replacement, hold a correct one: 1 - C(n-c, k) / C(n, k).

    Unbiased for the chance that k fresh samples do (Chen et al. 2021, arXiv 2107.03374, equation 1). Whole numbers
    until the one division, so it is exact to rounding. ValueError unless 0 <= c <= n and 1 <= k <= n.
    """
    if not (0 <= num_correct <= num_samples and 1 <= k <= num_samples):
        raise ValueError(f"pass@{k} of {num_correct} correct among {num_samples} samples is not defined.")
    all_subsets = comb(num_samples, k)
    return (all_subsets - comb(num_samples - num_correct, k)) / all_subsets


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """Samples of a problem that gave the same answer: how many, and the share of them that was judged correct.

    The share is between 0 and 1 only where the verdict looks at more than the value, as it does when "27 + 85" earns
    nothing and "112" does.
    """

    count: int
    correct_share: float


def majority_at_k(answers: Sequence[Answer], num_silent: int, k: int) -> float:
    """Return the expected score of the most frequent answer among k samples drawn without replacement.

    Answers that tie for the most votes score their mean, which is what drawing one of them would give. The `num_silent`
    samples without an answer have no vote; k samples without any vote score 0. Exact: for each number of votes j that
    could win, subsets are counted in which some answers have j votes and all others fewer. ValueError unless k is at
    least 1 and at most the number of samples.
    """
    num_samples = num_silent + sum(answer.count for answer in answers)
    if not 1 <= k <= num_samples:
        raise ValueError(f"maj@{k} of {num_samples} samples is not defined.")
    total = 0.0
    all_subsets = comb(num_samples, k)
    for votes in range(1, k + 1):
        most_tied = min(k // votes, sum(answer.count >= votes for answer in answers))
        for num_tied in range(1, most_tied + 1):
            total += _tied_score(answers, num_silent, k, votes, num_tied) / all_subsets
    return total


def _tied_score(answers: Sequence[Answer], num_silent: int, k: int, votes: int, num_tied: int) -> float:
    """Return the sum, over the k-subsets in which `num_tied` answers win with `votes` each, of the winners' mean score.

    `ways[t][v]` counts subsets of the answers so far with t winners and v votes in all; `score` sums their winners'
    scores in the same way.
    """
    ways = [[0] * (k + 1) for _ in range(num_tied + 1)]
    score = [[0.0] * (k + 1) for _ in range(num_tied + 1)]
    ways[0][0] = 1
    for answer in answers:
        new_ways = [[0] * (k + 1) for _ in range(num_tied + 1)]
        new_score = [[0.0] * (k + 1) for _ in range(num_tied + 1)]
        for taken in range(min(answer.count, votes) + 1):
            choices, is_winner = comb(answer.count, taken), int(taken == votes)
            gain = answer.correct_share if is_winner else 0.0
            for tied in range(num_tied + 1 - is_winner):
                for used in range(k + 1 - taken):
                    if count := ways[tied][used]:
                        new_ways[tied + is_winner][used + taken] += count * choices
                        new_score[tied + is_winner][used + taken] += (score[tied][used] + gain * count) * choices
        ways, score = new_ways, new_score
    silent = [comb(num_silent, k - used) for used in range(k + 1)]
    return sum(part * choices for part, choices in zip(score[num_tied], silent, strict=True)) / num_tied


def group_answers(verdicts: Sequence[Verdict], equal: Callable[[str, str], bool]) -> tuple[list[Answer], int]:
    """Return the distinct answers among the samples of a problem, and how many samples gave none.

    Two answers are one if `equal` says so of their texts. Answers that could not be parsed, or not compared in time,
    are the same only if their texts are.
    """
    counts: dict[str, list[int]] = {}  # the text as first written -> samples, and those judged correct
    leaders: list[str] = []  # the first text of each answer that `equal` can compare
    known: dict[str, str] = {}
    num_silent = 0
    for verdict in verdicts:
        if verdict.kind in (VerdictKind.NO_ANSWER, VerdictKind.TRUNCATED):
            num_silent += 1
            continue
        text = verdict.extracted
        if text not in known:
            is_comparable = verdict.kind in (VerdictKind.CORRECT, VerdictKind.WRONG, VerdictKind.NOT_WORKED_OUT)
            known[text] = next((leader for leader in leaders if is_comparable and equal(leader, text)), text)
            if is_comparable and known[text] == text:
                leaders.append(text)
        tally = counts.setdefault(known[text], [0, 0])
        tally[0] += 1
        tally[1] += verdict.is_correct
    return [Answer(count=count, correct_share=right / count) for count, right in counts.values()], num_silent
