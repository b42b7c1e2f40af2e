"""One copy of the base for engine and trainer: the engine's weights, seen as the parameters of Transformers' model.

vLLM lays some of a block's matrices one below the other, q over k over v and gate over up, so each of them is a view of
whole rows. Embedding and unembedding have rows beyond the vocabulary, which pad. The others are the same tensors.

What is known is listed. A layer of another name, of another size or number format, quantised or divided among GPUs,
and weights that one of the two models has and the other has not, raise LayoutError. So does a row of a view that is not
the row in the model's files: names and shapes alone would not show a block whose parts lie in another order. Left out:
fused experts, which the engine lays out anew for its kernels.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn

from rlora.errors import LayoutError

_FUSED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}  # parts from above
_PADDED = ("embed_tokens", "lm_head")
_SAME = (
    "o_proj",
    "down_proj",
    "norm",
    "input_layernorm",
    "post_attention_layernorm",
    "post_feedforward_layernorm",
    "q_norm",
    "k_norm",
)
_PLAIN_METHODS = ("UnquantizedLinearMethod", "UnquantizedEmbeddingMethod")  # of the engine's layers
_WRAPPED = "base_layer"  # the name of a layer inside the one that adds its adapters


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Place:
    """Where a parameter of the trainer's model lies: rows of the parameter `kind` of the engine's layer `path`."""

    path: str
    kind: str
    part_rows: tuple[int, ...]
    part: int
    is_padded: bool


def base_views(engine: nn.Module, model: nn.Module, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Return the engine's weights by the names of `model`'s parameters, as views of the engine's storage.

    `model` is Transformers' causal language model, which may lie on the meta device; `dtype` is what its weights are to
    be. Raises LayoutError, with the reason, where the engine's weights are not known to be the model's.
    """
    _refuse_stored_buffers(model)
    layers = _layers(engine)
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    views: dict[str, torch.Tensor] = {}
    used: set[int] = set()
    for name, shape in shapes.items():
        place = _place(name, shapes)
        whole = _weight(layers, place, name)
        used.add(id(whole))
        views[name] = _view(whole, place, name, shape, dtype)
    unused = [name for name, parameter in engine.named_parameters() if id(parameter) not in used]
    if unused:
        raise LayoutError(
            f"the engine computes with {len(unused)} weights that the trainer's model does not have, {unused[0]} for "
            "one."
        )
    _refuse_shared_storage(views)
    return views


def _refuse_stored_buffers(model: nn.Module) -> None:
    stored = model.state_dict().keys() - {name for name, _ in model.named_parameters(remove_duplicate=False)}
    if stored:
        raise LayoutError(f"the model stores {sorted(stored)[0]}, which is a buffer and no weight.")


def _refuse_shared_storage(views: Mapping[str, torch.Tensor]) -> None:
    """Raise LayoutError where the engine holds one tensor for two parameters of the model."""
    seen: dict[int, str] = {}
    for name, view in views.items():
        if (other := seen.setdefault(view.data_ptr(), name)) != name:
            raise LayoutError(f"the engine holds {other} and {name} as one tensor, the trainer's model as two.")


def _layers(engine: nn.Module) -> dict[str, nn.Module]:
    """Return the engine's modules by the paths that they have without adapters."""
    return {
        ".".join(part for part in path.split(".") if part != _WRAPPED): module
        for path, module in engine.named_modules()  # a wrapper comes before what it wraps, which takes its place
    }


def _place(name: str, shapes: Mapping[str, tuple[int, ...]]) -> _Place:
    """Return where the engine keeps the model's parameter `name`."""
    path, _, kind = name.rpartition(".")
    parent, _, child = path.rpartition(".")
    if "experts" in path.split("."):
        raise LayoutError(f"{name} is of experts, which the engine lays out anew for its kernels.")
    for fused, parts in _FUSED.items():
        if child in parts:
            siblings = [f"{parent}.{part}.{kind}" for part in parts]
            if absent := [sibling for sibling in siblings if sibling not in shapes]:
                raise LayoutError(f"{name} is part of {fused} in the engine, and the model has no {absent[0]}.")
            rows = tuple(shapes[sibling][0] for sibling in siblings)
            return _Place(path=f"{parent}.{fused}", kind=kind, part_rows=rows, part=parts.index(child), is_padded=False)
    if child not in (*_SAME, *_PADDED):
        raise LayoutError(f"{name} is a weight of a layer that is not known ({child}).")
    return _Place(path=path, kind=kind, part_rows=(shapes[name][0],), part=0, is_padded=child in _PADDED)


