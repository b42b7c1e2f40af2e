"""Fixtures: the toy model in fp32, the shared data folder, one vLLM engine for all tests that need it."""

import os
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch

from rlora.kernels.native import native_library
from rlora.lora.config import LoraConfig
from rlora.model.sources import TOY, ModelConfig, cache_dir, load_tokenizer, model_dir
from rlora.tasks.source import VARIABLE
from rlora.train.policy import Policy

ROOT = Path(__file__).resolve().parent.parent
TOY_MODEL = ModelConfig(name=TOY, dtype="float32")

torch.set_num_threads(1)  # tiny products: a second thread only waits


@pytest.fixture(scope="session")
def toy_dir() -> Path:
    return model_dir(TOY_MODEL)


@pytest.fixture(scope="session")
def toy_tokenizer(toy_dir):
    return load_tokenizer(toy_dir, TOY_MODEL)


@pytest.fixture(scope="session")
def library() -> Any:
    """Return the compiled C++ sources."""
    found = native_library(cache_dir() / "compiled")
    if found is None:
        pytest.skip("this processor has no AVX-512 BF16")
    return found


@pytest.fixture
def toy_policy(toy_dir) -> Policy:
    return make_policy(toy_dir)


def make_policy(folder: Path, *, lora: LoraConfig | None = None, seed: int = 1, scale_b: float = 0.05) -> Policy:
    """Return a toy policy whose B is random instead of zero, so that every factor has a gradient."""
    policy = Policy.load(folder, TOY_MODEL, lora or LoraConfig(rank=2), seeds=[seed])
    random = torch.Generator().manual_seed(seed)
    for name, parameter in policy.flat.parameters.items():
        if name.endswith("lora_B"):
            parameter.data.copy_(torch.randn(parameter.shape, generator=random) * scale_b)
    return policy


@pytest.fixture(scope="session")
def data_dir() -> Path:
    for folder in (os.environ.get(VARIABLE), ROOT.parent / "shared" / "data"):
        if folder and Path(folder).is_dir():
            return Path(folder)
    pytest.skip(f"no shared data: set {VARIABLE} to the folder that holds gsm8k/, math/, aime/")
