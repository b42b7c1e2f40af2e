"""Adapters as PEFT folders (`adapter_config.json`, `adapter_model.safetensors`), the format every server reads.

Only safetensors and JSON are read: a folder from elsewhere cannot run code, and `.bin` files are refused.

Experts are written one by one, `...mlp.experts.3.gate_proj.lora_A.weight`. vLLM 0.32 loads these for Qwen3-MoE and
OLMoE: vllm/lora/lora_model.py, `from_local_checkpoint`, takes the names listed by lora/utils.py,
`process_packed_modules_mapping`, and lora/lora_weights.py, `pack_moe`, stacks them. (Its names for a fused form,
`experts.base_layer` and `experts`, are for models that it marks `is_3d_moe_weight`.) PEFT 0.21 fuses them for the same
models when it loads them. Left out: what PEFT itself saves of fused experts, where gate and up share one A.
"""

import json
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from rlora.errors import AdapterError
from rlora.lora.adapter import Adapter
from rlora.lora.config import LoraConfig
from rlora.lora.peft.plain import check_plain
from rlora.lora.peft.stored_ranks import header, is_of_expert, rank_fields, stored_ranks
from rlora.model.sources import loadable_name
from rlora.system.files import write_atomically
from rlora.system.records import object_in
from rlora.system.stamp import check_stamp

CONFIG_FILE = "adapter_config.json"
TENSOR_FILE = "adapter_model.safetensors"
_PREFIX = "base_model.model."
MAX_RANK, MAX_ALPHA = 65_536, 1e6  # no layer is as narrow, no scale as large


def target_modules(adapter: Adapter) -> list[str]:
    """Return the last parts of the adapted layers' paths, sorted: PEFT's names of them."""
    return sorted({name.rsplit(".", 2)[-2] for name in adapter.tensors})


def served_modules(adapter: Adapter) -> list[str]:
    """Return the adapted layers as an engine names them, which holds all experts of a layer in one module."""
    return modules_of(adapter.tensors)


def modules_of(names: Iterable[str]) -> list[str]:
    """Return what `served_modules` says of an adapter whose tensors have these names."""
    paths = {name.rpartition(".lora_")[0] for name in names}
    return sorted({"experts" if is_of_expert(path) else path.rpartition(".")[2] for path in paths})


def save_adapter(adapter: Adapter, folder: Path) -> None:
    """Write the adapter into `folder` as PEFT files, each atomically, the configuration last."""
    adapter = adapter.served()
    layers = {name.rpartition(".lora_")[0] for name in adapter.tensors}
    with write_atomically(folder / TENSOR_FILE) as path:
        path.write_bytes(save(peft_tensors(adapter), metadata=header(layers, adapter.config.rank)))
    save_config(adapter, folder)


def peft_tensors(adapter: Adapter) -> dict[str, torch.Tensor]:
    """Return what is served, under PEFT's names."""
    return {f"{_PREFIX}{name}.weight": tensor.contiguous() for name, tensor in adapter.served().tensors.items()}


def save_config(adapter: Adapter, folder: Path) -> None:
    """Write PEFT's configuration of the adapter into `folder`, atomically."""
    adapter = adapter.served()
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": loadable_name(adapter.base_model),
        **rank_fields({name: tuple(tensor.shape) for name, tensor in adapter.tensors.items()}, adapter.config.rank),
        "lora_alpha": adapter.config.alpha,
        "lora_dropout": 0.0,
        "target_modules": target_modules(adapter),
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "use_rslora": adapter.config.variant == "rslora",
        "use_dora": False,
        "modules_to_save": None,
    }
    with write_atomically(folder / CONFIG_FILE) as path:
        path.write_text(json.dumps(config, indent=2) + "\n")


def read_adapter_config(folder: Path) -> dict[str, Any]:
    """Return what a PEFT folder's configuration says; AdapterError where it is missing or not one of LoRA's."""
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise AdapterError(f"{folder} holds no {CONFIG_FILE}; give a folder in PEFT's format.")
    try:
        stored = object_in(path.read_bytes())
    except (OSError, ValueError) as error:
        raise AdapterError(f"{path} is not JSON of an object: {error}") from error
    rank, alpha, patterns = stored.get("r"), stored.get("lora_alpha"), stored.get("rank_pattern") or {}
    is_scale = isinstance(alpha, int | float) and not isinstance(alpha, bool) and 0 < alpha <= MAX_ALPHA
    if not (_is_rank(rank) and is_scale):
        raise AdapterError(
            f"{path} has r={rank!r} and lora_alpha={alpha!r}; both must be numbers above 0, and at most "
            f"{MAX_RANK} and {MAX_ALPHA:g}."
        )
    if not (isinstance(patterns, dict) and all(map(_is_rank, patterns.values()))):
        raise AdapterError(f"{path} has rank_pattern={patterns!r}; its ranks must be numbers from 1 to {MAX_RANK}.")
    for field in ("lora_bias", "fan_in_fan_out"):
        if stored.get(field):
            raise AdapterError(f"{path} has {field}=true, which is not read.")
    try:
        check_stamp(folder, TENSOR_FILE, scale_fields(stored))
    except (OSError, ValueError) as error:
        raise AdapterError(str(error)) from error
    return stored


