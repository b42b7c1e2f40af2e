"""Engines for tests, and samplers that lie."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from rlora.lora.adapter import Adapter
from rlora.lora.config import LoraConfig
from rlora.lora.peft.peft_format import served_modules
from rlora.model.sources import ModelConfig, end_token_ids, load_tokenizer
from rlora.sampler.base import EngineSpec, Sampler, SamplerConfig
from rlora.train.policy import Policy
from rlora.types import Completion, SampleRequest, SamplingParams


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


class IgnoresAdapter(Around):
    """Serves the base model whatever it is given."""

    def __init__(self, sampler: Sampler):
        self._sampler, self._version = sampler, -1

    def load(self, adapters: Sequence[Adapter]) -> None:
        self._sampler.load(adapters)
        self._version = adapters[0].version

    def sample(
        self, requests: Sequence[SampleRequest], sampling: SamplingParams, *, seed: int
    ) -> list[list[Completion]]:
        stripped = [replace(request, policy=None) for request in requests]
        completions = self._sampler.sample(stripped, sampling, seed=seed)
        return [[replace(one, version=self._version) for one in group] for group in completions]


class ServesPrevious(Around):
    """Loads each adapter one swap late, from the `after`-th on, and claims the new version."""

    def __init__(self, sampler: Sampler, *, after: int = 1):
        self._sampler, self._after = sampler, after
        self._held: list[Sequence[Adapter]] = []

    def load(self, adapters: Sequence[Adapter]) -> None:
        self._held.append(adapters)
        served = adapters if len(self._held) <= self._after else self._held[-2]
        self._sampler.load([replace(old, version=new.version) for old, new in zip(served, adapters, strict=True)])

    def sample(
        self, requests: Sequence[SampleRequest], sampling: SamplingParams, *, seed: int
    ) -> list[list[Completion]]:
        return self._sampler.sample(requests, sampling, seed=seed)


def random_b(policy: Policy, *, scale: float, seed: int = 0) -> None:
    """Give B random values in place of zeros."""
    random = torch.Generator().manual_seed(seed)
    for name, parameter in policy.flat.parameters.items():
        if name.endswith("lora_B"):
            parameter.data.copy_(torch.randn(parameter.shape, generator=random) * scale)


RANK_1 = LoraConfig()
