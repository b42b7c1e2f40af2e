"""Adapters of experts: the product against the formula, the layout, PEFT, the merge."""

import pytest
import torch
from support.mixtures import CLASSES, NUM_ACTIVE, NUM_EXPERTS, fused, make_mixture, plain_experts
from support.policies import make_policy
from torch import nn

from rlora.errors import ConfigError
from rlora.lora.config import LoraConfig
from rlora.lora.flat import FlatVector, lay_out
from rlora.lora.initialize import initial_a
from rlora.lora.inject import adapted_layers, adapter_shapes, num_parameters
from rlora.lora.linear import Factors
from rlora.lora.peft.peft_format import served_modules, target_modules
from rlora.lora.variants.experts import PROJECTIONS, LoraExperts, expert_rank, fused_experts, projection_shapes
from rlora.model.sources import ModelConfig
from rlora.train.policy import Policy

pytestmark = [pytest.mark.unit, pytest.mark.filterwarnings("ignore::DeprecationWarning:peft")]


@pytest.fixture(scope="module", params=CLASSES)
def mixture(request, tmp_path_factory):
    return make_mixture(tmp_path_factory.mktemp("mixture") / request.param, request.param)


def layer(rank: int, dtype: torch.dtype) -> LoraExperts:
    base = fused(dtype=dtype)
    torch.manual_seed(1)
    module = LoraExperts(base)
    module.factors = {
        name: Factors(
            a=nn.Parameter(torch.randn(base.num_experts, rank, num_inputs) * 0.2),
            b=nn.Parameter(torch.randn(base.num_experts, num_outputs, rank) * 0.2),
            scale=4.0 / rank,
        )
        for name, (num_outputs, num_inputs) in projection_shapes(base).items()
    }
    return module


def leaves(module: LoraExperts) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    assert module.factors is not None
    return {name: (factors.a, factors.b) for name, factors in module.factors.items()}


