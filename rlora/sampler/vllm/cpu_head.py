"""Logits in fp32 for vLLM's CPU build, the same in any batch, put in place of its own in one engine.

vLLM 0.32 copies the head to fp32 at every step and multiplies with MKL, which sums one to eleven rows in an order of
their own (measured: docs/log.md). Its own oneDNN product of packed weights sums all alike, without the copy. It holds
the packed head for good, in fp32; so it is for engines whose weights never change: those with adapters.
"""

from types import MethodType
from typing import Any

import torch


def give_to(model: Any) -> None:
    """Let the engine's `model`, and no other engine's, compute its logits so. Does nothing without oneDNN in vLLM."""
    from vllm import _custom_ops as ops
    from vllm.model_executor.layers.logits_processor import LogitsProcessor

    if not ops._supports_onednn:
        return
    for module in model.modules():
        if isinstance(module, LogitsProcessor):
            module._apply_head = MethodType(apply_head, module)


def apply_head(
    self: Any, lm_head: Any, hidden_states: torch.Tensor, embedding_bias: torch.Tensor | None
) -> torch.Tensor:
    """Return the logits (T, V) of `hidden_states` (T, H), in place of the method of vLLM's LogitsProcessor."""
    from vllm import _custom_ops as ops

    if self.head_dtype != torch.float32 or hidden_states.dtype == torch.float32:
        return type(self)._apply_head(self, lm_head, hidden_states, embedding_bias)
    if not hasattr(lm_head, "rlora_product"):
        lm_head.rlora_product = ops.create_onednn_mm(lm_head.weight.float().t())
    bias = None if embedding_bias is None else embedding_bias.float()
    return ops.onednn_mm(lm_head.rlora_product, hidden_states.float(), bias)
