import pytest
import torch
from support.policies import make_policy
from torch import nn

from rlora.errors import ConfigError
from rlora.lora import linear
from rlora.lora.config import LoraConfig
from rlora.lora.flat import FlatVector, lay_out
from rlora.lora.initialize import initial_a
from rlora.lora.inject import adapted_layers, num_parameters
from rlora.lora.linear import Factors, LoraLinear, SharedInput, is_padding_worth_it

pytestmark = pytest.mark.unit


def adapted(base: nn.Linear, rank: int, scale: float, size: float = 0.2) -> LoraLinear:
    """Return a layer with a random update."""
    layer = LoraLinear(base)
    layer.factors = Factors(
        a=nn.Parameter(torch.randn(rank, base.in_features) * size),
        b=nn.Parameter(torch.randn(base.out_features, rank) * size),
        scale=scale,
    )
    return layer


def layer(rank: int, dtype: torch.dtype, *, bias: bool = False) -> LoraLinear:
    torch.manual_seed(0)
    return adapted(nn.Linear(24, 16, bias=bias, dtype=dtype), rank, 4.0 / rank)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 5e-6), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("rank", [1, 3, 8])
@pytest.mark.parametrize("bias", [False, True])
def test_values_and_gradients_equal_the_formula_by_autograd(dtype, tolerance, rank, bias) -> None:
    module = layer(rank, dtype, bias=bias)
    x = torch.randn(5, 7, 24).to(dtype).requires_grad_()
    upstream = torch.randn(5, 7, 16)
    out = module(x)
    (out.float() * upstream).sum().backward()

    a, b, reference_x = (t.detach().clone().float().requires_grad_() for t in (module.factors.a, module.factors.b, x))
    expected = reference_x @ module.base.weight.float().T + module.factors.scale * (reference_x @ a.T) @ b.T
    if bias:
        expected = expected + module.base.bias.float()
    (expected * upstream).sum().backward()

    def relative(actual: torch.Tensor, wanted: torch.Tensor) -> float:
        return float((actual.detach().float() - wanted.detach()).norm() / wanted.detach().norm())

    assert relative(out, expected) < tolerance
    assert relative(module.factors.a.grad, a.grad) < tolerance
    assert relative(module.factors.b.grad, b.grad) < tolerance
    assert relative(x.grad, reference_x.grad) < tolerance
    assert module.base.weight.grad is None
    assert module.factors.a.grad.dtype == torch.float32


def test_factors_are_rounded_to_the_dtype_of_the_base() -> None:
    module = layer(1, torch.bfloat16)
    x = torch.randn(3, 24).bfloat16()
    before = module(x)
    module.factors.a.data = module.factors.a.data.bfloat16().float()
    module.factors.b.data = module.factors.b.data.bfloat16().float()
    assert torch.equal(before, module(x))


def test_zero_b_and_switched_off_give_the_base_output_bit_for_bit() -> None:
    module = layer(2, torch.float32)
    x = torch.randn(3, 24)
    factors, module.factors = module.factors, None
    assert torch.equal(module(x), module.base(x))
    module.factors = factors
    assert not torch.equal(module(x), module.base(x))
    module.factors.b.data.zero_()
    assert torch.equal(module(x), module.base(x))


def siblings(dtype: torch.dtype) -> list[LoraLinear]:
    """Three layers of one input and one rank, of unequal width, one of them with a bias."""
    torch.manual_seed(1)
    return [
        adapted(nn.Linear(24, width, bias=bias, dtype=dtype), 3, 2.0)
        for width, bias in [(16, False), (8, True), (12, False)]
    ]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 5e-6), (torch.bfloat16, 2e-2)])
