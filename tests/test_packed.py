"""Packed weights: their products against fp64, their layer against nn.Linear, which layers of a model are packed."""

from dataclasses import replace
from types import SimpleNamespace

import psutil
import pytest
import torch
from conftest import TOY_MODEL
from test_policy import folder_of
from torch import nn

from rlora.fused.kernels import PLAIN
from rlora.fused.packed import PackedLinear, PackedWeight, can_be_packed
from rlora.logprobs import token_logprobs
from rlora.lora.config import LoraConfig
from rlora.lora.linear import LoraLinear
from rlora.policy import Policy

pytestmark = pytest.mark.unit
needs_onednn = pytest.mark.skipif(
    not can_be_packed(torch.zeros(2, 2, dtype=torch.bfloat16)), reason="PyTorch's bf16 products are not oneDNN's here"
)


def numbers(rows: int, inputs: int, outputs: int) -> tuple[torch.Tensor, ...]:
    """Return x, W, a bias and a gradient of the outputs."""
    random = torch.Generator().manual_seed(rows + inputs)
    shapes = ((rows, inputs), (outputs, inputs), (outputs,), (rows, outputs))
    return tuple(torch.randn(*shape, generator=random).bfloat16() for shape in shapes)


@torch.no_grad()
def error(found: torch.Tensor, exact: torch.Tensor) -> float:
    return float((found.double() - exact).norm() / exact.norm())


@needs_onednn
@pytest.mark.parametrize(("inputs", "outputs"), [(576, 192), (64, 96), (33, 7), (2, 1)])
@pytest.mark.parametrize("rows", [1, 5, 133, 728])
def test_products_are_rounded_once(rows, inputs, outputs) -> None:
    x, weight, bias, grad = numbers(rows, inputs, outputs)
    packed = PackedWeight(weight)
    once = 2.0**-8  # the largest relative error of a number that is rounded once to bf16; sums are fp32
    product = x.double() @ weight.double().T
    rounded = packed.times(x)
    assert error(rounded, product) <= once
    assert error(packed.times(x, bias), product + bias.double()) <= once
    assert error(rounded.double() + packed.times_less(x, rounded).double(), product) <= 2 * once**2
    through = grad.double() @ weight.double()
    assert error(packed.through(grad), through) <= once
    assert error(packed.through(grad, x), through + x.double()) <= once
    assert torch.equal(packed.dense(), weight)


@needs_onednn
def test_products_take_rows_with_gaps_and_no_rows() -> None:
    x, weight, _, grad = numbers(40, 64, 96)
    packed = PackedWeight(weight)
    gaps_x, gaps_grad = torch.cat([x, x], 1)[:, :64], torch.cat([grad, grad], 1)[:, :96]
    assert torch.equal(packed.times(gaps_x), packed.times(x))
    assert torch.equal(packed.through(gaps_grad, gaps_x), packed.through(grad, x))
    assert packed.times(x[:0]).shape == (0, 96)
    assert packed.through(grad[:0], x[:0]).shape == (0, 64)


@needs_onednn
@pytest.mark.parametrize("has_bias", [True, False])
def test_a_packed_layer_is_the_linear_one(has_bias) -> None:
    x, weight, bias, grad = numbers(24, 64, 96)
    linear = nn.Linear(64, 96, bias=has_bias, dtype=torch.bfloat16).requires_grad_(False)
    linear.weight.copy_(weight)
    if has_bias:
        linear.bias.copy_(bias)
    plain_x, packed_x = (x.view(2, 12, 64).clone().requires_grad_() for _ in range(2))
    plain, packed = linear(plain_x), PackedLinear(linear)(packed_x)
    assert packed.shape == plain.shape
    assert error(packed, plain.double()) <= 2.0**-8
    for outputs in (plain, packed):
        outputs.backward(grad.view(2, 12, 96))
    assert plain_x.grad is not None
    assert packed_x.grad is not None
    assert error(packed_x.grad, plain_x.grad.double()) <= 2.0**-8


@needs_onednn
@pytest.mark.parametrize(
    ("dtype", "compile_", "is_packed"),
    [("bfloat16", "auto", True), ("bfloat16", "off", False), ("float16", "on", False), ("float32", "on", False)],
)
def test_a_models_frozen_layers_are_packed_with_kernels_in_bf16(tmp_path, dtype, compile_, is_packed) -> None:
    config = replace(TOY_MODEL, dtype=dtype, compile=compile_)
    policy = Policy.load(folder_of("Qwen2", tmp_path), config, LoraConfig(layers="attention"), seeds=[0])
    head = policy.model.get_output_embeddings()
    frozen = [one for one in policy.model.modules() if isinstance(one, nn.Linear | PackedLinear) and one is not head]
    adapted = [one.base for one in policy.model.modules() if isinstance(one, LoraLinear)]
    assert len(frozen) > len(adapted) > 0
    assert all(isinstance(one, PackedLinear) is is_packed for one in frozen)
    assert isinstance(head, nn.Linear)
    assert (policy._packed_head is not None) is is_packed


@needs_onednn
@pytest.mark.parametrize("kernels", [PLAIN, None])
def test_log_probabilities_with_a_packed_head_are_those_without(kernels) -> None:
    hidden, head, _, _ = numbers(300, 64, 500)
    targets, found = torch.arange(300), []
    for packed in (PackedWeight(head), None):
        inputs = (hidden / 8).requires_grad_()
        values, _ = token_logprobs(inputs, head.float(), targets, gradient_head_VH=head, kernels=kernels, packed=packed)
        values.sum().backward()
        assert inputs.grad is not None
        found.append((values, inputs.grad))
    (values, grad), (plain, plain_grad) = found
    assert error(values, plain.double()) <= 1e-5
    assert error(grad, plain_grad.double()) <= 2.0**-8


@needs_onednn
def test_full_fine_tuning_packs_nothing(tmp_path) -> None:
    policy = Policy.load(folder_of("Qwen2", tmp_path), replace(TOY_MODEL, dtype="bfloat16"), None, seeds=[0])
    assert not any(isinstance(one, PackedLinear) for one in policy.model.modules())


@needs_onednn
def test_where_memory_is_short_nothing_is_packed_and_it_says_so(tmp_path, monkeypatch, capsys) -> None:
    folder, config = folder_of("Qwen2", tmp_path), replace(TOY_MODEL, dtype="bfloat16")
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=100_000))
    policy = Policy.load(folder, config, LoraConfig(), seeds=[0])
    assert not any(isinstance(one, PackedLinear) for one in policy.model.modules())
    assert "Weights are not packed" in capsys.readouterr().err
