"""Engines for tests, and samplers that lie."""

from collections.abc import Mapping
from pathlib import Path

import torch

from rlora.lora.config import LoraConfig
from rlora.lora.peft.peft_format import served_modules
from rlora.model.sources import ModelConfig, end_token_ids, load_tokenizer
from rlora.sampler.base import EngineSpec, Sampler, SamplerConfig
from rlora.train.policy import Policy


def spec(
    policy: Policy, folder: Path, model: ModelConfig, config: SamplerConfig, *, max_length: int = 160
) -> EngineSpec:
    return EngineSpec(
        folder=folder,
        model=model,
        lora=policy.config.served,
        config=config,
        end_token_ids=end_token_ids(folder, load_tokenizer(folder, model)),
        target_modules=tuple(served_modules(policy.snapshot())),
        max_length=max_length,
    )


class Around:
    """Passes on to another sampler what those below do not change."""

    _sampler: Sampler

    def base_weights(self) -> Mapping[str, torch.Tensor]:
        return self._sampler.base_weights()

    def free_cache(self) -> None:
        self._sampler.free_cache()

    def restore_cache(self) -> None:
        self._sampler.restore_cache()

    def close(self) -> None:
        self._sampler.close()


def random_b(policy: Policy, *, scale: float, seed: int = 0) -> None:
    """Give B random values in place of zeros."""
    random = torch.Generator().manual_seed(seed)
    for name, parameter in policy.flat.parameters.items():
        if name.endswith("lora_B"):
            parameter.data.copy_(torch.randn(parameter.shape, generator=random) * scale)


RANK_1 = LoraConfig()
