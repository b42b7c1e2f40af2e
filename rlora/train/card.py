"""The memory of a GPU: of the one that is here, or of one by the size that is printed on its box."""

import gc
from dataclasses import dataclass

import torch

from rlora.errors import ConfigError

GIB = 2**30
CONTEXT = int(0.6 * GIB)  # CUDA's context, workspaces of its libraries
_CHECKED = 0.98  # of what is free: vLLM starts only if this much of the card is free at its start
_NAMED = {24: 23.5, 48: 44.4, 80: 79.2, 141: 139.8}  # GB on the box -> GiB as RTX 4090, L40S, H100, H200 have it


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """A GPU's memory in bytes: all of it, and what is free."""

    total: int
    free: int

    @classmethod
    def present(cls) -> "Card":
        """Return the memory of the GPU here, without what PyTorch holds unused; ConfigError where there is none."""
        if not torch.cuda.is_available():
            raise ConfigError(
                "sampler.kv_cache_gb is 0, so the GPU's memory sizes the cache, and there is no GPU; try 1."
            )
        gc.collect()
        torch.cuda.empty_cache()
        free, total = torch.cuda.mem_get_info()
        return cls(total=total, free=free)

    @classmethod
    def named(cls, gigabytes: float) -> "Card":
        """Return an empty card of the size that is printed on its box, as 24, 48, 80 or 141."""
        if not gigabytes > 0:
            raise ConfigError(f"--gpu is {gigabytes:g}; it must be a card's memory in GB, as 24 or 80.")
        total = int(_NAMED.get(int(gigabytes), 0.95 * gigabytes) * GIB)
        return cls(total=total, free=total - CONTEXT)

    @property
    def engine_share(self) -> float:
        """What vLLM is given as `gpu_memory_utilization`: it refuses to start where less of the card is free."""
        return max(0.01, _CHECKED * self.free / self.total)
