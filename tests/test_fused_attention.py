"""Compiled attention: against fp64, whatever the threads and the other rows, to the ends of its buffers, in a model."""

import itertools
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from support.attention import HEADS, LAYOUTS, numbers, results, segments
from support.engines import random_b
from support.policies import ROOT, TOY_MODEL
from support.training import ADVANTAGES, SGD_LIKE, groups
from torch import nn

from rlora.kernels.attention import Attention
from rlora.kernels.kernels import PLAIN
from rlora.lora.config import LoraConfig
from rlora.model import attention as module
from rlora.model.attention import attend, has_scores, visibility_mask, visible_ranges
from rlora.model.products import Products
from rlora.model.sources import ModelConfig
from rlora.system.processor import has_amx
from rlora.train.batching import BatchConfig, build_batch
from rlora.train.losses import LossConfig
from rlora.train.policy import Policy
from rlora.train.trainer import Trainer

pytestmark = pytest.mark.unit
# rows of segments: one prompt, then completions; what is left is padding


@pytest.fixture(scope="module")
def attention(library) -> Attention:
    return Attention(library)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_ranges_say_what_the_mask_says(layout) -> None:
    segments_BT = segments(layout)
    assert torch.equal(module.mask_of(visible_ranges(segments_BT)), visibility_mask(segments_BT))


@pytest.mark.pairwise
@pytest.mark.parametrize("heads", HEADS.values(), ids=HEADS)
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_values_and_gradients_are_those_of_fp64(attention, layout, heads) -> None:
    segments_BT = segments(layout)
    given = numbers(segments_BT, heads)
    inputs = [one.double().requires_grad_() for one in given[:3]]
    mask = visibility_mask(segments_BT)
    exact = nn.functional.scaled_dot_product_attention(*inputs, attn_mask=mask, scale=0.17, enable_gqa=True)
    exact = exact.transpose(1, 2)
    grads = torch.autograd.grad(exact, inputs, given[3].double())
    found = results(attention, segments_BT, given)
    for ours, theirs in zip(found, (exact.detach(), *grads), strict=True):
        assert (ours.double() - theirs).norm() <= 4e-3 * theirs.norm() + 1e-4  # of one position, two gradients are 0


def test_neither_threads_nor_other_rows_change_a_bit(attention) -> None:
    segments_BT = segments(LAYOUTS["short rows"])
    given = numbers(segments_BT, HEADS["of 64, three of them share"])
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            found.append(results(attention, segments_BT, given))
    finally:
        torch.set_num_threads(threads)
    for one, other in itertools.pairwise(found):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    alone = results(attention, segments_BT[1:2], [one[1:2] for one in given])
    assert all(torch.equal(a, b[1:2]) for a, b in zip(alone, found[0], strict=True))


def test_what_is_not_seen_may_be_anything_finite(attention) -> None:
    segments_BT = segments([[40, 70, 70]])
    given = numbers(segments_BT, HEADS["of 64, three of them share"])
    other = [one.clone() for one in given]
    for one in other[1:3]:
        one[:, :, 40:110] = 1e30  # of the first completion
    found, again = results(attention, segments_BT, given), results(attention, segments_BT, other)
    assert torch.equal(found[0][:, 110:], again[0][:, 110:])
    assert torch.equal(found[1][:, :, 110:], again[1][:, :, 110:])


def test_scores_of_any_size_have_a_softmax(attention) -> None:
    segments_BT = segments([[100, 30]])
    given = numbers(segments_BT, HEADS["of 128"])
    for scale in (1e-3, 1e3):
        query, key, value = given[0] * scale, given[1], given[2]
        mask = visibility_mask(segments_BT)
        exact = nn.functional.scaled_dot_product_attention(
            query.double(), key.double(), value.double(), attn_mask=mask, scale=0.17
        ).transpose(1, 2)
        found, _ = attention.forward(query, key, value, visible_ranges(segments_BT).squeeze(1), 0.17)
        assert (found.double() - exact).norm() <= 4e-3 * exact.norm()


GUARDED = """
import sys
from pathlib import Path
import torch
from rlora.kernels import native
from rlora.kernels.attention import Attention
sys.path.insert(0, "tests")
from support.attention import HEADS, LAYOUTS, numbers, results, segments
native.FLAGS = (*native.FLAGS, "-DRLORA_GUARDED")
attention = Attention(native.native_library(Path(sys.argv[1])))
for layout in LAYOUTS.values():
    for heads in HEADS.values():
        results(attention, segments(layout), numbers(segments(layout), heads))
print("done")
"""


def test_no_buffer_is_written_beyond_its_end(attention, tmp_path) -> None:
    """Behind each buffer lies a page that ends the process when it is touched."""
    done = subprocess.run([sys.executable, "-c", GUARDED, tmp_path], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr[-3000:]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_it_does_not_take_is_computed_with_scores(attention, dtype) -> None:
    """Another precision, and a layer that no kernels fit, in a model whose other layers are given ranges."""
    segments_BT = segments(LAYOUTS["short rows"])
    query, key, value, _ = numbers(segments_BT, HEADS["of 10"])
    layer = nn.Identity()
    if dtype == torch.float32:
        layer.kernels = PLAIN
    inputs = [one.to(dtype) for one in (query, key, value)]
    found, _ = attend(layer, *inputs, visible_ranges(segments_BT), 0.17)
    expected, _ = attend(layer, *inputs, visibility_mask(segments_BT), 0.17)
    assert torch.equal(found, expected)


def test_only_a_model_in_bfloat16_with_the_kernel_makes_no_scores(attention) -> None:
    products = Products(replace(PLAIN, attention=attention))
    assert not has_scores(products, torch.bfloat16)
    assert has_scores(products, torch.float32)
    assert has_scores(Products(PLAIN), torch.bfloat16)
    assert has_scores(Products(), torch.bfloat16)


@pytest.mark.skipif(has_amx(), reason="processors with AMX take PyTorch's attention")
@pytest.mark.parametrize("is_full", [False, True])
def test_a_models_step_takes_it_in_every_layer(attention, toy_dir, monkeypatch, is_full) -> None:
    calls = []
    counted = Attention.outputs
    monkeypatch.setattr(Attention, "outputs", lambda *arguments: calls.append(1) or counted(*arguments))
    config = ModelConfig(name=TOY_MODEL.name, dtype="bfloat16", compile="on")
    policy = Policy.load(toy_dir, config, None if is_full else LoraConfig(rank=4), seed=0)
    if not is_full:
        random_b(policy, scale=0.01)
    batch = build_batch(groups(), ADVANTAGES, BatchConfig(), version=0)
    Trainer(policy, SGD_LIKE, LossConfig()).apply(batch)
    assert len(calls) == len(batch.micro_batches) * policy.model.config.num_hidden_layers
