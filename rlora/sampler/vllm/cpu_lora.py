"""A faster and correct LoRA product for vLLM's CPU build, put in place of its own when the engine starts.

vLLM 0.32's CPU path gathers a copy of the adapter's weights for every token, which makes decoding with an adapter 1.6x
slower than without, and its index -1 ("no adapter") picks the last slot, so a base request beside others can be
answered by an adapter. Here the rows of all adapters are computed at once: few numbers a row as one product over all
adapters, of which each row keeps its own; many in blocks of one adapter each.

A row gets the bits that it gets alone. oneDNN sums the products of a row and a column in one order, in fp32, however
many rows, columns and batches there are, and zeros beside them change nothing (measured: docs/log.md); and the sum is
always rounded together with what it is added to. This holds for bfloat16 and float16 without AMX (of which see
rlora/system/exactness.py), not for float32. Left out: the update of an unembedding, whose product is vLLM's own.
"""

from functools import cached_property
from typing import Any

import torch

_WIDTH = 128  # numbers of h a row up to which those of all adapters are computed: more are cheaper in blocks


def install() -> None:
    """Replace the two methods; call before the engine is built. Does nothing where vLLM does not run on the CPU."""
    from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

    if getattr(PunicaWrapperCPU, "rlora_installed", False):
        return
    original_update = PunicaWrapperCPU.update_metadata

    def update_metadata(self: Any, mapping: Any, lora_index_to_id: list[int | None], *args: Any, **kwargs: Any) -> None:
        original_update(self, mapping, lora_index_to_id, *args, **kwargs)
        self.rlora_rows = Rows(mapping.index_mapping, lora_index_to_id)

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
        layers, key = self.__dict__.setdefault("rlora_layers", {}), lora_a_stacked[0].data_ptr()
        if key not in layers:
            layers[key] = Layer(lora_a_stacked, lora_b_stacked, output_slices)
        add_low_rank(y, x, layers[key], scale, self.rlora_rows)

    PunicaWrapperCPU.update_metadata = update_metadata
    PunicaWrapperCPU.add_lora_linear = add_lora_linear
    PunicaWrapperCPU.rlora_installed = True  # pyright: ignore[reportAttributeAccessIssue] - our own mark


