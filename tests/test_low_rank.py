"""Compiled products of frozen layers with updates: against fp64 and the plain path, in whole models, where they end."""

import dataclasses
import itertools
import statistics
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.engines import random_b
from support.low_rank import numbers
from support.models import folder_of
from support.policies import ROOT, TOY_MODEL
from support.training import ADVANTAGES, SGD_LIKE, groups
from torch import nn

from rlora.kernels.compiled import compiled_kernels
from rlora.kernels.install import install
from rlora.kernels.kernels import PLAIN
from rlora.kernels.low_rank import LowRank
from rlora.lora.config import LoraConfig
from rlora.lora.linear import Factors, LoraLinear
from rlora.model.logprobs import logits, token_logprobs
from rlora.model.products import Products
from rlora.model.sources import ModelConfig, cache_dir
from rlora.system.memory import recompute_layers
from rlora.train.batching import BatchConfig, build_batch
from rlora.train.losses import LossConfig
from rlora.train.policy import Policy
from rlora.train.trainer import Trainer

pytestmark = pytest.mark.unit
FOLDER = cache_dir() / "compiled"
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def products(library) -> LowRank:
    return LowRank(library, has_bases=True)


@pytest.fixture(params=[True, False], ids=["bases ours", "bases PyTorch's"])
def both(products, request) -> LowRank:
    """With the products of base and update in one, and with those of the update alone."""
    return replace(products, has_bases=request.param)


def near(found: torch.Tensor, exact: torch.Tensor, tolerance: float) -> bool:
    return float((found.double() - exact).norm()) <= tolerance * float(exact.norm())


@pytest.mark.pairwise
@pytest.mark.parametrize(
    ("inputs", "outputs", "pitch"),
    [(64, (96,), 0), (50, (34, 70, 2), 0), (576, (192, 64), 6), (2, (2,), 0), (1000, (1100, 6), 0), (2024, (70,), 0)],
)
@pytest.mark.parametrize(
    ("both", "rank"),
    [(True, 0), *itertools.product((True, False), (1, 2, 3, 4, 5, 8, 17, 32, 48, 64))],  # of rank 0 the base alone is
    indirect=["both"],
)
@pytest.mark.parametrize("rows", [1, 2, 9, 133])
def test_products_equal_those_in_fp64(both, rows, rank, inputs, outputs, pitch) -> None:
    check(both, rank, *numbers(rows, rank, inputs, outputs, pitch))


@pytest.mark.parametrize(("inputs", "outputs"), [(1000, (130, 64)), (2024, (1100, 70))])
@pytest.mark.parametrize("rank", [0, 5, 32])
def test_products_in_several_ranges_and_segments_equal_those_in_fp64(products, rank, inputs, outputs) -> None:
    check(products, rank, *numbers(801, rank, inputs, outputs))


def check(both: LowRank, rank: int, x, layers, all_a, all_b, grads) -> None:
    scale = 32 / max(rank, 1)
    served_a = [a.bfloat16().double() for a in all_a]
    served_b = [(b.bfloat16() * scale).double() for b in all_b]  # in bf16, as a server folds the scale in
    found, h = both.forward(x, layers, all_a, all_b, scale)
    parts = h.double().split(rank, 1) if rank else ()
    if rank:
        assert near(h, x.double() @ torch.cat(served_a).T, 4e-3)
    for index, (y, (w, bias)) in enumerate(zip(found, layers, strict=True)):
        exact = x.double() @ w.double().T + (0 if bias is None else bias.double())
        exact += parts[index] @ served_b[index].T if rank else 0
        assert near(y, exact, 4e-3 if both.has_bases else 8e-3)  # the base rounded by itself is rounded twice
    grad_a, grad_b = [torch.ones_like(a) for a in all_a], [torch.ones_like(b) for b in all_b]
    places = {"x_NI": x, "h_NS": h, "grad_a": grad_a, "grad_b": grad_b} if rank else {}
    grad_x = both.backward(grads, layers, all_a, all_b, scale, **places)
    exact = sum(grad.double() @ w.double() for grad, (w, _) in zip(grads, layers, strict=True))
    of_h = gradients_of_h(both, layers, all_a, all_b, scale, grads)
    for part, grad, b in zip(of_h, grads, served_b, strict=False):
        assert near(part, grad.double() @ b, 4e-3)
    exact += sum(part @ a for part, a in zip(of_h, served_a, strict=True))
    assert near(grad_x, exact, 4e-3 if both.has_bases else 1e-2)
    for index, grad in enumerate(grads if rank else ()):
        assert near(grad_a[index] - 1.0, of_h[index].T @ x.double(), 1e-5)  # added, and never rounded to 16 bits
        assert near(grad_b[index] - 1.0, scale * grad.double().T @ parts[index], 1e-5)


