"""An engine's modules, made up for tests: the names and shapes of vLLM's layers, without their computation."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

_FUSED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
_FUSED_OF = {part: fused for fused, parts in _FUSED.items() for part in parts}


class Layer(nn.Module):
    """A layer that holds weight and bias."""

    def __init__(self, **tensors: torch.Tensor):
        super().__init__()
        for name, tensor in tensors.items():
            self.register_parameter(name, nn.Parameter(tensor, requires_grad=False))


class WithAdapters(nn.Module):
    """A layer around another one that adds its adapters."""

    def __init__(self, base_layer: nn.Module):
        super().__init__()
        self.base_layer = base_layer
        self.lora_a_stacked = (torch.zeros(1, 1, 1, 4),)


def made_up_engine(model: Any, *, has_adapters: bool = True, padding: int = 64) -> nn.Module:
    """Return copies of the weights of Transformers' `model`, laid out as vLLM lays them, in a tree of its names."""
    engine, done = nn.Module(), {}
    for path, module in model.named_modules():
        tensors = {name: tensor.detach().clone() for name, tensor in module.named_parameters(recurse=False)}
        if not tensors:
            continue
        parent, _, child = path.rpartition(".")
        if child in _FUSED_OF:
            path = f"{parent}.{_FUSED_OF[child]}"
            if path in done:
                continue
            parts = [model.get_submodule(f"{parent}.{part}") for part in _FUSED[_FUSED_OF[child]]]
            tensors = {name: torch.cat([getattr(part, name).detach() for part in parts]) for name in tensors}
        elif child in ("embed_tokens", "lm_head"):
            weight_VH = module.weight.detach()
            rows_beyond = weight_VH.new_zeros(-len(weight_VH) % padding, weight_VH.shape[1])
            tensors = {"weight": torch.cat([weight_VH, rows_beyond])}
        layer = done[path] = Layer(**tensors)
        is_wrapped = has_adapters and child.endswith("_proj")
        put(engine, path, WithAdapters(layer) if is_wrapped else layer)
    if model.lm_head.weight is model.model.embed_tokens.weight:
        engine.get_submodule("lm_head").weight = engine.get_submodule("model.embed_tokens").weight
    return engine


def put(engine: nn.Module, path: str, module: nn.Module) -> None:
    """Put a module into the tree, making those above it."""
    *parents, child = path.split(".")
    for name in parents:
        if not hasattr(engine, name):
            engine.add_module(name, nn.Module())
        engine = getattr(engine, name)
    engine.add_module(child, module)


def change(engine: nn.Module, path: str, made_of: Callable[[torch.Tensor], torch.Tensor], kind: str = "weight") -> None:
    """Replace a parameter by what `made_of` makes of it."""
    layer = engine.get_submodule(path)
    layer = getattr(layer, "base_layer", layer)
    layer.register_parameter(kind, nn.Parameter(made_of(getattr(layer, kind).data), requires_grad=False))
