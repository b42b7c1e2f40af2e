"""The ranks of an adapter's layers as PEFT's configuration states them, where experts have a rank of their own.

Where they differ, `r` is the experts' rank and `rank_pattern` names the other layers. So both readers are served: vLLM
resolves the patterns for every layer (vllm/lora/peft_helper.py, `get_rank_and_scaling`), while PEFT 0.21, which fuses
experts stored one by one when it loads them (peft/utils/transformers_weight_conversion.py), takes `r` for theirs alone.
The rank that experts share is in the header of the tensor file of an adapter that has no other layers.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from rlora.errors import AdapterError

_EXPERT = re.compile(r"\.experts\.[0-9]+\.[a-z_]+$")
_HEADER = "rank"


def is_of_expert(layer: str) -> bool:
    """Whether a layer's path is that of an expert's projection."""
    return _EXPERT.search(layer) is not None


def rank_fields(shapes: Mapping[str, tuple[int, ...]], rank: int) -> dict[str, Any]:
    """Return PEFT's fields `r` and `rank_pattern` for tensors of these shapes, of total rank `rank`."""
    layers = {name.rpartition(".lora_")[0]: shape[0] for name, shape in shapes.items() if name.endswith(".lora_A")}
    of_experts = {own for layer, own in layers.items() if is_of_expert(layer)}
    if of_experts <= {rank}:
        return {"r": rank, "rank_pattern": {}}
    (expert_rank,) = of_experts
    others = {".".join(layer.split(".")[-2:]) for layer in layers if not is_of_expert(layer)}
    return {"r": expert_rank, "rank_pattern": dict.fromkeys(sorted(others), rank)}


def header(layers: Iterable[str], rank: int) -> dict[str, str]:
    """Return the header of a tensor file: one entry, since safetensors writes several in an order of chance."""
    return {_HEADER: str(rank)} if all(map(is_of_expert, layers)) else {"format": "pt"}


def stored_shapes(path: Path) -> tuple[dict[str, tuple[int, ...]], dict[str, str]]:
    """Return the shapes in a tensor file by name, and its header; AdapterError when it is missing or cannot be read."""
    if not path.is_file():
        raise AdapterError(
            f"{path.parent} holds no {path.name}; only safetensors is read (adapter_model.bin can run code)."
        )
    try:
        with safe_open(path, framework="pt") as file:
            shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118 - no mapping
            return shapes, file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise AdapterError(f"{path} cannot be read: {error}") from error


def stored_ranks(path: Path, stored: Mapping[str, Any]) -> tuple[int, int | None]:
    """Return the rank of the adapter in a tensor file and that of its experts (None without any).

    They are those of the tensors' shapes. `stored` is PEFT's configuration, which must state them; its patterns come
    from whoever made the file and are never matched.

    Raises AdapterError for layers of different ranks, ranks that are not stated, or experts whose total rank is not.
    """
    shapes, metadata = stored_shapes(path)
    layers = {key.rpartition(".lora_")[0]: shape[0] for key, shape in shapes.items() if ".lora_A" in key and shape}
    of_experts = {rank for layer, rank in layers.items() if is_of_expert(layer)}
    of_others = {rank for layer, rank in layers.items() if not is_of_expert(layer)}
    patterns = stored.get("rank_pattern") or {}
    if len(of_experts) > 1 or len(of_others) > 1 or not set(patterns.values()) <= of_experts | of_others:
        raise AdapterError(f"{path.parent} has rank_pattern={patterns!r}; only one rank and scale for all is read.")
    if unstated := sorted((of_experts | of_others) - {stored["r"], *patterns.values()}):
        raise AdapterError(f"{path.parent} has r={stored['r']}, and {path.name} holds factors of rank {unstated[0]}.")
    if not of_experts:
        return next(iter(of_others), stored["r"]), None
    (expert_rank,) = of_experts
    if of_others:
        return of_others.pop(), expert_rank
    if not metadata.get(_HEADER, "").isdecimal():
        raise AdapterError(f"{path.parent} adapts experts alone and does not state the total rank that they share.")
    return int(metadata[_HEADER]), expert_rank
