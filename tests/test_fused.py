"""Kernels: each against the plain formula and autograd, compiled against plain, and whole models with and without."""

import dataclasses
import subprocess
import sys

import pytest
import torch
import transformers
from support.engines import random_b
from support.full import KINDS, reference_gradient
from support.kernels import OFF, ON, gradient_of
from support.mixtures import CLASSES, make_mixture
from support.models import folder_of
from support.policies import ROOT, TOY_MODEL
from support.runs import assert_same_run
from support.training import ADVANTAGES, SGD_LIKE, groups
from torch import nn
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from rlora.kernels.compiled import compiled_kernels
from rlora.kernels.install import install
from rlora.kernels.kernels import PLAIN, Kernels
from rlora.lora.config import LoraConfig
from rlora.model import attention
from rlora.model.attention import as_bias, attend, visibility_mask
from rlora.model.logprobs import token_logprobs
from rlora.model.products import Products
from rlora.model.sources import cache_dir
from rlora.system.memory import recompute_layers
from rlora.train.batching import BatchConfig, build_batch
from rlora.train.losses import LossConfig
from rlora.train.policy import Policy
from rlora.train.trainer import Trainer
from rlora.train.warm_up import warm_up

pytestmark = pytest.mark.unit


@pytest.fixture(scope="module", params=["plain", "compiled"])
def kernels(request) -> Kernels:
    return PLAIN if request.param == "plain" else compiled_kernels(cache_dir() / "compiled", torch.device("cpu"))


def leaves(*shapes, seed: int = 0) -> list[torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=random).requires_grad_() for shape in shapes]


def gradients(out: torch.Tensor, upstream: torch.Tensor, inputs: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    return torch.autograd.grad(out, inputs, upstream)


@pytest.mark.parametrize("rows", [1, 2, 37])
def test_norm_equals_autograds(kernels, rows) -> None:
    x, weight, grad = leaves((rows, 40), (40,), (rows, 40))
    expected = weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5)
    grad_x, grad_weight = gradients(expected, grad, [x, weight])
    with torch.no_grad():
        out, inverse = kernels.norm(x, weight, 1e-5)
        torch.testing.assert_close(out, expected)
        torch.testing.assert_close(kernels.norm_backward(grad, x, weight, inverse), grad_x)
        torch.testing.assert_close(kernels.norm_weight_backward(grad, x, inverse), grad_weight)


@pytest.mark.parametrize("rows", [1, 37])
def test_gate_equals_autograds(kernels, rows) -> None:
    gate, up, grad = leaves((rows, 48), (rows, 48), (rows, 48))
    expected = nn.functional.silu(gate) * up
    with torch.no_grad():
        torch.testing.assert_close(kernels.gate(gate, up), expected)
        found = kernels.gate_backward(grad, gate, up)
    torch.testing.assert_close(found, gradients(expected, grad, [gate, up]))


@pytest.mark.parametrize(("rows", "length"), [(1, 1), (1, 5), (3, 7)])
def test_rotation_equals_transformers(kernels, rows, length) -> None:
    query, key = leaves((rows, length, 4, 16), (rows, length, 2, 16))
    cos, sin, *upstream = leaves((rows, length, 16), (rows, length, 16), (rows, 4, length, 16), (rows, 2, length, 16))
    cos, sin = cos.detach(), sin.detach()
    expected = apply_rotary_pos_emb(query.transpose(1, 2), key.transpose(1, 2), cos, sin)
    grads = torch.autograd.grad(expected, [query, key], upstream)
    with torch.no_grad():
        found = kernels.rotate(query.transpose(1, 2), key.transpose(1, 2), cos, sin)
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(kernels.rotate_backward(*upstream, cos, sin), grads)
    assert all(one.is_contiguous() for one in found)


