"""Score a policy, or the base, on problems it was not trained on, with intervals, and compare the two problem by
problem.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rlora.errors import ConfigError
from rlora.evaluation.intervals import Estimate, mean_score, paired_difference
from rlora.rollout import RolloutEngine
from rlora.types import Group, Problem, SamplingParams, StopReason


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
    """The scores of one policy or the base: one a problem, in order, as the task scores and by the strict rule.

    Strict takes only a marked or plain final answer; the task's rule may also take the last number of a text. A problem
    whose prompt is too long to be sampled counts as wrong, as in `rlora eval`, and in `num_too_long`; `truncated_share`
    is of what was sampled.
    """

    scores_P: tuple[float, ...]
    strict_scores_P: tuple[float, ...]
    truncated_share: float
    num_too_long: int

    @property
    def accuracy(self) -> Estimate:
        """Mean score by the task's rule."""
        return mean_score(self.scores_P)

    @property
    def strict_accuracy(self) -> Estimate:
        """Mean score by the strict rule."""
        return mean_score(self.strict_scores_P)

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
    sampled = engine.sample(problems, sampling, num_samples=1, seed=seed, key=("evaluate",), policy=policy)
    groups, strict = engine.judge(sampled), engine.judge(sampled, is_strict=True)
    num_truncated = sum(group.rollouts[0].completion.stop is StopReason.LENGTH for group in groups)
    return Evaluation(
        scores_P=_scores(groups, problems),
        strict_scores_P=_scores(strict, problems),
        truncated_share=num_truncated / max(1, len(groups)),
        num_too_long=len(problems) - len(groups),
    )


def _scores(groups: Sequence[Group], problems: Sequence[Problem]) -> tuple[float, ...]:
    """Return the reward of each problem's one completion, 0 where there is none."""
    rewards = {group.prompt.problem.id: group.rollouts[0].reward for group in groups}
    return tuple(rewards.get(problem.id, 0.0) for problem in problems)


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Base and policy on the same problems at one temperature."""

    base: Evaluation
    policy: Evaluation

    @property
    def difference(self) -> Estimate:
        """Policy minus base by the task's rule, paired."""
        return paired_difference(self.policy.scores_P, self.base.scores_P)

    @property
    def format_share(self) -> float | None:
        """The share of the strict gain that the lenient rule does not see: answers that were right but not put as
        asked.

        None when the strict score did not rise.
        """
        strict_gain = self.policy.strict_accuracy.mean - self.base.strict_accuracy.mean
        return None if strict_gain <= 0 else 1 - self.difference.mean / strict_gain


def compare_with_base(
    engine: RolloutEngine,
    problems: Sequence[Problem],
    sampling: SamplingParams,
    *,
    seed: int,
    confirm: Callable[[int | None], None],
) -> Comparison:
    """Evaluate the base model and the policy that the sampler serves on the same problems with the same seeds.

    `confirm` is called before each with the policy that is asked for (None is the base), to prove what is served.
    """
    confirm(None)
    base = evaluate(engine, problems, sampling, seed=seed, policy=None)
    confirm(0)
    return Comparison(base=base, policy=evaluate(engine, problems, sampling, seed=seed))
