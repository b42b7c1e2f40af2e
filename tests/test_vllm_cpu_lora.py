"""The low-rank product for several adapters: the formula, and for each row the bits that it gets alone."""

from pathlib import Path

import pytest
import torch

from rlora.lora.config import LoraConfig
from rlora.model.sources import ModelConfig
from rlora.sampler.base import EngineSpec, SamplerConfig
from rlora.sampler.vllm.cpu_lora import Layer, Rows, add_low_rank
from rlora.sampler.vllm.options import engine_options
from rlora.system.exactness import are_rows_alike

pytestmark = pytest.mark.unit
SIZES = (40, 24)  # of the slices of a layer


def layer_of(num_slots: int, rank: int, num_inputs: int = 576, dtype=torch.bfloat16):
    a = tuple((torch.randn(num_slots, 1, rank, num_inputs) / num_inputs**0.5).to(dtype) for _ in SIZES)
    b = tuple(torch.randn(num_slots, 1, size, rank).to(dtype) for size in SIZES)
    return a, b


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.view(torch.int16)


@pytest.mark.parametrize("rank", [2, 40])  # few numbers a row, and many
@pytest.mark.parametrize("ids", [(5, 5, 5, 5), (5, 7, 5, 7), (0, 5, 0, 7), (7, 7, 7, 5), (0, 0, 0, 0), (9, 7, 5, 9)])
def test_each_row_gets_its_own_adapter_or_none(ids, rank) -> None:
    torch.manual_seed(0)
    slots: list[int | None] = [7, None, 5, 9]
    a, b = layer_of(4, rank, 48, dtype=torch.float32)
    x, y = torch.randn(4, 48), torch.randn(4, sum(SIZES))
    expected = y.clone()
    for row, adapter in enumerate(ids):
        if adapter:
            slot = slots.index(adapter)
            expected[row, :40] += 0.5 * b[0][slot, 0] @ (a[0][slot, 0] @ x[row])
            expected[row, 40:] += 0.5 * b[1][slot, 0] @ (a[1][slot, 0] @ x[row])
    add_low_rank(y, x, Layer(a, b, SIZES), 0.5, Rows(ids, slots))
    torch.testing.assert_close(y, expected)


@pytest.mark.parametrize("rank", [1, 2, 3, 8, 17, 32])
@pytest.mark.parametrize("num_adapters", [1, 2, 8, 64])
@pytest.mark.parametrize("kind", ["decode", "prefill", "uneven"])
def test_a_row_has_the_same_bits_alone_and_beside_any_others(kind, num_adapters, rank) -> None:
    if not are_rows_alike():
        pytest.skip("this processor's products depend on the number of rows (AMX)")
    torch.manual_seed(rank)
    adapters = torch.arange(1, num_adapters + 1)
    if kind == "decode":  # single rows, the base's among them
        ids = torch.cat([adapters, torch.randint(0, num_adapters + 1, (97,))])
        ids = ids[torch.randperm(len(ids))]
    elif kind == "prefill":  # many rows of each after the other
        ids = adapters.repeat_interleave(torch.randint(1, 30, (num_adapters,)))
    else:  # nearly all rows are of one
        ids = torch.cat([adapters, torch.full((300,), num_adapters), torch.zeros(5, dtype=torch.int64)])
    slots: list[int | None] = [*torch.randperm(num_adapters).add(1).tolist(), None]
    layer = Layer(*layer_of(num_adapters + 1, rank), SIZES)
    x, y = torch.randn(len(ids), 576).bfloat16(), torch.randn(len(ids), sum(SIZES)).bfloat16()
    y[ids == 0, ::2] = -0.0
    mixed = y.clone()
    add_low_rank(mixed, x, layer, 1.0, Rows(tuple(ids.tolist()), slots))
    assert torch.equal(bits(mixed[ids == 0]), bits(y[ids == 0]))
    for adapter in adapters.tolist():
        is_own = ids == adapter
        together, one = y[is_own].clone(), y[is_own][:1].clone()
        add_low_rank(together, x[is_own], layer, 1.0, Rows((adapter,) * len(together), slots))
        add_low_rank(one, x[is_own][:1], layer, 1.0, Rows((adapter,), slots))
        assert torch.equal(mixed[is_own], together)
        assert torch.equal(one, together[:1])
        assert not torch.equal(together, y[is_own])


@pytest.mark.parametrize("room", [4, 32])
def test_a_rank_has_the_same_bits_in_an_engine_with_room_for_a_larger_one(room) -> None:
    if not are_rows_alike():
        pytest.skip("this processor's products depend on the number of rows (AMX)")
    torch.manual_seed(0)
    x, y = torch.randn(9, 576).bfloat16(), torch.randn(9, sum(SIZES)).bfloat16()
    a, b = layer_of(3, 3)
    padded_a = tuple(torch.nn.functional.pad(one, (0, 0, 0, room - 3)) for one in a)
    padded_b = tuple(torch.nn.functional.pad(one, (0, room - 3)) for one in b)
    rows, padded = Rows((1, 2, 3) * 3, [1, 2, 3]), y.clone()
    add_low_rank(y, x, Layer(a, b, SIZES), 1.0, rows)
    add_low_rank(padded, x, Layer(padded_a, padded_b, SIZES), 1.0, rows)
    assert torch.equal(y, padded)


def test_another_adapter_in_a_slot_is_seen() -> None:
    torch.manual_seed(0)
    a, b = layer_of(2, 1, 48, dtype=torch.float32)
    layer, rows = Layer(a, b, SIZES), Rows((1, 2), [1, 2])
    x = torch.randn(2, 48)
    before, after = torch.zeros(2, sum(SIZES)), torch.zeros(2, sum(SIZES))
    add_low_rank(before, x, layer, 1.0, rows)
    with torch.inference_mode():  # in which vLLM loads
        b[1][1] = 0
    add_low_rank(after, x, layer, 1.0, rows)
    assert torch.equal(after[0], before[0])
    assert before[1, 40:].abs().min() > 0
    assert after[1, 40:].abs().max() == 0


def test_rows_of_several_are_computed_in_few_products() -> None:
    """Slots side by side are taken as they lie; blocks have as many rows as adapters have on average, if uneven."""
    slots, rows_N, other_NK = Rows((5, 7, 7), [None, 5, 7]).together
    assert slots == slice(1, 3)
    assert rows_N is None
    assert other_NK is not None
    assert other_NK[:, :, 0].tolist() == [[False, True], [True, False], [True, False]]
    slots, rows_MN = Rows((5, 7, 0, 7), [5, None, 7]).in_blocks
    assert isinstance(slots, torch.Tensor)
    assert slots.tolist() == [0, 2]
    assert rows_MN.tolist() == [[0, 0], [1, 3]]
    _, rows_MN = Rows((1, 2, 3, 3, 3, 3, 3, 3), [1, 2, 3]).in_blocks
    assert rows_MN.tolist() == [[0, 0, 0], [1, 1, 1], [2, 3, 4], [5, 6, 7]]


def test_an_engine_has_room_for_each_policys_adapter_and_for_its_next_version() -> None:
    spec = EngineSpec(
        folder=Path("model"),
        model=ModelConfig(),
        lora=LoraConfig(rank=3),
        config=SamplerConfig(),
        end_token_ids=(0,),
        target_modules=("q_proj",),
        max_length=160,
        num_policies=8,
    )
    options = engine_options(spec)
    assert (options["max_loras"], options["max_cpu_loras"], options["max_lora_rank"]) == (8, 16, 8)