def test_layers_with_a_shared_input_equal_layers_alone(dtype, tolerance) -> None:
    alone, together = siblings(dtype), siblings(dtype)
    SharedInput(together)
    random = torch.Generator().manual_seed(2)
    x = torch.randn(5, 7, 24, generator=random).to(dtype).requires_grad_()
    same_x = x.detach().clone().requires_grad_()
    for one, other in zip(alone, together, strict=True):
        out, joined = one(x), other(same_x)
        torch.testing.assert_close(joined, out, rtol=tolerance, atol=tolerance)
        upstream = torch.randn(out.shape, generator=random)
        (out.float() * upstream).sum().backward()
        (joined.float() * upstream).sum().backward(retain_graph=True)  # the three are one node of the graph
    torch.testing.assert_close(same_x.grad, x.grad, rtol=tolerance, atol=tolerance)
    for one, other in zip(alone, together, strict=True):
        torch.testing.assert_close(other.factors.a.grad, one.factors.a.grad, rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(other.factors.b.grad, one.factors.b.grad, rtol=tolerance, atol=tolerance)


@torch.no_grad()
def test_a_shared_input_is_seen_not_assumed() -> None:
    alone, together = siblings(torch.float32), siblings(torch.float32)
    SharedInput(together)
    x, other = torch.randn(4, 24), torch.randn(4, 24)
    torch.testing.assert_close(together[0](x), alone[0](x))
    torch.testing.assert_close(together[1](other), alone[1](other))  # another tensor
    torch.testing.assert_close(together[1](x), alone[1](x))  # out of order
    torch.testing.assert_close(together[1](x), alone[1](x))  # asked twice
    before = alone[2](x)
    together[0](x)
    x += 1  # the tensor itself, changed
    torch.testing.assert_close(together[2](x), alone[2](x))
    assert not torch.allclose(alone[2](x), before)
    fresh = torch.randn(4, 24)
    for one in together:  # all asked: nothing is held any more
        one(fresh)
    assert together[0].shared is not None
    assert together[0].shared._input is None


def test_projections_of_a_block_are_joined(toy_policy) -> None:
    block = toy_policy.model.model.layers[0]
    attention, mlp = block.self_attn, block.mlp
    assert attention.q_proj.shared is attention.k_proj.shared is attention.v_proj.shared is not None
    assert mlp.gate_proj.shared is mlp.up_proj.shared is not None
    assert attention.o_proj.shared is mlp.down_proj.shared is None


def test_flat_vector_leaves_and_gradients_are_views() -> None:
    flat = FlatVector(lay_out({"a": (2, 3), "b": (4,)}))
    assert flat.theta_D.shape == (10,)
    assert flat.parameters["a"].shape == (2, 3)
    flat.parameters["b"].data += torch.arange(4.0)
    assert flat.theta_D.tolist() == [0] * 6 + [0, 1, 2, 3]
    (flat.parameters["a"] * 2).sum().backward()
    (flat.parameters["a"] * 3).sum().backward()
    assert flat.grad_D.tolist() == [5.0] * 6 + [0.0] * 4
    flat.zero_grad()
    assert flat.parameters["a"].grad is not None
    assert flat.parameters["a"].grad.abs().sum() == 0


def test_a_is_uniform_in_the_blogs_range_nested_in_the_rank_and_free_of_global_state() -> None:
    torch.manual_seed(7)
    a = initial_a(4, 4096, seed=3, layer="x")
    torch.manual_seed(8)
    assert torch.equal(initial_a(2, 4096, seed=3, layer="x"), a[:2])
    assert not torch.equal(initial_a(4, 4096, seed=4, layer="x"), a)
    assert not torch.equal(initial_a(4, 4096, seed=3, layer="y"), a)
    bound = 4096**-0.5
    assert float(a.abs().max()) <= bound
    assert float(a.std()) == pytest.approx(bound / 3**0.5, rel=0.02)


@pytest.mark.parametrize(
    ("layers", "names"),
    [
        ("all", {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}),
        ("attention", {"q_proj", "k_proj", "v_proj", "o_proj"}),
        ("mlp", {"gate_proj", "up_proj", "down_proj"}),
        ("mlp+attention", {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}),
    ],
)
def test_layers_are_chosen_by_kind_and_the_unembedding_is_left_out(toy_policy, layers, names) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=2, num_attention_heads=2)
    model = LlamaForCausalLM(config)
    found = adapted_layers(model, layers)
    assert {name.rsplit(".", 1)[-1] for name in found} == names
    assert len(found) == 2 * len(names)


