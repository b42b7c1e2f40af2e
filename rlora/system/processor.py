"""Which processor this is, and whether its products of bfloat16 go by tiles."""

import os
import platform
from pathlib import Path

LIMIT = "ONEDNN_MAX_CPU_ISA"
"""The variable by which oneDNN, PyTorch's and vLLM's library of products, is kept from newer instructions."""
WITHOUT_TILES = "AVX512_CORE_BF16"


def description() -> str:
    """Return the processor's name and instruction sets; empty where the system is not Linux."""
    return "\n".join(sorted({line for line in _lines() if line.startswith(("flags", "model name"))}))


def name() -> str:
    """Return the processor's name, for people."""
    names = (line.partition(":")[2].strip() for line in _lines() if line.startswith("model name"))
    return next(names, platform.processor())


def has_amx() -> bool:
    """Return whether matrices of bfloat16 are multiplied by tiles here: several times faster than by AVX-512 alone, and
    with other bits for a few rows than for many.
    """
    return "amx_bf16" in description() and os.environ.get(LIMIT, "").upper() != WITHOUT_TILES


def _lines() -> list[str]:
    try:
        return Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return []
