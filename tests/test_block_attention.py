"""Attention by blocks, on the CPU: which blocks are computed, and what, against the attention of the CPU."""

import pytest
import torch
from conftest import make_policy
from test_fused_attention import LAYOUTS, segments
from test_trainer import ADVANTAGES, groups
from torch import nn
from torch.nn.attention import flex_attention as library
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from rlora import attention, block_attention
from rlora.attention import attend, visibility_mask, visible_ranges
from rlora.batching import BatchConfig, build_batch
from rlora.block_attention import BLOCK, attend_blocks, block_mask, padded_ranges, working_flex

pytestmark = [pytest.mark.unit, pytest.mark.filterwarnings("ignore")]
WIDE = LAYOUTS | {
    "several blocks": [[128, 128, 256, 100], [1, 511]],
    "a prompt of whole blocks": [[256, 40, 300]],
    "many short completions": [[20, *[9] * 60], [300, 200]],
}


@pytest.fixture
def differentiable_flex(monkeypatch):
    """PyTorch's flex_attention without a compiler: it materialises all scores, and refuses gradients on the CPU only
    for lack of a kernel.
    """
    monkeypatch.setattr(library, "_validate_device", lambda *_: None)
    return flex_attention


def visible(ranges_BT2: torch.Tensor) -> torch.Tensor:
    return attention._mask_of(ranges_BT2[:, None])[:, 0]


