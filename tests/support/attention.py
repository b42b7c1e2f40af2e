"""Rows of segments, heads and numbers for attention."""

import torch

from rlora.kernels.attention import Attention
from rlora.model.attention import visible_ranges

LAYOUTS = {
    "one position": [[1]],
    "short rows": [[35, 8, 8, 8, 8, 8, 8, 8], [20, 1, 1, 60], [30]],
    "one long row": [[130, 141, 99, 7, 141]],
    "ends at panels and blocks": [[64, 56, 8], [60, 60], [120, 8]],
    "beyond them by one": [[65, 56, 8], [61, 60], [121, 1]],
    "a long prompt": [[300, 5, 5, 5]],
}


HEADS = {"of 64, three of them share": (9, 3, 64), "of 128": (2, 2, 128), "of 96": (4, 1, 96), "of 10": (2, 1, 10)}


def segments(layout: list[list[int]]) -> torch.Tensor:
    rows = [[number for number, length in enumerate(row) for _ in range(length)] for row in layout]
    length = max(map(len, rows))
    return torch.tensor([row + [-1] * (length - len(row)) for row in rows])


def numbers(segments_BT: torch.Tensor, heads: tuple[int, int, int]) -> list[torch.Tensor]:
    """Return query, key, value and the output's gradient; heads of a position lie together in all but the query."""
    num_heads, key_heads, size = heads
    random = torch.Generator().manual_seed(segments_BT.numel() + size)
    wide = [torch.randn(*segments_BT.shape, n, size, generator=random) for n in (num_heads, key_heads, key_heads)]
    query, key, value = (one.bfloat16().transpose(1, 2) for one in wide)
    grad = torch.randn(*segments_BT.shape, num_heads, size, generator=random).bfloat16()
    return [(query * 3).contiguous(), key, value, grad]


def results(attention: Attention, segments_BT: torch.Tensor, given: list[torch.Tensor]) -> list[torch.Tensor]:
    """Return the output and the gradients of query, key and value."""
    inputs = [one.detach().requires_grad_() for one in given[:3]]
    out = attention.outputs(*inputs, visible_ranges(segments_BT).squeeze(1), 0.17)
    return [out.detach(), *torch.autograd.grad(out, inputs, given[3])]
