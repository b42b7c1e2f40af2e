"""The compiled products of low-rank updates: against fp64, against the plain path, in whole models, where they end."""

import itertools

import pytest
import torch
from conftest import TOY_MODEL
from engines import random_b
from test_policy import folder_of
from test_trainer import ADVANTAGES, SGD_LIKE, groups
from torch import nn

from rlora.batching import BatchConfig, build_batch
from rlora.errors import CompilerError
from rlora.fused import low_rank as module
from rlora.fused.compiled import compiled_kernels
from rlora.fused.low_rank import LowRank, low_rank
from rlora.lora.config import LoraConfig
from rlora.lora.linear import LoraLinear
from rlora.losses import LossConfig
from rlora.memory import recompute_layers
from rlora.models import ModelConfig, cache_dir
from rlora.policy import Policy
from rlora.trainer import Trainer

pytestmark = pytest.mark.unit
FOLDER = cache_dir() / "compiled"
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def products() -> LowRank:
    found = low_rank(FOLDER)
    if found is None:
        pytest.skip("this processor has no AVX-512 BF16")
    return found


def numbers(rows: int, rank: int, inputs: int, outputs: tuple[int, ...], pitch: int = 0):
    """Return x, all A, all B, and what stands in the outputs or comes back as their gradients."""
    random = torch.Generator().manual_seed(rows + rank)

    def wide(columns: int) -> torch.Tensor:
        return torch.randn(rows, columns + pitch, generator=random).bfloat16()[:, :columns]

    all_a = [torch.randn(rank, inputs, generator=random) / inputs**0.5 for _ in outputs]
    all_b = [torch.randn(size, rank, generator=random) / 10 for size in outputs]
    return wide(inputs), all_a, all_b, [wide(size) for size in outputs]


def near(found: torch.Tensor, exact: torch.Tensor, tolerance: float) -> bool:
    return float((found.double() - exact).norm()) <= tolerance * float(exact.norm())


@pytest.mark.parametrize(
    ("inputs", "outputs", "pitch"), [(64, (96,), 0), (50, (34, 70, 2), 0), (576, (192, 64), 6), (2, (2,), 0)]
)
@pytest.mark.parametrize("rank", [1, 2, 3, 4, 5, 8, 17, 32, 48, 64])
@pytest.mark.parametrize("rows", [1, 2, 9, 133])
def test_products_equal_those_in_fp64(products, rows, rank, inputs, outputs, pitch) -> None:
    scale = 32 / rank
    x, all_a, all_b, y = numbers(rows, rank, inputs, outputs, pitch)
    served_a = [a.bfloat16().double() for a in all_a]
    served_b = [(b.bfloat16() * scale).double() for b in all_b]  # in bf16, as a server folds the scale in
    found = [one.clone(memory_format=torch.preserve_format) for one in y]
    h = products.add_updates(x, all_a, all_b, scale, found)
    assert near(h, x.double() @ torch.cat(served_a).T, 4e-3)
    parts = h.double().split(rank, 1)
    for out, before, part, b in zip(found, y, parts, served_b, strict=True):
        assert near(out, before.double() + part @ b.T, 4e-3)
    grad_a, grad_b = [torch.ones_like(a) for a in all_a], [torch.ones_like(b) for b in all_b]
    grad_h = products.gradients(x, h, all_a, all_b, scale, y, grad_a, grad_b)
    assert near(grad_h, torch.cat([one.double() @ b for one, b in zip(y, served_b, strict=True)], 1), 4e-3)
    of_h = grad_h.double().split(rank, 1)
    for index, (one, part) in enumerate(zip(y, parts, strict=True)):
        assert near(grad_a[index] - 1.0, of_h[index].T @ x.double(), 1e-5)  # added, and never rounded to 16 bits
        assert near(grad_b[index] - 1.0, scale * one.double().T @ part, 1e-5)
    grad_x = x.clone()
    products.add_to_input(grad_x, grad_h, all_a)
    assert near(grad_x, x.double() + grad_h.double() @ torch.cat(served_a), 4e-3)


def test_the_number_of_threads_changes_no_bit(products) -> None:
    x, all_a, all_b, y = numbers(301, 5, 96, (64, 130))
    results, threads = [], torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            out, sums = [one.clone() for one in y], [torch.zeros_like(one) for one in (*all_a, *all_b)]
            h = products.add_updates(x, all_a, all_b, 4.0, out)
            grad_h = products.gradients(x, h, all_a, all_b, 4.0, y, sums[:2], sums[2:])
            results.append([h, *out, grad_h, *sums])
    finally:
        torch.set_num_threads(threads)
    for one, other in itertools.pairwise(results):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("rank", [1, 3, 16])
