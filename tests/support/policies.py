"""Toy policies whose factors are random, and where the project lies."""

from pathlib import Path

import torch

from rlora.lora.config import LoraConfig
from rlora.model.sources import TOY, ModelConfig
from rlora.train.policy import Policy

ROOT = Path(__file__).resolve().parent.parent.parent


TOY_MODEL = ModelConfig(name=TOY, dtype="float32")


def make_policy(folder: Path, *, lora: LoraConfig | None = None, seed: int = 1, scale_b: float = 0.05) -> Policy:
    """Return a toy policy whose B is random instead of zero, so that every factor has a gradient."""
    policy = Policy.load(folder, TOY_MODEL, lora or LoraConfig(rank=2), seed=seed)
    random = torch.Generator().manual_seed(seed)
    for name, parameter in policy.flat.parameters.items():
        if name.endswith("lora_B"):
            parameter.data.copy_(torch.randn(parameter.shape, generator=random) * scale_b)
    return policy