def scale_fields(stored: Mapping[str, Any]) -> dict[str, Any]:
    """Return what of a configuration says how an adapter's numbers count: no file of tensors holds it."""
    return {name: stored.get(name) for name in ("r", "rank_pattern", "lora_alpha", "use_rslora")}


def _is_rank(value: object) -> bool:
    return type(value) is int and 1 <= value <= MAX_RANK


def check_adapter(folder: Path, config: LoraConfig) -> None:
    """Raise AdapterError unless `folder` holds a plain LoRA adapter of this rank and scale, in safetensors."""
    stored = read_adapter_config(folder)
    check_plain(folder, stored)
    if stored.get("target_parameters"):
        raise AdapterError(
            f"{folder} adapts fused experts (target_parameters), whose gate and up projections share a factor; only "
            "experts adapted one by one are read."
        )
    if stored.get("alpha_pattern"):
        raise AdapterError(f"{folder} has alpha_pattern={stored['alpha_pattern']!r}; only one scale for all is read.")
    (rank, expert_rank), alpha = stored_ranks(folder / TENSOR_FILE, stored), stored["lora_alpha"]
    if rank != config.rank:
        run = folder.parent if (folder.parent / "run.json").is_file() else "RUN"
        raise AdapterError(
            f"{folder} has rank {rank}, the run has {config.rank}; pass --lora.rank {rank}, or merge it into its base, "
            f"on which any rank can be trained: rlora export {run} --merge --to NEW, and then --model.name NEW "
            "in place of --init-adapter."
        )
    scale = alpha / rank**0.5 if stored.get("use_rslora") else alpha / rank
    if not math.isclose(scale, config.scale):
        needed = scale / config.scale * config.alpha
        raise AdapterError(f"{folder} scales by {scale}, the run by {config.scale}; pass --lora.alpha {needed:g}.")
    if expert_rank is not None and expert_rank != rank and stored.get("use_rslora"):
        raise AdapterError(f"{folder} scales experts of rank {expert_rank} by rsLoRA's rule, which is not read.")


def load_adapter_tensors(
    folder: Path, config: LoraConfig, names: Mapping[str, tuple[int, ...]]
) -> dict[str, torch.Tensor]:
    """Return the tensors of a PEFT folder under rlora's names, checked against `config` and the shapes in `names`.

    Raises AdapterError when files are missing or unsafe, or the adapter has another rank, scale, kind or set of layers.
    """
    check_adapter(folder, config)
    try:
        stored_tensors = load_file(folder / TENSOR_FILE)
    except (SafetensorError, OSError) as error:
        raise AdapterError(f"{folder / TENSOR_FILE} cannot be read: {error}") from error
    tensors = {our_name(key): value.float() for key, value in stored_tensors.items()}
    if wrong := [name for name, tensor in tensors.items() if not bool(tensor.isfinite().all())]:
        raise AdapterError(f"{folder}: {wrong[0]} holds numbers that are not finite; copy or train the adapter again.")
    if missing := sorted(names.keys() - tensors.keys()):
        raise AdapterError(
            f"{folder} lacks {len(missing)} tensors of the policy, first {missing[0]}: check --lora.layers. "
            "(An adapter of fewer layers than that names can be scored, by rlora eval --adapter, not trained on.)"
        )
    if extra := sorted(tensors.keys() - names.keys()):
        raise AdapterError(
            f"{folder} has {len(extra)} tensors the policy lacks, first {extra[0]}; check --lora.layers."
        )
    for name, shape in names.items():
        if tuple(tensors[name].shape) != tuple(shape):
            raise AdapterError(f"{folder}: {name} is {tuple(tensors[name].shape)}, the policy needs {tuple(shape)}.")
    return tensors


def our_name(key: str) -> str:
    """Return rlora's name of a tensor in a PEFT file."""
    return re.sub(r"\.weight$", "", key.removeprefix(_PREFIX)).replace(".default", "")
