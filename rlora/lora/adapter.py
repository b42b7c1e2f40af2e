"""A low-rank policy as a record: what is handed to the sampler, saved and shipped."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from rlora.lora.config import LoraConfig
from rlora.lora.variants.pissa import difference_factors


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Adapter:
    """One version of one policy: what is handed to the sampler, saved and shipped.

    `version` is the step of the policy; `tensors` maps `PATH.lora_A` (R, I) and `PATH.lora_B` (O, R) to fp32 on the
    CPU; `start` holds those that PiSSA started from. `served` is what samplers and files hold.
    """

    policy: int
    version: int
    config: LoraConfig
    base_model: str
    tensors: Mapping[str, torch.Tensor]
    start: Mapping[str, torch.Tensor] | None = None

    def __post_init__(self) -> None:
        """Hold that PiSSA's start is there when it is needed."""
        assert (self.config.variant == "pissa") == (self.start is not None)

    def served(self) -> "Adapter":
        """Return the same function as a plain adapter: itself, or PiSSA's difference from its start, at rank 2 r."""
        if self.start is None:
            return self
        tensors: dict[str, torch.Tensor] = {}
        for name in self.tensors:
            path, _, factor = name.rpartition(".")
            if factor == "lora_A":
                names = (name, f"{path}.lora_B")
                factors = difference_factors(*(self.tensors[one] for one in names), *(self.start[one] for one in names))
                tensors |= dict(zip(names, factors, strict=True))
        return replace(self, config=self.config.served, tensors=tensors, start=None)

    @property
    def num_bytes(self) -> int:
        """Size in bytes of what is served."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.served().tensors.values())
