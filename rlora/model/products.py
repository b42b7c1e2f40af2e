"""How the products of a base are computed: by PyTorch, or by products compiled for this processor where they fit.

This wing is the only door to `rlora.kernels`: attention (attention.py), logits (logprobs.py), what stands between the
products (base.py), and here frozen layers with their low-rank updates. Outside, nobody knows how a product is made.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from rlora.kernels import compiled
from rlora.kernels.kernels import Kernels
from rlora.kernels.low_rank import LowRank, Weight


@dataclass(frozen=True, slots=True, eq=False)
class Products:
    """What computes a base's products; without `kernels` PyTorch does."""

    kernels: Kernels | None = None

    @property
    def is_compiled(self) -> bool:
        """Whether some products are compiled."""
        return self.kernels is not None

    def layers(
        self,
        x_NI: torch.Tensor,
        layers: Sequence[Weight],
        all_a: Sequence[torch.Tensor],
        all_b: Sequence[torch.Tensor],
        scale: float,
    ) -> tuple[torch.Tensor, ...] | None:
        """Return the outputs (N, O) of layers with one input, W (O, I) and a bias each, with the updates scale x B A.

        They are differentiable in x and in the factors, A (R, I) and B (O, R). None where no compiled product fits.
        """
        low_rank = None if self.kernels is None else self.kernels.low_rank
        if low_rank is None or not low_rank.takes(x_NI, layers):
            return None
        return low_rank.outputs(x_NI, layers, all_a, all_b, scale)

    def rank_one_gradients(
        self,
        grads: Sequence[torch.Tensor],
        scaled: Sequence[torch.Tensor],
        h_NS: torch.Tensor,
        x_NI: torch.Tensor,
        scale: float,
    ) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]] | None:
        """Return the gradients of h (N, S), of all A (S, I) and of each B (O, 1) of updates of rank 1, from those of
        the outputs, `grads` (N, O), and `scaled`, scale x B; None where they are not compiled.
        """
        return None if self.kernels is None else self.kernels.rank_one_backward(grads, scaled, h_NS, x_NI, scale)

    def through(self, rows_NI: torch.Tensor, weight_OI: torch.Tensor) -> LowRank | None:
        """Return what multiplies the rows with a weight, or with its transpose, if it is compiled."""
        low_rank = None if self.kernels is None else self.kernels.low_rank
        is_taken = low_rank is not None and low_rank.has_bases and low_rank.takes(rows_NI, [(weight_OI, None)])
        return low_rank if is_taken else None


PLAIN = Products()


def are_compiled_in_use() -> bool:
    """Return whether this process has compiled products to compute with."""
    return compiled.is_in_use()
