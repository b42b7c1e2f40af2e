"""The ranks of an adapter's layers as PEFT's configuration states them, where experts have a rank of their own.

Where they differ, `r` is the experts' rank and `rank_pattern` names the other layers. So both readers are served: vLLM
resolves the patterns for every layer (vllm/lora/peft_helper.py, `get_rank_and_scaling`), while PEFT 0.21, which fuses
experts stored one by one when it loads them (peft/utils/transformers_weight_conversion.py), takes `r` for theirs alone.
The rank that experts share is in the header of the tensor file of an adapter that has no other layers.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
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


def stored_keys(path: Path) -> tuple[list[str], dict[str, str]]:
    """Return the names in a tensor file and its header; AdapterError when it is missing or cannot be read."""
    if not path.is_file():
        raise AdapterError(
            f"{path.parent} holds no {path.name}; only safetensors is read (adapter_model.bin can run code)."
        )
    try:
        with safe_open(path, framework="pt") as file:
            return list(file.keys()), file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise AdapterError(f"{path} cannot be read: {error}") from error


def stored_ranks(path: Path, stored: Mapping[str, Any]) -> tuple[int, int | None]:
    """Return the rank of the adapter in a tensor file and that of its experts (None without any).

    `stored` is PEFT's configuration of it.

    Raises AdapterError for layers of different ranks, or experts whose total rank is not stated.
    """
    keys, metadata = stored_keys(path)
    layers = {key.rpartition(".lora_")[0] for key in keys if ".lora_" in key}
    of_experts = _ranks(stored, [layer for layer in layers if is_of_expert(layer)])
    of_others = _ranks(stored, [layer for layer in layers if not is_of_expert(layer)])
    if len(of_experts) > 1 or len(of_others) > 1:
        raise AdapterError(
            f"{path.parent} has rank_pattern={stored['rank_pattern']!r}; only one rank and scale for all is read."
        )
    if not of_experts:
        return next(iter(of_others), stored["r"]), None
    (expert_rank,) = of_experts
    if of_others:
        return of_others.pop(), expert_rank
    if not metadata.get(_HEADER, "").isdecimal():
        raise AdapterError(f"{path.parent} adapts experts alone and does not state the total rank that they share.")
    return int(metadata[_HEADER]), expert_rank


def _ranks(stored: Mapping[str, Any], layers: Sequence[str]) -> set[int]:
    """Return the ranks of layers by PEFT's rule: the first pattern that matches the end of a path, else `r`."""
    patterns = [(re.compile(rf"(.*\.)?({key})$"), rank) for key, rank in (stored.get("rank_pattern") or {}).items()]
    return {next((rank for key, rank in patterns if key.match(layer)), stored["r"]) for layer in layers}
