"""Score a policy, or the base, on problems it was not trained on, with intervals, and compare the two problem by
problem.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from rlora.errors import ConfigError
from rlora.evaluation.intervals import Estimate, mean_score, paired_difference
from rlora.rollout import RolloutEngine
from rlora.system.progress import counted_as
from rlora.types import Problem, SamplingParams, StopReason, Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationConfig:
    """What is scored, and when."""

    num_problems: int = 250
    """Problems of the test split that are scored at the end (0: all of them)."""
    every: int = 0
    """Steps between evaluations during training; 0 evaluates at the end only."""
    num_problems_during_training: int = 100
    """Problems of an evaluation during training, scored greedily: the first ones of the test split."""
    max_tokens: int = 0
    """Token limit of an evaluated completion; 0 takes sampling.max_tokens."""

    def check(self) -> None:
        """Raise ConfigError for a value that breaks a rule."""
        if min(self.num_problems, self.every, self.num_problems_during_training, self.max_tokens) < 0:
            raise ConfigError("evaluation's numbers must be at least 0.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """The scores of one policy or the base: the reward of each problem, in order, and the same by the judge's measures.

    A problem whose prompt is too long to be sampled scores 0, as in `rlora eval`, and counts in `num_too_long`;
    `truncated_share` is of what was sampled, and `texts_P` what was said ("" where nothing was).
    """

    scores_P: tuple[float, ...]
    texts_P: tuple[str, ...]
    measures_P: Mapping[str, tuple[float, ...]]
    truncated_share: float
    num_too_long: int

    @property
    def accuracy(self) -> Estimate:
        """Mean score: the accuracy where right answers earn 1 and all others 0."""
        return mean_score(self.scores_P)

    def measure(self, name: str) -> Estimate:
        """Return the mean score by one of the judge's measures; KeyError for one that it does not have."""
        return mean_score(self.measures_P[name])

    def metrics(self) -> dict[str, float]:
        """Return what a step logs of it."""
        return {
            "evaluation/accuracy": self.accuracy.mean,
            "evaluation/accuracy_low": self.accuracy.low,
            "evaluation/accuracy_high": self.accuracy.high,
            "evaluation/truncated_share": self.truncated_share,
        }


def evaluate(
    engine: RolloutEngine, problems: Sequence[Problem], sampling: SamplingParams, *, seed: int, policy: int | None = 0
) -> Evaluation:
    """Sample one completion a problem and score it; `policy` None scores the base model."""
    with counted_as("problems"):
        sampled = engine.sample(problems, sampling, num_samples=1, seed=seed, key=("evaluate",), policy=policy)
        groups = engine.judge(sampled)
    verdicts = {group.prompt.problem.id: group.rollouts[0].verdict for group in groups}
    texts = {group.prompt.problem.id: group.rollouts[0].completion.text for group in groups}

    def scores(verdicts: Mapping[str, Verdict]) -> tuple[float, ...]:
        return tuple(verdicts[each.id].reward if each.id in verdicts else 0.0 for each in problems)

    num_truncated = sum(group.rollouts[0].completion.stop is StopReason.LENGTH for group in groups)
    return Evaluation(
        scores_P=scores(verdicts),
        texts_P=tuple(texts.get(each.id, "") for each in problems),
        measures_P={
            name: scores({key: verdict.measures[name] for key, verdict in verdicts.items()}) for name in engine.measures
        },
        truncated_share=num_truncated / max(1, len(groups)),
        num_too_long=len(problems) - len(groups),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Base and policy on the same problems at one temperature."""

    base: Evaluation
    policy: Evaluation

    @property
    def difference(self) -> Estimate:
        """Policy minus base, paired."""
        return paired_difference(self.policy.scores_P, self.base.scores_P)

    def format_share(self, measure: str) -> float | None:
        """Return the share of a stricter measure's gain that the score does not see: answers that were right before
        but not put as asked.

        None when the measure did not rise.
        """
        gain = self.policy.measure(measure).mean - self.base.measure(measure).mean
        return None if gain <= 0 else 1 - self.difference.mean / gain


def compare_with_base(
    engine: RolloutEngine,
    problems: Sequence[Problem],
    sampling: SamplingParams,
    *,
    seed: int,
    prove_served: Callable[[int | None], None],
) -> Comparison:
    """Evaluate the base model and the policy that the sampler serves on the same problems with the same seeds.

    `prove_served` is called before each with the policy that is asked for (None is the base), to prove what is served.
    """
    prove_served(None)
    base = evaluate(engine, problems, sampling, seed=seed, policy=None)
    prove_served(0)
    return Comparison(base=base, policy=evaluate(engine, problems, sampling, seed=seed))
