"""PiSSA: the start, the difference that is computed and served, its gradients, and what is refused."""

import pytest
import torch
from support.policies import TOY_MODEL
from torch import nn

from rlora.errors import ConfigError
from rlora.lora.config import LoraConfig
from rlora.lora.inject import num_parameters
from rlora.lora.linear import Factors, LoraLinear
from rlora.lora.variants.pissa import difference_factors, principal_factors
from rlora.model.sources import ModelConfig
from rlora.run_config import RunConfig
from rlora.sampler import base
from rlora.sampler.base import SamplerConfig
from rlora.train.policy import Policy

pytestmark = pytest.mark.unit


def test_the_start_is_the_best_approximation_of_its_rank_with_evenly_shared_values() -> None:
    torch.manual_seed(0)
    weight = torch.randn(12, 20)
    a, b = principal_factors(weight, 3, scale=4.0)
    values = torch.linalg.svdvals(weight)
    residual = weight - 4.0 * b @ a
    torch.testing.assert_close(torch.linalg.svdvals(residual)[:9], values[3:], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(a @ a.T, torch.diag(values[:3] / 4), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(b.T @ b, torch.diag(values[:3] / 4), rtol=1e-4, atol=1e-4)
    assert all(row[row.abs().argmax()] > 0 for row in a)


def test_the_difference_of_rank_2r_is_exact_and_zero_at_the_start() -> None:
    torch.manual_seed(0)
    a, b, start_a, start_b = torch.randn(2, 7), torch.randn(5, 2), torch.randn(2, 7), torch.randn(5, 2)
    left, right = difference_factors(a, b, start_a, start_b)
    assert (left.shape, right.shape) == ((4, 7), (5, 4))
    torch.testing.assert_close(right @ left, b @ a - start_b @ start_a, rtol=1e-5, atol=1e-5)
    left, right = difference_factors(start_a, start_b, start_a, start_b)
    assert float((right @ left).abs().max()) == 0


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-5), (torch.bfloat16, 3e-2)])
def test_values_and_gradients_are_those_of_training_on_the_residual_base(dtype, tolerance) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(24, 16, bias=False, dtype=dtype)
    start = principal_factors(linear.weight, 2, scale=0.5)
    leaves = [nn.Parameter(factor + 0.1 * torch.randn_like(factor)) for factor in start]
    layer = LoraLinear(linear)
    layer.factors = Factors(a=leaves[0], b=leaves[1], scale=0.5, start=start)
    x, upstream = torch.randn(6, 24).to(dtype).requires_grad_(), torch.randn(6, 16)
    out = layer(x)
    (out.float() * upstream).sum().backward()

    a, b, reference_x = (t.detach().clone().float().requires_grad_() for t in (*leaves, x))
    residual = linear.weight.detach().float() - 0.5 * start[1] @ start[0]
    expected = reference_x @ residual.T + 0.5 * (reference_x @ a.T) @ b.T
    (expected * upstream).sum().backward()

    def relative(actual: torch.Tensor, wanted: torch.Tensor) -> float:
        return float((actual.detach().float() - wanted.detach()).norm() / wanted.detach().norm())

    assert relative(out, expected) < tolerance
    assert relative(leaves[0].grad, a.grad) < tolerance
    assert relative(leaves[1].grad, b.grad) < tolerance
    assert relative(x.grad, reference_x.grad) < tolerance


def test_a_policy_starts_as_the_base_bit_for_bit_in_bf16(toy_dir) -> None:
    model = ModelConfig(name="toy", dtype="bfloat16")
    policy = Policy.load(toy_dir, model, LoraConfig(rank=4, variant="pissa"), seed=0)
    tokens = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        started = policy.next_token_logits(tokens)
        with policy.adapter_off():
            assert torch.equal(started, policy.next_token_logits(tokens))
        policy.flat.theta_D.mul_(1.01)
        assert not torch.equal(started, policy.next_token_logits(tokens))


def test_what_pissa_cannot_do_is_refused(monkeypatch, toy_dir) -> None:
    with pytest.raises(ConfigError, match=r"has only 32 singular vectors .* try --lora\.rank 32"):
        Policy.load(toy_dir, TOY_MODEL, LoraConfig(rank=33, variant="pissa"), seed=0)
    pissa = LoraConfig(rank=257, variant="pissa")
    with pytest.raises(ConfigError, match=r"starts from the model itself; leave --init-adapter out"):
        RunConfig(run_dir="x", lora=pissa, init_adapter="folder", sampler=SamplerConfig(kind="torch")).check()
    monkeypatch.setattr(base, "is_vllm_installed", lambda: True)
    with pytest.raises(ConfigError, match=r"served as rank 514, and vllm holds at most 512; try --lora.rank 256"):
        RunConfig(run_dir="x", lora=pissa, sampler=SamplerConfig(kind="vllm")).check()


@pytest.mark.parametrize("variant", ["pissa", "rslora"])
def test_experts_are_refused(variant) -> None:
    from transformers import OlmoeConfig, OlmoeForCausalLM

    shape = {"vocab_size": 60, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_experts": 4}
    with torch.device("meta"):
        model = OlmoeForCausalLM(OlmoeConfig(**shape, num_attention_heads=4, num_experts_per_tok=2))
    with pytest.raises(ConfigError, match=rf"lora\.variant is '{variant}', which is not made for experts"):
        num_parameters(model, LoraConfig(variant=variant))
    assert num_parameters(model, LoraConfig(variant=variant, layers="attention")) == 4 * 64
