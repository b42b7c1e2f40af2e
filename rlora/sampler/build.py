"""The sampler that a configuration names."""

from rlora.registry import find_callable
from rlora.sampler.base import SAMPLERS, EngineSpec, Sampler
from rlora.sampler.capabilities import check_servable


def build_sampler(spec: EngineSpec) -> Sampler:
    """Build the engine that `spec.config` names: one of `SAMPLERS`, or a user's `module:name`.

    Raises:
        ConfigError: Nothing has this name, it cannot be called, or it cannot serve the adapters.
    """
    check_servable(spec.lora, spec.config, spec.model)
    kind = spec.config.resolved_kind
    return find_callable(kind, SAMPLERS, unknown=f"sampler.kind is {kind!r}", called="EngineSpec -> Sampler")(spec)
