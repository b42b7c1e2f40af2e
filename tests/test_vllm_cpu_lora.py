"""The grouped low-rank product against the formula, for one adapter, several, and rows without any."""

import pytest
import torch

from rlora.sampler.vllm.cpu_lora import add_low_rank, group_rows

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("ids", [(5, 5, 5, 5), (5, 7, 5, 7), (0, 5, 0, 7), (0, 0, 0, 0)])
def test_each_row_gets_its_own_adapter_or_none(ids) -> None:
    torch.manual_seed(0)
    slots: list[int | None] = [7, None, 5]
    x, y = torch.randn(4, 6), torch.randn(4, 10)
    a = tuple(torch.randn(3, 1, 2, 6) for _ in range(2))
    b = tuple(torch.randn(3, 1, size, 2) for size in (7, 3))
    expected = y.clone()
    for row, adapter in enumerate(ids):
        if adapter:
            slot = slots.index(adapter)
            expected[row, :7] += 0.5 * b[0][slot, 0] @ (a[0][slot, 0] @ x[row])
            expected[row, 7:] += 0.5 * b[1][slot, 0] @ (a[1][slot, 0] @ x[row])
    add_low_rank(y, x, a, b, 0.5, (7, 3), group_rows(ids, slots))
    torch.testing.assert_close(y, expected)


def test_one_adapter_for_all_rows_needs_no_gathering() -> None:
    assert group_rows((5, 5), [None, 5]) == [(1, None)]
