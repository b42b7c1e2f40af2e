"""Problems -> groups of judged rollouts: render, sample, judge. Training and evaluation share this path."""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from rlora.rewards import Judge, judged, measures_of, sees_groups
from rlora.sampler.base import Sampler
from rlora.sampler.contract import check_completions
from rlora.tasks.prompts import PromptRenderer
from rlora.tasks.stream import ProblemStream
from rlora.tracking import StepMetrics
from rlora.train.advantages import is_wrong_consensus
from rlora.types import (
    Completion,
    Group,
    Problem,
    Prompt,
    Rollout,
    Sample,
    SampleRequest,
    SamplingParams,
    StopReason,
    VerdictKind,
)
from rlora.verify.workers.faults import RAISED


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampled:
    """A prompt and its completions, not yet judged."""

    prompt: Prompt
    completions: tuple[Completion, ...]


class RolloutEngine:
    """Collects rollouts with one renderer, sampler and judge."""

    def __init__(
        self,
        renderer: PromptRenderer,
        sampler: Sampler,
        judge: Judge,
        *,
        max_prompt_tokens: int,
        num_tokens: int | None = None,
        text_of: Callable[[Sequence[int]], str] | None = None,
    ):
        """Reward as `judge` says; prompts above `max_prompt_tokens` are dropped. Completions must keep their contract:
        tokens are below `num_tokens`, the rows of the model's embedding, and texts what `text_of` says of the tokens.
        """
        self._renderer, self._sampler, self._max_prompt_tokens = renderer, sampler, max_prompt_tokens
        self._num_tokens, self._text_of = num_tokens, text_of
        self._judge = judge

    @property
    def measures(self) -> Mapping[str, bool]:
        """The judge's measures: by name, whether they can differ from the verdict."""
        return measures_of(self._judge)

    @property
    def sees_groups(self) -> bool:
        """Whether the judge must be given all completions of a problem at once."""
        return sees_groups(self._judge)

    def render(self, problems: Sequence[Problem]) -> list[Prompt]:
        """Return the prompts of the problems, without those that are too long."""
        prompts = [self._renderer.render(problem) for problem in problems]
        return [prompt for prompt in prompts if len(prompt.token_ids) <= self._max_prompt_tokens]

    def sample(
        self,
        problems: Sequence[Problem],
        sampling: SamplingParams,
        *,
        num_samples: int,
        seed: int,
        key: tuple[str | int, ...],
        policy: int | None = 0,
        is_placed: bool = True,
        first: int = 0,
    ) -> list[Sampled]:
        """Return `num_samples` completions of each problem whose prompt is not too long.

        `key` names the occasion (a step, an evaluation); with the problem and `seed` it decides what is drawn, and so
        does its place among the others, unless `is_placed` is off: then a problem's completions are the same whatever
        is asked beside it. `policy` None is the base. The completions follow `first` others of the same occasion.
        """
        prompts = self.render(problems)
        requests = [
            SampleRequest(
                token_ids=prompt.token_ids,
                num_samples=num_samples,
                key=(*key, index, prompt.problem.id) if is_placed else (*key, prompt.problem.id),
                policy=policy,
                first=first,
            )
            for index, prompt in enumerate(prompts)
        ]
        completions_PG = self._sampler.sample(requests, sampling, seed=seed)
        check_completions(requests, completions_PG, sampling, num_tokens=self._num_tokens, text_of=self._text_of)
        return [
            Sampled(prompt=prompt, completions=tuple(completions))
            for prompt, completions in zip(prompts, completions_PG, strict=True)
        ]

    def judge(self, sampled: Sequence[Sampled]) -> list[Group]:
        """Return each prompt's completions with their verdicts; RewardError for what is no reward."""
        samples = [
            Sample(problem=asked.prompt.problem, completion=completion)
            for asked in sampled
            for completion in asked.completions
        ]
        verdicts = iter(judged(self._judge, samples))
        return [
            Group(
                prompt=asked.prompt,
                rollouts=tuple(
                    Rollout(completion=completion, verdict=next(verdicts)) for completion in asked.completions
                ),
            )
            for asked in sampled
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Collection:
    """How a step's groups are collected: `num_samples` completions of each of `num_problems` problems.

    With `oversample`, of further problems too while groups with signal are lacking, up to that many times the problems.
    """

    num_problems: int
    num_samples: int
    sampling: SamplingParams
    oversample: float = 1.0
    seed: int = 0


def collect(engine: RolloutEngine, stream: ProblemStream, collection: Collection, metrics: StepMetrics) -> list[Group]:
    """Return the judged groups of the step that `metrics` counts.

    All that is sampled is returned, logged and counted: a step of three rounds is a step with three times the problems.
    """
    wanted, limit = collection.num_problems, round(collection.oversample * collection.num_problems)
    groups: list[Group] = []
    num_taken = num_rounds = num_useful = 0
    start = stream.position
    while num_taken < limit and num_useful < wanted:
        lacking = math.ceil((wanted - num_useful) * num_taken / max(1, num_useful)) if num_taken else wanted
        chosen = stream.take(min(lacking, wanted, limit - num_taken))
        with metrics.timed("sample"):
            sampled = engine.sample(
                chosen,
                collection.sampling,
                num_samples=collection.num_samples,
                seed=collection.seed,
                key=("train", metrics.step, num_rounds) if num_rounds else ("train", metrics.step),
            )
        with metrics.timed("verify"):
            found = engine.judge(sampled)
        stream.observe(found)
        groups += found
        num_taken, num_rounds = num_taken + len(chosen), num_rounds + 1
        num_useful += sum(group.has_signal for group in found)
    metrics.update(rollout_metrics(groups, num_problems=num_taken))
    metrics.update({"rollout/num_rounds": num_rounds})
    if stream.solve_rates is not None:
        metrics.update({"rollout/num_passed_over": stream.position - start - num_taken})
    return groups


def rollout_metrics(groups: Sequence[Group], *, num_problems: int) -> dict[str, float]:
    """Return reward, shares of groups with and without signal, verdict kinds and lengths of a step's rollouts."""
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    count, lengths = max(1, len(rollouts)), [len(rollout.completion.token_ids) for rollout in rollouts]
    kinds = Counter(rollout.verdict.kind for rollout in rollouts)
    num_mixed = sum(group.has_signal for group in groups)
    num_right = sum(
        not group.has_signal and all(rollout.verdict.is_correct for rollout in group.rollouts) for group in groups
    )
    of_groups = max(1, len(groups))
    return {
        "reward/mean": sum(rollout.reward for rollout in rollouts) / count,
        "groups/all_right_share": num_right / of_groups,
        "groups/mixed_share": num_mixed / of_groups,
        "groups/all_wrong_share": (len(groups) - num_mixed - num_right) / of_groups,
        "groups/wrong_consensus_share": sum(map(is_wrong_consensus, groups)) / of_groups,
        "groups/num_without_signal": len(groups) - num_mixed,
        "rollout/num_dropped_prompts": num_problems - len(groups),
        "rollout/num_completions": len(rollouts),
        "rollout/num_tokens": sum(lengths),
        "rollout/mean_tokens": sum(lengths) / count,
        "rollout/max_tokens": max(lengths, default=0),
        "rollout/truncated_share": sum(r.completion.stop is StopReason.LENGTH for r in rollouts) / count,
        **{f"verdict/{kind.value}_share": kinds[kind] / count for kind in VerdictKind},
        "verdict/num_raised": sum(rollout.verdict.reason.startswith(RAISED) for rollout in rollouts),
        "information/bits_per_rollout": sum(map(reward_bits, groups)) / count,
        **_part_means(rollouts),
    }


def _part_means(rollouts: Sequence[Rollout]) -> dict[str, float]:
    """Return the mean of each part of the rewards, before its weight; nothing where a reward is no sum."""
    names = rollouts[0].verdict.parts if rollouts else ()
    return {
        f"reward/{name}_mean": sum(rollout.verdict.parts[name] for rollout in rollouts) / len(rollouts)
        for name in names
    }


def reward_bits(group: Group) -> float:
    """Return how many bits a group's rewards tell, all together: their number times the entropy of how they fall.

    It bounds what a policy gradient can learn from them: rewards that are all the same tell nothing, and one that is
    right or wrong at most a bit. Schulman et al., "LoRA Without Regret" (Thinking Machines Lab, 2025).

    Example: of four rewards 1, 0, 0, 0 each tells 0.81 bits.
    """
    counts, number = Counter(rollout.reward for rollout in group.rollouts), len(group.rollouts)
    return sum(count * math.log2(number / count) for count in counts.values())