def gradients_of_h(products: LowRank, layers, all_a, all_b, scale: float, grads) -> list[torch.Tensor]:
    """Return the gradients of each x A^T as they were rounded: of A's gradient what an x of ones and zeros selects."""
    rows, inputs = len(grads[0]), layers[0][0].shape[1]
    ranks = [len(a) for a in all_a]
    found = [torch.zeros(rows, rank, dtype=torch.float64) for rank in ranks]
    for start in range(0, rows if ranks else 0, inputs):
        count = min(inputs, rows - start)
        x = torch.zeros(rows, inputs, dtype=torch.bfloat16)
        x[range(start, start + count), range(count)] = 1.0
        grad_a, grad_b = [torch.zeros_like(a) for a in all_a], [torch.zeros_like(b) for b in all_b]
        h = torch.zeros(rows, sum(ranks), dtype=torch.bfloat16)
        products.backward(
            grads, layers, all_a, all_b, scale, x_NI=x, h_NS=h, grad_a=grad_a, grad_b=grad_b, needs_x=False
        )
        for part, grad in zip(found, grad_a, strict=True):
            part[start : start + count] = grad[:, :count].T.double()
    return found


def results(products: LowRank, rows: slice, inputs: int) -> list[torch.Tensor]:
    """Return what is computed of some rows, and then gradients of factors."""
    x, layers, all_a, all_b, grads = numbers(801, 5, inputs, (64, 1100))
    x, grads = x[rows], [grad[rows] for grad in grads]
    outputs, h = products.forward(x, layers, all_a, all_b, 4.0)
    sums = [torch.zeros_like(one) for one in (*all_a, *all_b)]
    grad_x = products.backward(grads, layers, all_a, all_b, 4.0, x_NI=x, h_NS=h, grad_a=sums[:2], grad_b=sums[2:])
    assert grad_x is not None
    return [h, *outputs, products.logits(x, layers[1][0]), grad_x, *sums]


@pytest.mark.parametrize("inputs", [96, 1000])
def test_the_number_of_threads_changes_no_bit(products, inputs) -> None:
    found, threads = [], torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            found.append(results(products, slice(None), inputs))
    finally:
        torch.set_num_threads(threads)
    for one, other in itertools.pairwise(found):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("inputs", [96, 1000])
@pytest.mark.parametrize("rows", [slice(0, 1), slice(7, 20), slice(100, 801)])
def test_other_rows_change_no_bit_of_a_row(products, rows, inputs) -> None:
    whole, part = results(products, slice(None), inputs), results(products, rows, inputs)
    for all_rows, some in zip(whole[:5], part[:5], strict=True):
        assert torch.equal(all_rows[rows], some)


def test_layers_of_several_ranks_share_an_input(products) -> None:
    """What is true of h with an even number of columns for each layer is not of h as a whole, and the other way."""
    for ranks in ((1, 2, 3), (2, 1, 4), (3, 3, 2), (0, 5, 1)):
        x, layers, _, _, grads = numbers(20, 0, 64, (30, 34, 70))
        random = torch.Generator().manual_seed(0)
        all_a = [torch.randn(rank, 64, generator=random) / 8 for rank in ranks]
        all_b = [torch.randn(len(w), rank, generator=random) for rank, (w, _) in zip(ranks, layers, strict=True)]
        found, h = products.forward(x, layers, all_a, all_b, 1.0)
        sums = [torch.zeros_like(one) for one in (*all_a, *all_b)]
        places = {"x_NI": x, "h_NS": h, "grad_a": sums[:3], "grad_b": sums[3:]}
        grad_x = products.backward(grads, layers, all_a, all_b, 1.0, **places)
        of_h = gradients_of_h(products, layers, all_a, all_b, 1.0, grads)
        exact_x = torch.zeros(20, 64, dtype=torch.float64)
        for index, (part, (w, bias), a, b) in enumerate(
            zip(h.double().split(ranks, 1), layers, all_a, all_b, strict=True)
        ):
            a, b, grad = a.bfloat16().double(), b.bfloat16().double(), grads[index].double()
            exact = x.double() @ w.double().T + part @ b.T + (0 if bias is None else bias.double())
            assert near(found[index], exact, 4e-3)
            assert near(sums[index], of_h[index].T @ x.double(), 1e-5)
            assert near(sums[3 + index], grad.T @ part, 1e-5)
            exact_x += grad @ w.double() + grad @ b @ a
        assert near(grad_x, exact_x, 4e-3)