@pytest.mark.parametrize(
    ("rank", "layers", "count"),
    [
        (1, "all", 2_621_440),
        (1, "all+unembedding", 2_753_792),
        (256, "mlp+unembedding", 486_866_944),  # the blog's 0.49B
        (256, "attention+unembedding", 251_985_920),  # 0.25B
        (256, "all+unembedding", 704_970_752),  # 0.70B: its table adds up only with the unembedding
        (128, "mlp+unembedding", 243_433_472),  # 0.24B
        (256, "mlp", 452_984_832),
    ],
)
def test_parameter_counts_of_llama_8b_are_the_blogs(rank, layers, count) -> None:
    """Llama-3.1-8B from its configuration alone, on the meta device."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=128256,
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=128,
        tie_word_embeddings=False,
    )
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    assert num_parameters(model, LoraConfig(rank=rank, layers=layers)) == count


def test_a_layers_first_values_do_not_depend_on_the_other_layers(toy_dir) -> None:
    drawn = {
        layers: make_policy(toy_dir, lora=LoraConfig(rank=4, layers=layers), scale_b=0.0).flat.tensors()
        for layers in ("attention", "mlp", "all", "all+unembedding")
    }
    every = drawn["all+unembedding"]
    assert every.keys() > drawn["all"].keys() == drawn["attention"].keys() | drawn["mlp"].keys()
    for tensors in drawn.values():
        assert all(torch.equal(tensor, every[name]) for name, tensor in tensors.items())
    assert len({tuple(tensor[0, :3].tolist()) for name, tensor in every.items() if name.endswith("lora_A")}) == 15


def test_model_without_such_layers_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"no linear layers for lora.layers='mlp'"):
        adapted_layers(nn.Sequential(nn.Linear(2, 2)), "mlp")


@pytest.mark.parametrize("is_enabled", [False, True])
def test_a_layer_takes_an_input_without_rows(is_enabled) -> None:
    base = nn.Linear(8, 6)
    layer = adapted(base, 2, 1.0) if is_enabled else LoraLinear(base)
    assert layer(torch.randn(0, 3, 8)).shape == (0, 3, 6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rank", [1, 3, 8])
@pytest.mark.parametrize("num_layers", [1, 3])
def test_padded_columns_change_no_number(monkeypatch, num_layers, rank, dtype) -> None:
    """Products of a GPU, with zeros up to a multiple of 8 columns, on the CPU: the same bits in bfloat16, which is what
    they are for; in fp32 the CPU's library adds three columns and eight in another order.
    """
    results = []
    for is_padded in (False, True):
        torch.manual_seed(0)
        monkeypatch.setattr(linear, "is_padding_worth_it", lambda *_, is_padded=is_padded: is_padded)
        layers = [
            adapted(nn.Linear(24, 16 + 4 * index, bias=index == 1).to(dtype), rank, 2.0, size=1.0)
            for index in range(num_layers)
        ]
        if num_layers > 1:
            SharedInput(layers)
        x = torch.randn(2, 5, 24, dtype=dtype, requires_grad=True)
        outputs = [layer(x) for layer in layers]
        sum(((out * torch.randn_like(out)).sum() for out in outputs), torch.zeros(())).backward()
        factors = [factor.grad for layer in layers for factor in (layer.factors.a, layer.factors.b)]
        results.append([*outputs, x.grad, *factors])
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 0}[dtype]
    for plain, padded in zip(*results, strict=True):
        torch.testing.assert_close(padded, plain, rtol=tolerance, atol=tolerance)


def test_columns_are_padded_on_a_gpu_where_they_are_no_multiple_of_8() -> None:
    gpu = torch.device("cuda")
    assert [is_padding_worth_it(ranks, gpu) for ranks in ([1, 1, 1], [4, 4], [8], [16, 8])] == [
        True,
        True,
        False,
        False,
    ]
    assert not is_padding_worth_it([1], torch.device("cpu"))