@pytest.mark.pairwise
@pytest.mark.parametrize("key_heads", [1, 2, 6])
@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("block", [2, 192])
def test_attention_equals_pytorchs(kernels, key_heads, rows, block, monkeypatch) -> None:
    monkeypatch.setattr(attention, "BLOCK", block)
    ours = leaves((rows, 6, 5, 4), (rows, key_heads, 5, 4), (rows, key_heads, 5, 4), seed=1)
    theirs = [tensor.detach().clone().requires_grad_() for tensor in ours]
    mask = visibility_mask(torch.tensor([[0, 0, 1, 2, 2], [0, 1, 1, -1, -1]][:rows]))
    module = nn.Identity()
    module.kernels = kernels
    out, _ = attend(module, *ours, as_bias(mask), 0.5)
    from_booleans, _ = attend(module, *ours, mask, 0.5)
    expected = nn.functional.scaled_dot_product_attention(*theirs, attn_mask=mask, scale=0.5, enable_gqa=True)
    torch.testing.assert_close(out, expected.transpose(1, 2))
    assert torch.equal(out, from_booleans)
    (upstream,) = leaves(out.shape, seed=2)
    out.backward(upstream.detach())
    expected.transpose(1, 2).backward(upstream.detach())
    for tensor, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(tensor.grad, other.grad)


