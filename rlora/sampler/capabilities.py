"""What a sampler can serve on this machine; nothing else asks which sampler it is."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch

from rlora.errors import ConfigError
from rlora.lora.config import LoraConfig
from rlora.lora.peft.stored_ranks import is_of_expert
from rlora.model.sources import ModelConfig
from rlora.registry import load
from rlora.sampler.base import SAMPLERS, SamplerConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What a sampler serves. Each `no_...` is the reason why it does not, "" where it does.

    A sampler that is not named here may have an attribute `capabilities` that holds one; without it everything is
    tried, and the proof says what is served wrongly.
    """

    max_rank: int | None = None
    """The largest rank of an adapter as it is served."""
    no_float32: str = ""
    """Adapters of a model in fp32."""
    no_unembedding: str = ""
    """Adapters of the unembedding."""
    no_experts: str = ""
    """Adapters of experts."""
    no_shared_base: str = ""
    """A trainer that computes with the engine's weights."""
    is_planned: bool = False
    """Whether its cache takes a part of the GPU's memory, so that a plan divides it."""


def _vllm() -> Capabilities:
    if torch.cuda.is_available():
        return Capabilities(
            max_rank=512,
            no_float32="vLLM's adapter kernels for GPUs take 16-bit numbers only (its engine ends on an assertion)",
            is_planned=True,
        )
    return Capabilities(
        max_rank=512,
        no_unembedding="vLLM's CPU build serves adapters of the unembedding wrongly (in batches of several adapters "
        "its log-probabilities were off by 0.67 nats), so they cannot be proven",
        no_experts="vLLM's CPU build cannot serve adapters of experts",
        no_shared_base="there is no GPU: vLLM's CPU build packs its weights into a form of its own, which a trainer "
        "cannot read",
        is_planned=True,
    )


def _torch() -> Capabilities:
    return Capabilities(no_shared_base="the sampler is torch; only vLLM's weights are shared")


_KNOWN: Mapping[str, Callable[[], Capabilities]] = {"vllm": _vllm, "torch": _torch}


def capabilities_of(config: SamplerConfig) -> Capabilities:
    """Return what the sampler of a configuration serves on this machine."""
    kind = config.resolved_kind
    if kind in _KNOWN:
        return _KNOWN[kind]()
    not_shared = Capabilities(no_shared_base=f"the sampler is {kind}; only vLLM's weights are shared")
    return getattr(load(SAMPLERS.get(kind, kind)), "capabilities", not_shared)


def check_servable(lora: LoraConfig | None, config: SamplerConfig, model: ModelConfig) -> None:
    """Raise ConfigError for adapters that the engine would serve wrongly, or not at all."""
    if lora is None:
        return
    serves = capabilities_of(config)
    if model.dtype == "float32" and serves.no_float32:
        raise ConfigError(
            f"model.dtype is 'float32', and {serves.no_float32}. Take --model.dtype bfloat16, or --sampler.kind torch."
        )
    if serves.max_rank is not None and lora.served.rank > serves.max_rank:
        raise ConfigError(
            f"lora.rank is {lora.rank}, served as rank {lora.served.rank}, and {config.resolved_kind} holds at most "
            f"{serves.max_rank}; try --lora.rank {serves.max_rank * lora.rank // lora.served.rank}."
        )
    if lora.has_unembedding and serves.no_unembedding:
        raise ConfigError(
            f"lora.layers is {lora.layers!r}, and {serves.no_unembedding}. Take --lora.layers all, or --sampler.kind "
            "torch."
        )


def check_shareable(lora: LoraConfig | None, config: SamplerConfig) -> None:
    """Raise ConfigError where one copy of the base is asked for and cannot be had."""
    if not config.shares_base:
        return
    reason = capabilities_of(config).no_shared_base
    if lora is None:
        reason = "method is 'full', which changes the weights that it trains: the sampler needs a copy of its own"
    if reason:
        raise ConfigError(f"sampler.share_base is 'on', and {reason}. Take --sampler.share-base off, or leave it out.")


def check_gpu(config: SamplerConfig) -> None:
    """Raise ConfigError where the settings are those of a GPU and there is none; nothing was loaded or fetched yet."""
    if config.kv_cache_gb == 0 and config.kind in ("auto", *_KNOWN) and not torch.cuda.is_available():
        raise ConfigError(
            "there is no GPU here, and these settings are for one: add --preset cpu. (To try them all the same, add "
            "--sampler.kv-cache-gb 1.)"
        )


def check_experts(names: Iterable[str], config: SamplerConfig) -> None:
    """Raise ConfigError where adapters of experts, by their tensors' names, are more than the sampler serves."""
    reason = capabilities_of(config).no_experts
    if reason and any(is_of_expert(name.rpartition(".lora_")[0]) for name in names):
        raise ConfigError(
            f"the model has experts, and {reason}. Take --sampler.kind torch, or leave the experts out with "
            "--lora.layers attention."
        )
