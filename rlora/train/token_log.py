"""What is observed of a step's trained tokens, and the metrics that are made of it."""

from dataclasses import dataclass

import numpy as np
import torch

from rlora.train.losses import k3
from rlora.types import Completion


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TrainedTokens:
    """The N tokens of `completions`, one after the other: the trainer's and the sampler's log-probabilities and the
    trainer's entropies, in nats, at the version that sampled them.
    """

    completions: tuple[Completion, ...]
    trainer_logprobs_N: torch.Tensor
    sampler_logprobs_N: torch.Tensor
    entropies_N: torch.Tensor


@dataclass(slots=True, eq=False)
class TokenLog:
    """Observations of one pass over a batch, from which the metrics are made, where they were computed: copying them
    micro-batch by micro-batch would make a GPU wait for each.
    """

    losses: list[torch.Tensor]
    kls_to_base: list[torch.Tensor]
    trainer_logprobs: list[torch.Tensor]
    sampler_logprobs: list[torch.Tensor]
    entropies: list[torch.Tensor]
    of_loss: dict[str, list[torch.Tensor]]


def token_metrics(log: TokenLog) -> dict[str, float]:
    """Return the metrics of a pass that are means, or largest values, over its trained tokens; those against the
    sampler where one said its log-probabilities.
    """
    num_trained = sum(part.numel() for part in log.entropies)
    return (_agreement(log) if log.sampler_logprobs else {}) | {
        **{f"loss/{name}": float(torch.cat(parts).cpu().float().mean()) for name, parts in log.of_loss.items()},
        "policy/entropy": float(torch.cat(log.entropies).cpu().mean()),
        "batch/num_trained_tokens": float(num_trained),
    }


def _agreement(log: TokenLog) -> dict[str, float]:
    trainer_N, sampler_N = torch.cat(log.trainer_logprobs).cpu(), torch.cat(log.sampler_logprobs).cpu()
    difference_N = (trainer_N - sampler_N).abs()
    return {
        "agreement/mean_abs_logprob_difference": float(difference_N.mean()),
        "agreement/p99_abs_logprob_difference": float(np.quantile(difference_N.numpy(), 0.99)),  # torch's: up to 2^24
        "agreement/max_abs_logprob_difference": float(difference_N.max()),
        "agreement/kl_k3": float(k3(sampler_N, trainer_N).mean()),
    }
