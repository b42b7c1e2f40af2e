"""What drawn tokens say about who drew them: statistics of log-probabilities, without a model or a sampler.

Three questions are asked of N tokens, of which x is the sampler's log-probability, a the trainer's under the version
that should be served, and b the trainer's under another one:

- Is x near a? The root mean square of x - a is compared with the noise, which is measured on the base model. One
  error counts as `CLIP` times the noise at most: a token in ten thousand may be far off in an honest engine.
- Which part of the update is served? t = <x - b, a - b> / <a - b, a - b> is 1 for all of it and 0 for none, with the
  standard error that the residuals x - a themselves give it.
- Were the tokens drawn from the trainer's distribution? Their surprise -ln p, cut at `SURPRISE` nats, is compared with
  what the trainer's whole distribution expects of it, in deviations; the cut bounds what one rare token can say. And
  they are counted in its tail: a tenth of all draws lies behind the likeliest nine tenths, unless these were cut off.

The last two are sums, so they are pooled over steps. Two more questions need no trainer: how many completions of a
group are copies of each other, and how many are drawn again with another seed, against what their own probabilities
allow.
"""

import math
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from rlora.types import Completion

CLIP = 30.0  # times the noise
MAX_ERROR = 4.0  # times the noise: above it, what is served is neither the version nor anything like it
LEAST_NOISE = (1e-4, 0.02)  # nats; what fp32 can differ by on any model, and what 16 bits can
MAX_NOISE = 0.2  # nats at temperature 1: a sampler that differs by more on the base computes another model
MAX_DEVIATIONS = 6.0  # of a sum from what is expected
LEAST_LACK = 0.05  # of the update: rounding that shrinks it by less is no lie
SURPRISE = 5.0  # nats
CHANCE = 1e-9  # probability below which a count is no chance
TAILS = (0.9, 0.99)  # of the likeliest tokens' probability, behind which draws are counted
_WINDOWS = (1, 4, 16, 64)  # steps over which sums are pooled


def clipped_error(difference_N: torch.Tensor, noise: float) -> float:
    """Return the root mean square of differences in nats, each cut at `CLIP` times the noise; 0 of none."""
    if not len(difference_N):
        return 0.0
    return root_mean_square(difference_N.double().clamp(-CLIP * noise, CLIP * noise))


def root_mean_square(values_N: torch.Tensor) -> float:
    """Return the root mean square."""
    return float(values_N.double().square().mean().sqrt())


@dataclass(frozen=True, slots=True, kw_only=True)
class Sums:
    """Sums that are added over steps: a deviation from what is expected, and its variance; the weight, in whose units
    the deviation is meant; and the slack, by which rounding may lower it.
    """

    deviation: float
    variance: float
    weight: float = 0.0
    slack: float = 0.0

    @property
    def z(self) -> float:
        """The deviation in standard deviations; 0 where nothing could deviate."""
        return self.deviation / math.sqrt(self.variance) if self.variance > 0 else 0.0

    @property
    def relative(self) -> float:
        """The deviation in units of the weight."""
        return self.deviation / self.weight if self.weight > 0 else 0.0

    @property
    def is_off(self) -> bool:
        """Whether a fraction or slope lacks more than rounding could take, and more than chance could."""
        lack = -(self.deviation + self.slack) / self.weight if self.weight > 0 else 0.0
        return abs(self.z) > MAX_DEVIATIONS and max(lack, self.relative) > LEAST_LACK


def served_sums(
    sampler_N: torch.Tensor, new_N: torch.Tensor, other_N: torch.Tensor, *, trainer_noise: float = 0.0
) -> Sums:
    """Return the sums of t - 1: `relative` is t - 1 itself, `z` its standard errors.

    The variance is that of the residuals where they are (White 1980), so no noise is assumed. The trainer's own
    rounding is in x - a and, with the other sign, in a - b, which lowers t; `trainer_noise` bounds it, nats.
    """
    error_N, direction_N = (sampler_N - new_N).double(), (new_N - other_N).double()
    share_N = error_N * direction_N
    return Sums(
        deviation=float(share_N.sum()),
        variance=float(share_N.square().sum()),
        weight=float(direction_N.square().sum()),
        slack=len(sampler_N) * trainer_noise**2,
    )


def slope_sums(sampler_N: torch.Tensor, new_N: torch.Tensor, *, trainer_noise: float = 0.0) -> Sums:
    """Return the sums of how x - a goes with a: `relative` is 1 / T - 1 where x was made at another temperature T."""
    return served_sums(sampler_N, new_N, new_N.mean().expand_as(new_N), trainer_noise=trainer_noise)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Scores:
    """The trainer's view of N drawn tokens: log-probabilities (nats), and of the surprise that is cut at `SURPRISE`
    what its distribution expects, and the variance.

    `gap_N` is how far the token lies below the likeliest one, nats; `above_N` the probability of all likelier tokens,
    and `level_N` that of the tokens as likely as it is, itself among them.
    """

    logprobs_N: torch.Tensor
    expected_N: torch.Tensor
    variance_N: torch.Tensor
    gap_N: torch.Tensor
    above_N: torch.Tensor
    level_N: torch.Tensor

    @classmethod
    def joined(cls, parts: Sequence["Scores"]) -> "Scores":
        """Return the scores of parts one after the other, on the CPU."""
        return cls(**{name: torch.cat([getattr(part, name) for part in parts]).cpu() for name in cls.__slots__})


