"""The log-loss of a policy on examples that it was not trained on: nats and bits a trained token, with an interval.

The estimate is the sum of all trained tokens' losses over their number; the interval is a percentile bootstrap over
examples, since the tokens of one are not independent. It wants some tens of examples: of fewer it is too narrow.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from rlora.evaluation.intervals import Estimate
from rlora.seeding import generator
from rlora.system.progress import counting
from rlora.train.losses import cross_entropy
from rlora.train.packing import PackedRow, TokenExample, pack, stack_packed
from rlora.train.policy import Policy
from rlora.train.token_budget import TokenBudget, within_memory

_DRAWS = 2000
_TAIL = 0.025


@dataclass(frozen=True, slots=True, kw_only=True)
class LogLoss:
    """The losses of E examples, nats summed over each one's trained tokens, and how many tokens these are.

    Example:
        >>> LogLoss(nats_E=(2.0, 4.0), tokens_E=(2, 2)).nats.mean
        1.5
    """

    nats_E: tuple[float, ...]
    tokens_E: tuple[int, ...]

    @property
    def nats(self) -> Estimate:
        """Nats a trained token."""
        return ratio(self.nats_E, self.tokens_E)

    @property
    def bits(self) -> Estimate:
        """Bits a trained token."""
        return in_bits(self.nats)

    def less(self, other: "LogLoss") -> Estimate:
        """Return the paired difference to another policy's loss on the same examples, nats a token."""
        gains = [mine - theirs for mine, theirs in zip(self.nats_E, other.nats_E, strict=True)]
        return ratio(gains, self.tokens_E)

    def metrics(self) -> dict[str, float]:
        """Return what a step logs of it."""
        nats, bits = self.nats, self.bits
        return {
            "evaluation/loss": nats.mean,
            "evaluation/loss_low": nats.low,
            "evaluation/loss_high": nats.high,
            "evaluation/bits": bits.mean,
            "evaluation/bits_low": bits.low,
            "evaluation/bits_high": bits.high,
            "evaluation/num_tokens": float(sum(self.tokens_E)),
        }


def in_bits(nats: Estimate) -> Estimate:
    """Return an estimate in nats in bits."""
    return Estimate(mean=nats.mean / math.log(2), low=nats.low / math.log(2), high=nats.high / math.log(2))


def ratio(sums_E: Sequence[float], counts_E: Sequence[int]) -> Estimate:
    """Return the ratio of two sums over examples, with the 95 % percentile interval of a bootstrap over them.

    The draws are the same in every call, so that equal inputs have equal intervals; of one example there is no width.

    Example:
        >>> ratio([1.0, 1.0], [1, 3]).mean
        0.5
    """
    sums, counts = torch.tensor(sums_E, dtype=torch.float64), torch.tensor(counts_E, dtype=torch.float64)
    mean = float(sums.sum() / counts.sum())
    random, means = generator("bootstrap", len(sums)), []
    for _ in range(_DRAWS):
        drawn = torch.randint(len(sums), (len(sums),), generator=random)
        means.append(float(sums[drawn].sum() / counts[drawn].sum()))
    low, high = torch.tensor(means, dtype=torch.float64).quantile(torch.tensor([_TAIL, 1 - _TAIL], dtype=torch.float64))
    return Estimate(mean=mean, low=min(mean, float(low)), high=max(mean, float(high)))


def log_loss(policy: Policy, examples: Sequence[TokenExample], budget: TokenBudget) -> LogLoss:
    """Return the losses of examples under a policy, in micro-batches that memory has room for.

    Raises OutOfMemoryError where none has.
    """
    squares = policy.base.has_materialised_scores
    found, _ = within_memory(budget, policy, lambda limits: _losses(policy, pack(examples, limits, squares=squares)))
    nats = [found[id(example)] for example in examples]
    return LogLoss(nats_E=tuple(nats), tokens_E=tuple(example.num_trained for example in examples))


@torch.no_grad()
def _losses(policy: Policy, parts: Sequence[Sequence[PackedRow]]) -> dict[int, float]:
    """Return the summed loss of each example, by its identity."""
    losses: dict[int, float] = {}
    with counting("examples", sum(len(row.examples) for rows in parts for row in rows)) as count:
        for rows in parts:
            micro_batch = stack_packed(rows).to(policy.device)
            examples = [example for row in rows for example in row.examples]
            loss_N = cross_entropy(policy.score(micro_batch).logprobs_N).double()
            sums = loss_N.new_zeros(len(examples)).index_add(0, micro_batch.completion_N, loss_N)
            losses |= {id(example): value for example, value in zip(examples, sums.tolist(), strict=True)}
            count.add(len(examples))
    return losses
