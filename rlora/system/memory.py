"""Memory of training: give freed pages back to the system, and keep only the inputs of layers where asked to."""

import ctypes
import os
import platform
from typing import Any

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # mallopt's names for them in malloc.h


def keep_freed_memory() -> None:
    """Let the C library keep what is freed until `give_back_freed_memory`, but for tensors of a MiB and more, for the
    rest of the process.

    Those kept as well left holes between what a pass saves, which were not always filled again: a fifth more memory at
    the peak, and three times as much where layers are computed again, for no time (docs/log.md). Does nothing where the
    C library is not glibc.
    """
    _set_malloc(_TRIM_THRESHOLD, 2**30)
    _set_malloc(_MMAP_THRESHOLD, 2**20)


def _set_malloc(what: int, num_bytes: int) -> None:
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL("libc.so.6").mallopt(what, num_bytes)


def let_blocks_grow() -> None:
    """Let PyTorch's allocator for CUDA grow its blocks (`expandable_segments`), so that little lies between them.

    To be called before the first tensor lies on the GPU; what the environment says already stands. Not for an engine
    whose cache sleeps: vLLM's allocator for that refuses such blocks.
    """
    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")


def give_back_freed_memory() -> None:
    """Return the C library's free pages (about 20 ms), which it keeps and ever new shapes would pile up.

    Does nothing where the C library is not glibc.
    """
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def recompute_layers(model: Any, *, is_on: bool = True) -> None:
    """Let every decoder layer keep only its input and be computed again in the backward pass (activation
    checkpointing), or no longer; for passes that begin from now on.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if is_on and not all(layer.gradient_checkpointing for layer in layers):
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    for layer in layers:
        layer.training = is_on  # of this module alone, which is what the library looks at: nothing drops out
