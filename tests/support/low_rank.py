"""Numbers for low-rank products."""

import torch


def numbers(rows: int, rank: int, inputs: int, outputs: tuple[int, ...], pitch: int = 0):
    """Return x, the layers' weights (every second with a bias), all A, all B, and gradients of the outputs."""
    random = torch.Generator().manual_seed(rows + rank)

    def wide(columns: int) -> torch.Tensor:
        return torch.randn(rows, columns + pitch, generator=random).bfloat16()[:, :columns]

    layers = [(torch.randn(size, inputs, generator=random).bfloat16() / inputs**0.5, None) for size in outputs]
    layers[::2] = [(w, torch.randn(len(w), generator=random).bfloat16()) for w, _ in layers[::2]]
    all_a = [torch.randn(rank, inputs, generator=random) / inputs**0.5 for _ in outputs if rank]
    all_b = [torch.randn(size, rank, generator=random) / 10 for size in outputs if rank]
    return wide(inputs), layers, all_a, all_b, [wide(size) for size in outputs]
