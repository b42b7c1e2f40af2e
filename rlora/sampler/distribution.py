"""The distribution that completions are drawn from: what temperature and top-p make of a model's logits."""

import torch

from rlora.types import SamplingParams


def log_probabilities(logits_NV: torch.Tensor, sampling: SamplingParams) -> torch.Tensor:
    """Return the log-probabilities (N, V), nats, that are drawn from: after temperature and top-p.

    Greedy sampling leaves the logits as they are.
    """
    log_p_NV = (logits_NV / (sampling.temperature or 1.0)).log_softmax(-1)
    if sampling.top_p < 1:
        ordered_NV, order_NV = log_p_NV.sort(-1, descending=True)
        before_NV = ordered_NV.exp().cumsum(-1) - ordered_NV.exp()
        is_out_NV = torch.zeros_like(log_p_NV, dtype=torch.bool).scatter(1, order_NV, before_NV >= sampling.top_p)
        log_p_NV = log_p_NV.masked_fill(is_out_NV, float("-inf")).log_softmax(-1)
    return log_p_NV
