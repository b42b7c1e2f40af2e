"""What an engine in this process holds in GPU memory: its weights for the trainer, its KV cache to be given away."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from rlora.errors import SamplerError

_METHOD = "_maybe_get_memory_pool_context"


def only_the_cache_sleeps(worker_class: Any) -> None:
    """Keep all but the KV cache out of the memory that vLLM gives away when it sleeps; call before the engine is built.

    vLLM (read in 0.26.0 and 0.32.0, `vllm/v1/worker/gpu_worker.py`) allocates in a pool of its own, by tags, what
    sleeping is to free: "weights", which are those of the base and the slots of adapters, "kv_cache", and in 0.32
    scratch space and the runner's state. Weights in there would be copied to the CPU and unmapped, from under the
    trainer. The pool cannot have expandable segments (PyTorch issue 147851), which vLLM switches off while it allocates
    there; memory outside, the trainer's and now the weights', may have them.
    """
    if getattr(worker_class, "rlora_installed", False):
        return
    original = getattr(worker_class, _METHOD, None)
    if original is None:
        raise SamplerError(
            f"this vLLM's worker has no {_METHOD}, so its cache cannot be freed alone; take --sampler.share-base off."
        )

    def memory_pool_context(self: Any, tag: str) -> AbstractContextManager[Any]:
        return original(self, tag) if tag == "kv_cache" else nullcontext()

    setattr(worker_class, _METHOD, memory_pool_context)
    worker_class.rlora_installed = True


def model_of(worker: Any) -> Any:
    """Return the model that a worker computes with."""
    return worker.model_runner.get_model()


@torch.inference_mode()
def zero_cache(worker: Any) -> None:
    """Fill the KV cache with zeros, as it was at the start: memory that was mapped anew may hold anything, NaN too."""
    caches = worker.model_runner.kv_caches
    for cache in caches:
        cache.zero_()
    if any(cache.is_cuda for cache in caches):
        torch.cuda.synchronize()  # the engine's next step need not be on this stream
