"""Logits in fp32 for vLLM's CPU build, the same in any batch, put in place of its own when the engine starts.

vLLM 0.32 copies the head to fp32 at every step and multiplies with MKL, which sums one to eleven rows in an order of
their own (measured: docs/log.md). Its own oneDNN product of packed weights sums all alike, without the copy. It holds
the packed head for good, in fp32; so it is for engines whose weights never change: those with adapters.
"""

from typing import Any

import torch


def install() -> None:
    """Replace the method; call before the engine is built. Does nothing where vLLM was built without oneDNN."""
    from vllm import _custom_ops as ops
    from vllm.model_executor.layers.logits_processor import LogitsProcessor

    if getattr(LogitsProcessor, "rlora_installed", False) or not ops._supports_onednn:
        return
    original = LogitsProcessor._apply_head

    def apply_head(
        self: Any, lm_head: Any, hidden_states: torch.Tensor, embedding_bias: torch.Tensor | None
    ) -> torch.Tensor:
        if self.head_dtype != torch.float32 or hidden_states.dtype == torch.float32:
            return original(self, lm_head, hidden_states, embedding_bias)
        if not hasattr(lm_head, "rlora_product"):
            lm_head.rlora_product = ops.create_onednn_mm(lm_head.weight.float().t())
        bias = None if embedding_bias is None else embedding_bias.float()
        return ops.onednn_mm(lm_head.rlora_product, hidden_states.float(), bias)

    LogitsProcessor._apply_head = apply_head
    LogitsProcessor.rlora_installed = True  # pyright: ignore[reportAttributeAccessIssue] - our own mark
