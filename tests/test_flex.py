"""Attention by blocks, as on a GPU, computed here without its kernels: PyTorch's own formula for the same blocks.

PyTorch refuses gradients of flex_attention on the CPU, where it has no kernel for them, but computes them uncompiled.
"""

import gc
import weakref

import pytest
import torch
from support.attention import HEADS, LAYOUTS, segments
from support.policies import make_policy
from support.training import ADVANTAGES, SGD_LIKE, groups
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn.attention import flex_attention as pytorch
from torch.utils._python_dispatch import TorchDispatchMode

from rlora.model import attention, flex
from rlora.model.attention import attend, visibility_mask, visible_ranges
from rlora.system.memory import recompute_layers
from rlora.train.batching import BatchConfig, build_batch
from rlora.train.losses import LossConfig
from rlora.train.trainer import Trainer

pytestmark = [
    pytest.mark.unit,
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor"),  # PyTorch's own, hidden there
]
CPU = torch.device("cpu")
LAYOUTS = {
    **LAYOUTS,
    "one completion": [[50, 400]],
    "completions of one token": [[140, 0, 0], [135, 3]],
    "whole blocks": [[128, 128, 256], [256, 128]],
    "many completions": [[300, *[37] * 30], [100, 1000], [700, 200, 200]],
}


@pytest.fixture
def compiler(monkeypatch):
    """Let flex_attention run on the CPU with gradients, and count what is compiled."""
    monkeypatch.setattr(pytorch, "_validate_device", lambda *_: None)
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(pytorch.flex_attention, backend=counter, dynamic=True, fullgraph=True)
    monkeypatch.setattr(flex, "compiled", lambda: compiled)
    flex.is_usable_for.cache_clear()
    yield counter
    flex.is_usable_for.cache_clear()
    torch._dynamo.reset()


@pytest.fixture
def blocks(compiler, monkeypatch) -> None:
    """Let `attend` compute by blocks on the CPU."""
    monkeypatch.setattr(attention, "takes_blocks", flex.is_usable)


