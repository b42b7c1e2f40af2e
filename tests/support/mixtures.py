"""Tiny mixtures of experts for tests: models of random weights, and the plain formula of their experts."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rlora.model.sources import make_toy

NUM_EXPERTS, NUM_ACTIVE = 8, 2
CLASSES = ("qwen3_moe", "olmoe")


def make_mixture(folder: Path, kind: str) -> Path:
    """Write a toy mixture of a Transformers class as a folder of safetensors with the toy's tokenizer."""
    from transformers import OlmoeConfig, Qwen3MoeConfig

    shared = {"num_experts": NUM_EXPERTS, "num_experts_per_tok": NUM_ACTIVE}
    if kind == "qwen3_moe":
        own = {"moe_intermediate_size": 32, "head_dim": 16, "norm_topk_prob": True}
        make_toy(folder, config_class=Qwen3MoeConfig, **shared, **own)
    else:
        make_toy(folder, config_class=OlmoeConfig, **shared)
    return folder


def fused(*, num_hidden: int = 24, num_inner: int = 16, dtype: torch.dtype = torch.float32, seed: int = 0) -> Any:
    """Return the experts of one Qwen3-MoE layer by themselves."""
    from transformers import Qwen3MoeConfig
    from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeExperts

    config = Qwen3MoeConfig(
        hidden_size=num_hidden, moe_intermediate_size=num_inner, num_experts=5, num_experts_per_tok=NUM_ACTIVE
    )
    config._experts_implementation = "eager"
    module = Qwen3MoeExperts(config)
    random = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.data.copy_(torch.randn(parameter.shape, generator=random) * 0.3)
    return module.to(dtype)


def plain_experts(
    base: Any,
    factors: Mapping[str, tuple[torch.Tensor, torch.Tensor]],
    scale: float,
    x_NH: torch.Tensor,
    index_Nk: torch.Tensor,
    weight_Nk: torch.Tensor,
) -> torch.Tensor:
    """Return the experts' sum by the formula: token by token, each expert's weights W + scale x B A written out."""

    def weight(projection: str, expert: int) -> torch.Tensor:
        gate, up = base.gate_up_proj[expert].float().chunk(2)
        w = {"gate_proj": gate, "up_proj": up, "down_proj": base.down_proj[expert].float()}[projection]
        a_ERI, b_EOR = factors[projection]
        return w + scale * b_EOR[expert] @ a_ERI[expert]

    rows = []
    for x_H, experts_k, weights_k in zip(x_NH, index_Nk.tolist(), weight_Nk, strict=True):
        total = torch.zeros_like(x_H)
        for expert, share in zip(experts_k, weights_k, strict=True):
            inner = nn.functional.silu(weight("gate_proj", expert) @ x_H) * (weight("up_proj", expert) @ x_H)
            total = total + share * (weight("down_proj", expert) @ inner)
        rows.append(total)
    return torch.stack(rows)


class LinearExperts(nn.Module):
    """The experts of a layer as linear layers of their own, named as in checkpoints, which PEFT adapts one by one."""

    def __init__(self, base: Any):
        super().__init__()
        self.num_experts = base.num_experts
        for expert in range(base.num_experts):
            gate, up = base.gate_up_proj[expert].detach().chunk(2)
            parts = {"gate_proj": gate, "up_proj": up, "down_proj": base.down_proj[expert].detach()}
            module = nn.Module()
            for name, weight in parts.items():
                linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
                linear.weight.data = weight.clone()
                setattr(module, name, linear)
            self.add_module(str(expert), module)

    def forward(self, hidden_states, top_k_index, top_k_weights):
        total = torch.zeros_like(hidden_states)
        for expert in range(self.num_experts):
            layers = getattr(self, str(expert))
            token_S, slot_S = (top_k_index == expert).nonzero(as_tuple=True)
            x = hidden_states[token_S]
            y = layers.down_proj(nn.functional.silu(layers.gate_proj(x)) * layers.up_proj(x))
            total = total.index_add(0, token_S, y * top_k_weights[token_S, slot_S, None])
        return total


def as_linear(model: Any) -> Any:
    """Replace the fused experts of `model` by linear layers, under a name for which PEFT converts nothing."""
    model.config.model_type = "taken_apart"
    for layer in model.model.layers:
        layer.mlp.experts = LinearExperts(layer.mlp.experts)
    return model
