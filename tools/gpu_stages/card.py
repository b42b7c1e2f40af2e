"""A smaller card than there is: a ballast takes what it would not have, and its total is what anyone is told."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

from gpu_stages.stage import GIB


def ballast_bytes(total: int, card_gib: float) -> int:
    """Return the bytes to hold of a card of `total` so that `card_gib` are left; 0 where it has no more."""
    return max(0, total - int(card_gib * GIB))


def of_card(info: Callable[..., tuple[int, int]], card_gib: float) -> Callable[..., tuple[int, int]]:
    """Return a function that tells free and total bytes as `info` does, but no more than the card's as the total."""

    def told(*args: Any, **kwargs: Any) -> tuple[int, int]:
        free, total = info(*args, **kwargs)
        return free, min(total, int(card_gib * GIB))

    return told


@contextmanager
def smaller_card(card_gib: float | None) -> Iterator[int]:
    """Leave `card_gib` of the GPU for the block and yield the bytes held; None, or no GPU, leaves all and yields 0.

    rlora and vLLM ask PyTorch, by either of two functions, what is free and what there is: shares of the whole (vLLM's
    utilisation, rlora's reserve) have to be of the smaller card. What is free is true: the ballast is really held.
    """
    import torch

    if card_gib is None or not torch.cuda.is_available():
        yield 0
        return
    ballast = torch.empty(ballast_bytes(torch.cuda.mem_get_info()[1], card_gib), dtype=torch.uint8, device="cuda")
    with ExitStack() as patches:
        for module, name in ((torch.cuda, "mem_get_info"), (torch.accelerator, "get_memory_info")):
            if hasattr(module, name):  # the second is of newer versions
                patches.enter_context(mock.patch.object(module, name, of_card(getattr(module, name), card_gib)))
        yield ballast.numel()
