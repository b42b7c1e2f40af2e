"""Adapters from anywhere: which shape a PEFT folder has, and its tensors laid out for a policy.

An adapter of some layers only is the same function as one of all layers that is zero on the others, so it is filled up
with zeros. Left out, with an error: DoRA, ranks or scales that differ between layers, saved full modules.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch

from rlora.errors import AdapterError
from rlora.lora.config import LoraConfig, is_attention
from rlora.lora.peft.peft_format import TENSOR_FILE, check_adapter, load_adapter_tensors, our_name, read_adapter_config
from rlora.lora.peft.stored_ranks import stored_ranks, stored_shapes
from rlora.model.sources import short_name


def stored_shape(folder: Path) -> tuple[LoraConfig, str]:
    """Return rank and scale of the adapter in `folder` and the name of its base model.

    Its layers are attention where it adapts no others, else all, with the unembedding where it is adapted. Raises
    AdapterError for a folder that holds no adapter, or one of a kind that is not served.
    """
    stored = read_adapter_config(folder)
    for field in ("alpha_pattern", "modules_to_save"):
        if stored.get(field):
            raise AdapterError(f"{folder} has {field}={stored[field]!r}; only one rank and scale for all is read.")
    if stored.get("bias", "none") != "none":
        raise AdapterError(f"{folder} trains biases (bias={stored['bias']!r}), which are not read.")
    rank, _ = stored_ranks(folder / TENSOR_FILE, stored)
    config = LoraConfig(
        rank=rank, alpha=float(stored["lora_alpha"]), variant="rslora" if stored.get("use_rslora") else "lora"
    )
    check_adapter(folder, config)
    layers = _layers(folder)
    kinds = ["attention" if all(is_attention(layer) for layer in layers - {"lm_head"}) else "all"]
    config = replace(config, layers="+".join(kinds + ["unembedding"] * ("lm_head" in layers)))
    return config, short_name(str(stored.get("base_model_name_or_path") or ""))


def padded_tensors(folder: Path, config: LoraConfig, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    """Return a tensor for each name in `shapes`: the adapter's, or zeros for a layer that it does not adapt.

    Raises AdapterError for a tensor that the policy has no place for, or of another shape.
    """
    stored = _layers(folder)
    wanted = {name: shape for name, shape in shapes.items() if name.rpartition(".lora_")[0] in stored}
    zeros = {name: torch.zeros(shape) for name, shape in shapes.items() if name not in wanted}
    return {**zeros, **load_adapter_tensors(folder, config, wanted)}


def _layers(folder: Path) -> set[str]:
    keys, _ = stored_shapes(folder / TENSOR_FILE)
    return {our_name(key).rpartition(".lora_")[0] for key in keys}
