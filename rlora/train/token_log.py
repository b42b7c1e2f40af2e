"""What is observed of a step's trained tokens, and the metrics that are made of it."""

from dataclasses import dataclass

import numpy as np
import torch

from rlora.train.losses import k3


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
    """Return the metrics of a pass that are means, or largest values, over its trained tokens."""
    trainer_N, sampler_N = torch.cat(log.trainer_logprobs).cpu(), torch.cat(log.sampler_logprobs).cpu()
    difference_N = (trainer_N - sampler_N).abs()
    return {
        "agreement/mean_abs_logprob_difference": float(difference_N.mean()),
        "agreement/p99_abs_logprob_difference": float(np.quantile(difference_N.numpy(), 0.99)),  # torch's: up to 2^24
        "agreement/max_abs_logprob_difference": float(difference_N.max()),
        "agreement/kl_k3": float(k3(sampler_N, trainer_N).mean()),
        **{f"loss/{name}": float(torch.cat(parts).cpu().float().mean()) for name, parts in log.of_loss.items()},
        "policy/entropy": float(torch.cat(log.entropies).cpu().mean()),
        "batch/num_trained_tokens": float(trainer_N.numel()),
    }