def routed(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return hidden states of 7 tokens and their two experts and weights; expert 3 gets no token."""
    torch.manual_seed(2)
    index = torch.tensor([[0, 1], [1, 0], [4, 1], [2, 4], [1, 2], [0, 4], [4, 0]])
    return torch.randn(7, 24).to(dtype), index, torch.rand(7, 2).to(dtype)


def relative(actual: torch.Tensor | None, wanted: torch.Tensor | None) -> float:
    assert actual is not None
    assert wanted is not None
    return float((actual.detach().float() - wanted.detach()).norm() / wanted.detach().norm())


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 5e-6), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("rank", [1, 3])
def test_values_and_gradients_equal_the_formula_by_autograd(dtype, tolerance, rank) -> None:
    module = layer(rank, dtype)
    x, index, weight = routed(dtype)
    upstream = torch.randn(7, 24)
    x.requires_grad_()
    weight.requires_grad_()
    out = module(x, index, weight)
    (out.float() * upstream).sum().backward()

    plain = {name: tuple(t.detach().clone().requires_grad_() for t in pair) for name, pair in leaves(module).items()}
    plain_x, plain_weight = (t.detach().clone().float().requires_grad_() for t in (x, weight))
    expected = plain_experts(module.base, plain, module.factors["down_proj"].scale, plain_x, index, plain_weight)
    (expected * upstream).sum().backward()

    assert relative(out, expected) < tolerance
    assert relative(x.grad, plain_x.grad) < tolerance
    assert relative(weight.grad, plain_weight.grad) < tolerance
    for name, pair in leaves(module).items():
        for actual, wanted in zip(pair, plain[name], strict=True):
            assert relative(actual.grad, wanted.grad) < tolerance, name
            assert actual.grad is not None
            assert actual.grad.dtype == torch.float32
            assert not actual.grad[3].any()  # the expert without tokens
            assert actual.grad[0].any()
    assert all(parameter.grad is None for parameter in module.base.parameters())


def test_frozen_inputs_give_the_factors_the_same_gradients() -> None:
    gradients = []
    for is_frozen in (False, True):
        module = layer(2, torch.float32)
        x, index, weight = routed(torch.float32)
        module(x.requires_grad_(not is_frozen), index, weight).square().sum().backward()
        gradients.append([leaf.grad for pair in leaves(module).values() for leaf in pair])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_factors_are_rounded_to_the_dtype_of_the_base() -> None:
    module = layer(1, torch.bfloat16)
    before = module(*routed(torch.bfloat16))
    for pair in leaves(module).values():
        for leaf in pair:
            leaf.data = leaf.data.bfloat16().float()
    assert torch.equal(before, module(*routed(torch.bfloat16)))


def test_zero_b_and_switched_off_give_the_base_bit_for_bit_which_is_that_of_transformers() -> None:
    module, inputs = layer(2, torch.float32), routed(torch.float32)
    adapted = module(*inputs)
    factors, module.factors = module.factors, None
    base = module(*inputs)
    assert not torch.equal(adapted, base)
    assert relative(base, module.base(*inputs)) < 1e-6
    module.factors = factors
    for _, b_EOR in leaves(module).values():
        b_EOR.data.zero_()
    assert torch.equal(module(*inputs), base)


@pytest.mark.parametrize(("total", "active", "rank"), [(1, 8, 1), (3, 8, 1), (8, 8, 1), (16, 8, 2), (512, 8, 64)])
def test_the_rank_is_shared_by_the_active_experts(total, active, rank) -> None:
    assert expert_rank(total, active) == rank


def test_a_rank_that_the_active_experts_cannot_share_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"rank is 12, .* meets 8 experts: each would get 1.5. Try --lora.rank 8 or 16"
    ):
        expert_rank(12, 8)


def test_a_stack_is_one_leaf_over_neighbouring_slots() -> None:
    slots = lay_out({"x": (2,), "e.0": (3,), "e.1": (3,), "y": (1,)})
    flat = FlatVector(slots, stacks={"e": ("e.0", "e.1")})
    assert {name: tuple(leaf.shape) for name, leaf in flat.parameters.items()} == {"x": (2,), "e": (2, 3), "y": (1,)}
    flat.assign({"x": torch.zeros(2), "e.0": torch.zeros(3), "e.1": torch.arange(3.0), "y": torch.ones(1)})
    assert flat.parameters["e"].tolist() == [[0, 0, 0], [0, 1, 2]]
    assert flat.tensors()["e.1"].tolist() == [0, 1, 2]
    (flat.parameters["e"][1] * 2).sum().backward()
    assert flat.grad_D.tolist() == [0] * 5 + [2] * 3 + [0]
    with pytest.raises(AssertionError):
        FlatVector(slots, stacks={"e": ("e.1", "e.0")})


def test_each_expert_has_factors_of_its_own_drawn_from_the_seed_and_its_path(mixture) -> None:
    policy = Policy.load(mixture, ModelConfig(name="m", dtype="float32"), LoraConfig(rank=4), seed=5)
    tensors = policy.snapshot().tensors
    rank = 4 // NUM_ACTIVE
    for expert in range(NUM_EXPERTS):
        for projection in PROJECTIONS:
            path = f"model.layers.1.mlp.experts.{expert}.{projection}"
            a, b = tensors[f"{path}.lora_A"], tensors[f"{path}.lora_B"]
            assert torch.equal(a, initial_a(rank, a.shape[1], seed=5, layer=path))
            assert b.shape[1] == rank
            assert not b.any()
    leaf = policy.flat.parameters["model.layers.1.mlp.experts.down_proj.lora_A"]
    assert torch.equal(leaf[3], tensors["model.layers.1.mlp.experts.3.down_proj.lora_A"])
    assert not any("mlp.gate." in name for name in tensors)
    assert target_modules(policy.snapshot()) == sorted([*PROJECTIONS, "q_proj", "k_proj", "v_proj", "o_proj"])
    assert served_modules(policy.snapshot()) == ["experts", "k_proj", "o_proj", "q_proj", "v_proj"]


@pytest.mark.parametrize(("layers", "kinds"), [("all", "ae"), ("attention", "a"), ("mlp", "e"), ("experts", "e")])
def test_layers_name_attention_and_experts(mixture, layers, kinds) -> None:
    policy = make_policy(mixture, lora=LoraConfig(rank=2, layers=layers))
    found = {"e" if ".experts." in slot.name else "a" for slot in policy.flat.slots}
    assert found == set(kinds)
    assert sum(slot.size for slot in policy.flat.slots) == policy.flat.theta_D.numel()


def meta(config):
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def test_shared_experts_are_ordinary_layers_and_routers_carry_nothing() -> None:
    from transformers import Qwen2MoeConfig

    model = meta(
        Qwen2MoeConfig(num_hidden_layers=1, hidden_size=32, num_experts=4, num_experts_per_tok=2, vocab_size=9)
    )
    mlp = LoraConfig(rank=4, layers="mlp")
    names = {name.rpartition(".lora_")[0].removeprefix("model.layers.0.mlp.") for name in adapter_shapes(model, mlp)}
    experts = {f"experts.{expert}.{projection}" for expert in range(4) for projection in PROJECTIONS}
    assert names == experts | {f"shared_expert.{projection}" for projection in PROJECTIONS}
    assert [len(adapted_layers(model, layers)) for layers in ("mlp", "experts", "attention")] == [4, 1, 4]
    shapes = adapter_shapes(model, mlp)
    assert shapes["model.layers.0.mlp.shared_expert.up_proj.lora_A"] == (4, 32)
    assert shapes["model.layers.0.mlp.experts.2.up_proj.lora_A"] == (2, 32)


def test_other_layouts_of_experts_are_refused_unless_left_out() -> None:
    from transformers import GptOssConfig

    model = meta(GptOssConfig(num_hidden_layers=1, hidden_size=32, num_local_experts=4, vocab_size=9))
    with pytest.raises(ConfigError, match=r"the experts of GptOssExperts .* are not laid out as those of Qwen3-MoE"):
        adapter_shapes(model, LoraConfig())
    assert adapter_shapes(model, LoraConfig(layers="attention"))
    assert fused_experts(nn.Sequential(nn.Linear(2, 2)).named_modules()) == {}
    with pytest.raises(ConfigError, match=r"no linear layers for lora.layers='experts'"):
        adapted_layers(nn.Sequential(nn.Linear(2, 2)), "experts")


def test_parameter_counts_of_real_mixtures_from_their_shapes_alone() -> None:
    """Qwen3-30B-A3B at rank 1: 48 layers of 17,408 (attention) and 128 x 3 x (2048 + 768). OLMoE-1B-7B: 16 layers."""
    from transformers import OlmoeConfig, Qwen3MoeConfig

    qwen = Qwen3MoeConfig(
        hidden_size=2048,
        num_hidden_layers=48,
        num_attention_heads=32,
        num_key_value_heads=4,
        head_dim=128,
        num_experts=128,
        num_experts_per_tok=8,
        moe_intermediate_size=768,
    )
    for config, count in (
        (qwen, 48 * (17_408 + 128 * 3 * (2048 + 768))),
        (OlmoeConfig(intermediate_size=1024), 16 * (4 * 4096 + 64 * 3 * 3072)),
    ):
        assert num_parameters(meta(config), LoraConfig()) == count
