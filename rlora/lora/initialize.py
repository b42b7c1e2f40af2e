"""Initial values of the factors, drawn from (seed, layer) alone: the same whatever else is loaded or drawn before."""

import torch

from rlora.seeding import generator


def initial_a(rank: int, num_inputs: int, *, seed: int, layer: str) -> torch.Tensor:
    """Return A (R, I), fp32, uniform in +-1/sqrt(I), as in "LoRA Without Regret" (doi 10.64434/tml.20250929).

    Row r is drawn by itself, so the first rows of a larger rank equal those of a smaller one.
    """
    rows = [torch.rand(num_inputs, generator=generator(seed, "lora", layer, row)) for row in range(rank)]
    return (2 * torch.stack(rows) - 1) / num_inputs**0.5


def initial_b(num_outputs: int, rank: int) -> torch.Tensor:
    """Return B (O, R), zero: the policy starts as the base model."""
    return torch.zeros(num_outputs, rank)
