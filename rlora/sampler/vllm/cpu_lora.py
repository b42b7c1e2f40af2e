"""A faster and correct LoRA product for vLLM's CPU build, put in place of its own when the engine starts.

vLLM 0.32's CPU path gathers a copy of the adapter's weights for every token, which makes decoding with an adapter 1.6x
slower than without, and its index -1 ("no adapter") picks the last slot, so a base request beside others can be
answered by an adapter. Here rows are grouped by slot once a step, and each group is two small matrix products. With one
policy there is one group: all rows.
"""

from typing import Any

import torch


def install() -> None:
    """Replace the two methods; call before the engine is built. Does nothing where vLLM does not run on the CPU."""
    from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

    if getattr(PunicaWrapperCPU, "rlora_installed", False):
        return
    original_update = PunicaWrapperCPU.update_metadata

    def update_metadata(self: Any, mapping: Any, lora_index_to_id: list[int | None], *args: Any, **kwargs: Any) -> None:
        original_update(self, mapping, lora_index_to_id, *args, **kwargs)
        self.rlora_groups = group_rows(mapping.index_mapping, lora_index_to_id)

    def add_lora_linear(
        self: Any,
        y: torch.Tensor,
        x: torch.Tensor,
        lora_a_stacked: tuple[torch.Tensor, ...],
        lora_b_stacked: tuple[torch.Tensor, ...],
        scale: float,
        output_slices: tuple[int, ...],
        **_: Any,
    ) -> None:
        add_low_rank(y, x, lora_a_stacked, lora_b_stacked, scale, output_slices, self.rlora_groups)

    PunicaWrapperCPU.update_metadata = update_metadata
    PunicaWrapperCPU.add_lora_linear = add_lora_linear
    PunicaWrapperCPU.rlora_installed = True  # pyright: ignore[reportAttributeAccessIssue] - our own mark


def group_rows(ids: tuple[int, ...], slots: list[int | None]) -> list[tuple[int, torch.Tensor | None]]:
    """Return (slot, rows) for each adapter in a batch whose tokens have the adapter ids `ids` (0: none); rows None
    means all.
    """
    distinct = set(ids) - {0}
    if len(distinct) == 1 and 0 not in ids:
        return [(slots.index(ids[0]), None)]
    of_token = torch.tensor(ids)
    return [(slots.index(adapter), (of_token == adapter).nonzero()[:, 0]) for adapter in sorted(distinct)]


def add_low_rank(
    y: torch.Tensor,
    x: torch.Tensor,
    a_stacked: tuple[torch.Tensor, ...],
    b_stacked: tuple[torch.Tensor, ...],
    scale: float,
    output_slices: tuple[int, ...],
    groups: list[tuple[int, torch.Tensor | None]],
) -> None:
    """Add scale (x A^T) B^T to each slice of y (T, O) in place, for the rows of each group.

    `a_stacked` holds (slots, 1, R, I) and `b_stacked` (slots, 1, O, R) for each slice (q, k and v are slices of one
    layer).
    """
    for slot, rows in groups:
        x_TI = x if rows is None else x[rows]
        offset = 0
        for a, b, size in zip(a_stacked, b_stacked, output_slices, strict=True):
            h_TR = x_TI @ a[slot, 0].T
            part = y[:, offset : offset + size]
            if rows is None:
                part.addmm_(h_TR, b[slot, 0, :size].T, alpha=scale)
            else:
                part.index_add_(0, rows, h_TR @ b[slot, 0, :size].T, alpha=scale)
            offset += size