def _weight(layers: Mapping[str, nn.Module], place: _Place, name: str) -> nn.Parameter:
    """Return the engine's parameter at `place`, of a layer that is neither quantised nor divided."""
    layer: Any = layers.get(place.path)
    if layer is None:
        raise LayoutError(f"the engine has no layer {place.path}, which would hold {name}.")
    method = getattr(layer, "quant_method", None)
    if method is not None and type(method).__name__ not in _PLAIN_METHODS:
        raise LayoutError(f"the engine's {place.path} is quantised ({type(method).__name__}).")
    if getattr(layer, "tp_size", 1) != 1:
        raise LayoutError(f"the engine's {place.path} is divided among {layer.tp_size} GPUs.")
    if getattr(layer, "num_added_embeddings", 0) != 0:
        raise LayoutError(f"the engine's {place.path} has {layer.num_added_embeddings} tokens of its own.")
    sizes = getattr(layer, "output_sizes", None)
    if len(place.part_rows) > 1 and sizes is not None and tuple(sizes) != place.part_rows:
        raise LayoutError(
            f"the engine's {place.path} is made of parts of {tuple(sizes)} rows, the trainer's model of parts of "
            f"{place.part_rows}."
        )
    weight = layer._parameters.get(place.kind)
    if weight is None:
        raise LayoutError(f"the engine's {place.path} has no {place.kind}, which would hold {name}.")
    return weight


def _view(whole: nn.Parameter, place: _Place, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Return the rows of `whole` at `place`, which have to be `shape`."""
    where = f"the engine's {place.path}.{place.kind}"
    if whole.numel() == 0:
        raise LayoutError(f"{where} is empty: its numbers were packed away for the CPU.")
    if whole.dtype != dtype:
        raise LayoutError(f"{where} is in {_named(whole.dtype)}, the trainer computes in {_named(dtype)}.")
    rows = sum(place.part_rows)
    is_high_enough = whole.shape[0] >= rows if place.is_padded else whole.shape[0] == rows
    if whole.dim() != len(shape) or not is_high_enough or tuple(whole.shape[1:]) != shape[1:]:
        raise LayoutError(
            f"{where} has the shape {tuple(whole.shape)}, where {name} with its neighbours has {(rows, *shape[1:])}."
        )
    tensor = whole.detach().as_subclass(torch.Tensor)  # the engine's own class of parameter loads weights on its own
    if tensor.is_meta or tensor.is_inference():
        raise LayoutError(f"{where} holds no numbers that a gradient can pass (meta or inference tensor).")
    start = sum(place.part_rows[: place.part])
    view = tensor[start : start + shape[0]]
    if not view.is_contiguous():
        raise LayoutError(f"{where} has the strides {tuple(whole.stride())}, so its rows are not contiguous.")
    return view


def _named(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def check_rows(views: Mapping[str, torch.Tensor], folder: Path) -> None:
    """Raise LayoutError unless some rows of each view, first and last among them, are those of the model's files."""
    unread = set(views)
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in unread & set(file.keys()):
                stored, view = file.get_slice(name), views[name]
                if tuple(stored.get_shape()) != tuple(view.shape):
                    raise LayoutError(
                        f"{name} is {tuple(stored.get_shape())} in {path}, {tuple(view.shape)} in memory."
                    )
                for row in sorted({0, 1, len(view) // 2, len(view) - 1} & set(range(len(view)))):
                    if not torch.equal(stored[row : row + 1].to(view.dtype), view[row : row + 1].cpu()):
                        raise LayoutError(f"row {row} of {name} in the engine is not that of {path}.")
                unread.remove(name)
    if unread:
        raise LayoutError(f"the files in {folder} have no weight of the name {sorted(unread)[0]}.")
