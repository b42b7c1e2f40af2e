"""The sampler that a configuration names."""

from rlora.sampler.base import EngineSpec, Sampler, check_servable


def build_sampler(spec: EngineSpec) -> Sampler:
    """Build the engine that `spec.config` names; ConfigError for adapters that it cannot serve."""
    check_servable(spec.lora, spec.config, spec.model)
    if spec.config.resolved_kind == "vllm":
        from rlora.sampler.vllm.engine import VllmSampler  # starts no engine, but takes seconds to import

        return VllmSampler(spec)
    from rlora.sampler.torch_sampler import TorchSampler

    return TorchSampler(spec)