@pytest.mark.parametrize("layout", WIDE.values(), ids=WIDE)
def test_blocks_that_are_seen_are_computed_and_whole_ones_without_a_mask(layout) -> None:
    ranges_B1T2 = visible_ranges(segments(layout))
    mask, is_seen_BTT = block_mask(ranges_B1T2), visible(padded_ranges(ranges_B1T2.squeeze(1)))
    num_rows, length = is_seen_BTT.shape[:2]
    by_block = is_seen_BTT.view(num_rows, length // BLOCK, BLOCK, length // BLOCK, BLOCK)
    is_any, is_all = by_block.any(4).any(2), by_block.all(4).all(2)
    for row in range(num_rows):
        for query in range(length // BLOCK):
            partly = mask.kv_indices[row, 0, query, : mask.kv_num_blocks[row, 0, query]].tolist()
            wholly = mask.full_kv_indices[row, 0, query, : mask.full_kv_num_blocks[row, 0, query]].tolist()
            assert not set(partly) & set(wholly)
            assert set(is_any[row, query].nonzero()[:, 0].tolist()) <= {*partly, *wholly}
            assert set(wholly) <= set(is_all[row, query].nonzero()[:, 0].tolist())
    expected = create_block_mask(mask.mask_mod, num_rows, None, length, length, device="cpu")
    assert mask.sparsity() == pytest.approx(expected.sparsity(), abs=10)  # percent of the blocks


def test_what_other_completions_say_is_left_out() -> None:
    """A prompt of 256 and four completions of 512: of 18 x 18 blocks those of the others are not computed."""
    mask = block_mask(visible_ranges(segments([[256, 512, 512, 512, 512]])))
    num_blocks = int(mask.kv_num_blocks.sum() + mask.full_kv_num_blocks.sum())
    assert num_blocks == 3 + 4 * (4 * 2 + 10)  # the prompt's, and of each completion the prompt and its own


def test_marks_of_a_long_row_take_no_square_of_it() -> None:
    """32,768 positions: no tensor of more than 256 x 256 numbers is made of 32,768 x 32,768."""
    mask = block_mask(visible_ranges(segments([[2048, 30720]])))
    assert mask.kv_indices.numel() == 256 * 256
    assert int(mask.full_kv_num_blocks.sum() + mask.kv_num_blocks.sum()) == 256 * 257 // 2


@pytest.mark.parametrize("heads", [(6, 2, 16), (4, 4, 32), (8, 1, 8)])
@pytest.mark.parametrize("layout", WIDE.values(), ids=WIDE)
def test_outputs_and_gradients_are_those_of_the_cpu(differentiable_flex, layout, heads) -> None:
    segments_BT, (num_heads, key_heads, size) = segments(layout), heads
    random = torch.Generator().manual_seed(1)
    shapes = [(*segments_BT.shape, count, size) for count in (num_heads, key_heads, key_heads)]
    inputs = [torch.randn(shape, generator=random).transpose(1, 2) for shape in shapes]
    upstream = torch.randn(*segments_BT.shape, num_heads, size, generator=random)
    ranges, results = visible_ranges(segments_BT), []
    for is_by_blocks in (True, False):
        leaves = [one.clone().requires_grad_() for one in inputs]
        if is_by_blocks:
            out = attend_blocks(*leaves, ranges, 0.3, flex=differentiable_flex).transpose(1, 2)
        else:
            out, _ = attend(nn.Identity(), *leaves, ranges, 0.3)
        results.append((out.detach(), *torch.autograd.grad((out * upstream).sum(), leaves)))
    for tolerance, ours, expected in zip((1e-5, 1e-4, 1e-4, 1e-4), *results, strict=True):
        assert float((ours - expected).abs().max()) <= tolerance * max(1.0, float(expected.abs().max()))


def test_ranges_give_the_bits_of_a_dense_mask_on_the_cpu() -> None:
    for layout in WIDE.values():
        segments_BT = segments(layout)
        inputs = [torch.randn(len(segments_BT), 2, segments_BT.shape[1], 8) for _ in range(3)]
        found, _ = attend(nn.Identity(), *inputs, visible_ranges(segments_BT), 0.3)
        expected, _ = attend(nn.Identity(), *inputs, visibility_mask(segments_BT), 0.3)
        assert torch.equal(found, expected)


def test_all_layers_of_a_pass_share_the_marks(toy_dir, differentiable_flex, monkeypatch) -> None:
    """A model's gradient with attention as on a GPU, layers computed again, is that of the CPU's attention."""
    made, padded = [], block_attention.padded_ranges
    monkeypatch.setattr(block_attention, "padded_ranges", lambda ranges: made.append(1) or padded(ranges))
    batch = build_batch(groups(), ADVANTAGES, BatchConfig(), version=0)
    gradients = []
    for is_by_blocks in (False, True):
        policy = make_policy(toy_dir)
        policy.recompute_above = 0
        if is_by_blocks:
            monkeypatch.setattr(
                attention._Attend,
                "apply",
                lambda q, k, v, ranges, scale, _: attend_blocks(
                    q, k, v, ranges, scale, flex=differentiable_flex
                ).transpose(1, 2),
            )
        for micro_batch in batch.micro_batches:
            policy.score(micro_batch).logprobs_N.sum().backward()
        gradients.append(policy.flat.grad_KD)
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-4, atol=1e-5)
    assert len(made) == len(batch.micro_batches)


@pytest.mark.parametrize("fault", ["raises", "is wrong"])
def test_flex_attention_that_does_not_work_is_told_and_left(monkeypatch, capsys, fault) -> None:
    def broken(query, key, value, **_: object) -> torch.Tensor:
        if fault == "raises":
            raise RuntimeError("no kernel for this card\nmore")
        return 2 * query + key.sum() + value.sum()

    monkeypatch.setattr(block_attention, "compiled_flex", lambda: broken)
    working_flex.cache_clear()
    for _ in range(2):
        assert working_flex(torch.device("cpu"), torch.float32, 3, 16) is None
    said = capsys.readouterr().err
    working_flex.cache_clear()
    assert said.count("Attention by blocks") == 1
    assert ("RuntimeError: no kernel for this card)" in said) == (fault == "raises")
    assert ("of the norm, so a dense mask is used" in said) == (fault == "is wrong")


def test_flex_attention_that_works_is_taken(monkeypatch, differentiable_flex, capsys) -> None:
    monkeypatch.setattr(block_attention, "compiled_flex", lambda: differentiable_flex)
    working_flex.cache_clear()
    assert working_flex(torch.device("cpu"), torch.float32, 3, 16) is differentiable_flex
    working_flex.cache_clear()
    assert capsys.readouterr().err == ""