def scores_of(log_p_NV: torch.Tensor, tokens_N: torch.Tensor) -> Scores:
    """Return what a distribution (N, V) says of drawn tokens."""
    surprise_NV = (-log_p_NV).clamp(max=SURPRISE)
    p_NV = log_p_NV.exp()
    expected_N = (p_NV * surprise_NV).sum(-1)
    logprobs_N = log_p_NV.gather(1, tokens_N[:, None]).squeeze(1).clamp(min=-100.0)  # -inf behind top-p
    return Scores(
        logprobs_N=logprobs_N,
        expected_N=expected_N,
        variance_N=((p_NV * surprise_NV.square()).sum(-1) - expected_N.square()).clamp(min=0),
        gap_N=log_p_NV.amax(-1) - logprobs_N,
        above_N=(p_NV * (log_p_NV > logprobs_N[:, None])).sum(-1),
        level_N=(p_NV * (log_p_NV == logprobs_N[:, None])).sum(-1),
    )


def surprise_sums(scores: Scores) -> Sums:
    """Return the sums of the drawn tokens' surprise, less what is expected of it."""
    surprise_N = (-scores.logprobs_N).clamp(max=SURPRISE)
    return Sums(
        deviation=float((surprise_N - scores.expected_N).double().sum()),
        variance=float(scores.variance_N.double().sum()),
    )


def tail_sums(scores: Scores) -> list[Sums]:
    """Return, for each of `TAILS`, how many tokens lie behind it (deviation), and how many are expected (weight).

    A token counts by the part of its level that lies behind the tail's beginning, so an honest draw counts 1 - tail on
    average, from whatever distribution: of a token without doubt that much lies behind.
    """
    end_N, level_N = (scores.above_N + scores.level_N).double(), scores.level_N.double()
    return [
        Sums(
            deviation=float(((end_N - tail) / level_N).nan_to_num(1.0).clamp(0, 1).sum()),
            variance=0.0,
            weight=len(end_N) * (1 - tail),
        )
        for tail in TAILS
    ]


class Pooled:
    """Sums of the last steps. `spare` is added to a variance, so that a few rare events cannot look like a law."""

    def __init__(self, *, spare: float = 0.0):
        """Start with none."""
        self._spare, self._steps = spare, deque[Sums](maxlen=max(_WINDOWS))

    def add(self, sums: Sums) -> None:
        """Add a step's sums."""
        self._steps.append(sums)

    def windows(self) -> Iterator[Sums]:
        """Yield the sums over the last 1, 4, 16 and 64 steps, as far as there are so many."""
        steps = list(self._steps)
        for length in _WINDOWS:
            if length == 1 or length / 2 < len(steps):
                part = steps[-length:]
                yield Sums(
                    deviation=sum(each.deviation for each in part),
                    variance=self._spare + sum(each.variance for each in part),
                    weight=sum(each.weight for each in part),
                    slack=sum(each.slack for each in part),
                )

    @property
    def last(self) -> Sums:
        """The sums over the last step alone."""
        return next(self.windows())


def first_occurrences(completions: Sequence[Completion], *, length: int) -> torch.Tensor:
    """Return which of the first `length` tokens of each are no repetitions: the same token after the same tokens says
    nothing new.
    """
    seen: set[tuple[int, ...]] = set()
    is_first = []
    for completion in completions:
        for end in range(1, min(len(completion.token_ids), length) + 1):
            beginning = completion.token_ids[:end]
            is_first.append(beginning not in seen)
            seen.add(beginning)
    return torch.tensor(is_first)


def chance_of_copies(completions: Sequence[Completion]) -> float:
    """Return a bound on the probability of so many copies among the completions of one prompt, drawn by themselves.

    Completion j repeats one of those before it with the sum of their probabilities.
    """
    seen: dict[tuple[int, ...], float] = {}
    expected, num_copies = 0.0, 0
    for completion in completions:
        expected += min(1.0, sum(seen.values()))
        num_copies += completion.token_ids in seen
        seen[completion.token_ids] = min(1.0, math.exp(sum(completion.logprobs)))
    return 1.0 if num_copies <= expected else chance_of_count(num_copies, expected)


def chance_of_repeats(some: Sequence[Completion], others: Sequence[Completion]) -> float:
    """Return the probability that so many of `some` are drawn once more, each by the draw in its place of `others`.

    That of one is the product of its tokens' probabilities; of a count, that of independent events (Poisson binomial).
    """
    num_repeats = sum(one.token_ids == other.token_ids for one, other in zip(some, others, strict=True))
    chances = [1.0]  # of each count
    for one in some:
        chance = min(1.0, math.exp(sum(one.logprobs)))
        chances = [
            (chances[count] if count < len(chances) else 0.0) * (1 - chance)
            + (chances[count - 1] * chance if count else 0.0)
            for count in range(len(chances) + 1)
        ]
    return min(1.0, math.fsum(chances[num_repeats:]))


def chance_of_count(count: float, expected: float) -> float:
    """Return a bound on the probability of a count as far from what is expected, of events that are independent or
    expected each given those before: Chernoff's, on either side. An event may count for a part.
    """
    if count == 0 or expected == 0:
        return 0.0 if expected == 0 < count else math.exp(-expected)
    return math.exp(min(0.0, count - expected - count * math.log(count / expected)))
