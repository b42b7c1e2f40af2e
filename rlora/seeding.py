"""Integer seeds derived from a path: a run's randomness depends on a position, never on a generator's state."""

import hashlib
import json

import torch


def derive_seed(*path: str | int) -> int:
    """Return a seed in [0, 2**62) that depends on every element of `path` and on their order.

    The range leaves room for engines that add a sample's index to a signed 64-bit seed. Example: `derive_seed(0,
    "sample", 12, "gsm8k/train-17")`.
    """
    encoded = json.dumps(path, separators=(",", ":")).encode()
    return int.from_bytes(hashlib.sha256(encoded).digest()[:8], "big") >> 2


def generator(*path: str | int, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a fresh torch generator on `device`, seeded from `path`."""
    return torch.Generator(device=device).manual_seed(derive_seed(*path))