def test_what_is_not_finite_stays_in_its_row(products, rank) -> None:
    x, all_a, all_b, y = numbers(20, rank, 64, (96,))
    x = x.clone()
    x[7, 3] = float("nan")
    h = products.add_updates(x, all_a, all_b, 1.0, y)
    is_finite = h.isfinite().all(1) & y[0].isfinite().all(1)
    assert is_finite.tolist() == [row != 7 for row in range(20)]


def test_other_numbers_and_odd_sizes_are_left_to_the_plain_path(products) -> None:
    x = torch.zeros(4, 6, dtype=torch.bfloat16)
    assert products.takes(x, [8, 2])
    assert not products.takes(x, [8, 3])
    assert not products.takes(x[:, :5], [8])
    assert not products.takes(x.half(), [8])
    assert not products.takes(x.float(), [8])
    assert not products.takes(x[:0], [8])
    assert not products.takes(x.T, [8])
    assert not products.takes(x.to("meta"), [8])


@pytest.mark.parametrize("has_places", [True, False])
def test_gradients_go_to_the_leaves_or_through_autograd(products, has_places) -> None:
    torch.manual_seed(0)
    base, x = nn.Linear(12, 6).bfloat16(), torch.randn(5, 12).bfloat16().requires_grad_()
    a, b = (nn.Parameter(torch.linspace(-1, 1, n * m).view(1, n, m)) for n, m in ((2, 12), (6, 2)))
    if has_places:
        a.grad, b.grad = torch.ones_like(a), torch.ones_like(b)
    places = [a.grad, b.grad]
    layer = LoraLinear(base, a, b, 0.5)
    layer.kernels = compiled_kernels(FOLDER, CPU)
    for _ in range(2):
        layer(x).sum().backward()
    if has_places:
        assert a.grad is places[0]
        assert b.grad is places[1]
    a_grad, b_grad, a, b, x = (one.detach() for one in (a.grad[0], b.grad[0], a, b, x))
    h = (x.double() @ a[0].bfloat16().double().T).bfloat16().double()
    grad_h = (b[0].bfloat16() * 0.5).double().sum(0).bfloat16().double().expand(5, 2)  # outputs' gradients are all 1
    assert near(a_grad.double() - float(has_places), 2 * grad_h.T @ x.double(), 1e-5)
    assert near(b_grad.double() - float(has_places), (2 * 0.5 * h.sum(0)).expand(6, 2), 1e-5)


@pytest.mark.parametrize("kind", ["Llama", "Qwen2"])
@pytest.mark.parametrize("variant", ["lora", "pissa"])
@pytest.mark.parametrize("rank", [1, 4])
def test_a_models_gradient_is_as_near_to_fp32s_as_the_plain_one(products, kind, variant, rank, tmp_path) -> None:
    folder = folder_of(kind, tmp_path)

    def gradient(dtype: str, compile_: str) -> torch.Tensor:
        config = ModelConfig(name=TOY_MODEL.name, dtype=dtype, compile=compile_)
        policy = Policy.load(folder, config, LoraConfig(rank=rank, variant=variant), seeds=[0])
        random_b(policy, scale=0.02)
        Trainer(policy, SGD_LIKE, LossConfig()).step(build_batch(groups(), ADVANTAGES, BatchConfig(), version=0))
        return policy.flat.grad_KD

    exact, plain, ours = gradient("float32", "off"), gradient("bfloat16", "off"), gradient("bfloat16", "on")
    assert float((ours - exact).norm()) < float((plain - exact).norm()) + 1e-2 * float(exact.norm())
    if variant == "lora":  # PiSSA's update is a difference, of which rounding leaves less
        assert float((ours - exact).norm()) < 0.1 * float(exact.norm())


def test_a_processor_without_the_instructions_has_none(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(module, "_FLAGS", ("-O1", "-march=x86-64", "-shared", "-fPIC"))
    low_rank.cache_clear()
    try:
        assert low_rank(tmp_path) is None
        assert len(list(tmp_path.iterdir())) == 1
    finally:
        low_rank.cache_clear()


def test_a_compiler_that_fails_is_quoted(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(module, "_FLAGS", ("-fno-such-option",))
    low_rank.cache_clear()
    try:
        with pytest.raises(CompilerError, match=r"failed on low_rank\.cpp: .*no-such-option"):
            low_rank(tmp_path)
        assert not list(tmp_path.iterdir())
    finally:
        low_rank.cache_clear()


def test_layers_that_are_computed_again_give_the_same_bits(products, toy_dir) -> None:
    found = []
    for recompute in (False, True):
        config = ModelConfig(name=TOY_MODEL.name, dtype="bfloat16", compile="on")
        policy = Policy.load(toy_dir, config, LoraConfig(rank=4), seeds=[0])
        random_b(policy, scale=0.01)
        if recompute:
            recompute_layers(policy.model)
        Trainer(policy, SGD_LIKE, LossConfig()).step(build_batch(groups(), ADVANTAGES, BatchConfig(), version=0))
        found.append(policy.flat.grad_KD)
    assert float(found[0].norm()) > 0
    assert torch.equal(*found)
