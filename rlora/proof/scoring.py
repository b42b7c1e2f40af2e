"""What the trainer says of drawn tokens: the rows they are computed in, and their scores under a policy or the base."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from rlora.proof.evidence import LEAST_NOISE, Scores, first_occurrences, scores_of
from rlora.sampler.distribution import log_probabilities
from rlora.train.batching import MicroBatch, Row, stack
from rlora.train.policy import Policy
from rlora.types import Completion, SamplingParams

_CHUNK = 32  # tokens whose whole distribution exists at once


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Drawn:
    """N drawn tokens: `micro_batch` computes them, `is_first_N` says which are no repetitions."""

    micro_batch: MicroBatch
    is_first_N: torch.Tensor

    @property
    def sampler_N(self) -> torch.Tensor:
        """The sampler's log-probabilities, nats."""
        return self.micro_batch.sampler_logprobs_N


def drawn(answers: Sequence[tuple[Sequence[int], Sequence[Completion]]], *, length: int) -> Drawn:
    """Return the first `length` tokens of completions, given with their prompts (token ids)."""
    rows, is_first = [], []
    for prompt, completions in answers:
        cut = tuple(
            replace(one, token_ids=one.token_ids[:length], logprobs=one.logprobs[:length]) for one in completions
        )
        rows.append(Row(prompt=tuple(prompt), completions=cut, advantages=(0.0,) * len(cut)))
        is_first.append(first_occurrences(cut, length=length))
    return Drawn(micro_batch=stack(rows), is_first_N=torch.cat(is_first))


@torch.no_grad()
def score(policy: Policy, tokens: Drawn, sampling: SamplingParams) -> Scores:
    """Return what the policy, as it computes now, says of drawn tokens; on the CPU, which waits for a GPU once."""
    micro_batch = tokens.micro_batch.to(policy.device)
    return _scores_at(policy, policy.hidden_states(micro_batch), micro_batch, sampling)


def logprobs_of(policy: Policy, tokens: Drawn, sampling: SamplingParams) -> torch.Tensor:
    """Return the log-probabilities (N, on the CPU) alone, nats: cheaper than `score`, which gives them too."""
    if sampling.top_p < 1:
        return score(policy, tokens, sampling).logprobs_N
    with torch.no_grad():
        temperature = sampling.temperature or 1.0
        return policy.score(tokens.micro_batch.to(policy.device), temperature=temperature).logprobs_N.cpu()


def score_with_gradient(
    policy: Policy, tokens: Drawn, sampling: SamplingParams, weights_of: Callable[[Scores], torch.Tensor]
) -> tuple[Scores, torch.Tensor]:
    """Return the scores, and the gradient (D, on the CPU) of the sum of log-probabilities by the weights (N) that are
    made of them; one pass forward gives both.
    """
    micro_batch = tokens.micro_batch.to(policy.device)
    policy.flat.zero_grad()
    with torch.enable_grad():
        hidden_NH = policy.hidden_states(micro_batch)
        scores = _scores_at(policy, hidden_NH, micro_batch, sampling)
        logprobs_N = policy.score_hidden(hidden_NH, micro_batch, temperature=sampling.temperature).logprobs_N
        (logprobs_N * weights_of(scores).to(logprobs_N)).sum().backward()
    gradient_D = policy.flat.grad_D.to("cpu", copy=True)
    policy.flat.zero_grad()
    return scores, gradient_D


@torch.no_grad()
def _scores_at(policy: Policy, hidden_NH: torch.Tensor, micro_batch: MicroBatch, sampling: SamplingParams) -> Scores:
    parts = zip(hidden_NH.split(_CHUNK), micro_batch.target_N.split(_CHUNK), strict=True)
    return Scores.joined(
        [scores_of(log_probabilities(policy.logits(part_NH), sampling), targets_N) for part_NH, targets_N in parts]
    )


def rounding_of(policy: Policy, noise: float) -> float:
    """Return a bound on how much of the noise is the trainer's own rounding, nats: none in fp32, at most all of it."""
    return 0.0 if policy.dtype == torch.float32 else noise


def least_noise(policy: Policy) -> float:
    """Return what sampler and trainer may differ by on any model of this precision, nats."""
    return LEAST_NOISE[policy.dtype != torch.float32]
