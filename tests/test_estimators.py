"""pass@k and maj@k against closed forms and against naive enumeration over all subsets."""

from collections import Counter
from fractions import Fraction
from itertools import combinations, product

import pytest

from rlora.evaluation.estimators import Answer, group_answers, majority_at_k, pass_at_k
from rlora.types import Verdict, VerdictKind
from rlora.verify import Verifier

pytestmark = pytest.mark.unit


def test_pass_at_k_equals_enumeration() -> None:
    for n in range(1, 8):
        for c, k in product(range(n + 1), range(1, n + 1)):
            subsets = list(combinations([True] * c + [False] * (n - c), k))
            expected = Fraction(sum(map(any, subsets)), len(subsets))
            assert pass_at_k(n, c, k) == float(expected)


def test_pass_at_k_equals_its_closed_forms_and_stays_exact_for_many_samples() -> None:
    assert pass_at_k(10, 3, 1) == 0.3
    assert pass_at_k(10, 1, 4) == 0.4
    assert pass_at_k(32, 32, 8) == 1
    assert pass_at_k(32, 0, 32) == 0
    product_form = 1.0
    for i in range(10_000 - 3 + 1, 10_000 + 1):
        product_form *= 1 - 100 / i
    assert pass_at_k(10_000, 3, 100) == pytest.approx(1 - product_form, rel=1e-12)


@pytest.mark.parametrize(("n", "c", "k"), [(4, 5, 1), (4, -1, 1), (4, 2, 0), (4, 2, 5)])
def test_pass_at_k_outside_its_domain(n, c, k) -> None:
    with pytest.raises(ValueError, match=f"pass@{k} of {c} correct among {n} samples is not defined"):
        pass_at_k(n, c, k)


def naive_majority(labels: list[int | None], scores: dict[int, float], k: int) -> float:
    """Vote in every subset; ties score the mean of the tied answers."""
    found = []
    for subset in combinations(labels, k):
        votes = Counter(label for label in subset if label is not None)
        most = max(votes.values(), default=0)
        tied = [scores[label] for label, count in votes.items() if count == most]
        found.append(sum(tied) / len(tied) if tied else 0.0)
    return sum(found) / len(found)


@pytest.mark.parametrize(
    ("counts", "shares", "num_silent"),
    [
        ([4, 3, 1], [1.0, 0.0, 0.0], 0),
        ([3, 3, 3], [0.0, 1.0, 0.0], 1),
        ([2, 2, 1, 1], [1.0, 0.0, 1.0, 0.0], 3),
        ([1, 1, 1, 1, 1], [0.0, 0.0, 1.0, 0.0, 0.0], 2),
        ([5, 2], [0.4, 1.0], 2),
        ([], [], 4),
    ],
)
def test_majority_equals_enumeration_over_all_subsets(counts, shares, num_silent) -> None:
    labels: list[int | None] = [label for label, count in enumerate(counts) for _ in range(count)]
    labels += [None] * num_silent
    answers = [Answer(count=count, correct_share=share) for count, share in zip(counts, shares, strict=True)]
    for k in range(1, len(labels) + 1):
        expected = naive_majority(labels, dict(enumerate(shares)), k)
        assert majority_at_k(answers, num_silent, k) == pytest.approx(expected, abs=1e-12)


def test_majority_in_closed_form() -> None:
    right, wrong = Answer(count=2, correct_share=1.0), Answer(count=2, correct_share=0.0)
    assert majority_at_k([right, wrong], 0, 4) == 0.5  # a tie scores its expectation
    assert majority_at_k([right, wrong], 28, 32) == 0.5
    assert majority_at_k([Answer(count=12, correct_share=1.0), Answer(count=11, correct_share=0.0)], 9, 32) == 1
    assert majority_at_k([right], 2, 1) == 0.5  # avg@n


def test_majority_of_one_sample_is_the_mean_and_large_numbers_are_fast() -> None:
    answers = [Answer(count=1, correct_share=float(index == 0)) for index in range(64)]
    assert majority_at_k(answers, 0, 64) == pytest.approx(1 / 64)
    assert majority_at_k(answers, 0, 16) == pytest.approx(1 / 64)
    with pytest.raises(ValueError, match="maj@65 of 64 samples is not defined"):
        majority_at_k(answers, 0, 65)


def verdict(text: str, kind: VerdictKind = VerdictKind.WRONG) -> Verdict:
    return Verdict(kind=kind, reward=float(kind is VerdictKind.CORRECT), extracted=text)


def test_answers_are_grouped_by_the_verifiers_equality() -> None:
    right = VerdictKind.CORRECT
    verdicts = [
        verdict("\\frac{1}{2}", right),
        verdict("3"),
        verdict("0.5", right),
        verdict("1/2", right),
        verdict("3.0"),
        verdict("", VerdictKind.NO_ANSWER),
        verdict("", VerdictKind.TRUNCATED),
        verdict("some text", VerdictKind.UNPARSED),
        verdict("some text", VerdictKind.UNPARSED),
        verdict("huge", VerdictKind.TIMEOUT),
        verdict("1+1"),
        verdict("2", right),
    ]
    with Verifier() as verifier:
        answers, num_silent = group_answers(verdicts, verifier.equal)
    assert num_silent == 2
    assert [(answer.count, answer.correct_share) for answer in answers] == [
        (3, 1.0),
        (2, 0.0),
        (2, 0.0),
        (1, 0.0),
        (2, 0.5),
    ]


def test_each_pair_of_texts_is_compared_once() -> None:
    asked = []

    def equal(a: str, b: str) -> bool:
        asked.append((a, b))
        return False

    verdicts = [verdict("1")] * 5 + [verdict("2")] * 5 + [verdict("x", VerdictKind.UNPARSED)]
    answers, _ = group_answers(verdicts, equal)
    assert asked == [("1", "2")]
    assert [answer.count for answer in answers] == [5, 5, 1]
