"""What makes a machine repeat its bits: the same samples beside any other requests, the same gradients in each pass.

On a GPU vLLM's adapter kernels add up parts in the order in which they are done, and so does the backward pass of fused
attention. On a CPU with AMX a product of a few rows has other bits than the same rows among many, so that a prompt that
is cached is continued otherwise than a new one. Other CPUs are exact as they are (docs/checkpoints.md).
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from rlora.errors import ConfigError
from rlora.system import processor

# vLLM sets the last two itself, for its own products; cuBLAS reads them when its first handle is made, which is the
# trainer's. Without room for parts of a sum it does not divide one among blocks.
VARIABLES = {"VLLM_BATCH_INVARIANT": "1", "CUBLAS_WORKSPACE_CONFIG": ":16:8", "CUBLASLT_WORKSPACE_SIZE": "1"}


def make_exact() -> None:
    """Set what the libraries of products and vLLM read when they start; ConfigError where they have started already."""
    if torch.cuda.is_initialized():
        raise ConfigError(
            "sampler.exact must be known before anything is computed on the GPU: give the run a process of its own."
        )
    if torch.cuda.is_available():
        os.environ.update(VARIABLES)
    elif processor.has_amx():  # vLLM's CPU build fails with the variables of GPUs
        os.environ[processor.LIMIT] = processor.WITHOUT_TILES
        if not are_rows_alike():
            raise ConfigError(
                "sampler.exact must be known before anything is computed: give the run a process of its own, or set "
                f"{processor.LIMIT}={processor.WITHOUT_TILES} for this one."
            )


def are_rows_alike() -> bool:
    """Return whether rows' products in bfloat16 have the same bits in a few and in many, tried on up to 512 rows."""
    random = torch.Generator().manual_seed(0)
    x_TI, w_OI = (torch.randn(size, 576, generator=random).bfloat16() for size in (512, 960))
    whole_TO = torch.nn.functional.linear(x_TI, w_OI)
    few = (1, 5, 33, 48, 64, 100, 256)
    return all(torch.equal(torch.nn.functional.linear(x_TI[:rows], w_OI), whole_TO[:rows]) for rows in few)


@contextmanager
def deterministic(*, is_on: bool) -> Iterator[None]:
    """Compute with PyTorch's deterministic kernels within the block, and warn where there is none, if `is_on`."""
    before = torch.are_deterministic_algorithms_enabled()
    is_warning = torch.is_deterministic_algorithms_warn_only_enabled()
    if is_on:
        torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=is_warning)