class Layer:
    """The factors of a layer in all slots, with those of its slices (q, k and v are slices of one layer) as one pair.

    vLLM holds A (slots, 1, R, I) and B (slots, 1, O, R) for each slice; the copies are made again when it changes them.
    """

    def __init__(self, a_slices: tuple[torch.Tensor, ...], b_slices: tuple[torch.Tensor, ...], sizes: tuple[int, ...]):
        """Hold the tensors of vLLM; `sizes` are the outputs of each slice."""
        self._a_slices, self._b_slices, self._sizes = a_slices, b_slices, sizes
        self._versions: list[int] = []

    def factors(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return A (slots, S, I) and B (slots, S, O), S numbers of h: R for each slice, whose B is 0 elsewhere."""
        versions = [tensor._version for tensor in (*self._a_slices, *self._b_slices)]
        if versions != self._versions:
            self._a_KSI = torch.cat([a[:, 0] for a in self._a_slices], dim=1)
            num_slots, _, _, rank = self._b_slices[0].shape
            self._b_KSO = self._a_KSI.new_zeros(num_slots, self._a_KSI.shape[1], sum(self._sizes))
            offset = 0
            for index, (b, size) in enumerate(zip(self._b_slices, self._sizes, strict=True)):
                part = self._b_KSO[:, index * rank : (index + 1) * rank, offset : offset + size]
                part.copy_(b[:, 0, :size].transpose(1, 2))
                offset += size
            self._versions = versions
        return self._a_KSI, self._b_KSO


class Rows:
    """Which rows of a batch belong to which slot."""

    def __init__(self, ids: tuple[int, ...], slots: list[int | None]):
        """Take the adapter id of each token (0: none) and that of each slot."""
        slot_of: dict[int | None, int] = {adapter: slot for slot, adapter in enumerate(slots) if adapter is not None}
        self._slot_T = torch.tensor([slot_of[adapter] if adapter else -1 for adapter in ids])
        self._num_base = ids.count(0)
        self._slots_K, self._counts_K = self._slot_T[self._slot_T >= 0].unique(return_counts=True)

    @property
    def num_adapters(self) -> int:
        """Adapters that have rows."""
        return len(self._slots_K)

    @cached_property
    def together(self) -> tuple[slice | torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """Return the K slots, the N rows (None: all), and which slots are not a row's own (N, K, 1; None: K is 1)."""
        rows_N = (self._slot_T >= 0).nonzero()[:, 0] if self._num_base else None
        slot_N = self._slot_T if rows_N is None else self._slot_T[rows_N]
        other_NK = None if self.num_adapters == 1 else (slot_N[:, None] != self._slots_K)[:, :, None]
        return _side_by_side(self._slots_K), rows_N, other_NK

    @cached_property
    def in_blocks(self) -> tuple[slice | torch.Tensor, torch.Tensor]:
        """Return the slot of each of M blocks, and their rows (M, N); an adapter's last row fills its last block."""
        largest = int(self._counts_K.max())
        total = int(self._counts_K.sum())
        size = largest if largest * self.num_adapters <= 2 * total else -(-total // self.num_adapters)
        blocks_K = (self._counts_K + size - 1) // size
        slots_M = self._slots_K.repeat_interleave(blocks_K)
        nth_M = torch.arange(len(slots_M)) - (blocks_K.cumsum(0) - blocks_K).repeat_interleave(blocks_K)
        starts_M, counts_M = (
            values_K.repeat_interleave(blocks_K)[:, None]
            for values_K in (self._counts_K.cumsum(0) - self._counts_K, self._counts_K)
        )
        at_MN = (nth_M[:, None] * size + torch.arange(size)).minimum(counts_M - 1) + starts_M
        by_slot = self._slot_T.argsort(stable=True)[self._num_base :]
        return _side_by_side(slots_M), by_slot[at_MN]


def _side_by_side(slots: torch.Tensor) -> slice | torch.Tensor:
    """Return slots as a slice if they are one, so that their factors are not copied."""
    first, end = int(slots[0]), int(slots[-1]) + 1
    return slice(first, end) if torch.equal(slots, torch.arange(first, end)) else slots


def add_low_rank(y: torch.Tensor, x: torch.Tensor, layer: Layer, scale: float, rows: Rows) -> None:
    """Add scale (x A^T) B^T to y (T, O) in place, with the factors of each row's adapter; x is (T, I)."""
    if rows.num_adapters == 0:
        return
    a_KSI, b_KSO = layer.factors()
    if rows.num_adapters > 1 and rows.num_adapters * a_KSI.shape[1] > _WIDTH:
        slots, rows_MN = rows.in_blocks
        h_MNS = x[rows_MN] @ a_KSI[slots].transpose(1, 2)
        y_MNO = torch.baddbmm(y[rows_MN], h_MNS, b_KSO[slots], alpha=scale)
        y.index_copy_(0, rows_MN.flatten(), y_MNO.flatten(0, 1))
        return
    slots, rows_N, other_NK = rows.together
    a_SI, b_SO = a_KSI[slots].flatten(0, 1), b_KSO[slots].flatten(0, 1)
    h_NS = (x if rows_N is None else x[rows_N]) @ a_SI.T
    if other_NK is not None:
        h_NS.view(*other_NK.shape[:2], -1).masked_fill_(other_NK, 0)
    if rows_N is None:
        y.addmm_(h_NS, b_SO, alpha=scale)
    else:
        y.index_copy_(0, rows_N, torch.addmm(y[rows_N], h_NS, b_SO, alpha=scale))
