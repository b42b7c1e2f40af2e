"""What must hold on one NVIDIA GPU. Nobody has run these yet: `pytest -m gpu` on a machine that has one."""

import dataclasses

import pytest
import torch
from engines import IgnoresAdapter, random_b
from test_vllm import BUNDLED, Bench

from rlora.errors import StaleAdapterError
from rlora.models import ModelConfig, make_toy
from rlora.sampler.proof import HotSwap

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.filterwarnings("ignore"),
]


@pytest.fixture(scope="module")
def bench():
    made = Bench(kv_cache_gb=2.0)
    yield made
    made.sampler.close()


def test_policy_lies_on_the_gpu_and_agrees_with_the_engine(bench) -> None:
    assert bench.policy.device.type == "cuda"
    bench.put(version=1)
    assert bench.difference(bench.draw(num_samples=8, max_tokens=24)) <= 0.04


def test_swaps_are_proven_and_lies_are_caught(bench) -> None:
    bench.policy.version = 0
    random_b(bench.policy, scale=0.0)
    swap = HotSwap(bench.policy, bench.sampler, bench.prompts, seed=1)
    swap.swap()
    random_b(bench.policy, scale=1e-2, seed=1)
    bench.policy.version = 1
    assert swap.swap()["proof/canary_is_decided_base"] == 1
    lying = HotSwap(bench.policy, IgnoresAdapter(bench.sampler), bench.prompts, seed=1)
    with pytest.raises(StaleAdapterError):
        lying.swap()


def test_adapters_of_experts_are_served_as_trained(tmp_path) -> None:
    from transformers import Qwen3MoeConfig

    sizes = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 64, "head_dim": 64}
    make_toy(tmp_path / "mixture", config_class=Qwen3MoeConfig, **sizes)
    made = Bench(ModelConfig(name=str(tmp_path / "mixture"), dtype="float32"), kv_cache_gb=1.0)
    try:
        made.put(version=1, scale=5e-2)
        completions = made.draw(num_samples=8, max_tokens=24)
        difference = made.difference(completions)
        assert difference <= 1e-3
        assert made.difference(completions, is_base=True) > 4 * difference
    finally:
        made.sampler.close()


def test_agreement_in_fp32() -> None:
    made = Bench(dataclasses.replace(BUNDLED, dtype="float32"), kv_cache_gb=1.0)
    try:
        made.put(version=1)
        assert made.difference(made.draw(num_samples=2, max_tokens=12)) <= 1e-3
    finally:
        made.sampler.close()