@pytest.mark.parametrize(("block", "past"), [(192, 3), (2, 3), (2, 0)])
def test_attention_with_a_past_equals_pytorchs(kernels, block, past, monkeypatch) -> None:
    monkeypatch.setattr(attention, "BLOCK", block)
    query, key, value = (one.detach() for one in leaves((2, 6, 5, 4), (2, 2, 5 + past, 4), (2, 2, 5 + past, 4)))
    is_seen = torch.ones(5, 5 + past, dtype=torch.bool).tril(past).expand(2, 1, -1, -1)
    module = nn.Identity()
    module.kernels = kernels
    out, _ = attend(module, query, key, value, is_seen, 0.5)
    expected = nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=is_seen, scale=0.5, enable_gqa=True
    )
    torch.testing.assert_close(out, expected.transpose(1, 2))


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("rows", [1, 9])
def test_token_statistics_equal_log_softmaxs(kernels, temperature, rows) -> None:
    logits, rest = (tensor.detach() for tensor in leaves((rows, 50), (rows, 50)))
    targets = torch.arange(rows) * 5
    log_p = ((8 * logits + rest) / temperature).log_softmax(-1)
    with torch.no_grad():
        logprobs, entropy, normalizer, p = kernels.token_statistics(
            8 * logits, rest, targets, temperature, logits.dtype
        )
    torch.testing.assert_close(logprobs, log_p[torch.arange(rows), targets])
    torch.testing.assert_close(entropy, -(log_p.exp() * log_p).sum(-1), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(normalizer, ((8 * logits + rest) / temperature).logsumexp(-1))
    torch.testing.assert_close(p, log_p.exp())


@pytest.mark.parametrize("layers", [1, 3])
def test_rank_one_gradients_equal_autograds(kernels, layers) -> None:
    x, a = leaves((13, 24), (layers, 24))
    factors_b = leaves(*[(10 + 6 * i, 1) for i in range(layers)], seed=1)
    upstream = [tensor.detach() for tensor in leaves(*[(13, 10 + 6 * i) for i in range(layers)], seed=2)]
    h = (x @ a.T).detach().requires_grad_()
    outputs = [h[:, i : i + 1] @ (4.0 * b).T for i, b in enumerate(factors_b)]
    grad_h, *grad_b = torch.autograd.grad(outputs, [h, *factors_b], upstream)
    with torch.no_grad():
        found = kernels.rank_one_backward(upstream, [4.0 * b for b in factors_b], h.detach(), x, 4.0)
    torch.testing.assert_close(found[0], grad_h)
    torch.testing.assert_close(found[1], grad_h.T @ x)
    torch.testing.assert_close(found[2], grad_b)


def test_compiled_kernels_round_to_bf16_once() -> None:
    compiled = compiled_kernels(cache_dir() / "compiled", torch.device("cpu"))
    gate, up = (tensor.detach().bfloat16() for tensor in leaves((64, 256), (64, 256)))
    exact = nn.functional.silu(gate.double()) * up.double()
    with torch.no_grad():
        found = compiled.gate(gate, up)
    assert found.dtype == torch.bfloat16
    assert ((found.double() - exact).abs() <= 2**-8 * exact.abs() + 1e-30).all()  # half a unit in the last place
    twice = nn.functional.silu(gate) * up
    assert not ((twice.double() - exact).abs() <= 2**-8 * exact.abs() + 1e-30).all()


@pytest.mark.parametrize("kernels_", [None, PLAIN])
def test_the_gradient_of_a_certain_token_is_not_rounded_away(kernels_) -> None:
    head = torch.zeros(4, 8, dtype=torch.bfloat16)
    head[0, 0], head[1, 1] = 1.0, 1.0
    hidden = torch.zeros(1, 8, dtype=torch.bfloat16)
    hidden[0, 0] = 8.0  # p of token 0 is 0.99899, which is 1 in bf16
    hidden.requires_grad_()
    values, _ = token_logprobs(hidden, head, torch.tensor([0]), dtype=torch.float32, products=Products(kernels_))
    values.backward(torch.ones(1))
    p = float(values.detach().exp())
    assert 0.9985 < p < 0.9995
    assert float(hidden.grad[0, 0]) == pytest.approx(1 - p, rel=0.01)


@pytest.mark.pairwise
@pytest.mark.parametrize("temperature", [1.0, 0.8])
@pytest.mark.parametrize(
    "batch",
    [
        BatchConfig(),
        BatchConfig(tokens_per_micro_batch=1, tokens_per_row=0),
        BatchConfig(tokens_per_micro_batch=40, tokens_per_row=20),
    ],
)
@pytest.mark.parametrize(("kind", "options"), [*KINDS, ("Olmo2", {}), ("Mistral", {"sliding_window": None})])
@pytest.mark.parametrize("rank", [1, 3])
def test_a_models_gradient_is_the_plain_ones(kind, options, batch, temperature, rank, tmp_path) -> None:
    folder = folder_of(kind, tmp_path, **options)
    found, plain = (gradient_of(folder, config, rank, batch, temperature) for config in (ON, OFF))
    assert float(plain.norm()) > 1e-3
    assert float((found - plain).norm()) < 1e-5 * float(plain.norm())


def test_layers_that_are_computed_again_give_the_same_bits(toy_dir) -> None:
    found = []
    for recompute in (False, True):
        policy = Policy.load(toy_dir, dataclasses.replace(TOY_MODEL, compile="on"), LoraConfig(), seed=0)
        random_b(policy, scale=0.01)
        if recompute:
            recompute_layers(policy.model)
        Trainer(policy, SGD_LIKE, LossConfig()).apply(build_batch(groups(), ADVANTAGES, BatchConfig(), version=0))
        found.append(policy.flat.grad_D)
    assert torch.equal(*found)


@pytest.mark.parametrize("lora", [LoraConfig(), None])
def test_warming_up_leaves_the_policy_as_it_was(toy_dir, lora) -> None:
    policy = Policy.load(toy_dir, dataclasses.replace(TOY_MODEL, compile="on"), lora, seed=0)
    before = policy.flat.theta_D.clone()
    warm_up(policy)
    assert torch.equal(policy.flat.theta_D, before)
    assert policy.version == 0
    assert not policy.flat.grad_D.any()


@pytest.mark.parametrize("kind", CLASSES)
def test_a_mixtures_gradient_is_the_plain_ones(kind, tmp_path) -> None:
    folder = make_mixture(tmp_path, kind)
    found, plain = (gradient_of(folder, config, 4, BatchConfig(), 1.0) for config in (ON, OFF))
    assert float((found - plain).norm()) < 1e-5 * float(plain.norm())


@pytest.mark.parametrize(("kind", "options"), KINDS)
def test_the_gradient_of_every_weight_is_plain_autograds(kind, options, tmp_path) -> None:
    folder = folder_of(kind, tmp_path, **options)
    expected = reference_gradient(folder, temperature=0.7)
    policy = Policy.load(folder, ON, None, seed=0)
    trainer = Trainer(policy, SGD_LIKE, LossConfig(), temperature=0.7)
    trainer.apply(build_batch(groups(), ADVANTAGES, BatchConfig(), version=0))
    for slot in policy.flat.slots:
        actual = policy.flat.view(policy.flat.grad_D, slot)
        torch.testing.assert_close(actual, expected[slot.name], rtol=1e-4, atol=1e-6, msg=slot.name)


def taken(model: nn.Module) -> dict[str, int]:
    return install(model, PLAIN)


def test_what_is_taken_over(tmp_path) -> None:
    load = transformers.AutoModelForCausalLM.from_pretrained
    two_layers = {"LlamaRMSNorm": 5, "LlamaAttention": 2, "LlamaMLP": 2}
    assert taken(load(folder_of("Llama", tmp_path / "llama"), dtype=torch.bfloat16)) == two_layers
    assert taken(load(folder_of("Qwen3", tmp_path / "qwen3", head_dim=16))) == {
        "Qwen3RMSNorm": 9,  # those of queries and keys too
        "Qwen3Attention": 2,
        "Qwen3MLP": 2,
    }
    mixture = taken(load(make_mixture(tmp_path / "mixture", "qwen3_moe")))
    assert mixture == {"Qwen3MoeRMSNorm": 9, "Qwen3MoeAttention": 2}  # experts have their own loop
    gelu = load(folder_of("Llama", tmp_path / "gelu", hidden_act="gelu"))
    assert "LlamaMLP" not in taken(gelu)


@pytest.mark.parametrize(("options", "left"), [({}, None), ({"hidden_act": "gelu"}, "LlamaMLP")])
def test_what_no_kernel_fits_is_said(tmp_path, capsys, options, left) -> None:
    config = dataclasses.replace(TOY_MODEL, dtype="bfloat16", compile="on")
    Policy.load(folder_of("Llama", tmp_path, **options), config, LoraConfig(), seed=0)
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("No compiled kernel fits")]
    assert said == ([] if left is None else [f"No compiled kernel fits {left}: computed plainly (docs/speed.md)."])


