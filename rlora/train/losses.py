"""The policy-gradient losses: each is one small function from `LossInputs` to a loss per trained token.

The trainer sums the losses of all tokens and divides once by the policy's tokens in the whole batch, so no loss knows
of micro-batches. Ratios are exp(log-probability now - log-probability then), and gradients flow through `logprobs_N`
alone.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch

from rlora.errors import ConfigError
from rlora.registry import find_callable


@dataclass(frozen=True, slots=True, kw_only=True)
class LossConfig:
    """Which loss trains the policy."""

    name: str = "importance_weighted"
    """importance_weighted (default), ppo, cispo, truncated, gspo or reinforce (docs/losses.md), or your own
    my_module:my_loss.
    """
    clip_low: float = 0.2
    """ppo, cispo, gspo: ratios below 1 - clip_low are clipped."""
    clip_high: float = 0.2
    """ppo, cispo, gspo: ratios above 1 + clip_high are clipped."""
    max_ratio: float = 2.0
    """truncated: importance weights are cut at this value."""
    kl_coefficient: float = 0.0
    """Weight of the KL divergence to the base model (k3 estimator) in the loss; 0 computes none."""

    def check(self) -> None:
        """Raise ConfigError for a value that breaks a rule."""
        find_loss(self.name)
        if not 0 <= self.clip_low <= 1 or self.clip_high < 0:
            raise ConfigError(
                f"loss.clip_low is {self.clip_low} and loss.clip_high {self.clip_high}; clip_low must be in [0, 1], "
                "clip_high at least 0."
            )
        if self.max_ratio < 1:
            raise ConfigError(f"loss.max_ratio is {self.max_ratio}; it must be at least 1.")
        if self.kl_coefficient < 0:
            raise ConfigError(f"loss.kl_coefficient is {self.kl_coefficient}; it must be at least 0.")


@dataclass(frozen=True, slots=True, kw_only=True)
class LossInputs:
    """Everything a loss may look at, for N trained tokens.

    `logprobs_N` are the trainer's now, with gradient; `sampler_logprobs_N` those sampled from; `old_logprobs_N` those
    that a clip measures from (the sampler's for one update a batch, else the trainer's at the batch's version).
    `completion_N` says which completion a token belongs to, numbered from 0.
    """

    logprobs_N: torch.Tensor
    sampler_logprobs_N: torch.Tensor
    old_logprobs_N: torch.Tensor
    advantages_N: torch.Tensor
    completion_N: torch.Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class LossOutputs:
    """A loss per token, and what the loss wants logged of them: each mean over a step's tokens is `loss/NAME`.

    rlora's own log `clipped_share`, the tokens whose gradient was clipped or cut; two names are taken (`value`,
    `kl_to_base`).
    """

    loss_N: torch.Tensor
    logged: Mapping[str, torch.Tensor] = field(default_factory=dict)


def importance_weighted(inputs: LossInputs, _config: LossConfig) -> LossOutputs:
    """Return -(p_trainer / p_sampler) A, the objective of "LoRA Without Regret" (doi 10.64434/tml.20250929)."""
    ratio_N = (inputs.logprobs_N - inputs.sampler_logprobs_N).exp()
    return _outputs(-ratio_N * inputs.advantages_N, is_clipped_N=torch.zeros_like(ratio_N, dtype=torch.bool))


def ppo(inputs: LossInputs, config: LossConfig) -> LossOutputs:
    """Return -min(r A, clip(r) A) with r = p_trainer / p_old (Schulman et al. 2017, arXiv 1707.06347, equation 7)."""
    ratio_N = (inputs.logprobs_N - inputs.old_logprobs_N).exp()
    return _clipped_surrogate(ratio_N, inputs.advantages_N, config)


def cispo(inputs: LossInputs, config: LossConfig) -> LossOutputs:
    """Return -sg(clip(r)) A log p: a clipped token keeps its gradient (MiniMax-M1, arXiv 2506.13585, equation 4)."""
    ratio_N = (inputs.logprobs_N.detach() - inputs.old_logprobs_N).exp()
    clipped_N = ratio_N.clamp(1 - config.clip_low, 1 + config.clip_high)
    return _outputs(-clipped_N * inputs.advantages_N * inputs.logprobs_N, is_clipped_N=clipped_N != ratio_N)


def truncated(inputs: LossInputs, config: LossConfig) -> LossOutputs:
    """Return -sg(min(p_trainer / p_sampler, max_ratio)) A log p, truncated importance sampling (Ionides 2008)."""
    ratio_N = (inputs.logprobs_N.detach() - inputs.sampler_logprobs_N).exp()
    weight_N = ratio_N.clamp(max=config.max_ratio)
    return _outputs(-weight_N * inputs.advantages_N * inputs.logprobs_N, is_clipped_N=weight_N != ratio_N)


def gspo(inputs: LossInputs, config: LossConfig) -> LossOutputs:
    """Return the clipped surrogate with a completion's ratio, the geometric mean of its tokens' (arXiv 2507.18071)."""
    difference_N = inputs.logprobs_N - inputs.old_logprobs_N
    zeros_B = torch.zeros_like(difference_N)  # as many as there are tokens: how many are needed only a GPU knows
    sum_B = zeros_B.index_add(0, inputs.completion_N, difference_N)
    count_B = zeros_B.index_add(0, inputs.completion_N, torch.ones_like(difference_N)).clamp(min=1)
    ratio_N = (sum_B / count_B).exp()[inputs.completion_N]
    return _clipped_surrogate(ratio_N, inputs.advantages_N, config)


def reinforce(inputs: LossInputs, _config: LossConfig) -> LossOutputs:
    """Return -A log p without a ratio (Williams 1992, doi 10.1007/BF00992696)."""
    loss_N = -inputs.advantages_N * inputs.logprobs_N
    return _outputs(loss_N, is_clipped_N=torch.zeros_like(loss_N, dtype=torch.bool))


def _outputs(loss_N: torch.Tensor, *, is_clipped_N: torch.Tensor) -> LossOutputs:
    return LossOutputs(loss_N=loss_N, logged={"clipped_share": is_clipped_N})


def _clipped_surrogate(ratio_N: torch.Tensor, advantages_N: torch.Tensor, config: LossConfig) -> LossOutputs:
    clipped_N = ratio_N.clamp(1 - config.clip_low, 1 + config.clip_high)
    free_N, bound_N = ratio_N * advantages_N, clipped_N * advantages_N
    return _outputs(-torch.minimum(free_N, bound_N), is_clipped_N=bound_N < free_N)


def cross_entropy(logprobs_N: torch.Tensor) -> torch.Tensor:
    """Return -log p, nats: the loss of supervised training, which needs neither a sampler nor a reward."""
    return -logprobs_N


def k3(logprobs_N: torch.Tensor, reference_logprobs_N: torch.Tensor) -> torch.Tensor:
    """Return r - 1 - ln r with r = p_reference / p: an unbiased, non-negative estimate of KL(p || reference), nats a
    token.

    The tokens must be drawn from p. Source: J. Schulman, "Approximating KL divergence" (2020), estimator k3.
    """
    log_ratio_N = reference_logprobs_N - logprobs_N
    return torch.expm1(log_ratio_N) - log_ratio_N


LossFunction = Callable[[LossInputs, LossConfig], LossOutputs]
LOSSES: dict[str, LossFunction] = {
    "importance_weighted": importance_weighted,
    "ppo": ppo,
    "cispo": cispo,
    "truncated": truncated,
    "gspo": gspo,
    "reinforce": reinforce,
}


def find_loss(name: str) -> LossFunction:
    """Return the loss of this name: one of `LOSSES`, or a user's `module:name`.

    Raises:
        ConfigError: Nothing has this name, or what has it cannot be called.
    """
    called = "(LossInputs, LossConfig) -> LossOutputs"
    return find_callable(name, LOSSES, unknown=f"loss.name is {name!r}", called=called)