GUARDED = """
import sys
from pathlib import Path
import torch
from rlora.kernels import native
from rlora.kernels.low_rank import LowRank
sys.path.insert(0, "tests")
from support.low_rank import numbers
native.FLAGS = (*native.FLAGS, "-DRLORA_GUARDED")
products = LowRank(native.native_library(Path(sys.argv[1])), has_bases=True)
for inputs in (576, 1000, 2024):
    for rank in (1, 3, 26, 32, 64, 130):
        torch.set_num_threads(1 + rank % 2)
        x, layers, all_a, all_b, grads = numbers(20, rank, inputs, (70, 1100))
        _, h = products.forward(x, layers, all_a, all_b, 1.0)
        sums = [torch.zeros_like(one) for one in (*all_a, *all_b)]
        products.backward(grads, layers, all_a, all_b, 1.0, x_NI=x, h_NS=h, grad_a=sums[:2], grad_b=sums[2:])
print("done")
"""


def test_no_buffer_is_written_beyond_its_end(products, tmp_path) -> None:
    """Behind each buffer lies a page that ends the process when it is touched."""
    done = subprocess.run([sys.executable, "-c", GUARDED, tmp_path], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr[-3000:]


@pytest.mark.parametrize(("rows", "outputs"), [(1, 2), (7, 130), (192, 5000)])
def test_logits_are_sums_in_fp32(products, rows, outputs) -> None:
    x, ((w, _),), *_ = numbers(rows, 0, 576, (outputs,))
    found = products.logits(x, w)
    assert found.dtype == torch.float32
    assert near(found, x.double() @ w.double().T, 1e-6)


def test_log_probabilities_come_of_these_logits_and_their_gradient_too(products) -> None:
    hidden, ((head, _),), *_ = numbers(300, 0, 64, (500,))
    assert torch.equal(
        logits(hidden, head, torch.float32, Products(replace(PLAIN, low_rank=products))), products.logits(hidden, head)
    )
    targets, found = torch.arange(300), []
    for low_rank_ in (products, None):
        inputs = hidden.clone().requires_grad_()
        kernels = replace(PLAIN, low_rank=low_rank_)
        values, _ = token_logprobs(inputs, head, targets, dtype=torch.float32, products=Products(kernels))
        values.sum().backward()
        found.append((values.detach(), inputs.grad))
    (values, grad), (plain, plain_grad) = found
    assert near(values, plain.double(), 1e-5)
    assert near(grad, plain_grad.double(), 2.0**-8)


@pytest.mark.parametrize("rank", [0, 1, 3, 16])
def test_what_is_not_finite_stays_in_its_row(both, rank) -> None:
    x, layers, all_a, all_b, _ = numbers(20, rank, 64, (96,))
    x = x.clone()
    x[7, 3] = float("nan")
    (y,), h = both.forward(x, layers, all_a, all_b, 1.0)
    is_finite = h.isfinite().all(1) & y.isfinite().all(1)
    assert is_finite.tolist() == [row != 7 for row in range(20)]


def test_a_frozen_linear_layer_of_a_model_is_the_plain_one(products) -> None:
    torch.manual_seed(0)
    plain, ours = (nn.Linear(64, 96).bfloat16().requires_grad_(False) for _ in range(2))
    ours.load_state_dict(plain.state_dict())
    calls: list[int] = []

    @dataclasses.dataclass(frozen=True, slots=True, eq=False)
    class Counted(LowRank):
        def forward(self, *arguments):
            calls.append(1)
            return super(Counted, self).forward(*arguments)

    install(nn.Sequential(ours), replace(PLAIN, low_rank=Counted(products.library, has_bases=True)))
    x = torch.randn(3, 5, 64).bfloat16()
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    outputs = [layer(one) for layer, one in zip((plain, ours), inputs, strict=True)]
    assert calls == [1]
    assert outputs[1].shape == (3, 5, 96)
    assert near(outputs[1].detach(), outputs[0].detach().double(), 4e-3)
    for one in outputs:
        one.backward(torch.ones_like(one))
    assert near(inputs[1].grad, inputs[0].grad.double(), 4e-3)
    ours.weight.requires_grad_()
    ours(x).sum().backward()
    assert calls == [1]
    assert ours.weight.grad is not None


def test_other_numbers_and_odd_sizes_are_left_to_the_plain_path(products) -> None:
    x, w, odd = (torch.zeros(*shape, dtype=torch.bfloat16) for shape in ((4, 6), (8, 6), (3, 6)))
    bias = w[:, 0].contiguous()
    assert products.takes(x, [(w, None), (w, bias)])
    assert not products.takes(x, [(w, None), (odd, None)])
    assert not products.takes(x[:, :5], [(w[:, :5].contiguous(), None)])
    assert not products.takes(x.half(), [(w.half(), None)])
    assert not products.takes(x, [(w.float(), None)])
    assert not products.takes(x, [(w, bias.float())])
    assert not products.takes(x, [(w.T.contiguous().T, None)])
    assert not products.takes(x[:0], [(w, None)])
    assert not products.takes(x.T, [(w, None)])
    assert not products.takes(x.to("meta"), [(w.to("meta"), None)])


@pytest.mark.parametrize("has_places", [True, False])
def test_gradients_go_to_the_leaves_or_through_autograd(products, has_places) -> None:
    torch.manual_seed(0)
    base, x = nn.Linear(12, 6).bfloat16(), torch.randn(5, 12).bfloat16().requires_grad_()
    a, b = (nn.Parameter(torch.linspace(-1, 1, n * m).view(n, m)) for n, m in ((2, 12), (6, 2)))
    if has_places:
        a.grad, b.grad = torch.ones_like(a), torch.ones_like(b)
    places = [a.grad, b.grad]
    layer = LoraLinear(base, Products(compiled_kernels(FOLDER, CPU)))
    layer.factors = Factors(a=a, b=b, scale=0.5)
    for _ in range(2):
        layer(x).sum().backward()
    if has_places:
        assert a.grad is places[0]
        assert b.grad is places[1]
    a_grad, b_grad, a, b, x = (one.detach() for one in (a.grad, b.grad, a, b, x))
    h = (x.double() @ a.bfloat16().double().T).bfloat16().double()
    grad_h = (b.bfloat16() * 0.5).double().sum(0).bfloat16().double().expand(5, 2)  # outputs' gradients are all 1
    assert near(a_grad.double() - float(has_places), 2 * grad_h.T @ x.double(), 1e-5)
    assert near(b_grad.double() - float(has_places), (2 * 0.5 * h.sum(0)).expand(6, 2), 1e-5)


@pytest.mark.pairwise
@pytest.mark.parametrize("kind", ["Llama", "Qwen2"])
@pytest.mark.parametrize("variant", ["lora", "pissa"])
@pytest.mark.parametrize("rank", [1, 4])
def test_models_gradients_are_as_near_to_fp32s_as_plain_ones(products, kind, variant, rank, tmp_path) -> None:
    """Over twelve models: how roundings of one happen to fall makes its error half or twice as large."""

    def gradient(folder: Path, seed: int, dtype: str, compile_: str) -> torch.Tensor:
        config = ModelConfig(name=TOY_MODEL.name, dtype=dtype, compile=compile_)
        policy = Policy.load(folder, config, LoraConfig(rank=rank, variant=variant), seed=seed)
        random_b(policy, scale=0.02)
        Trainer(policy, SGD_LIKE, LossConfig()).apply(build_batch(groups(), ADVANTAGES, BatchConfig(), version=0))
        return policy.flat.grad_D

    errors: dict[str, list[float]] = {"off": [], "on": []}
    for seed in range(12):
        folder = folder_of(kind, tmp_path / str(seed), seed=seed)
        exact = gradient(folder, seed, "float32", "off")
        for compile_, found in errors.items():
            error = gradient(folder, seed, "bfloat16", compile_) - exact
            found.append(float(error.norm() / exact.norm()))
    means = {compile_: statistics.geometric_mean(found) for compile_, found in errors.items()}
    assert means["on"] < 1.25 * means["off"]
    if variant == "lora":  # PiSSA's update is a difference, of which rounding leaves less
        assert means["on"] < 0.05


def test_layers_that_are_computed_again_give_the_same_bits(products, toy_dir) -> None:
    found = []
    for recompute in (False, True):
        config = ModelConfig(name=TOY_MODEL.name, dtype="bfloat16", compile="on")
        policy = Policy.load(toy_dir, config, LoraConfig(rank=4), seed=0)
        random_b(policy, scale=0.01)
        if recompute:
            recompute_layers(policy.model)
        Trainer(policy, SGD_LIKE, LossConfig()).apply(build_batch(groups(), ADVANTAGES, BatchConfig(), version=0))
        found.append(policy.flat.grad_D)
    assert float(found[0].norm()) > 0
    assert torch.equal(*found)