def dense(counts: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """Return listed blocks (B, 1, rows, columns) as booleans."""
    is_listed = torch.arange(indices.shape[-1]) < counts.unsqueeze(-1)
    return torch.zeros_like(indices, dtype=torch.bool).scatter_(-1, indices.long(), is_listed)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_blocks_say_what_the_mask_says_and_are_those_that_pytorch_finds(layout) -> None:
    segments_BT = segments(layout)
    num_rows, length = segments_BT.shape
    found = flex.block_mask(visible_ranges(segments_BT))
    size = found.shape[-1]
    assert size % flex.BLOCK == 0
    assert length <= size < length + 2 * flex.BLOCK
    place, rows = torch.arange(size), torch.arange(num_rows)[:, None, None]
    is_seen = found.mask_mod(rows, torch.zeros(()), place[:, None], place)
    assert torch.equal(is_seen[:, :length, :length], visibility_mask(segments_BT)[:, 0])
    assert torch.equal(is_seen[:, length:], torch.eye(size, dtype=torch.bool)[length:].expand(num_rows, -1, -1))
    expected = pytorch.create_block_mask(found.mask_mod, num_rows, None, size, size, device="cpu")
    for name in ("kv", "full_kv", "q", "full_q"):
        ours, theirs = (
            [getattr(one, f"{name}_{what}") for what in ("num_blocks", "indices")] for one in (found, expected)
        )
        assert torch.equal(dense(*ours), dense(*theirs)), name
        assert [one.dtype for one in ours] == [one.dtype for one in theirs]


class Sizes(TorchDispatchMode):
    """Notes the numbers of the largest tensor that is made."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for one in out if isinstance(out, tuple | list) else [out]:
            self.largest = max(self.largest, one.numel() if isinstance(one, torch.Tensor) else 0)
        return out


def test_nothing_of_all_pairs_is_made_for_a_long_row() -> None:
    length = 32768
    for layout in ([[768, 32000]], [[768, *[3200] * 10]]):
        ranges = visible_ranges(segments(layout))
        with Sizes() as sizes:
            flex.block_mask(ranges)
        assert sizes.largest <= 4 * length


@pytest.mark.parametrize("heads", HEADS.values(), ids=HEADS)
def test_values_and_gradients_are_those_of_materialised_scores(blocks, heads, monkeypatch) -> None:
    num_heads, key_heads, size = heads
    for layout in LAYOUTS.values():
        segments_BT = segments(layout)
        ranges, random = visible_ranges(segments_BT), torch.Generator().manual_seed(0)
        shapes = [(*segments_BT.shape, count, size) for count in (num_heads, key_heads, key_heads, num_heads)]
        query, key, value, grad = (torch.randn(shape, generator=random) for shape in shapes)
        query, key, value = (one.transpose(1, 2).requires_grad_() for one in (query, key, value))
        found, _ = attend(nn.Identity(), query, key, value, ranges, 0.17)
        assert found.is_contiguous()
        grads = torch.autograd.grad(found, [query, key, value], grad)
        with monkeypatch.context() as patch:
            patch.setattr(attention, "takes_blocks", lambda *_: False)
            expected, _ = attend(nn.Identity(), query, key, value, ranges, 0.17)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        for ours, theirs in zip(grads, torch.autograd.grad(expected, [query, key, value], grad), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("key_heads", [1, 2, 6])
def test_a_mask_gives_the_same_where_blocks_cannot_be_used(key_heads) -> None:
    segments_BT = segments(LAYOUTS["short rows"])
    query, key, value = (torch.randn(*(3, heads), segments_BT.shape[1], 8) for heads in (6, key_heads, key_heads))
    expected, _ = attend(nn.Identity(), query, key, value, visible_ranges(segments_BT), 0.5)
    for mask in (visibility_mask(segments_BT), attention.as_bias(visibility_mask(segments_BT))):
        torch.testing.assert_close(attention.attend_by_mask(query, key, value, mask, 0.5), expected)


def gradient(folder, *, recompute: bool = False) -> torch.Tensor:
    policy = make_policy(folder)
    if recompute:
        recompute_layers(policy.model)
    batch = build_batch(groups(), ADVANTAGES, BatchConfig(tokens_per_micro_batch=40), version=0)
    assert len(batch.micro_batches) > 1
    Trainer(policy, SGD_LIKE, LossConfig()).apply(batch)
    return policy.flat.grad_D


@pytest.mark.parametrize("recompute", [False, True])
def test_a_step_by_blocks_has_the_same_gradient(toy_dir, recompute, compiler, monkeypatch) -> None:
    expected = gradient(toy_dir)
    monkeypatch.setattr(attention, "takes_blocks", flex.is_usable)
    found = gradient(toy_dir, recompute=recompute)
    assert compiler.frame_count > 0
    assert float((found - expected).norm()) < 1e-5 * float(expected.norm())


@pytest.mark.parametrize("recompute", [False, True])
def test_the_layers_of_a_pass_share_blocks_that_are_freed_with_it(blocks, toy_dir, recompute, monkeypatch) -> None:
    policy = make_policy(toy_dir)
    if recompute:
        recompute_layers(policy.model)
    (first, *_), made, calls = build_batch(groups(), ADVANTAGES, BatchConfig(), version=0).micro_batches, [], []
    policy.score(first)  # what is compiled keeps what it was compiled with
    make, compute = flex.block_mask, flex.attend

    def block_mask(ranges):
        one = make(ranges)
        made.append((weakref.ref(ranges), weakref.ref(one), weakref.ref(one.kv_indices)))
        return one

    monkeypatch.setattr(flex, "block_mask", block_mask)
    monkeypatch.setattr(flex, "attend", lambda *given: calls.append(1) or compute(*given))
    batch = build_batch(groups(), ADVANTAGES, BatchConfig(tokens_per_micro_batch=40), version=0)
    gc.collect()
    gc.disable()
    try:
        for micro_batch in batch.micro_batches:
            policy.score(micro_batch).logprobs_N.sum().backward()
        assert [[one() for one in references] for references in made] == [[None] * 3] * len(batch.micro_batches)
    finally:
        gc.enable()
    assert len(calls) == (1 + recompute) * policy.model.config.num_hidden_layers * len(batch.micro_batches)


def test_no_number_of_rows_or_positions_is_compiled_anew(compiler) -> None:
    num_heads, key_heads, size = 4, 2, 16
    assert flex.is_usable_for(CPU, torch.float32, num_heads, key_heads, size, 0.5)
    compiled = compiler.frame_count
    for layout in ([[100]], [[100, 412]], [[100, 60]] * 2, [[300, 212]] * 4, [[100, 900]] * 3, [[20, 5]], [[9, 260]]):
        ranges = visible_ranges(segments(layout))
        shapes = [(len(layout), heads, ranges.shape[2], size) for heads in (num_heads, key_heads, key_heads)]
        for needs in (True, False):
            inputs = [torch.randn(shape, requires_grad=needs) for shape in shapes]
            turned = [one.transpose(1, 2).contiguous().transpose(1, 2) for one in inputs]
            with torch.set_grad_enabled(needs):
                for one in (inputs, turned):
                    flex.attend(*one, flex.block_mask(ranges), 0.5)
    assert compiler.frame_count == compiled


@pytest.mark.parametrize(
    ("failure", "reason"),
    [(RuntimeError("no triton here\nat all"), "no triton here"), (None, "it is off by 1 of what is right")],
)
def test_what_cannot_be_compiled_or_is_wrong_is_told_once_and_not_used(
    failure, reason, compiler, monkeypatch, capsys
) -> None:
    def run(query, key, value, **_: object) -> torch.Tensor:
        if failure is not None:
            raise failure
        return 0 * (query + (key + value).repeat_interleave(2, 1))

    monkeypatch.setattr(flex, "compiled", lambda: run)
    assert not flex.is_usable_for(CPU, torch.float32, 4, 2, 16, 0.25)
    assert not flex.is_usable_for(CPU, torch.float32, 4, 2, 16, 0.25)
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert f"flex_attention cannot be used for 4 heads of 16 (torch.float32): {reason}. Attention is" in said


def test_memory_that_runs_out_is_not_taken_for_it(compiler, monkeypatch) -> None:
    def run(*_: object, **__: object) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    working = flex.compiled
    monkeypatch.setattr(flex, "compiled", lambda: run)
    with pytest.raises(torch.OutOfMemoryError):
        flex.is_usable_for(CPU, torch.float32, 4, 2, 16, 0.25)
    monkeypatch.setattr(flex, "compiled", working)
    assert flex.is_usable_for(CPU, torch.float32, 4, 2, 16, 0.25)


def test_a_trial_within_a_layer_that_is_recomputed_ends(toy_dir, compiler, monkeypatch) -> None:
    """The first call may be in the forward pass of a layer whose saved tensors are made again when asked for."""
    policy, trials = make_policy(toy_dir), []
    monkeypatch.setattr(
        attention,
        "takes_blocks",
        lambda *given: trials.append(1) or flex.is_usable(*given),
    )
    recompute_layers(policy.model)
    (part, *_) = build_batch(groups(), ADVANTAGES, BatchConfig(), version=0).micro_batches
    policy.score(part).logprobs_N.sum().backward()
    assert len(trials) == 2 * policy.model.config.num_hidden_layers