def test_a_norm_that_computes_something_else_is_left_alone() -> None:
    class ShiftedRMSNorm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.eps = nn.Parameter(torch.zeros(16)), 1e-6

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (1 + self.weight) * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps)

    assert taken(ShiftedRMSNorm()) == {}


def test_left_to_itself_fp32_is_not_compiled_and_bf16_is(toy_dir) -> None:
    def forward_of(dtype, choice):
        config = dataclasses.replace(TOY_MODEL, dtype=dtype, compile=choice)
        policy = Policy.load(toy_dir, config, LoraConfig(), seed=0)
        return "forward" in vars(policy.model.base_model.layers[0].mlp)

    assert not forward_of("float32", "auto")
    assert forward_of("float32", "on")
    assert forward_of("bfloat16", "auto")
    assert not forward_of("bfloat16", "off")


SCRIPT = """
import sys, torch
from rlora.errors import ConfigError
from rlora.model.loading import products_for
from rlora.model.sources import ModelConfig
try:
    print(products_for(ModelConfig(compile=sys.argv[1]), torch.device("cpu")).is_compiled)
except ConfigError as error:
    print("ConfigError:", error)
"""


NO_HEADERS = """#!/bin/sh
case "$*" in
*--version*) echo "g++ (GCC) 12.0" ;;
*) echo "main.cpp:1:10: fatal error: Python.h: No such file or directory" >&2; exit 1 ;;
esac
"""


@pytest.mark.parametrize("choice", ["auto", "on"])
@pytest.mark.parametrize("lacks", ["the compiler", "Python's headers"])
def test_without_a_compiler_it_says_so_or_refuses(tmp_path, choice, lacks, monkeypatch) -> None:
    compiler = tmp_path / "g++"
    if lacks != "the compiler":
        compiler.write_text(NO_HEADERS)
        compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    done = subprocess.run([sys.executable, "-c", SCRIPT, choice], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert ("cannot run the compiler" in done.stdout + done.stderr) == (lacks == "the compiler")
    assert ("Python.h: No such file" in done.stdout + done.stderr) == (lacks != "the compiler")
    if choice == "on":
        assert done.stdout.startswith("ConfigError: model.compile is on, but kernels cannot be compiled: ")
        assert "or take --model.compile off" in done.stdout
    else:
        assert done.stdout == "False\n"
        assert "Kernels cannot be compiled, so training is slower: " in done.stderr
        assert "--model.compile off hides this message" in done.stderr


@pytest.mark.parametrize("ends", [[1, 4], pytest.param([1, 3, 4], marks=pytest.mark.long)], ids=["once", "twice"])
def test_a_compiled_run_that_was_stopped_is_the_straight_one(tmp_path, ends) -> None:
    for folder, all_steps in (("straight", [4]), ("resumed", ends)):
        for steps in all_steps:  # each a process of its own, in which kernels meet other shapes first
            command = ["recipes/arithmetic.py", "--preset", "toy", "--model.compile", "on", "--num-steps", str(steps)]
            done = subprocess.run(
                [sys.executable, *command, "--run-dir", str(tmp_path / folder)],
                cwd=ROOT,
                capture_output=True,
                text=True,
                timeout=300,
            )
            assert done.returncode == 0, done.stderr
    assert_same_run(tmp_path / "resumed", tmp_path / "straight")
