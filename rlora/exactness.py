"""What makes a GPU repeat its bits: the same samples beside any other requests, the same gradients in each pass.

On the CPU nothing is needed: the engine's default setting there is exact. On a GPU vLLM's adapter kernels add up parts
in the order in which they are done, and so does the backward pass of fused attention (docs/checkpoints.md).
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from rlora.errors import ConfigError

# vLLM sets the last two itself, for its own products; cuBLAS reads them when its first handle is made, which is the
# trainer's. Without room for parts of a sum it does not divide one among blocks.
VARIABLES = {"VLLM_BATCH_INVARIANT": "1", "CUBLAS_WORKSPACE_CONFIG": ":16:8", "CUBLASLT_WORKSPACE_SIZE": "1"}


def make_exact() -> None:
    """Set what the GPU's libraries and vLLM read when they start; ConfigError where they have started already."""
    if torch.cuda.is_initialized():
        raise ConfigError(
            "sampler.exact must be known before anything is computed on the GPU: give the run a process of its own."
        )
    os.environ.update(VARIABLES)


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
